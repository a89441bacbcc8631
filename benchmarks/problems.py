"""The problems that are timed, by name, and what each is to reach."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from problem import BACKWARD, FORWARD, FUNCTIONS, GRAD_INPUT, GRAD_WEIGHT, Problem, Target, Targets


def ratios(forward: float, grad_input: float, grad_weight: float, of: str = "conv1d") -> Targets:
    values = (forward, grad_input, grad_weight)
    return {name: (Target(value, of),) for name, value in zip(FUNCTIONS, values, strict=True)}


def join(*several: Targets) -> Targets:
    names = {name: None for targets in several for name in targets}
    return {name: sum((targets.get(name, ()) for targets in several), ()) for name in names}


def long_sequences() -> Iterator[Problem]:
    """Genomics and audio: few channels, long kernels, long rows."""
    name = "genomics 15->15 K51 d8 L60000"
    shares = ratios(0.95, 0.94, 0.90, "share")
    targets = join(shares, ratios(1.7, 5.1, 3.3))
    yield Problem(name, 1, 15, 15, 60_000, 51, dilation=8, targets=targets)
    best = ratios(1.0, 1.0, 1.0, "best")
    faster = join(best, {FORWARD: (Target(1.3),)}, {GRAD_WEIGHT: (Target(1.3),)})
    yield Problem("64->64 K5 L60000", 1, 64, 64, 60_000, 5, targets=faster)
    faster = join(best, {GRAD_WEIGHT: (Target(1.3),)})
    yield Problem("64->64 K5 L1000", 1, 64, 64, 1_000, 5, targets=faster)
    faster = join(faster, {GRAD_INPUT: (Target(1.5, two_threads=2.4),)})
    yield Problem("64->64 K51 L10000", 1, 64, 64, 10_000, 51, targets=faster)
    strided = join(ratios(0.75, 0.75, 0.75, "share"), ratios(1.3, 1.3, 1.3))
    yield Problem("KernelBench 76 N1 L52428", 1, 64, 128, 52_428, 3, 3, 4, targets=strided)


def lm_layers() -> Iterator[Problem]:
    """Causal layers of language models: batch 16, rows of 1,024."""
    grad_input = {(64, 3): 2.5, (256, 3): 1.9, (64, 7): 2.3, (256, 7): 1.4}
    long_reach = {64: 1.4, 256: 1.3}
    for kernel_size in 3, 2, 7:
        for channels in 64, 256, 512:
            for dilation in 1, 4, 64:
                least = {2: 1.2, 3: 1.4}.get(kernel_size)
                if kernel_size == 7 and dilation == 64:
                    least = long_reach.get(channels)
                targets: Targets = {FORWARD: (Target(1.0, "best"),)}
                targets |= {GRAD_WEIGHT: (Target({3: 2.0, 7: 1.5}.get(kernel_size, 1.0)),)}
                if least:
                    targets[FORWARD] += (Target(least),)
                if ratio := grad_input.get((channels, kernel_size)):
                    targets[GRAD_INPUT] = (Target(ratio),)
                yield Problem(
                    f"LM C{channels} K{kernel_size} d{dilation}",
                    16,
                    channels,
                    channels,
                    1_024,
                    kernel_size,
                    dilation=dilation,
                    padding="causal",
                    targets=targets,
                    core=kernel_size == 3 or (dilation == 64 and channels < 512),
                )
    for channels, ratio in (64, 1.9), (256, 1.3):
        yield Problem(
            f"LM C{channels} K3 d4 + tanh",
            16,
            channels,
            channels,
            1_024,
            3,
            dilation=4,
            padding="causal",
            activation="tanh",
            functions=(FORWARD,),
            targets={FORWARD: (Target(ratio),)},
        )


def seed_layers() -> Iterator[Problem]:
    """The character models' layers: batch 32, rows of 230 and what follows them."""

    def targets(forward: float) -> Targets:
        return {FORWARD: (Target(forward),), BACKWARD: (Target(2.3),)}

    functions = (*FUNCTIONS, BACKWARD)
    layers = [
        (Problem("seed 1->100 K20 s10 + tanh", 32, 1, 100, 230, 20, 10, activation="tanh"), 6.0),
        (Problem("seed 100->100 K2 d2 + tanh", 32, 100, 100, 22, 2, 1, 2, activation="tanh"), 2.3),
        (Problem("seed 100->28 K2 d4", 32, 100, 28, 20, 2, 1, 4), 2.2),
        (Problem("seed 1->28 K80 s10", 32, 1, 28, 230, 80, 10), 3.0),
    ]
    for problem, forward in layers:
        yield replace(problem, functions=functions, targets=targets(forward))


def depthwise() -> Iterator[Problem]:
    for dilation, ratio in (1, 7.0), (4, 11.0):
        forward = Target(4.3), Target(2.0, "channels-last")
        yield Problem(
            f"depthwise C512 K4 d{dilation}",
            8,
            512,
            512,
            2_048,
            4,
            dilation=dilation,
            groups=512,
            padding="causal",
            functions=(*FUNCTIONS, BACKWARD),
            targets={FORWARD: forward, BACKWARD: (Target(ratio),)},
        )


def near() -> Iterator[Problem]:
    """Near the others but on none of them: what is tuned for those must not fall off here."""
    yield Problem("odd 17->13 K51 d7 L30011", 1, 17, 13, 30_011, 51, dilation=7)
    yield Problem("odd 67->61 K5 L4099 same", 2, 67, 61, 4_099, 5, padding="same")
    yield Problem("odd LM C65 K3 d5 L1001", 16, 65, 65, 1_001, 3, dilation=5, padding="causal")
    yield Problem("LM C129 K4 d3 L517", 8, 129, 129, 517, 4, dilation=3, padding="causal")
    yield Problem("stride 2 64->128 K5 L8191", 2, 64, 128, 8_191, 5, 2, padding=2)
    yield Problem("stride 2 d3 33->31 K4 L2050", 4, 33, 31, 2_050, 4, 2, 3)
    yield Problem("groups 4 128->128 K3 L1024", 8, 128, 128, 1_024, 3, groups=4, padding="same")
    yield Problem("pointwise 128->256 L500", 8, 128, 256, 500, 1)
    yield Problem("depthwise C100 K7 s2 L1003", 8, 100, 100, 1_003, 7, 2, groups=100, padding=3)


def other_dtypes(problems: list[Problem]) -> Iterator[Problem]:
    by_name = {problem.name: problem for problem in problems}
    bfloat16 = [
        ("genomics 15->15 K51 d8 L60000", ratios(2.0, 2.0, 2.0)),
        ("LM C64 K3 d4", ratios(1.2, 1.2, 1.2)),
        ("LM C256 K3 d4", ratios(1.0, 1.0, 1.0)),
        ("LM C512 K3 d4", ratios(1.0, 1.0, 1.0)),
        ("seed 100->100 K2 d2 + tanh", {}),
        ("depthwise C512 K4 d1", {}),
        ("odd LM C65 K3 d5 L1001", {}),
    ]
    for name, targets in bfloat16:
        yield changed(by_name[name], torch.bfloat16, targets)
    for name in "LM C64 K3 d4", "odd 67->61 K5 L4099 same":
        yield changed(by_name[name], torch.float64, {})


def changed(problem: Problem, dtype: torch.dtype, targets: Targets) -> Problem:
    name = f"{problem.name} {str(dtype).removeprefix('torch.')}"
    return replace(problem, name=name, dtype=dtype, targets=targets)


SEED = list(seed_layers())
_FLOAT32 = [*long_sequences(), *lm_layers(), *SEED, *depthwise(), *near()]
PROBLEMS = [*_FLOAT32, *other_dtypes(_FLOAT32)]
