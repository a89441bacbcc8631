"""What can be done to a ``StreamState``, and which ones are refused."""

from __future__ import annotations

import io

import pytest
import torch
from cases import random
from torch import Tensor

from convlm_kernels import CausalConv1d, DilatedStack, EmbeddingConv1d, StackLayer, StreamState


def some_state() -> StreamState:
    state = CausalConv1d(2, 2, 3).init_state(3)
    state.position.copy_(torch.tensor([10, 11, 12]))
    state.rings.copy_(state.position[:, None])
    return state


@pytest.mark.parametrize(
    "rows", [[0, 2], torch.tensor([0, 2], dtype=torch.uint8), torch.tensor([0, 2]).int()]
)
def test_samples_by_number(rows: object) -> None:
    check_rows(some_state().select(rows), [10, 12])
    check_rows(some_state().drop(rows), [11])


@pytest.mark.parametrize("mask", [[True, False, True], torch.tensor([True, False, True])])
def test_samples_by_a_mask(mask: object) -> None:
    check_rows(some_state().select(mask), [10, 12])
    check_rows(some_state().drop(mask), [11])


@pytest.mark.parametrize("nested", [False, True])
def test_a_saved_state_is_loaded(nested: bool) -> None:
    file = io.BytesIO()
    state = some_state()
    torch.save({"states": [state]} if nested else state, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    if nested:
        (loaded,) = loaded["states"]
    assert type(loaded) is StreamState
    assert all(map(torch.equal, loaded, state))


def check_rows(state: StreamState, expected: list[int]) -> None:
    assert state.position.tolist() == expected
    assert state.rings[:, 0].tolist() == expected


@pytest.mark.parametrize("empty", [[], torch.tensor([]), torch.tensor([], dtype=torch.int64)])
def test_no_samples(empty: object) -> None:
    check_rows(some_state().select(empty), [])
    check_rows(some_state().drop(empty), [10, 11, 12])


@pytest.mark.parametrize("name", ["select", "drop"])
def test_rows_that_cannot_be(name: str) -> None:
    function = getattr(some_state(), name)
    for rows in ([0.0, 1.0], torch.tensor([1.5])):
        with pytest.raises(TypeError, match=r"integers or bool, got torch\.float32"):
            function(rows)
    for mask in ([True, False], torch.ones(3, 1, dtype=torch.bool)):
        with pytest.raises(IndexError, match=r"or a mask \(3\), got a mask of shape \((2,|3, 1)\)"):
            function(mask)
    with pytest.raises(IndexError, match="3"):
        function([3])


def two_layers(dtype: torch.dtype = torch.float64) -> DilatedStack:
    return DilatedStack(StackLayer(3, 4, 2), StackLayer(4, 4, 3)).to(dtype)


def other_dtype(rings: Tensor, position: Tensor) -> StreamState:
    return StreamState(rings.float(), position)


def of_another_network(rings: Tensor, position: Tensor) -> StreamState:
    return StreamState(rings[:, 1:].contiguous(), position)


def of_another_batch(rings: Tensor, position: Tensor) -> StreamState:
    return StreamState(rings, position[1:])


def turned(rings: Tensor, position: Tensor) -> StreamState:
    return StreamState(rings.T.contiguous().T, position)


def of_short_positions(rings: Tensor, position: Tensor) -> StreamState:
    return StreamState(rings, position.int())


def before_the_start(rings: Tensor, position: Tensor) -> StreamState:
    return StreamState(rings, position - 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (other_dtype, "weights must have the dtype of rings, .* got .* beside "),
        (of_another_network, r"rings must have the size 11 in dimension 1, got shape \(2, 10\)"),
        (of_another_batch, r"position must have the size 2 in dimension 0, got shape \(1\)"),
        (turned, r"rings must be contiguous and have 2 dimension\(s\), got shape \(2, 11\)"),
        (of_short_positions, "position must have the dtype .*, got "),
        (before_the_start, "position must not be negative, got -1"),
    ],
)
def test_states_that_do_not_fit_are_refused_alike(change: object, message: str) -> None:
    stack = two_layers()
    x, state = random(2, 3, 5, dtype=torch.float64), change(*stack.init_state(2))
    check_refused(stack, x, state, message)


def check_refused(stack: DilatedStack, x: Tensor, state: StreamState, message: str) -> None:
    """By a step, and by a prefill in the same words, but for what C++ adds; without any change."""
    before = state.clone()
    with pytest.raises(RuntimeError, match=f"step: {message}"):
        stack.step(x[..., 0], state)
    with pytest.raises(RuntimeError, match=f"prefill: {message}".replace(", .* got", ", got")):
        stack.prefill(x, state)
    assert all(map(torch.equal, state, before))


def test_inputs_of_another_dtype_are_refused_alike() -> None:
    stack = two_layers()
    message = "x must have the dtype .*, got "
    check_refused(stack, random(2, 3, 5), stack.init_state(2), message)
    words = DilatedStack(EmbeddingConv1d(9, 3, 4, 2, padding="causal"))
    tokens = torch.zeros(2, 5, dtype=torch.int32)
    check_refused(words, tokens, words.init_state(2), f"tokens{message[1:]}")
    words[0].embedding.double()
    check_refused(words, tokens.long(), words.init_state(2), f"embedding{message[1:]}")


def test_weights_of_another_dtype_than_the_state() -> None:
    stack = two_layers(torch.float32)
    state = stack.init_state(2)
    stack.double()
    message = "weights must have the dtype of rings, .* got .* beside "
    check_refused(stack, random(2, 3, 5), state, message)


def test_a_prefill_that_fails_in_a_later_layer_leaves_the_state() -> None:
    stack, x = two_layers(), random(2, 3, 5, dtype=torch.float64)
    state = stack.init_state(2)
    stack.prefill(x, state)
    before = state.clone()
    stack[1].backend = "cuda"
    with pytest.raises(RuntimeError, match="cuda"):
        stack.prefill(x, state)
    assert all(map(torch.equal, state, before))


def test_a_replica_packs_its_own_weights() -> None:
    """As ``DataParallel`` makes one: its weights are attributes, and no parameters."""
    layer, x = CausalConv1d(2, 3, 3), random(1, 2)
    y = layer.step(x, layer.init_state())
    replica = layer._replicate_for_data_parallel()
    for name, parameter in layer.named_parameters():
        setattr(replica, name, 2 * parameter)
    for _ in range(2):
        torch.testing.assert_close(replica.step(x, replica.init_state()), 2 * y)
    assert torch.equal(layer.step(x, layer.init_state()), y)
