"""The problems that are timed on a GPU, the most telling first."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from problem import BACKWARD, FORWARD, FUNCTIONS, Problem

TF32, IEEE = "tf32", "ieee"


def kernel_bench() -> Iterator[Problem]:
    """Problems 76 and 67 of KernelBench's first level, as large as there."""
    yield Problem("KernelBench 76", 64, 64, 128, 524_280, 3, 3, 4, fp32_precision=TF32)
    yield Problem("KernelBench 67", 32, 64, 128, 131_072, 3, fp32_precision=TF32)


def lm_layer(channels: int, kernel_size: int, dilation: int, length: int = 4_096) -> Problem:
    """A causal layer of a language model."""
    return Problem(
        f"LM C{channels} K{kernel_size} d{dilation} L{length}",
        8,
        channels,
        channels,
        length,
        kernel_size,
        dilation=dilation,
        padding="causal",
        dtype=torch.bfloat16,
    )


def lm_layers() -> Iterator[Problem]:
    yield lm_layer(512, 3, 4)
    yield lm_layer(64, 3, 4, 16_384)
    yield lm_layer(256, 2, 64)
    yield lm_layer(1_024, 3, 16)
    for channels in 256, 512, 1_024:
        for kernel_size in 2, 3, 7:
            for dilation, length in (1, 4_096), (512, 4_096), (16, 16_384):
                problem = lm_layer(channels, kernel_size, dilation, length)
                yield replace(problem, core=False)


def float32_layers() -> Iterator[Problem]:
    """Exact float32, without tensor cores."""
    for channels in 64, 256:
        layer = lm_layer(channels, 3, 4)
        yield replace(
            layer,
            name=f"{layer.name} ieee float32",
            dtype=torch.float32,
            fp32_precision=IEEE,
        )


def depthwise() -> Iterator[Problem]:
    for stride, dilation in (1, 1), (1, 4), (2, 1):
        yield Problem(
            f"depthwise C4096 K4 s{stride} d{dilation}",
            8,
            4_096,
            4_096,
            4_096,
            4,
            stride,
            dilation,
            groups=4_096,
            padding=((4 - 1) * dilation, 0),
            dtype=torch.bfloat16,
            functions=(*FUNCTIONS, BACKWARD),
            core=dilation == stride == 1,
        )


SEED = Problem(
    "seed 100->100 K2 d2 + tanh",
    32,
    100,
    100,
    22,
    2,
    dilation=2,
    activation="tanh",
    functions=(*FUNCTIONS, BACKWARD),
)


def others() -> Iterator[Problem]:
    template = Problem("Inductor's template", 3_072, 128, 384, 202, 3, dtype=torch.bfloat16)
    yield replace(template, functions=(FORWARD,))
    yield SEED
    odd = Problem("odd 129->257 K5 s2 d3 L5003", 4, 129, 257, 5_003, 5, 2, 3, padding=(4, 3))
    yield replace(odd, dtype=torch.bfloat16)


def in_turn(*several: Iterator[Problem]) -> Iterator[Problem]:
    """The core ones before the rest, so that a short run has seen each kind."""
    problems = [problem for kind in several for problem in kind]
    yield from sorted(problems, key=lambda problem: not problem.core)


PROBLEMS = list(in_turn(lm_layers(), depthwise(), others(), float32_layers(), kernel_bench()))
