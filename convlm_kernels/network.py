"""A chain of causal convolutions as a step sees it: the plan of its layers, and packed weights."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from operator import attrgetter, is_
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import step_ops
from .activations import ACTIVATIONS
from .backends import KERNEL_DTYPES, can_run_steps
from .geometry import as_int, resolve_padding
from .lookup import by_tap

# As in csrc/step.h.
_PANEL, _FILL = 64, 16

# Where the forwards are defined that a step repeats.
_KNOWN_FORWARDS = ("torch.nn.modules.conv", f"{__package__}.layers", f"{__package__}.stack_layers")

_step = step_ops.step._op  # what it calls: a step is short enough to notice
_version_of = attrgetter("_version")
_address_of = Tensor.data_ptr


class NetworkLayer(NamedTuple):
    """A layer as a step sees it; the fields of ``StepLayer`` in csrc/step.h, and its module.

    A first layer of one channel and stride s, over an input that is s numbers a position laid end
    to end, as a layer of s channels and stride 1: that is what it is.
    """

    module: Any  # with a weight, and a bias or None
    in_channels: int
    out_channels: int
    groups: int
    kernel_size: int
    dilation: int
    pad_left: int
    activation: str | None
    gated: bool
    residual: bool

    @property
    def slots(self) -> int:
        return self.dilation * (self.kernel_size - 1)

    @property
    def lag(self) -> int:
        return self.slots - self.pad_left

    @property
    def results(self) -> int:
        return self.out_channels // 2 if self.gated else self.out_channels

    # Not a property: the compiler of torch 2.10 knows none of a tuple.
    def weight(self) -> Tensor:
        """(out_channels, in_channels / groups, kernel_size)."""
        return by_tap(self.module.weight, self.in_channels // self.groups)

    def row(self) -> list[int]:
        numbers = self[1:7]
        activation = 0 if self.activation is None else 1 + list(ACTIVATIONS).index(self.activation)
        return [*numbers, activation, int(self.gated), int(self.residual)]

    def packed_weight(self, dtype: torch.dtype) -> Tensor:
        """The weight in the order in which a step reads it (``StepLayer::weight_size``)."""
        weight = self.weight().to(dtype)
        if self.groups == self.in_channels == self.out_channels:
            return _filled(weight[:, 0].T).flatten()
        grouped = weight.unflatten(0, (self.groups, -1))
        channels_outside = self.kernel_size > weight.shape[1]
        order = (0, 2, 3, 1) if channels_outside else (0, 3, 2, 1)
        steps = grouped.permute(order).flatten(1, 2)  # (groups, steps, outputs)
        steps = F.pad(steps, (0, 0, 0, steps.shape[1] % 2))
        panels = [_filled(panel) for panel in steps.split(_PANEL, dim=2)]
        if dtype == torch.bfloat16:
            panels = [panel.unflatten(1, (-1, 2)).mT for panel in panels]
        return torch.cat([panel.flatten(1) for panel in panels], dim=1).flatten()

    def packed_bias(self, dtype: torch.dtype) -> Tensor:
        bias = self.module.bias
        if bias is None:
            bias = torch.zeros(self.out_channels, device=self.module.weight.device)
        return F.pad(_filled(bias.to(dtype)), (0, _FILL))


def _filled(tensor: Tensor) -> Tensor:
    return F.pad(tensor, (0, -tensor.shape[-1] % _FILL))


def layers_of(module: nn.Module, first: nn.Module | None = None) -> list[NetworkLayer]:
    """The layers of a convolution, or of a chain of them (``nn.Sequential``, also nested).

    ``first``, if there is one, stands for the first layer: what follows the embedding in it.

    Raises:
        ValueError: a layer that cannot take one position at a time; names it and says why.
    """
    layers: list[NetworkLayer] = []
    for name, child in _chain(module, ""):
        if first is not None and not layers:
            child = first
        reason = _why_not(child, first=not layers)
        if reason is not None:
            where = f"layer {name!r} ({type(child).__name__})" if name else type(child).__name__
            raise ValueError(f"{where} cannot stream: {reason}")
        layers.append(_layer_of(child))
    if not layers:
        raise ValueError(f"{type(module).__name__} cannot stream: it has no layers")
    kinds = {(layer.module.weight.dtype, layer.module.weight.device) for layer in layers}
    if len(kinds) > 1:
        raise ValueError(f"layers cannot stream together in several dtypes or devices: {kinds}")
    return layers


def _chain(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    if not isinstance(module, nn.Sequential):
        yield name, module
        return
    for child_name, child in module.named_children():
        yield from _chain(child, f"{name}.{child_name}".lstrip("."))


def _why_not(module: nn.Module, first: bool) -> str | None:
    if not isinstance(module, nn.Conv1d):
        return "it is not a Conv1d"
    if type(module).forward.__module__ not in _KNOWN_FORWARDS or "forward" in module.__dict__:
        return "its class has a forward of its own, which a step does not know"
    if module._forward_hooks or module._forward_pre_hooks:
        return "it has forward hooks, which a step does not run"
    if module.weight.dtype not in KERNEL_DTYPES:
        return f"there is no kernel for {module.weight.dtype}"
    if module.padding_mode != "zeros":
        return f"padding_mode must be 'zeros', got {module.padding_mode!r}"
    kernel_size, stride = module.weight.shape[2], as_int("stride", module.stride)
    dilation, padding = as_int("dilation", module.dilation), module.padding
    if stride != 1:
        if not (first and module.in_channels == dilation == 1 and kernel_size % stride == 0):
            return (
                f"stride must be 1, got {stride} (a first layer of one channel, without dilation, "
                "may have one that divides its kernel_size: a position is then so many numbers)"
            )
        if resolve_padding(padding, kernel_size, stride, dilation) != (0, 0):
            return f"with a stride padding must be 0, got {padding!r}"
        return None
    left, right = resolve_padding(padding, kernel_size, stride, dilation)
    reach = dilation * (kernel_size - 1)
    if right or left > reach:
        return (
            f"an output may depend on no later input, so padding must be 'causal' or at most "
            f"({reach}, 0), got {padding!r}"
        )
    return None


def _layer_of(module: Any) -> NetworkLayer:
    stride = as_int("stride", module.stride)
    kernel_size, dilation = module.weight.shape[2] // stride, as_int("dilation", module.dilation)
    pad_left, _ = resolve_padding(module.padding, module.weight.shape[2], stride, dilation)
    return NetworkLayer(
        module,
        module.in_channels * stride,
        module.out_channels,
        module.groups,
        kernel_size,
        dilation,
        pad_left,
        getattr(module, "activation", None),
        getattr(module, "gated", False),
        getattr(module, "residual", False),
    )


def _owners_of(layers: list[NetworkLayer], embedding: nn.Embedding | None) -> list[Any]:
    """Views of what the modules, and what parametrizes them, hold at any time: tensors or None."""
    modules = [layer.module for layer in layers]
    if embedding is not None:
        modules.append(embedding)
    inner = [module for outer in modules for module in outer.modules()]
    owners = [own for module in inner for own in (module._parameters, module._buffers) if own]
    return [own.values() for own in owners]


def _are_same(some: list[Any], others: list[Any]) -> bool:
    return len(some) == len(others) and all(map(is_, some, others))


class PackedNetwork(NamedTuple):
    """What the operators of a step take besides the state; ``csrc/step.h`` says how it lies."""

    embedding: Tensor | None
    weights: Tensor
    biases: Tensor
    plan: Tensor


class Network:
    """The layers of a module as the plan of a step, and their weights packed for it.

    The weights are packed when they are first asked for, and again when any of them has changed:
    another parameter stands in its place, its version counter tells of updates in place, or its
    address of other storage. (Writing through ``parameter.data`` in place changes none of these;
    torch itself cannot see that, and only :meth:`refresh` does.) They are always packed into the
    same memory, also by a network ``after`` another of the same sizes. So what a CUDA graph
    captured reads them too, once a step outside of it, or :meth:`refresh`, has packed them.

    With an ``embedding``, steps take tokens, numbers of its rows. It is read where it lies.
    """

    def __init__(
        self,
        layers: list[NetworkLayer],
        embedding: nn.Embedding | None = None,
        after: Network | None = None,
    ) -> None:
        weight = layers[0].weight()
        self.layers = layers
        self.dtype, self.device = weight.dtype, weight.device
        self.in_channels, self.out_channels = layers[0].in_channels, layers[-1].results
        self.ring_size = sum(layer.slots * layer.in_channels for layer in layers)
        # On the CPU, wherever the rest is: it is checked there without waiting for a device.
        self.plan = torch.tensor([layer.row() for layer in layers], device="cpu")
        self.embedding = embedding
        self._owners = _owners_of(layers, embedding)
        self._held = [*chain.from_iterable(self._owners)]
        self._tensors = [tensor for tensor in self._held if tensor is not None]
        self._seen: dict[torch.dtype | None, list[int]] = {}
        # What was packed last: as long as it is there, no other storage has its address.
        self._read: dict[torch.dtype | None, list[Tensor]] = {}
        self._packed: dict[torch.dtype | None, PackedNetwork] = {}
        if after is not None and self._is_laid_out_as(after):
            self._packed = after._packed

    def __reduce__(self) -> Any:
        return type(None), ()  # a copied or saved module makes its own

    def has(self, layers: list[NetworkLayer], embedding: nn.Embedding | None) -> bool:
        """Whether it was made of these, with the parameters that they have now."""
        held, weight = [*chain.from_iterable(_owners_of(layers, embedding))], layers[0].weight()
        return (
            layers == self.layers
            and (weight.dtype, weight.device) == (self.dtype, self.device)
            and _are_same(held, self._held)
        )

    def _is_laid_out_as(self, other: Network) -> bool:
        """Whether the packed weights of one fit into the memory of the other's."""
        return (self.dtype, self.device) == (other.dtype, other.device) and torch.equal(
            self.plan, other.plan
        )

    def packed(self, dtype: torch.dtype | None = None) -> PackedNetwork:
        """The tensors of a step, the weights among them in ``dtype`` (by default their own).

        Raises:
            RuntimeError: on a device for which there are no kernels. Weights that changed since
                they were last packed, or never were, while a CUDA graph is captured: every replay
                would pack them.
        """
        if torch.compiler.is_compiling():
            return self._pack(dtype)  # in the graph, where no version can be read
        held = [*chain.from_iterable(self._owners)]
        if not _are_same(held, self._held):
            self._held, self._tensors = held, [tensor for tensor in held if tensor is not None]
            self._seen.clear()
        try:
            seen = [*map(_version_of, self._tensors), *map(_address_of, self._tensors)]
        except RuntimeError:  # tensors made in inference mode have no version
            return self._pack(dtype)
        if seen != self._seen.get(dtype):
            self._wait_for_other_streams()
            with torch.inference_mode(False):  # so that they can be packed again outside of it
                self._packed[dtype] = self._pack(dtype, self._packed.get(dtype))
            self._wait_for_other_streams()
            self._seen[dtype] = seen
            self._read[dtype] = [tensor.detach() for tensor in self._tensors]
        return self._packed[dtype]

    def _wait_for_other_streams(self) -> None:
        """Some may still read what was packed before, or read at once what is packed now."""
        if self._is_captured():
            raise RuntimeError(
                "the weights are to be packed before a graph is captured: take a step first"
            )
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _is_captured(self) -> bool:
        if self.device.type != "cuda":
            return False
        with torch.cuda.device(self.device):
            return torch.cuda.is_current_stream_capturing()

    def refresh(self) -> None:
        """Packs again what was packed, whether or not a change of it can be seen.

        While a CUDA graph is captured, where nothing may be packed, only what has changed.
        """
        if not self._is_captured():
            self._seen.clear()
        for dtype in list(self._packed):
            self.packed(dtype)

    @torch.no_grad()
    def _pack(self, dtype: torch.dtype | None, into: PackedNetwork | None = None) -> PackedNetwork:
        own = self.layers[0].weight()
        reason = can_run_steps(own.device)
        if reason is not None:
            raise RuntimeError(reason)
        sums = torch.float64 if own.dtype == torch.float64 else torch.float32
        weights = torch.cat([layer.packed_weight(dtype or own.dtype) for layer in self.layers])
        biases = torch.cat([layer.packed_bias(sums) for layer in self.layers])
        if into is not None:
            weights, biases = into.weights.copy_(weights), into.biases.copy_(biases)
        embedding = None if self.embedding is None else self.embedding.weight.detach()
        return PackedNetwork(embedding, weights, biases, self.plan)

    def step(self, x: Tensor, state: tuple[Tensor, Tensor], dtype: torch.dtype | None) -> Tensor:
        """The outputs (batch, out_channels) for features (batch, in_channels) or tokens (batch).

        Without gradients.
        """
        if x.requires_grad:  # costs less than no_grad
            x = x.detach()
        embedding, weights, biases, plan = self.packed(dtype)
        rings, position = state
        step = step_ops.step if torch.compiler.is_compiling() else _step
        return step(x, embedding, rings, position, weights, biases, plan, self.out_channels)
