"""What torch.utils.flop_counter counts: of ours as much as of torch's own layers."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import convlm_kernels
from convlm_kernels import (
    DilatedStack,
    StackLayer,
    embedding_conv1d,
    embedding_conv1d_cross_entropy,
    flops,
    lookup_ops,
    ops,
    stack_autograd,
    stack_ops,
    swap_conv1d,
)
from convlm_kernels.stack_layers import operands_of


def counted(function: Callable[[], Any]) -> dict[str, int]:
    """By operator."""
    with FlopCounterMode(display=False) as counter:
        function()
    by_operator: dict[Any, int] = counter.get_flop_counts().get("Global", {})
    return {str(operator).split(".", 1)[1]: count for operator, count in by_operator.items()}


def total(function: Callable[[], Any]) -> int:
    return sum(counted(function).values())


@pytest.mark.parametrize("wants_x", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_a_swapped_model(groups: int, wants_x: bool) -> None:
    theirs = nn.Sequential(
        nn.Conv1d(4, 8, 3, stride=2, padding=1, groups=groups),
        nn.Tanh(),
        nn.Conv1d(8, 6, 3, dilation=2, groups=groups, bias=False),
    )
    ours = copy.deepcopy(theirs)
    swap_conv1d(ours)
    x = torch.randn(3, 4, 20, requires_grad=wants_x)
    expected = total(lambda: theirs(x).sum().backward())
    assert expected > 0
    assert total(lambda: ours(x).sum().backward()) == expected
    assert total(lambda: ours(x)) == total(lambda: theirs(x))


def tokens_and_target() -> tuple[Tensor, Tensor]:
    return torch.randint(28, (32, 12)), torch.randint(7, (32, 10))


@pytest.mark.parametrize("wants_x", [False, True])
def test_a_stack_counts_as_its_layers(wants_x: bool) -> None:
    """Called as the layers call it: the counter's own hooks on modules keep these from it."""
    layers = [StackLayer(4, 6, 2, activation="tanh"), StackLayer(6, 6, 3, dilation=2, gated=True)]
    theirs = nn.Sequential(*layers)
    x = torch.randn(3, 4, 20, requires_grad=wants_x)
    weights, biases, settings = operands_of(layers, x)

    def fused() -> Tensor:
        return stack_autograd.stack(x, None, weights, biases, settings)

    expected = counted(lambda: theirs(x).sum().backward())
    found = counted(lambda: fused().sum().backward())
    assert set(found) == {"stack_forward", "stack_backward"}
    assert sum(found.values()) == sum(expected.values())
    assert found["stack_forward"] == expected["forward"]


def test_a_stack_with_its_loss() -> None:
    tokens, _ = tokens_and_target()
    target = torch.randint(7, tokens.shape)
    embedding = torch.randn(28, 4, requires_grad=True)
    layers = [StackLayer(4, 6, 2, activation="tanh"), StackLayer(6, 7, 2, dilation=2)]
    weights, biases, settings = operands_of(layers, embedding)
    operands = embedding, tokens, target, weights, biases
    forward = total(lambda: DilatedStack(*layers)(embedding[tokens].mT))
    mean = counted(lambda: stack_autograd.cross_entropy(*operands, settings).backward())
    assert mean == {"stack_cross_entropy": 3 * forward}
    with torch.no_grad():
        losses = counted(lambda: stack_autograd.cross_entropy(*operands, settings, "none"))
        assert losses == {"stack_losses": forward}
        rows = torch.arange(8)  # a quarter
        step = (embedding, tokens, target, rows, weights, biases, settings, True, 0.1)
        assert counted(lambda: stack_ops.stack_sgd_(*step)) == {"stack_sgd_": 3 * forward // 4}
        steps = (*step[:3], rows.repeat(5, 1), *step[4:])
        assert counted(lambda: stack_ops.stack_sgd_(*steps)) == {"stack_sgd_": 15 * forward // 4}


def test_look_ups() -> None:
    """A table of 28 words, and then a sum of rows at each position."""
    tokens, target = tokens_and_target()
    embedding, weight = torch.randn(28, 4), torch.randn(7, 4, 3)
    for tensor in (embedding, weight):
        tensor.requires_grad_()
    table, rows = 2 * 28 * prod(weight.shape), 3 * 7 * target.numel()
    found = counted(lambda: embedding_conv1d(tokens, embedding, weight).sum().backward())
    assert found == {
        "forward": table,
        "lookup": rows,
        "lookup_grad_table": rows,
        "gradients": 2 * table,
    }
    loss = embedding_conv1d_cross_entropy
    found = counted(lambda: loss(tokens, target, embedding, weight).backward())
    assert found == {"lookup_cross_entropy": 3 * table + 2 * rows}
    with torch.no_grad():
        found = counted(lambda: loss(tokens, target, embedding, weight))
        assert found == {"lookup_losses": table + rows}
        step = (tokens, target, torch.arange(8), embedding, weight, None, 1, 0, 0, 1, 0.1)
        one = 3 * table + 2 * rows // 4
        assert counted(lambda: lookup_ops.sgd_(*step)) == {"lookup_sgd_": one}
        steps = (*step[:2], torch.arange(8).repeat(5, 1), *step[3:])
        assert counted(lambda: lookup_ops.sgd_(*steps)) == {"lookup_sgd_": 5 * one}


def test_every_operator_with_products_is_counted() -> None:
    """But for the steps of a stream, as flops.py says; an exported call counts as what it calls."""
    uncounted = {"step", "generate", "sgd_", "stack_rows", "activate"}
    uncounted |= {"exported_forward", "exported_lookup", "exported_stack"}
    operators = {
        name.split("::")[1]
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("convlm::")
    }
    assert operators - uncounted == set(flops.FORMULAS)


@pytest.mark.parametrize("counter_first", [False, True])
def test_the_counter_is_not_imported_with_the_package(counter_first: bool) -> None:
    """It takes longer than the package; and what imports it later finds it complete."""
    counter = "from torch.utils.flop_counter import flop_registry"
    package = "import convlm_kernels"
    not_yet = "import sys; assert 'torch.utils.flop_counter' not in sys.modules"
    lines = [counter, package] if counter_first else [package, not_yet, counter]
    lines.append("import torch; assert torch.ops.convlm.forward in flop_registry")
    root = Path(convlm_kernels.__file__).parents[1]
    subprocess.run([sys.executable, "-c", "\n".join(lines)], cwd=root, check=True)


def test_by_triton() -> None:
    pytest.importorskip("triton")
    from torch.utils.flop_counter import flop_registry

    from convlm_kernels import triton_stack_ops  # noqa: F401  (importing it defines them all)

    defined = [*ops.Operators._fields, *lookup_ops.Operators._fields, *stack_ops.Operators._fields]
    for name in defined:
        assert getattr(torch.ops.convlm_triton, name) in flop_registry
