"""Steps stand for calls of modules that do what their parameters say: others are refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from cases import random
from streams import run_steps
from torch import Tensor, nn

from convlm_kernels import CausalConv1d, DilatedStack, EmbeddingConv1d, StackLayer
from convlm_kernels.streaming import Streaming

pytestmark = pytest.mark.usefixtures("nan_in_empty")


def layer() -> CausalConv1d:
    return CausalConv1d(3, 3, 2, activation="tanh")


def check_streams(module: Streaming, x: Tensor) -> None:
    with torch.no_grad():
        expected = module(x)
    torch.testing.assert_close(run_steps(module, x, module.init_state(len(x))), expected)
    torch.testing.assert_close(module.prefill(x, module.init_state(len(x))), expected)


def test_a_layer_that_stands_at_several_places_has_a_ring_at_each() -> None:
    shared, inner = layer(), nn.Sequential(layer())
    check_streams(DilatedStack(shared, inner, shared, inner), random(2, 3, 9))


def test_parametrized_words() -> None:
    words = EmbeddingConv1d(28, 3, 4, 2, padding="causal")
    nn.utils.parametrizations.weight_norm(words.embedding)
    check_streams(words, torch.randint(28, (2, 9)))


class Residual(nn.Sequential):
    def forward(self, input: Tensor) -> Tensor:
        return input + super().forward(input)


class WithRelu(DilatedStack):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).relu()


class DoubledWeight(CausalConv1d):
    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(input, 2 * weight, bias)


class StandardizedWeight(nn.Conv1d):
    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(input, weight / weight.std(), bias)


class DoubledWords(nn.Embedding):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def hooked(module: nn.Module, name: str = "") -> nn.Module:
    module.get_submodule(name).register_forward_hook(lambda module, inputs, y: 2 * y)
    return module


def overridden(layer: CausalConv1d) -> CausalConv1d:
    layer._conv_forward = lambda x, weight, bias: 2 * x  # type: ignore[method-assign]
    return layer


def over_words(embedding: nn.Embedding) -> EmbeddingConv1d:
    words = EmbeddingConv1d(28, 3, 4, 2, padding="causal")
    words.embedding = embedding
    return words


REFUSED: list[tuple[Callable[[], nn.Module], str]] = [
    (
        lambda: DilatedStack(Residual(layer()), layer()),
        r"layer '0' \(Residual\) .* its own forward",
    ),
    (lambda: WithRelu(layer()), "WithRelu cannot stream: it has its own forward"),
    (lambda: hooked(DilatedStack(layer())), "DilatedStack cannot stream: it has hooks"),
    (
        lambda: hooked(DilatedStack(layer(), nn.Sequential(layer())), "1"),
        r"layer '1' \(Sequential\) cannot stream: it has hooks",
    ),
    (lambda: DoubledWeight(3, 3, 2), "DoubledWeight .* it has its own _conv_forward"),
    (lambda: DilatedStack(StandardizedWeight(3, 3, 1)), "layer '0' .* its own _conv_forward"),
    (lambda: DilatedStack(layer(), overridden(layer())), "layer '1' .* it has hooks"),
    (
        lambda: hooked(DilatedStack(EmbeddingConv1d(9, 3, 3, 2, padding="causal"))),
        "DilatedStack cannot stream: it has hooks",
    ),
    (lambda: over_words(DoubledWords(28, 3)), "its embedding has its own forward"),
    (lambda: over_words(nn.Embedding(28, 3, max_norm=1)), "its embedding has a max_norm"),
]


@pytest.mark.parametrize(("module", "message"), REFUSED)
def test_what_does_more_than_its_parameters_say(
    module: Callable[[], Streaming], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        module().init_state()


def test_hooks_on_all_modules() -> None:
    module = StackLayer(3, 3, 2)
    hook = nn.modules.module.register_module_forward_hook(lambda module, inputs, y: 2 * y)
    try:
        with pytest.raises(ValueError, match="StackLayer cannot stream: there are hooks on all"):
            module.init_state()
    finally:
        hook.remove()
    check_streams(module, random(2, 3, 9))


def test_a_method_of_one_layer_is_called_by_its_stack() -> None:
    stack, x = DilatedStack(layer(), overridden(layer())), random(2, 3, 9)
    assert stack.plan(x).reason == "layer 1 has hooks"
    torch.testing.assert_close(stack(x), 2 * stack[0](x))
