"""The layers of a stack: ``StackLayer``, and which layers run fused, and as what."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from . import backends, stack_autograd, stack_ops
from .functional import autocast_enabled, check_activation
from .geometry import Padding, as_int, resolve_padding
from .layers import CausalConv1d, Conv1d, parameters_of
from .plain import has_global_hooks, has_hooks
from .stack_ops import LayerSettings, Settings
from .transforms import transformed


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
        RuntimeError: ``residual`` where padding makes more outputs than there are inputs.
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
        return _add_residual(y, input) if self.residual else y

    def extra_repr(self) -> str:
        words = [name for name in ("gated", "residual") if getattr(self, name)]
        return ", ".join([super().extra_repr(), *(f"{word}=True" for word in words)])


@torch.fx.wrap  # whose proxies have no sizes to compare
def _add_residual(y: Tensor, x: Tensor) -> Tensor:
    """Plus the last positions of the layer's input."""
    first = x.shape[-1] - y.shape[-1]
    if first < 0:
        raise RuntimeError(
            f"residual needs padding that adds no positions, got {y.shape[-1]} outputs of "
            f"{x.shape[-1]} inputs"
        )
    return y + x[..., first:]


# With more channels, fast filtering makes the layers' own kernels faster from three taps on.
_WIDEST = 128


def convolves_embeddings(layer: Any, shape: tuple[int, ...], size: int) -> bool:
    """Whether a plain ``layer``, its weight of this ``shape``, moves by one embedding and without
    padding over embeddings of ``size`` numbers, end to end as one channel: as a look-up does.
    """
    return (
        layer.stride == (size,)
        and layer.padding == (0,)
        and layer.dilation == (1,)
        and layer.groups == 1
        and len(shape) == 3
        and shape[1] == 1
        and shape[2] % size == 0
        and type(layer) is not StackLayer  # a look-up has no gates and residuals
    )


# Weights, biases and settings of layers that run as one operator.
Operands = tuple[list[Tensor], list[Tensor | None], Settings]


def operands_of(
    layers: Iterable[Any], x: Tensor, kernels: str = "native", end_to_end: int = 0
) -> Operands | tuple[int, str]:
    """What the fused operators take of ``layers`` on ``x``, a signal or an embedding.

    Or the number of the first one that they cannot run, and why. ``end_to_end`` is the size of the
    embeddings that the first layer takes, if it is to be one that :func:`convolves_embeddings`.
    """
    weights, biases, rows = [], [], []
    for number, layer in enumerate(layers):
        reason = reason_not_a_plain_layer(layer, x, kernels)
        if reason is not None:
            return number, reason
        weight, bias = parameters_of(layer)
        shape = weight.shape  # which may be another than the layer was made with
        if end_to_end and number == 0 and not convolves_embeddings(layer, shape, end_to_end):
            return 0, "does not move by one embedding"
        weights.append(weight)
        biases.append(bias)
        gated, residual = False, False
        if type(layer) is StackLayer:
            gated, residual = layer.gated, layer.residual
        rows.append(  # what _row is told
            (
                layer.stride,
                layer.padding,
                layer.dilation,
                layer.groups,
                layer.padding_mode,
                layer.activation,
                gated,
                residual,
                shape,
            )
        )
    settings = _settings_of(tuple(rows), end_to_end)
    return settings if isinstance(settings, tuple) else (weights, biases, settings)


def _settings_of(rows: tuple[tuple[Any, ...], ...], end_to_end: int) -> Settings | tuple[int, str]:
    if torch.compiler.is_compiling():
        return _judge(rows, end_to_end)
    try:
        return _remembered(rows, end_to_end)
    except TypeError:  # a list among them, which cannot be looked up
        return _judge(rows, end_to_end)


def _judge(rows: tuple[tuple[Any, ...], ...], end_to_end: int) -> Settings | tuple[int, str]:
    if end_to_end:
        (_, *settings, shape), *others = rows
        by_tap = shape[0], end_to_end, shape[2] // end_to_end
        rows = ((1, *settings, by_tap), *others)
    found = []
    for number, row in enumerate(rows):
        layer = _row(*row)
        if isinstance(layer, str):
            return number, layer
        found.append(layer)
    return stack_ops.settings_of(found)


_remembered = functools.lru_cache(maxsize=256)(_judge)


def _row(
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    padding_mode: str,
    activation: str | None,
    gated: bool,
    residual: bool,
    shape: tuple[int, ...],
) -> LayerSettings | str:
    """A layer's settings, or why there are none."""
    check_activation(activation)
    stride, dilation = as_int("stride", stride), as_int("dilation", dilation)
    if len(shape) != 3:
        return f"has a weight of {len(shape)} dimensions"
    out_channels, in_channels, taps = shape
    if stride != 1:
        return f"has stride {stride}"
    if groups != 1:
        return f"has {groups} groups"
    if padding_mode != "zeros":
        return f"pads by {padding_mode!r}"
    left, right = resolve_padding(padding, taps, 1, dilation)
    if right != 0:
        return "pads on the right"
    if residual and left > dilation * (taps - 1):
        return "has a residual and more positions than its input"
    if gated and activation is not None:
        return "has a gate and an activation"
    if taps > 2 and min(in_channels, out_channels) > _WIDEST:
        return f"has more than {_WIDEST} channels and more than two taps"
    return LayerSettings(dilation, left, "gate" if gated else activation or "none", residual)


def reason_not_fusable(x: Tensor, kernels: str = "native") -> str | None:
    """Why no stack runs fused on ``x``, a signal or an embedding, or None."""
    if not x.is_cpu and x.device.type != "cuda":
        return f"the fused kernels run on CPUs and CUDA devices, not on {x.device.type}"
    if x.dtype not in backends.KERNEL_DTYPES:
        return f"there is no kernel for {x.dtype}"
    reason = None
    if kernels == "triton":
        reason = backends.reason_no_triton_kernels(x.dtype, x.device)
    elif x.is_cuda:
        reason = backends.reason_no_cuda_kernels(x.dtype, x.device)
    if reason is not None:
        return reason
    if autocast_enabled(x):
        return "autocast is on"
    if transformed():
        return "a torch.func transform or forward-mode differentiation is active"
    if has_global_hooks():
        return "there are hooks on all modules"
    if kernels == "native" and backends.is_traced():
        return "torch.jit.trace is active"
    return None


def reason_not_a_plain_layer(layer: Any, x: Tensor, kernels: str = "native") -> str | None:
    """Why ``layer`` must be called itself, whatever its geometry, or None."""
    if type(layer) not in _PLAIN:
        return f"is a {type(layer).__name__}"
    if has_hooks(layer):
        return "has hooks"
    backend = layer.backend
    if kernels != "native":
        asked = backend == kernels
    else:
        asked = backend == "cuda" if x.is_cuda else backend in ("auto", "cpp")
    if not asked:
        return f"asks for backend={backend!r}"
    weight, _ = parameters_of(layer)
    on_cpu = weight.is_cpu and x.is_cpu  # in less time than devices are made and compared
    if weight.dtype != x.dtype or not (on_cpu or weight.device == x.device):
        return "has another dtype or device than the input"
    return None


_PLAIN = frozenset({StackLayer, Conv1d, CausalConv1d})
