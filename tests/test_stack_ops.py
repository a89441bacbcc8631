"""The operators of fused stacks against the same layers in float64 on torch's own convolution."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
import torch
from cases import DTYPES, LAYOUTS, parametrize, random, spread_out
from stacks import (
    FILTERED,
    FILTERED_SIGNALS,
    FILTERED_TOKENS,
    IMPOSSIBLE,
    SEED,
    SIGNALS,
    STACKS,
    TOKENS,
    Inputs,
    Stack,
    assert_as_near_as_torch,
    bits,
    check,
    check_closed_units,
    check_empty_batch,
    check_loss,
    double,
    impossible,
    inputs_of,
    reference,
    reference_gradients,
    run,
    run_loss,
    strange,
    target_of,
)
from torch import Tensor

from convlm_kernels import _host
from convlm_kernels.optim import sgd_
from convlm_kernels.stack_ops import (
    LayerSettings,
    settings_of,
    stack_backward,
    stack_cross_entropy,
    stack_forward,
    stack_losses,
    stack_rows,
    stack_sgd_,
)

pytestmark = pytest.mark.usefixtures("nan_in_empty")


@parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("stack", "share"),
    [*((s, False) for s in STACKS + FILTERED), *((s, True) for s in TOKENS)],
    ids=str,
)
def test_result_and_gradients(stack: Stack, share: bool, dtype: torch.dtype) -> None:
    check(stack, dtype, share)


@parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("share", [False, True], ids=["dense", "shared"])
@pytest.mark.parametrize("stack", TOKENS + FILTERED_TOKENS, ids=str)
def test_cross_entropy_and_gradients(stack: Stack, share: bool, dtype: torch.dtype) -> None:
    check_loss(stack, dtype, share)


@pytest.mark.parametrize("stack", STACKS, ids=str)
def test_same_bits_with_and_without_what_gradients_need(stack: Stack) -> None:
    inputs = inputs_of(stack, torch.float32)
    results = [stack_forward(*inputs, stack.settings, False, save)[0] for save in (False, True)]
    assert bits(results[:1]) == bits(results[1:])


@pytest.mark.parametrize("stack", TOKENS, ids=str)
def test_shared_contexts_do_not_show_in_the_bits(stack: Stack) -> None:
    inputs = inputs_of(stack, torch.float32)
    dense, shared = (stack_forward(*inputs, stack.settings, share, False)[0] for share in (0, 1))
    assert bits([dense]) == bits([shared])


@pytest.mark.parametrize("share", [False, True], ids=["dense", "shared"])
@pytest.mark.parametrize(
    "stack", [SIGNALS[1], SIGNALS[2], TOKENS[0], TOKENS[2], *FILTERED], ids=str
)
def test_same_bits_for_any_number_of_threads(stack: Stack, share: bool) -> None:
    inputs = inputs_of(stack, torch.float32)
    results = []
    for threads in (1, 2, 3, 5):
        torch.set_num_threads(threads)
        results.append(bits(run(stack, inputs, share)))
        if stack.vocab:
            results[-1] += bits(run_loss(stack, inputs, share))
    assert all(result == results[0] for result in results)


@pytest.mark.parametrize("share", [False, True], ids=["dense", "shared"])
@pytest.mark.parametrize("stack", [SIGNALS[1], TOKENS[0], TOKENS[1]], ids=str)
def test_same_bits_in_any_batch(stack: Stack, share: bool) -> None:
    inputs = inputs_of(stack, torch.float32)
    y, _ = stack_forward(*inputs, stack.settings, share, False)
    for first, last in ((0, 1), (2, 5), (stack.batch - 1, stack.batch)):
        some = inputs
        if inputs.tokens is None:
            some = inputs.with_x(inputs.x[first:last])
        else:
            some = inputs._replace(tokens=inputs.tokens[first:last])
        part, _ = stack_forward(*some, stack.settings, share, False)
        assert bits([part]) == bits([y[first:last]])


@pytest.mark.parametrize("stack", FILTERED_SIGNALS, ids=str)
def test_gradients_of_inputs_have_the_same_bits_in_any_batch(stack: Stack) -> None:
    inputs = inputs_of(stack, torch.float32)

    def grad_x(first: int, last: int) -> Tensor:
        some = inputs.with_x(inputs.x[first:last])
        y, saved = stack_forward(*some, stack.settings, False, True)
        seed = random(stack.batch, *y.shape[1:], seed=9)[first:last]
        return stack_backward(seed, saved, *some, stack.settings, False, True)[0]

    whole = grad_x(0, stack.batch)
    for first, last in ((0, 1), (1, 3), (stack.batch - 1, stack.batch)):
        assert bits([grad_x(first, last)]) == bits([whole[first:last]])


@pytest.mark.parametrize("stack", FILTERED_TOKENS, ids=str)
def test_losses_have_the_same_bits_in_any_batch(stack: Stack) -> None:
    inputs = inputs_of(stack, torch.float32)
    target = target_of(stack, inputs)
    assert inputs.tokens is not None

    def losses(first: int, last: int) -> Tensor:
        some = inputs._replace(tokens=inputs.tokens[first:last])
        return stack_losses(*some[:2], target[first:last], *some[2:], stack.settings, False)

    whole = losses(0, stack.batch)
    logits, _ = stack_forward(*inputs, stack.settings, False, False)
    direct = torch.nn.functional.cross_entropy(logits, target, reduction="none")
    torch.testing.assert_close(whole, direct)
    assert not torch.equal(whole, direct)  # filtered fast
    for first, last in ((0, 1), (2, 5), (stack.batch - 1, stack.batch)):
        assert bits([losses(first, last)]) == bits([whole[first:last]])


@pytest.mark.parametrize("stack", FILTERED_SIGNALS, ids=str)
def test_an_infinite_gradient_has_layers_summed_directly(stack: Stack) -> None:
    """It is as infinite as in torch. Other bits in other samples show that filters were left."""
    inputs = inputs_of(stack, torch.float32)
    y, saved = stack_forward(*inputs, stack.settings, False, True)
    seed = random(*y.shape, seed=9)
    filtered = stack_backward(seed, saved, *inputs, stack.settings, False, True)[0]
    seed[0, 0, 7] = torch.inf
    actual = stack_backward(seed, saved, *inputs, stack.settings, False, True)
    expected = reference_gradients(stack, double(inputs), seed.double())
    for own, right in zip(actual, expected, strict=True):
        assert torch.equal(own.isfinite(), right.isfinite())
        assert torch.equal(own.isnan(), right.isnan())
    assert not torch.equal(actual[0][1:], filtered[1:])
    torch.testing.assert_close(actual[0][1:], filtered[1:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("share", [False, True])
def test_a_reach_far_beyond_the_input_takes_no_room(share: bool) -> None:
    far, none = 2**40, torch.zeros(0)
    x, tokens = random(5, 3), torch.arange(32).view(4, 8) % 5
    first, last = random(4, 3, 2), random(6, 4, 2)
    layers = [LayerSettings(1, 1, "tanh", False), LayerSettings(far, far, "none", False)]
    settings = settings_of(layers)
    y, _ = stack_forward(x, tokens, [first, last], [none, none], settings, share, False)
    layers[1] = LayerSettings(1, 0, "none", False)  # the other tap reads nothing but padding
    near = [first, last[..., 1:].contiguous()]
    expected, _ = stack_forward(x, tokens, near, [none, none], settings_of(layers), share, False)
    torch.testing.assert_close(y, expected)


def test_an_infinite_row_of_a_filtered_layer_may_end_in_a_finite_loss() -> None:
    stack = Stack("", 6, 30, (4, 48, 64, 20), 2, (1, 2, 4), ("relu", "tanh", "none"), vocab=9)
    inputs = inputs_of(stack, torch.float32)
    inputs.x[3, 0] = torch.inf
    inputs.weights[0][:, 0] = -1
    inputs.weights[0][5, 0] = 1  # one channel is infinite where word 3 is read, all others are 0
    inputs.weights[1][:, 5].abs_()
    target = target_of(stack, inputs)
    operands = *inputs[:2], target, *inputs[2:], stack.settings, False
    exact = torch.nn.functional.cross_entropy(
        reference(stack, double(inputs)), target, reduction="none"
    )
    assert exact.isfinite().all()
    torch.testing.assert_close(stack_losses(*operands), exact.float())
    loss, gradients = stack_cross_entropy(*operands)
    torch.testing.assert_close(loss, exact.mean().float())
    seed = torch.autograd.functional.jacobian(
        lambda z: torch.nn.functional.cross_entropy(z, target), reference(stack, double(inputs))
    )
    right = reference_gradients(stack, double(inputs), seed)
    for own, expected in zip(gradients, right, strict=True):
        torch.testing.assert_close(own.double(), expected, equal_nan=True, rtol=1e-4, atol=1e-6)
    parameters = [t.clone() for t in (inputs.x, *inputs.weights, *inputs.biases)]
    x, weights, biases = parameters[0], parameters[1:4], parameters[4:]
    stack_sgd_(x, inputs.tokens, target, None, weights, biases, stack.settings, False, 0.5)
    before = (inputs.x, *inputs.weights, *inputs.biases)
    for new, old, gradient in zip(parameters, before, gradients, strict=True):
        torch.testing.assert_close(new, old - 0.5 * gradient, equal_nan=True)  # one step


def test_a_gradient_of_the_input_that_only_a_filter_makes_infinite_is_summed_directly() -> None:
    stack = Stack("", 2, 20, (64, 64), 2, (1,), ("none",))
    inputs = inputs_of(stack, torch.float32)
    inputs.weights[0][3, 5] = 2e38  # the sum of both taps overflows
    inputs.x[:, 5] = 0
    y, saved = stack_forward(*inputs, stack.settings, False, True)
    seed = 1e-3 * random(*y.shape, seed=9)
    grad_x = stack_backward(seed, saved, *inputs, stack.settings, False, True)[0]
    exact = reference_gradients(stack, double(inputs), seed.double())[0]
    assert grad_x.isfinite().all()
    torch.testing.assert_close(grad_x.double(), exact, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("stack", [SIGNALS[2], FILTERED[1]], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides(layout: str, stack: Stack) -> None:
    inputs, plain = strange(stack, layout)
    assert bits(run(stack, inputs)) == bits(run(stack, plain))


@pytest.mark.parametrize("stack", [SIGNALS[0], TOKENS[0]], ids=str)
def test_empty_batch(stack: Stack) -> None:
    check_empty_batch(stack)


@pytest.mark.parametrize("share", [False, True], ids=["dense", "shared"])
def test_empty_batch_of_many_positions(share: bool) -> None:
    inputs = inputs_of(TOKENS[3], torch.float32)._replace(tokens=torch.zeros(0, 10**6).long())
    y, _ = stack_forward(*inputs, TOKENS[3].settings, share, False)
    target = torch.zeros(0, y.shape[2]).long()
    operands = *inputs[:2], target, *inputs[2:], TOKENS[3].settings, share
    assert stack_losses(*operands).shape == target.shape
    assert y.shape == (0, TOKENS[3].channels[-1], 10**6 - 3)


@pytest.mark.parametrize("share", [False, True], ids=["dense", "shared"])
@pytest.mark.parametrize("stack", TOKENS, ids=str)
def test_words_that_nobody_reads(stack: Stack, share: bool) -> None:
    """They may be infinite."""
    inputs = inputs_of(stack, torch.float32)
    x = torch.cat([inputs.x, torch.zeros(2, stack.channels[0])])
    unread = x.clone()
    unread[-2:] = torch.tensor([torch.inf, torch.nan])[:, None]
    for results in (run, run_loss):
        expected = bits(results(stack, inputs.with_x(x), share))
        assert bits(results(stack, inputs.with_x(unread), share)) == expected


def test_an_infinite_gradient_ends_at_a_closed_unit() -> None:
    for channels in (6, 80):  # 80: filtered fast
        check_closed_units(channels=channels)


MANY_POSITIONS = [
    *(Stack("", 256, 1024, (8, 16, 28), 1, (1, 1), ("tanh", "none"), vocab=v) for v in (1, 28)),
    Stack("", 64, 1024, (48, 48), 2, (3,), ("tanh",)),  # filtered fast
]


@pytest.mark.parametrize("stack", MANY_POSITIONS, ids=str)
def test_sums_over_many_positions(stack: Stack) -> None:
    """Of numbers of one sign, which errs most."""
    inputs = inputs_of(stack, torch.float32)
    y, saved = stack_forward(*inputs, stack.settings, False, True)
    seed = random(*y.shape).abs() + 0.1
    own = stack_backward(seed, saved, *inputs, stack.settings, False, True)
    exact = reference_gradients(stack, double(inputs), seed.double())
    torchs = reference_gradients(stack, inputs, seed)
    for actual, value, other in zip(own, exact, torchs, strict=True):
        assert_as_near_as_torch(actual, value, other)


@pytest.mark.parametrize("vocab", [4, 1_000])  # pairs have a place each, or are hashed
def test_rows_are_the_distinct_contexts_that_are_few(vocab: int) -> None:
    tokens = torch.tensor([[0, 0, 0, 1, 2], [0, 0, 0, 1, 1], [0, 0, 0, 0, 0], [0, 0, 0, 0, 1]])
    stack = Stack("", 4, 5, (3, 4, 4, 4), 2, (1, 1, 1), SEED, vocab=vocab)
    inputs = inputs_of(stack, torch.float32)._replace(tokens=tokens)
    pairs = {(0, 0), (0, 1), (1, 2), (1, 1)}  # of 16
    threes = {(0, 0, 0), (0, 0, 1), (0, 1, 2), (0, 1, 1)}  # of 12
    rows = stack_rows(*inputs, stack.settings, True).tolist()
    assert rows == [len(pairs), len(threes), 4 * 2]
    assert stack_rows(*inputs, stack.settings, False).tolist() == [16, 12, 8]


@pytest.mark.parametrize("stack", [SIGNALS[2], TOKENS[2]], ids=str)
def test_opcheck(stack: Stack) -> None:
    inputs = inputs_of(stack, torch.float32)
    torch.library.opcheck(stack_forward, (*inputs, stack.settings, True, True))
    y, saved = stack_forward(*inputs, stack.settings, True, True)
    arguments = (torch.ones_like(y), saved, *inputs, stack.settings, True, True)
    torch.library.opcheck(stack_backward, arguments)
    if stack.vocab:
        operands = (*inputs[:2], target_of(stack, inputs), *inputs[2:], stack.settings, True)
        torch.library.opcheck(stack_cross_entropy, operands)
        torch.library.opcheck(stack_losses, operands)
        for rows in torch.tensor([1, 0]), torch.tensor([[1, 0, 1], [0, 0, 1]]):
            torch.library.opcheck(stack_sgd_, (*_with_rows(operands, rows), 0.1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (0, 2, 1), (1, 0, 2)], ids=str)
def test_steps_of_parameters_however_they_lie_in_memory(order: tuple, dtype: torch.dtype) -> None:
    """The same bits as a gradient and then a step, for one step and for several in a call."""
    stack = TOKENS[1]
    inputs = inputs_of(stack, dtype)
    target = target_of(stack, inputs)
    spread = [
        spread_out(w.permute(order)).permute(*map(order.index, range(3))) for w in inputs.weights
    ]
    biases = [spread_out(b) for b in inputs.biases]
    embedding = spread_out(inputs.x.T).T
    settings = stack.settings, True
    rows = torch.tensor([[3, 0, 3, 39], [1, 2, 3, 4]])
    losses = stack_sgd_(embedding, inputs.tokens, target, rows, spread, biases, *settings, 0.5)
    parameters = [inputs.x, *inputs.weights, *inputs.biases]
    for batch, own in zip(rows, losses, strict=True):
        tokens, wanted = inputs.tokens[batch], target[batch]
        loss, gradients = stack_cross_entropy(
            inputs.x, tokens, wanted, inputs.weights, inputs.biases, *settings
        )
        sgd_(parameters, gradients, 0.5)
        assert torch.equal(own, loss)
    assert all(map(torch.equal, [embedding, *spread, *biases], parameters))


def _with_rows(operands: tuple, rows: Tensor) -> tuple:
    return (*operands[:3], rows, *operands[3:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_step_of_some_rows(dtype: torch.dtype) -> None:
    stack = TOKENS[1]
    x, tokens, weights, biases = inputs_of(stack, dtype)
    target = target_of(stack, Inputs(x, tokens, weights, biases))
    rows = torch.tensor([3, 0, 3, 39])
    loss, gradients = stack_cross_entropy(
        x, tokens[rows], target[rows], weights, biases, stack.settings, True
    )
    parameters = [x, *weights, *biases]
    expected = [p - 0.5 * g for p, g in zip(parameters, gradients, strict=True)]
    operands = x, tokens, target, weights, biases, stack.settings, True
    own = stack_sgd_(*_with_rows(operands, rows.repeat_interleave(2)[::2]), 0.5)
    assert torch.equal(own, loss)
    torch.testing.assert_close(parameters, expected)
    before = [p.clone() for p in parameters]
    for wrong, message in (
        (torch.tensor([0, 40]), r"rows must lie in \[0, 40\), got 40 at 1"),
        (torch.tensor([-1]), r"rows must lie in \[0, 40\), got -1 at 0"),
        (rows.int(), r"rows must have one dimension, or \(steps, batch\), and be int64"),
        (rows[0], r"rows must have one dimension, or \(steps, batch\), and be int64"),
    ):
        with pytest.raises(RuntimeError, match=message):
            stack_sgd_(*_with_rows(operands, wrong), 0.5)
    assert stack_sgd_(*_with_rows(operands, rows[:0]), 0.5).isnan()  # the mean of nothing
    assert all(map(torch.equal, parameters, before))


def test_steps_of_which_a_later_one_is_refused() -> None:
    """None of them is taken."""
    stack = TOKENS[1]
    inputs = inputs_of(stack, torch.float32)
    target = target_of(stack, inputs)
    unknown = inputs.tokens.clone(), target.clone()
    for numbers in unknown:
        numbers[39, 4] = 28
    parameters = [inputs.x, *inputs.weights, *inputs.biases]
    before = [p.clone() for p in parameters]
    for tokens, wanted, last, message in (
        (inputs.tokens, target, 40, r"rows must lie in \[0, 40\), got 40 at 5"),
        (unknown[0], target, 39, r"tokens must lie in \[0, vocab = 3\), got 28 at \(39, 4\)"),
        (unknown[0].int(), target, 39, r"tokens must lie in \[0, vocab = 3\), got 28 at \(39, 4"),
        (inputs.tokens, unknown[1], 39, r"target must lie in \[0, out_channels = 28\), got 28 at"),
    ):
        rows = torch.tensor([[0, 1, 2], [3, 4, last]])
        operands = inputs.x, tokens, wanted, rows, *inputs[2:], stack.settings, True, 0.5
        with pytest.raises(RuntimeError, match=message):
            stack_sgd_(*operands)
        assert all(map(torch.equal, parameters, before))


def test_steps_of_weights_that_share_memory() -> None:
    """Each adds its own, for any number of threads."""
    # Enough products for a second thread.
    stack = Stack("", 16, 23, (10, 96, 96, 96, 28), 2, (1, 2, 4, 8), ("tanh",) * 4, vocab=28)
    inputs = inputs_of(stack, torch.float32)
    inputs.weights[2] = inputs.weights[1].view(96, 96, 2)
    target = target_of(stack, inputs)
    gradients = stack_cross_entropy(*inputs[:2], target, *inputs[2:], stack.settings, True)[1]
    start = inputs.weights[1].clone()
    expected = [start.clone()]
    for gradient in gradients[2:4]:
        sgd_(expected, [gradient], 0.5)
    torch.set_num_threads(2)
    operands = *inputs[:2], target, None, *inputs[2:], stack.settings, True, 0.5
    for _ in range(20):
        inputs.weights[1].copy_(start)
        parameters = inputs.x, *inputs.weights, *inputs.biases
        kept = [p.clone() for p in parameters]
        stack_sgd_(*operands)
        assert torch.equal(inputs.weights[1], expected[0])
        for parameter, value in zip(parameters, kept, strict=True):
            parameter.copy_(value)


@pytest.mark.parametrize("name", ["x", "weights[1]", "biases[0]"])
def test_expanded_parameters_take_no_step(name: str) -> None:
    stack = TOKENS[1]
    inputs = inputs_of(stack, torch.float32)
    target = target_of(stack, inputs)
    named = {"x": inputs.x, "weights[1]": inputs.weights[1], "biases[0]": inputs.biases[0]}
    named[name] = named[name][:1].expand_as(named[name])
    weights = [inputs.weights[0], named["weights[1]"], inputs.weights[2]]
    biases = [named["biases[0]"], *inputs.biases[1:]]
    settings = stack.settings, True
    with pytest.raises(RuntimeError, match=f"stack_sgd_: {re.escape(name)} must not be expanded"):
        stack_sgd_(named["x"], inputs.tokens, target, None, weights, biases, *settings, 0.5)


UNKNOWN_WORD = (
    {"tokens": torch.full((2, 9), 5)},
    r"tokens must lie in \[0, vocab = 5\), got 5 at \(0, 0",
)


@pytest.mark.parametrize(("changes", "message"), [*IMPOSSIBLE, UNKNOWN_WORD])
def test_impossible_stacks(changes: dict, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        stack_forward(*impossible(changes))


def test_impossible_gradients() -> None:
    stack = SIGNALS[2]
    inputs = inputs_of(stack, torch.float32)
    y, saved = stack_forward(*inputs, stack.settings, False, True)

    def backward(grad_output: Tensor, saved: Tensor) -> None:
        stack_backward(grad_output, saved, *inputs, stack.settings, False, True)

    with pytest.raises(RuntimeError, match="grad_output and x must have one dtype"):
        backward(y.double(), saved)
    with pytest.raises(RuntimeError, match=r"grad_output must have the shape \(3, 12, 29\), got"):
        backward(y[1:], saved)
    with pytest.raises(RuntimeError, match="saved must have [0-9]+ elements, got 5"):
        backward(y, saved[:5])
    for wrong in (saved.float(), saved[:1].expand(len(saved))):
        with pytest.raises(RuntimeError, match="saved must be contiguous, of bytes"):
            backward(y, wrong)


def test_impossible_targets() -> None:
    stack = TOKENS[1]
    inputs = inputs_of(stack, torch.float32)
    target = target_of(stack, inputs)

    def losses(inputs: Inputs, target: Tensor) -> Tensor:
        return stack_losses(*inputs[:2], target, *inputs[2:], stack.settings, True)

    with pytest.raises(RuntimeError, match=r"target must lie in \[0, out_channels = 28\), got 28"):
        losses(inputs, torch.full_like(target, 28))
    with pytest.raises(
        RuntimeError, match=r"target must have the shape \(40, 16\), got \(40, 15\)"
    ):
        losses(inputs, target[:, 1:])
    with pytest.raises(RuntimeError, match="x must be float32 or float64, got Half"):
        losses(inputs_of(stack, torch.float16), target)


@pytest.mark.parametrize("isa", _host.cpu_isas()[1:])
def test_every_other_isa_of_this_cpu(isa: str) -> None:
    arguments = "-q", "-p", "no:cacheprovider", __file__, "-k", "gradients and float32"
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *arguments],
        env={**os.environ, "CONVLM_CPU_ISA": isa},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout
