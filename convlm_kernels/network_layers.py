"""The layers of a chain of causal convolutions as a step sees them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .activations import ACTIVATIONS
from .backends import KERNEL_DTYPES
from .functional import check_activation
from .geometry import as_int, resolve_padding
from .lookup import by_tap
from .plain import reason_to_call

# As in csrc/step.h.
_PANEL, _FILL = 64, 16


class NetworkLayer(NamedTuple):
    """A layer as a step sees it; the fields of ``StepLayer`` in csrc/step.h, and its module.

    A first layer of one channel and stride s, over an input that is s numbers a position laid end
    to end, as a layer of s channels and stride 1: that is what it is.
    """

    module: Any  # with a weight, and a bias or None
    in_channels: int
    out_channels: int
    groups: int
    kernel_size: int
    dilation: int
    pad_left: int
    activation: str | None
    gated: bool
    residual: bool

    @property
    def slots(self) -> int:
        return self.dilation * (self.kernel_size - 1)

    @property
    def lag(self) -> int:
        return self.slots - self.pad_left

    @property
    def results(self) -> int:
        return self.out_channels // 2 if self.gated else self.out_channels

    # Not a property: the compiler of torch 2.10 knows none of a tuple.
    def weight(self) -> Tensor:
        """(out_channels, in_channels / groups, kernel_size)."""
        return by_tap(self.module.weight, self.in_channels // self.groups)

    def row(self) -> list[int]:
        numbers = self[1:7]
        activation = 0 if self.activation is None else 1 + list(ACTIVATIONS).index(self.activation)
        return [*numbers, activation, int(self.gated), int(self.residual)]

    def packed_weight(self, dtype: torch.dtype) -> Tensor:
        """The weight in the order in which a step reads it (``StepLayer::weight_size``)."""
        weight = self.weight().to(dtype)
        if self.groups == self.in_channels == self.out_channels:
            return _filled(weight[:, 0].T).flatten()
        grouped = weight.unflatten(0, (self.groups, -1))
        channels_outside = self.kernel_size > weight.shape[1]
        order = (0, 2, 3, 1) if channels_outside else (0, 3, 2, 1)
        steps = grouped.permute(order).flatten(1, 2)  # (groups, steps, outputs)
        steps = F.pad(steps, (0, 0, 0, steps.shape[1] % 2))
        panels = [_filled(panel) for panel in steps.split(_PANEL, dim=2)]
        if dtype == torch.bfloat16:
            panels = [panel.unflatten(1, (-1, 2)).mT for panel in panels]
        return torch.cat([panel.flatten(1) for panel in panels], dim=1).flatten()

    def packed_bias(self, dtype: torch.dtype) -> Tensor:
        bias = self.module.bias
        if bias is None:
            bias = torch.zeros(self.out_channels, device=self.module.weight.device)
        return F.pad(_filled(bias.to(dtype)), (0, _FILL))


def _filled(tensor: Tensor) -> Tensor:
    return F.pad(tensor, (0, -tensor.shape[-1] % _FILL))


def layers_of(module: nn.Module, first: nn.Module | None = None) -> list[NetworkLayer]:
    """The layers of a convolution, or of a chain of them (``nn.Sequential``, also nested).

    ``first``, if there is one, stands for the first layer: what follows the embedding in it.

    Raises:
        ValueError: a layer that cannot take one position at a time; names it and says why.
    """
    layers: list[NetworkLayer] = []
    for name, child in _chain(module, ""):
        if first is not None and not layers:
            child = first
        reason = _why_not(child, first=not layers)
        if reason is not None:
            raise cannot_stream(child, reason, name)
        layers.append(_layer_of(child))
    if not layers:
        raise cannot_stream(module, "it has no layers")
    kinds = {(layer.module.weight.dtype, layer.module.weight.device) for layer in layers}
    if len(kinds) > 1:
        raise ValueError(f"layers cannot stream together in several dtypes or devices: {kinds}")
    return layers


def cannot_stream(module: nn.Module, reason: str, name: str = "") -> ValueError:
    """The error that names ``module``, a layer where it has a ``name``, and says why."""
    kind = type(module).__name__
    where = f"layer {name!r} ({kind})" if name else kind
    return ValueError(f"{where} cannot stream: {reason}")


def check_is_plain(module: nn.Module, name: str = "") -> None:
    """Raises ValueError, with the reason, unless steps may stand for calls of ``module``."""
    reason = reason_to_call(module)
    if reason is not None:
        raise cannot_stream(module, f"it {reason}", name)


def check_is_plain_embedding(embedding: nn.Module, module: nn.Module) -> None:
    """The same for the ``embedding`` of ``module``."""
    reason: str | None = f"is a {type(embedding).__name__}"
    if isinstance(embedding, nn.Embedding):
        reason = reason_to_call(embedding)
    if reason is not None:
        raise cannot_stream(module, f"its embedding {reason}")


def _chain(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    if not isinstance(module, nn.Sequential):
        yield name, module
        return
    check_is_plain(module, name)
    for child_name, child in module._modules.items():  # each as often as it is called
        yield from _chain(child, f"{name}.{child_name}".lstrip("."))


def _why_not(module: nn.Module, first: bool) -> str | None:
    if not isinstance(module, nn.Conv1d):
        return "it is not a Conv1d"
    called = reason_to_call(module)
    if called is not None:
        return f"it {called}"
    if module.weight.dtype not in KERNEL_DTYPES:
        return f"there is no kernel for {module.weight.dtype}"
    if module.padding_mode != "zeros":
        return f"padding_mode must be 'zeros', got {module.padding_mode!r}"
    check_activation(getattr(module, "activation", None))
    if getattr(module, "gated", False) and module.activation is not None:
        return "it has a gate and an activation"
    stride = as_int("stride", module.stride)
    _, channels, kernel_size = module.weight.shape
    dilation, padding = as_int("dilation", module.dilation), module.padding
    if stride != 1:
        one_channel = channels == module.groups == 1
        if not (first and one_channel and dilation == 1 and kernel_size % stride == 0):
            return (
                f"stride must be 1, got {stride} (a first layer of one channel, without dilation, "
                "may have one that divides its kernel_size: a position is then so many numbers)"
            )
        if resolve_padding(padding, kernel_size, stride, dilation) != (0, 0):
            return f"with a stride padding must be 0, got {padding!r}"
        return None
    left, right = resolve_padding(padding, kernel_size, stride, dilation)
    reach = dilation * (kernel_size - 1)
    if right or left > reach:
        return (
            f"an output may depend on no later input, so padding must be 'causal' or at most "
            f"({reach}, 0), got {padding!r}"
        )
    return None


def _layer_of(module: Any) -> NetworkLayer:
    stride, dilation = as_int("stride", module.stride), as_int("dilation", module.dilation)
    out_channels, in_channels, kernel_size = module.weight.shape  # not as it was made with
    pad_left, _ = resolve_padding(module.padding, kernel_size, stride, dilation)
    return NetworkLayer(
        module,
        in_channels * module.groups * stride,
        out_channels,
        module.groups,
        kernel_size // stride,
        dilation,
        pad_left,
        getattr(module, "activation", None),
        getattr(module, "gated", False),
        getattr(module, "residual", False),
    )
