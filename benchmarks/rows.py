"""One function of one problem: checked against the oracle, timed by turns, put in one row."""

from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any, NamedTuple

from ceilings import Ceilings
from matmul_peers import MatmulPerTap, ShiftedMultiplyAdds, UnfoldMatmul
from oracle import Oracle, WrongResult
from problem import Data, Problem
from providers import (
    ChannelsLast,
    ChannelsLastThroughout,
    Compiled,
    FlippedConv1d,
    Ours,
    PaddedConv1d,
    Provider,
    TorchConv1d,
)
from report import significant
from timing import Quantiles, Times, measure, speedup

PEERS: tuple[type[Provider], ...] = (
    TorchConv1d,
    PaddedConv1d,
    FlippedConv1d,
    ChannelsLast,
    ChannelsLastThroughout,
    UnfoldMatmul,
    MatmulPerTap,
    ShiftedMultiplyAdds,
)
COMPILED = (TorchConv1d, MatmulPerTap, ShiftedMultiplyAdds)

Row = dict[str, Any]


class Effort(NamedTuple):
    rounds: int  # at most
    seconds: float  # of one provider in one round
    compiled: bool = False


FULL, QUICK = Effort(30, 0.02), Effort(3, 0.002)


def providers_of(data: Data, compiled: bool = False) -> list[Provider]:
    """Ours first, then every peer that can run the problem."""
    peers = [kind(data) for kind in PEERS if kind.can_run(data.problem)]
    if compiled:
        peers += [Compiled(kind(data)) for kind in COMPILED if kind.can_run(data.problem)]
    return [Ours(data), *peers]


class Checked(NamedTuple):
    calls: dict[str, Callable[[], object]]  # of those that can do it and are right
    first: dict[str, float]  # seconds of the call that was checked
    errors: dict[str, float]
    wrong: dict[str, str]  # what is wrong with the others


def checked(providers: Sequence[Provider], function: str, oracle: Oracle) -> Checked:
    """Raises WrongResult where the first provider, ours, is wrong."""
    good = Checked({}, {}, {}, {})
    for provider in providers:
        call = getattr(provider, function, None)
        if call is None:
            continue
        begin = perf_counter()
        result = call()
        seconds = perf_counter() - begin
        try:
            good.errors[provider.name] = oracle.error(provider.name, result)
        except WrongResult as error:
            if provider is providers[0]:
                raise
            good.wrong[provider.name] = str(error)
            continue
        good.calls[provider.name], good.first[provider.name] = call, seconds
    return good


def hopeless(first: dict[str, float]) -> list[str]:
    """Peers whose first call took so long that more of them would only cost time."""
    _, *peers = first
    limit = max(0.25, 4 * min((first[peer] for peer in peers), default=0.0))
    return [peer for peer in peers if first[peer] > limit]


def measure_row(
    providers: Sequence[Provider], function: str, threads: int, effort: Effort, budget: float
) -> Row:
    """Within about `budget` seconds, as far as three rounds of every provider fit into it."""
    data = providers[0].data
    calls, first, errors, wrong = checked(providers, function, Oracle(function, data))
    once = hopeless(first)
    several = {name: call for name, call in calls.items() if name not in once}
    times = measure(several, effort.rounds, effort.seconds, budget, slow=2.0)
    times |= {name: [first[name]] for name in once}
    counted = [provider.name for provider in providers[1:] if provider.counts]
    row = row_of(data.problem, function, threads, times, counted)
    row["error"] = significant(errors["ours"], 2)
    if TorchConv1d.name in errors:
        row["error_conv1d"] = significant(errors[TorchConv1d.name], 2)
    if wrong:
        row["wrong"] = wrong
    return row


def row_of(
    problem: Problem, function: str, threads: int, times: Times, counted: Sequence[str]
) -> Row:
    """What times and the definition say. The first provider is ours."""
    ours, *peers = times
    took = Quantiles.of(times[ours])
    ratios = {peer: speedup(times, ours, peer) for peer in peers}
    eligible = [peer for peer in counted if peer in ratios]
    best = min(eligible, key=lambda peer: ratios[peer].median, default=None)
    return {
        "problem": problem.name,
        "dtype": str(problem.dtype).removeprefix("torch."),
        "function": function,
        "threads": threads,
        "us": [significant(1e6 * seconds) for seconds in took],
        "gflops": significant(problem.flops(function) / took.median / 1e9),
        "gbytes": significant(problem.bytes(function) / took.median / 1e9),
        "ratios": {peer: significant(ratio.median, 3) for peer, ratio in ratios.items()},
        "best": best,
        "ratio": [significant(ratio, 3) for ratio in ratios[best]] if best else None,
    }


def judge(row: Row, problem: Problem, ceilings: Ceilings) -> Row:
    """The row with its share of the ceiling that binds it, and its targets beside what was met."""
    by_arithmetic = row["gflops"] / ceilings.peak(problem.dtype)
    by_copying = row["gbytes"] / ceilings.copy
    bound = "FMA" if by_arithmetic >= by_copying else "copy"
    judged = row | {"bound": bound, "share": significant(max(by_arithmetic, by_copying), 3)}
    targets = [
        {
            "of": target.of,
            "least": target.at(row["threads"]),
            "measured": measured(judged, target.of),
        }
        for target in problem.targets.get(row["function"], ())
    ]
    return judged | {"targets": targets}


def measured(row: Row, of: str) -> float | None:
    """What a target is compared with; None where that peer was not there."""
    if of == "share":
        return row["share"]
    if of == "best":
        return row["ratio"][1] if row["ratio"] else None
    # "conv1d" is the best of its forms.
    forms = [ratio for peer, ratio in row["ratios"].items() if peer.partition(",")[0] == of]
    return min(forms, default=None)


HEADER = ["function", "T", "us", "GFLOP/s", "GB/s", "share of", "conv1d", "best peer", "error"]


def cells(row: Row) -> list[str]:
    """A row of the table under ["problem", *HEADER, "targets"]."""
    best = f"{row['ratio'][1]:.2f}x {row['best']}" if row["best"] else "-"
    targets = [
        f"{'met' if (t['measured'] or 0) >= t['least'] else 'NOT'}: {t['of']} {t['measured']} "
        f"of {t['least']}"
        for t in row["targets"]
    ]
    conv1d = measured(row, TorchConv1d.name)
    return [
        row["problem"],
        row["function"],
        str(row["threads"]),
        f"{row['us'][1]:,.1f}",
        f"{row['gflops']:,.1f}",
        f"{row['gbytes']:,.1f}",
        f"{100 * row['share']:.0f} % {row['bound']}",
        f"{conv1d:.2f}x" if conv1d else "-",
        best,
        f"{row['error']:.1e}",
        ", ".join(targets),
    ]
