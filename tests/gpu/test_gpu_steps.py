"""Steps and generation on the device: the numbers of the CPU, in streams, graphs and any batch."""

from __future__ import annotations

import copy

import pytest
import torch
from cases import DTYPES, parametrize, random
from device import DEVICE, needs_gpu, skip_unless
from torch import Tensor

from convlm_kernels import CausalConv1d, DilatedStack, StackLayer
from convlm_kernels.backends import can_run_steps
from convlm_kernels.lm import Alphabet, Batch, DilatedCNN, Sampling, sample
from convlm_kernels.streaming import StreamState


@pytest.fixture(autouse=True)
def can_run() -> None:
    skip_unless(can_run_steps(DEVICE))


def gated(channels: int, dilation: int) -> StackLayer:
    return StackLayer(channels, channels, 2, dilation=dilation, gated=True, residual=True)


NETWORKS = {
    "gated": lambda: DilatedStack(
        StackLayer(5, 64, 2), *(gated(64, 2**i) for i in range(6)), StackLayer(64, 28, 1)
    ),
    "as deep as can be": lambda: DilatedStack(
        *(StackLayer(20, 20, 2, dilation=1 + i % 9, activation="tanh") for i in range(56))
    ),
    "grouped, depthwise and wide": lambda: DilatedStack(
        CausalConv1d(6, 1100, 2, activation="gelu"),
        CausalConv1d(1100, 1100, 4, groups=1100, dilation=3, activation="silu"),
        CausalConv1d(1100, 90, 2, groups=10, activation="relu"),
    ),
    "in a workspace": lambda: CausalConv1d(700, 30, 99, dilation=2, activation="sigmoid"),
}


def network(name: str, dtype: torch.dtype) -> tuple[DilatedStack, DilatedStack]:
    """On the CPU and on the device."""
    torch.manual_seed(0)
    module = NETWORKS[name]().to(dtype)
    return module, copy.deepcopy(module).to(DEVICE)


def inputs(module: DilatedStack, batch: int, length: int, dtype: torch.dtype) -> Tensor:
    module.init_state(0)
    return random(batch, module.stream_network().in_channels, length, dtype=dtype)


def run_steps(module: DilatedStack, x: Tensor, state: StreamState, **options: object) -> Tensor:
    return torch.stack([module.step(column, state, **options) for column in x.unbind(2)], dim=2)


def assert_near(actual: Tensor, expected: Tensor) -> None:
    """16-bit results of a stack may be rounded elsewhere, layer by layer."""
    bound = {torch.float64: 1e-11, torch.float32: 1e-4}.get(expected.dtype, 0.03)
    torch.testing.assert_close(actual.cpu(), expected.cpu(), rtol=bound, atol=bound)


@parametrize("dtype", DTYPES)
@parametrize("name", NETWORKS)
def test_steps_are_those_of_the_cpu(name: str, dtype: torch.dtype) -> None:
    on_cpu, module = network(name, dtype)
    x = inputs(on_cpu, 3, 12, dtype)
    state, reference = module.init_state(3), on_cpu.init_state(3)
    y = run_steps(module, x.to(DEVICE), state)
    assert_near(y, run_steps(on_cpu, x, reference))
    assert_near(state.rings, reference.rings)
    assert state.position.tolist() == [12] * 3


@parametrize("name", NETWORKS)
def test_steps_are_the_forward_of_the_device(name: str) -> None:
    _, module = network(name, torch.float32)
    x = inputs(module, 2, 15, torch.float32).to(DEVICE)
    with torch.no_grad():
        assert_near(run_steps(module, x, module.init_state(2)), module(x))


def test_weights_of_bfloat16() -> None:
    on_cpu, module = network("gated", torch.float32)
    x = inputs(on_cpu, 2, 9, torch.float32)
    options = dict(weight_dtype=torch.bfloat16)
    y = run_steps(module, x.to(DEVICE), module.init_state(2), **options)
    assert_near(y, run_steps(on_cpu, x, on_cpu.init_state(2), **options))


@pytest.mark.parametrize("name", ["gated", "in a workspace"])
def test_the_same_bits_in_any_batch(name: str) -> None:
    """One and several samples a block, and more blocks than run at once."""
    _, module = network(name, torch.float32)
    x = inputs(module, 600, 4, torch.float32).to(DEVICE)
    y = run_steps(module, x, module.init_state(600))
    for part in (slice(0, 1), slice(397, 500), slice(599, 600)):
        own = x[part]
        assert torch.equal(run_steps(module, own, module.init_state(len(own))), y[part])


def test_a_state_moves_between_devices() -> None:
    on_cpu, module = network("gated", torch.float32)
    x = inputs(on_cpu, 3, 20, torch.float32)
    state = on_cpu.init_state(3)
    expected = run_steps(on_cpu, x, on_cpu.init_state(3))
    pieces = []
    for piece, (runs, device) in zip(
        x.split(5, dim=2), 2 * [(on_cpu, "cpu"), (module, DEVICE)], strict=True
    ):
        state = state.to(device)
        pieces.append(run_steps(runs, piece.to(device), state).cpu())
    assert_near(torch.cat(pieces, dim=2), expected)


# ---- streams and graphs ----


def test_a_graph_of_a_hundred_steps() -> None:
    needs_gpu()
    _, module = network("gated", torch.float32)
    x = inputs(module, 2, 200, torch.float32).to(DEVICE)
    expected = run_steps(module, x, module.init_state(2))
    state, columns = module.init_state(2), x[:, :, :100].clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = run_steps(module, columns, state)
    for part, right in zip(x.split(100, dim=2), expected.split(100, dim=2), strict=True):
        columns.copy_(part)
        graph.replay()
        assert torch.equal(y, right)
    assert state.position.tolist() == [200] * 2


def test_a_graph_reads_weights_that_were_packed_again() -> None:
    needs_gpu()
    module = CausalConv1d(5, 70, 2, device=DEVICE)
    x = inputs(module, 2, 1, torch.float32)[:, :, 0].to(DEVICE)
    state = module.init_state(2)
    first = module.step(x, state.clone())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = module.step(x, state)
    with torch.no_grad():
        module.weight.mul_(2)
        module.bias.mul_(2)
    graph.replay()
    assert torch.equal(y, first)  # until somebody looks
    module.init_state()
    state.rings.zero_()
    graph.replay()
    assert torch.equal(y, 2 * first)


def test_weights_are_not_packed_in_a_graph() -> None:
    needs_gpu()
    module = CausalConv1d(5, 7, 2, device=DEVICE)
    x, state = torch.zeros(1, 5, device=DEVICE), module.init_state()
    with (
        pytest.raises(RuntimeError, match="before a graph is captured: take a step first"),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
    ):
        module.step(x, state)
    torch.cuda.synchronize()
    module.step(x, state)


def test_the_current_stream_is_used() -> None:
    needs_gpu()
    _, module = network("gated", torch.float32)
    x = inputs(module, 3, 1, torch.float32)[:, :, 0].to(DEVICE)
    expected = module.step(x, module.init_state(3))
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        late, state = torch.zeros_like(x), module.init_state(3)
        module.step(late, state.clone())  # so that there is memory for this stream
        stream.synchronize()
        torch.cuda._sleep(1_000_000_000)  # half a second
        late.copy_(x)
        y = module.step(late, state)
    assert not stream.query(), "the step waited for the device"
    stream.synchronize()
    assert torch.equal(y, expected)


# ---- generation ----

ALPHABET = Alphabet(".abcdefgh;")


def words(device: torch.device | str, **options: object) -> list[str]:
    torch.manual_seed(0)
    model = DilatedCNN(len(ALPHABET), context=8, embedding=4, hidden=60).to(device)
    generator = torch.Generator().manual_seed(0)
    return sample(model, ALPHABET, 150, prefix="ab", generator=generator, **options)


@pytest.mark.parametrize(
    "options", [{}, dict(temperature=0.4), dict(top_k=3), dict(top_k=6, top_p=0.8)], ids=str
)
def test_the_words_of_the_cpu(options: dict) -> None:
    """All but the few where a border between two characters is rounded across a number."""
    own, right = words(DEVICE, **options), words("cpu", **options)
    assert sum(a != b for a, b in zip(own, right, strict=True)) <= 2
    assert words(DEVICE, batch=7, **options) == own


def test_what_the_host_cannot_see() -> None:
    needs_gpu()
    model = DilatedCNN(7, context=4, embedding=3, hidden=5).to(DEVICE)
    state = model.init_state(3)
    for tokens in ([1, 2, 3], [1, 2, 3], [1, 2, 3], [4, 7, -1]):
        y = model.step(torch.tensor(tokens, device=DEVICE), state)
    assert y.isnan().any(1).tolist() == [False, True, True]
    with torch.no_grad():
        model.layers[-1].bias[2] = torch.nan
    batch = Batch(model, Sampling())
    batch.add("a", [1, 2, 3, 4], 3)
    (event,) = batch.step()
    assert event == ("a", -1, True)
    assert "there is no token to draw" in event.error


def test_tensors_of_two_devices_are_refused() -> None:
    needs_gpu()
    module = CausalConv1d(5, 7, 2, device=DEVICE)
    with pytest.raises(RuntimeError, match="x and rings must be on one device"):
        module.step(torch.zeros(1, 5), module.init_state())
    x, state = torch.zeros(1, 5, device=DEVICE), module.init_state()
    with pytest.raises(RuntimeError, match="position and rings must be on one device"):
        module.step(x, StreamState(state.rings, state.position.cpu()))
    deep = DilatedStack(*(CausalConv1d(1, 1, 1) for _ in range(57))).to(DEVICE)
    with pytest.raises(RuntimeError, match="at most 56 layers on a GPU, got 57"):
        deep.step(torch.zeros(1, 1, device=DEVICE), deep.init_state())
