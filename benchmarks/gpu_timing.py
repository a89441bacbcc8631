"""Timing by turns on a GPU: CUDA events around replays of a graph, or around plain calls.

Inputs are rotated: each replay works through several sets of operands that together are larger than
the cache, as a model's next layer finds its own there. Nothing waits for the device between turns,
so it is busy from the first to the last. On a CPU the same turns are timed by a clock, for tests.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from time import perf_counter

import torch

Calls = Sequence[Callable[[], object]]  # the same work on each set of operands

GRAPH_BELOW = 2e-3  # seconds: what takes longer hides its launches, and its memory is better shared


class Turn:
    """The work of one provider in one turn, and how long the turns took."""

    def __init__(self, calls: Calls, device: torch.device, graph: bool) -> None:
        self.calls = calls
        self.device = device
        self.graph = capture(calls) if graph else None
        self.events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self.clocked: list[float] = []

    def work(self) -> None:
        if self.graph is not None:
            return self.graph.replay()
        for call in self.calls:
            call()

    def take(self) -> None:
        if self.device.type != "cuda":
            begin = perf_counter()
            self.work()
            self.clocked.append(perf_counter() - begin)
            return
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        self.work()
        end.record()
        self.events.append((begin, end))

    def seconds(self) -> list[float]:
        """Of one call, for each turn, once the device is done."""
        turns = self.clocked or [begin.elapsed_time(end) / 1e3 for begin, end in self.events]
        return [turn / len(self.calls) for turn in turns]


def capture(calls: Calls) -> torch.cuda.CUDAGraph:
    """On the current stream, which must not be the default one."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
        for call in calls:
            call()
    return graph


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def once(calls: Calls, device: torch.device) -> float:
    """Seconds of one call, roughly, after one that warms up."""
    calls[0]()
    synchronize(device)
    begin = perf_counter()
    calls[0]()
    synchronize(device)
    return perf_counter() - begin


def turn_of(calls: Calls, device: torch.device, graph: bool) -> Turn:
    """Warmed up; without a graph where none is wanted, or can be captured."""
    if device.type == "cuda" and graph:
        try:
            turn = Turn(calls, device, graph=True)
            turn.work()
            synchronize(device)
            return turn
        except RuntimeError as error:
            print(f"  timed without a graph: {str(error).splitlines()[0]}")
    turn = Turn(calls, device, graph=False)
    turn.work()
    synchronize(device)
    return turn


def measure(
    providers: Mapping[str, Calls],
    device: torch.device,
    budget: float,
    rounds: int = 50,
    least: int = 5,
    graphs: bool = True,
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Seconds of each provider's call, once a round, and why some could not be timed.

    As many rounds, at most ``rounds``, as fit into ``budget`` seconds, but ``least`` of them.
    """
    turns: dict[str, Turn] = {}
    failed: dict[str, str] = {}
    expected = 0.0  # seconds of one round
    for name, calls in providers.items():
        try:
            took = once(calls, device)
            turns[name] = turn_of(calls, device, graphs and took < GRAPH_BELOW)
            expected += took * len(calls)
        except Exception as error:  # of any kind: a peer that cannot is left out, and said so
            failed[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
    order, shuffler = list(turns), random.Random(0)
    wanted = int(budget / expected) if expected else 0
    for _ in range(min(rounds, max(least, wanted))):
        shuffler.shuffle(order)
        for name in order:
            turns[name].take()
    synchronize(device)
    return {name: turn.seconds() for name, turn in turns.items()}, failed
