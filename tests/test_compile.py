"""torch.compile and torch.export see whole graphs, forward and backward, with any sizes.

Most tests use the aot_eager backend: it traces all that a real one does and compiles nothing.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
import torch
from cases import random
from torch import Tensor, nn
from torch.nn import functional as F

from convlm_kernels import (
    CausalConv1d,
    Conv1d,
    DilatedStack,
    EmbeddingConv1d,
    StackLayer,
    conv1d,
)
from convlm_kernels.activations import ACTIVATIONS


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def leaves_of(length: int, batch: int = 2) -> list[Tensor]:
    shapes = (batch, 4, length), (6, 2, 3), (6,)
    return [random(*shape).requires_grad_() for shape in shapes]


def assert_same(compiled, function, *arguments: Tensor) -> None:
    """Results, and gradients with respect to everything that requires one."""
    y, expected = compiled(*arguments), function(*arguments)
    torch.testing.assert_close(y, expected)
    leaves = [t for t in arguments if t.requires_grad]
    own, right = (torch.autograd.grad(t.square().sum(), leaves) for t in (y, expected))
    torch.testing.assert_close(own, right)
    with torch.no_grad():
        torch.testing.assert_close(compiled(*arguments), function(*arguments))


@pytest.mark.parametrize("dynamic", [False, True, None], ids=["static", "dynamic", "automatic"])
@pytest.mark.parametrize("activation", [None, "tanh", "silu"])
def test_forward_and_backward(activation: str | None, dynamic: bool | None) -> None:
    def function(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return conv1d(x, weight, bias, 2, (1, 3), 2, 2, activation=activation)

    compiled = torch.compile(function, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    for length, batch in ((10, 2), (13, 2), (31, 3)):
        assert_same(compiled, function, *leaves_of(length, batch))


def test_one_graph_for_every_length() -> None:
    graphs = []

    def count(graph: torch.fx.GraphModule, inputs: list):
        graphs.append(graph)
        return graph

    compiled = torch.compile(lambda *a: conv1d(*a, groups=2), backend=count, dynamic=True)
    for length in (10, 17, 30, 64):
        # Sizes that are equal at first would be taken for one and the same.
        x, weight, bias = (t.detach() for t in leaves_of(length, batch=length // 2))
        torch.testing.assert_close(compiled(x, weight, bias), F.conv1d(x, weight, bias, groups=2))
    assert len(graphs) == 1


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            Conv1d(4, 8, 3, padding="same", activation="tanh"),
            CausalConv1d(8, 8, 2, dilation=2, activation="gelu"),
            Conv1d(8, 8, 3, padding=2, padding_mode="reflect", groups=4),
            Conv1d(8, 2, 1, activation="sigmoid", backend="torch"),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


@pytest.mark.parametrize("batched", [True, False], ids=["batched", "unbatched"])
def test_layers(batched: bool) -> None:
    torch.manual_seed(0)
    model = Model()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    x = random(2, 4, 9) if batched else random(4, 9)
    parameters = tuple(model.parameters())
    assert_same(lambda x, *_: compiled(x), lambda x, *_: model(x), x, *parameters)


def test_inductor() -> None:
    def function(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return conv1d(x, weight, bias, groups=2, padding="causal", activation="gelu")

    assert_same(torch.compile(function, fullgraph=True), function, *leaves_of(10))


def test_autocast() -> None:
    compiled = torch.compile(conv1d, backend="aot_eager", fullgraph=True)
    x, weight, bias = leaves_of(10)
    weight = random(6, 4, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = compiled(x, weight, bias, activation="relu")
        assert y.dtype == torch.bfloat16
        assert torch.equal(y, conv1d(x, weight, bias, activation="relu"))
    assert compiled(x, weight, bias).dtype == torch.float32


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_graph_is_one_operator(activation: str) -> None:
    """Nothing but the operator is left of the Python above it."""
    x, weight, bias = (t.detach() for t in leaves_of(10))
    traced = torch.fx.experimental.proxy_tensor.make_fx(
        lambda *a: conv1d(*a, groups=2, activation=activation)
    )(x, weight, bias)
    calls = [node.target for node in traced.graph.nodes if node.op == "call_function"]
    assert calls == [torch.ops.convlm.forward.default]


def test_export() -> None:
    model = Model().eval()
    # Up to some length: without, torch 2.10 refuses its own Conv1d, too.
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", min=4, max=1 << 20)
    exported = torch.export.export(
        model, (random(2, 4, 9),), dynamic_shapes=({0: batch, 2: length},)
    )
    lowered = exported.run_decompositions()
    targets = [node.target for node in lowered.graph.nodes]
    assert targets.count(torch.ops.convlm.forward.default) == 3
    for shape in ((2, 4, 9), (3, 4, 21)):
        x = random(*shape)
        for module in (exported.module(), lowered.module()):
            torch.testing.assert_close(module(x), model(x))


def words() -> nn.Module:
    return EmbeddingConv1d(7, 4, 6, 3, padding="causal", activation="gelu")


def stack() -> nn.Module:
    layers = (StackLayer(4, 6, 2, gated=True), StackLayer(6, 6, 2, dilation=2, residual=True))
    return DilatedStack(*layers)


def stack_of_words() -> nn.Module:
    return DilatedStack(words(), StackLayer(6, 5, 2, dilation=2, activation="tanh"))


@pytest.mark.parametrize("strict", [False, True], ids=["traced", "strict"])
@pytest.mark.parametrize("recorded", [True, False], ids=["grad", "no_grad"])
@pytest.mark.parametrize("kind", [Model, words, stack, stack_of_words])
def test_an_exported_model_has_gradients(
    kind: Callable[[], nn.Module], recorded: bool, strict: bool
) -> None:
    torch.manual_seed(0)
    model = kind()
    tokens = kind in (words, stack_of_words)
    x = torch.arange(18).reshape(2, 9) % 7 if tokens else random(2, 4, 9).requires_grad_()
    with torch.set_grad_enabled(recorded):
        exported = torch.export.export(model, (x.detach(),), strict=strict).module()
    leaves = [] if tokens else [x]
    own, right = (
        torch.autograd.grad(m(x).square().sum(), [*m.parameters(), *leaves], create_graph=True)
        for m in (exported, model)
    )
    assert all(map(torch.equal, own, right))
    second, expected = (
        torch.autograd.grad(sum(g.square().sum() for g in gradients), [*m.parameters(), *leaves])
        for m, gradients in ((exported, own), (model, right))
    )
    torch.testing.assert_close(second, expected)


def test_importing_does_not_import_the_compiler() -> None:
    """It takes as long as torch itself."""
    script = "import sys, convlm_kernels; sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


def test_impossible_geometry_is_an_error_there_too() -> None:
    compiled = torch.compile(conv1d, backend="aot_eager")
    with pytest.raises(RuntimeError, match="greater than the padded input"):
        compiled(random(2, 4, 2), random(6, 4, 3))


def test_func_transforms_run_uncompiled_rather_than_wrong() -> None:
    def loss(x: Tensor, weight: Tensor) -> Tensor:
        return conv1d(x, weight).square().sum()

    x, weight = random(3, 4, 9), random(5, 4, 3)
    gradient = torch.func.grad(loss, (0, 1))
    compiled = torch.compile(gradient, backend="aot_eager")
    torch.testing.assert_close(compiled(x, weight), gradient(x, weight))
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"inside a torch\.func transform"):
        torch.compile(gradient, backend="aot_eager", fullgraph=True)(x, weight)
