"""Impossible problems: the operators and their fake versions refuse them alike."""

from __future__ import annotations

import pytest
import torch
from cases import random
from torch import Tensor

from convlm_kernels import conv1d, ops
from convlm_kernels.lm.errors import is_out_of_memory

# x (2, 4, 10), weight (6, 2, 3), bias (6), stride 1, pads 0, dilation 1, groups 2, with one change.
IMPOSSIBLE = {
    "stride": dict(stride=0),
    "pad_left": dict(pad_left=-1),
    "pad_right": dict(pad_right=-2),
    "dilation": dict(dilation=0),
    "groups": dict(groups=0),
    "groups_and_out_channels": dict(weight=random(5, 2, 3)),
    "in_channels": dict(x=random(2, 5, 10)),
    "too_short": dict(x=random(2, 4, 2)),
    "too_dilated": dict(dilation=5),
    "no_taps": dict(weight=random(6, 2, 0)),
    "no_out_channels": dict(weight=random(0, 2, 3)),
    "x_dimensions": dict(x=random(4, 10)),
    "weight_dimensions": dict(weight=random(6, 2)),
    "bias_shape": dict(bias=random(5)),
    "bias_dimensions": dict(bias=random(6, 1)),
    "x_dtype": dict(x=random(2, 4, 10, dtype=torch.float64)),
    "bias_dtype": dict(bias=random(6, dtype=torch.bfloat16)),
}
POSSIBLE = dict(
    x=random(2, 4, 10),
    weight=random(6, 2, 3),
    bias=random(6),
    stride=1,
    pad_left=0,
    pad_right=0,
    dilation=1,
    groups=2,
    fp32_precision="ieee",
    activation="none",
)


def _message(function: object, arguments: dict) -> str:
    with pytest.raises(RuntimeError) as raised:
        function(*arguments.values())  # type: ignore[operator]
    return str(raised.value)


def _on_meta(arguments: dict) -> dict:
    return {k: v.to("meta") if isinstance(v, Tensor) else v for k, v in arguments.items()}


@pytest.mark.parametrize("what", IMPOSSIBLE)
def test_impossible_problems_raise_alike_with_and_without_data(what: str) -> None:
    arguments = POSSIBLE | IMPOSSIBLE[what]
    native = _message(ops.forward, arguments)
    fake = _message(ops.forward, _on_meta(arguments))
    if "dtype" in what:  # dtypes have other names in C++
        native, fake = (m.partition(", got")[0] for m in (native, fake))
    assert fake in native


IMPOSSIBLE_GRAD_INPUT = {
    "length": dict(length=9),
    "negative_length": dict(length=-1),
    "grad_output_channels": dict(grad_output=random(2, 5, 8)),
    "grad_output_dimensions": dict(grad_output=random(6, 8)),
    "stride": dict(stride=-1),
    "y_dtype": dict(y=random(2, 6, 8, dtype=torch.float64), activation="tanh"),
    "activation": dict(y=random(2, 6, 8), activation="sine"),
}
IMPOSSIBLE_GRAD_WEIGHT = {
    "kernel_size": dict(kernel_size=4),
    "no_taps": dict(kernel_size=0),
    "batch": dict(x=random(3, 4, 10)),
    "in_channels": dict(x=random(2, 5, 10)),
    "grad_output_dimensions": dict(grad_output=random(6, 8)),
    "dilation": dict(dilation=0),
    "fp32_precision": dict(fp32_precision="half"),
    "y_without_activation": dict(y=random(2, 6, 8)),
    "activation_without_y": dict(activation="tanh"),
    "activation_of_no_output": dict(y=random(2, 6, 8), activation="gelu"),
    "y_shape": dict(y=random(2, 6, 7), activation="relu"),
}
WINDOW = dict(stride=1, pad_left=0, pad_right=0, dilation=1, groups=2, fp32_precision="ieee")


@pytest.mark.parametrize("what", IMPOSSIBLE_GRAD_INPUT)
def test_impossible_grad_input(what: str) -> None:
    possible = dict(grad_output=random(2, 6, 8), weight=random(6, 2, 3), length=10, **WINDOW)
    arguments = possible | dict(y=None, activation="none") | IMPOSSIBLE_GRAD_INPUT[what]
    native = _message(ops.grad_input, arguments)
    fake = _message(ops.grad_input, _on_meta(arguments))
    if what == "activation":  # C++ knows more words, all of them of forward
        native, fake = (m.partition(" must be")[0] for m in (native, fake))
    if "dtype" in what:  # dtypes have other names in C++
        native, fake = (m.partition(", got")[0] for m in (native, fake))
    assert fake in native


@pytest.mark.parametrize("what", IMPOSSIBLE_GRAD_WEIGHT)
def test_impossible_grad_weight(what: str) -> None:
    possible = dict(grad_output=random(2, 6, 8), x=random(2, 4, 10), kernel_size=3, **WINDOW)
    trailing = dict(with_bias=True, y=None, activation="none")
    arguments = possible | trailing | IMPOSSIBLE_GRAD_WEIGHT[what]
    native = _message(ops.grad_weight, arguments)
    assert _message(ops.grad_weight, _on_meta(arguments)) in native


@pytest.mark.parametrize(
    "change",
    [
        dict(x=random(2, 4)),
        dict(x=random(2, 3, 10)),
        dict(weight=random(6, 2)),
        dict(grad_output=random(2, 6, 9)),
        dict(stride=0),
    ],
)
def test_impossible_gradients(change: dict) -> None:
    possible = dict(grad_output=random(2, 6, 8), x=random(2, 4, 10), weight=random(6, 2, 3))
    arguments = possible | WINDOW | dict(with_bias=True) | change
    native = _message(ops.gradients, arguments)
    assert _message(ops.gradients, _on_meta(arguments)) in native


def test_a_result_beyond_all_memory() -> None:
    """In words by which others, such as `convlm`, know what it is."""
    x, weight = random(1, 1, 2, dtype=torch.float64), random(1024, 1, 1, dtype=torch.float64)
    message = rf"out of memory: cannot allocate a tensor of shape \(1, 1024, {2**40 + 2}\)"
    with pytest.raises(RuntimeError, match=message) as raised:
        conv1d(x, weight, padding=(2**40, 0))
    assert is_out_of_memory(raised.value)
