"""One position or one character at a time: our steps against the ways to do it with torch's layers.

    python benchmarks/bench_generation.py --rounds 30 --json results.json

"window" runs the full forward again over all that the newest output depends on; "queues" keeps each
layer's inputs in a queue and does two small matrix products a layer, which is the best that torch's
own operators have. All are checked for equal results before they take turns. Rows are batch 1; the
loop of a language model draws its characters too.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from report import machine, print_table, write_json
from timing import Providers, Quantiles, measure, speedup
from torch import Tensor, nn
from torch.nn import functional as F

from convlm_kernels import DilatedStack, StackLayer, step_ops
from convlm_kernels.lm import DilatedCNN
from convlm_kernels.lm.models import CharModel

LAYERS = 10
CHARACTERS = 64  # of one call of the loop


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


def stack_bench(channels: int) -> Providers:
    """One step of ten layers of two taps, dilations 1 to 512."""
    torch.manual_seed(0)
    stack = DilatedStack(
        *(
            StackLayer(channels, channels, 2, dilation=2**i, activation="tanh")
            for i in range(LAYERS)
        )
    ).requires_grad_(False)
    layers = list(stack)
    receptive_field = 2**LAYERS
    x = torch.randn(receptive_field, 1, channels)
    field = x.movedim(0, 2)
    queues, window = Queues(layers), window_of(layers)
    state, state_16 = stack.init_state(), stack.init_state()
    for column in x:
        results = {
            "step": stack.step(column, state),
            "step, bf16 weights": stack.step(column, state_16, weight_dtype=torch.bfloat16),
            "queues": queues(column),
        }
    results["window"] = window(field)
    assert_equal(results)
    newest = x[-1]
    return {
        "step": lambda: stack.step(newest, state),
        "step, bf16 weights": lambda: stack.step(newest, state_16, weight_dtype=torch.bfloat16),
        "queues": lambda: queues(newest),
        "window": lambda: window(field),
    }


def seed_bench() -> Providers:
    """One character's logits by the seed's dilated model, without drawing from them."""
    torch.manual_seed(0)
    model = DilatedCNN().requires_grad_(False)
    tokens = torch.randint(28, (1, model.context))
    window, queues = window_of(list(model.layers)), seed_queues(model)
    state = model.init_state()
    for token in tokens.unbind(1):
        results = {"step": model.step(token, state), "queues": queues(token)}
    results["window"] = window(model.embed_as_signal(tokens))
    assert_equal(results)
    newest = tokens[:, -1]
    return {
        "step": lambda: model.step(newest, state),
        "queues": lambda: queues(newest),
        "window": lambda: window(model.embed_as_signal(tokens)),
    }


def seed_queues(model: DilatedCNN) -> Callable[[Tensor], Tensor]:
    """The seed's model as layers of two taps: its first one reads two embeddings."""
    first, *others = model.layers
    features = model.embedding.embedding_dim
    pairs = nn.Conv1d(features, first.out_channels, 2)
    pairs.weight, pairs.bias = nn.Parameter(first.weight.view(-1, 2, features).mT), first.bias
    pairs.activation = first.activation  # type: ignore[assignment]
    queues = Queues([pairs, *others])
    return lambda token: queues(model.embedding.weight[token])


def loop_bench() -> Providers:
    """CHARACTERS characters, each drawn and then the input of the next step."""
    torch.manual_seed(0)
    model = DilatedCNN().requires_grad_(False)
    tokens = torch.randint(28, (1, model.context))
    window, queues = window_of(list(model.layers)), seed_queues(model)
    state = model.init_state()
    model.prefill(tokens[:, :-1], state)
    for token in tokens[:, :-1].unbind(1):
        queues(token)

    def draw(logits: Tensor) -> Tensor:
        return torch.multinomial(logits.softmax(1), 1)[:, 0]

    def by_window() -> Tensor:
        drawn = tokens
        for _ in range(CHARACTERS):
            logits = window(model.embed_as_signal(drawn[:, -model.context :]))
            drawn = torch.cat([drawn, draw(logits)[:, None]], dim=1)
        return drawn

    def by_queues() -> list[Tensor]:
        drawn = [tokens[:, -1]]
        for _ in range(CHARACTERS):
            drawn.append(draw(queues(drawn[-1])))
        return drawn

    return {
        "loop": lambda: generate_characters(model, tokens[:, -1], state),
        "queues": by_queues,
        "window": by_window,
    }


def generate_characters(model: CharModel, tokens: Tensor, state: Any) -> Tensor:
    embedding, *packed = model.stream_network().packed()
    uniform = torch.rand(len(tokens), CHARACTERS, dtype=torch.float64)
    settings = None, uniform, 1.0, model.vocab, 1.0, -1
    return step_ops.generate(tokens, embedding, *state, *packed, *settings)


def assert_equal(results: dict[str, Tensor]) -> None:
    for name, value in results.items():
        tolerance = 0.05 if "bf16" in name else 1e-4
        torch.testing.assert_close(value, results["window"], rtol=tolerance, atol=tolerance)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", metavar="OUT", help="write the figures there too")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    benches = {f"{LAYERS} layers, {c} channels": (stack_bench(c), 1) for c in (64, 128, 256)}
    benches["seed's dilated model"] = (seed_bench(), 1)
    benches["the same, loop with drawing"] = (loop_bench(), CHARACTERS)
    rows: list[list[str]] = []
    results: list[dict[str, Any]] = []
    for bench, (providers, positions) in benches.items():
        times = measure(providers, args.rounds)
        for name in providers:
            median = Quantiles.of(times[name]).median / positions
            ratios = [speedup(times, name, peer) for peer in ("queues", "window")]
            results.append(
                {
                    "bench": bench,
                    "provider": name,
                    "seconds": median,
                    "over_queues": ratios[0]._asdict(),
                    "over_window": ratios[1]._asdict(),
                }
            )
            cells = [f"{ratio.median:.1f}  ({ratio.low:.1f}-{ratio.high:.1f})" for ratio in ratios]
            rows.append([f"{bench}: {name}", f"{1e6 * median:,.2f}", *cells])
    header = [f"{args.threads} thread(s), batch 1", "us a position", "over queues", "over window"]
    print_table(header, rows)
    if args.json:
        write_json(args.json, {"machine": machine(), "rounds": args.rounds, "rows": results})


if __name__ == "__main__":
    main()
