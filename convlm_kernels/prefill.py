"""A prefill: as many steps as there are positions, by the full forward of each layer."""

from __future__ import annotations

import torch
from torch import Tensor

from . import indices
from .checks import check_one_device, shape_of
from .functional import autocast_enabled, check_tensors, conv1d
from .network import Network
from .network_layers import NetworkLayer
from .stack_autograd import gate

_Write = tuple[Tensor, Tensor, Tensor]  # a ring, slots of it, and what they are to hold


@torch.no_grad()
def prefill(
    network: Network, x: Tensor, state: tuple[Tensor, Tensor], lengths: Tensor | None
) -> Tensor:
    """Each layer's full forward behind what its ring holds, and then all rings brought on.

    Raises:
        ValueError: ``x`` or ``lengths`` that does not fit.
        RuntimeError: a dtype or a state that does not, in the words of a step. In any case the
            state stays as it was.
    """
    check_tensors(x=x)
    if lengths is not None:
        check_tensors(lengths=lengths)
    if autocast_enabled(x):
        x = network.uncast(x)
        with torch.autocast(x.device.type, enabled=False):
            return prefill(network, x, state, lengths)
    rings, position = state
    _check_state(network, rings, position)
    check_one_device("prefill", "rings", rings, x=x, position=position, lengths=lengths)
    if network.embedding is not None:
        if x.dim() != 2:
            raise ValueError(f"tokens must be (batch, length), got shape {tuple(x.shape)}")
        _check_dtype("tokens", x, torch.int64)
        x = indices.embed(x, network.embedding.weight)
    if x.dim() != 3 or x.shape[:2] != (len(position), network.in_channels):
        raise ValueError(
            f"x must be (batch, in_channels, length) with batch {len(position)} and in_channels "
            f"{network.in_channels}, got shape {tuple(x.shape)}"
        )
    _check_dtype("embedding" if network.embedding is not None else "x", x, rings.dtype)
    length = x.shape[2]
    if lengths is None:
        taken = torch.full_like(position, length)
    elif lengths.shape == position.shape and bool(((lengths >= 0) & (lengths <= length)).all()):
        taken = lengths
    else:
        raise ValueError(
            f"lengths must be {len(position)} numbers from 0 to {length}, got {lengths}"
        )
    if length == 0:
        return x.new_empty((len(position), network.out_channels, 0))
    times = position[:, None] + torch.arange(length, device=position.device)
    lag = 0
    sizes = [layer.slots * layer.in_channels for layer in network.layers]
    writes: list[_Write] = []
    for layer, ring in zip(network.layers, rings.split(sizes, dim=1), strict=True):
        if lag:
            x = x.masked_fill((times < lag)[:, None], 0)
        x = _prefill_layer(layer, x, ring, position, taken, writes)
        lag += layer.lag
    for ring, slots, kept in writes:  # now that no layer can fail
        ring.scatter_(1, slots, kept)
    position += taken
    return x.masked_fill((times < lag)[:, None], torch.nan) if lag else x


def _prefill_layer(
    layer: NetworkLayer,
    x: Tensor,
    ring: Tensor,
    position: Tensor,
    taken: Tensor,
    writes: list[_Write],
) -> Tensor:
    """The outputs. What later ones will read goes to ``writes``."""
    slots = torch.arange(layer.slots, device=position.device)
    ring = ring.unflatten(1, (layer.slots, layer.in_channels))  # a view

    def index(numbers: Tensor) -> Tensor:
        return numbers[:, None].expand(-1, layer.in_channels, -1)

    padded = x
    if layer.slots:
        oldest_first = (position[:, None] + slots) % layer.slots
        padded = torch.cat([ring.mT.gather(2, index(oldest_first)), x], dim=2)
        kept = padded.gather(2, index(taken[:, None] + slots))
        newest_last = ((position + taken)[:, None] + slots) % layer.slots
        # Not through a transposed view, the writing to which torch.compile cannot undo.
        writes.append((ring, index(newest_last).mT, kept.mT))
    y = conv1d(
        padded,
        layer.weight(),
        layer.module.bias,
        dilation=layer.dilation,
        groups=layer.groups,
        activation=layer.activation,
        backend=getattr(layer.module, "backend", "auto"),
    )
    if layer.gated:
        y = gate(y)
    return y + x if layer.residual else y


def _check_state(network: Network, rings: Tensor, position: Tensor) -> None:
    """In the words of ``csrc/step_checks.h``."""
    for argument, tensor, dimensions in (("rings", rings, 2), ("position", position, 1)):
        if tensor.dim() != dimensions or not tensor.is_contiguous():
            raise RuntimeError(
                f"prefill: {argument} must be contiguous and have {dimensions} dimension(s), "
                f"got shape {shape_of(tensor)}"
            )
    for argument, tensor, dimension, size in (
        ("rings", rings, 1, network.ring_size),
        ("position", position, 0, len(rings)),
    ):
        if tensor.shape[dimension] != size:
            raise RuntimeError(
                f"prefill: {argument} must have the size {size} in dimension {dimension}, "
                f"got shape {shape_of(tensor)}"
            )
    _check_dtype("position", position, torch.int64)
    dtype = network.layers[0].module.weight.dtype
    if dtype != rings.dtype:
        raise RuntimeError(
            f"prefill: weights must have the dtype of rings, got {dtype} beside {rings.dtype}"
        )
    if torch.compiler.is_compiling():
        return  # there is no value to look at
    if position.is_cpu and bool((position < 0).any()):
        raise RuntimeError(f"prefill: position must not be negative, got {int(position.min())}")


def _check_dtype(argument: str, tensor: Tensor, dtype: torch.dtype) -> None:
    if tensor.dtype != dtype:
        raise RuntimeError(f"prefill: {argument} must have the dtype {dtype}, got {tensor.dtype}")
