"""A step of a deep stack on a GPU: our one launch, against torch's layers with queues.

Both captured in a graph, and torch's also called one by one, as a loop of a user's does. A captured
queue always reads the same slots, which takes the time of the right ones.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from bench_generation import Queues
from gpu_timing import measure
from report import significant
from timing import Quantiles
from torch import Tensor

from convlm_kernels import DilatedStack, StackLayer
from convlm_kernels.backends import can_run_steps

LAYERS = 30
STEPS = 8  # of a graph, and that are compared
CAPTURED, EAGER = "queues, captured", "queues, eager"


class Size(NamedTuple):
    channels: int
    batch: int

    def __str__(self) -> str:
        return f"generation, {LAYERS} layers of {self.channels}, batch {self.batch}, a step"


SIZES = [Size(channels, batch) for channels in (64, 128) for batch in (1, 64)]

Step = Callable[[Tensor], Tensor]


def stack_of(size: Size, device: torch.device) -> DilatedStack:
    torch.manual_seed(0)
    layers = [
        StackLayer(size.channels, size.channels, 2, dilation=2 ** (i % 10), activation="tanh")
        for i in range(LAYERS)
    ]
    return DilatedStack(*layers).to(device).requires_grad_(False)


def own_step(stack: DilatedStack, batch: int, weight_dtype: torch.dtype | None) -> Step:
    state = stack.init_state(batch)
    return lambda x: stack.step(x, state, weight_dtype=weight_dtype)


def generation(
    device: torch.device, budget: float, sizes: list[Size] = SIZES
) -> tuple[list[dict[str, Any]], list[str], list[str]]:
    """A row for each size and dtype of the weights; whose outputs are wrong; what was not timed."""
    reason = can_run_steps(device)
    if reason is not None:
        return [], [], [f"generation: {reason}"]
    rows: list[dict[str, Any]] = []
    wrong: list[str] = []
    left_out: list[str] = []
    for size in sizes:
        found = generation_of(size, device, budget / len(sizes))
        for mine, some in zip((rows, wrong, left_out), found, strict=True):
            mine += some  # type: ignore[arg-type]
    return rows, wrong, left_out


def generation_of(
    size: Size, device: torch.device, budget: float
) -> tuple[list[dict[str, Any]], list[str], list[str]]:
    stack = stack_of(size, device)
    own = {
        "one launch": own_step(stack, size.batch, None),
        "one launch, bf16 weights": own_step(stack, size.batch, torch.bfloat16),
    }
    queues = Queues(list(stack), size.batch)
    x = torch.randn(size.batch, size.channels, device=device)
    outputs = {name: [step(x) for _ in range(STEPS)][-1] for name, step in own.items()}
    right = [queues(x) for _ in range(STEPS)][-1]
    wrong = [
        f"{size}: {name} is not what torch's layers give"
        for name, y in outputs.items()
        if not torch.allclose(y, right, rtol=0, atol=0.05 if "bf16" in name else 1e-4)
    ]
    calls: dict[str, list[Callable[[], object]]] = {
        name: STEPS * [lambda step=step: step(x)]  # type: ignore[misc]
        for name, step in (*own.items(), (CAPTURED, queues))
    }
    times, failed = measure(calls, device, budget / 2)
    slower, failed_too = measure(
        {EAGER: STEPS * [lambda: queues(x)]}, device, budget / 2, graphs=False
    )
    medians = {name: Quantiles.of(took).median for name, took in (times | slower).items()}
    rows = [
        {
            "model": str(size),
            "backend": name,
            "us": significant(1e6 * medians[name]),
            "ratios": {
                peer: significant(medians[peer] / medians[name], 3)
                for peer in (CAPTURED, EAGER)
                if peer in medians
            },
        }
        for name in own
        if name in medians
    ]
    return rows, wrong, [f"{size}: {text}" for text in (failed | failed_too).values()]
