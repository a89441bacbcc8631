"""``EmbeddingConv1d``: the layer of :func:`embedding_conv1d`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .embedding import check_padding_idx, embedding_conv1d
from .geometry import Padding, as_int
from .layers import CausalConv1d, Conv1d
from .lookup import by_tap
from .network_layers import (
    NetworkLayer,
    cannot_stream,
    check_is_plain,
    check_is_plain_embedding,
    layers_of,
)
from .plain import has_global_hooks, has_hooks, reason_not_a_plain_embedding
from .streaming import Streaming


class EmbeddingConv1d(Streaming, nn.Module):
    """``torch.nn.Embedding`` followed by ``torch.nn.Conv1d``, by look-up.

    Where ``embedding`` or ``conv`` has hooks, a forward or class of its own, or settings that no
    look-up has (``max_norm``, ``padding_mode``, ...), both are called, one after the other.

    The parameters are those of the two: ``embedding.weight`` (vocab, embedding_dim),
    ``conv.weight`` (out_channels, embedding_dim, kernel_size) and ``conv.bias``. A ``conv.weight``
    of a convolution with stride ``embedding_dim`` over embeddings laid end to end, of shape
    (out_channels, 1, kernel_size * embedding_dim), is loaded as well.

    Args:
        vocab, embedding_dim: of the embedding.
        out_channels, kernel_size, stride, padding, dilation, bias: of the convolution, in tokens;
            ``padding`` as for :class:`convlm_kernels.Conv1d`.
        padding_idx: a word whose embedding starts as zeros and gets no gradient.
        activation, backend: as for :func:`embedding_conv1d`.

    Shape:
        tokens (batch, length) or (length), int64 or int32, to (batch, out_channels, out_length),
        without batch as the tokens. Where it is causal it takes one token at a time, too:
        :class:`convlm_kernels.streaming.Streaming`.

    Raises:
        ValueError: an argument that the two modules refuse, or an unknown ``activation`` or
            ``backend``.
    """

    def __init__(
        self,
        vocab: int,
        embedding_dim: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: Padding = 0,
        dilation: int = 1,
        bias: bool = True,
        padding_idx: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        if padding_idx is not None:
            padding_idx = check_padding_idx(padding_idx, vocab)
        self.embedding = nn.Embedding(vocab, embedding_dim, padding_idx, device=device, dtype=dtype)
        self.conv = Conv1d(
            embedding_dim,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            bias=bias,
            device=device,
            dtype=dtype,
            activation=activation,
            backend=backend,
        )
        self.register_load_state_dict_pre_hook(_turn_end_to_end_weight)

    def forward(self, tokens: Tensor) -> Tensor:
        conv, embedding = self.conv, self.embedding
        if not _is_plain(conv) or reason_not_a_plain_embedding(embedding) is not None:
            y: Tensor = conv(embedding(tokens).mT)
            return y
        return embedding_conv1d(
            tokens,
            embedding.weight,
            conv.weight,
            conv.bias,
            conv.stride,
            conv.padding,
            conv.dilation,
            padding_idx=embedding.padding_idx,
            activation=conv.activation,
            backend=conv.backend,
        )

    def stream_layers(self) -> list[NetworkLayer]:
        return self.stream_layers_of(self)

    def stream_layers_of(self, module: nn.Module) -> list[NetworkLayer]:
        """The layers of a step of ``module``, whose first layer this is."""
        check_is_plain(self)
        check_is_plain_embedding(self.embedding, self)
        layers = layers_of(module, first=self.conv)
        if as_int("stride", self.conv.stride) != 1:
            raise cannot_stream(self, f"stride must be 1, got {self.conv.stride}")
        return layers

    def stream_embedding(self) -> nn.Embedding:
        return self.embedding


def _is_plain(conv: Any) -> bool:
    """Whether a look-up may stand for a call of ``conv``."""
    return (
        type(conv) in (Conv1d, CausalConv1d)
        and conv.padding_mode == "zeros"
        and conv.groups == 1
        and not has_hooks(conv)
        and not has_global_hooks()
    )


def _turn_end_to_end_weight(
    module: EmbeddingConv1d, state_dict: dict[str, Any], prefix: str, *_: Any
) -> None:
    weight = state_dict.get(prefix + "conv.weight")
    if not isinstance(module.conv, nn.Conv1d):
        return
    out_channels, embedding_dim, kernel_size = module.conv.weight.shape
    if isinstance(weight, Tensor) and weight.shape == (
        out_channels,
        1,
        kernel_size * embedding_dim,
    ):
        state_dict[prefix + "conv.weight"] = by_tap(weight, embedding_dim)
