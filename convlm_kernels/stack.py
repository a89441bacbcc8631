"""``DilatedStack``: a chain of dilated convolutions with activations, gates and residuals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as _module

from . import autograd, backends, stack_autograd
from .functional import _autocast_enabled
from .geometry import Padding, as_int, resolve_padding
from .layers import CausalConv1d, Conv1d


class StackLayer(Conv1d):
    """One layer of a :class:`DilatedStack`: a convolution, then a gate or an activation.

    ``gated``, as in WaveNet (van den Oord et al., 2016, arXiv 1609.03499): the convolution makes
    2 * ``out_channels`` channels a, b, and the layer gives tanh(a) * sigmoid(b).
    ``residual``: the layer's input is added to that, its last positions where padding does not
    keep the length.

    Shape:
        (batch, in_channels, length) to (batch, out_channels, out_length).

    Raises:
        ValueError: ``gated`` with an ``activation``; ``residual`` with other ``out_channels`` than
            ``in_channels``; and what :class:`Conv1d` refuses.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        padding: Padding = "causal",
        dilation: int = 1,
        bias: bool = True,
        *,
        activation: str | None = None,
        gated: bool = False,
        residual: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        backend: str = "auto",
    ) -> None:
        if gated and activation is not None:
            raise ValueError(
                f"gated is an activation itself; activation must be None, got {activation!r}"
            )
        if residual and in_channels != out_channels:
            raise ValueError(
                f"residual needs out_channels == in_channels, got {out_channels} and {in_channels}"
            )
        super().__init__(
            in_channels,
            2 * out_channels if gated else out_channels,
            kernel_size,
            padding=padding,
            dilation=dilation,
            bias=bias,
            device=device,
            dtype=dtype,
            activation=activation,
            backend=backend,
        )
        self.gated = gated
        self.residual = residual

    def forward(self, input: Tensor) -> Tensor:
        y = super().forward(input)
        if self.gated:
            y = stack_autograd.gate(y)
        return y + input[..., input.shape[-1] - y.shape[-1] :] if self.residual else y

    def extra_repr(self) -> str:
        words = [name for name in ("gated", "residual") if getattr(self, name)]
        return ", ".join([super().extra_repr(), *(f"{word}=True" for word in words)])


@dataclass(frozen=True)
class StackPlan:
    """How a :class:`DilatedStack` runs an input."""

    fused: bool
    reason: str  # why not fused; "" where it is

    def __str__(self) -> str:
        return "one fused operator" if self.fused else f"layer by layer: {self.reason}"


class DilatedStack(nn.Sequential):
    """Layers one after the other, as in ``torch.nn.Sequential``, whose ``state_dict`` it has.

    On the CPU a chain of :class:`StackLayer`, :class:`Conv1d` or :class:`CausalConv1d` of stride 1,
    without groups and with padding on the left only, runs as one operator: activations stay in
    cache, and one call gives all gradients. Anything else, or hooks on a layer, and it runs layer
    by layer; :meth:`plan` says why.

    Shape:
        (batch, in_channels, length) or (in_channels, length), as its first layer takes, to the same
        with the last layer's ``out_channels`` and ``out_length``.
    """

    def __init__(self, *layers: Any) -> None:
        super().__init__(*layers)

    def forward(self, input: Tensor) -> Tensor:
        if self._reason_not_fused(input) is not None:
            return super().forward(input)
        x = input.unsqueeze(0) if input.dim() == 2 else input
        layers: list[Any] = list(self)
        weights = [layer.weight for layer in layers]
        biases = [x.new_empty(0) if layer.bias is None else layer.bias for layer in layers]
        y = stack_autograd.stack(x, None, weights, biases, self._settings(layers))
        return y.squeeze(0) if input.dim() == 2 else y

    def plan(self, input: Tensor) -> StackPlan:
        """Whether ``input`` would run fused, and if not, why."""
        reason = self._reason_not_fused(input)
        return StackPlan(reason is None, reason or "")

    @staticmethod
    def _settings(layers: list[Any]) -> stack_autograd.Settings:
        gated = [isinstance(layer, StackLayer) and layer.gated for layer in layers]
        return stack_autograd.Settings(
            [as_int("dilation", layer.dilation) for layer in layers],
            [_pads(layer)[0] for layer in layers],
            [
                "gate" if gate else layer.activation or "none"
                for layer, gate in zip(layers, gated, strict=True)
            ],
            [int(isinstance(layer, StackLayer) and layer.residual) for layer in layers],
        )

    def _reason_not_fused(self, input: Tensor) -> str | None:
        if not len(self):
            return "it has no layers"
        if input.device.type != "cpu":
            return f"the fused kernel runs on the CPU, not on {input.device.type}"
        if input.dtype not in backends.KERNEL_DTYPES:
            return f"there is no kernel for {input.dtype}"
        if input.dim() not in (2, 3):
            return f"the input has {input.dim()} dimensions"
        if _autocast_enabled("cpu"):
            return "autocast is on"
        if autograd._transformed():
            return "a torch.func transform or forward-mode differentiation is active"
        for name, layer in self._modules.items():
            reason = _reason_not_fusable(layer, input)
            if reason is not None:
                return f"layer {name} {reason}"
        return None


def _pads(layer: Conv1d) -> tuple[int, int]:
    dilation = as_int("dilation", layer.dilation)
    return resolve_padding(layer.padding, layer.kernel_size[0], 1, dilation)


# Above so many channels the layers' own kernels, with fast filtering, are measured to be faster.
_WIDEST = 128


def _reason_not_fusable(layer: Any, input: Tensor) -> str | None:
    if type(layer) not in (StackLayer, Conv1d, CausalConv1d):
        return f"is a {type(layer).__name__}"
    if layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks:
        return "has hooks"
    if layer._backward_pre_hooks or _module._has_any_global_hook():
        return "has hooks"
    if layer.backend not in ("auto", "cpp"):
        return f"asks for backend={layer.backend!r}"
    if layer.weight.dtype != input.dtype or layer.weight.device != input.device:
        return "has another dtype or device than the input"
    if as_int("stride", layer.stride) != 1:
        return f"has stride {as_int('stride', layer.stride)}"
    if layer.groups != 1:
        return f"has {layer.groups} groups"
    if layer.padding_mode != "zeros":
        return f"pads by {layer.padding_mode!r}"
    if _pads(layer)[1] != 0:
        return "pads on the right"
    if max(layer.in_channels, layer.out_channels) > _WIDEST:
        return f"has more than {_WIDEST} channels"
    return None
