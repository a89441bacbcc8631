"""Fused stacks on the emulator, against torch's layers in float64."""

from __future__ import annotations

import pytest
import torch
from cases import DTYPES, LAYOUTS, parametrize
from stacks import (
    SIGNALS,
    TOKENS,
    Inputs,
    Operators,
    Stack,
    bits,
    check,
    check_closed_units,
    check_empty_batch,
    check_int32_and_strided_tokens,
    check_loss,
    inputs_of,
    run,
    run_loss,
    strange,
    target_of,
)
from torch import Tensor

from build import SANITIZE, emulated, library, run_sanitized, take_launches
from convlm_kernels import _host

pytestmark = pytest.mark.usefixtures("nan_in_empty")

NAMES = ("stack_forward", "stack_backward", "stack_cross_entropy", "stack_losses")
# What backward reads of forward, and of the layer after, is kept in 16 bits.
EMULATED = Operators(*map(emulated, NAMES), roundings=4)


def smaller(stacks: list[Stack]) -> list[Stack]:
    return [stack._replace(batch=min(stack.batch, 3)) for stack in stacks]


FEW_SIGNALS, FEW_TOKENS = smaller(SIGNALS), smaller(TOKENS)
MANY = Stack("more samples than blocks, a residual at the end", 70, 6, (3, 3, 3), 2, (1, 2),
             ("gelu", "gate"), True, (0, 1), vocab=4)  # fmt: skip
CLASSES = Stack("a loss of more positions and classes than there are lanes", 2, 45, (3, 5, 20), 2,
                (1, 2), ("tanh", "none"), vocab=7)  # fmt: skip
WIDE = Stack("weights in several chunks, positions in several passes", 2, 70, (40, 90, 6), 5,
             (1, 4), ("silu", "tanh"))  # fmt: skip


@parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stack", [*FEW_SIGNALS, *FEW_TOKENS, MANY, WIDE], ids=str)
def test_result_and_gradients(stack: Stack, dtype: torch.dtype) -> None:
    check(stack, dtype, operators=EMULATED)


@parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("stack", [*FEW_TOKENS, MANY, CLASSES], ids=str)
def test_cross_entropy_and_gradients(stack: Stack, dtype: torch.dtype) -> None:
    check_loss(stack, dtype, operators=EMULATED)


@pytest.mark.parametrize("stack", [FEW_SIGNALS[2], FEW_TOKENS[1]], ids=str)
def test_as_on_the_cpu(stack: Stack) -> None:
    inputs = inputs_of(stack, torch.float64)
    for actual, expected in zip(
        run(stack, inputs, operators=EMULATED), run(stack, inputs), strict=True
    ):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("stack", [FEW_SIGNALS[2], FEW_TOKENS[1], CLASSES], ids=str)
def test_the_order_of_threads_changes_nothing(stack: Stack, order: int) -> None:
    inputs = inputs_of(stack, torch.float32)

    def everything() -> list[Tensor]:
        results = run(stack, inputs, operators=EMULATED)
        return results + (run_loss(stack, inputs, operators=EMULATED) if stack.vocab else [])

    expected = bits(everything())
    library().set_order(order)
    try:
        assert bits(everything()) == expected
    finally:
        library().set_order(0)


@pytest.mark.parametrize("stack", [FEW_SIGNALS[2], FEW_TOKENS[1]], ids=str)
def test_a_sample_has_the_same_bits_in_any_batch(stack: Stack) -> None:
    inputs = inputs_of(stack, torch.float32)
    y, _ = EMULATED.forward(*inputs, stack.settings, False, False)
    if inputs.tokens is None:
        one = inputs.with_x(inputs.x[1:2])
    else:
        one = inputs._replace(tokens=inputs.tokens[1:2])
    part, _ = EMULATED.forward(*one, stack.settings, True, True)
    assert bits([part]) == bits([y[1:2]])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides(layout: str) -> None:
    inputs, plain = strange(FEW_SIGNALS[2], layout)
    expected = bits(run(FEW_SIGNALS[2], plain, operators=EMULATED))
    assert bits(run(FEW_SIGNALS[2], inputs, operators=EMULATED)) == expected


def test_gradients_are_laid_out_as_their_weights() -> None:
    stack = FEW_TOKENS[0]
    inputs = inputs_of(stack, torch.float32)
    turned = inputs._replace(weights=[w.mT.contiguous().mT for w in inputs.weights])
    assert not turned.weights[0].is_contiguous()
    gradients = run_loss(stack, turned, operators=EMULATED)
    assert gradients[3].stride() == turned.weights[0].stride()
    assert bits(gradients) == bits(run_loss(stack, inputs, operators=EMULATED))


@pytest.mark.parametrize("stack", [FEW_SIGNALS[0], FEW_TOKENS[0]], ids=str)
def test_empty_batch(stack: Stack) -> None:
    check_empty_batch(stack, EMULATED)


def test_an_infinite_gradient_ends_at_a_closed_unit() -> None:
    check_closed_units(EMULATED)


def test_int32_and_strided_tokens() -> None:
    check_int32_and_strided_tokens(FEW_TOKENS[3], EMULATED)


def losses(stack: Stack, inputs: Inputs, target: Tensor) -> Tensor:
    return EMULATED.losses(*inputs[:2], target, *inputs[2:], stack.settings, False)


@pytest.mark.parametrize("wrong", [-1, 50])
def test_what_is_out_of_range_gives_nan(wrong: int) -> None:
    """Kernels cannot raise, and what lies there must not be read."""
    stack = FEW_TOKENS[3]
    inputs = inputs_of(stack, torch.float32)
    target = target_of(stack, inputs)
    right = losses(stack, inputs, target)
    wrong_target = target.clone()
    wrong_target[1, 3] = wrong
    actual = losses(stack, inputs, wrong_target)
    assert actual.isnan().nonzero().tolist() == [[1, 3]]
    assert torch.equal(actual.nan_to_num(0), right.where(~actual.isnan(), 0))

    tokens = inputs.tokens.clone()
    tokens[0] = wrong
    actual = losses(stack, inputs._replace(tokens=tokens), target)
    assert actual[0].isnan().all()
    assert torch.equal(actual[1], right[1])


def test_a_training_step_is_two_launches() -> None:
    stack = FEW_TOKENS[0]
    inputs = inputs_of(stack, torch.float32)
    take_launches()
    run_loss(stack, inputs, operators=EMULATED)
    assert sorted(take_launches().values()) == [1, 2]  # one of them is that of `losses`


def with_rows(stack: Stack, inputs: Inputs, rows: Tensor) -> tuple:
    operands = *inputs[:2], target_of(stack, inputs), rows, *inputs[2:]
    return (*operands, stack.settings, False)


@parametrize("dtype", [torch.float32, torch.float64])
def test_a_step_of_some_rows(dtype: torch.dtype) -> None:
    stack = FEW_TOKENS[1]
    inputs = inputs_of(stack, dtype)
    turned = inputs._replace(
        x=torch.stack([inputs.x, inputs.x.neg()], 2)[..., 0],  # every second element of a room
        weights=[w.mT.contiguous().mT for w in inputs.weights],
    )
    rows = torch.tensor([2, 9, 0, 9, 2, 9])[::2]
    target = target_of(stack, inputs)[rows]
    some = inputs.x, inputs.tokens[rows], target, inputs.weights, inputs.biases
    loss, gradients = EMULATED.cross_entropy(*some, stack.settings, False)
    parameters = [turned.x, *turned.weights, *turned.biases]
    expected = [p - 0.5 * g for p, g in zip(parameters, gradients, strict=True)]
    take_launches()
    assert torch.equal(emulated("stack_sgd_")(*with_rows(stack, turned, rows), 0.5), loss)
    assert sorted(take_launches().values()) == [1, 1]
    torch.testing.assert_close(parameters, expected)


@pytest.mark.parametrize("row", [-1, 3])
def test_a_step_leaves_the_parameters_where_the_loss_is_not_finite(row: int) -> None:
    stack = FEW_TOKENS[1]
    inputs = inputs_of(stack, torch.float32)
    parameters = [inputs.x, *inputs.weights, *inputs.biases]
    before = [p.clone() for p in parameters]
    rows = torch.tensor([0, row])  # one of them does not exist
    assert emulated("stack_sgd_")(*with_rows(stack, inputs, rows), 0.5).isnan()
    assert all(map(torch.equal, parameters, before))


def reason(
    stack: Stack, dtype: str = "float32", capability: int = 90, vocab: int = 0
) -> str | None:
    weights = [
        (columns * (2 if activation == "gate" else 1), stack.kernel_size)
        for columns, activation in zip(stack.channels[1:], stack.activations, strict=True)
    ]
    dilations, pads, activations, _ = map(list, zip(*stack.layers, strict=True))
    gated = [activation == "gate" for activation in activations]
    sizes = stack.channels[0], stack.length, vocab, weights, dilations, pads, gated
    return _host.cuda_reason_stack_not_fused(dtype, *sizes, capability=capability)


@pytest.mark.parametrize("capability", [80, 86, 90, 120])
@pytest.mark.parametrize("stack", [*SIGNALS, *TOKENS], ids=str)
def test_what_fits(stack: Stack, capability: int) -> None:
    assert reason(stack, capability=capability, vocab=stack.vocab) is None


LONG = Stack("", 1, 200, (64, 64), 2, (1,), ("none",))


def test_what_does_not_fit() -> None:
    assert reason(LONG, capability=90) is None
    assert "bytes of shared memory, and a block has 101376" in reason(LONG, capability=89)
    assert "bytes of shared memory, and a block has 232448" in reason(LONG, "float64")
    deep = LONG._replace(length=40, channels=(4,) * 34, dilations=(1,) * 33)
    deep = deep._replace(activations=("none",) * 33)
    assert reason(deep) == "it has 33 layers, and one kernel takes 32"
    words = "its vocabulary has 1025 words, and the kernel takes 1024"
    assert reason(TOKENS[0], vocab=1025) == words
    many = LONG._replace(length=2000, channels=(1, 1))
    assert reason(many) == "layer 0 has more positions than its weight's gradient can take"


def test_the_operator_says_why_not() -> None:
    stack = LONG._replace(length=2000)
    inputs = inputs_of(stack, torch.float32)
    with pytest.raises(RuntimeError, match="stack_forward: this stack cannot be fused: a sample"):
        EMULATED.forward(*inputs, stack.settings, False, False)


def test_a_smaller_gpu_takes_less() -> None:
    inputs = inputs_of(LONG, torch.float32)
    y, _ = EMULATED.forward(*inputs, LONG.settings, False, False)
    assert y.shape == (1, 64, 199)
    library().set_capability(86)
    try:
        with pytest.raises(RuntimeError, match="and a block has 101376"):
            EMULATED.forward(*inputs, LONG.settings, False, False)
    finally:
        library().set_capability(90)


@pytest.mark.skipif(bool(SANITIZE), reason="this is the run under the sanitizers")
def test_under_the_sanitizers() -> None:
    run_sanitized(__file__, "((result or entropy) and float32) or range or empty or int32")
