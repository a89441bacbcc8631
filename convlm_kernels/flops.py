"""What ``torch.utils.flop_counter`` says of the operators: what it says of torch's own layers.

Stacks count as their layers, whatever they share; look-ups count their additions, one for each row
of the table that is summed. Steps of a stream are not counted.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Sequence
from math import prod
from types import ModuleType
from typing import Any

import torch

from .geometry import output_length
from .stack_ops import Settings, layers_of

Shape = Sequence[int]

_COUNTER = "torch.utils.flop_counter"


def _forward(x: Shape, weight: Shape, *_: Any, out_shape: Shape) -> int:
    return 2 * x[0] * out_shape[2] * prod(weight)


def _grad_input(grad_output: Shape, weight: Shape, *_: Any, **__: Any) -> int:
    return 2 * grad_output[0] * grad_output[2] * prod(weight)


def _grad_weight(grad_output: Shape, x: Shape, kernel_size: int, *_: Any, **__: Any) -> int:
    """As torch counts it: of a grouped convolution also the products between groups."""
    return 2 * prod(grad_output) * x[1] * kernel_size


def _gradients(grad_output: Shape, x: Shape, weight: Shape, *_: Any, **__: Any) -> int:
    return _grad_input(grad_output, weight) + _grad_weight(grad_output, x, weight[2])


def _lookup(tokens: Shape, table: Shape, *_: Any, out_shape: Shape) -> int:
    return prod(out_shape) * table[0]


def _grad_table(grad_output: Shape, tokens: Shape, kernel_size: int, *_: Any, **__: Any) -> int:
    return prod(grad_output) * kernel_size


def _lookup_losses(
    tokens: Shape, target: Shape, embedding: Shape, weight: Shape, *_: Any, **__: Any
) -> int:
    return _table_and_rows(target, embedding, weight)[0]


def _lookup_cross_entropy(
    tokens: Shape,
    target: Shape,
    rows: Shape | None,
    embedding: Shape,
    weight: Shape,
    *_: Any,
    **__: Any,
) -> int:
    steps = 1
    if rows is not None:
        *several, batch = rows
        steps, target = prod(several), (batch, target[1])
    forward, backward = _table_and_rows(target, embedding, weight)
    return steps * (forward + backward)


def _table_and_rows(target: Shape, embedding: Shape, weight: Shape) -> tuple[int, int]:
    """Of the losses, and of their gradients."""
    vocab, embedding_dim = embedding
    table = 2 * vocab * prod(weight)
    rows = prod(target) * prod(weight) // embedding_dim
    return table + rows, 2 * table + rows


def _stack(
    x: Shape,
    tokens: Shape | None,
    weights: list[Shape],
    settings: Settings,
    batch: int | None = None,
) -> list[int]:
    """Of each layer."""
    length = x[2] if tokens is None else tokens[1]
    if batch is None:
        batch = x[0] if tokens is None else tokens[0]
    counts = []
    for weight, layer in zip(weights, layers_of(settings), strict=True):
        length = output_length(length, weight[2], 1, layer.dilation, layer.pad, 0)
        counts.append(2 * batch * length * prod(weight))
    return counts


def _stack_forward(
    x: Shape,
    tokens: Shape | None,
    weights: Any,
    biases: Any,
    settings: Settings,
    *_: Any,
    **__: Any,
) -> int:
    return sum(_stack(x, tokens, weights, settings))


def _stack_backward(
    grad_output: Shape,
    saved: Shape,
    x: Shape,
    tokens: Shape | None,
    weights: Any,
    biases: Any,
    settings: Settings,
    share: bool,
    with_x: bool,
    **_: Any,
) -> int:
    first, *others = _stack(x, tokens, weights, settings)
    return (2 if with_x else 1) * first + 2 * sum(others)


def _stack_losses(
    x: Shape,
    tokens: Shape,
    target: Shape,
    weights: Any,
    biases: Any,
    settings: Settings,
    *_: Any,
    **__: Any,
) -> int:
    return sum(_stack(x, tokens, weights, settings))


def _stack_cross_entropy(*arguments: Any, **_: Any) -> int:
    return 3 * _stack_losses(*arguments)


def _stack_sgd(
    x: Shape,
    tokens: Shape,
    target: Shape,
    rows: Shape | None,
    weights: Any,
    biases: Any,
    settings: Settings,
    *_: Any,
    **__: Any,
) -> int:
    return 3 * sum(_stack(x, tokens, weights, settings, None if rows is None else prod(rows)))


FORMULAS: dict[str, Callable[..., int]] = {
    "forward": _forward,
    "grad_input": _grad_input,
    "grad_weight": _grad_weight,
    "gradients": _gradients,
    "lookup": _lookup,
    "lookup_grad_table": _grad_table,
    "lookup_losses": _lookup_losses,
    "lookup_cross_entropy": _lookup_cross_entropy,
    "lookup_sgd_": _lookup_cross_entropy,
    "stack_forward": _stack_forward,
    "stack_backward": _stack_backward,
    "stack_losses": _stack_losses,
    "stack_cross_entropy": _stack_cross_entropy,
    "stack_sgd_": _stack_sgd,
}


class _WhenCounterIsImported(importlib.abc.MetaPathFinder):
    """Registers what waits for the counter, once somebody else has imported it.

    It imports Triton, which takes half a second: too long for those who count nothing.
    """

    def __init__(self) -> None:
        self.namespaces: set[str] = set()

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != _COUNTER:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            sys.meta_path.remove(self)
            for namespace in self.namespaces:
                _register(module, namespace)

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


_waiting = _WhenCounterIsImported()


def count(namespace: str) -> None:
    """Has those operators of ``namespace`` counted that :data:`FORMULAS` names, as far as they are
    defined by now, or by the time that somebody counts.
    """
    if _COUNTER in sys.modules:
        _register(sys.modules[_COUNTER], namespace)
        return
    _waiting.namespaces.add(namespace)
    if _waiting not in sys.meta_path:
        sys.meta_path.insert(0, _waiting)


def _register(counter: ModuleType, namespace: str) -> None:
    operators = getattr(torch.ops, namespace)
    for name, formula in FORMULAS.items():
        operator = getattr(operators, name, None)
        if operator is not None and operator not in counter.flop_registry:
            counter.register_flop_formula(operator)(formula)
