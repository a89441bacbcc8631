"""Weights are packed for steps: as often as they change, in either dtype, and padded."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Iterator

import pytest
import torch
from cases import Case, parametrize, random
from streams import ODD_CHAINS, STREAMS, layer_of, run_steps, stream
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from convlm_kernels import CausalConv1d, Conv1d, EmbeddingConv1d
from convlm_kernels.network import Network
from convlm_kernels.streaming import state_of

pytestmark = pytest.mark.usefixtures("nan_in_empty")


def update_in_place(layer: Conv1d) -> None:
    with torch.no_grad():
        layer.weight.mul_(2)


def take_an_optimizer_step(layer: Conv1d) -> None:
    layer.weight.grad = torch.ones_like(layer.weight)
    torch.optim.SGD(layer.parameters(), lr=0.1).step()


def take_a_fused_optimizer_step(layer: Conv1d) -> None:
    """Which leaves version counters as they are, as torch 2.13 does it."""
    layer.weight.grad = torch.ones_like(layer.weight)
    torch.optim.AdamW(layer.parameters(), lr=0.1, fused=True).step()


def take_a_compiled_fused_optimizer_step(layer: Conv1d) -> None:
    layer.weight.grad = torch.ones_like(layer.weight)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, fused=True)
    torch.compile(optimizer.step, backend="eager")()


class WritesThroughData(torch.optim.Optimizer):
    def __init__(self, parameters: Iterator[nn.Parameter]) -> None:
        super().__init__(parameters, {})

    def step(self) -> None:
        for parameter in self.param_groups[0]["params"]:
            parameter.data.mul_(2)


def take_a_step_through_data(layer: Conv1d) -> None:
    WritesThroughData(layer.parameters()).step()


def load_other_weights(layer: Conv1d) -> None:
    layer.load_state_dict({name: 2 * tensor for name, tensor in layer.state_dict().items()})


def give_it_other_storage(layer: Conv1d) -> None:
    layer.weight.data = layer.weight.data + 1


def assign_other_weights(layer: Conv1d) -> None:
    others = {name: 2 * tensor for name, tensor in layer.state_dict().items()}
    layer.load_state_dict(others, assign=True)


def replace_the_parameter(layer: Conv1d) -> None:
    """By one of the same memory and version: only that it is another one tells."""
    memory, version = layer.weight.data, layer.weight._version
    layer.weight = nn.Parameter(memory)
    with torch.no_grad():
        while layer.weight._version < version:
            layer.weight.mul_(2)


def replace_the_bias(layer: Conv1d) -> None:
    layer.bias = nn.Parameter(layer.bias + 1)


CHANGES = [
    update_in_place,
    take_an_optimizer_step,
    take_a_fused_optimizer_step,
    take_a_compiled_fused_optimizer_step,
    take_a_step_through_data,
    load_other_weights,
    give_it_other_storage,
    assign_other_weights,
    replace_the_parameter,
    replace_the_bias,
]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("weight_dtype", [None, torch.bfloat16])
def test_changed_weights_are_seen(change, weight_dtype: torch.dtype | None) -> None:
    layer = CausalConv1d(3, 5, 2)
    x = random(2, 3)
    before = layer.step(x, layer.init_state(2), weight_dtype=weight_dtype)
    state = layer.init_state(2)
    assert torch.equal(before, layer.step(x, layer.init_state(2), weight_dtype=weight_dtype))
    change(layer)
    after = layer.step(x, state, weight_dtype=weight_dtype)
    assert not torch.equal(before, after)
    fresh = copy.deepcopy(layer)
    assert fresh._network is None
    assert torch.equal(after, fresh.step(x, fresh.init_state(2), weight_dtype=weight_dtype))


def test_steps_of_an_optimizer_of_other_weights_pack_none_and_keep_no_network() -> None:
    layer, other, x = CausalConv1d(3, 5, 2), CausalConv1d(3, 5, 2), random(2, 3)
    for module in (layer, other):
        module.step(x, module.init_state(2))
    kept = weakref.ref(layer.stream_network())
    take_a_step_through_data(other)
    layer.weight.data.mul_(3)  # seen only where the weights are packed again
    after = layer.step(x, state_of(layer.stream_network(), 2))
    assert not torch.equal(after, layer(x[:, :, None])[:, :, 0])
    take_a_step_through_data(layer)
    after = layer.step(x, state_of(layer.stream_network(), 2))
    assert torch.equal(after, layer(x[:, :, None])[:, :, 0])
    del layer
    gc.collect()
    assert kept() is None


def test_a_state_is_of_weights_that_were_changed_unseen() -> None:
    """Of a change through .data torch keeps no count. And they lie where they lay."""
    layer, x = CausalConv1d(3, 5, 2), random(2, 3, 7)
    stream(layer, x)
    address = layer.stream_network().packed().weights.data_ptr()
    layer.weight.data.mul_(2)
    layer.bias.data.copy_(torch.ones(5))
    assert torch.equal(stream(layer, x), layer(x))
    assert layer.stream_network().packed().weights.data_ptr() == address


def count_packs(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """One entry for each time that weights are packed."""
    packs: list[object] = []
    pack = Network._pack
    monkeypatch.setattr(Network, "_pack", lambda *given: packs.append(given) or pack(*given))
    return packs


@pytest.mark.parametrize("weight_dtype", [None, torch.bfloat16])
def test_a_state_packs_weights_again_only_where_they_have_changed(
    weight_dtype: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, x = CausalConv1d(3, 5, 2), random(2, 3)
    packs = count_packs(monkeypatch)

    def step() -> Tensor:
        return layer.step(x, layer.init_state(2), weight_dtype=weight_dtype)

    def check_packs(count: int) -> None:
        packs.clear()
        y = step()
        assert len(packs) == count
        fresh = copy.deepcopy(layer)
        assert torch.equal(y, fresh.step(x, fresh.init_state(2), weight_dtype=weight_dtype))

    step()
    step()
    check_packs(0)
    layer.bias.data.add_(1)  # of which torch keeps no count
    check_packs(1)
    check_packs(0)
    before = layer.weight.detach().clone()
    update_in_place(layer)
    layer.step(x, layer.init_state(2), weight_dtype=weight_dtype)
    layer.weight.data.copy_(before)
    check_packs(1)
    give_it_other_storage(layer)
    check_packs(1)
    replace_the_bias(layer)
    step()
    check_packs(0)


def test_weights_are_packed_again_into_the_same_memory() -> None:
    """Which a captured graph goes on reading; also where the first to pack was inference mode."""
    layer = CausalConv1d(3, 5, 2)
    with torch.inference_mode():
        layer.step(random(2, 3), layer.init_state(2))
    before = layer.stream_network().packed()
    kept, addresses = before.weights.clone(), [t.data_ptr() for t in before[1:]]
    update_in_place(layer)
    layer.init_state(2)
    assert torch.equal(before.weights, 2 * kept)
    update_in_place(layer)
    layer.step(random(2, 3), layer.init_state(2))
    assert torch.equal(before.weights, 4 * kept)
    assert [t.data_ptr() for t in layer.stream_network().packed()[1:]] == addresses


@pytest.mark.parametrize("kernel_size", [1, 4])
def test_weights_of_other_sizes_want_another_state(kernel_size: int) -> None:
    layer, x = CausalConv1d(16, 16, 2), random(2, 16, 7)
    state = layer.init_state(2)
    layer.step(x[:, :, 0], state)
    layer.weight = nn.Parameter(random(16, 16, kernel_size))
    for _ in range(2):
        with pytest.raises(RuntimeError, match="size"):
            layer.step(x[:, :, 0], state)
    layer.kernel_size = (kernel_size,)
    assert torch.equal(stream(layer, x), layer(x))


def test_changed_settings_and_parameters_are_seen_by_the_next_state() -> None:
    layer = CausalConv1d(3, 5, 2)
    x = random(2, 3, 7)
    stream(layer, x)
    layer.dilation, layer.activation = (3,), "tanh"
    layer.weight = nn.Parameter(torch.randn(5, 3, 2))
    assert torch.equal(stream(layer, x), layer(x))
    layer.double()
    torch.testing.assert_close(stream(layer, x.double()), layer(x.double()))


def test_parametrized_weights() -> None:
    layer = nn.utils.parametrizations.weight_norm(CausalConv1d(3, 5, 2))
    x = random(2, 3, 7)
    assert torch.equal(stream(layer, x), layer(x))
    with torch.no_grad():
        layer.parametrizations.weight.original0.mul_(3)
    assert torch.equal(stream(layer, x), layer(x))


def test_new_weights_may_lie_where_old_ones_did() -> None:
    layer = Conv1d(3, 5, 2, padding="causal")
    x = random(1, 3)
    for seed in range(40):
        layer.step(x, layer.init_state(1))
        for n in (1, 2):  # the second may get the memory of what the first replaced
            layer.weight.data = random(5, 3, 2, seed=2 * seed + n)
        y = layer.step(x, layer.init_state(1))
        torch.testing.assert_close(y, layer(x[:, :, None])[:, :, 0])


@pytest.mark.parametrize("weight_dtype", [None, torch.bfloat16])
def test_weights_made_in_inference_mode_have_no_version_and_are_packed_where_they_change(
    weight_dtype: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    packs = count_packs(monkeypatch)
    with torch.inference_mode():
        layer = CausalConv1d(3, 5, 2)
        other = CausalConv1d(3, 5, 2)
    x = random(2, 3)

    def step_is_of_the_weights(layer: Conv1d) -> bool:
        fresh = copy.deepcopy(layer)
        y = layer.step(x, layer.init_state(2), weight_dtype=weight_dtype)
        return torch.equal(y, fresh.step(x, fresh.init_state(2), weight_dtype=weight_dtype))

    assert step_is_of_the_weights(layer)
    layer.step(x, layer.init_state(2))  # in the other dtype, too
    packs.clear()
    state = layer.init_state(2)
    for dtype in (weight_dtype, None):
        layer.step(x, state, weight_dtype=dtype)
    assert packs == []
    with torch.inference_mode():
        layer.weight.mul_(2)
        assert step_is_of_the_weights(layer)
        layer.bias.add_(1)
    assert step_is_of_the_weights(layer)
    assert torch.equal(layer.step(x, layer.init_state(2)), layer(x[:, :, None])[:, :, 0])
    layer.weight = other.weight
    assert step_is_of_the_weights(layer)


@pytest.mark.parametrize("parametrized", [False, True])
def test_a_state_copies_of_an_embedding_only_what_is_packed(parametrized: bool) -> None:
    layer = EmbeddingConv1d(28, 10, 8, 2, padding="causal")
    if parametrized:
        nn.utils.parametrizations.weight_norm(layer.embedding)
    tokens = torch.tensor([3, 5])
    layer.step(tokens, layer.init_state(2))
    with Clones() as clones:
        layer.init_state(2)
    assert layer.conv.weight.shape in clones.shapes
    assert ((28, 10) in clones.shapes) == parametrized
    for tensor in layer.embedding.parameters():
        tensor.data.mul_(2)
    y = layer.step(tokens, layer.init_state(2))
    torch.testing.assert_close(y, layer(tokens[:, None])[:, :, 0])


class Clones(TorchDispatchMode):
    """The shapes of what is cloned."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, function, _types, given=(), options=None):
        if function is torch.ops.aten.clone.default:
            self.shapes.append(tuple(given[0].shape))
        return function(*given, **(options or {}))


@parametrize("case", [*STREAMS, *ODD_CHAINS])
def test_weights_of_bfloat16_are_the_rounded_ones(case: Case) -> None:
    layer = layer_of(case, torch.float32)
    x = random(*case.x_shape, seed=1)
    y = run_steps(layer, x, layer.init_state(2), weight_dtype=torch.bfloat16)
    exact = run_steps(layer, x, layer.init_state(2))
    assert not torch.equal(y.nan_to_num(), exact.nan_to_num())
    with torch.no_grad():
        layer.weight.copy_(layer.weight.bfloat16())
    rounded = run_steps(layer, x, layer.init_state(2))
    assert torch.equal(y.nan_to_num(), rounded.nan_to_num())


def test_padding_of_packed_weights_is_never_read_as_an_output() -> None:
    """One channel less than a panel, a panel, and one more."""
    for channels in (63, 64, 65):
        layer = CausalConv1d(2, channels, 2)
        x = random(1, 2, 5)
        y = F.conv1d(F.pad(x, (1, 0)), layer.weight, layer.bias)
        torch.testing.assert_close(stream(layer, x), y)
