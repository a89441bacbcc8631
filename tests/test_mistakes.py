"""Arguments of the wrong kind or in the wrong place: an error that names them, never garbage."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import random

from convlm_kernels import (
    CausalConv1d,
    DilatedStack,
    EmbeddingConv1d,
    StackLayer,
    StreamState,
    conv1d,
    embedding_conv1d,
    embedding_conv1d_cross_entropy,
)
from convlm_kernels.lm import CNN, MLP, DilatedCNN
from convlm_kernels.lm.char_model import CharModel

TOKENS, TARGET = torch.randint(7, (64, 5)), torch.randint(6, (64, 4))
EMBEDDING, WEIGHT = random(7, 3), random(6, 3, 2)
STACK = DilatedStack(StackLayer(3, 3, 2), StackLayer(3, 3, 2, dilation=2))
OVER_TOKENS = DilatedStack(EmbeddingConv1d(7, 3, 4, 2, padding="causal"), StackLayer(4, 6, 2))
KINDS = [CNN, MLP, DilatedCNN]


@pytest.mark.parametrize(
    "wrong", [[[1, 2, 3]], TOKENS.numpy(), None], ids=lambda x: type(x).__name__
)
def test_what_is_no_tensor(wrong: Any) -> None:
    state = STACK.init_state(2)
    for argument, call in (
        ("input", lambda: conv1d(wrong, WEIGHT)),
        ("tokens", lambda: embedding_conv1d(wrong, EMBEDDING, WEIGHT)),
        ("embedding", lambda: embedding_conv1d(TOKENS, wrong, WEIGHT)),
        ("weight", lambda: embedding_conv1d(TOKENS, EMBEDDING, wrong)),
        ("tokens", lambda: embedding_conv1d_cross_entropy(wrong, TARGET, EMBEDDING, WEIGHT)),
        ("target", lambda: embedding_conv1d_cross_entropy(TOKENS, wrong, EMBEDDING, WEIGHT)),
        ("tokens", lambda: EmbeddingConv1d(7, 3, 6, 2)(wrong)),
        ("input", lambda: STACK(wrong)),
        ("input", lambda: OVER_TOKENS(wrong)),
        ("x", lambda: STACK.step(wrong, state)),
        ("x", lambda: STACK.prefill(wrong, state)),
        ("x", lambda: STACK.forward_packed(wrong, torch.tensor([0, 3]))),
        ("cu_seqlens", lambda: STACK.forward_packed(random(3, 9), wrong)),
        *(("tokens", lambda kind=kind: kind(7, 4, 3)(wrong)) for kind in KINDS),
        *(("tokens", lambda kind=kind: kind(7, 4, 3).loss(wrong, TARGET)) for kind in KINDS),
    ):
        with pytest.raises(TypeError, match=f"^{argument} must be a Tensor, got "):
            call()
    if wrong is not None:
        with pytest.raises(TypeError, match="^lengths must be a Tensor, got "):
            STACK.prefill(random(2, 3, 5), state, wrong)


@pytest.mark.parametrize("gradients", [False, True])
def test_a_tensor_on_the_meta_device_beside_others(gradients: bool) -> None:
    """The fake version of an operator runs then: its result would be memory as it was found."""
    meta = torch.device("meta")
    model, stack = DilatedCNN(7, 4, 3), OVER_TOKENS
    x, y, rows = TOKENS, torch.randint(7, (64, 2)), torch.tensor([0, 2])
    signal, state = random(2, 3), STACK.init_state(2)
    state_of_model = model.init_state(64)
    calls: tuple[Any, ...] = (
        lambda: stack(x.to(meta)),
        lambda: model(x.to(meta)),
        lambda: model.loss(x.to(meta), y),
        lambda: model.loss(x, y.to(meta)),
        lambda: model.training_step(x.to(meta), y),
        lambda: model.training_step(x, y.to(meta)),
        lambda: model.sgd_step(x.to(meta), y, 0.1),
        lambda: model.sgd_step(x, y.to(meta), 0.1),
        lambda: model.sgd_step(x, y, 0.1, rows.to(meta)),
        lambda: CNN(7, 4, 3).loss(x, y.to(meta)),
        lambda: STACK.step(signal.to(meta), state),
        lambda: STACK.step(signal, StreamState(state.rings.to(meta), state.position)),
        lambda: STACK.step(signal, state.to("meta")),
        lambda: STACK.prefill(signal.to(meta)[:, :, None], state),
        lambda: model.step(x[:, 0].to(meta), state_of_model),
        lambda: model.prefill(x.to(meta), state_of_model),
    )
    for call in calls:
        with (
            torch.set_grad_enabled(gradients),
            pytest.raises(RuntimeError, match="must be on one device"),
        ):
            call()
    assert not state.position.any()
    assert not state_of_model.position.any()


@pytest.mark.parametrize("batch", ["2", 2.0, True, None])
def test_a_batch_that_is_no_integer(batch: Any) -> None:
    with pytest.raises(TypeError, match="^batch must be an int"):
        STACK.init_state(batch)


@pytest.mark.parametrize(
    "wrong", [torch.tensor([0.0, 3.0, 9.0]), torch.tensor([[0, 3, 9]]), torch.tensor(9)]
)
def test_where_packed_sequences_begin(wrong: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="cu_seqlens must have one dimension and be int64"):
        STACK.forward_packed(random(3, 9), wrong)


@pytest.mark.parametrize("wrong", [0, torch.tensor(1), [[0, 1]]])
def test_samples_that_are_no_list(wrong: Any) -> None:
    state = CausalConv1d(2, 2, 3).init_state(3)
    for name in ("select", "drop"):
        with pytest.raises(IndexError, match="indices must be a list of numbers of samples, got"):
            getattr(state, name)(wrong)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch", [1, 64])
def test_tokens_of_a_model(batch: int, kind: type[CharModel], fused: bool) -> None:
    model: Any = kind(7, 4, 3)
    model.fused = fused
    for value in (-1, 7):
        tokens = torch.zeros(batch, 5, dtype=torch.int64)
        tokens[-1, 2] = value
        where = rf"tokens must lie in \[0, vocab = 7\), got {value} at \({batch - 1}, 2\)"
        with pytest.raises(RuntimeError, match=where):
            model(tokens)


def test_an_index_error_of_a_hook_stays_what_it_is() -> None:
    def hook(*_: Any) -> None:
        raise IndexError("of the hook")

    model = MLP(7, 4, 3)
    model.embedding.register_forward_hook(hook)
    with pytest.raises(IndexError, match="of the hook"):
        model(TOKENS)


@pytest.mark.parametrize("wrong", ["Tanh", ["relu"], torch.tanh])
def test_an_activation_that_is_set_to_none_there_is(wrong: Any) -> None:
    """Later than where a layer is made: the words are those of a layer alone."""
    stack, model = DilatedStack(StackLayer(3, 3, 2)), DilatedCNN(7, 4, 3)
    stack[0].activation = model.layers[0].activation = wrong
    for call in (
        lambda: stack[0](random(1, 3, 5)),
        lambda: stack(random(1, 3, 5)),
        lambda: stack.plan(random(1, 3, 5)),
        lambda: stack.init_state(),
        lambda: model(TOKENS),
        lambda: model.sgd_step(TOKENS, torch.randint(7, (64, 2)), 0.1),
        lambda: model.init_state(),
    ):
        with pytest.raises(ValueError, match="activation must be None or one of tanh, relu"):
            call()
