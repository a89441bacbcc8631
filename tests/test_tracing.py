"""torch.jit.trace, which records torch's own operators, and torch.fx, which records ours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import random
from torch import Tensor, nn
from torch.testing import assert_close

from convlm_kernels import (
    CausalConv1d,
    Conv1d,
    DilatedStack,
    EmbeddingConv1d,
    StackLayer,
    conv1d,
    embedding_conv1d,
    swap_conv1d,
)
from convlm_kernels.lm import CNN, MLP, DilatedCNN

VOCAB = 28


def swapped() -> nn.Module:
    model = nn.Sequential(nn.Conv1d(4, 8, 3, padding="same"), nn.ReLU(), nn.Conv1d(8, 4, 2, 2))
    swap_conv1d(model)
    return model


def of_stack_layers() -> DilatedStack:
    return DilatedStack(
        StackLayer(4, 6, 2, activation="tanh"),
        StackLayer(6, 6, 2, dilation=2, gated=True, residual=True),
    )


def over_tokens() -> DilatedStack:
    first = EmbeddingConv1d(VOCAB, 4, 6, 2, padding="causal", padding_idx=1, activation="tanh")
    return DilatedStack(first, StackLayer(6, 5, 2, dilation=2))


OF_SIGNALS: dict[str, Callable[[], nn.Module]] = {
    "Conv1d": lambda: Conv1d(4, 6, 3, 2, (2, 1), 2, groups=2),
    "Conv1d, circular": lambda: Conv1d(4, 4, 3, padding=1, padding_mode="circular"),
    "CausalConv1d": lambda: CausalConv1d(4, 6, 3, dilation=2, activation="gelu"),
    "swapped": swapped,
    "StackLayer": lambda: StackLayer(4, 4, 2, gated=True, residual=True),
    "DilatedStack": of_stack_layers,
}
OF_TOKENS: dict[str, Callable[[], nn.Module]] = {
    "EmbeddingConv1d": lambda: EmbeddingConv1d(VOCAB, 4, 6, 3, padding="causal", padding_idx=0),
    "DilatedStack over tokens": over_tokens,
}
MODELS: dict[str, Callable[[], nn.Module]] = {"CNN": CNN, "MLP": MLP, "DilatedCNN": DilatedCNN}


def case(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    """A module, an example for it, and another input of other sizes."""
    torch.manual_seed(0)
    if name in OF_SIGNALS:
        return OF_SIGNALS[name](), random(2, 4, 17), random(3, 4, 29)
    kind = (OF_TOKENS | MODELS)[name]
    return kind(), torch.randint(VOCAB, (2, 12)), torch.randint(VOCAB, (5, 19))


def gradients(module: Any, x: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(module(x).square().sum(), list(module.parameters())))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
@pytest.mark.parametrize("name", [*OF_SIGNALS, *OF_TOKENS, *MODELS])
def test_jit_trace(name: str, grad: bool, tmp_path: Path) -> None:
    """Loaded, it needs no operator of ours, takes other sizes and can be trained."""
    module, example, x = case(name)
    with torch.set_grad_enabled(grad):
        traced = torch.jit.trace(module, example)
    traced.save(tmp_path / "module.pt")
    loaded = torch.jit.load(tmp_path / "module.pt")
    assert "convlm::" not in str(loaded.inlined_graph)
    with torch.no_grad():
        assert_close(loaded(x), module(x), rtol=1e-4, atol=1e-5)
    assert_close(gradients(loaded, x), gradients(module, x), rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_an_explicit_backend_is_traced_as_it_is() -> None:
    layer = Conv1d(4, 6, 3, backend="cpp").eval()
    x = random(2, 4, 17)
    with torch.no_grad():
        traced = torch.jit.trace(layer, x)
        assert "convlm::forward" in str(traced.inlined_graph)
        assert torch.equal(traced(x), layer(x))


@pytest.mark.parametrize("name", [*OF_SIGNALS, *OF_TOKENS])
def test_fx(name: str) -> None:
    module, _, x = case(name)
    outer = nn.Sequential(module)
    traced = torch.fx.symbolic_trace(outer)
    calls = [node.target for node in traced.graph.nodes if node.op == "call_function"]
    assert calls.count(conv1d) + calls.count(embedding_conv1d) == sum(
        isinstance(m, nn.Conv1d) for m in module.modules()
    )
    assert_close(traced(x), outer(x))
    assert_close(gradients(traced, x), gradients(outer, x))


class Fused(torch.fx.Tracer):
    """A stack is one operator, and a language model asks its tokens for their size."""

    def is_leaf_module(self, m: nn.Module, qualified_name: str) -> bool:
        leaves = (DilatedStack, *MODELS.values())
        return isinstance(m, leaves) or super().is_leaf_module(m, qualified_name)


@pytest.mark.parametrize("name", ["DilatedStack", "DilatedCNN"])
def test_fx_with_leaves(name: str) -> None:
    module, _, x = case(name)
    outer = nn.Sequential(module)
    graph = Fused().trace(outer)
    assert [node.target for node in graph.nodes if node.op.startswith("call")] == ["0"]
    traced = torch.fx.GraphModule(outer, graph)
    assert torch.equal(traced(x), outer(x))
