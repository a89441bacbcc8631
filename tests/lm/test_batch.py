"""Steps of language models, and batches of requests that generate together."""

import copy

import pytest
import torch

from convlm_kernels import step_ops
from convlm_kernels.lm import (
    CNN,
    MLP,
    Alphabet,
    Batch,
    DilatedCNN,
    Sampling,
    generate,
    generation,
    sample,
)
from convlm_kernels.lm.generation import generate_by_window

ALPHABET = Alphabet(".abcdefgh;")
VOCAB = len(ALPHABET)


def model_of(kind: str, context: int = 4):
    torch.manual_seed(0)
    kinds = {"dilated": DilatedCNN, "cnn": CNN, "mlp": MLP}
    return kinds[kind](VOCAB, context=context, embedding=3)


@pytest.fixture
def model():
    return model_of("dilated")


def tokens_of(*shape):
    return torch.randint(VOCAB, shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", ["dilated", "cnn", "mlp"])
@pytest.mark.parametrize("context", [4, 8])
def test_steps_are_the_forward(kind, context):
    model = model_of(kind, context)
    tokens = tokens_of(5, 20)
    state = model.init_state(5)
    logits = torch.stack([model.step(column, state) for column in tokens.unbind(1)], dim=2)
    assert logits[:, :, : context - 1].isnan().all()
    expected = model(tokens)
    torch.testing.assert_close(logits[:, :, context - 1 :], expected)
    other = model.init_state(5)
    prefilled = torch.cat([model.prefill(part, other) for part in tokens.split(7, dim=1)], dim=2)
    torch.testing.assert_close(prefilled, logits, equal_nan=True)
    torch.testing.assert_close(other, state)


def test_steps_follow_the_weights(model):
    tokens = tokens_of(1, 8)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
            state = model.init_state()
            logits = [model.step(column, state) for column in tokens.unbind(1)][-1]
            torch.testing.assert_close(logits, model(tokens)[:, :, -1])


def test_generation_follows_weights_that_were_changed_unseen(model):
    """Of a change through .data torch keeps no count; averages of weights are copied so."""
    prompts, greedy = tokens_of(4, 6).tolist(), Sampling(temperature=0)
    before = list(generate(model, prompts, 6, greedy))
    for parameter in model.parameters():
        parameter.data.mul_(-3)
    after = list(generate(model, prompts, 6, greedy))
    assert after == list(generate(copy.deepcopy(model), prompts, 6, greedy))
    assert after != before


@pytest.mark.parametrize("kind", ["dilated", "cnn", "mlp"])
def test_the_likeliest_tokens_are_those_of_the_window(kind):
    model = model_of(kind)
    prompts = tokens_of(6, 5)
    sampling = Sampling(temperature=0, stop=ALPHABET.stop, never=(0, 3))
    by_window = list(generate_by_window(model, prompts, 12, sampling, None))
    assert sorted(by_window) == sorted(generate(model, prompts.tolist(), 12, sampling))
    assert {event.token for event in by_window}.isdisjoint((0, 3))


def bigram_model(probabilities):
    """Its next token depends on none: always this distribution."""
    model = CNN(len(probabilities), context=1, embedding=1)
    with torch.no_grad():
        model.conv.weight.zero_()
        model.conv.bias.copy_(torch.tensor(probabilities).log())
    return model


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0.1, 0.4, 0.2, 0.3]),
        ({"temperature": 0.5}, [0.01 / 0.3, 0.16 / 0.3, 0.04 / 0.3, 0.09 / 0.3]),
        ({"temperature": 1e-6}, [0, 1, 0, 0]),
        ({"temperature": 1e-60}, [0, 1, 0, 0]),
        ({"temperature": 0}, [0, 1, 0, 0]),
        ({"top_k": 2}, [0, 4 / 7, 0, 3 / 7]),
        ({"top_k": 1}, [0, 1, 0, 0]),
        ({"top_k": 9}, [0.1, 0.4, 0.2, 0.3]),
        ({"top_p": 0.3}, [0, 1, 0, 0]),
        ({"top_p": 0.6}, [0, 4 / 7, 0, 3 / 7]),
        ({"top_p": 0.8}, [0, 4 / 9, 2 / 9, 3 / 9]),
        ({"top_k": 3, "top_p": 0.7}, [0, 4 / 7, 0, 3 / 7]),  # 0.7 of what the three have
        ({"never": (1,)}, [1 / 6, 0, 2 / 6, 3 / 6]),
        ({"never": (1,), "top_k": 1}, [0, 0, 0, 1]),
    ],
)
def test_tokens_follow_the_distribution(options, expected):
    count = 4_000
    model = bigram_model([0.1, 0.4, 0.2, 0.3])
    generator = torch.Generator().manual_seed(0)
    events = generate(
        model, [[0]] * 5, count, Sampling(**options), chunk=count, generator=generator
    )
    drawn = torch.tensor([event.token for event in events]).bincount(minlength=4) / (5 * count)
    expected = torch.tensor(expected, dtype=drawn.dtype)
    torch.testing.assert_close(drawn, expected, atol=0.02, rtol=0)
    assert not drawn[expected == 0].any()


def test_neither_batch_nor_chunk_nor_threads_change_a_token(model):
    prompts = [tokens_of(4 + n % 3)[:].tolist() for n in range(40)]

    def run(**options):
        generator = torch.Generator().manual_seed(0)
        sampling = Sampling(stop=ALPHABET.stop)
        tokens = [[] for _ in prompts]
        ended = []
        for number, token, last in generate(
            model, prompts, 15, sampling, generator=generator, **options
        ):
            assert number not in ended
            tokens[number].append(token)
            if last:
                ended.append(number)
        assert sorted(ended) == list(range(len(prompts)))
        return tokens

    expected = run()
    for row in expected:
        assert ALPHABET.stop not in row[:-1]
        assert row[-1] == ALPHABET.stop or len(row) == 15
    assert len({len(row) for row in expected}) > 3
    for options in ({"batch": 1}, {"batch": 7}, {"chunk": 4}, {"batch": 7, "chunk": 99}):
        assert run(**options) == expected
    torch.set_num_threads(2)
    assert run(chunk=15) == expected


def test_requests_join_and_leave_a_running_batch(model):
    batch = Batch(model)
    prompt = tokens_of(6).tolist()
    assert batch.step() == []
    batch.add("a", prompt, 9, torch.Generator().manual_seed(0))
    given = [event.token for event in batch.step(2)]
    batch.add("b", prompt, 3, torch.Generator().manual_seed(1))
    batch.add("a copy", prompt, 9, torch.Generator().manual_seed(0))
    batch.add("leaves before it begins", prompt, 9)
    batch.drop("leaves before it begins")
    assert len(batch) == 3
    events = batch.step(5)  # b has only three
    assert [event.name for event in events] == ["a"] * 3 + ["b"] * 3 + ["a copy"] * 3
    assert [event.last for event in events] == [False] * 5 + [True] + [False] * 3
    given += [event.token for event in events[:3]]
    assert [event.token for event in events[6:]] == given[:3]
    batch.drop("a")
    assert [event.token for event in batch.step(2)] == given[3:]
    with pytest.raises(KeyError, match="b"):
        batch.drop("b")


@pytest.mark.parametrize("stop", [None, 1])
def test_a_stopped_state_stays_where_it_was(model, stop):
    """Of two samples the one that stops has taken no step after that."""
    state = model.init_state(2)
    model.prefill(tokens_of(2, 6), state)
    network = model.stream_network()
    uniform = torch.rand(2, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    tokens = step_ops.generate(
        torch.tensor([2, 3]),
        network.packed().embedding,
        *state,
        *network.packed()[1:],
        None,
        uniform,
        1.0,
        VOCAB,
        1.0,
        -1 if stop is None else stop,
    )
    for row, position in zip(tokens.tolist(), state.position.tolist(), strict=True):
        steps = row.index(stop) + 1 if stop in row else 30
        assert position == 6 + steps
        assert set(row[steps:]) <= {stop}


def test_a_bad_prompt_is_refused_before_any_event(model):
    """Which would end those that run."""
    prompts = [tokens_of(length).tolist() for length in (4, 5, 3, 4)]
    with pytest.raises(ValueError, match=r"prompts\[2\] must be at least a context of 4 tokens"):
        next(generate(model, prompts, 5, batch=2))


@pytest.mark.parametrize("dropped", [False, True])
def test_a_failure_is_told_of_after_a_step_that_raised(model, monkeypatch, dropped):
    batch, prompt = Batch(model), tokens_of(4).tolist()
    batch.add("runs", prompt, 3, torch.Generator().manual_seed(0))
    given = batch.step()

    def refuse(*_):
        raise RuntimeError("not enough memory")

    with monkeypatch.context() as patched:
        patched.setattr(model, "prefill", refuse)
        patched.setattr(step_ops, "generate", refuse)
        batch.add("cannot join", prompt, 3)
        with pytest.raises(RuntimeError, match="not enough memory"):
            batch.step()
    assert len(batch) == 2
    with pytest.raises(ValueError, match="there is a request 'cannot join'"):
        batch.add("cannot join", prompt, 3)
    if dropped:
        batch.drop("cannot join")
    failures, given = [], given + batch.step(9)
    if not dropped:
        failures = [given.pop(1)]
    assert [event.name for event in failures if event.error] == ["cannot join"][dropped:]
    assert not batch
    assert given == [
        event._replace(name="runs")
        for event in generate(model, [prompt], 3, generator=torch.Generator().manual_seed(0))
    ]


def test_a_name_is_looked_for_among_others_without_comparing_it_to_each(model):
    class Name:
        compared = 0

        def __hash__(self):
            return id(self) // 16

        def __eq__(self, other):
            Name.compared += 1
            return self is other

    batch, prompt = Batch(model), tokens_of(4).tolist()
    for _ in range(500):
        batch.add(Name(), prompt, 3)
    assert Name.compared < 500 * 499 / 20


def test_numbers_are_drawn_in_pieces(model, monkeypatch):
    """Who asks for many tokens may be given few; neither chunks nor pieces can be told."""
    prompt, seed = tokens_of(4).tolist(), torch.Generator().manual_seed
    batch = Batch(model, Sampling(top_k=10**20))
    batch.add("endless", prompt, 10**12, seed(0))
    endless = [event.token for event in batch.step(20)]
    assert len(batch) == 1

    def run(max_tokens, **options):
        events = generate(model, [prompt] * 2, max_tokens, generator=seed(0), **options)
        return sorted(events, key=lambda event: event.name)

    assert [event.token for event in run(20)[:20]] == endless
    monkeypatch.setattr("convlm_kernels.lm.batch.PIECE", 4)
    expected = run(30)
    for options in ({"chunk": 7}, {"chunk": 30}, {"batch": 1}):
        assert run(30, **options) == expected
    assert len({event.token for event in expected}) > 5
    assert [event.token for event in expected[:4]] == endless[:4]
    assert [event.token for event in expected[4:30]] != [event.token for event in expected[34:]]


def test_bad_types(model):
    for options, message in (
        ({"temperature": "1"}, "temperature must be a number, got '1'"),
        ({"top_p": None}, "top_p must be a number, got None"),
        ({"top_k": 2.5}, "top_k must be an integer, got 2.5"),
        ({"stop": 2.0}, "stop must be an integer, got 2.0"),
        ({"never": [1.5]}, r"never must be integers, got \[1.5\]"),
        ({"never": 3}, "never must be integers, got 3"),
    ):
        with pytest.raises(TypeError, match=message):
            Sampling(**options)
    sampling = Sampling(torch.tensor(0.5), torch.tensor(3), 1, torch.tensor(2), never=[0, 1])
    assert sampling == Sampling(0.5, 3, 1.0, 2, (0, 1))
    assert [type(value) for value in vars(sampling).values()] == [float, int, float, int, tuple]
    batch = Batch(model)
    with pytest.raises(TypeError, match="max_tokens must be an integer, got 2.5"):
        batch.add("half", [1, 2, 3, 4], 2.5)
    with pytest.raises(TypeError, match="unhashable"):
        batch.add(["a"], [1, 2, 3, 4], 2)
    with pytest.raises(TypeError, match="count must be an integer, got 1.5"):
        batch.step(1.5)
    for name in ("max_tokens", "batch", "chunk"):
        with pytest.raises(TypeError, match=f"{name} must be an integer, got 1.5"):
            next(generate(model, [[1, 2, 3, 4]], **{"max_tokens": 5, name: 1.5}))
    for name in ("count", "max_length"):
        with pytest.raises(TypeError, match=f"{name} must be an integer, got 1.5"):
            sample(model, ALPHABET, **{name: 1.5})


def test_bad_arguments(model):
    batch = Batch(model)
    with pytest.raises(ValueError, match="at least a context of 4 tokens, got 3"):
        batch.add("short", [1, 2, 3], 5)
    with pytest.raises(ValueError, match="max_tokens must be at least 1, got 0"):
        batch.add("none", [1, 2, 3, 4], 0)
    batch.add("twice", [1, 2, 3, 4], 5)
    with pytest.raises(ValueError, match="there is a request 'twice'"):
        batch.add("twice", [1, 2, 3, 4], 5)
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        batch.step(0)
    for options, message in (
        ({"temperature": -1.0}, "temperature must be at least 0 and at most 1e38, got -1.0"),
        ({"temperature": 1e39}, "temperature must be at least 0 and at most 1e38, got 1e\\+39"),
        ({"temperature": float("nan")}, "temperature must be at least 0 .*, got nan"),
        ({"top_k": 0}, "top_k must be at least 1, got 0"),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1, got 0.0"),
        ({"top_p": 1.5}, "top_p must be above 0 and at most 1, got 1.5"),
    ):
        with pytest.raises(ValueError, match=message):
            Sampling(**options)
    for name in ("batch", "chunk"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            next(generate(model, [[1, 2, 3, 4]], 5, **{name: 0}))
    for token in (-1, VOCAB):
        with pytest.raises(ValueError, match=f"tokens from 0 to 9, got .*, {token}"):
            batch.add("unknown", [1, 2, 3, token], 5)

    for options, message in (
        ({"stop": VOCAB}, "stop must be of tokens from 0 to 9, got 10"),
        ({"stop": -1}, "stop must be of tokens from 0 to 9, got -1"),
        ({"never": (2, 10)}, r"never must be of tokens from 0 to 9, got \(2, 10\)"),
    ):
        with pytest.raises(ValueError, match=message):
            Batch(model, Sampling(**options))
        with pytest.raises(ValueError, match=message):
            next(generate_by_window(model, tokens_of(1, 4), 5, Sampling(**options), None))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("temperature", [0, 1])
def test_logits_that_are_no_distribution_are_an_error(model, value, temperature, monkeypatch):
    with torch.no_grad():
        model.layers[-1].bias[2] = value
    with pytest.raises(RuntimeError, match="sample 0: there is no token to draw"):
        sample(model, ALPHABET, 2, temperature=temperature)
    monkeypatch.setattr(generation, "can_run_steps", lambda device: "by the full forward")
    with pytest.raises(RuntimeError, match="sample 0: there is no token to draw"):
        sample(model, ALPHABET, 2, temperature=temperature)


def test_a_sample_without_a_token_ends_alone_by_the_window(model):
    sampling = Sampling(temperature=0, never=(9,))
    prompts = tokens_of(3, 5).clamp(max=8)
    with torch.no_grad():
        model.embedding.weight[9] = float("nan")

    def run():
        return list(generate_by_window(model, prompts, 4, sampling, None))

    others = [event for event in run() if event.name != 1]
    prompts[1, 2] = 9
    events = run()
    assert [event for event in events if event.name == 1] == [(1, -1, True)]
    assert [event for event in events if event.name != 1] == others


@pytest.mark.parametrize("order", [["good", "bad"], ["bad", "good"], ["good", "bad", "other"]])
def test_a_request_without_a_token_ends_alone(model, order):
    """A word of NaNs is in the context of one, and may be drawn by all: who draws it ends next."""
    with torch.no_grad():
        model.embedding.weight[5] = float("nan")
    seeds = {"good": 0, "bad": 1, "other": 2}
    prompts = {name: [1, 2, 3, 4, 1, 2] for name in seeds} | {"bad": [1, 2, 3, 4, 5, 2]}

    def run(names, count):
        batch, events = Batch(model), {name: [] for name in names}
        for name in names:
            generator = torch.Generator().manual_seed(seeds[name])
            batch.add(name, prompts[name], 30, generator)
        while batch:
            for event in batch.step(count):
                events[event.name].append(event)
        return events

    for count in (1, 4):
        events = run(order, count)
        (failure,) = events.pop("bad")
        assert failure == ("bad", -1, True)
        assert failure.error.startswith("request 'bad': there is no token to draw")
        for name, given in events.items():
            assert given == run([name], 1)[name]
            assert [event.token for event in given[-2:]] == [5, -1]
            assert all(event.error is None for event in given[:-1])


def test_a_prompt_that_cannot_be_run_ends_alone(model, monkeypatch):
    """The others join once, and are given what they would get alone."""
    prefill, joined = model.prefill, []

    def refuse_six(tokens, state):
        joined.append(tokens.shape[1])
        if tokens.shape[1] == 6:
            raise RuntimeError("not enough memory")
        return prefill(tokens, state)

    def add(batch, name, length):
        prompt = tokens_of(length).tolist()
        batch.add(name, prompt, 3, torch.Generator().manual_seed(length))

    monkeypatch.setattr(model, "prefill", refuse_six)
    batch = Batch(model)
    for name, length in (("before", 5), ("bad", 7), ("after", 8), ("also bad", 7)):
        add(batch, name, length)
    events = batch.step()
    assert [event.name for event in events if event.error] == ["bad", "also bad"]
    assert events[0] == ("bad", -1, True)
    assert events[0].error == (
        "request 'bad': its prompt cannot be run: RuntimeError: not enough memory"
    )
    assert len(batch) == 2
    while batch:
        events += batch.step()
    assert joined == [4, 6, 7]
    for name, length in (("before", 5), ("after", 8)):
        alone = Batch(model)
        add(alone, name, length)
        expected = [event for _ in range(3) for event in alone.step()]
        assert [event for event in events if event.name == name] == expected
    with pytest.raises(RuntimeError, match="sample 0: its prompt cannot be run"):
        sample(model, ALPHABET, prefix="abc")


def test_prompts_are_integers(model):
    batch = Batch(model)
    for prompt in ([0.5] * 5, torch.zeros(5), ["a"] * 5, torch.zeros(5, 2, dtype=torch.int64)):
        with pytest.raises(TypeError, match="prompt must be integers, got "):
            batch.add("bad", prompt, 3)
    assert batch.step() == []
    for name, prompt in enumerate((torch.arange(5), torch.arange(5).tolist())):
        batch.add(name, prompt, 3, torch.Generator().manual_seed(0))
    first, second = (event.token for event in batch.step())
    assert first == second


def test_a_batch_in_which_every_token_is_ruled_out():
    events = list(generate(bigram_model([0.5, 0.5]), [[0]] * 2, 5, Sampling(never=(0, 1))))
    assert events == [(0, -1, True), (1, -1, True)]


@pytest.mark.parametrize("symbols", [".abc;", ".abcdefghijkl;"])
def test_an_alphabet_that_is_not_the_models(model, symbols):
    with pytest.raises(ValueError, match="alphabet must have the 10 symbols of the model, got"):
        sample(model, Alphabet(symbols))


# tokens, embedding, rings, position, weights, biases, plan, logit_bias, uniform, temperature,
# top_k, top_p, stop
@pytest.mark.parametrize(
    ("which", "value", "message"),
    [
        (0, torch.tensor([1, VOCAB]), f"tokens must be from 0 to {VOCAB - 1}, got {VOCAB}"),
        (1, torch.zeros(VOCAB + 1, 3), "one output for each of 11 tokens, got 10"),
        (3, torch.tensor([2, 9]), "position must be at least 3"),
        (7, torch.zeros(3), "logit_bias must have the size 10"),
        (8, torch.zeros(2, 5), "uniform must have the dtype Double"),
        (8, torch.zeros(3, 5).double(), "uniform must have the size 2 in dimension 0"),
        (9, -1.0, "temperature must be at least 0"),
        (9, float("nan"), "temperature must be at least 0"),
        (10, 0, "top_k must be at least 1, got 0"),
        (11, 0.0, "top_p must be above 0 and at most 1, got 0"),
    ],
)
def test_impossible_calls(model, which, value, message):
    arguments = operator_arguments(model)
    step_ops.generate(*arguments)
    arguments[which] = value
    with pytest.raises(RuntimeError) as raised:
        step_ops.generate(*arguments)
    assert message in str(raised.value)


def operator_arguments(model):
    state = model.init_state(2)
    model.prefill(tokens_of(2, 4), state)
    network = model.stream_network()
    uniform = torch.full((2, 5), 0.5, dtype=torch.float64)
    embedding, *packed = network.packed()
    tensors = [torch.tensor([1, 2]), embedding, *state, *packed, torch.zeros(VOCAB), uniform]
    return [*tensors, 1.0, 5, 0.9, 3]


def test_opcheck(model):
    torch.library.opcheck(step_ops.generate, tuple(operator_arguments(model)))


def test_words_of_any_batch(model):
    def words(**options):
        generator = torch.Generator().manual_seed(0)
        return sample(model, ALPHABET, 9, prefix="ab", generator=generator, **options)

    assert words() == words(batch=2) == words(chunk=1) == words(batch=1, chunk=50)
