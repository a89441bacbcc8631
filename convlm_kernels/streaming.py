"""Streaming: a causal layer or stack that takes one position at a time.

    state = stack.init_state(batch=4)
    y = stack.prefill(prompt, state)          # (4, out_channels, length), all of a prompt at once
    y = stack.step(x, state)                  # (4, out_channels), from x (4, in_channels)

A step computes what the full forward computes for one position, from the inputs that the state
keeps: Fast WaveNet's queues (Le Paine et al., 2016, arXiv 1611.09482), as one operator call for the
whole network. No gradient passes through it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from .functional import check_tensors
from .geometry import as_int
from .network import Network
from .network_layers import NetworkLayer, cannot_stream, layers_of
from .plain import has_global_hooks
from .prefill import prefill


class StreamState(NamedTuple):
    """What a network remembers of each sample of a batch: plain tensors, which steps update.

    ``rings`` (batch, size) holds the inputs of every layer that later outputs will read, in the
    layers' dtype; ``position`` (batch), int64, how many steps each sample has taken. Row n of both
    is all there is of sample n, so samples may be at different positions and a running batch may be
    put together anew between any two steps.
    """

    rings: Tensor
    position: Tensor

    def select(self, indices: Tensor | Sequence[int]) -> StreamState:
        """A copy of these samples, in this order; one may be taken several times.

        indices: a list of their numbers, or a mask (batch), bool.

        Raises:
            IndexError: there is no such sample; no list, or a mask of another shape.
            TypeError: ``indices`` that are neither integers nor bool.
        """
        rows = self._rows(indices)
        return StreamState(self.rings[rows], self.position[rows])

    def drop(self, indices: Tensor | Sequence[int]) -> StreamState:
        """A copy without these samples; the others keep their order.

        ``indices`` and errors are those of :meth:`select`.
        """
        keep = torch.ones_like(self.position, dtype=torch.bool)
        keep[self._rows(indices)] = False
        return StreamState(self.rings[keep], self.position[keep])

    def _rows(self, indices: Tensor | Sequence[int]) -> Tensor:
        """What selects rows of both tensors: numbers or a mask."""
        rows = torch.as_tensor(indices, device=self.position.device)
        if rows.dtype == torch.bool:
            if rows.shape != self.position.shape:
                raise IndexError(
                    f"indices must be numbers of samples or a mask ({len(self.position)}), "
                    f"got a mask of shape {tuple(rows.shape)}"
                )
            return rows
        # The empty list is of no dtype, and torch's default is float.
        if rows.numel() and (rows.is_floating_point() or rows.is_complex()):
            raise TypeError(f"indices must be integers or bool, got {rows.dtype}")
        if rows.dim() != 1:
            raise IndexError(f"indices must be a list of numbers of samples, got {indices!r}")
        return rows.long()

    @staticmethod
    def join(*states: StreamState) -> StreamState:
        """One batch of the samples of all ``states`` of the same network, in this order."""
        rings, positions = zip(*states, strict=True)
        return StreamState(torch.cat(rings), torch.cat(positions))

    def clone(self) -> StreamState:
        """A copy that later steps leave as it is."""
        return StreamState(self.rings.clone(), self.position.clone())

    def to(self, device: torch.device | str) -> StreamState:
        """The state on ``device``."""
        return StreamState(self.rings.to(device), self.position.to(device))


torch.serialization.add_safe_globals([StreamState])  # torch.load reads what torch.save wrote


class Streamed(nn.Module):
    """Finds the layers of a module, and keeps what steps and states need of them.

    All that a language model needs, whose steps draw tokens: :class:`Streaming` takes steps itself.
    """

    _network: Network | None = None

    def _replicate_for_data_parallel(self) -> Self:
        replica: Self = super()._replicate_for_data_parallel()
        replica._network = None  # whose memory the replica would pack its own weights into
        return replica

    def stream_layers(self) -> list[NetworkLayer]:
        """The layers of a step. ValueError for one that cannot stream, with the reason."""
        return layers_of(self)

    def stream_embedding(self) -> nn.Embedding | None:
        """What turns tokens into the first layer's inputs, where steps take tokens."""
        return None

    def init_state(self, batch: int = 1) -> StreamState:
        """The state of ``batch`` samples before their first position.

        Settings of the layers that were changed since the last call take effect for later steps,
        and so do weights, in whatever way they were changed, also where a CUDA graph that captured
        steps is replayed. To find that out, all weights are read: where they are large and many
        states are wanted, keep one, and :meth:`~StreamState.clone` or :meth:`~StreamState.join` it.

        Raises:
            ValueError: a layer that cannot stream; names it and says why. A negative ``batch``.
            TypeError: a ``batch`` that is no integer.
        """
        batch = as_int("batch", batch)
        if batch < 0:
            raise ValueError(f"batch must not be negative, got {batch}")
        made_of = self._stream_parts()
        if self._network is None or not self._network.has(*made_of):
            self._network = Network(*made_of, after=self._network)
        self._network.refresh()
        return state_of(self._network, batch)

    def stream_network(self) -> Network:
        """The layers and their packed weights, as the last :meth:`init_state` found them."""
        if self._network is None:
            self._network = Network(*self._stream_parts())
        return self._network

    def _stream_parts(self) -> tuple[list[NetworkLayer], nn.Embedding | None]:
        if has_global_hooks():
            raise cannot_stream(self, "there are hooks on all modules")
        return self.stream_layers(), self.stream_embedding()


class Streaming(Streamed):
    """What layers and ``DilatedStack`` can do one position at a time, where they are causal.

    At stride 1, without padding on the right: that is ``padding="causal"`` or less on the left.
    With less, as without any, the first outputs would need inputs before the first one; a step has
    none then, and gives NaN. A first layer of one channel may have a stride s that divides its
    kernel_size: it takes s numbers at a position. ``EmbeddingConv1d``, and a stack that begins with
    one, takes tokens: below, ``x`` is then without in_channels, and of int64. A module that does
    more than its parameters say, by hooks or methods of its own, is refused: a step would not.
    """

    def step(
        self, x: Tensor, state: StreamState, *, weight_dtype: torch.dtype | None = None
    ) -> Tensor:
        """The outputs (batch, out_channels) at the next position, from inputs (batch, in_channels).

        Updates ``state``. Equal to that column of the full forward: the same bits, but for fast
        filtering, look-ups, gates, few outputs, short inputs and 16-bit types, which round in other
        places; on a GPU within rounding. Without gradients, and under autocast as without it, from
        inputs that it may have cast. The weights are packed at the first step, and again when they
        have changed. Two changes are seen by :meth:`init_state` alone: that of a weight in place of
        which torch keeps no count, as through its ``.data`` (but for steps of optimizers), and that
        of a layer's settings. A CUDA graph reads the weights as they were packed last: a step
        outside of it, or :meth:`init_state`, sees a change.

        weight_dtype: bfloat16 reads float32 weights rounded to it; the time of a step is that of
        reading its weights.

        Raises:
            RuntimeError: sizes or dtypes that do not fit; a device without kernels for it, or, on a
                GPU, more than 56 layers; on a GPU while a graph is captured, weights that have yet
                to be packed.
            ValueError: as for :meth:`init_state`.
        """
        return self.stream_network().step(x, state, weight_dtype)

    def prefill(self, x: Tensor, state: StreamState, lengths: Tensor | None = None) -> Tensor:
        """The outputs (batch, out_channels, length) of the next positions, all at once.

        Equal to ``length`` steps with the columns of ``x`` (batch, in_channels, length), but by
        each layer's full forward. Updates ``state``; under autocast as without it. ``lengths``
        (batch), int64, from 0 to ``length``: sample n takes its first ``lengths[n]`` columns only,
        and what comes after them in its outputs means nothing.

        Raises:
            ValueError: sizes of ``x``, or ``lengths``, that do not fit.
            RuntimeError: dtypes, or a state, that do not fit. The state stays as it was.
        """
        return prefill(self.stream_network(), x, state, lengths)

    def forward_packed(self, x: Tensor, cu_seqlens: Tensor) -> Tensor:
        """The full forward of sequences of different lengths, laid end to end.

        Differentiable like the forward itself, and no sequence sees another.

        x: (in_channels, total). cu_seqlens: (sequences + 1), where each begins and the last ends,
        so from 0 to ``total``. Returns (out_channels, total).

        Raises:
            ValueError: layers that are not causal, or ``cu_seqlens`` that does not fit.
            TypeError: ``x`` or ``cu_seqlens`` is no Tensor.
        """
        check_tensors(x=x, cu_seqlens=cu_seqlens)
        layers = self.stream_layers()
        channels = [] if self.stream_embedding() is not None else [layers[0].in_channels]
        if any(layer.lag for layer in layers) or list(x.shape[:-1]) != channels:
            size = ", ".join([*map(str, channels), "total"])
            raise ValueError(
                f"packed sequences need padding='causal' in every layer, and x ({size}), "
                f"got shape {tuple(x.shape)}"
            )
        return forward_packed(self, x, cu_seqlens)


def state_of(network: Network, batch: int) -> StreamState:
    """``batch`` samples before their first position."""
    return StreamState(
        torch.zeros(batch, network.ring_size, dtype=network.dtype, device=network.device),
        torch.zeros(batch, dtype=torch.int64, device=network.device),
    )


def forward_packed(module: nn.Module, x: Tensor, cu_seqlens: Tensor) -> Tensor:
    """``module``, causal, on each sequence; those of about one length go together as a batch.

    Lengths that share a power of two are filled up to the longest: at most twice the work.
    """
    if cu_seqlens.dim() != 1 or cu_seqlens.dtype not in (torch.int64, torch.int32):
        raise ValueError(
            "cu_seqlens must have one dimension and be int64 or int32, got shape "
            f"{tuple(cu_seqlens.shape)} and {cu_seqlens.dtype}"
        )
    begins, ends = cu_seqlens[:-1].tolist(), cu_seqlens[1:].tolist()
    if not begins or begins[0] != 0 or ends[-1] != x.shape[-1] or not x.numel():
        raise ValueError(
            f"cu_seqlens must go from 0 to the length of x (..., total), got "
            f"{cu_seqlens.tolist()} and shape {tuple(x.shape)}"
        )
    batches: dict[int, list[int]] = {}
    for n, (begin, end) in enumerate(zip(begins, ends, strict=True)):
        if end < begin:
            raise ValueError(f"cu_seqlens must not decrease, got {cu_seqlens.tolist()}")
        if end > begin:
            batches.setdefault((end - begin).bit_length(), []).append(n)
    results: dict[int, Tensor] = {}
    for numbers in batches.values():
        # Positions first, as they are filled up; after them come channels, or nothing of a token.
        pieces = [x[..., begins[n] : ends[n]].movedim(-1, 0) for n in numbers]
        filled = nn.utils.rnn.pad_sequence(pieces, batch_first=True)
        y = module(filled if x.dim() == 1 else filled.mT)
        for n, row in zip(numbers, y, strict=True):
            results[n] = row[:, : ends[n] - begins[n]]
    return torch.cat([results[n] for n in sorted(results)], dim=1)
