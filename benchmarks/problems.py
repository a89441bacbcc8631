"""The problems that the layers are timed on, by name and family."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from problem import BACKWARD, FORWARD, FUNCTIONS, STEP, Problem

FOUR = (*FUNCTIONS, STEP)


def seed() -> Iterator[Problem]:
    """The character models' layers: batch 32, rows of 230 and what follows them."""
    functions = (*FUNCTIONS, BACKWARD, STEP)
    for problem in (
        Problem("seed 1->100 K20 s10 + tanh", 32, 1, 100, 230, 20, 10, activation="tanh"),
        Problem("seed 100->100 K2 d2 + tanh", 32, 100, 100, 22, 2, 1, 2, activation="tanh"),
        Problem("seed 100->28 K2 d4", 32, 100, 28, 20, 2, 1, 4),
        Problem("seed 1->28 K80 s10", 32, 1, 28, 230, 80, 10),
    ):
        yield replace(problem, functions=functions)


def causal(
    batch: int, channels: int, length: int, kernel_size: int, dilation: int, **settings: object
) -> Problem:
    """A layer of a language model."""
    name = f"LM C{channels} K{kernel_size} d{dilation} L{length}"
    problem = Problem(name, batch, channels, channels, length, kernel_size, dilation=dilation)
    return replace(problem, padding="causal", **settings)


def language_models() -> Iterator[Problem]:
    """Causal layers as in WaveNet and TCNs: batch times length falls as channels grow."""
    for kernel_size, dilation in (3, 1), (3, 4), (3, 64), (2, 64), (7, 64):
        yield causal(16, 64, 1_024, kernel_size, dilation, functions=FOUR)
    yield causal(1, 64, 16_384, 2, 512, functions=FOUR)
    yield causal(1, 64, 16_384, 7, 512)
    for kernel_size, dilation in (3, 4), (2, 64):
        yield causal(4, 256, 1_024, kernel_size, dilation, functions=FOUR)
    yield causal(4, 256, 1_024, 7, 64)
    yield causal(2, 512, 1_024, 3, 16)
    yield causal(1, 1_024, 1_024, 2, 256)
    with_tanh = causal(16, 64, 1_024, 3, 4, activation="tanh", functions=(FORWARD, STEP))
    yield replace(with_tanh, name=f"{with_tanh.name} + tanh")


def more_language_models() -> Iterator[Problem]:
    """Every kernel size with every number of channels, for --all."""
    named = {problem.name for problem in language_models()}
    for kernel_size in 2, 3, 7:
        for channels in 64, 128, 256, 512, 1_024:
            for dilation in 1, 16, 512:
                batch = max(1, 1_024 // channels)
                problem = causal(batch, channels, 2_048, kernel_size, dilation, core=False)
                if problem.name not in named:
                    yield problem


def published() -> Iterator[Problem]:
    """What others have published times of, the batch cut to what a CPU does in a moment.

    The first four are of arXiv 2104.08002, or near; then two of KernelBench's first level and one
    that Inductor chooses its convolution template by.
    """
    yield Problem("paper 15->15 K51 d8 L60000", 1, 15, 15, 60_000, 51, dilation=8, functions=FOUR)
    yield Problem("paper 64->64 K5 L60000", 1, 64, 64, 60_000, 5, functions=FOUR)
    yield Problem("paper 64->64 K5 L1000", 1, 64, 64, 1_000, 5)
    yield Problem("paper 64->64 K51 L10000", 1, 64, 64, 10_000, 51)
    yield Problem("KernelBench 67 N1", 1, 64, 128, 131_072, 3)
    yield Problem("KernelBench 76 N1", 1, 64, 128, 524_280, 3, 3, 4)
    yield Problem("Inductor 128->384 K3 L202 N64", 64, 128, 384, 202, 3)


def depthwise() -> Iterator[Problem]:
    functions = (*FUNCTIONS, BACKWARD, STEP)
    for dilation in 1, 4:
        name = f"depthwise C512 K4 d{dilation}"
        problem = Problem(name, 8, 512, 512, 2_048, 4, dilation=dilation, groups=512)
        yield replace(problem, padding="causal", functions=functions)
    yield Problem("depthwise C100 K7 s2 L1003", 8, 100, 100, 1_003, 7, 2, groups=100, padding=3)


def between() -> Iterator[Problem]:
    """Near the others but on none of them: what is tuned for those must not fall off here."""
    yield Problem("odd 17->13 K51 d7 L30011", 1, 17, 13, 30_011, 51, dilation=7)
    yield Problem("odd 67->61 K5 L4099 same", 2, 67, 61, 4_099, 5, padding="same")
    yield Problem("odd 65->65 K3 d5 L1001", 16, 65, 65, 1_001, 3, dilation=5, padding="causal")
    yield Problem("odd 129->129 K4 d3 L517", 8, 129, 129, 517, 4, dilation=3, padding="causal")
    yield Problem("stride 2 64->128 K5 L8191", 2, 64, 128, 8_191, 5, 2, padding=2)
    yield Problem("stride 2 d3 33->31 K4 L2050", 4, 33, 31, 2_050, 4, 2, 3)
    yield Problem("groups 4 128->128 K3 L1024", 8, 128, 128, 1_024, 3, groups=4, padding="same")
    yield Problem("pointwise 128->256 L500", 8, 128, 256, 500, 1)


def at_precision(problem: Problem, **precision: object) -> Problem:
    """The problem's functions, each by itself, at another precision."""
    functions = tuple(function for function in FUNCTIONS if function in problem.functions)
    other = replace(problem, functions=functions, **precision)
    return replace(other, name=f"{problem.name} {other.format}")


def other_precisions(problems: list[Problem]) -> Iterator[Problem]:
    by_name = {problem.name: problem for problem in problems}
    for dtype, names in {
        torch.bfloat16: (
            "seed 100->100 K2 d2 + tanh",
            "LM C64 K3 d4 L1024",
            "LM C256 K3 d4 L1024",
            "paper 15->15 K51 d8 L60000",
            "depthwise C512 K4 d1",
            "odd 65->65 K3 d5 L1001",
        ),
        torch.float64: ("LM C64 K3 d4 L1024", "odd 67->61 K5 L4099 same"),
    }.items():
        for name in names:
            yield at_precision(by_name[name], dtype=dtype)
    for name in (
        "LM C64 K3 d4 L1024",
        "LM C64 K2 d64 L1024",
        "LM C64 K7 d64 L1024",
        "LM C256 K3 d4 L1024",
        "LM C512 K3 d16 L1024",
        "LM C64 K3 d4 L1024 + tanh",
    ):
        yield at_precision(by_name[name], fp32_precision="tf32")


def families() -> dict[str, list[Problem]]:
    found = {
        "the seed's models": [*seed()],
        "language models": [*language_models(), *more_language_models()],
        "published": [*published()],
        "depthwise": [*depthwise()],
        "in between": [*between()],
    }
    everything = [problem for problems in found.values() for problem in problems]
    return found | {"other precisions": [*other_precisions(everything)]}


PROBLEMS = [
    replace(problem, family=family)
    for family, problems in families().items()
    for problem in problems
]
