"""Steps and generation on the emulator: against the oracle, the layers and the CPU's operators."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from cases import DTYPES, Case, parametrize, random
from test_streaming import (
    ODD_CHAINS,
    STACKS,
    STREAMS,
    forward,
    layer_of,
    run_steps,
    stack_and_input,
    stream,
)
from tolerances import exact_forward
from torch import Tensor

from build import emulated, library, run_sanitized
from convlm_kernels import CausalConv1d, DilatedStack, StackLayer, network, step_ops
from convlm_kernels.activations import ACTIVATIONS
from convlm_kernels.lm import CNN, Batch, DilatedCNN, Event, Sampling
from convlm_kernels.lm.char_model import CharModel
from convlm_kernels.streaming import StreamState

pytestmark = pytest.mark.usefixtures("nan_in_empty")

NATIVE = step_ops.step, step_ops.generate


@pytest.fixture(autouse=True)
def on_the_emulator(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in ((step_ops, "step"), (network, "_step")):
        monkeypatch.setattr(module, name, emulated("step"))
    monkeypatch.setattr(step_ops, "generate", emulated("generate"))


@contextmanager
def shared_bytes(count: int) -> Iterator[None]:
    """On a GPU whose blocks have so much shared memory."""
    library().set_shared_bytes(ctypes.c_int64(count))
    try:
        yield
    finally:
        library().set_shared_bytes(ctypes.c_int64(227 * 1024))


@parametrize("dtype", DTYPES)
@parametrize("case", STREAMS)
def test_steps_are_the_forward(case: Case, dtype: torch.dtype) -> None:
    case = case._replace(length=case.dilation * (case.kernel_size - 1) + 5 - case.pads[0])
    layer = layer_of(case, dtype)
    x = random(*case.x_shape, dtype=dtype, seed=1)
    exact_forward(x, layer.weight, layer.bias, case.window).allows(stream(layer, x))


@parametrize("name", STACKS)
def test_stacks(name: str) -> None:
    stack, x = stack_and_input(name)
    x = x[:, :, :17]
    torch.testing.assert_close(stream(stack, x), forward(stack, x))


@parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fused_activations(activation: str, dtype: torch.dtype) -> None:
    layer = CausalConv1d(3, 21, 2, activation=activation, dtype=dtype)
    x = 3 * random(2, 3, 4, dtype=dtype)
    torch.testing.assert_close(stream(layer, x), layer(x))


# More outputs than there are threads for; groups of several panels; a layer in whose products fewer
# take part than in the one before, and one that is cut as the one before is.
LARGE = {
    "many outputs": lambda: DilatedStack(
        CausalConv1d(5, 1100, 2, activation="tanh"), CausalConv1d(1100, 3, 2)
    ),
    "groups of panels": lambda: DilatedStack(
        CausalConv1d(6, 390, 3, groups=3), CausalConv1d(390, 390, 1, groups=3)
    ),
    "wide and narrow": lambda: DilatedStack(
        CausalConv1d(4, 70, 2),
        CausalConv1d(70, 70, 2, groups=70, dilation=3),
        CausalConv1d(70, 9, 1),
        CausalConv1d(9, 9, 1),
        CausalConv1d(9, 130, 2, dilation=2),
    ),
}


@parametrize("name", LARGE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_layers(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    stack = LARGE[name]().to(dtype)
    x = random(2, stack[0].in_channels, 9, dtype=dtype)
    torch.testing.assert_close(stream(stack, x), forward(stack, x))


def test_many_layers() -> None:
    stack = DilatedStack(*(StackLayer(3, 3, 2, dilation=i + 1, residual=True) for i in range(56)))
    x = random(1, 3, 4)
    torch.testing.assert_close(stream(stack, x), forward(stack, x))
    stack.append(CausalConv1d(3, 3, 1))
    with pytest.raises(RuntimeError, match="plan must have at most 56 layers on a GPU, got 57"):
        stack.step(x[:, :, 0], stack.init_state())


@pytest.mark.parametrize(
    ("name", "dtype", "weight_dtype"),
    [
        ("no padding", torch.float64, None),
        *(("gates and residuals", dtype, None) for dtype in DTYPES if dtype != torch.float64),
        ("gates and residuals", torch.float32, torch.bfloat16),
    ],
)
def test_same_bits_in_any_batch_and_wherever_the_memory_is(
    name: str, dtype: torch.dtype, weight_dtype: torch.dtype | None
) -> None:
    """Alone in a block, four in one, and in a workspace."""
    stack, _ = stack_and_input(name, dtype)
    x = random(131, 3, 3, dtype=dtype)

    def run(x: Tensor) -> Tensor:
        return run_steps(stack, x, stack.init_state(len(x)), weight_dtype=weight_dtype)

    expected = torch.cat([run(row[None]) for row in x[-9:]])
    together = run(x)
    with shared_bytes(0):
        in_workspace = run(x)
    assert torch.equal(together.nan_to_num(7), in_workspace.nan_to_num(7))
    assert torch.equal(together[-9:].nan_to_num(7), expected.nan_to_num(7))


def test_inputs_of_any_strides() -> None:
    stack, x = stack_and_input("gates and residuals")
    state, other = stack.init_state(3), stack.init_state(3)
    for column in x[:, :, :4].unbind(2):
        assert not column.is_contiguous()
        assert torch.equal(stack.step(column, state), stack.step(column.contiguous(), other))


@pytest.mark.parametrize("case", [STREAMS[7], STREAMS[20], *ODD_CHAINS], ids=str)
def test_weights_of_bfloat16_are_the_rounded_ones(case: Case) -> None:
    """As exactly as another order of the sums allows."""
    layer = layer_of(case, torch.float32)
    x = random(*case.x_shape, seed=1)[:, :, :9]
    y = run_steps(layer, x, layer.init_state(2), weight_dtype=torch.bfloat16)
    with torch.no_grad():
        layer.weight.copy_(layer.weight.bfloat16())
    torch.testing.assert_close(y, run_steps(layer, x, layer.init_state(2)), equal_nan=True)


# ---- states ----


def test_a_state_moves_between_devices() -> None:
    """Samples at different positions go on where the CPU stopped, and the CPU where they do."""
    stack, x = stack_and_input("gates and residuals")
    state = StreamState.join(stack.init_state(2), stack.init_state(1))
    stack.prefill(x[:, :, :6], state, torch.tensor([6, 0, 3]))
    reference = state.clone()
    torch.testing.assert_close(
        run_steps(stack, x[:, :, :4], state), by_cpu(stack, x[:, :, :4], reference)
    )
    torch.testing.assert_close(state, reference)
    torch.testing.assert_close(
        by_cpu(stack, x[:, :, 4:], state), run_steps(stack, x[:, :, 4:], reference)
    )


def by_cpu(stack: DilatedStack, x: Tensor, state: StreamState) -> Tensor:
    _, *packed = stack.stream_network().packed()
    columns = [
        NATIVE[0](column, None, *state, *packed, stack.stream_network().out_channels)
        for column in x.unbind(2)
    ]
    return torch.stack(columns, dim=2)


def test_an_empty_batch() -> None:
    stack, x = stack_and_input("no padding")
    assert stack.step(x[:0, :, 0], stack.init_state(0)).shape == (0, stack[-1].out_channels)


def test_positions_beyond_32_bits_and_below_zero() -> None:
    """Nothing outside a ring is touched; a position is what it is modulo the number of slots."""
    layer = CausalConv1d(3, 5, 4, dilation=5)
    x = random(3, 3, 20)
    plain, far = layer.init_state(3), layer.init_state(3)
    far.position.copy_(torch.tensor([15 * 2**40, 15 * 3**22, 15]))
    assert torch.equal(run_steps(layer, x, far), run_steps(layer, x, plain))
    assert far.position.tolist() == [15 * 2**40 + 20, 15 * 3**22 + 20, 35]
    below = layer.init_state(3)
    below.position.fill_(-7)
    run_steps(layer, x, below)  # the guards around the ring watch


def test_a_token_that_is_none_is_a_row_of_nan() -> None:
    model = DilatedCNN(7, context=4, embedding=3, hidden=5)
    tokens = torch.tensor([[1, 2], [3, 7], [-1, 4], [5, 6]])
    state = model.init_state(4)
    for _ in range(3):
        y = model.step(tokens[:, 0], state)
    assert y.isnan().any(1).tolist() == [True] * 4
    y = model.step(tokens[:, 1], state)
    assert y.isnan().any(1).tolist() == [False, True, True, False]
    for _ in range(4):  # until no output sees it any more
        y = model.step(tokens[:, 0].clamp(min=0), state)
    assert not y.isnan().any()


# ---- generation ----


VOCAB = 11


def model_of(kind: type[CharModel] = DilatedCNN, vocab: int = VOCAB) -> CharModel:
    torch.manual_seed(0)
    return kind(vocab, context=4, embedding=3)


def generated(
    generate: Callable[..., Tensor],
    model: CharModel,
    *,
    batch: int = 5,
    steps: int = 12,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    stop: int = -1,
    never: tuple[int, ...] = (),
    uniform: Tensor | None = None,
) -> tuple[Tensor, StreamState]:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(model.vocab, (batch, 5), generator=generator)
    state = model.init_state(batch)
    model.prefill(tokens[:, :-1], state)
    embedding, *packed = model.stream_network().packed()
    logit_bias = torch.zeros(model.vocab)
    logit_bias[list(never)] = -torch.inf
    if uniform is None:
        uniform = torch.rand(batch, steps, dtype=torch.float64, generator=generator)
    result = generate(
        tokens[:, -1],
        embedding,
        *state,
        *packed,
        logit_bias if never else None,
        uniform,
        temperature,
        model.vocab if top_k is None else top_k,
        top_p,
        stop,
    )
    return result, state


SETTINGS = {
    "plain": {},
    "cold": dict(temperature=0.3),
    "likeliest": dict(temperature=0.0),
    "almost zero": dict(temperature=1e-60),
    "top_k": dict(top_k=3),
    "one": dict(top_k=1),
    "top_p": dict(top_p=0.4),
    "both": dict(top_k=6, top_p=0.7, temperature=1.7),
    "stop": dict(stop=3, temperature=2.0),
    "never": dict(never=(0, 5), stop=2),
    "never and top_k": dict(never=(1, 2, 3), top_k=9, top_p=0.95),
}


@parametrize("settings", SETTINGS)
def test_the_tokens_of_the_cpu(settings: str) -> None:
    for kind in (DilatedCNN, CNN):
        model = model_of(kind)
        tokens, state = generated(step_ops.generate, model, **SETTINGS[settings])
        expected, reference = generated(NATIVE[1], model, **SETTINGS[settings])
        assert tokens.tolist() == expected.tolist()
        torch.testing.assert_close(state, reference)


@pytest.mark.parametrize("settings", ["plain", "top_k", "both"])
def test_vocabularies_larger_than_a_warp(settings: str) -> None:
    model = model_of(vocab=150)
    tokens, _ = generated(step_ops.generate, model, **SETTINGS[settings])
    assert tokens.tolist() == generated(NATIVE[1], model, **SETTINGS[settings])[0].tolist()


def constant_model(logits: list[float], dtype: torch.dtype = torch.float32) -> CharModel:
    """Its next token depends on none."""
    model = CNN(len(logits), context=1, embedding=1).to(dtype)
    with torch.no_grad():
        model.conv.weight.zero_()
        model.conv.bias.copy_(torch.tensor(logits))
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_likelihoods_are_taken_in_the_order_of_the_tokens(dtype: torch.dtype) -> None:
    """Uniform numbers at the borders between tokens, and the last one below 1."""
    model = constant_model([0.0, 0.0, -torch.inf, 1.0, 0.0, 1.0, 1.0], dtype)
    edges = torch.linspace(0, 1 - 2**-53, 37, dtype=torch.float64)
    for settings in (dict(top_k=2), dict(top_k=5), dict(top_p=0.5), dict(top_p=0.9), {}):
        own, _ = generated(step_ops.generate, model, batch=1, uniform=edges[None], **settings)
        right, _ = generated(NATIVE[1], model, batch=1, uniform=edges[None], **settings)
        assert own.tolist() == right.tolist(), settings


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_logits_that_are_no_distribution_give_no_token(value: float) -> None:
    model = constant_model([0.0, value, 1.0])
    tokens, state = generated(step_ops.generate, model, stop=0)
    assert tokens.tolist() == [[-1] * 12] * 5
    assert state.position.tolist() == [5] * 5
    for temperature in (0.0, 1.0):
        tokens, _ = generated(
            step_ops.generate,
            constant_model([0.0, 0.0]),
            never=(0, 1),
            temperature=temperature,
        )
        assert (tokens == -1).all()
    batch = Batch(model, Sampling())
    batch.add("a", [1], 3)
    (event,) = batch.step(2)
    assert event == ("a", -1, True)
    assert event.error.startswith("request 'a': there is no token to draw")
    assert not batch


@pytest.mark.parametrize("order", [["good", "bad"], ["bad", "good"]])
def test_a_request_without_a_token_ends_alone(order: list[str]) -> None:
    """A word of NaNs is in the context of one of two."""
    model = model_of()
    with torch.no_grad():
        model.embedding.weight[5] = torch.nan
    prompts = {"good": [1, 2, 3, 4, 1, 2, 3, 4], "bad": [1, 2, 3, 4, 1, 2, 5, 4]}

    def run(names: list[str]) -> list[Event]:
        batch, events = Batch(model, Sampling(never=(5,))), []
        for name in names:
            batch.add(name, prompts[name], 7, torch.Generator().manual_seed(0))
        while batch:
            events += batch.step(3)
        return events

    events = run(order)
    assert [event for event in events if event.name == "bad"] == [("bad", -1, True)]
    alone = run(["good"])
    assert len(alone) == 7
    assert all(event.error is None for event in alone)
    assert [event for event in events if event.name == "good"] == alone


def test_tokens_before_the_first_output_are_none() -> None:
    model = model_of()
    state = model.init_state(1)
    embedding, *packed = model.stream_network().packed()
    uniform = torch.rand(1, 2, dtype=torch.float64)
    arguments = torch.tensor([1]), embedding, *state, *packed, None, uniform, 1.0, VOCAB, 1.0, -1
    assert step_ops.generate(*arguments).tolist() == [[-1, -1]]


def test_neither_batch_nor_memory_change_a_token() -> None:
    model = model_of()
    uniform = torch.rand(130, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    settings = dict(stop=3, temperature=1.5, uniform=uniform, batch=130)
    tokens, state = generated(step_ops.generate, model, **settings)
    expected, reference = generated(NATIVE[1], model, **settings)
    assert tokens.tolist() == expected.tolist()
    assert state.position.equal(reference.position)
    with shared_bytes(0):
        assert generated(step_ops.generate, model, **settings)[0].equal(tokens)


def test_requests_that_join_and_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of()

    def run() -> list:
        batch = Batch(model, Sampling(temperature=1.3, stop=2, top_p=0.9))
        batch.add("a", [1, 2, 3, 4], 9, torch.Generator().manual_seed(0))
        events = batch.step(2)
        batch.add("b", [5, 6, 7, 8, 9], 7, torch.Generator().manual_seed(1))
        while batch:
            events += batch.step(3)
        return events

    own = run()
    monkeypatch.setattr(step_ops, "generate", NATIVE[1])
    assert own == run()


# ---- what cannot be ----


def test_weights_that_are_not_aligned() -> None:
    layer = CausalConv1d(3, 4, 2)
    state = layer.init_state(1)
    _, weights, biases, plan = layer.stream_network().packed()
    shifted = torch.cat([weights.new_zeros(1), weights])[1:]
    with pytest.raises(RuntimeError, match="weights must begin at a multiple of 16 bytes"):
        step_ops.step(random(1, 3), None, *state, shifted, biases, plan, 4)


def test_layers_beyond_what_a_block_counts(tmp_path: Path) -> None:
    taps, channels = 2**20, 2**8
    plan = torch.tensor([[channels, channels, channels, taps, 1, 0, 0, 0, 0]])
    weights = torch.from_file(  # nothing reads them, so they take no memory
        str(tmp_path / "weights"), shared=True, size=taps * channels, dtype=torch.bfloat16
    )
    rings, position = torch.empty(0, (taps - 1) * channels), torch.empty(0, dtype=torch.int64)
    biases = torch.empty(channels + 16)
    with pytest.raises(RuntimeError, match="fewer than 268435456 numbers in a step"):
        step_ops.step(
            torch.empty(0, channels), None, rings, position, weights, biases, plan, channels
        )


def test_nothing_is_read_or_written_outside_under_the_sanitizer() -> None:
    run_sanitized(__file__, "stacks or (large and float32) or likeliest or both or beyond_32")
