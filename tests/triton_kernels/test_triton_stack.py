"""Fused stacks by Triton, against torch's layers in float64."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from cases import LAYOUTS, parametrize, random
from stacks import (
    IMPOSSIBLE,
    SIGNALS,
    TOKENS,
    Operators,
    Stack,
    bits,
    check,
    check_closed_units,
    check_empty_batch,
    check_int32_and_strided_tokens,
    impossible,
    inputs_of,
    run,
    strange,
)
from torch import Tensor

from convlm_kernels import EmbeddingConv1d, lookup_ops, stack_ops, triton_ops
from convlm_kernels import ops as convolutions
from convlm_kernels.stack import DilatedStack, StackLayer
from convlm_kernels.triton_kernels import launch

pytestmark = pytest.mark.usefixtures("nan_in_empty")

DEVICE = "cpu" if triton_ops.INTERPRETED else "cuda"
KERNELS = stack_ops.OPERATORS["triton"]
# Each layer's result is rounded to 16 bits, and its gradient.
OPERATORS = Operators(*KERNELS, None, None, roundings=4, device=DEVICE)

EVERY_CASE = DEVICE == "cuda" or os.environ.get("CONVLM_TRITON_EVERY_CASE") == "1"


def affordable(stack: Stack) -> Stack:
    if EVERY_CASE:
        return stack
    channels = tuple(min(count, 36) for count in stack.channels)
    few_words = min(stack.vocab, 5)
    return stack._replace(batch=min(stack.batch, 2), channels=channels, vocab=few_words)


FEW_SIGNALS, FEW_TOKENS = (list(map(affordable, stacks)) for stacks in (SIGNALS, TOKENS))
WIDE = Stack("several tiles of channels and positions, and of what is multiplied", 1, 70,
             (20, 70, 6), 3, (1, 4), ("silu", "gate"), vocab=9)  # fmt: skip


@pytest.mark.parametrize("stack", [*FEW_SIGNALS, *FEW_TOKENS[::2], WIDE], ids=str)
def test_result_and_gradients(stack: Stack) -> None:
    check(stack, torch.float32, operators=OPERATORS)


@parametrize("dtype", (torch.float64, torch.bfloat16, torch.float16))
@pytest.mark.parametrize("stack", [FEW_SIGNALS[2], FEW_TOKENS[3]], ids=str)
def test_the_other_dtypes(stack: Stack, dtype: torch.dtype) -> None:
    check(stack, dtype, operators=OPERATORS)


@pytest.mark.parametrize("stack", [FEW_SIGNALS[2], FEW_TOKENS[3]], ids=str)
def test_the_same_bits_again_in_any_batch_and_whatever_is_saved(stack: Stack) -> None:
    inputs = inputs_of(stack, torch.float32)
    expected = run(stack, inputs, operators=OPERATORS)
    assert bits(run(stack, inputs, operators=OPERATORS)) == bits(expected)
    if inputs.tokens is None:
        one = inputs.with_x(inputs.x[1:2])
    else:
        one = inputs._replace(tokens=inputs.tokens[1:2])
    y, _ = KERNELS.stack_forward(*one.to(DEVICE), stack.settings, True, False)
    assert bits([y.cpu()]) == bits([expected[0][1:2]])


@pytest.mark.skipif(DEVICE == "cuda", reason="strides do not go along to another device")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides(layout: str) -> None:
    stack = FEW_SIGNALS[7]
    inputs, plain = strange(stack, layout)
    assert bits(run(stack, inputs, operators=OPERATORS)) == bits(
        run(stack, plain, operators=OPERATORS)
    )


def test_int32_and_strided_tokens() -> None:
    check_int32_and_strided_tokens(FEW_TOKENS[4], OPERATORS)


@pytest.mark.parametrize("stack", [FEW_SIGNALS[7], FEW_TOKENS[4]], ids=str)
def test_empty_batch(stack: Stack) -> None:
    check_empty_batch(stack, OPERATORS)


def test_an_infinite_gradient_ends_at_a_closed_unit() -> None:
    check_closed_units(OPERATORS)


def test_a_token_that_is_no_word_gives_nan() -> None:
    stack = FEW_TOKENS[3]
    inputs = inputs_of(stack, torch.float32)
    right, *_ = run(stack, inputs, operators=OPERATORS)
    tokens = inputs.tokens.clone()
    tokens[0, ::2], tokens[0, 1::2] = stack.vocab, -1
    y, grad_x, *_ = run(stack, inputs._replace(tokens=tokens), operators=OPERATORS)
    assert y[0].isnan().all()
    assert torch.equal(y[1], right[1])
    assert not grad_x.isnan().any(), "what is no word has no gradient"


def test_opcheck_and_schemas() -> None:
    stack = FEW_TOKENS[4]
    inputs = inputs_of(stack, torch.float32).to(DEVICE)
    torch.library.opcheck(KERNELS.stack_forward, (*inputs, stack.settings, True, True))
    y, saved = KERNELS.stack_forward(*inputs, stack.settings, True, True)
    arguments = torch.ones_like(y), saved, *inputs, stack.settings, True, True
    torch.library.opcheck(KERNELS.stack_backward, arguments)
    for own, native in zip(KERNELS, stack_ops.OPERATORS["native"], strict=True):
        assert str(own._schema) == str(native._schema).replace("convlm::", "convlm_triton::")


def _on_device(value: Any) -> Any:
    if isinstance(value, list):
        return [_on_device(entry) for entry in value]
    return value.to(DEVICE) if isinstance(value, Tensor) else value


@pytest.mark.parametrize(("changes", "message"), IMPOSSIBLE)
def test_impossible_stacks(changes: dict, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        KERNELS.stack_forward(*map(_on_device, impossible(changes)))


def test_impossible_gradients() -> None:
    stack = FEW_SIGNALS[7]
    inputs = inputs_of(stack, torch.float32).to(DEVICE)
    y, saved = KERNELS.stack_forward(*inputs, stack.settings, False, True)

    def backward(grad_output: Tensor, saved: Tensor) -> None:
        KERNELS.stack_backward(grad_output, saved, *inputs, stack.settings, False, True)

    with pytest.raises(RuntimeError, match="grad_output and x must have one dtype"):
        backward(y.double(), saved)
    with pytest.raises(RuntimeError, match=rf"must have the shape \({stack.batch}, 5, 11\), got"):
        backward(y[1:], saved)
    with pytest.raises(RuntimeError, match="saved must have [0-9]+ elements, got 5"):
        backward(y, saved.flatten()[:5])


# --- DilatedStack ---


def wavenet(backend: str = "triton", dtype: torch.dtype = torch.float64) -> DilatedStack:
    torch.manual_seed(0)
    return DilatedStack(
        StackLayer(3, 4, 2, activation="gelu", backend=backend),
        StackLayer(4, 4, 2, dilation=2, gated=True, residual=True, backend=backend),
        StackLayer(4, 2, 2, padding=0, bias=False, backend=backend),
    ).to(DEVICE, dtype)


def words(backend: str = "triton") -> DilatedStack:
    torch.manual_seed(0)
    first = EmbeddingConv1d(
        5, 3, 4, 2, padding="causal", padding_idx=3, activation="tanh", backend=backend
    )
    layers = first, StackLayer(4, 4, 2, dilation=2, gated=True, residual=True, backend=backend)
    return DilatedStack(*layers).to(DEVICE, torch.float64)


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the kernels that are launched, while there are no others than Triton's."""
    names: list[str] = []
    run = launch.run

    def noted(kernel: Any, *others: Any) -> None:
        names.append(kernel.__name__)
        run(kernel, *others)

    monkeypatch.setattr(launch, "run", noted)
    monkeypatch.setitem(stack_ops.OPERATORS, "native", stack_ops.Operators(None, None))
    monkeypatch.setitem(lookup_ops.OPERATORS, "native", lookup_ops.Operators(None, None))
    monkeypatch.setitem(convolutions.OPERATORS, "native", convolutions.Operators(None, None, None))
    return names


def with_gradients(stack: DilatedStack, input: Tensor) -> list[Tensor]:
    y = stack(input)
    leaves = [t for t in (input, *stack.parameters()) if t.requires_grad]
    return [y, *torch.autograd.grad(y.square().sum(), leaves)]


@pytest.mark.parametrize("over_tokens", [False, True], ids=["signal", "tokens"])
def test_fused_is_layer_by_layer(over_tokens: bool, launches: list[str]) -> None:
    if over_tokens:
        stack = words()
        input = torch.tensor([[0, 1, 4, 2, 3, 3], [2, 2, 1, 0, 1, 4]], device=DEVICE)
    else:
        stack = wavenet()
        input = random(2, 3, 7, dtype=torch.float64).to(DEVICE).requires_grad_()
    assert str(stack.plan(input)) == "one fused operator"
    fused = with_gradients(stack, input)
    assert launches[0] == "stack_forward_kernel"
    assert launches[1:4] == [
        "stack_backward_kernel",
        "stack_weight_gradient_kernel",
        "sum_of_parts_kernel",
    ]
    assert launches[4:] == ["table_gradient_kernel"] * over_tokens
    twin = words("torch") if over_tokens else wavenet("torch")
    torch.testing.assert_close(fused, with_gradients(twin, input))
    torch.testing.assert_close(stack(input[0]), fused[0][0])


@pytest.mark.usefixtures("launches")
def test_second_derivatives_and_transforms_are_those_of_the_layers() -> None:
    x = random(1, 3, 4, dtype=torch.float64).to(DEVICE)

    def derivatives(backend: str) -> list[Tensor]:
        stack, leaf = wavenet(backend), x.clone().requires_grad_()
        leaves = [leaf, *stack.parameters()]
        (grad_x,) = torch.autograd.grad(stack(leaf).square().sum(), leaf, create_graph=True)
        second = torch.autograd.grad(grad_x.square().sum(), leaves)
        return [*second, *torch.func.jvp(stack, (x,), (x.cos(),))]

    torch.testing.assert_close(derivatives("triton"), derivatives("torch"))


def test_only_the_gradients_that_are_wanted() -> None:
    stack, x = wavenet(), random(2, 3, 7, dtype=torch.float64).to(DEVICE)
    stack[1].weight.requires_grad_(False)
    stack(x).sum().backward()
    assert x.grad is None
    assert stack[1].weight.grad is None
    assert stack[0].weight.grad is not None


def test_the_plan_says_why_not() -> None:
    stack, x = wavenet(dtype=torch.float32), random(2, 3, 7).to(DEVICE)
    assert stack.plan(x).fused
    long = random(1, 3, 5000).to(DEVICE)
    assert stack.plan(long).reason == (
        "layer 1 needs 240000 bytes of cache for the positions of a sample, and the kernel takes "
        "163840"
    )
    operands = long, None, *(list(t) for t in (_weights(stack), _biases(stack)))
    settings = [1, 1, 4, 0, 2, 2, 6, 1, 1, 0, 0, 0]
    with pytest.raises(RuntimeError, match="this stack cannot be fused: layer 1 needs 240000 by"):
        KERNELS.stack_forward(*operands, settings, False, False)
    stack[2].backend = "torch"
    assert stack.plan(x).reason == "layer 2 asks for backend='torch'"
    short = DilatedStack(StackLayer(3, 3, 5, padding=0, backend="triton")).to(DEVICE)
    assert short.plan(x[..., :3]).reason == "layer 0 has no output for 3 positions"


def _weights(stack: DilatedStack) -> list[Tensor]:
    return [layer.weight.detach() for layer in stack]


def _biases(stack: DilatedStack) -> list[Tensor]:
    return [torch.empty(0, device=DEVICE) if t.bias is None else t.bias.detach() for t in stack]


def test_compiled_it_is_one_graph_of_layers() -> None:
    torch._dynamo.reset()
    stack, x = wavenet(), random(2, 3, 7, dtype=torch.float64).to(DEVICE)
    compiled = torch.compile(stack, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), stack(x))
