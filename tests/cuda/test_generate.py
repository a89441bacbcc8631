"""Generation on the emulator: the tokens of the CPU's operator."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from cases import parametrize
from torch import Tensor

from build import run_sanitized, shared_bytes
from convlm_kernels import step_ops
from convlm_kernels.lm import CNN, Batch, DilatedCNN, Event, Sampling
from convlm_kernels.lm.char_model import CharModel
from convlm_kernels.streaming import StreamState

pytestmark = pytest.mark.usefixtures("nan_in_empty", "steps_on_the_emulator")

NATIVE = step_ops.generate
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
        expected, reference = generated(NATIVE, model, **SETTINGS[settings])
        assert tokens.tolist() == expected.tolist()
        torch.testing.assert_close(state, reference)


@pytest.mark.parametrize("settings", ["plain", "top_k", "both"])
def test_vocabularies_larger_than_a_warp(settings: str) -> None:
    model = model_of(vocab=150)
    tokens, _ = generated(step_ops.generate, model, **SETTINGS[settings])
    assert tokens.tolist() == generated(NATIVE, model, **SETTINGS[settings])[0].tolist()


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
        right, _ = generated(NATIVE, model, batch=1, uniform=edges[None], **settings)
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
    expected, reference = generated(NATIVE, model, **settings)
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
    monkeypatch.setattr(step_ops, "generate", NATIVE)
    assert own == run()


def test_nothing_is_read_or_written_outside_under_the_sanitizer() -> None:
    run_sanitized(__file__, "likeliest or both")
