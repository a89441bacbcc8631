"""Stacks against the same layers composed from torch's own."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from cases import random
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from convlm_kernels import CausalConv1d, Conv1d, EmbeddingConv1d, stack_ops
from convlm_kernels.stack import DilatedStack, StackLayer
from convlm_kernels.stack_layers import operands_of, reason_not_fusable


@pytest.mark.parametrize("padding", ["causal", 0])
def test_gate_and_residual_are_those_of_wavenet(padding: str | int) -> None:
    layer = StackLayer(5, 5, 3, padding, 2, gated=True, residual=True, dtype=torch.float64)
    x = random(2, 5, 17, dtype=torch.float64)
    padded = F.pad(x, (4, 0)) if padding == "causal" else x
    a, b = F.conv1d(padded, layer.weight, layer.bias, dilation=2).chunk(2, dim=1)
    y = a.tanh() * b.sigmoid()
    torch.testing.assert_close(layer(x), y + x[:, :, 17 - y.shape[2] :])


def test_a_stack_is_a_sequential_and_shares_its_state_dict() -> None:
    stack = DilatedStack(StackLayer(3, 8, 2, activation="tanh"), StackLayer(8, 4, 2, dilation=2))
    plain = nn.Sequential(nn.Conv1d(3, 8, 2), nn.Conv1d(8, 4, 2, dilation=2))
    plain.load_state_dict(stack.state_dict())
    x = random(2, 3, 11)
    y = plain[1](F.pad(plain[0](F.pad(x, (1, 0))).tanh(), (2, 0)))
    torch.testing.assert_close(stack(x), y)


def test_what_cannot_be_is_said() -> None:
    with pytest.raises(ValueError, match="activation must be None, got 'tanh'"):
        StackLayer(3, 3, 2, gated=True, activation="tanh")
    with pytest.raises(ValueError, match="residual needs out_channels == in_channels, got 4 and 3"):
        StackLayer(3, 4, 2, residual=True)


def wavenet(dtype: torch.dtype = torch.float64) -> DilatedStack:
    torch.manual_seed(0)
    return DilatedStack(
        StackLayer(4, 6, 2, activation="tanh"),
        StackLayer(6, 6, 2, dilation=2, gated=True, residual=True),
        CausalConv1d(6, 6, 3, bias=False, activation="silu"),
        Conv1d(6, 3, 2, dilation=3),
    ).to(dtype)


def with_gradients(module: nn.Module, function: Callable[[Tensor], Tensor], x: Tensor) -> list:
    x = x.clone().requires_grad_()
    y = function(x)
    return [y, *torch.autograd.grad(y.square().sum(), [x, *module.parameters()])]


def layer_by_layer(stack: DilatedStack) -> Callable[[Tensor], Tensor]:
    return lambda x: nn.Sequential.forward(stack, x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fused_is_layer_by_layer(dtype: torch.dtype) -> None:
    stack, x = wavenet(dtype), random(3, 4, 21, dtype=dtype)
    assert stack.plan(x).fused
    fused, composed = (
        with_gradients(stack, stack, x),
        with_gradients(stack, layer_by_layer(stack), x),
    )
    torch.testing.assert_close(fused, composed)
    torch.testing.assert_close(stack(x[0]), composed[0][0])


def more_taps(stack: DilatedStack) -> None:
    stack[1].weight = nn.Parameter(random(*stack[1].weight.shape[:2], 5, dtype=torch.float64))


def other_channels(stack: DilatedStack) -> None:
    layer: Any = stack[-1]
    layer.weight = nn.Parameter(random(7, *layer.weight.shape[1:], dtype=torch.float64))
    layer.bias = None


@pytest.mark.parametrize("change", [more_taps, other_channels])
def test_layers_that_were_changed(change: Callable[[DilatedStack], None]) -> None:
    stack, x = wavenet(), random(3, 4, 21, dtype=torch.float64)
    change(stack)
    composed = layer_by_layer(stack)(x)
    torch.testing.assert_close(stack(x), composed)
    state, length = stack.init_state(3), composed.shape[2]
    steps = [stack.step(x[:, :, position], state) for position in range(x.shape[2])]
    torch.testing.assert_close(torch.stack(steps, 2)[:, :, -length:], composed.detach())
    prefilled = stack.prefill(x, stack.init_state(3))
    torch.testing.assert_close(prefilled[:, :, -length:], composed)


def test_an_activation_that_a_gate_got_later() -> None:
    stack, x = wavenet(), random(3, 4, 21, dtype=torch.float64)
    gated: Any = stack[1]
    gated.activation = "relu"
    torch.testing.assert_close(stack(x), layer_by_layer(stack)(x))
    assert stack.plan(x).reason == "layer 1 has a gate and an activation"
    with pytest.raises(ValueError, match=r"layer '1' .* cannot stream: it has a gate and an activ"):
        stack.init_state()


def test_derivatives() -> None:
    stack = wavenet()
    names = [name for name, _ in stack.named_parameters()]
    x = random(2, 4, 9, dtype=torch.float64).requires_grad_()
    parameters = [p.detach().clone().requires_grad_() for p in stack.parameters()]

    def function(x: Tensor, *parameters: Tensor) -> Tensor:
        return functional_call(stack, dict(zip(names, parameters, strict=True)), (x,))

    assert torch.autograd.gradcheck(function, (x, *parameters))
    assert torch.autograd.gradgradcheck(function, (x, *parameters))


def test_only_the_gradients_that_are_wanted() -> None:
    stack, x = wavenet(), random(2, 4, 9, dtype=torch.float64)
    stack[1].weight.requires_grad_(False)
    stack(x).sum().backward()
    assert x.grad is None
    assert stack[1].weight.grad is None
    assert stack[0].weight.grad is not None


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compiled_it_is_one_graph(dynamic: bool) -> None:
    torch._dynamo.reset()
    stack = wavenet()
    compiled = torch.compile(stack, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    for length in (9, 12) if dynamic else (9,):
        x = random(2, 4, length, dtype=torch.float64)
        torch.testing.assert_close(
            with_gradients(stack, compiled, x), with_gradients(stack, stack, x)
        )
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), stack(x))
    torch._dynamo.reset()


def test_transforms_fall_apart_into_layers() -> None:
    stack, x = wavenet(), random(3, 2, 4, 9, dtype=torch.float64)
    each = torch.stack([stack(one) for one in x])
    torch.testing.assert_close(torch.func.vmap(stack)(x), each)
    tangent = torch.func.jvp(stack, (x[0],), (x[1],))[1]
    _, pull = torch.func.vjp(stack, x[0])
    seed = random(*tangent.shape, dtype=torch.float64)
    torch.testing.assert_close((pull(seed)[0] * x[1]).sum(), (seed * tangent).sum())


def test_a_gated_layer_has_the_same_bits_in_any_batch() -> None:
    torch.manual_seed(0)
    layer, x = StackLayer(5, 31, 3, gated=True), random(5, 5, 17)
    whole, seed = layer(x.requires_grad_()), random(5, 31, 17, seed=1)
    (grad_x,) = torch.autograd.grad(whole, x, seed)
    for n in range(len(x)):
        alone = layer(x[n])  # unbatched
        assert torch.equal(alone, whole[n])
        assert torch.equal(torch.autograd.grad(alone, x, seed[n])[0][n], grad_x[n])


@pytest.mark.parametrize("over_tokens", [False, True], ids=["signal", "tokens"])
def test_batched_gradients(over_tokens: bool) -> None:
    stack = words() if over_tokens else wavenet()
    x = few_words(3, 9) if over_tokens else random(2, 4, 9, dtype=torch.float64).requires_grad_()
    y = stack(x)
    leaves = [*stack.parameters()] if over_tokens else [x, *stack.parameters()]
    seeds = random(3, *y.shape, dtype=torch.float64)
    batched = torch.autograd.grad(y, leaves, seeds, is_grads_batched=True, retain_graph=True)
    each = [torch.autograd.grad(y, leaves, seed, retain_graph=True) for seed in seeds]
    torch.testing.assert_close(batched, tuple(map(torch.stack, zip(*each, strict=True))))
    with pytest.raises(RuntimeError, match="batched gradients .* cannot be differentiated again"):
        torch.autograd.grad(y, leaves, seeds, is_grads_batched=True, create_graph=True)
    if not over_tokens:
        jacobian = torch.autograd.functional.jacobian
        torch.testing.assert_close(jacobian(stack, x, vectorize=True), jacobian(stack, x))


def _hooked() -> nn.Module:
    layer = StackLayer(4, 4, 2)
    layer.register_forward_hook(lambda *_: None)
    return layer


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (lambda: nn.ReLU(), "layer 1 is a ReLU"),
        (lambda: nn.Conv1d(4, 4, 1), "layer 1 is a Conv1d"),
        (lambda: weight_norm(StackLayer(4, 4, 2)), "layer 1 is a ParametrizedStackLayer"),
        (_hooked, "layer 1 has hooks"),
        (lambda: Conv1d(4, 4, 2, stride=2), "layer 1 has stride 2"),
        (lambda: Conv1d(4, 4, 2, groups=2), "layer 1 has 2 groups"),
        (lambda: Conv1d(4, 4, 3, padding=1), "layer 1 pads on the right"),
        (lambda: Conv1d(4, 4, 3, padding="same"), "layer 1 pads on the right"),
        (
            lambda: Conv1d(4, 4, 3, padding=(2, 0), padding_mode="replicate"),
            "layer 1 pads by 'replicate'",
        ),
        (lambda: StackLayer(4, 4, 2, backend="torch"), "layer 1 asks for backend='torch'"),
        (lambda: StackLayer(4, 4, 2).double(), "layer 1 has another dtype or device"),
    ],
)
def test_the_plan_says_why_not(layer: Callable[[], nn.Module], reason: str) -> None:
    stack, x = DilatedStack(StackLayer(4, 4, 2), layer()), random(2, 4, 9)
    plan = stack.plan(x)
    assert not plan.fused
    assert re.search(reason, plan.reason)
    assert str(plan) == f"layer by layer: {plan.reason}"
    if "dtype" not in reason:  # which is an error in any case
        torch.testing.assert_close(stack(x), nn.Sequential.forward(stack, x))


def test_wide_layers_of_three_taps_are_left_to_their_own_kernels() -> None:
    x = random(1, 129, 9)
    assert DilatedStack(StackLayer(129, 129, 2)).plan(x).fused
    reason = DilatedStack(StackLayer(129, 129, 3)).plan(x).reason
    assert reason == "layer 0 has more than 128 channels and more than two taps"


def test_a_residual_of_more_positions_than_there_are_is_left_to_the_layer_to_refuse() -> None:
    stack, x = DilatedStack(StackLayer(4, 4, 2, padding=(2, 0), residual=True)), random(2, 4, 9)
    assert stack.plan(x).reason == "layer 0 has a residual and more positions than its input"
    with pytest.raises(RuntimeError, match="got 10 outputs of 9 inputs"):
        stack(x)


def test_inputs_that_no_fused_kernel_takes() -> None:
    stack, x = wavenet(torch.float32), random(2, 4, 9)
    assert str(stack.plan(x)) == "one fused operator"
    assert "not on meta" in stack.plan(x.to("meta")).reason
    assert "int64" in stack.plan(x.long()).reason
    assert "1 dimensions" in stack.plan(x[0, 0]).reason
    assert "no layers" in DilatedStack().plan(x).reason
    with torch.autocast("cpu", torch.bfloat16):
        assert stack.plan(x).reason == "autocast is on"
        assert stack(x).dtype == torch.bfloat16


def test_triton_is_asked_for_by_all_layers_or_none() -> None:
    x = random(2, 4, 9)
    layers = StackLayer(4, 4, 2, backend="triton"), StackLayer(4, 4, 2, backend="triton")
    assert "riton" in DilatedStack(*layers).plan(x).reason
    mixed = DilatedStack(StackLayer(4, 4, 2), layers[0])
    assert mixed.plan(x).reason == "layer 1 asks for backend='triton'"
    with pytest.raises(RuntimeError, match="backend='triton' cannot run this convolution"):
        mixed(x)


class OnGpu(NamedTuple):
    """What is asked of a CUDA tensor before a kernel is."""

    shape: tuple[int, ...]
    is_cuda: bool = True
    is_cpu: bool = False
    dtype: torch.dtype = torch.float32
    device: torch.device = torch.device("cuda")


def test_what_fits_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    stack: Any = wavenet(torch.float32)
    weights, _, settings = operands_of(stack, torch.empty(0))
    operands = weights, settings
    x: Any = OnGpu((2, 4, 9))
    assert stack_ops.reason_does_not_fit(x, 9, False, *operands) is None
    reason = stack_ops.reason_does_not_fit(x, 10_000, False, *operands)
    assert str(reason).endswith("and a block has 101376")
    words: Any = OnGpu((2000, 4))
    reason = stack_ops.reason_does_not_fit(words, 9, True, *operands)
    assert reason == "its vocabulary has 2000 words, and the kernel takes 1024"
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert "torch.compile" in str(stack_ops.reason_does_not_fit(x, 9, False, *operands))


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_a_gpu_that_is_not_there() -> None:
    x: Any = OnGpu((2, 4, 9))
    assert reason_not_fusable(x) in ("this build has no CUDA kernels", "torch finds no CUDA device")


def words(dtype: torch.dtype = torch.float64, padding: str | int = 0) -> DilatedStack:
    torch.manual_seed(0)
    return DilatedStack(
        EmbeddingConv1d(7, 4, 6, 2, padding=padding, padding_idx=3, activation="tanh"),
        StackLayer(6, 6, 2, padding=padding, dilation=2, gated=True),
        StackLayer(6, 5, 2, padding=padding, dilation=4),
    ).to(dtype)


def few_words(batch: int = 12, length: int = 14) -> Tensor:
    """Most contexts repeat."""
    tokens = torch.zeros(batch, length, dtype=torch.long)
    tokens[:, length // 2 :] = torch.randint(
        7, (batch, 1), generator=torch.Generator().manual_seed(0)
    )
    tokens[0, 3] = 5
    return tokens


def test_an_embedding_that_others_derived_is_called() -> None:
    class Derived(EmbeddingConv1d):
        pass

    torch.manual_seed(0)
    stack, tokens = DilatedStack(Derived(7, 4, 6, 2), StackLayer(6, 5, 2)), few_words()
    assert stack.plan(tokens).reason == "layer 0 is a Derived"
    torch.testing.assert_close(stack(tokens), layer_by_layer(stack)(tokens))


@pytest.mark.parametrize("share", [False, True], ids=["dense", "shared"])
@pytest.mark.parametrize("padding", [0, "causal"])
def test_over_tokens_it_is_layer_by_layer(padding: str | int, share: bool) -> None:
    stack, tokens = words(padding=padding), few_words()
    stack.share_contexts = share
    parameters = list(stack.parameters())
    results = []
    for function in (stack, layer_by_layer(stack)):
        y = function(tokens)
        results.append([y, *torch.autograd.grad(y.square().sum(), parameters)])
    torch.testing.assert_close(*results)
    torch.testing.assert_close(stack(tokens[0].int()), results[1][0][0])
    assert (results[0][1][3] == 0).all(), "the padding word has no gradient"


def test_layers_may_have_names() -> None:
    stack, tokens = words(), few_words()
    named = DilatedStack(OrderedDict(zip(("embed", "middle", "out"), stack, strict=True)))
    assert named.plan(tokens) == stack.plan(tokens)
    assert torch.equal(named(tokens), stack(tokens))
    named.embed.register_forward_hook(lambda *_: None)
    assert named.plan(tokens).reason == "layer embed has hooks"


@pytest.mark.parametrize("shape", [(2, 3), (9, 9)], ids=["few", "many"])
def test_exported_over_tokens_it_takes_any_number_of_them(shape: tuple[int, int]) -> None:
    """Whether the example has fewer positions than there are words, or more."""
    stack = words(padding="causal")
    sizes = {0: torch.export.Dim("batch", max=1 << 10), 1: torch.export.Dim("length", max=1 << 10)}
    example = torch.zeros(shape, dtype=torch.long)
    exported = torch.export.export(stack, (example,), dynamic_shapes=(sizes,))
    for other in ((2, 3), (5, 14)):
        tokens = torch.randint(7, other)
        torch.testing.assert_close(exported.module()(tokens), stack(tokens))


def test_derivatives_over_tokens() -> None:
    stack, tokens = words(), few_words(3, 9)
    names = [name for name, _ in stack.named_parameters()]
    parameters = [p.detach().clone().requires_grad_() for p in stack.parameters()]

    def function(*parameters: Tensor) -> Tensor:
        return functional_call(stack, dict(zip(names, parameters, strict=True)), (tokens,))

    # Of the padding word there is no gradient, whatever its embedding would do to the result.
    stack[0].embedding.padding_idx = None
    assert torch.autograd.gradcheck(function, parameters)
    assert torch.autograd.gradgradcheck(function, parameters)


def test_the_plan_counts_contexts() -> None:
    stack, tokens = words(), few_words()
    plan = stack.plan(tokens)
    rows = [len({tuple(w) for w in tokens.unfold(1, n, 1).flatten(0, 1).tolist()}) for n in (2, 4)]
    assert plan.positions == (12 * 13, 12 * 11, 12 * 7)
    assert plan.rows == (*rows, 12 * 7)
    assert f"layer 0: {rows[0]} distinct contexts for 156 positions" in str(plan)
    assert "layer 2: 84 positions, the result" in str(plan)
    varied = torch.randint(7, (3, 14), generator=torch.Generator().manual_seed(0))
    assert "layer 1: 33 positions, more than half distinct" in str(stack.plan(varied))
    assert stack.plan(tokens.int()) == plan
    stack.share_contexts = False
    assert stack.plan(tokens).rows == plan.positions
    assert str(stack.plan(tokens)).endswith("contexts are not shared: share_contexts is False")


def test_a_vocabulary_larger_than_the_input_is_gathered_first() -> None:
    torch.manual_seed(0)
    stack = DilatedStack(EmbeddingConv1d(1000, 4, 6, 2), StackLayer(6, 5, 2)).double()
    tokens = torch.randint(1000, (2, 9))
    torch.testing.assert_close(stack(tokens), nn.Sequential.forward(stack, tokens))


@pytest.mark.parametrize(
    ("tokens", "reason"),
    [
        (torch.zeros(2, 9), "tokens must be int64 or int32, not torch.float32"),
        (torch.zeros(2, 3, 9, dtype=torch.long), "the input has 3 dimensions"),
        (torch.zeros(2, 9, dtype=torch.long, device="meta"), "on two devices"),
    ],
)
def test_tokens_that_no_fused_kernel_takes(tokens: Tensor, reason: str) -> None:
    assert reason in words().plan(tokens).reason
