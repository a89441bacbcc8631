"""Which modules do nothing but what their parameters say: a kernel may stand for these alone."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules import module as _module


def has_hooks(module: nn.Module) -> bool:
    """Whether a call of ``module`` does more than the forward of its class, by what is its own."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
    )


def has_global_hooks() -> bool:
    """Whether a call of any module does more than its forward."""
    return bool(_module._has_any_global_hook())


def reason_not_a_plain_embedding(embedding: Any) -> str | None:
    """Why ``embedding`` must be called itself, or None; the gradient may spare a padding_idx."""
    if type(embedding) is not nn.Embedding:
        return f"is a {type(embedding).__name__}"
    if has_hooks(embedding):
        return "has hooks"
    if embedding.max_norm is not None:
        return "has a max_norm"
    if embedding.scale_grad_by_freq or embedding.sparse:
        return "has gradients that are scaled or sparse"
    return None
