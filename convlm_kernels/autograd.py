"""Differentiation of the convolution, written once for every backend.

With T(x, weight, g) = sum(g * conv(x, weight)), linear in each of its three arguments, the three
operators are the gradients of T:

    forward(x, weight)     = dT/dg
    grad_input(g, weight)  = dT/dx
    grad_weight(g, x)      = dT/dweight

So the derivatives of each one are the two others, to any order, and that is all this file says.

``window`` stands for the settings (stride, pad_left, pad_right, dilation, groups, fp32_precision)
throughout, ``kernels`` for an entry of ``ops.OPERATORS``: whose three operators compute them. What
is no tensor is one tuple, ``settings``: a function takes longer to call for each input that it has.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .activations import FROM_OUTPUT, activate
from .ops import OPERATORS, composite, gradients
from .transforms import apply_transformed, direct, transformed

Window = tuple[int, int, int, int, int, str]

_grad_enabled = torch.is_grad_enabled
_exporting = torch.compiler.is_exporting
_is_legacy_batchedtensor = torch._C._functorch.is_legacy_batchedtensor


class _Forward(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, settings: Any) -> Tensor:
        window, activation, kernels = settings
        return OPERATORS[kernels].forward(x, weight, bias, *window, activation)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, weight, _, settings = inputs
        ctx.settings = x.shape[2], weight.shape[2], *settings
        # Needed or not: torch.vmap wants both lists alike and without None.
        ctx.save_for_backward(x, weight, output)
        ctx.save_for_forward(x, weight, output)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Any:
        if _grad_enabled():
            refuse_batched_graph(grad_output)
        x, weight, y = ctx.saved_tensors
        length, kernel_size, window, activation, kernels = ctx.settings
        x_needed, weight_needed, bias_needed, _ = ctx.needs_input_grad
        grad_x = grad_w = grad_b = None
        if activation != "none":
            in_kernels = _kernels_take_derivatives(grad_output, kernels)
            if in_kernels and not (_grad_enabled() or transformed()):
                return _activated_backward(ctx, grad_output, x, weight, y)
            grad_output = FROM_OUTPUT[activation](grad_output, y)
        both = x_needed and weight_needed and kernels == "native" and grad_output.is_cpu
        if both and not (_grad_enabled() or transformed()):
            # What reads the same memory can do so in one pass.
            grad_x, grad_w, grad_b = gradients(grad_output, x, weight, *window, bias_needed)
            return grad_x, grad_w, grad_b if bias_needed else None, None
        if x_needed:
            grad_x = grad_input(grad_output, weight, length, window, kernels)
        if weight_needed:
            grad_w, grad_b = grad_weight(grad_output, x, kernel_size, window, bias_needed, kernels)
        elif bias_needed:
            grad_b = grad_output.sum((0, 2))
        return grad_x, grad_w, grad_b if bias_needed else None, None

    @staticmethod
    def jvp(ctx: Any, x_tangent: Any, weight_tangent: Any, bias_tangent: Any, _: None) -> Tensor:
        x, weight, y = ctx.saved_tensors
        _, _, window, activation, kernels = ctx.settings
        if weight_tangent is None:
            weight_tangent = torch.zeros_like(weight)
        tangent = forward(x, weight_tangent, bias_tangent, window, kernels=kernels)
        if x_tangent is not None:
            tangent = tangent + forward(x_tangent, weight, None, window, kernels=kernels)
        return tangent if activation == "none" else FROM_OUTPUT[activation](tangent, y)


def is_grads_batched(grad_output: Tensor) -> bool:
    """Whether it stands for many, as under ``is_grads_batched=True``."""
    return not torch.compiler.is_compiling() and _is_legacy_batchedtensor(grad_output)


def refuse_batched_graph(grad_output: Tensor) -> None:
    """RuntimeError where gradients of a batch would have no graph, and say nothing.

    The vmap behind ``is_grads_batched`` does not know what an autograd.Function is.
    """
    if is_grads_batched(grad_output):
        raise RuntimeError(
            "batched gradients (is_grads_batched=True, or vectorize=True) cannot be differentiated "
            "again: leave out create_graph=True, or take them by torch.func or in a loop"
        )


def _kernels_take_derivatives(grad_output: Tensor, kernels: str) -> bool:
    """Whether an activation's derivative costs a kernel less than a pass of its own.

    The two CPU kernels would make the product twice.
    """
    return grad_output.is_cuda or kernels == "triton"


def _activated_backward(
    ctx: Any, grad_output: Tensor, x: Tensor, weight: Tensor, y: Tensor
) -> tuple[Any, ...]:
    """The first derivatives by kernels that multiply by the activation's on their way."""
    length, kernel_size, window, activation, kernels = ctx.settings
    operators = OPERATORS[kernels]
    x_needed, weight_needed, bias_needed, _ = ctx.needs_input_grad
    grad_x = grad_w = grad_b = None
    if x_needed:
        grad_x = operators.grad_input(grad_output, weight, length, *window, y, activation)
    if weight_needed:
        grad_w, grad_b = operators.grad_weight(
            grad_output, x, kernel_size, *window, bias_needed, y, activation
        )
    elif bias_needed:
        grad_b = FROM_OUTPUT[activation](grad_output, y).sum((0, 2))
    return grad_x, grad_w, grad_b if bias_needed else None, None


class _GradInput(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(grad_output: Tensor, weight: Tensor, settings: Any) -> Tensor:
        length, window, kernels = settings
        return OPERATORS[kernels].grad_input(grad_output, weight, length, *window)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        grad_output, weight, ctx.settings = inputs
        ctx.save_for_backward(grad_output, weight)
        ctx.save_for_forward(grad_output, weight)

    @staticmethod
    def backward(ctx: Any, grad_x: Tensor) -> Any:
        grad_output, weight = ctx.saved_tensors
        _, window, kernels = ctx.settings
        grad_grad_output = grad_w = None
        if ctx.needs_input_grad[0]:
            grad_grad_output = forward(grad_x, weight, None, window, kernels=kernels)
        if ctx.needs_input_grad[1]:
            grad_w, _ = grad_weight(grad_output, grad_x, weight.shape[2], window, False, kernels)
        return grad_grad_output, grad_w, None

    @staticmethod
    def jvp(ctx: Any, grad_output_tangent: Any, weight_tangent: Any, _: None) -> Tensor:
        grad_output, weight = ctx.saved_tensors
        if weight_tangent is None:
            weight_tangent = torch.zeros_like(weight)
        tangent = grad_input(grad_output, weight_tangent, *ctx.settings)
        if grad_output_tangent is not None:
            tangent = tangent + grad_input(grad_output_tangent, weight, *ctx.settings)
        return tangent


class _GradWeight(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(grad_output: Tensor, x: Tensor, settings: Any) -> tuple[Tensor, Tensor]:
        kernel_size, window, with_bias, kernels = settings
        return OPERATORS[kernels].grad_weight(grad_output, x, kernel_size, *window, with_bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        grad_output, x, ctx.settings = inputs
        ctx.save_for_backward(grad_output, x)
        ctx.save_for_forward(grad_output, x)

    @staticmethod
    def backward(ctx: Any, grad_w: Tensor, grad_b: Tensor) -> Any:
        grad_output, x = ctx.saved_tensors
        _, window, with_bias, kernels = ctx.settings
        grad_grad_output = grad_x = None
        if ctx.needs_input_grad[0]:
            bias = grad_b if with_bias else None
            grad_grad_output = forward(x, grad_w, bias, window, kernels=kernels)
        if ctx.needs_input_grad[1]:
            grad_x = grad_input(grad_output, grad_w, x.shape[2], window, kernels)
        return grad_grad_output, grad_x, None

    @staticmethod
    def jvp(ctx: Any, grad_output_tangent: Any, x_tangent: Any, _: None) -> tuple[Tensor, Tensor]:
        grad_output, x = ctx.saved_tensors
        if grad_output_tangent is None:
            grad_output_tangent = torch.zeros_like(grad_output)
        w_tangent, b_tangent = grad_weight(grad_output_tangent, x, *ctx.settings)
        if x_tangent is not None:
            w_tangent = w_tangent + grad_weight(grad_output, x_tangent, *ctx.settings)[0]
        return w_tangent, b_tangent


def _forward_and_save(
    ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, settings: Any
) -> Tensor:
    window, activation, kernels = settings
    y = OPERATORS[kernels].forward(x, weight, bias, *window, activation)
    x_needed, weight_needed, _, _ = ctx.needs_input_grad
    ctx.settings = x.shape[2], weight.shape[2], *settings
    ctx.save_for_backward(
        x if weight_needed else None,
        weight if x_needed else None,
        None if activation == "none" else y,
    )
    return y


_ForwardDirect = direct(_Forward, _forward_and_save)
_GradInputDirect = direct(_GradInput)
_GradWeightDirect = direct(_GradWeight)


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    window: Window,
    activation: str = "none",
    kernels: str = "native",
    exported: bool = False,
) -> Tensor:
    """activation(conv(x, weight) + bias), differentiable to any order.

    While torch.export looks on it is one operator that calls it with ``exported``: so that what was
    exported can be trained, where the kernels' own operators alone would lose their gradients.

    Shapes: x (batch, in_channels, length), weight (out_channels, in_channels / groups,
    kernel_size), bias (out_channels), result (batch, out_channels, out_length); one dtype.

    Raises:
        RuntimeError: an impossible geometry; names the argument and its value.
    """
    if _exporting() and not exported:
        return exported_forward(x, weight, bias, *window, activation, kernels)
    fused = activation == "none" or activation in FROM_OUTPUT
    settings = window, activation if fused else "none", kernels
    if transformed():
        y = apply_transformed(_Forward, x, weight, bias, settings=settings)
    elif _grad_enabled() and (
        x.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
    ):
        y = _ForwardDirect.apply(x, weight, bias, settings)
    else:
        return OPERATORS[kernels].forward(x, weight, bias, *window, activation)
    return y if fused else activate(y, activation)


def _run_exported(x: Tensor, weight: Tensor, bias: Tensor | None, *settings: Any) -> Tensor:
    *window, activation, kernels = settings
    return forward(x, weight, bias, (*window,), activation, kernels, exported=True)


exported_forward = composite(
    "exported_forward(Tensor x, Tensor weight, Tensor? bias, SymInt stride, SymInt pad_left, "
    "SymInt pad_right, SymInt dilation, SymInt groups, str fp32_precision, str activation, "
    "str kernels) -> Tensor",
    _run_exported,
)


def grad_input(
    grad_output: Tensor, weight: Tensor, length: int, window: Window, kernels: str = "native"
) -> Tensor:
    """Gradient of x, (batch, in_channels, length), differentiable to any order."""
    settings = length, window, kernels
    if transformed():
        return apply_transformed(_GradInput, grad_output, weight, settings=settings)
    if _grad_enabled() and (grad_output.requires_grad or weight.requires_grad):
        return _GradInputDirect.apply(grad_output, weight, settings)
    return OPERATORS[kernels].grad_input(grad_output, weight, length, *window)


def grad_weight(
    grad_output: Tensor,
    x: Tensor,
    kernel_size: int,
    window: Window,
    with_bias: bool,
    kernels: str = "native",
) -> tuple[Tensor, Tensor]:
    """Gradients of weight and of bias (empty unless ``with_bias``), differentiable to any order."""
    settings = kernel_size, window, with_bias, kernels
    if transformed():
        return apply_transformed(_GradWeight, grad_output, x, settings=settings)
    if _grad_enabled() and (grad_output.requires_grad or x.requires_grad):
        return _GradWeightDirect.apply(grad_output, x, settings)
    return OPERATORS[kernels].grad_weight(grad_output, x, kernel_size, *window, with_bias)
