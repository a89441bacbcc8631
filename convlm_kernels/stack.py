"""``DilatedStack``: a chain of dilated convolutions with activations, gates and residuals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from . import autograd, backends, stack_autograd, stack_ops
from .embedding import _without_gradient
from .embedding_layer import EmbeddingConv1d
from .functional import _autocast_enabled
from .geometry import Padding, as_int, resolve_padding
from .layers import CausalConv1d, Conv1d
from .network import NetworkLayer
from .plain import has_hooks, reason_not_a_plain_embedding
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


@dataclass(frozen=True)
class StackPlan:
    """How a :class:`DilatedStack` runs an input."""

    fused: bool
    reason: str  # why not fused; "" where it is
    # Over tokens, of each layer: the rows that are computed, and the positions they stand for.
    rows: tuple[int, ...] = ()
    positions: tuple[int, ...] = ()

    def __str__(self) -> str:
        if not self.fused:
            return f"layer by layer: {self.reason}"
        lines = ["one fused operator"]
        for layer, (rows, positions) in enumerate(zip(self.rows, self.positions, strict=True)):
            if rows < positions:
                lines.append(f"layer {layer}: {rows} distinct contexts for {positions} positions")
            elif layer + 1 == len(self.rows):
                lines.append(f"layer {layer}: {positions} positions, the result")
            else:
                lines.append(f"layer {layer}: {positions} positions, more than half distinct")
        return "\n".join(lines)


class DilatedStack(Streaming, nn.Sequential):
    """Layers one after the other, as in ``torch.nn.Sequential``, whose ``state_dict`` it has.

    A chain of :class:`StackLayer`, :class:`Conv1d` or :class:`CausalConv1d` of stride 1, without
    groups and with padding on the left only, runs as one operator: activations stay in cache, and
    one call gives all gradients. Anything else, or hooks on a layer, and it runs layer by layer;
    :meth:`plan` says why. So it does on a GPU, unless all layers ask for ``backend="cuda"`` and a
    sample fits the shared memory of a block: then forward is one launch, and backward two.

    The first layer may be an :class:`EmbeddingConv1d` of the same kind: a stack over tokens. A unit
    sees only its receptive field, and in a batch of padded words most of these repeat. A layer in
    which no more than half are distinct is computed once for each of those, which changes no bit
    of the result; :meth:`plan` counts them, and ``share_contexts = False`` switches that off. On a
    GPU nothing is shared, and a token that is no word gives NaN.

    Shape:
        (batch, in_channels, length) or (in_channels, length), or tokens (batch, length) or
        (length), as the first layer takes, to (batch, out_channels, out_length), without batch as
        the input.
    """

    share_contexts: bool = True

    def __init__(self, *layers: Any) -> None:
        super().__init__(*layers)

    def forward(self, input: Tensor) -> Tensor:
        if self._reason_not_fused(input) is not None:
            return super().forward(input)
        x, tokens, layers = self._operands(input)
        operands = x, tokens, *parameters_of(layers, x), settings_of(layers)
        y = stack_autograd.stack(*operands, self.share_contexts)
        return y if input.dim() == self._batched_dim() else y.squeeze(0)

    def plan(self, input: Tensor) -> StackPlan:
        """Whether ``input`` would run fused, and if not, why; over tokens, what it would share."""
        reason = self._reason_not_fused(input)
        if reason is not None:
            return StackPlan(False, reason)
        x, tokens, layers = self._operands(input)
        if tokens is None or tokens.is_cuda:
            return StackPlan(True, "")
        operands = x, tokens, *parameters_of(layers, x), *settings_of(layers)
        rows, positions = (
            tuple(stack_ops.stack_rows(*operands, share).tolist())
            for share in (self.share_contexts, False)
        )
        return StackPlan(True, "", rows, positions)

    def stream_layers(self) -> list[NetworkLayer]:
        first: Any = self[0] if len(self) else None
        if isinstance(first, EmbeddingConv1d):
            return first.stream_layers_of(self)
        return super().stream_layers()

    def stream_embedding(self) -> nn.Embedding | None:
        first: Any = self[0] if len(self) else None
        return first.stream_embedding() if isinstance(first, EmbeddingConv1d) else None

    def _batched_dim(self) -> int:
        return 2 if isinstance(self[0], EmbeddingConv1d) else 3

    def _operands(self, input: Tensor) -> tuple[Tensor, Tensor | None, list[Any]]:
        """The stack's x, its tokens if it has any, and its convolutions."""
        if input.dim() < self._batched_dim():
            input = input.unsqueeze(0)
        first, *others = self
        if not isinstance(first, EmbeddingConv1d):
            return input, None, [first, *others]
        words, padding_idx = first.embedding.weight, first.embedding.padding_idx
        if padding_idx is not None:
            words = _without_gradient(words, padding_idx)
        return words, input, [first.conv, *others]

    def _reason_not_fused(self, input: Tensor) -> str | None:
        if not len(self):
            return "it has no layers"
        if isinstance(input, torch.fx.Proxy):
            return "torch.fx traces it"
        x, layers = input, dict(self._modules)
        first: Any = self[0]
        if type(first) is EmbeddingConv1d:
            name = next(iter(layers))
            if has_hooks(first):
                return f"layer {name} has hooks"
            reason = reason_not_a_plain_embedding(first.embedding)
            if reason is not None:
                return f"the embedding of layer {name} {reason}"
            x, layers[name] = first.embedding.weight, first.conv
        if input.dim() not in (self._batched_dim() - 1, self._batched_dim()):
            return f"the input has {input.dim()} dimensions"
        if x is not input and input.dtype not in (torch.int64, torch.int32):
            return f"tokens must be int64 or int32, not {input.dtype}"
        if input.device != x.device:
            return "tokens and embedding are on two devices"
        reason = reason_not_fusable(x)
        if reason is not None:
            return reason
        for name, layer in layers.items():
            reason = _reason_layer_not_fusable(layer, x)
            if reason is not None:
                return f"layer {name} {reason}"
        if not x.is_cuda:
            return None
        x, tokens, convolutions = self._operands(input)
        weights, settings = [layer.weight for layer in convolutions], settings_of(convolutions)
        has_tokens = tokens is not None
        return stack_ops.reason_does_not_fit(x, input.shape[-1], has_tokens, weights, settings)


def settings_of(layers: list[Any]) -> stack_autograd.Settings:
    """What the fused operators must know about convolutions besides their parameters."""
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


def parameters_of(layers: list[Any], x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Weights, and biases, which are empty where a layer has none."""
    weights = [layer.weight for layer in layers]
    return weights, [x.new_empty(0) if layer.bias is None else layer.bias for layer in layers]


def reason_not_fusable(x: Tensor) -> str | None:
    """Why no stack runs fused on ``x``, a signal or an embedding, or None."""
    if x.device.type not in ("cpu", "cuda"):
        return f"the fused kernels run on CPUs and CUDA devices, not on {x.device.type}"
    if x.dtype not in backends.KERNEL_DTYPES:
        return f"there is no kernel for {x.dtype}"
    reason = backends.reason_no_cuda_kernels(x.dtype, x.device) if x.is_cuda else None
    if reason is not None:
        return reason
    if _autocast_enabled(x.device.type):
        return "autocast is on"
    if autograd._transformed():
        return "a torch.func transform or forward-mode differentiation is active"
    if backends.is_traced():
        return "torch.jit.trace is active"
    return None


def _pads(layer: Conv1d) -> tuple[int, int]:
    dilation = as_int("dilation", layer.dilation)
    return resolve_padding(layer.padding, layer.kernel_size[0], 1, dilation)


# With more channels, fast filtering makes the layers' own kernels faster from three taps on.
_WIDEST = 128


def _reason_layer_not_fusable(layer: Any, x: Tensor) -> str | None:
    """Why a stack with ``layer`` in it does not run fused on ``x``, or None."""
    reason = reason_not_a_plain_layer(layer, x)
    if reason is not None:
        return reason
    if as_int("stride", layer.stride) != 1:
        return f"has stride {as_int('stride', layer.stride)}"
    if layer.groups != 1:
        return f"has {layer.groups} groups"
    if layer.padding_mode != "zeros":
        return f"pads by {layer.padding_mode!r}"
    left, right = _pads(layer)
    if right != 0:
        return "pads on the right"
    span = as_int("dilation", layer.dilation) * (layer.kernel_size[0] - 1)
    if isinstance(layer, StackLayer) and layer.residual and left > span:
        return "has a residual and more positions than its input"
    if layer.kernel_size[0] > 2 and min(layer.in_channels, layer.out_channels) > _WIDEST:
        return f"has more than {_WIDEST} channels and more than two taps"
    return None


def reason_not_a_plain_layer(layer: Any, x: Tensor) -> str | None:
    """Why ``layer`` must be called itself, whatever its geometry, or None."""
    if type(layer) not in (StackLayer, Conv1d, CausalConv1d):
        return f"is a {type(layer).__name__}"
    if has_hooks(layer):
        return "has hooks"
    if layer.backend not in (("cuda",) if x.is_cuda else ("auto", "cpp")):
        return f"asks for backend={layer.backend!r}"
    weight = layer.weight  # looking it up takes longer than comparing it
    if weight.dtype != x.dtype or weight.device != x.device:
        return "has another dtype or device than the input"
    return None
