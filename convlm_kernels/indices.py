"""Tokens and targets where torch's own operators take them: meant and refused as by the kernels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_NO_CLASS = -(2**63)  # as ignore_index: so that torch ignores none


def embed(tokens: Tensor, embedding: Tensor) -> Tensor:
    """embedding[tokens].mT, (batch, embedding_dim, length).

    Raises:
        RuntimeError: a token outside the vocabulary, on the CPU.
    """
    try:
        return F.embedding(tokens, embedding).transpose(1, 2)
    except IndexError:
        refuse_outside("tokens", tokens, "vocab", embedding.shape[0])
        raise


def cross_entropy(logits: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """Softmax cross-entropy of every position; no class is ignored, also not -100.

    Shapes: logits (batch, classes, length), target (batch, length), int64 or int32; a scalar, or
    with the reduction "none" (batch, length). A target outside [0, classes) is an error where its
    value can be looked at without waiting for it, and gives NaN elsewhere: on a GPU and compiled.

    Raises:
        ValueError: an unknown reduction.
        RuntimeError: such a target, or one of another shape or dtype; names it.
    """
    check_reduction(reduction)
    batch, classes, length = logits.shape
    if target.dtype not in (torch.int64, torch.int32):
        raise RuntimeError(f"target must be int64 or int32, got {target.dtype}")
    if target.shape != (batch, length):
        raise RuntimeError(
            f"target must have the shape ({batch}, {length}), got {tuple(target.shape)}"
        )
    target = target.long()
    if logits.is_cpu and not torch.compiler.is_compiling():
        try:
            return F.cross_entropy(logits, target, reduction=reduction, ignore_index=_NO_CLASS)
        except IndexError:
            refuse_outside("target", target, "out_channels", classes)
            raise
    outside = (target < 0) | (target >= classes)
    losses = F.cross_entropy(logits, target.masked_fill(outside, 0), reduction="none")
    losses = losses.masked_fill(outside, torch.nan)
    if reduction == "none":
        return losses
    return losses.sum() if reduction == "sum" else losses.mean()


def check_reduction(reduction: str) -> None:
    """Raises ValueError unless it is one of a loss of ours."""
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}")


def refuse_outside(argument: str, indices: Tensor, size: str, count: int) -> None:
    """Raises RuntimeError for the first outside [0, count), in the words of ``csrc/cpu/tokens.h``.

    For where torch has raised an IndexError that names none.
    """
    outside = ((indices < 0) | (indices >= count)).nonzero().tolist()
    if outside:
        where = tuple(outside[0])
        raise RuntimeError(
            f"{argument} must lie in [0, {size} = {count}), got {indices[where].item()} at {where}"
        ) from None
