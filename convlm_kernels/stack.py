"""``DilatedStack``: a chain of dilated convolutions with activations, gates and residuals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from . import stack_autograd, stack_ops
from .embedding import may_get_gradient, spare_positions, spare_word
from .embedding_layer import EmbeddingConv1d
from .functional import check_tensors
from .lookup import embed
from .network_layers import NetworkLayer
from .plain import has_hooks, reason_not_a_plain_embedding
from .stack_layers import (
    StackLayer,
    operands_of,
    reason_not_fusable,
)
from .stack_ops import Settings
from .streaming import Streaming

__all__ = ["DilatedStack", "StackLayer", "StackPlan"]


@dataclass(frozen=True)
class StackPlan:
    """How a :class:`DilatedStack` runs an input."""

    fused: bool
    reason: str  # why not fused; "" where it is
    # Over tokens, of each layer: the rows that are computed, and the positions they stand for.
    rows: tuple[int, ...] = ()
    positions: tuple[int, ...] = ()
    not_shared: str = ""  # why no context is shared; "" where they may be, or without tokens

    def __str__(self) -> str:
        if not self.fused:
            return f"layer by layer: {self.reason}"
        lines = ["one fused operator"]
        if self.not_shared:
            return f"{lines[0]}\ncontexts are not shared: {self.not_shared}"
        for layer, (rows, positions) in enumerate(zip(self.rows, self.positions, strict=True)):
            if rows < positions:
                lines.append(f"layer {layer}: {rows} distinct contexts for {positions} positions")
            elif layer + 1 == len(self.rows):
                lines.append(f"layer {layer}: {positions} positions, the result")
            else:
                lines.append(f"layer {layer}: {positions} positions, more than half distinct")
        return "\n".join(lines)


class _Operands(NamedTuple):
    """Of the fused operators, in their order."""

    x: Tensor
    tokens: Tensor | None
    weights: list[Tensor]
    biases: list[Tensor]
    settings: Settings
    kernels: str  # an entry of stack_ops.OPERATORS, whose they are


class DilatedStack(Streaming, nn.Sequential):
    """Layers one after the other, as in ``torch.nn.Sequential``, whose ``state_dict`` it has.

    A chain of :class:`StackLayer`, :class:`Conv1d` or :class:`CausalConv1d` of stride 1, without
    groups and with padding on the left only, runs as one operator: activations stay in cache, and
    one call gives all gradients. Anything else, or hooks on a layer, and it runs layer by layer;
    :meth:`plan` says why. So it does on a GPU, unless all layers ask for ``backend="cuda"`` and a
    sample fits the shared memory of a block: then forward is one launch, and backward two. Or all
    ask for ``backend="triton"``, and a layer of a sample fits a multiprocessor's cache.

    The first layer may be an :class:`EmbeddingConv1d` of the same kind: a stack over tokens. A unit
    sees only its receptive field, and in a batch of padded words most of these repeat. A layer in
    which no more than half are distinct is computed once for each of those, which changes no bit
    of the result; :meth:`plan` counts them, and ``share_contexts = False`` switches that off. On a
    GPU sizes alone decide: a large batch of few words is shared, in a few more launches. There a
    token that is no word gives NaN.

    Shape:
        (batch, in_channels, length) or (in_channels, length), or tokens (batch, length) or
        (length), as the first layer takes, to (batch, out_channels, out_length), without batch as
        the input.
    """

    share_contexts: bool = True

    def forward(self, input: Tensor) -> Tensor:
        operands = self._operands(input)
        if isinstance(operands, str):
            return super().forward(input)
        batched_dim = 3 if operands.tokens is None else 2
        operands = self._with_padding_word(operands)
        y = stack_autograd.stack(*operands[:-1], self.share_contexts, operands.kernels)
        return y if input.dim() == batched_dim else y.squeeze(0)

    def _with_padding_word(self, operands: _Operands) -> _Operands:
        """The same, where the word that gets no gradient gets none."""
        x, tokens, *_, kernels = operands
        first: Any = next(iter(self._modules.values()))
        if tokens is None or first.embedding.padding_idx is None or not may_get_gradient(x):
            return operands
        padding_idx: int = first.embedding.padding_idx
        if not stack_autograd.are_gathered(x, tokens, kernels):
            return operands._replace(x=spare_word(x, padding_idx))
        x = spare_positions(embed(tokens, x, kernels), tokens, padding_idx)
        return operands._replace(x=x, tokens=None)

    def plan(self, input: Tensor) -> StackPlan:
        """Whether ``input`` would run fused, and if not, why; over tokens, what it would share."""
        operands = self._operands(input)
        if isinstance(operands, str):
            return StackPlan(False, operands)
        x, tokens, weights, biases, settings, kernels = operands
        if tokens is None or kernels == "triton":
            return StackPlan(True, "")
        not_shared: str | None = None
        if not self.share_contexts:
            not_shared = "share_contexts is False"
        elif tokens.is_cuda:
            not_shared = stack_ops.reason_contexts_not_shared(x, tokens, weights, settings)
        rows, positions = (
            tuple(stack_ops.stack_rows(x, tokens, weights, biases, settings, share).tolist())
            for share in (self.share_contexts, False)
        )
        return StackPlan(True, "", rows, positions, not_shared or "")

    def stream_layers(self) -> list[NetworkLayer]:
        first: Any = self[0] if len(self) else None
        if isinstance(first, EmbeddingConv1d):
            return first.stream_layers_of(self)
        return super().stream_layers()

    def stream_embedding(self) -> nn.Embedding | None:
        first: Any = self[0] if len(self) else None
        return first.stream_embedding() if isinstance(first, EmbeddingConv1d) else None

    def _operands(self, input: Tensor) -> _Operands | str:
        """What the fused operators take, or why none of them runs."""
        names, layers = list(self._modules), list(self._modules.values())
        if not layers:
            return "it has no layers"
        if isinstance(input, torch.fx.Proxy):
            return "torch.fx traces it"
        if not isinstance(input, Tensor):
            check_tensors(input=input)
        x, batched_dim = input, 3
        first: Any = layers[0]
        if isinstance(first, EmbeddingConv1d):
            batched_dim = 2
        if type(first) is EmbeddingConv1d:
            if has_hooks(first):
                return f"layer {names[0]} has hooks"
            reason = reason_not_a_plain_embedding(first.embedding)
            if reason is not None:
                return f"the embedding of layer {names[0]} {reason}"
            x, layers[0] = first.embedding.weight, first.conv
        elif isinstance(first, EmbeddingConv1d):  # also one that is sharded
            return f"layer {names[0]} is a {type(first).__name__}"
        if input.dim() not in (batched_dim - 1, batched_dim):
            return f"the input has {input.dim()} dimensions"
        if x is not input and input.dtype not in (torch.int64, torch.int32):
            return f"tokens must be int64 or int32, not {input.dtype}"
        if x is not input and input.device != x.device:
            return "tokens and embedding are on two devices"
        asked = getattr(layers[0], "backend", None)
        kernels = "triton" if asked == "triton" else "native"
        reason = reason_not_fusable(x, kernels)
        if reason is not None:
            return reason
        found = operands_of(layers, x, kernels)
        if len(found) == 2:
            number, reason = found
            return f"layer {names[number]} {reason}"
        weights, some, settings = found
        biases = [x.new_empty(0) if bias is None else bias for bias in some]
        tokens = None
        if x is not input:
            tokens = input
        if x.is_cuda or kernels != "native":
            sizes = x, input.shape[-1], tokens is not None
            reason = stack_ops.reason_does_not_fit(*sizes, weights, settings, kernels)
            if reason is not None:
                return reason
        if input.dim() < batched_dim:
            input = input.unsqueeze(0)
        if tokens is None:
            return _Operands(input, None, weights, biases, settings, kernels)
        return _Operands(x, input, weights, biases, settings, kernels)
