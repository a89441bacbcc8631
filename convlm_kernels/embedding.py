"""An embedding followed by a convolution, as sums of table rows: ``embedding_conv1d``.

The convolution is linear in each embedding, so what tap j makes of word v is a row that can be
computed once, T[j, v] = weight[:, :, j] @ embedding[v], and an output is a sum of such rows, one
for each tap. With a small vocabulary these are far fewer products.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from . import backends, functional, indices, lookup
from .functional import autocast_enabled, check_activation, check_tensors, conv1d
from .geometry import Padding, as_int, output_length, resolve_padding
from .lookup import Window, by_tap

# A table of fewer rows than this is small whatever it is used for.
SMALL_TABLE = 4096


def prefers_table(vocab: int, kernel_size: int, positions: int | None = None) -> bool:
    """Whether a table of all words costs less than a convolution of gathered embeddings.

    A table multiplies for each word what the convolution multiplies for each position. With many
    positions a word, tables were from 1.2 (embeddings of 2 numbers) to 2.7 times as fast (of 32),
    gradients included; with as many words as positions they were slower. A table that is not small
    must not have more rows than there are positions either. ``positions`` is None where it is not
    known, as torch.compile traces one graph for any length: then there are many.
    """
    rows = kernel_size * vocab
    if positions is None:
        return rows <= SMALL_TABLE
    return 2 * vocab <= positions and rows <= max(positions, SMALL_TABLE)


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
        weight: (out_channels, embedding_dim, kernel_size), of the dtype of ``embedding``; or
            (out_channels, 1, kernel_size * embedding_dim), that of a convolution with stride
            ``embedding_dim`` over embeddings laid end to end.
        bias: (out_channels), of the same dtype, or None.
        stride, padding, dilation: in tokens, otherwise as for :func:`convlm_kernels.conv1d`. A
            padded position contributes zero.
        padding_idx: a word whose embedding gets no gradient, as in ``torch.nn.Embedding``.
        activation, backend: as for :func:`convlm_kernels.conv1d`. All backends but "torch", which
            convolves, choose between a table of all words and a convolution of gathered embeddings
            by their cost, which may show in the last bits (:func:`prefers_table`). A token outside
            the vocabulary gives NaN with "cuda" and "triton".

    Returns:
        (batch, out_channels, out_length), or without batch as ``tokens``; of the dtype of
        ``embedding``, or the one that autocast gives a convolution.

    Raises:
        TypeError: an argument of the wrong type, or an unsupported dtype.
        ValueError: an unknown ``activation``, ``backend``, or a ``padding_idx`` that is no word.
        RuntimeError: a token outside the vocabulary on the CPU, an impossible geometry, differing
            dtypes, or an explicit backend that cannot run this problem.
    """
    if has_torch_function_variadic(tokens, embedding, weight, bias):
        return handle_torch_function(
            embedding_conv1d,
            (tokens, embedding, weight, bias),
            tokens,
            embedding,
            weight,
            bias,
            stride,
            padding,
            dilation,
            padding_idx=padding_idx,
            activation=activation,
            backend=backend,
        )
    check_activation(activation)
    backends.check_name(backend)
    _check_operands(tokens, embedding, weight, bias)
    weight = _by_tap(embedding, weight)
    window = _window(weight, stride, padding, dilation)
    if padding_idx is not None:
        padding_idx = check_padding_idx(padding_idx, embedding.shape[0])
        if not may_get_gradient(embedding):
            padding_idx = None
    if autocast_enabled(tokens):
        embedding, weight, bias = functional._autocast(tokens.device.type, embedding, weight, bias)
    if tokens.dim() == 1:
        tokens = tokens[None]
        y = _run(tokens, embedding, weight, bias, window, padding_idx, activation, backend)
        return y.squeeze(0)
    return _run(tokens, embedding, weight, bias, window, padding_idx, activation, backend)


def _run(
    tokens: Tensor,
    embedding: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    window: Window,
    padding_idx: int | None,
    activation: str | None,
    backend: str,
) -> Tensor:
    kernels = _kernels(tokens, embedding, backend)
    batch, length = tokens.shape
    if kernels is None:
        x = indices.embed(tokens, embedding)
    elif _prefers_table(embedding, batch, length, weight.shape[2], window):
        if padding_idx is not None:
            embedding = spare_word(embedding, padding_idx)
        return _by_table(tokens, embedding, weight, bias, window, activation or "none", kernels)
    else:
        x = lookup.embed(tokens, embedding, kernels)
    if padding_idx is not None:
        x = spare_positions(x, tokens, padding_idx)
    stride, pad_left, pad_right, dilation = window
    pads = pad_left, pad_right
    return conv1d(x, weight, bias, stride, pads, dilation, activation=activation, backend=backend)


def _by_table(
    tokens: Tensor,
    embedding: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    window: Window,
    activation: str,
    kernels: str,
) -> Tensor:
    dtype = embedding.dtype
    if dtype in (torch.bfloat16, torch.float16):  # so that sums are rounded once
        embedding, weight = embedding.float(), weight.float()
        bias = None if bias is None else bias.float()
    table = lookup.make_table(embedding, weight, kernels)
    return lookup.lookup(tokens, table, bias, window, activation, kernels).to(dtype)


def _kernels(tokens: Tensor, embedding: Tensor, backend: str) -> str | None:
    """Whose look-ups ``backend`` has, of ``lookup_ops.OPERATORS``; None where there are none."""
    if backend == "auto" and backends.is_traced():
        return None
    dtype = embedding.dtype
    if backend == "triton":
        reason = backends.reason_no_triton_kernels(dtype, tokens.device)
        return "triton" if reason is None else None
    if tokens.is_cuda:
        no_kernels = backends.reason_no_cuda_kernels(dtype, tokens.device)
        native = backend == "cuda" and no_kernels is None
    else:
        on_cpu = tokens.is_cpu or tokens.is_meta
        native = on_cpu and backend in ("auto", "cpp") and dtype in backends.KERNEL_DTYPES
    return "native" if native else None


def _prefers_table(
    embedding: Tensor, batch: int, length: int, kernel_size: int, window: Window
) -> bool:
    vocab = embedding.shape[0]
    if torch.compiler.is_compiling():
        return prefers_table(vocab, kernel_size)
    stride, pad_left, pad_right, dilation = window
    out_length = output_length(length, kernel_size, stride, dilation, pad_left, pad_right)
    return prefers_table(vocab, kernel_size, batch * out_length)


def _window(weight: Tensor, stride: object, padding: Padding, dilation: object) -> Window:
    """The settings as four integers: stride, pad_left, pad_right, dilation."""
    stride, dilation = as_int("stride", stride), as_int("dilation", dilation)
    if stride < 1:  # divided by before a kernel can refuse it
        raise RuntimeError(f"stride must be at least 1, got {stride}")
    return stride, *resolve_padding(padding, weight.shape[2], stride, dilation), dilation


def _check_operands(tokens: Tensor, embedding: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    if not (
        isinstance(tokens, Tensor)
        and isinstance(embedding, Tensor)
        and isinstance(weight, Tensor)
        and (bias is None or isinstance(bias, Tensor))
    ):
        check_tensors(tokens=tokens, embedding=embedding, weight=weight, bias=bias)
    if tokens.dim() not in (1, 2):
        raise RuntimeError(
            f"tokens must be (length) or (batch, length), got shape {tuple(tokens.shape)}"
        )
    if tokens.dtype not in (torch.int64, torch.int32):
        raise RuntimeError(f"tokens must be int64 or int32, got {tokens.dtype}")


def _by_tap(embedding: Tensor, weight: Tensor) -> Tensor:
    """``weight`` as (out_channels, embedding_dim, kernel_size), which may be a view.

    Raises:
        RuntimeError: it has neither this shape nor (out_channels, 1, kernel_size * embedding_dim).
    """
    if embedding.dim() != 2:
        raise RuntimeError(
            f"embedding must be (vocab, embedding_dim), got shape {tuple(embedding.shape)}"
        )
    size = embedding.shape[1]
    if weight.dim() == 3 and size > 0:
        channels, taps = weight.shape[1:]
        if channels == size or (channels == 1 and taps % size == 0):
            return by_tap(weight, size)
    raise RuntimeError(
        f"weight must be (out_channels, {size}, kernel_size), or end to end (out_channels, 1, "
        f"kernel_size * {size}), got shape {tuple(weight.shape)}"
    )


def check_padding_idx(padding_idx: int, vocab: int) -> int:
    """``padding_idx`` counted from the front.

    Raises:
        ValueError: it is outside [-vocab, vocab).
    """
    if not -vocab <= padding_idx < vocab:
        raise ValueError(f"padding_idx must lie in [-{vocab}, {vocab}), got {padding_idx}")
    return padding_idx % vocab


def may_get_gradient(embedding: Tensor) -> bool:
    """Whether a gradient of it is wanted, of what is traced or exported also later."""
    recorded = backends.is_traced() or torch.compiler.is_exporting()
    return recorded or lookup.wants_gradients(embedding)


def spare_word(embedding: Tensor, padding_idx: int) -> Tensor:
    """The embedding, of which one row gets no gradient; a copy, for few words."""
    rows = torch.arange(embedding.shape[0], device=embedding.device)
    return torch.where((rows == padding_idx)[:, None], embedding.detach(), embedding)


def spare_positions(x: Tensor, tokens: Tensor, padding_idx: int) -> Tensor:
    """The same of embeddings (batch, embedding_dim, length) that were gathered."""
    return torch.where((tokens == padding_idx)[:, None], x.detach(), x)
