"""Is there a cliff? Random problems, ours against `F.conv1d`, and the worst of them.

    python benchmarks/sweep.py --tuned-allocator --minutes 5 --seed 1
    python benchmarks/sweep.py --tuned-allocator --channels 1024 --dtype bfloat16

A ratio below 0.9 counts only after it was measured again with more rounds.
"""

import argparse
import random
import statistics
from collections.abc import Iterator, Sequence
from time import perf_counter
from typing import NamedTuple

import torch
from environment import allocator, enter
from oracle import Oracle
from problem import FUNCTIONS, Data, Problem
from providers import Ours, PaddedConv1d, Provider, TorchConv1d
from tables import print_table
from timing import Quantiles, measure
from tqdm import tqdm

from convlm_kernels.geometry import Padding

CLIFF = 0.9
CHANNELS = 300
LARGEST = 3e8  # products of so many channels; larger problems would leave time for only a few
DTYPES = ("float32", "float64", "bfloat16", "float16")
ROUNDS, SECONDS = 5, 0.003
AGAIN = 15  # rounds of the second look


class Found(NamedTuple):
    ratio: float  # of the best form of F.conv1d, median of the rounds
    function: str
    seconds: float  # ours
    problem: Problem


def random_problems(
    seed: int, channels: int = CHANNELS, dtype: torch.dtype = torch.float32
) -> Iterator[Problem]:
    """Sizes are uniform in their logarithm: as many small ones as large ones."""
    draw = random.Random(seed)
    largest_flops = 2 * LARGEST * max(1, channels / CHANNELS) ** 2

    def size(largest: int) -> int:
        return min(largest, int((largest + 1) ** draw.random()))

    while True:
        in_channels, out_channels, kernel_size = size(channels), size(channels), size(64)
        groups = 1
        if draw.random() < 0.15:
            groups, out_channels = in_channels, in_channels * draw.choice([1, 1, 2])
        elif draw.random() < 0.1:
            groups = draw.choice([2, 3, 4])
            in_channels, out_channels = groups * size(channels // 4), groups * size(channels // 4)
        dilation = draw.choice([1, 1, 2, 4, 8, draw.randint(1, 64)])
        reach = dilation * (kernel_size - 1)
        paddings: list[Padding] = [0, (reach, 0), reach // 2]
        problem = Problem(
            "",
            draw.choice([1, 2, 8, 32]),
            in_channels,
            out_channels,
            size(2_100),
            kernel_size,
            draw.choice([1, 1, 1, 2, 3, 5]),
            dilation,
            groups,
            draw.choice(paddings),
            dtype=dtype,
        )
        if problem.geometry.out_length >= 1 and problem.flops(FUNCTIONS[0]) <= largest_flops:
            yield problem


def ratio_of(providers: Sequence[Provider], function: str, rounds: int) -> tuple[float, float]:
    """Of the best of the others to the first, and seconds of the first."""
    calls = {provider.name: getattr(provider, function) for provider in providers}
    times = measure(calls, rounds, SECONDS)
    ours, *peers = times
    pairs = [
        min(theirs) / mine
        for mine, *theirs in zip(times[ours], *(times[peer] for peer in peers), strict=True)
    ]
    return statistics.median(pairs), Quantiles.of(times[ours]).median


def look_at(problem: Problem) -> Iterator[Found]:
    data = Data.random(problem)
    kinds = (Ours, TorchConv1d, PaddedConv1d)
    providers = [kind(data) for kind in kinds if kind.can_run(problem)]
    for function in FUNCTIONS:
        oracle = Oracle(function, data)
        oracle.error(problem.expression(), getattr(providers[0], function)())
        ratio, seconds = ratio_of(providers, function, ROUNDS)
        if ratio < CLIFF:
            ratio, seconds = ratio_of(providers, function, AGAIN)
        yield Found(ratio, function, seconds, problem)


def sweep(problems: Iterator[Problem], seconds: float, most: int | None = None) -> list[Found]:
    """What was found in about `seconds`, or of the first `most` problems; the worst first."""
    end = perf_counter() + seconds
    found: list[Found] = []
    with tqdm(unit="problem", total=most, disable=None) as bar:
        for count, problem in enumerate(problems):
            if perf_counter() > end or count == most:
                break
            found += look_at(problem)
            bar.update()
            bar.set_postfix(worst=f"{min(one.ratio for one in found):.2f}")
    return sorted(found, key=lambda one: one.ratio)


def say(found: Sequence[Found], worst: int = 10) -> None:
    rows = [
        [
            one.function,
            f"{one.ratio:.2f}x",
            f"{1e6 * one.seconds:,.0f} us",
            one.problem.expression(),
        ]
        for one in found[:worst]
    ]
    print_table(["the worst", "ratio", "ours", "of"], rows)
    for function in FUNCTIONS:
        ratios = [one.ratio for one in found if one.function == function]
        below = sum(ratio < CLIFF for ratio in ratios)
        print(
            f"{function}: {len(ratios)} problems, median {statistics.median(ratios):.2f}x, "
            f"{below} below {CLIFF}x ({100 * below / len(ratios):.1f} %)"
        )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--minutes", type=float, default=5.0, help="to be spent, about")
    add("--problems", type=int, metavar="N", help="no more than these")
    add("--seed", type=int, default=0)
    add(
        "--channels",
        type=int,
        default=CHANNELS,
        metavar="N",
        help="no more than these (default: %(default)s)",
    )
    add("--dtype", choices=DTYPES, default=DTYPES[0])
    add("--threads", type=int, default=1)
    add("--tuned-allocator", action="store_true", help="keep freed memory: see environment.py")
    args = parser.parse_args(argv)
    if args.channels < 4:
        parser.error(f"--channels must be at least 4, for four groups, got {args.channels}")
    if argv is None:
        enter(args.tuned_allocator, args.threads)
    torch.set_num_threads(args.threads)
    with torch.no_grad():
        problems = random_problems(args.seed, args.channels, getattr(torch, args.dtype))
        found = sweep(problems, 60 * args.minutes, args.problems)
    say(found)
    print(f"{args.dtype}, {args.threads} thread(s), seed {args.seed}, {allocator()} allocator")


if __name__ == "__main__":
    main()
