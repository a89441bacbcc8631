"""Which modules do nothing but what their parameters say: a kernel may stand for these alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as _module

# Where the methods are defined of which settings and parameters tell all.
_KNOWN = frozenset(
    [f"torch.nn.modules.{name}" for name in ("container", "conv", "linear", "sparse")]
    + [f"{__package__}.{name}" for name in ("embedding_layer", "layers", "stack", "stack_layers")]
    + [f"{__package__}.lm.{name}" for name in ("char_model", "dilated", "models")]
)


def has_hooks(module: nn.Module) -> bool:
    """Whether a call of ``module`` does more than the forward of its class, by what is its own."""
    own = module.__dict__  # in less time than attributes are found
    return bool(
        own["_forward_hooks"]
        or own["_forward_pre_hooks"]
        or own["_backward_hooks"]
        or own["_backward_pre_hooks"]
        or "forward" in own
        or "_conv_forward" in own
    )


def has_global_hooks() -> bool:
    """Whether a call of any module does more than its forward."""
    return bool(_module._has_any_global_hook())


def have_gradient_hooks(parameters: Iterable[Tensor | None]) -> bool:
    """Whether autograd does more with a gradient of theirs than to leave it in ``.grad``."""
    for p in parameters:
        if p is not None and (p._backward_hooks or p._post_accumulate_grad_hooks):
            return True
    return False


def reason_overridden(module: nn.Module, methods: tuple[str, ...]) -> str | None:
    """Why ``module`` may compute what neither torch nor this package wrote in these, or None."""
    kind, own = type(module), module.__dict__
    derived = kind.__module__ not in _KNOWN
    for method in methods:
        if method in own or (derived and getattr(kind, method).__module__ not in _KNOWN):
            return f"has its own {method}"
    return None


def reason_to_call(module: nn.Module) -> str | None:
    """Why only a call of ``module`` tells its result, or None; its gradients aside.

    Its class may be another's, as a parametrization derives one, but not the methods.
    """
    if has_hooks(module):
        return "has hooks"
    if isinstance(module, nn.Embedding) and module.max_norm is not None:
        return "has a max_norm"
    methods: tuple[str, ...] = ("forward",)
    if isinstance(module, nn.Conv1d):
        methods = ("forward", "_conv_forward")
    return reason_overridden(module, methods)


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
