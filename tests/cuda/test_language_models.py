"""The language models' steps on the emulated operators, as they go on a GPU."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch

from build import emulated, take_launches
from convlm_kernels import embedding_loss, lookup_ops, stack_ops
from convlm_kernels.lm import CNN, DilatedCNN
from convlm_kernels.lm.char_model import CharModel

STACK = ("stack_cross_entropy", "stack_losses", "stack_sgd_", "stack_rows")


@pytest.fixture
def on_the_emulator(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in STACK:
        monkeypatch.setattr(stack_ops, name, emulated(name))
    stacks = stack_ops.Operators(emulated("stack_forward"), emulated("stack_backward"))
    monkeypatch.setitem(stack_ops.OPERATORS, "native", stacks)
    lookups = lookup_ops.Operators(emulated("lookup"), emulated("lookup_grad_table"))
    monkeypatch.setitem(lookup_ops.OPERATORS, "native", lookups)
    monkeypatch.setattr(embedding_loss, "_is_gpu_stack", lambda *_: True)


def plain(model: CharModel) -> Any:
    twin: Any = deepcopy(model)
    twin.fused = False
    return twin


@pytest.mark.usefixtures("on_the_emulator")
@pytest.mark.parametrize("kind", [CNN, DilatedCNN])
def test_a_model_as_a_stack(kind: type[CharModel]) -> None:
    torch.manual_seed(0)
    model = kind(vocab=6, context=4, embedding=3).double()
    twin = plain(model)
    x, y = torch.randint(6, (5, 9)), torch.randint(6, (5, 6))
    rows = torch.tensor([4, 0, 4])
    torch.testing.assert_close(model(x), twin(x))
    for reduction in ("mean", "sum", "none"):
        losses = [m.loss(x, y, reduction) for m in (model, twin)]
        torch.testing.assert_close(*losses)
        gradients = [
            torch.autograd.grad(loss.sum(), list(m.parameters()))
            for loss, m in zip(losses, (model, twin), strict=True)
        ]
        torch.testing.assert_close(*gradients)
    torch.testing.assert_close(model.training_step(x, y, rows), twin.training_step(x, y, rows))
    for own, right in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(own.grad, right.grad)
    for _ in range(3):
        take_launches()
        loss = model.sgd_step(x, y, 0.5, rows)
        assert sorted(take_launches().values()) == [1, 1]
        torch.testing.assert_close(loss, twin.sgd_step(x, y, 0.5, rows))
    torch.testing.assert_close(model.state_dict(), twin.state_dict())


@pytest.mark.usefixtures("on_the_emulator", "however_small")
def test_a_model_that_shares_contexts() -> None:
    torch.manual_seed(0)
    model = DilatedCNN(vocab=3, context=4, embedding=3, hidden=5).double()
    twin = plain(model)
    x, y = torch.randint(3, (7, 9)), torch.randint(3, (7, 6))
    rows = torch.tensor([4, 0, 4, 6, 1])
    for reduction in ("mean", "sum", "none"):
        torch.testing.assert_close(*(m.loss(x, y, reduction) for m in (model, twin)))
    for _ in range(3):
        take_launches()
        loss = model.sgd_step(x, y, 0.5, rows)
        # Contexts, who reads them, layers, the loss, sums of readers and layers back, gradients.
        assert sum(take_launches().values()) == 5 + 5 + 2 + 1 + 2 * 2 + 1
        torch.testing.assert_close(loss, twin.sgd_step(x, y, 0.5, rows))
    torch.testing.assert_close(model.state_dict(), twin.state_dict())
