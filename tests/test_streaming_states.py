"""What can be done to a ``StreamState``, and which ones are refused."""

from __future__ import annotations

import io

import pytest
import torch

from convlm_kernels import CausalConv1d, StreamState


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
