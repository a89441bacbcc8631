"""The step of stochastic gradient descent, in one call for all parameters."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version

from . import _library  # noqa: F401  (importing it loads the operators)

sgd_ = torch.ops.convlm.sgd_.default

PLAIN = (nn.Parameter, Tensor)  # and no subclass, such as DTensor


@torch.library.register_fake("convlm::sgd_")
def _sgd_fake(parameters: list[Tensor], gradients: list[Tensor], lr: float) -> None:
    """The checks of ``csrc/checks.h``; there is no result."""
    torch._check(
        len(parameters) == len(gradients),
        lambda: (
            "sgd_: there must be a gradient for each parameter, "
            f"got {len(gradients)} for {len(parameters)}"
        ),
    )


def sgd_step(parameters: Iterable[Tensor], lr: float) -> None:
    """parameter -= lr * parameter.grad, in place, for each parameter that has a gradient.

    What ``torch.optim.SGD`` without momentum does, at a fraction of its overhead: a plain loop over
    a small model spends more time in an optimizer than in the model. 16-bit parameters are computed
    in float32 and rounded once. Any device, and sharded (``DTensor``) parameters; the kernel is for
    plain tensors on the CPU.

    Raises:
        RuntimeError: a gradient whose shape, dtype or device is not its parameter's; on the CPU, a
            dtype other than float32, float64, bfloat16 and float16.
        TypeError: one tensor, where there must be an iterable of them.
    """
    if isinstance(parameters, Tensor):
        raise TypeError("parameters must be an iterable of Tensors, got a Tensor")
    if torch.is_grad_enabled():
        with torch.no_grad():
            return sgd_step(parameters, lr)
    updated, gradients, native = [], [], True
    for parameter in parameters:
        gradient = parameter.grad
        if gradient is not None:
            updated.append(parameter)
            gradients.append(gradient)
            native &= parameter.is_cpu and type(parameter) in PLAIN
    if not updated:
        return
    if native:
        try:
            sgd_(updated, gradients, lr)
        except NotImplementedError:  # a sparse gradient, as that of an embedding
            native = False
        else:
            mark_changed(updated)
    if not native:
        torch._foreach_add_(updated, gradients, alpha=-lr)


def mark_changed(tensors: Iterable[Tensor]) -> None:
    """Counts a change that an operator made in place, of which torch knows nothing.

    Caches of packed weights and the checks of autograd go by these counts.
    """
    if not torch.compiler.is_compiling():  # which counts itself
        increment_version(tensors)
