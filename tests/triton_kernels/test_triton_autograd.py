"""``backend="triton"`` through autograd, torch.func and torch.compile."""

from __future__ import annotations

import pytest
import torch
from cases import BY_HAND, GROUPS, Case, parametrize, problem, random
from tolerances import exact_forward, exact_gradients
from torch import Tensor
from torch.nn import functional as F

from convlm_kernels import Conv1d, conv1d, ops, triton_ops
from convlm_kernels.activations import ACTIVATIONS

DEVICE = "cpu" if triton_ops.INTERPRETED else "cuda"
KERNELS = ops.OPERATORS["triton"]

TINY = [
    Case("strided, dilated, uneven padding", 1, 2, 3, 7, 3, 2, 2, 1, (3, 1)),
    Case("groups of one, with a multiplier", 1, 2, 4, 6, 3, 2, 1, 2, (0, 1)),
]


def leaves_of(case: Case, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return [t.to(DEVICE).requires_grad_() for t in problem(case, dtype)[:3]]


def run(case: Case, activation: str | None = None, backend: str = "triton"):
    options = dict(stride=case.stride, padding=case.pads, dilation=case.dilation)
    options |= dict(groups=case.groups, activation=activation, backend=backend)
    return lambda x, weight, bias=None: conv1d(x, weight, bias, **options)


@parametrize("case", [BY_HAND._replace(batch=2), GROUPS[4]])
def test_values(case: Case) -> None:
    p = problem(case, torch.bfloat16)
    leaves = leaves_of(case, torch.bfloat16)
    y = run(case)(*leaves)
    exact_forward(*p[:3], case.window).allows(y.detach().cpu())
    exact = exact_gradients(p.x, p.weight, p.grad_output, case.window)
    gradients = torch.autograd.grad(y, leaves, p.grad_output.to(DEVICE))
    for own, right in zip(gradients, exact, strict=True):
        right.allows(own.cpu())


@parametrize("case", TINY)
def test_first_and_second_derivatives(case: Case) -> None:
    leaves = leaves_of(case)
    assert torch.autograd.gradcheck(run(case), leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(run(case), leaves, fast_mode=True)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_derivatives_through_an_activation(activation: str) -> None:
    function = run(TINY[0], activation)
    assert torch.autograd.gradcheck(function, leaves_of(TINY[0]), fast_mode=True)


def test_the_kernels_run_and_not_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend that fell back to another one would pass every other test here."""
    nothing = ops.Operators(None, None, None)
    monkeypatch.setitem(ops.OPERATORS, "native", nothing)
    leaves = leaves_of(TINY[0])
    (grad,) = torch.autograd.grad(run(TINY[0], "tanh")(*leaves).sum(), leaves[1], create_graph=True)
    torch.autograd.grad(grad.square().sum(), leaves[0])


def test_transforms() -> None:
    case = TINY[0]
    own, native = run(case, "tanh"), run(case, "tanh", "torch")
    x, weight, _ = (t.detach() for t in leaves_of(case))
    batched = torch.stack([weight, 2 * weight])

    def gradient(function):
        return torch.func.grad(lambda x, weight: function(x, weight).square().sum(), argnums=(0, 1))

    for transformed in (
        lambda f: gradient(f)(x, weight),
        lambda f: torch.func.vmap(f, (None, 0))(x, batched),
        lambda f: torch.func.vmap(gradient(f), (None, 0))(x, batched),
        lambda f: torch.func.jvp(f, (x, weight), (x.cos(), weight.sin())),
    ):
        torch.testing.assert_close(transformed(own), transformed(native))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_whole(dynamic: bool) -> None:
    torch._dynamo.reset()
    function = run(TINY[0], "tanh")
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    for length in (7, 11):
        case = TINY[0]._replace(length=length)
        leaves = leaves_of(case, torch.float32)
        y, expected = compiled(*leaves), function(*leaves)
        torch.testing.assert_close(y, expected)
        own, right = (torch.autograd.grad(t.square().sum(), leaves) for t in (y, expected))
        torch.testing.assert_close(own, right)


def test_opcheck() -> None:
    case = TINY[0]
    p = [t.to(DEVICE) for t in problem(case, torch.float32)]
    x, weight, bias, grad_output = p
    activated = grad_output.tanh(), "tanh"
    samples = [
        (KERNELS.forward, (x, weight, bias, *case.window, "tanh")),
        (KERNELS.grad_input, (grad_output, weight, case.length, *case.window, *activated)),
        (KERNELS.grad_weight, (grad_output, x, case.kernel_size, *case.window, True, *activated)),
    ]
    for operator, arguments in samples:
        torch.library.opcheck(operator, arguments)


def test_schemas_are_those_of_the_native_operators() -> None:
    for own, native in zip(KERNELS, ops.OPERATORS["native"], strict=True):
        assert str(own._schema) == str(native._schema).replace("convlm::", "convlm_triton::")


def test_as_a_layer() -> None:
    torch.manual_seed(0)
    layer = Conv1d(4, 6, 3, padding="causal", dilation=2, activation="relu", backend="triton")
    layer = layer.to(DEVICE)
    x = random(2, 4, 9).to(DEVICE)
    expected = F.relu(F.conv1d(F.pad(x, (4, 0)), layer.weight, layer.bias, dilation=2))
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (dict(stride=0), "forward: stride must be at least 1, got 0"),
        (dict(x=random(2, 4, 7)), "forward: x has 4 channels, but weight with groups = 1 takes 2"),
        (dict(activation="sine"), "activation must be none, tanh, relu, silu, gelu or sigmoid"),
        (dict(fp32_precision="half"), "fp32_precision must be ieee or tf32, got 'half'"),
        (dict(weight=random(3, 2, 9)), "the kernel spans 9 positions, which is greater than"),
        (dict(weight=random(3, 2, 3, dtype=torch.float64)), "weight and x must have one dtype"),
        (dict(bias=random(4)), r"bias must have the shape \(3\), got \(4\)"),
    ],
)
def test_impossible_problems(changed: dict, message: str) -> None:
    possible = dict(x=random(2, 2, 7), weight=random(3, 2, 3), bias=None, stride=1, pad_left=0)
    possible |= dict(pad_right=0, dilation=1, groups=1, fp32_precision="ieee", activation="none")
    arguments = [
        v.to(DEVICE) if isinstance(v, Tensor) else v for v in (possible | changed).values()
    ]
    with pytest.raises(RuntimeError, match=message):
        KERNELS.forward(*arguments)
