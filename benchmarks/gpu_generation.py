"""A step of a deep stack on a GPU: our one launch, against torch's layers with queues.

Both captured in a graph, and torch's also called one by one, as a loop of a user's does. A captured
queue always reads the same slots, which takes the time of the right ones.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from bench_generation import Queues
from gpu_timing import measure
from suite import Row, figures
from torch import Tensor

from convlm_kernels import DilatedStack, StackLayer
from convlm_kernels.backends import can_run_steps

LAYERS = 30
STEPS = 8  # of a graph, and that are compared
OWN, BFLOAT16 = "one launch", "one launch, bf16 weights"
CAPTURED, EAGER = "queues, captured", "queues, eager"


class Size(NamedTuple):
    channels: int
    batch: int

    def __str__(self) -> str:
        return f"{LAYERS} layers of {self.channels}, batch {self.batch}"


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
) -> tuple[list[Row], list[str], list[str]]:
    """A row for each size and dtype of the weights; whose outputs are wrong; what was not timed."""
    reason = can_run_steps(device)
    if reason is not None:
        return [], [], [f"generation: {reason}"]
    rows: list[Row] = []
    wrong: list[str] = []
    left_out: list[str] = []
    for size in sizes:
        some_rows, some_wrong, some_left_out = generation_of(size, device, budget / len(sizes))
        rows += some_rows
        wrong += some_wrong
        left_out += some_left_out
    return rows, wrong, left_out


def generation_of(
    size: Size, device: torch.device, budget: float
) -> tuple[list[Row], list[str], list[str]]:
    stack = stack_of(size, device)
    own = {
        OWN: own_step(stack, size.batch, None),
        BFLOAT16: own_step(stack, size.batch, torch.bfloat16),
    }
    queues = Queues(list(stack), size.batch)
    x = torch.randn(size.batch, size.channels, device=device)
    outputs = {name: [step(x) for _ in range(STEPS)][-1] for name, step in own.items()}
    right = [queues(x) for _ in range(STEPS)][-1]
    wrong = [
        f"generation: {size}: {name} is not what torch's layers give"
        for name, y in outputs.items()
        if not torch.allclose(y, right, rtol=0, atol=0.05 if name == BFLOAT16 else 1e-4)
    ]
    calls: dict[str, list[Callable[[], object]]] = {
        name: STEPS * [partial(step, x)] for name, step in (*own.items(), (CAPTURED, queues))
    }
    times, failed = measure(calls, device, budget / 2)
    eager, failed_too = measure(
        {EAGER: STEPS * [partial(queues, x)]}, device, budget / 2, graphs=False
    )
    peers = {name: took for name, took in (times | eager).items() if name not in own}
    rows = [
        {"name": str(size), "function": "step", "threads": 1, "backend": name}
        | figures({name: times[name], **peers})
        for name in own
        if name in times
    ]
    return rows, wrong, [f"generation: {size}: {why}" for why in (failed | failed_too).values()]
