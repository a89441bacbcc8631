"""What torch.func's transforms and forward-mode differentiation ask of an autograd.Function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

_functorch_active = torch._C._are_functorch_transforms_active


def called_directly(function: Any) -> Any:
    """``function``, never called while a transform is active, without the half of ``apply`` that
    is about transforms.
    """
    function.apply = super(torch.autograd.Function, function).apply
    return function


def direct(function: type[torch.autograd.Function], forward: Callable | None = None) -> Any:
    """``function`` without its ``setup_context``, which costs more than the rest of the call.

    Transforms like torch.func.grad need it; while none is active, this does the same. ``forward``
    does the work of both where it need not save all that a transform wants.
    """

    def forward_and_save(ctx: Any, *inputs: Any) -> Any:
        output = function.forward(*inputs)
        function.setup_context(ctx, inputs, output)
        return output

    members = {
        "forward": staticmethod(forward or forward_and_save),
        "backward": staticmethod(function.backward),
    }
    return called_directly(type(f"{function.__name__}Direct", (torch.autograd.Function,), members))


def transformed() -> bool:
    """Whether a torch.func transform or forward-mode differentiation is active."""
    return _functorch_active() or forward_ad._current_level >= 0


class _Opaque(tuple):
    """Settings that torch.vmap takes for one thing, instead of looking for tensors in them."""


def apply_transformed(
    function: type[torch.autograd.Function], *tensors: Tensor | None, settings: tuple[Any, ...]
) -> Any:
    if torch.compiler.is_dynamo_compiling():
        # Compiled, the transform would take this function for a constant and lose its gradient in
        # silence. This way it runs uncompiled, or, with fullgraph=True, says why it cannot.
        torch._dynamo.graph_break("an autograd.Function inside a torch.func transform")
    return function.apply(*tensors, _Opaque(settings))
