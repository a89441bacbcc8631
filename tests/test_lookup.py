"""The operators of look-ups: what torch must know about them, and the fused loss."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch
from cases import LAYOUTS, Case, parametrize, random, spread_out
from test_embedding import CASES, VOCAB, bits, composed, operands, settings
from torch import Tensor
from torch.nn import functional as F

from convlm_kernels import _host, embedding_conv1d_cross_entropy, lookup, lookup_ops
from convlm_kernels.optim import sgd_

DOUBLE = torch.float64


def tokens_of(*shape: int, below: int = VOCAB) -> Tensor:
    return torch.randint(below, shape, generator=torch.Generator().manual_seed(6))


def test_opcheck() -> None:
    tokens, target = tokens_of(2, 9), tokens_of(2, 5, below=4)
    table, embedding, weight = random(3, VOCAB, 4), random(VOCAB, 5), random(4, 5, 3)
    laid = weight.mT.flatten(1).unsqueeze(1)
    window = 2, 1, 3, 1
    samples = [
        (lookup_ops.lookup, (tokens, table, random(4), *window, "tanh")),
        (lookup_ops.lookup, (tokens.int(), table, None, *window, "none")),
        (lookup_ops.grad_table, (random(2, 4, 6), tokens, 3, VOCAB, *window, True)),
        (lookup_ops.grad_table, (random(2, 4, 6), tokens, 3, VOCAB, *window, False)),
        (lookup_ops.losses, (tokens, tokens_of(2, 6, below=4), embedding, weight, None, *window)),
        (
            lookup_ops.cross_entropy,
            (tokens, target, None, embedding, weight, random(4), 2, 1, 1, 1),
        ),
        (
            lookup_ops.cross_entropy,
            (tokens, target, torch.tensor([1, 0, 1]), embedding, laid, None, 2, 1, 1, 1),
        ),
        *(
            (lookup_ops.sgd_, (tokens, target, rows, embedding, laid, random(4), 2, 1, 1, 1, 0.1))
            for rows in (torch.tensor([1, 0]), torch.tensor([[1, 0, 1], [0, 0, 1]]))
        ),
    ]
    for operator, arguments in samples:
        torch.library.opcheck(operator, arguments)


@pytest.mark.parametrize("activation", ["silu", "gelu", "sigmoid"])
def test_same_bits_in_any_batch_with_gradients_on(activation: str) -> None:
    tokens = tokens_of(5, 19)
    table = random(3, VOCAB, 31).requires_grad_()
    whole = lookup.lookup(tokens, table, None, (1, 0, 0, 1), activation)
    for alone, y in zip(tokens, whole, strict=True):
        alone_y = lookup.lookup(alone[None], table, None, (1, 0, 0, 1), activation)
        assert torch.equal(alone_y[0], y)


# --- The loss that comes with its gradients ---


def loss_operands(case: Case, dtype: torch.dtype) -> tuple[Tensor, ...]:
    tokens, *others = operands(case, dtype)
    return tokens, tokens_of(case.batch, case.out_length, below=case.out_channels), *others


def composed_loss(
    case, tokens: Tensor, target: Tensor, *others: Tensor, reduction="mean"
) -> Tensor:
    return F.cross_entropy(composed(tokens, *others, case), target, reduction=reduction)


@pytest.fixture
def by_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convlm_kernels.embedding.prefers_table", lambda *sizes: True)


@pytest.mark.usefixtures("by_table")
@parametrize("dtype", [torch.float32, DOUBLE])
@parametrize("case", CASES)
def test_loss_and_gradients(case: Case, dtype: torch.dtype) -> None:
    tokens, target, *others = loss_operands(case, dtype)
    leaves = [t.requires_grad_() for t in others]
    loss = embedding_conv1d_cross_entropy(tokens, target, *leaves, **settings(case))
    doubles = [t.detach().double().requires_grad_() for t in leaves]
    exact = composed_loss(case, tokens, target, *doubles)
    tolerance = (
        dict(rtol=2e-5, atol=2e-6) if dtype == torch.float32 else dict(rtol=1e-12, atol=1e-13)
    )
    torch.testing.assert_close(loss.double(), exact, **tolerance)
    own = torch.autograd.grad(loss, leaves)
    for mine, right in zip(own, torch.autograd.grad(exact, doubles), strict=True):
        torch.testing.assert_close(mine.double(), right, **tolerance)
    with torch.no_grad():
        for reduction in ("mean", "sum", "none"):
            value = embedding_conv1d_cross_entropy(
                tokens, target, *others, **settings(case), reduction=reduction
            )
            exact = composed_loss(case, tokens, target, *doubles, reduction=reduction)
            torch.testing.assert_close(value.double(), exact, rtol=tolerance["rtol"], atol=1e-4)


@pytest.mark.usefixtures("by_table")
def test_derivatives_of_the_loss() -> None:
    case = CASES[2]._replace(batch=1, length=12, in_channels=2, out_channels=3)
    tokens, target, *others = loss_operands(case, DOUBLE)
    leaves = [t.requires_grad_() for t in others]
    for reduction in ("mean", "sum", "none"):

        def run(*leaves: Tensor, reduction: str = reduction) -> Tensor:
            return embedding_conv1d_cross_entropy(
                tokens, target, *leaves, **settings(case), reduction=reduction
            )

        assert torch.autograd.gradcheck(run, leaves)
        assert torch.autograd.gradgradcheck(run, leaves)
    tokens_free = torch.func.grad(
        lambda weight: embedding_conv1d_cross_entropy(
            tokens, target, others[0], weight, **settings(case)
        )
    )(others[1].detach())
    (right,) = torch.autograd.grad(
        composed_loss(case, tokens, target, *leaves[:2], None), leaves[1]
    )
    torch.testing.assert_close(tokens_free, right)


@pytest.mark.usefixtures("by_table")
def test_only_the_gradients_that_are_wanted() -> None:
    case = CASES[2]
    tokens, target, embedding, weight, _ = loss_operands(case, DOUBLE)
    weight.requires_grad_()
    loss = embedding_conv1d_cross_entropy(tokens, target, embedding, weight, **settings(case))
    (3 * loss).backward()
    (right,) = torch.autograd.grad(
        3 * composed_loss(case, tokens, target, embedding, weight, None), weight
    )
    torch.testing.assert_close(weight.grad, right)
    assert embedding.grad is None


@pytest.mark.usefixtures("by_table")
def test_extreme_logits() -> None:
    """Neither large logits nor one of probability 0 spoil the loss or a gradient."""
    tokens, target = torch.zeros(1, 1, dtype=torch.int64), torch.tensor([[1]])
    rows = [0.0, 500.0, -500.0], [300.0, 0.0, 299.0], [-1e30, 1e30, 0.0], [1e30, -1e30, 1e30]
    for logits, dtype in product(rows, (torch.float32, DOUBLE)):
        embedding = torch.ones(1, 1, dtype=dtype, requires_grad=True)
        weight = torch.tensor(logits, dtype=dtype).view(3, 1, 1).requires_grad_()
        loss = embedding_conv1d_cross_entropy(tokens, target, embedding, weight)
        exact = F.cross_entropy((weight.flatten() * embedding.flatten())[None], target[0])
        torch.testing.assert_close(loss, exact)
        own, right = (torch.autograd.grad(t, weight) for t in (loss, exact))
        torch.testing.assert_close(own, right)
    weight = torch.tensor([0.0, torch.nan, 1.0]).view(3, 1, 1)
    assert embedding_conv1d_cross_entropy(tokens, target, torch.ones(1, 1), weight).isnan()


@pytest.mark.usefixtures("by_table")
@parametrize("case", CASES)
def test_same_loss_for_any_number_of_threads(case: Case) -> None:
    tokens, target, *others = loss_operands(case, torch.float32)
    window = case.stride, *case.pads, case.dilation

    def run() -> list[bytes]:
        return bits(lookup_ops.cross_entropy(tokens, target, None, *others, *window))

    expected = run()
    for count in (2, 3):
        torch.set_num_threads(count)
        assert run() == expected, f"{count} threads"


@pytest.mark.usefixtures("by_table")
@parametrize("case", CASES)
def test_words_that_nobody_reads(case: Case) -> None:
    """They may be infinite."""
    tokens, target, embedding, *others = loss_operands(case, torch.float32)
    tokens = tokens.clamp(max=VOCAB - 2)
    window = case.stride, *case.pads, case.dilation
    embedding[-1] = 0
    expected = bits(lookup_ops.cross_entropy(tokens, target, None, embedding, *others, *window))
    embedding[-1] = torch.inf
    assert expected == bits(
        lookup_ops.cross_entropy(tokens, target, None, embedding, *others, *window)
    )


@pytest.mark.usefixtures("by_table")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_loss_of_any_strides(layout: str) -> None:
    case = CASES[2]
    tokens, target, *others = loss_operands(case, DOUBLE)
    leaves = [LAYOUTS[layout](t).requires_grad_() for t in others]
    for words, right in ((tokens, target), (tokens.int(), target.mT.contiguous().mT)):
        loss = embedding_conv1d_cross_entropy(words, right, *leaves, **settings(case))
        exact = composed_loss(case, tokens, target, *leaves)
        own, expected = (torch.autograd.grad(t, leaves) for t in (loss, exact))
        torch.testing.assert_close([loss, *own], [exact, *expected])


@pytest.mark.usefixtures("by_table")
def test_a_weight_laid_end_to_end() -> None:
    case = CASES[2]
    tokens, target, embedding, weight, bias = loss_operands(case, DOUBLE)
    laid = weight.mT.flatten(1).unsqueeze(1)
    leaves = [t.requires_grad_() for t in (embedding, laid, bias)]
    weight.requires_grad_()
    loss = embedding_conv1d_cross_entropy(tokens, target, *leaves, **settings(case))
    exact = composed_loss(case, tokens, target, embedding, weight, bias)
    torch.testing.assert_close(loss, exact)
    own = torch.autograd.grad(loss, laid)[0].unflatten(2, (-1, case.in_channels)).squeeze(1).mT
    torch.testing.assert_close(own, torch.autograd.grad(exact, weight)[0])


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_a_batch_of_some_rows(dtype: torch.dtype) -> None:
    case = CASES[2]
    tokens, target, *others = loss_operands(case, DOUBLE)
    tokens, target = tokens.to(dtype), target.to(dtype)
    window = case.stride, *case.pads, case.dilation
    rows = torch.tensor([2, 0, 2, 1])
    own = lookup_ops.cross_entropy(tokens, target, rows, *others, *window)
    right = lookup_ops.cross_entropy(tokens[rows], target[rows], None, *others, *window)
    assert bits(own) == bits(right)
    assert bits(
        lookup_ops.cross_entropy(tokens, target, rows.repeat_interleave(2)[::2], *others, *window)
    ) == bits(own)
    for wrong in (-1, 3):
        with pytest.raises(RuntimeError, match=rf"rows must lie in \[0, 3\), got {wrong} at 1"):
            lookup_ops.cross_entropy(tokens, target, torch.tensor([0, wrong]), *others, *window)
    with pytest.raises(RuntimeError, match="rows must have one dimension and be int64, got shape"):
        lookup_ops.cross_entropy(tokens, target, rows.int(), *others, *window)
    tokens[1, 4] = VOCAB
    lookup_ops.cross_entropy(tokens, target, torch.tensor([0, 2]), *others, *window)
    with pytest.raises(RuntimeError, match=rf"tokens must lie in .*, got {VOCAB} at \(1, 4\)"):
        lookup_ops.cross_entropy(tokens, target, rows, *others, *window)
    before = [p.clone() for p in others]
    for device in ("cpu", "meta"):
        operands = [t.to(device) for t in (tokens, target, rows.view(1, 2, 2), *others)]
        with pytest.raises(RuntimeError, match=r"one dimension, or \(steps, batch\), and be int64"):
            lookup_ops.sgd_(*operands, *window, 0.5)
    steps = rows.view(2, 2)  # none is taken
    with pytest.raises(RuntimeError, match=rf"tokens must lie in .*, got {VOCAB} at \(1, 4\)"):
        lookup_ops.sgd_(tokens, target, steps, *others, *window, 0.5)
    with pytest.raises(RuntimeError, match=r"rows must lie in \[0, 3\), got 3 at 2"):
        lookup_ops.sgd_(tokens, target, torch.tensor([[0], [0], [3]]), *others, *window, 0.5)
    for i, name in enumerate(("embedding", "weight", "bias")):
        expanded = [*others]
        expanded[i] = others[i][:1].expand_as(others[i])
        with pytest.raises(RuntimeError, match=f"lookup_sgd_: {name} must not be expanded"):
            lookup_ops.sgd_(tokens, target, rows[:2], *expanded, *window, 0.5)
    assert all(map(torch.equal, others, before))


@pytest.mark.usefixtures("by_table")
def test_a_target_that_is_no_channel() -> None:
    tokens, target, *others = loss_operands(CASES[1], torch.float32)
    target[1, 3] = 28
    with pytest.raises(RuntimeError, match=r"target must lie in \[0, out_channels = 28\), got 28"):
        embedding_conv1d_cross_entropy(tokens, target, *others)
    with pytest.raises(RuntimeError, match=r"target must have the shape \(4, 16\), got \(4, 15\)"):
        embedding_conv1d_cross_entropy(tokens, target[:, 1:], *others)
    with pytest.raises(ValueError, match="reduction must be 'mean', 'sum' or 'none', got 'max'"):
        embedding_conv1d_cross_entropy(tokens, target, *others, reduction="max")


# --- Sums over many positions ---


def test_the_gradient_of_a_table_of_many_readers() -> None:
    """Terms that are all alike are the worst for a chain of additions."""
    term, positions = torch.tensor(1.9).item(), 1 << 18  # of few bits, sums would be exact
    grad_output = torch.full((1, 1, positions), term)
    tokens = torch.zeros(1, positions, dtype=torch.int64)
    for gradient in lookup_ops.grad_table(grad_output, tokens, 1, 1, 1, 0, 0, 1, True):
        assert (gradient.double() / (positions * term) - 1).abs().max() < 1e-5


def test_a_loss_over_many_positions() -> None:
    tokens = torch.zeros(1, 1 << 18, dtype=torch.int64)

    def gradients(dtype: torch.dtype) -> list[Tensor]:
        embedding, weight = torch.ones(1, 1, dtype=dtype), random(3, 1, 1).to(dtype)
        arguments = tokens, tokens, None, embedding, weight, weight[:, 0, 0], 1, 0, 0, 1
        return lookup_ops.cross_entropy(*arguments)[1:]

    for own, exact in zip(gradients(torch.float32), gradients(DOUBLE), strict=True):
        assert (own / exact - 1).abs().max() < 1e-5


# --- Instruction sets ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("end_to_end", [False, True])
@pytest.mark.parametrize("turned", [False, True])
def test_sgd_step_of_parameters_however_they_lie_in_memory(
    turned: bool, end_to_end: bool, dtype: torch.dtype
) -> None:
    """The same bits as a gradient and then a step, for one step and for several in a call."""
    case = CASES[0]
    tokens, target, *parameters = loss_operands(case, dtype)
    window = case.window[:4]
    if end_to_end:
        embedding, weight, *bias = parameters
        weight = weight.transpose(1, 2).flatten(1).unsqueeze(1)
        parameters = [embedding, weight, *bias]
    spread = [spread_out(p) for p in parameters]
    if turned:
        spread = [p.mT.contiguous().mT if p.dim() > 1 else p for p in parameters]
    parameters = [p.clone().contiguous() for p in parameters]
    rows = torch.tensor([[1, 0, 1], [0, 0, 1]]) % len(tokens)
    losses = lookup_ops.sgd_(tokens, target, rows, *spread, *window, 0.5)
    for batch, own in zip(rows, losses, strict=True):
        loss, *gradients = lookup_ops.cross_entropy(tokens, target, batch, *parameters, *window)
        sgd_(parameters, gradients, 0.5)
        assert torch.equal(own, loss)
    assert all(map(torch.equal, spread, parameters))


@pytest.mark.parametrize("isa", [isa for isa in _host.cpu_isas() if isa != _host.cpu_isa()])
def test_every_other_isa_of_this_cpu(isa: str) -> None:
    values = "(test_forward or test_gradients or test_loss_and or sgd_step) and not float64"
    files = [
        str(Path(__file__).with_name(name)) for name in ("test_embedding.py", "test_lookup.py")
    ]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files, "-k", values]
    environment = os.environ | {"CONVLM_CPU_ISA": isa}
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout
