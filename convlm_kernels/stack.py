"""``DilatedStack``: a chain of dilated convolutions with activations, gates and residuals."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .geometry import Padding
from .layers import Conv1d
from .streaming import Streaming


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
            a, b = y.chunk(2, dim=-2)
            y = torch.tanh(a) * torch.sigmoid(b)
        return y + input[..., input.shape[-1] - y.shape[-1] :] if self.residual else y

    def extra_repr(self) -> str:
        words = [name for name in ("gated", "residual") if getattr(self, name)]
        return ", ".join([super().extra_repr(), *(f"{word}=True" for word in words)])


class DilatedStack(Streaming, nn.Sequential):
    """Layers one after the other, as in ``torch.nn.Sequential``, whose ``state_dict`` it has."""

    def __init__(self, *layers: Any) -> None:
        super().__init__(*layers)
