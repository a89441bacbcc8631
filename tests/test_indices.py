"""Tokens and targets that are none: the same error whatever the sizes, and so whoever computes."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convlm_kernels import (
    DilatedStack,
    EmbeddingConv1d,
    StackLayer,
    embedding_conv1d,
    embedding_conv1d_cross_entropy,
    indices,
    stack_autograd,
)
from convlm_kernels.lm import CNN, MLP, DilatedCNN
from convlm_kernels.lm.char_model import CharModel
from convlm_kernels.stack_layers import operands_of

BATCHES = [1, 4, 64]  # small ones are convolutions, large ones look-ups
REDUCTIONS = ["mean", "sum", "none"]
NO_TARGETS = [-100, -1, 6, 2**40]


def no_index(argument: str, size: str, value: int) -> str:
    return re.escape(f"{argument} must lie in [0, {size}), got {value} at (")


def random_tokens(batch: int, length: int = 5, vocab: int = 7) -> Tensor:
    return torch.randint(vocab, (batch, length))


def loss_of(tokens: Tensor, target: Tensor, reduction: str, *, gradients: bool) -> Tensor:
    embedding, weight = torch.randn(7, 3), torch.randn(6, 3, 2, requires_grad=gradients)
    return embedding_conv1d_cross_entropy(tokens, target, embedding, weight, reduction=reduction)


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("batch", BATCHES)
def test_targets_of_a_look_up(batch: int, reduction: str, gradients: bool) -> None:
    tokens = random_tokens(batch)
    for value in NO_TARGETS:
        target = torch.zeros(batch, 4, dtype=torch.int64)
        target[-1, 2] = value
        with pytest.raises(RuntimeError, match=no_index("target", "out_channels = 6", value)):
            loss_of(tokens, target, reduction, gradients=gradients)
    for target, message in (
        (torch.zeros(batch, 4), "target must be int64 or int32, got .*[Ff]loat"),
        (torch.zeros(batch, 5).long(), rf"shape \({batch}, 4\), got \({batch}, 5\)"),
    ):
        with pytest.raises(RuntimeError, match=message):
            loss_of(tokens, target, reduction, gradients=gradients)


@pytest.mark.parametrize("batch", BATCHES)
def test_tokens_of_a_loss(batch: int) -> None:
    target = torch.zeros(batch, 4, dtype=torch.int64)
    for value in (-1, 7):
        tokens = random_tokens(batch)
        tokens[0, 1] = value
        with pytest.raises(RuntimeError, match=no_index("tokens", "vocab = 7", value)):
            loss_of(tokens, target, "mean", gradients=True)
    with pytest.raises(RuntimeError, match=r"tokens must be \(batch, length\), got shape \(5,\)"):
        loss_of(random_tokens(1)[0], target, "mean", gradients=True)


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("batch", BATCHES)
def test_targets_of_a_stack(batch: int, reduction: str, gradients: bool) -> None:
    embedding = torch.randn(7, 3, requires_grad=gradients)
    layers = [StackLayer(3, 6, 2)]
    weights, biases, settings = operands_of(layers, embedding)
    operands = weights, biases, settings, reduction
    target = torch.zeros(batch, 5, dtype=torch.int64)
    target[0, 0] = -100
    with (
        torch.set_grad_enabled(gradients),
        pytest.raises(RuntimeError, match=no_index("target", "out_channels = 6", -100)),
    ):
        stack_autograd.cross_entropy(embedding, random_tokens(batch), target, *operands)


@pytest.mark.parametrize("kind", [CNN, MLP, DilatedCNN])
@pytest.mark.parametrize("batch", [1, 64])
def test_targets_of_a_model(kind: type[CharModel], batch: int) -> None:
    model = kind(7, 4, 3)
    target = torch.zeros(batch, 2, dtype=torch.int64)
    target[0, 1] = -100
    x = random_tokens(batch)
    with pytest.raises(RuntimeError, match=no_index("target", "out_channels = 7", -100)):
        model.loss(x, target)
    for take in (model.training_step, lambda x, y: model.sgd_step(x, y, 0.1)):
        with pytest.raises(RuntimeError, match=no_index("target", "out_channels = 7", -100)):
            take(x, target)


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("kind", [CNN, MLP, DilatedCNN])
def test_an_unknown_reduction(kind: type[CharModel], fused: bool, gradients: bool) -> None:
    model: Any = kind(7, 4, 3)
    model.fused = fused
    x, y = torch.zeros(1, 4, dtype=torch.int64), torch.zeros(1, 1, dtype=torch.int64)
    message = "reduction must be 'mean', 'sum' or 'none', got 'Sum'"
    with torch.set_grad_enabled(gradients), pytest.raises(ValueError, match=message):
        model.loss(x, y, "Sum")
    operands = torch.randn(7, 3), x, y, [torch.randn(6, 3, 4)], [torch.randn(6)], [1, 1, 0, 0]
    with pytest.raises(ValueError, match=message):
        stack_autograd.cross_entropy(*operands, "Sum")
    with pytest.raises(ValueError, match=message):
        indices.cross_entropy(torch.randn(1, 7, 1), y, "Sum")


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("batch", [1, 9])
def test_tokens_of_a_stack(batch: int, gradients: bool) -> None:
    """Of fewer positions than words, too."""
    layers: list[Any] = [EmbeddingConv1d(7, 3, 4, 2, activation="tanh"), StackLayer(4, 2, 2)]
    stack = DilatedStack(*layers)
    for value in (-1, 7):
        tokens = random_tokens(batch)
        tokens[0, 3] = value
        with (
            torch.set_grad_enabled(gradients),
            pytest.raises(RuntimeError, match=no_index("tokens", "vocab = 7", value)),
        ):
            stack(tokens)


@pytest.mark.parametrize("backend", ["cpp", "torch"])
def test_tokens_of_a_look_up(backend: str) -> None:
    embedding, weight = torch.randn(7, 3), torch.randn(6, 3, 2)
    with pytest.raises(RuntimeError, match=no_index("tokens", "vocab = 7", 7)):
        embedding_conv1d(torch.tensor([[1, 7, 8]]), embedding, weight, backend=backend)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_where_nobody_can_look_at_a_target(reduction: str) -> None:
    """Compiled, one that is none gives NaN, and the others give what they give."""

    def loss(logits: Tensor, target: Tensor) -> Tensor:
        return indices.cross_entropy(logits, target, reduction)

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    logits, target = torch.randn(2, 6, 4), torch.randint(6, (2, 4))
    expected = F.cross_entropy(logits, target, reduction=reduction)
    torch.testing.assert_close(compiled(logits, target), expected)
    for value in NO_TARGETS:
        target[1, 2] = value
        found = compiled(logits, target)
        assert found.isnan().sum() == 1
        if reduction == "none":
            expected[1, 2] = torch.nan
            torch.testing.assert_close(found, expected, equal_nan=True)


def test_embed() -> None:
    tokens, words = random_tokens(2), nn.Embedding(7, 3)
    assert torch.equal(indices.embed(tokens, words.weight), words(tokens).mT)
