"""What all launchers share: how a grid is cut, the types numbers have, and the interpreter."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from .configurations import Configuration

# The most programs of a grid's first dimension; what is more goes into the second.
LARGEST_GRID = 2**31 - 1

# The most that numbers within a tile may come to before they are counted in 64 bits.
LARGEST_IN_TILE = 2**30


def interpreted() -> bool:
    """Whether TRITON_INTERPRET=1 has kernels run by the interpreter, on the CPU."""
    return bool(triton.knobs.runtime.interpret)


def has_descriptors(device: torch.device) -> bool:
    """Whether tiles can be copied by tensor descriptor: Hopper and later, and the interpreter."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (9, 0)
    return interpreted()


def number_type(programs: int, *within_tile: int) -> tl.dtype:
    """32 bits, unless the programs or the numbers within one of their tiles need more."""
    small = programs <= LARGEST_GRID and max(within_tile) <= LARGEST_IN_TILE
    return tl.int32 if small else tl.int64


def largest_offset(tensor: Tensor, channels: int, positions: int) -> int:
    """The most that an offset comes to in a tile of so many channels and positions."""
    _, channel, position = tensor.stride()
    return channels * channel + positions * position


def block(count: int, most: int) -> int:
    """A power of two that tl.dot takes, at least ``count`` unless that is above ``most``."""
    return min(most, max(16, triton.next_power_of_2(count)))


def run(kernel: Any, programs: int, arguments: dict[str, Any], blocks: Configuration) -> None:
    """Launches ``kernel``, on the current stream of the device that its tensors are on."""
    grid = min(programs, LARGEST_GRID), triton.cdiv(programs, LARGEST_GRID)
    if interpreted():
        _interpret(kernel, grid, arguments)
        return
    with torch.cuda.device_of(next(v for v in arguments.values() if isinstance(v, Tensor))):
        kernel[grid](**arguments, num_warps=blocks.warps, num_stages=blocks.stages)


def _interpret(kernel: Any, grid: tuple[int, int], arguments: dict[str, Any]) -> None:
    """Runs ``kernel`` on float32 copies of bfloat16 tensors, which the interpreter gets wrong.

    (It multiplies their bits, and stores them without rounding.) Outputs are copied back.
    """
    copies: dict[int, Tensor] = {}  # one of a tensor, under however many names it is passed

    def as_float32(tensor: Tensor) -> Tensor:
        if id(tensor) not in copies:
            copies[id(tensor)] = _as_float32(tensor)
        return copies[id(tensor)]

    exact: dict[str, Any] = {}
    for name, value in arguments.items():
        if isinstance(value, Tensor) and value.dtype == torch.bfloat16:
            exact[name] = as_float32(value)
        elif isinstance(value, TensorDescriptor) and value.base.dtype == torch.bfloat16:
            exact[name] = replace(value, base=as_float32(value.base))
    kernel[grid](**(arguments | exact))
    for name, value in exact.items():
        if name.startswith("p_out"):
            arguments[name].copy_(value)


def _as_float32(tensor: Tensor) -> Tensor:
    """A copy with the same strides."""
    extent = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    memory = tensor.as_strided((extent if tensor.numel() else 0,), (1,)).float()
    return memory.as_strided(tensor.shape, tensor.stride())
