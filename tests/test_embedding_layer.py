"""EmbeddingConv1d against torch's two layers, and what is done to either of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from convlm_kernels import Conv1d, DilatedStack, EmbeddingConv1d, StackLayer


def test_layer() -> None:
    torch.manual_seed(0)
    layer = EmbeddingConv1d(
        28, 10, 6, 3, 2, "causal", 2, padding_idx=27, activation="tanh", dtype=torch.float64
    )
    assert not layer.embedding.weight[27].any()
    tokens = torch.randint(28, (4, 50))
    x = F.pad(F.embedding(tokens, layer.embedding.weight, padding_idx=27).mT, (4, 0))
    expected = F.conv1d(x, layer.conv.weight, layer.conv.bias, 2, dilation=2).tanh()
    torch.testing.assert_close(layer(tokens), expected)
    parameters = list(layer.parameters())
    own, right = (torch.autograd.grad(t.sum(), parameters) for t in (layer(tokens), expected))
    torch.testing.assert_close(own, right)
    assert not own[0][27].any()


class EndToEnd(nn.Module):
    """The seed's first layer: the embeddings laid end to end are one signal."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(28, 10)
        self.conv = nn.Conv1d(1, 6, 30, stride=10)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.conv(self.embedding(tokens).flatten(1).unsqueeze(1))


def test_a_layer_loads_the_weights_of_embeddings_laid_end_to_end() -> None:
    torch.manual_seed(0)
    end_to_end = EndToEnd()
    layer = EmbeddingConv1d(28, 10, 6, 3)
    layer.load_state_dict(end_to_end.state_dict())
    tokens = torch.randint(28, (4, 50))
    torch.testing.assert_close(layer(tokens), end_to_end(tokens), rtol=1e-4, atol=1e-5)
    again = EmbeddingConv1d(28, 10, 6, 3)
    again.load_state_dict(layer.state_dict())
    assert torch.equal(again(tokens), layer(tokens))


def test_layer_refuses() -> None:
    for change, message in (
        (dict(padding_idx=28), r"padding_idx must lie in \[-28, 28\), got 28"),
        (dict(activation="swish"), "activation must be None or one of"),
        (dict(backend="fast"), "backend must be 'auto' or one of"),
    ):
        with pytest.raises(ValueError, match=message):
            EmbeddingConv1d(28, 10, 6, 3, **change)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(dynamic: bool) -> None:
    torch._dynamo.reset()
    layer = EmbeddingConv1d(28, 10, 6, 3, padding="causal", activation="tanh")
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    for batch, length in ((2, 30), (3, 50), (2, 31)):
        tokens = torch.randint(28, (batch, length))
        y, expected = compiled(tokens), layer(tokens)
        torch.testing.assert_close(y, expected)
        parameters = list(layer.parameters())
        own, right = (torch.autograd.grad(t.square().sum(), parameters) for t in (y, expected))
        torch.testing.assert_close(own, right)


def test_export() -> None:
    layer = EmbeddingConv1d(28, 10, 6, 3)
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", min=4)}
    exported = torch.export.export(
        layer, (torch.zeros(2, 30, dtype=torch.int64),), dynamic_shapes=(sizes,)
    )
    tokens = torch.randint(28, (3, 17))
    torch.testing.assert_close(exported.module()(tokens), layer(tokens))


# --- What is done to the two layers ---


class Scaled(Conv1d):
    def forward(self, input: Tensor) -> Tensor:
        return 5 * super().forward(input)


class ScaledEmbedding(nn.Embedding):
    def forward(self, input: Tensor) -> Tensor:
        return 5 * super().forward(input)


class Wrapped(nn.Module):
    """As adapters wrap layers; without a weight of its own."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, input: Tensor) -> Tensor:
        return 5 * self.layer(input)


def replace_the_convolution(layer: EmbeddingConv1d) -> None:
    layer.conv = Scaled(10, 6, 3, padding=(2, 0))


def replace_the_embedding(layer: EmbeddingConv1d) -> None:
    layer.embedding = ScaledEmbedding(28, 10)


def wrap_the_convolution(layer: Any) -> None:
    layer.conv = Wrapped(layer.conv)


def wrap_the_embedding(layer: Any) -> None:
    layer.embedding = Wrapped(layer.embedding)


def scale_by_a_hook(layer: EmbeddingConv1d) -> None:
    layer.conv.register_forward_hook(lambda module, inputs, y: 5 * y)


def scale_by_a_hook_of_the_embedding(layer: EmbeddingConv1d) -> None:
    layer.embedding.register_forward_hook(lambda module, inputs, y: 5 * y)


def override_the_forward_of_the_instance(layer: EmbeddingConv1d) -> None:
    forward = layer.conv.forward
    layer.conv.forward = lambda x: 5 * forward(x)  # type: ignore[method-assign]


def wrap_it_around(layer: EmbeddingConv1d) -> None:
    layer.conv.padding_mode = "circular"


def limit_the_norm(layer: EmbeddingConv1d) -> None:
    layer.embedding.max_norm = 0.1


def scale_gradients_by_frequency(layer: EmbeddingConv1d) -> None:
    layer.embedding.scale_grad_by_freq = True


def split_into_groups(layer: EmbeddingConv1d) -> None:
    layer.conv = Conv1d(10, 6, 3, padding=(2, 0), groups=2)


def parametrize(layer: EmbeddingConv1d) -> None:
    parametrizations.weight_norm(layer.conv)


CHANGES = [
    replace_the_convolution,
    replace_the_embedding,
    wrap_the_convolution,
    wrap_the_embedding,
    scale_by_a_hook,
    scale_by_a_hook_of_the_embedding,
    override_the_forward_of_the_instance,
    wrap_it_around,
    limit_the_norm,
    scale_gradients_by_frequency,
    split_into_groups,
    parametrize,
]


@pytest.mark.parametrize("in_a_stack", [False, True])
@pytest.mark.parametrize("change", CHANGES)
def test_changed_layers_are_called(
    change: Callable[[EmbeddingConv1d], None], in_a_stack: bool
) -> None:
    torch.manual_seed(0)
    layer = EmbeddingConv1d(28, 10, 6, 3, padding=(2, 0))
    tokens = torch.randint(28, (4, 12))
    module: nn.Module = DilatedStack(layer, StackLayer(6, 5, 2)) if in_a_stack else layer

    def called() -> Tensor:
        y: Tensor = layer.conv(layer.embedding(tokens).mT)
        return module[1](y) if in_a_stack else y  # type: ignore[index]

    before = module(tokens)
    change(layer)
    if isinstance(module, DilatedStack):
        assert not module.plan(tokens).fused
    own, expected = module(tokens), called()
    torch.testing.assert_close(own, expected)
    parameters = list(module.parameters())
    torch.testing.assert_close(
        *(torch.autograd.grad(y.square().sum(), parameters) for y in (own, expected))
    )
    if change not in (scale_gradients_by_frequency, parametrize):
        assert not torch.allclose(own, before), "the change is one of the result"


def test_hooks_fire() -> None:
    layer, fired = EmbeddingConv1d(28, 10, 6, 3), []
    layer.embedding.register_forward_pre_hook(lambda *_: fired.append("embedding"))
    layer.conv.register_forward_hook(lambda *_: fired.append("conv"))
    layer.conv.register_full_backward_hook(lambda *_: fired.append("backward"))
    layer(torch.zeros(2, 5, dtype=torch.long)).sum().backward()
    assert fired == ["embedding", "conv", "backward"]


def norm_by_hooks(layer: EmbeddingConv1d) -> None:
    nn.utils.weight_norm(layer.conv)


def prune_half(layer: EmbeddingConv1d) -> None:
    prune.l1_unstructured(layer.conv, "weight", 0.5)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("make", [norm_by_hooks, prune_half])
def test_weights_made_by_hooks_are_made_anew(make: Callable[[EmbeddingConv1d], None]) -> None:
    torch.manual_seed(0)
    first, second = EmbeddingConv1d(28, 10, 6, 3), EmbeddingConv1d(28, 10, 6, 3)
    make(first)
    make(second)
    tokens = torch.randint(28, (4, 12))
    second.load_state_dict(first.state_dict())
    assert torch.equal(second(tokens), first(tokens))
    optimizer = torch.optim.SGD(first.parameters(), lr=0.01)
    for _ in range(2):
        first(tokens).square().mean().backward()
        optimizer.step()
    second.load_state_dict(first.state_dict())
    assert torch.equal(second(tokens), first(tokens))


def test_a_wrapped_convolution_loads_its_own_weights() -> None:
    layer = EmbeddingConv1d(28, 10, 6, 3)
    wrap_the_convolution(layer)
    again = EmbeddingConv1d(28, 10, 6, 3)
    wrap_the_convolution(again)
    again.load_state_dict(layer.state_dict())
    tokens = torch.zeros(2, 5, dtype=torch.long)
    assert torch.equal(again(tokens), layer(tokens))


class Sizes(TorchDispatchMode):
    """How many numbers the results of operators have."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.seen += [t.numel() for t in tree_leaves(result) if isinstance(t, Tensor)]
        return result


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("kind", [EmbeddingConv1d, DilatedStack])
def test_a_padding_word_makes_no_copy_of_a_large_vocabulary(kind: Any, gradients: bool) -> None:
    layer = EmbeddingConv1d(5000, 8, 3, 2, padding_idx=7)
    model = DilatedStack(layer) if kind is DilatedStack else layer
    tokens = torch.tensor([[7, 3, 7, 4000]])
    with torch.set_grad_enabled(gradients), Sizes() as sizes:
        y = model(tokens)
    assert sizes.seen
    assert max(sizes.seen) < layer.embedding.weight.numel()
    if gradients:
        composed = layer.conv(layer.embedding(tokens).mT)
        own, right = (torch.autograd.grad(t.sum(), layer.embedding.weight) for t in (y, composed))
        torch.testing.assert_close(own, right)


def test_where_no_gradient_is_wanted_a_padding_word_is_one_like_others() -> None:
    seen = []
    for padding_idx in (None, 7):
        layer = EmbeddingConv1d(30, 8, 3, 2, padding_idx=padding_idx)
        with torch.no_grad(), Sizes() as sizes:
            layer(torch.zeros(9, 20, dtype=torch.int64))
            DilatedStack(layer)(torch.zeros(9, 20, dtype=torch.int64))
        seen.append(sizes.seen)
    assert seen[0] == seen[1]


def test_what_was_exported_without_gradients_spares_a_padding_word_later() -> None:
    layer, tokens = EmbeddingConv1d(30, 8, 3, 2, padding_idx=7), torch.tensor([[7, 3, 7, 7]])
    with torch.no_grad():
        exported = torch.export.export(layer, (tokens,)).module()
    exported(tokens).sum().backward()
    gradient = exported.get_parameter("embedding.weight").grad
    assert gradient[3].any()
    assert not gradient[7].any()
