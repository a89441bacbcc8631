"""Sequences too long for one machine: a convolution whose length is split over processes.

Each process of a group holds a run of neighbouring positions. An output at the edge of a run reads
positions of the next one, its halo, up to dilation * (kernel_size - 1) of them. They are sent point
to point, so a step costs one exchange of a few positions, however long the sequence is; and their
gradients go back the same way. Halo exchange is as old as parallel stencil codes.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple, SupportsIndex

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .functional import conv1d
from .geometry import as_int, output_length, resolve_padding
from .layers import Conv1d


class _Run(NamedTuple):
    """Positions ``begin`` to ``end`` of the whole sequence."""

    begin: int
    end: int

    def overlap(self, other: _Run) -> _Run:
        begin = max(self.begin, other.begin)
        return _Run(begin, max(begin, min(self.end, other.end)))

    @property
    def length(self) -> int:
        return self.end - self.begin

    def of(self, tensor: Tensor, first: int) -> Tensor:
        """These positions of a ``tensor`` that begins with position ``first``."""
        return tensor[..., self.begin - first : self.end - first]


class _Plan(NamedTuple):
    """What every process of the group holds and reads; the same list everywhere."""

    held: list[_Run]
    read: list[_Run]
    group: dist.ProcessGroup | None


def _transfer(plan: _Plan, sent: list[_Run], taken: list[_Run], tensor: Tensor) -> list[Tensor]:
    """From each process, what it has in ``sent`` of what this one has in ``taken``.

    ``tensor`` holds this process's run in ``sent``. The part that stays here is a view.
    """
    me = dist.get_rank(plan.group)
    own = sent[me]
    received, operations = [], []
    for rank, run in enumerate(sent):
        wanted = taken[me].overlap(run)
        if rank == me or wanted.length == 0:
            received.append(wanted.of(tensor, own.begin) if rank == me else tensor[..., :0])
        else:
            received.append(tensor.new_empty((*tensor.shape[:-1], wanted.length)))
            operations.append(_operation(dist.irecv, received[-1], plan, rank))
        given = taken[rank].overlap(own)
        if rank != me and given.length > 0:
            piece = given.of(tensor, own.begin).contiguous()
            operations.append(_operation(dist.isend, piece, plan, rank))
    if operations:
        for work in dist.batch_isend_irecv(operations):
            work.wait()
    return received


def _operation(kind: Any, tensor: Tensor, plan: _Plan, rank: int) -> dist.P2POp:
    return dist.P2POp(kind, tensor, group=plan.group, group_peer=rank)


class _Exchange(torch.autograd.Function):
    """A run with its halos. Backward, each process adds up what the others read of its run."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, plan: _Plan) -> Tensor:
        ctx.plan = plan
        return torch.cat(_transfer(plan, plan.held, plan.read, x), dim=-1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        plan = ctx.plan
        me = dist.get_rank(plan.group)
        run = plan.held[me]
        total = gradient.new_zeros((*gradient.shape[:-1], run.length))
        pieces = _transfer(plan, plan.read, plan.held, gradient)
        for piece, read in zip(pieces, plan.read, strict=True):  # in the order of the processes
            if piece.shape[-1] > 0:
                run.overlap(read).of(total, run.begin).add_(piece)
        return total, None


class _SumOfGradients(torch.autograd.Function):
    """A parameter that all processes hold; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, parameter: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        ctx.group = group
        return parameter.view_as(parameter)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        total = gradient.clone()
        dist.all_reduce(total, group=ctx.group)
        return total, None


class SequenceParallelConv1d(Conv1d):
    """:class:`Conv1d` of a sequence whose positions are split over the processes of a group.

    Process r holds the r-th run of positions and gets the outputs that begin in it: output q begins
    at position q * stride, and what padding adds to the length belongs to the last process. Their
    concatenation is what the unsplit layer gives, and so are the gradients of input, weight and
    bias; those of weight and bias are summed over the group, so they are the same everywhere. Runs
    may be of any, also of different, lengths; halos may reach past the neighbouring process.

    Parameters must be equal on all processes, and are if they are made under one seed. One
    collective call tells all processes the others' lengths; ``layer(input, lengths)`` saves it with
    those of all processes, in their order and the same list everywhere.

    Args:
        *args, **kwargs: as for :class:`Conv1d`; only zeros may pad.
        group: a ``torch.distributed`` process group, by default that of all processes.

    Shape:
        (batch, in_channels, own length) to (batch, out_channels, own outputs).

    Raises:
        TypeError: a length that is no integer.
        ValueError: another ``padding_mode`` than zeros; a process that would have no output;
            ``lengths`` of more or fewer processes, or with another length for this one.
        RuntimeError: ``torch.distributed`` is not initialised.
    """

    def __init__(self, *args: Any, group: dist.ProcessGroup | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.padding_mode != "zeros":
            raise ValueError(
                f"padding_mode must be 'zeros' where the length is split, got {self.padding_mode!r}"
            )
        self.group = group

    def forward(self, input: Tensor, lengths: Sequence[SupportsIndex] | None = None) -> Tensor:
        if not dist.is_initialized():
            raise RuntimeError(
                "torch.distributed is not initialised: start with torchrun and call "
                "torch.distributed.init_process_group()"
            )
        if input.dim() != 3:
            raise RuntimeError(
                f"input must be (batch, in_channels, length), got shape {tuple(input.shape)}"
            )
        if lengths is None:
            lengths = _all_lengths(input, self.group)
        else:
            lengths = _checked_lengths(lengths, input, self.group)
        stride, dilation = as_int("stride", self.stride), as_int("dilation", self.dilation)
        kernel_size = self.weight.shape[2]
        pads = resolve_padding(self.padding, kernel_size, stride, dilation)
        outputs = _split_outputs(lengths, kernel_size, stride, dilation, pads)
        ends = list(itertools.accumulate(lengths))
        held = [_Run(end - length, end) for end, length in zip(ends, lengths, strict=True)]
        # What they read, padding included.
        padded = [
            _Run(q.begin * stride - pads[0], (q.end - 1) * stride + span(self) - pads[0])
            for q in outputs
        ]
        whole = _Run(0, ends[-1])
        plan = _Plan(held, [run.overlap(whole) for run in padded], self.group)
        wanted, read = (runs[dist.get_rank(self.group)] for runs in (padded, plan.read))
        pad_left = min(read.begin - wanted.begin, wanted.length)  # all of it may be padding
        return conv1d(
            _Exchange.apply(input, plan),
            _SumOfGradients.apply(self.weight, self.group),
            None if self.bias is None else _SumOfGradients.apply(self.bias, self.group),
            stride,
            (pad_left, wanted.length - pad_left - read.length),
            dilation,
            self.groups,
            activation=self.activation,
            backend=self.backend,
        )


def span(layer: nn.Conv1d) -> int:
    """How many positions one output reads from the first to the last."""
    return as_int("dilation", layer.dilation) * (layer.weight.shape[2] - 1) + 1


def _all_lengths(x: Tensor, group: dist.ProcessGroup | None) -> list[int]:
    lengths: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(lengths, x.shape[-1], group=group)
    return lengths


def _checked_lengths(
    lengths: Sequence[SupportsIndex], x: Tensor, group: dist.ProcessGroup | None
) -> list[int]:
    """What was given for all processes, as far as this one can tell; others would wait for it."""
    processes, rank = dist.get_world_size(group), dist.get_rank(group)
    if len(lengths) != processes:
        raise ValueError(
            f"lengths must be one for each of {processes} processes, got {list(lengths)}"
        )
    checked = []
    for process, length in enumerate(lengths):
        if not hasattr(length, "__index__"):
            raise TypeError(f"lengths[{process}] must be an integer, got {length!r}")
        checked.append(operator.index(length))
    if min(checked) < 0:
        raise ValueError(f"lengths must not be negative, got {checked}")
    if checked[rank] != x.shape[-1]:
        raise ValueError(
            f"lengths[{rank}] must be the length of this process's input, {x.shape[-1]}, "
            f"got {checked[rank]}"
        )
    return checked


def _split_outputs(
    lengths: list[int], kernel_size: int, stride: int, dilation: int, pads: tuple[int, int]
) -> list[_Run]:
    """Which outputs each process makes."""
    total = output_length(sum(lengths), kernel_size, stride, dilation, *pads)
    ends = [min(total, -(-end // stride)) for end in itertools.accumulate(lengths)]
    ends[-1] = total
    runs = [_Run(begin, end) for begin, end in itertools.pairwise([0, *ends])]
    for rank, run in enumerate(runs):
        if run.end <= run.begin:
            raise ValueError(
                f"process {rank} holds {lengths[rank]} of {sum(lengths)} positions, in which no "
                f"output begins (stride {stride}, {total} outputs in all); split the length "
                "over fewer processes"
            )
    return runs
