"""An embedding followed by a convolution, as sums of table rows: ``EmbeddingConv1d``.

The convolution is linear in each embedding, so what tap j makes of word v is a row that can be
computed once, T[j, v] = weight[:, :, j] @ embedding[v], and an output is a sum of such rows, one
for each tap. With a small vocabulary these are far fewer products.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import backends, functional, lookup, lookup_ops
from .functional import check_activation, conv1d
from .geometry import Padding, as_int, output_length, resolve_padding
from .layers import Conv1d

# A row of the table that is looked up costs as much as this many multiply-adds for each channel.
LOOKUP_COST = 3

# A table of fewer rows than this is small whatever it is used for.
SMALL_TABLE = 4096


def prefers_table(
    vocab: int, embedding_dim: int, kernel_size: int, positions: int | None = None
) -> bool:
    """Whether a table of all words costs less than a convolution of gathered embeddings.

    For one tap and one output channel, the table takes vocab * embedding_dim multiply-adds and
    LOOKUP_COST for each of ``positions``, the convolution embedding_dim for each of them. A table
    that is not small must not have more rows than the result either. ``positions`` is None where
    it is not known, as torch.compile traces one graph for any length: then there are many.
    """
    rows = kernel_size * vocab
    if positions is None:
        return embedding_dim > LOOKUP_COST and rows <= SMALL_TABLE
    table = vocab * embedding_dim + LOOKUP_COST * positions
    return table < embedding_dim * positions and rows <= max(positions, SMALL_TABLE)


def embedding_conv1d(
    tokens: Tensor,
    embedding: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, ...] = 1,
    padding: Padding = 0,
    dilation: int | tuple[int, ...] = 1,
    *,
    padding_idx: int | None = None,
    activation: str | None = None,
    backend: str = "auto",
) -> Tensor:
    """conv1d(embedding[tokens].mT, weight, bias, ...), differentiable to any order.

    Args:
        tokens: (batch, length), or (length) unbatched; int64 or int32, in [0, vocab).
        embedding: (vocab, embedding_dim).
        weight: (out_channels, embedding_dim, kernel_size), of the dtype of ``embedding``.
        bias: (out_channels), of the same dtype, or None.
        stride, padding, dilation: in tokens, otherwise as for :func:`convlm_kernels.conv1d`. A
            padded position contributes zero.
        padding_idx: a word whose embedding gets no gradient, as in ``torch.nn.Embedding``.
        activation, backend: as for :func:`convlm_kernels.conv1d`. The C++ backend chooses between
            a table of all words and a convolution of gathered embeddings by their cost; every
            other one convolves.

    Returns:
        (batch, out_channels, out_length), or without batch as ``tokens``; of the dtype of
        ``embedding``, or the one that autocast gives a convolution.

    Raises:
        TypeError: an unsupported dtype.
        ValueError: an unknown ``activation``, ``backend``, or a ``padding_idx`` that is no word.
        RuntimeError: a token outside the vocabulary on the CPU, an impossible geometry, differing
            dtypes, or an explicit backend that cannot run this problem.
    """
    check_activation(activation)
    backends.check_name(backend)
    check_shapes(tokens, embedding, weight)
    window = window_of(weight, stride, padding, dilation)
    if padding_idx is not None:
        embedding = _without_gradient(embedding, check_padding_idx(padding_idx, embedding.shape[0]))
    device = tokens.device.type
    if functional._autocast_enabled_for(device):
        embedding, weight, bias = functional._autocast(device, embedding, weight, bias)
    if tokens.dim() == 1:
        batched = _run(tokens[None], embedding, weight, bias, window, activation, backend)
        return batched.squeeze(0)
    return _run(tokens, embedding, weight, bias, window, activation, backend)


def _run(
    tokens: Tensor,
    embedding: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    window: lookup.Window,
    activation: str | None,
    backend: str,
) -> Tensor:
    kernels = has_kernels(tokens, embedding, backend)
    if kernels and _prefers_table(tokens, embedding, weight, window):
        name = "none" if activation is None else activation
        return _by_table(tokens, embedding, weight, bias, window, name)
    if kernels:  # a table of one tap: gathers, and checks the tokens on the way
        x = lookup.lookup(tokens, embedding.unsqueeze(0), None, (1, 0, 0, 1))
    else:
        x = F.embedding(tokens, embedding).transpose(1, 2)
    stride, *pads, dilation = window
    return conv1d(
        x, weight, bias, stride, tuple(pads), dilation, activation=activation, backend=backend
    )


def _by_table(
    tokens: Tensor,
    embedding: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    window: lookup.Window,
    activation: str,
) -> Tensor:
    dtype = embedding.dtype
    if dtype in (torch.bfloat16, torch.float16):  # so that sums are rounded once
        embedding, weight = embedding.float(), weight.float()
        bias = None if bias is None else bias.float()
    table = lookup.make_table(embedding, weight)
    return lookup.lookup(tokens, table, bias, window, activation).to(dtype)


def has_kernels(tokens: Tensor, embedding: Tensor, backend: str) -> bool:
    """Whether the kernels of this package look up ``tokens``."""
    return (
        backend in ("auto", "cpp")
        and tokens.device.type in ("cpu", "meta")
        and embedding.dtype in backends.KERNEL_DTYPES
    )


def window_of(weight: Tensor, stride: object, padding: Padding, dilation: object) -> lookup.Window:
    """The settings as four integers: stride, pad_left, pad_right, dilation."""
    stride, dilation = as_int("stride", stride), as_int("dilation", dilation)
    return stride, *resolve_padding(padding, weight.shape[2], stride, dilation), dilation


def _prefers_table(
    tokens: Tensor, embedding: Tensor, weight: Tensor, window: lookup.Window
) -> bool:
    sizes = embedding.shape[0], embedding.shape[1], weight.shape[2]
    if torch.compiler.is_compiling():
        return prefers_table(*sizes)
    stride, pad_left, pad_right, dilation = window
    out_length = output_length(
        tokens.shape[1], weight.shape[2], max(stride, 1), dilation, pad_left, pad_right
    )
    return prefers_table(*sizes, tokens.shape[0] * out_length)


def check_shapes(tokens: Tensor, embedding: Tensor, weight: Tensor) -> None:
    """RuntimeError unless the dimensions are those of :func:`embedding_conv1d`."""
    if tokens.dim() not in (1, 2):
        raise RuntimeError(
            f"tokens must be (length) or (batch, length), got shape {tuple(tokens.shape)}"
        )
    if tokens.dtype not in (torch.int64, torch.int32):
        raise RuntimeError(f"tokens must be int64 or int32, got {tokens.dtype}")
    if weight.dim() != 3:
        raise RuntimeError(
            "weight must be (out_channels, embedding_dim, kernel_size), "
            f"got shape {tuple(weight.shape)}"
        )
    if embedding.dim() != 2 or embedding.shape[1] != weight.shape[1]:
        raise RuntimeError(
            f"embedding must be (vocab, {weight.shape[1]}), got shape {tuple(embedding.shape)}"
        )


def check_padding_idx(padding_idx: int, vocab: int) -> int:
    """``padding_idx`` counted from the front.

    Raises:
        ValueError: it is outside [-vocab, vocab).
    """
    if not -vocab <= padding_idx < vocab:
        raise ValueError(f"padding_idx must lie in [-{vocab}, {vocab}), got {padding_idx}")
    return padding_idx % vocab


def _without_gradient(embedding: Tensor, row: int) -> Tensor:
    rows = torch.arange(embedding.shape[0], device=embedding.device)
    return torch.where((rows == row)[:, None], embedding.detach(), embedding)


def embedding_conv1d_cross_entropy(
    tokens: Tensor,
    target: Tensor,
    embedding: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, ...] = 1,
    padding: Padding = 0,
    dilation: int | tuple[int, ...] = 1,
    *,
    reduction: str = "mean",
    backend: str = "auto",
) -> Tensor:
    """cross_entropy(embedding_conv1d(tokens, ...), target), differentiable to any order.

    On the CPU in float32 and float64, the logits stay in the cache: one pass over the tokens makes
    the mean loss and its gradients, or the losses where no gradient is wanted.

    Args:
        target: (batch, out_length), int64, in [0, out_channels).
        reduction: "mean", "sum" or "none".
        The others are those of :func:`embedding_conv1d`; ``tokens`` (batch, length).

    Returns:
        A scalar, or with "none" (batch, out_length); of the dtype of ``embedding``, float32 for
        the 16-bit ones.

    Raises:
        ValueError: an unknown ``reduction`` or ``backend``.
        RuntimeError: a target outside [0, out_channels) on the CPU, and as
            :func:`embedding_conv1d`.
    """
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}")
    backends.check_name(backend)
    check_shapes(tokens, embedding, weight)
    window = window_of(weight, stride, padding, dilation)
    if _is_fused(tokens, embedding, weight, window, backend):
        if reduction == "mean":
            return lookup.cross_entropy(tokens, target, embedding, weight, bias, window)
        if not lookup.wants_gradients(embedding, weight, bias):
            losses = lookup.losses(tokens, target, embedding, weight, bias, window)
            return losses.sum() if reduction == "sum" else losses
    logits = embedding_conv1d(
        tokens, embedding, weight, bias, stride, padding, dilation, backend=backend
    )
    if logits.dtype in (torch.bfloat16, torch.float16):
        logits = logits.float()
    return F.cross_entropy(logits, target.long(), reduction=reduction)


def loss_with_gradients(
    tokens: Tensor,
    target: Tensor,
    embedding: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
    """The mean cross-entropy, and its gradients of embedding, weight and bias, at stride 1.

    For training loops that do without autograd, whose overhead is larger than the work of a small
    model. None where the loss does not come with its gradients: then there is
    :func:`embedding_conv1d_cross_entropy`.
    """
    window = (1, 0, 0, 1)
    if not _is_fused(tokens, embedding, weight, window, backend):
        return None
    return lookup_ops.cross_entropy(tokens, target, embedding, weight, bias, *window)


def _is_fused(
    tokens: Tensor, embedding: Tensor, weight: Tensor, window: lookup.Window, backend: str
) -> bool:
    return (
        has_kernels(tokens, embedding, backend)
        and embedding.dtype in (torch.float32, torch.float64)
        and not functional._autocast_enabled_for(tokens.device.type)
        and _prefers_table(tokens, embedding, weight, window)
    )


class EmbeddingConv1d(nn.Module):
    """``torch.nn.Embedding`` followed by ``torch.nn.Conv1d``, by look-up.

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
        tokens (batch, length), int64 or int32, to (batch, out_channels, out_length).

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
        conv = self.conv
        return embedding_conv1d(
            tokens,
            self.embedding.weight,
            conv.weight,
            conv.bias,
            conv.stride,
            conv.padding,
            conv.dilation,
            padding_idx=self.embedding.padding_idx,
            activation=conv.activation,
            backend=conv.backend,
        )


def tap_weight(weight: Tensor, embedding_dim: int) -> Tensor:
    """A view (out_channels, embedding_dim, kernel_size) of ``weight`` (out_channels, 1,
    kernel_size * embedding_dim), that of a convolution over embeddings laid end to end.
    """
    return weight.view(weight.shape[0], -1, embedding_dim).transpose(1, 2)


def _turn_end_to_end_weight(
    module: EmbeddingConv1d, state_dict: dict[str, Any], prefix: str, *_: Any
) -> None:
    weight = state_dict.get(prefix + "conv.weight")
    out_channels, embedding_dim, kernel_size = module.conv.weight.shape
    end_to_end = (out_channels, 1, kernel_size * embedding_dim)
    if isinstance(weight, Tensor) and embedding_dim > 1 and weight.shape == end_to_end:
        state_dict[prefix + "conv.weight"] = tap_weight(weight, embedding_dim)
