"""What does the next position or character cost, against the ways to do it with torch's layers?

    python benchmarks/bench_generation.py --only "10 layers"

"window" runs the full forward again over all that the newest output depends on; "queues" keeps each
layer's inputs in a queue and does two small matrix products a layer, which is the best that torch's
own operators have. All are compared before they take turns. Rows are batch 1; the loop of a
language model draws its characters too.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from models import CharModel, DilatedCNN, byte_model, seeded
from suite import OURS, Case, Contest, Setting, Suite
from torch import Tensor, nn
from torch.nn import functional as F

from convlm_kernels import DilatedStack, StackLayer, step_ops

LAYERS = 10
CHANNELS = 64, 128, 256
BFLOAT16 = "ours, bf16 weights"

MODELS: dict[str, tuple[Callable[[], DilatedCNN], int]] = {  # and the characters of one loop
    "seed's dilated model": (DilatedCNN, 64),
    "10 layers of 128, bytes": (byte_model, 8),
}
LONG_LOOP = 256  # characters, without the window: what one would wait for


class Queues:
    """Layers of two taps on torch's operators, each with a queue of its past inputs."""

    def __init__(self, layers: list[Any], batch: int = 1) -> None:
        self.weights = [
            (layer.weight[:, :, 0].T.contiguous(), layer.weight[:, :, 1].T.contiguous(), layer.bias)
            for layer in layers
        ]
        self.queues = [
            [layer.weight.new_zeros(batch, layer.in_channels) for _ in range(layer.dilation[0])]
            for layer in layers
        ]
        self.activations = [layer.activation for layer in layers]
        self.position = 0

    def __call__(self, x: Tensor) -> Tensor:
        parts = zip(self.weights, self.queues, self.activations, strict=True)
        for (old_weight, new_weight, bias), queue, activation in parts:
            slot = self.position % len(queue)
            old, queue[slot] = queue[slot], x
            x = torch.addmm(torch.addmm(bias, old, old_weight), x, new_weight)
            if activation == "tanh":
                x = x.tanh()
        self.position += 1
        return x


def window_of(layers: list[Any]) -> Callable[[Tensor], Tensor]:
    """The newest output from a whole receptive field (1, channels, length), on torch's layers."""
    settings = [
        (layer.weight, layer.bias, layer.stride, layer.dilation, layer.activation)
        for layer in layers
    ]

    def run(x: Tensor) -> Tensor:
        for weight, bias, stride, dilation, activation in settings:
            x = F.conv1d(x, weight, bias, stride, 0, dilation)
            if activation == "tanh":
                x = x.tanh()
        return x[:, :, -1]

    return run


def stack_step(channels: int, layers: int) -> Contest:
    """One step of layers of two taps, dilations 1, 2, 4, ..."""
    torch.manual_seed(0)
    dilations = [2**i for i in range(layers)]
    stack = DilatedStack(
        *(StackLayer(channels, channels, 2, dilation=d, activation="tanh") for d in dilations)
    ).requires_grad_(False)
    x = torch.randn(2**layers, 1, channels)
    field = x.movedim(0, 2)
    queues, window = Queues(list(stack)), window_of(list(stack))
    state, state_16 = stack.init_state(), stack.init_state()
    calls: dict[str, Callable[[Tensor], Tensor]] = {
        OURS: lambda column: stack.step(column, state),
        BFLOAT16: lambda column: stack.step(column, state_16, weight_dtype=torch.bfloat16),
        "queues": queues,
    }
    for column in x:
        results = {name: call(column) for name, call in calls.items()}
    assert_equal(results, window(field))
    newest = x[-1]
    bound: dict[str, Callable[[], object]] = {n: partial(c, newest) for n, c in calls.items()}
    return Contest(bound | {"window": lambda: window(field)}, shown=[BFLOAT16])


def model_step(build: Callable[[], DilatedCNN]) -> Contest:
    """One character's logits, without drawing from them."""
    model: Any = seeded(build).requires_grad_(False)
    tokens = torch.randint(model.vocab, (1, model.context))
    window, queues = window_of(list(model.layers)), queues_of(model)
    state = model.init_state()
    for token in tokens.unbind(1):
        results = {OURS: model.step(token, state), "queues": queues(token)}
    assert_equal(results, window(model.embed_as_signal(tokens)))
    newest = tokens[:, -1]
    return Contest(
        {
            OURS: lambda: model.step(newest, state),
            "queues": lambda: queues(newest),
            "window": lambda: window(model.embed_as_signal(tokens)),
        }
    )


def queues_of(model: DilatedCNN) -> Callable[[Tensor], Tensor]:
    """The model as layers of two taps: its first one reads two embeddings."""
    first, *others = model.layers
    features = model.embedding.embedding_dim
    pairs = nn.Conv1d(features, first.out_channels, 2)
    pairs.weight, pairs.bias = nn.Parameter(first.weight.view(-1, 2, features).mT), first.bias
    pairs.activation = first.activation  # type: ignore[assignment]
    queues = Queues([pairs, *others])
    return lambda token: queues(model.embedding.weight[token])


def characters_of(channels: int, layers: int) -> DilatedCNN:
    """A model of letters and such: the layers of :func:`stack_step` but for the first and last."""
    return DilatedCNN(28, 2**layers, embedding=channels, hidden=channels)


def loop(build: Callable[[], DilatedCNN], characters: int) -> Contest:
    """As many characters, each drawn and then the input of the next step."""
    model: Any = seeded(build).requires_grad_(False)
    tokens = torch.randint(model.vocab, (1, model.context))
    window, queues = window_of(list(model.layers)), queues_of(model)
    state = model.init_state()
    model.prefill(tokens[:, :-1], state)
    for token in tokens[:, :-1].unbind(1):
        queues(token)

    def draw(logits: Tensor) -> Tensor:
        return torch.multinomial(logits.softmax(1), 1)[:, 0]

    def by_window() -> Tensor:
        drawn = tokens
        for _ in range(characters):
            logits = window(model.embed_as_signal(drawn[:, -model.context :]))
            drawn = torch.cat([drawn, draw(logits)[:, None]], dim=1)
        return drawn

    def by_queues() -> list[Tensor]:
        drawn = [tokens[:, -1]]
        for _ in range(characters):
            drawn.append(draw(queues(drawn[-1])))
        return drawn

    def ours() -> Tensor:
        return generate(model, tokens[:, -1], state, characters)

    calls = {OURS: ours, "queues": by_queues}
    return Contest(calls if characters >= LONG_LOOP else calls | {"window": by_window})


def generate(model: CharModel, tokens: Tensor, state: Any, characters: int) -> Tensor:
    embedding, *packed = model.stream_network().packed()
    uniform = torch.rand(len(tokens), characters, dtype=torch.float64)
    settings = None, uniform, 1.0, model.vocab, 1.0, -1
    return step_ops.generate(tokens, embedding, *state, *packed, *settings)


def assert_equal(results: Mapping[str, Tensor], expected: Tensor) -> None:
    for name, value in results.items():
        tolerance = 0.05 if name == BFLOAT16 else 1e-4
        torch.testing.assert_close(value, expected, rtol=tolerance, atol=tolerance)


def cases(setting: Setting) -> Iterator[Case]:
    layers = 5 if setting.small else LAYERS
    for channels in CHANNELS:
        name = f"{layers} layers of {channels}"
        if setting.wants(name):
            yield Case(name, "step", partial(stack_step, channels, layers))
        name = f"{name}, characters"
        if setting.wants(name):
            make = partial(loop, partial(characters_of, channels, layers), LONG_LOOP)
            yield Case(name, "loop with drawing", make, times=LONG_LOOP)
    for name, (build, characters) in MODELS.items():
        if setting.wants(name) and not (setting.small and build is byte_model):
            yield Case(name, "step", partial(model_step, build))
            make = partial(loop, build, characters)
            yield Case(name, "loop with drawing", make, times=characters)


SUITE = Suite(
    "generation",
    "Generation",
    "The next position of a stack or character of a model, at batch 1: one call of ours, a queue "
    "for each of torch's layers, and running the whole window again.",
    cases,
    share=0.06,
)

if __name__ == "__main__":
    from bench import main_of

    main_of(SUITE.name)
