"""The seed's language models: ours against the same model on layers of torch.

    python benchmarks/bench_lm.py --tuned-allocator --threads 1 --rounds 30 --json results.json

A training step draws 32 rows and does forward, loss, backward and SGD; ours is what `convlm train`
does, the peer's the loop that one writes with torch. The full loss is that of all training rows.
Each pair is checked for equal results before it is timed.

Rows are those of --words (a file, or "names"), or as many random ones as the 32,033 names give. How
much shared contexts save is a matter of the words: random letters repeat the least.
"""

import argparse
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from bench_seed import BATCH, on_torch_layers
from environment import enter
from report import machine, print_table, significant, write_json
from timing import Providers, Quantiles, measure, speedup
from torch import Tensor

from convlm_kernels.lm import CNN, DilatedCNN, Split, load_words, make_data
from convlm_kernels.lm.models import CharModel, loss_of

OURS, PEER = "ours", "on torch's layers"
ROWS, LETTERS, CONTEXT, LENGTH = 25_626, 26, 8, 23
LEARNING_RATE = 0.01


class Bench(NamedTuple):
    """One row of the table; `make` gives a call for ours and one for the peer."""

    name: str
    make: Callable[[Split], Providers]
    seconds: float  # that each provider is timed for in a round


def names_like_rows() -> Split:
    """Rows of the seed's shape: a start, 2 to 15 letters, and stops up to the end."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, LETTERS + 1, (ROWS, LENGTH + 1), generator=generator)
    ends = CONTEXT + torch.randint(2, LENGTH - CONTEXT + 1, (ROWS, 1), generator=generator)
    position = torch.arange(LENGTH + 1)
    tokens = tokens.where(position < ends, LETTERS + 1).where(position >= CONTEXT, 0)
    return Split(tokens[:, :-1].contiguous(), tokens[:, CONTEXT:].contiguous())


def training_step(build: Callable[[], CharModel], split: Split) -> Providers:
    ours = seeded(build)
    peer = on_torch_layers(ours)
    optimizer = torch.optim.SGD(peer.parameters(), lr=LEARNING_RATE)

    def our_step(generator: torch.Generator) -> float:
        rows = torch.randint(len(split.x), (BATCH,), generator=generator)
        return ours.sgd_step(split.x, split.y, LEARNING_RATE, rows).item()

    def peer_step(generator: torch.Generator) -> float:
        rows = torch.randint(len(split.x), (BATCH,), generator=generator)
        loss = loss_of(peer(split.x[rows]), split.y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    steps = {OURS: our_step, PEER: peer_step}
    generators = {name: torch.Generator().manual_seed(0) for name in steps}
    for _ in range(3):
        losses = [step(generators[name]) for name, step in steps.items()]
        assert_equal(torch.tensor(losses[0]), torch.tensor(losses[1]))
    for own, other in zip(ours.parameters(), peer.parameters(), strict=True):
        assert_equal(own, other)
    return {name: lambda s=step, g=generators[name]: s(g) for name, step in steps.items()}


def full_loss(build: Callable[[], CharModel], split: Split) -> Providers:
    x, y = split
    ours = seeded(build)
    peer = on_torch_layers(ours)

    def without_gradients(loss: Callable[[], Tensor]) -> Callable[[], Tensor]:
        return torch.no_grad()(loss)

    providers = {
        OURS: without_gradients(lambda: ours.loss(x, y)),
        PEER: without_gradients(lambda: loss_of(peer(x), y)),
    }
    assert_equal(*(provider() for provider in providers.values()))
    return providers


def seeded(build: Callable[[], CharModel]) -> CharModel:
    torch.manual_seed(0)
    return build()


def assert_equal(own: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-5)


def dense() -> DilatedCNN:
    """Each position computed by itself, whatever repeats."""
    model = DilatedCNN()
    model.share_contexts = False
    return model


MODELS: dict[str, Callable[[], CharModel]] = {
    "CNN": CNN,
    "dilated, dense": dense,
    "dilated, shared contexts": DilatedCNN,
}

BENCHES = [
    bench
    for name, build in MODELS.items()
    for bench in (
        Bench(f"{name}, training step", lambda split, b=build: training_step(b, split), 0.02),
        Bench(f"{name}, full loss", lambda split, b=build: full_loss(b, split), 0.1),
    )
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--tuned-allocator", action="store_true", help="see environment.py")
    parser.add_argument("--words", help='a file, one word a line, or "names"')
    parser.add_argument("--only", nargs="+", default=[], help="rows whose name holds one of these")
    parser.add_argument("--json", metavar="OUT", help="write the figures there too")
    args = parser.parse_args()
    enter(args.tuned_allocator, args.threads)
    torch.set_num_threads(args.threads)

    split = make_data(load_words(args.words)).train if args.words else names_like_rows()
    rows: list[list[str]] = []
    results: list[dict[str, Any]] = []
    for bench in BENCHES:
        if args.only and not any(word in bench.name for word in args.only):
            continue
        times = measure(bench.make(split), args.rounds, bench.seconds)
        medians = {name: Quantiles.of(values).median for name, values in times.items()}
        ratio = speedup(times, OURS, PEER)
        seconds = {name: significant(median) for name, median in medians.items()}
        results.append({"name": bench.name, "seconds": seconds, "speedup": ratio._asdict()})
        cells = [f"{1e6 * median:,.1f}" for median in medians.values()]
        rows.append([bench.name, *cells, f"{ratio.median:.1f}  ({ratio.low:.1f}-{ratio.high:.1f})"])
    print_table([f"{args.threads} thread(s), us", OURS, PEER, "speedup  (quartiles)"], rows)
    if args.json:
        run = {"machine": machine(), "threads": args.threads, "rounds": args.rounds}
        run |= {"words": args.words or "random letters"}
        write_json(args.json, run | {"rows": results})


if __name__ == "__main__":
    main()
