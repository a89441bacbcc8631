"""The step of stochastic gradient descent, in one call for all parameters."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from . import _library  # noqa: F401  (importing it loads the operators)

sgd_ = torch.ops.convlm.sgd_.default


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


@torch.no_grad()
def sgd_step(parameters: Iterable[Tensor], lr: float) -> None:
    """parameter -= lr * parameter.grad, in place, for each parameter that has a gradient.

    What ``torch.optim.SGD`` without momentum does, at a fraction of its overhead: a plain loop over
    a small model spends more time in an optimizer than in the model. 16-bit parameters are computed
    in float32 and rounded once. Any device; the kernel is for the CPU.

    Raises:
        RuntimeError: a gradient whose shape, dtype or device is not its parameter's; on the CPU, a
            dtype other than float32, float64, bfloat16 and float16.
    """
    updated = [p for p in parameters if p.grad is not None]
    gradients: list[Tensor] = [p.grad for p in updated]  # type: ignore[misc]
    if not updated:
        return
    if all(p.is_cpu for p in updated):
        sgd_(updated, gradients, lr)
    else:
        torch._foreach_add_(updated, gradients, alpha=-lr)
