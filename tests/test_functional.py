"""conv1d: what torch.nn.functional.conv1d does, and our extras."""

from __future__ import annotations

import pytest
import torch
from cases import BY_HAND, DTYPES, FEW, Case, parametrize, problem, random
from tolerances import exact_forward, exact_gradients
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from convlm_kernels import conv1d
from convlm_kernels.activations import ACTIVATIONS

pytestmark = pytest.mark.usefixtures("nan_in_empty")

X, WEIGHT, BIAS = random(2, 4, 10), random(6, 4, 3), random(6)


@parametrize("dtype", DTYPES)
def test_the_layer_written_by_hand(dtype: torch.dtype) -> None:
    p = problem(BY_HAND, dtype)
    leaves = [t.requires_grad_() for t in p[:3]]
    y = conv1d(*leaves, stride=4, padding=1, dilation=2)
    assert y.shape == (32, 6, 2)
    exact_forward(*p[:3], BY_HAND.window).allows(y.detach())
    gradients = torch.autograd.grad(y, leaves, p.grad_output)
    exact = exact_gradients(p.x, p.weight, p.grad_output, BY_HAND.window)
    for own, right in zip(gradients, exact, strict=True):
        right.allows(own)


def test_the_layer_written_by_hand_against_a_loop() -> None:
    """The seed's own way: filter by filter, channel by channel, position by position."""
    x, weight, bias, _ = problem(BY_HAND, torch.float64)
    padded = F.pad(x, (1, 1))
    expected = torch.empty(32, 6, 2, dtype=torch.float64)
    for out_channel in range(6):
        for out in range(2):
            window = padded[:, :, out * 4 : out * 4 + 5 : 2]
            expected[:, out_channel, out] = (window * weight[out_channel]).sum((1, 2))
        expected[:, out_channel] += bias[out_channel]
    torch.testing.assert_close(conv1d(x, weight, bias, 4, 1, 2), expected)


# Every way to say it that torch has, positional and by name.
WAYS = {
    "defaults": ((), {}),
    "positional": ((2, 1, 2, 1), {}),
    "no_bias": ((), dict(bias=None, stride=2)),
    "tuples": ((), dict(stride=(2,), padding=(1,), dilation=(3,))),
    "lists": ((), dict(stride=[2], padding=[1], dilation=[3])),
    "same": ((), dict(padding="same", dilation=2)),
    "valid": ((), dict(padding="valid", stride=3)),
}


@pytest.mark.parametrize("unbatched", [False, True], ids=["batched", "unbatched"])
@pytest.mark.parametrize("way", WAYS)
def test_signature_of_torch(way: str, unbatched: bool) -> None:
    positional, named = WAYS[way]
    x = X[0] if unbatched else X
    arguments = (WEIGHT, *(() if "bias" in named else (BIAS,)), *positional)
    y = conv1d(x, *arguments, **named)
    torch.testing.assert_close(y, F.conv1d(x, *arguments, **named))


def test_arguments_by_the_names_of_torch() -> None:
    y = conv1d(input=X, weight=WEIGHT, bias=BIAS, stride=2, padding=1, dilation=2, groups=1)
    torch.testing.assert_close(y, F.conv1d(X, WEIGHT, BIAS, 2, 1, 2))


def test_groups() -> None:
    weight = random(6, 2, 3)
    torch.testing.assert_close(conv1d(X, weight, groups=2), F.conv1d(X, weight, groups=2))


def test_causal_and_uneven_padding() -> None:
    y = conv1d(X, WEIGHT, padding="causal", dilation=2)
    torch.testing.assert_close(y, F.conv1d(F.pad(X, (4, 0)), WEIGHT, dilation=2))
    changed = X.clone()
    changed[:, :, 6:] = 99
    assert torch.equal(conv1d(changed, WEIGHT, padding="causal", dilation=2)[..., :6], y[..., :6])
    y = conv1d(X, WEIGHT, padding=(0, 3), stride=2)
    torch.testing.assert_close(y, F.conv1d(F.pad(X, (0, 3)), WEIGHT, stride=2))


@pytest.mark.parametrize("needs_grad", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activation(activation: str, needs_grad: bool) -> None:
    leaves = [t.clone().requires_grad_(needs_grad) for t in (X, WEIGHT, BIAS)]
    y = conv1d(*leaves, activation=activation)
    expected = ACTIVATIONS[activation](F.conv1d(*leaves))
    torch.testing.assert_close(y, expected)
    if needs_grad:
        own, right = (torch.autograd.grad(t.square().sum(), leaves) for t in (y, expected))
        torch.testing.assert_close(own, right)


def test_bad_names() -> None:
    for activation in ("none", "swish", 3, ["tanh"]):
        with pytest.raises(ValueError, match="activation must be None or one of tanh, relu"):
            conv1d(X, WEIGHT, activation=activation)


BAD = {
    "x_1d": (random(10), WEIGHT, {}),
    "x_4d": (random(2, 4, 10, 1), WEIGHT, {}),
    "weight_2d": (X, random(6, 4), {}),
    "weight_2d_same": (X, random(6, 4), dict(padding="same")),
    "weight_4d": (X, random(6, 4, 3, 1), {}),
    "in_channels": (random(2, 5, 10), WEIGHT, {}),
    "groups_in": (X, WEIGHT, dict(groups=3)),
    "groups_out": (X, random(5, 2, 3), dict(groups=2)),
    "groups_0": (X, WEIGHT, dict(groups=0)),
    "groups_float": (X, WEIGHT, dict(groups=1.5)),
    "bias_size": (X, WEIGHT, dict(bias=random(5))),
    "bias_2d": (X, WEIGHT, dict(bias=random(6, 1))),
    "bias_list": (X, WEIGHT, dict(bias=[1.0] * 6)),
    "stride_0": (X, WEIGHT, dict(stride=0)),
    "stride_negative": (X, WEIGHT, dict(stride=-1)),
    "stride_pair": (X, WEIGHT, dict(stride=(1, 2))),
    "stride_empty": (X, WEIGHT, dict(stride=())),
    "stride_float": (X, WEIGHT, dict(stride=1.5)),
    "stride_text": (X, WEIGHT, dict(stride="1")),
    "stride_none": (X, WEIGHT, dict(stride=None)),
    "dilation_0": (X, WEIGHT, dict(dilation=0)),
    "too_dilated": (X, WEIGHT, dict(dilation=5)),
    "padding_negative": (X, WEIGHT, dict(padding=-1)),
    "padding_word": (X, WEIGHT, dict(padding="full")),
    "padding_float": (X, WEIGHT, dict(padding=0.5)),
    "padding_same_strided": (X, WEIGHT, dict(padding="same", stride=2)),
    "too_short": (random(2, 4, 2), WEIGHT, {}),
    "too_short_batch_0": (random(0, 4, 2), WEIGHT, {}),
    "no_out_channels": (X, random(0, 4, 3), {}),
    "no_taps": (X, random(6, 4, 0), {}),
    "dtypes": (X.double(), WEIGHT, {}),
    "dtypes_16": (X.bfloat16(), WEIGHT, {}),
    "dtype_bias": (X, WEIGHT, dict(bias=BIAS.double())),
    "x_list": ([1.0], WEIGHT, {}),
    "x_none": (None, WEIGHT, {}),
    "weight_none": (X, None, {}),
}


@pytest.mark.parametrize("backend", ["auto", "cpp", "torch"])
@pytest.mark.parametrize("what", BAD)
def test_errors_have_the_type_of_torch(what: str, backend: str) -> None:
    x, weight, settings = BAD[what]
    with pytest.raises((RuntimeError, TypeError)) as theirs:
        F.conv1d(x, weight, **settings)
    with pytest.raises(theirs.type) as ours:
        conv1d(x, weight, **settings, backend=backend)
    if backend != "torch":
        argument = what.split("_")[0].removesuffix("s")
        names = {"too": "greater than the padded input", "no": "must be at least", "in": "channels"}
        assert names.get(argument, argument.replace("x", "")) in str(ours.value)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int64, torch.bool], ids=str)
def test_other_dtypes(dtype: torch.dtype) -> None:
    x, weight = torch.ones(1, 1, 3).to(dtype), torch.ones(1, 1, 2).to(dtype)
    with pytest.raises(TypeError, match="is not one of bfloat16, float16, float32, float64"):
        conv1d(x, weight)
    if dtype != torch.bool:  # torch itself has no convolution of those
        assert torch.equal(conv1d(x, weight, backend="torch"), F.conv1d(x, weight))


@pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("tensors", DTYPES, ids=str)
@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", "no_bias"])
def test_autocast(tensors: torch.dtype, autocast: torch.dtype, with_bias: bool) -> None:
    leaves = [t.to(tensors, copy=True).requires_grad_() for t in (X, WEIGHT, BIAS)[: 2 + with_bias]]
    with torch.autocast("cpu", dtype=autocast):
        y, theirs = conv1d(*leaves, activation="tanh"), F.conv1d(*leaves)
        assert y.dtype == theirs.dtype
        with torch.autocast("cpu", enabled=False):
            assert conv1d(*leaves).dtype == tensors
    inside = [t.detach().to(theirs.dtype) for t in leaves]
    assert torch.equal(y, conv1d(*inside, activation="tanh"))
    y.sum().backward()
    assert all(t.grad.dtype == tensors for t in leaves)


def test_autocast_does_not_mix_what_torch_does_not() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for arguments in ((X.double(), WEIGHT), (X, WEIGHT, BIAS.double())):
            for function in (F.conv1d, conv1d):
                with pytest.raises(RuntimeError):
                    function(*arguments)


@parametrize("case", FEW)
def test_same_as_the_operator(case: Case) -> None:
    """The Python layers above the operator add nothing and lose nothing."""
    x, weight, bias, _ = problem(case, torch.float32)
    settings = dict(stride=case.stride, dilation=case.dilation, groups=case.groups)
    y = conv1d(x, weight, bias, padding=case.pads, **settings)
    assert torch.equal(y, torch.ops.convlm.forward(x, weight, bias, *case.window, "none"))


def test_empty_batch() -> None:
    leaves = [t.clone().requires_grad_() for t in (random(0, 4, 10), WEIGHT, BIAS)]
    y = conv1d(*leaves)
    assert y.shape == (0, 6, 8)
    y.sum().backward()
    assert torch.equal(leaves[1].grad, torch.zeros_like(WEIGHT))


def test_meta_and_fake_tensors() -> None:
    y = conv1d(X.to("meta"), WEIGHT.to("meta"), padding="same", activation="gelu")
    assert (y.device.type, y.shape) == ("meta", (2, 6, 10))
    with torch._subclasses.FakeTensorMode():
        y = conv1d(torch.empty(2, 4, 10, dtype=torch.float16), torch.empty(6, 4, 3).half())
        assert (y.dtype, y.shape, y.device.type) == (torch.float16, (2, 6, 8), "cpu")
    with pytest.raises(RuntimeError, match="greater than the padded input"):
        conv1d(random(2, 4, 2).to("meta"), WEIGHT.to("meta"))


class Celsius(Tensor):
    """A subclass without rules of its own."""


class Recorder(Tensor):
    calls: tuple = ()

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        cls.calls += ((function, kwargs),)
        return "recorded"


def test_tensor_subclasses() -> None:
    y = conv1d(X.as_subclass(Celsius), WEIGHT)
    assert type(y) is Celsius
    assert torch.equal(y.as_subclass(Tensor), conv1d(X, WEIGHT))
    assert type(conv1d(X, torch.nn.Parameter(WEIGHT))) is Tensor
    assert conv1d(X, WEIGHT.as_subclass(Recorder), activation="relu") == "recorded"
    function, named = Recorder.calls[-1]
    assert function is conv1d
    assert named == dict(activation="relu", backend="auto")


def test_functional_call_and_per_sample_gradients() -> None:
    layer = torch.nn.Conv1d(4, 6, 3)
    parameters = {name: p.detach() for name, p in layer.named_parameters()}

    def loss(parameters, x, function):
        return function(x, parameters["weight"], parameters["bias"]).square().sum()

    per_sample = [
        torch.func.vmap(torch.func.grad(loss), (None, 0, None))(parameters, X, function)
        for function in (conv1d, F.conv1d)
    ]
    torch.testing.assert_close(*per_sample)
    assert per_sample[0]["weight"].shape == (2, 6, 4, 3)


class Precisions(TorchDispatchMode):
    """Records the ``fp32_precision`` that each of our operators is called with."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "convlm":
            names = [argument.name for argument in function._schema.arguments]
            self.seen.append(args[names.index("fp32_precision")])
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("switch", "expected"),
    [("none", "ieee"), ("ieee", "ieee"), ("tf32", "tf32"), ("bf16", "tf32")],
)
def test_precision_follows_the_switch_of_torch(switch: str, expected: str) -> None:
    leaves = [t.clone().requires_grad_() for t in (X, WEIGHT, BIAS)]
    before = torch.backends.mkldnn.conv.fp32_precision
    torch.backends.mkldnn.conv.fp32_precision = switch
    try:
        with Precisions() as precisions:
            y = conv1d(*leaves)
            torch.backends.mkldnn.conv.fp32_precision = before
            gradients = torch.autograd.grad(y.square().sum(), leaves, create_graph=True)
            gradients[0].square().sum().backward()
    finally:
        torch.backends.mkldnn.conv.fp32_precision = before
    # The gradients of a call are as exact as the call itself.
    assert len(precisions.seen) > 4
    assert set(precisions.seen) == {expected}
