"""A chain of causal convolutions as a step takes it: a plan of its layers, and packed weights."""

from __future__ import annotations

import threading
from functools import cache
from itertools import chain
from operator import attrgetter, is_
from typing import Any, NamedTuple
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

from . import step_ops
from .backends import can_run_steps
from .functional import autocast_enabled, castable, check_tensors
from .network_layers import NetworkLayer

_step = step_ops.step._op  # what it calls: a step is short enough to notice
_is_compiling = torch.compiler.is_compiling
_version_of = attrgetter("_version")
_address_of = Tensor.data_ptr


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


_watched: WeakSet[Network] = WeakSet()
_watching = threading.Lock()


def _watch(network: Network) -> None:
    """From now on steps of optimizers tell ``network``; who never streams has no hook on them."""
    with _watching:
        _hook_optimizers()
        _watched.add(network)


@cache
def _hook_optimizers() -> None:
    register_optimizer_step_post_hook(_after_step)


def _after_step(optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
    """Fused optimizers, and those that write through ``.data``, leave version counters alone."""
    groups = optimizer.param_groups
    if _is_compiling() and not any(group.get("fused") for group in groups):
        return  # a graph counts what it changes; a fused step is no part of one
    _forget_any_of({id(parameter) for group in groups for parameter in group["params"]})


@torch._disable_dynamo
def _forget_any_of(stepped: set[int]) -> None:
    with _watching:
        networks = list(_watched)
    for network in networks:
        network.forget_any_of(stepped)


class PackedNetwork(NamedTuple):
    """What the operators of a step take besides the state; ``csrc/step.h`` says how it lies."""

    embedding: Tensor | None
    weights: Tensor
    biases: Tensor
    plan: Tensor


class Network:
    """The layers of a module as the plan of a step, and their weights packed for it.

    The weights are packed when they are first asked for, and again when any of them has changed:
    another parameter stands in its place, its version counter tells of updates in place, its
    address of other storage, or an optimizer took a step on it. (Writing in place through
    ``parameter.data`` or an array of numpy changes none of these; torch itself cannot see that, and
    only :meth:`refresh` does, by a copy of the weights. Those made in inference mode have no
    counter, and are compared with a copy each time.) They are always packed into the same memory,
    also by a network ``after`` another of the same sizes. So what a CUDA graph captured reads them
    too, once a step outside of it, or :meth:`refresh`, has packed them.

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
        # Of the tensors, as the last refresh packed them; none where they were packed since.
        self._copies: list[Tensor] = []
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
        if _is_compiling():
            return self._pack(dtype)  # in the graph, where no version can be read
        held = [*chain.from_iterable(self._owners)]
        if not _are_same(held, self._held):
            self._held, self._tensors = held, [tensor for tensor in held if tensor is not None]
            self._copies = []
            self._seen.clear()
        counted = True
        try:
            seen = [*map(_version_of, self._tensors), *map(_address_of, self._tensors)]
        except RuntimeError:  # tensors made in inference mode have no version: their values tell
            counted, seen = False, [*map(_address_of, self._tensors)]
            if not self._is_captured() and not self._are_as_copied():
                self._seen.clear()
        if seen != self._seen.get(dtype):
            _watch(self)
            self._wait_for_other_streams()
            with torch.inference_mode(False):  # so that they can be packed again outside of it
                self._packed[dtype] = self._pack(dtype, self._packed.get(dtype))
            self._wait_for_other_streams()
            self._seen[dtype] = seen
            self._read[dtype] = [tensor.detach() for tensor in self._tensors]
            self._copies = [] if counted else self._copied()
        return self._packed[dtype]

    def forget_any_of(self, changed: set[int]) -> None:
        """Has the weights packed again if one of them has its ``id`` among those ``changed``."""
        if not changed.isdisjoint(map(id, self._tensors)):
            self._seen.clear()

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
        """Packs again what was packed and has changed, whether or not torch can see that.

        While a CUDA graph is captured, where nothing may be packed, only what it can see.
        """
        unsure = bool(self._packed) and not self._is_captured() and not self._are_as_copied()
        if unsure:
            self._seen.clear()
        for dtype in list(self._packed):
            self.packed(dtype)
        if unsure:
            self._copies = self._copied()

    def _packed_from(self) -> list[Tensor]:
        """Not the embedding, which comes last, unless it is computed: it is read where it lies."""
        own = None if self.embedding is None else self.embedding._parameters.get("weight")
        held = self._tensors  # none in a replica of DataParallel, whose weights are no parameters
        return held[:-1] if held and held[-1] is own else held

    def _copied(self) -> list[Tensor]:
        return [tensor.detach().clone() for tensor in self._packed_from()]

    def _are_as_copied(self) -> bool:
        """Whether they have the values of the copies, which takes a tenth of packing them."""
        if not self._copies:
            return False
        self._wait_for_other_streams()
        return all(
            (tensor.dtype, tensor.device) == (copy.dtype, copy.device) and torch.equal(tensor, copy)
            for tensor, copy in zip(self._packed_from(), self._copies, strict=True)
        )

    @torch.no_grad()
    def _pack(self, dtype: torch.dtype | None, into: PackedNetwork | None = None) -> PackedNetwork:
        own = self.layers[0].weight()
        reason = can_run_steps(own.device)
        if reason is not None:
            raise RuntimeError(reason)
        if autocast_enabled(own):  # which may cast what parametrizes a weight
            with torch.autocast(own.device.type, enabled=False):
                return self._pack(dtype, into)
        sums = torch.float64 if own.dtype == torch.float64 else torch.float32
        pieces = (layer.packed_weight(dtype or own.dtype) for layer in self.layers)
        biases = torch.cat([layer.packed_bias(sums) for layer in self.layers])
        if into is None:
            weights = torch.cat([*pieces])
        else:
            weights, biases = into.weights, into.biases.copy_(biases)
            begin = 0
            for piece in pieces:  # one at a time: together they take as much memory once more
                weights[begin : begin + len(piece)] = piece
                begin += len(piece)
            if begin < len(weights):
                raise RuntimeError("weights must keep their sizes until the next init_state")
        embedding = None if self.embedding is None else self.embedding.weight.detach()
        return PackedNetwork(embedding, weights, biases, self.plan)

    def uncast(self, x: Tensor) -> Tensor:
        """``x`` in the dtype of the weights where autocast would have a layer take both.

        It may have cast ``x`` for a layer before; steps stay in the one dtype that a state is of.
        """
        if castable(x.dtype) and castable(self.dtype) and autocast_enabled(x):
            return x.to(self.dtype)
        return x

    def step(self, x: Tensor, state: tuple[Tensor, Tensor], dtype: torch.dtype | None) -> Tensor:
        """The outputs (batch, out_channels) for features (batch, in_channels) or tokens (batch).

        Without gradients.
        """
        if not isinstance(x, Tensor):
            check_tensors(x=x)
        if x.requires_grad:  # costs less than no_grad
            x = x.detach()
        if x.dtype is not self.dtype and self.embedding is None:
            x = self.uncast(x)
        embedding, weights, biases, plan = self.packed(dtype)
        rings, position = state
        step = step_ops.step if _is_compiling() else _step
        return step(x, embedding, rings, position, weights, biases, plan, self.out_channels)
