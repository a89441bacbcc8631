"""Stacks that compute each distinct context once, on the emulator."""

from __future__ import annotations

from itertools import accumulate
from operator import sub

import pytest
import torch
from cases import DTYPES, parametrize
from stacks import (
    NATIVE,
    SEED,
    TOKENS,
    Inputs,
    Operators,
    Stack,
    bits,
    check,
    check_loss,
    inputs_of,
    reference,
    run,
    run_loss,
    target_of,
)
from torch import Tensor

from build import SANITIZE, emulated, library, run_sanitized, take_launches
from convlm_kernels import _host, stack_ops

pytestmark = pytest.mark.usefixtures("nan_in_empty", "however_small")

NAMES = ("stack_forward", "stack_backward", "stack_cross_entropy", "stack_losses")
EMULATED = Operators(*map(emulated, NAMES), roundings=4)

WORDS = Stack("the seed's model, small", 12, 11, (3, 5, 5, 4), 2, (1, 2, 4), SEED, vocab=3)
GATES, ONE_TAP = TOKENS[2], TOKENS[4]
MANY = Stack("several chunks of positions and tiles of rows, a residual at the end", 230, 8,
             (2, 3, 3), 2, (1, 3), ("gelu", "tanh"), False, (0, 1), vocab=5)  # fmt: skip
ONE = Stack("one layer", 40, 7, (3, 9), 2, (2,), ("relu",), vocab=3)
WIDE = Stack("weights in several chunks, one context", 30, 9, (40, 90, 6), 5,
             (1, 1), ("silu", "none"), vocab=1)  # fmt: skip
STACKS = [WORDS, GATES, ONE_TAP, MANY, ONE, WIDE]


def rows(stack: Stack, inputs: Inputs, share: bool = True) -> list[int]:
    return emulated("stack_rows")(*inputs, stack.settings, share).tolist()


def contexts(stack: Stack, tokens: Tensor) -> list[int]:
    """The distinct contexts of each layer."""
    fields, counts = tokens[:, None, :], []
    for dilation, pad, *_ in stack.layers:
        padded = torch.nn.functional.pad(fields, (pad, 0), value=-1)
        length = padded.shape[2] - dilation * (stack.kernel_size - 1)
        taps = [padded[..., k * dilation :][..., :length] for k in range(stack.kernel_size)]
        seen = torch.cat(taps, 1).mT.flatten(0, 1)
        distinct, numbers = seen.unique(dim=0, return_inverse=True)
        fields = numbers.view(tokens.shape[0], 1, length)
        counts.append(len(distinct))
    return counts


@pytest.mark.parametrize("stack", STACKS, ids=str)
def test_rows_are_the_distinct_contexts(stack: Stack) -> None:
    inputs = inputs_of(stack, torch.float32)
    assert rows(stack, inputs) == contexts(stack, inputs.tokens)
    lengths = accumulate(
        ((layer.dilation * (stack.kernel_size - 1) - layer.pad) for layer in stack.layers),
        sub,
        initial=stack.length,
    )
    positions = [stack.batch * length for length in lengths][1:]
    assert rows(stack, inputs, share=False) == positions


@pytest.mark.parametrize("share", [False, True])
def test_an_empty_batch_has_no_rows(share: bool) -> None:
    inputs = inputs_of(WORDS._replace(batch=0), torch.float32)
    assert rows(WORDS, inputs, share) == [0] * WORDS.depth


@parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stack", STACKS, ids=str)
def test_result_and_gradients(stack: Stack, dtype: torch.dtype) -> None:
    check(stack, dtype, share=True, operators=EMULATED)


@parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("stack", STACKS, ids=str)
def test_cross_entropy_and_gradients(stack: Stack, dtype: torch.dtype) -> None:
    check_loss(stack, dtype, share=True, operators=EMULATED)


@parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stack", STACKS, ids=str)
def test_values_are_the_same_bits(stack: Stack, dtype: torch.dtype) -> None:
    inputs = inputs_of(stack, dtype)
    shared, plain = (
        EMULATED.forward(*inputs, stack.settings, share, False)[0] for share in (True, False)
    )
    assert bits([shared]) == bits([plain])


@pytest.mark.parametrize("stack", STACKS, ids=str)
def test_losses_are_the_same_bits(stack: Stack) -> None:
    inputs = inputs_of(stack, torch.float32)
    shared, plain = (run_loss(stack, inputs, share, EMULATED)[:2] for share in (True, False))
    assert bits(shared) == bits(plain)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("stack", [WORDS, GATES, MANY], ids=str)
def test_the_order_of_threads_changes_nothing(stack: Stack, order: int) -> None:
    inputs = inputs_of(stack, torch.float32)

    def everything() -> list[bytes]:
        return bits(run(stack, inputs, True, EMULATED) + run_loss(stack, inputs, True, EMULATED))

    library().set_order(0)
    expected = everything()
    library().set_order(order)
    assert everything() == expected


def test_a_smaller_gpu_has_smaller_tiles_and_the_same_bits() -> None:
    inputs = inputs_of(WIDE, torch.float32)
    expected = EMULATED.forward(*inputs, WIDE.settings, True, False)[0]
    library().set_capability(86)
    try:
        actual = EMULATED.forward(*inputs, WIDE.settings, True, False)[0]
        assert bits([actual]) == bits([expected])
        check(WIDE, torch.float32, share=True, operators=EMULATED)
    finally:
        library().set_capability(90)


FEW_WORDS = Stack("", 1_200, 9, (1, 2), 2, (1,), ("tanh",), vocab=2)


def test_more_readers_of_a_row_than_one_thread_adds_up() -> None:
    inputs = inputs_of(FEW_WORDS, torch.float64)
    actual, expected = (
        run_loss(FEW_WORDS, inputs, True, operators) for operators in (EMULATED, NATIVE)
    )
    torch.testing.assert_close(actual, expected)


def test_more_tiles_than_blocks() -> None:
    stack = FEW_WORDS._replace(batch=8_200)
    inputs = inputs_of(stack, torch.float64)
    y, _ = EMULATED.forward(*inputs, stack.settings, True, False)
    torch.testing.assert_close(y, reference(stack, inputs))


def test_int32_and_strided_tokens() -> None:
    inputs = inputs_of(WORDS, torch.float32)
    expected = bits(run_loss(WORDS, inputs, True, EMULATED))
    for tokens in (inputs.tokens.int(), inputs.tokens.T.contiguous().T):
        assert bits(run_loss(WORDS, inputs._replace(tokens=tokens), True, EMULATED)) == expected


def test_gradients_are_laid_out_as_their_weights() -> None:
    inputs = inputs_of(WORDS, torch.float32)
    turned = inputs._replace(weights=[w.mT.contiguous().mT for w in inputs.weights])
    gradients = run_loss(WORDS, turned, True, EMULATED)
    assert gradients[3].stride() == turned.weights[0].stride()
    assert bits(gradients) == bits(run_loss(WORDS, inputs, True, EMULATED))


@pytest.mark.parametrize("wrong", [-1, 3])
def test_what_is_out_of_range_gives_nan(wrong: int) -> None:
    inputs = inputs_of(WORDS, torch.float32)
    target = target_of(WORDS, inputs)

    def losses(tokens: Tensor, target: Tensor) -> Tensor:
        operands = inputs.x, tokens, target, inputs.weights, inputs.biases
        return EMULATED.losses(*operands, WORDS.settings, True)

    right = losses(inputs.tokens, target)
    wrong_target = target.clone()
    wrong_target[1, 3] = wrong if wrong < 0 else WORDS.channels[-1]
    actual = losses(inputs.tokens, wrong_target)
    assert actual.isnan().nonzero().tolist() == [[1, 3]]
    assert torch.equal(actual.nan_to_num(0), right.where(~actual.isnan(), 0))

    tokens = inputs.tokens.clone()
    tokens[2, 8] = wrong  # of 11: in the context of all but the first output
    actual = losses(tokens, target)
    assert actual.isnan().nonzero().tolist() == [[2, 1], [2, 2], [2, 3]]
    assert torch.equal(actual.nan_to_num(0), right.where(~actual.isnan(), 0))


def step(inputs: Inputs, target: Tensor, rows: Tensor) -> Tensor:
    operands = *inputs[:2], target, rows, *inputs[2:]
    return emulated("stack_sgd_")(*operands, WORDS.settings, True, 0.5)


def test_a_step_of_some_rows() -> None:
    inputs = inputs_of(WORDS, torch.float64)
    turned = inputs._replace(
        x=inputs.x.clone(), weights=[w.mT.contiguous().mT for w in inputs.weights]
    )
    turned = turned._replace(biases=[b.clone() for b in inputs.biases])
    target, rows = target_of(WORDS, inputs), torch.tensor([2, 9, 0, 9, 1, 7, 2, 9, 3, 9])[::2]
    some = inputs.x, inputs.tokens[rows], target[rows], inputs.weights, inputs.biases
    loss, gradients = EMULATED.cross_entropy(*some, WORDS.settings, True)
    parameters = [inputs.x, *inputs.weights, *inputs.biases]
    expected = [p - 0.5 * g for p, g in zip(parameters, gradients, strict=True)]
    assert torch.equal(step(turned, target, rows), loss)
    torch.testing.assert_close([turned.x, *turned.weights, *turned.biases], expected)


def test_a_step_leaves_the_parameters_where_the_loss_is_not_finite() -> None:
    inputs = inputs_of(WORDS, torch.float32)
    parameters = [inputs.x, *inputs.weights, *inputs.biases]
    before = [p.clone() for p in parameters]
    rows = torch.tensor([0, 1, 2, 3, 12])  # the last one does not exist
    assert step(inputs, target_of(WORDS, inputs), rows).isnan()
    assert all(map(torch.equal, parameters, before))


def test_losses_are_a_launch_a_layer_and_those_that_number_contexts() -> None:
    inputs = inputs_of(WORDS, torch.float32)
    operands = *inputs[:2], target_of(WORDS, inputs), *inputs[2:], WORDS.settings
    for share, launches in ((True, [1, 1, 1, 1, 3, 3]), (False, [1])):
        take_launches()
        EMULATED.losses(*operands, share)
        assert sorted(take_launches().values()) == launches


SEEDS = TOKENS[0]._replace(batch=25_626, length=8)


@pytest.mark.parametrize(
    ("stack", "reason"),
    [
        (SEEDS, None),
        (SEEDS._replace(batch=1024, length=23), None),
        (SEEDS._replace(vocab=0), "the input is a signal, not tokens"),
        (
            SEEDS._replace(batch=32, length=23),
            "there are 17075200 products, and from 536870912 on contexts are numbered",
        ),
        (
            SEEDS._replace(vocab=1000),
            "the first layer has 179382 positions, of which 179382 may be distinct",
        ),
        (
            SEEDS._replace(batch=2**28),
            "there are 3758096384 positions, and 1073741824 can be numbered",
        ),
        (
            SEEDS._replace(channels=(10, 500, 28), dilations=(1, 2), activations=SEED[1:]),
            None,
        ),
        (
            SEEDS._replace(channels=(10, 2000, 28), dilations=(1, 6), activations=SEED[1:]),
            "not even 7 contexts fit the shared memory of a block",
        ),
    ],
    ids=str,
)
def test_the_rule(stack: Stack, reason: str | None) -> None:
    weights = [(columns, stack.kernel_size) for columns in stack.channels[1:]]
    dilations, pads, _, _ = map(list, zip(*stack.layers, strict=True))
    sizes = stack.channels[0], stack.length, stack.vocab, weights, dilations, pads
    gated = [False] * stack.depth
    operands = "float32", *sizes, gated, 90
    assert _host.cuda_reason_stack_not_fused(*operands) is None
    assert _host.cuda_reason_contexts_not_shared(*operands, stack.batch) == reason


def test_the_rule_of_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    inputs = inputs_of(SEEDS._replace(batch=5_000), torch.float32)

    def reason(tokens: Tensor) -> str | None:
        operands = inputs.x, tokens, inputs.weights, SEEDS.settings
        return stack_ops.reason_contexts_not_shared(*operands)

    assert reason(inputs.tokens) is None
    assert "from 536870912 on" in reason(inputs.tokens[:32])


@pytest.mark.skipif(bool(SANITIZE), reason="this is the run under the sanitizers")
def test_under_the_sanitizers() -> None:
    run_sanitized(__file__, "((result or entropy) and float32) or rows or range")
