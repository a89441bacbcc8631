"""The operators of streaming, bound once, and their fake versions.

Private, like those in ``ops``: no gradient passes through a step. Shapes and errors are described
in ``csrc/step.h`` and ``csrc/step_checks.h``; what depends on the values of ``plan`` is checked
there alone, since a fake tensor has none.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _library  # noqa: F401  (importing it loads the operators)
from .checks import check_one_device, shape_of

step = torch.ops.convlm.step.default
generate = torch.ops.convlm.generate.default


def _require(condition: Any, message: str) -> None:
    torch._check(condition, lambda: message)


def _check_state(function: str, rings: Tensor, position: Tensor) -> None:
    for argument, tensor, dimensions in (("rings", rings, 2), ("position", position, 1)):
        _require(
            tensor.dim() == dimensions,
            f"{function}: {argument} must be contiguous and have {dimensions} dimension(s), "
            f"got shape {shape_of(tensor)}",
        )
    _check_batch(function, "position", position, rings)


def _check_batch(function: str, argument: str, tensor: Tensor, rings: Tensor) -> None:
    _require(
        tensor.shape[0] == rings.shape[0],
        f"{function}: {argument} must have the size {rings.shape[0]} in dimension 0, "
        f"got shape {shape_of(tensor)}",
    )


@torch.library.register_fake("convlm::step")
def _step_fake(
    x: Tensor,
    embedding: Tensor | None,
    rings: Tensor,
    position: Tensor,
    weights: Tensor,
    biases: Tensor,
    plan: Tensor,
    out_channels: int,
) -> Tensor:
    _check_state("step", rings, position)
    if embedding is None:
        _require(
            x.dim() == 2,
            f"step: x must be (batch, in_channels) or tokens (batch), got shape {shape_of(x)}",
        )
    argument = "tokens" if embedding is not None else "x"
    _check_batch("step", argument, x, rings)
    tensors = {argument: x, "embedding": embedding, "position": position, "weights": weights}
    check_one_device("step", "rings", rings, **tensors)
    return rings.new_empty((rings.shape[0], out_channels))


@torch.library.register_fake("convlm::generate")
def _generate_fake(
    tokens: Tensor, embedding: Tensor, rings: Tensor, position: Tensor, *rest: Any
) -> Tensor:
    weights, _biases, _plan, _logit_bias, uniform, *_sampling = rest
    _check_state("generate", rings, position)
    _check_batch("generate", "tokens", tokens, rings)
    _check_batch("generate", "uniform", uniform, rings)
    tensors = {"tokens": tokens, "embedding": embedding, "position": position, "weights": weights}
    check_one_device("generate", "rings", rings, **tensors)
    return tokens.new_empty((tokens.shape[0], uniform.shape[1]))
