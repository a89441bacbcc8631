"""Rows of results as tables, for a terminal and in Markdown."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from suite import Row, Suite

Run = Mapping[str, Any]


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """First column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        first, *others = row
        cells = [first.ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        print("  ".join(cells).rstrip())


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def number(value: float) -> str:
    """Three digits, and no more of a large number than whole ones."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def header(unit: str) -> list[str]:
    what = {"us": "µs", "MB": "MB"}[unit]
    return [
        "",
        "function",
        "T",
        what,
        "quartiles",
        "of the limit",
        "best peer",
        "times",
        "quartiles",
    ]


def cells(row: Row) -> list[str]:
    """A row under `header`."""
    low, median, high = row["took"]
    share = f"{100 * row['share']:.0f} % {row['bound']}" if "share" in row else "-"
    least, ratio, most = row["ratio"] or (None, None, None)
    return [
        row["name"],
        row["function"],
        str(row["threads"]),
        number(median),
        f"{number(low)}-{number(high)}",
        share,
        row["best"] or "-",
        f"{ratio:.2f}x" if ratio else "-",
        f"{least:.2f}-{most:.2f}" if ratio else "-",
    ]


def print_rows(suite: Suite, run: Run) -> None:
    print(f"\n{suite.title}: {suite.question}\n")
    print_table(header(run["unit"]), [cells(row) for row in run["rows"]])
    for row in run["rows"]:
        for message in row.get("wrong", {}).values():
            print(f"left out of {row['name']}: {message}")


def print_ceilings(run: Run) -> None:
    for ceiling in run["ceilings"]:
        print(f"\n{ceiling['threads']} thread(s): {ceilings_in_words(ceiling)}")
        if not ceiling["trusted"]:
            print(
                f"  not to be trusted: {ceiling['threads']} threads reached "
                f"{ceiling['scaling']:.2f} times the rate of one, so they shared a core"
            )
    print(f"allocator: {run['machine']['allocator']}")


def ceilings_in_words(ceiling: Mapping[str, Any]) -> str:
    rates = ", ".join(f"{dtype} {rate:,.0f}" for dtype, rate in ceiling["fma"].items())
    return (
        f"{ceiling.get('by', 'multiply-adds')} {rates} GFLOP/s, "
        f"sgemm {ceiling['sgemm']:,.0f} GFLOP/s, copy {ceiling['copy']:,.1f} GB/s"
    )


def summary(runs: Mapping[str, Run]) -> str:
    """Of each family of layers: the median ratio to the best peer, the lowest and the highest."""
    if "layers" not in runs:
        return ""
    run = runs["layers"]
    first = run["rows"][0]["threads"]
    rows = [row for row in run["rows"] if row["threads"] == first and row["ratio"]]
    functions = list(dict.fromkeys(row["function"] for row in rows))
    lines = []
    for family in dict.fromkeys(row["family"] for row in rows):
        some = [row for row in rows if row["family"] == family]
        line = [family, str(len({row["name"] for row in some}))]
        for function in functions:
            ratios = sorted(row["ratio"][1] for row in some if row["function"] == function)
            spread = f" ({ratios[0]:.2f}-{ratios[-1]:.2f})" if len(ratios) > 1 else ""
            line.append(f"{statistics.median(ratios):.2f}{spread}" if ratios else "")
        lines.append(line)
    return markdown(["times the best other way", "layers", *functions], lines)


def every_layer(runs: Mapping[str, Run], dtype: str = "") -> str:
    """Those whose name ends with `dtype`."""
    if "layers" not in runs:
        return ""
    run = runs["layers"]
    rows = [row for row in run["rows"] if row["name"].endswith(dtype)]
    return markdown([title or "layer" for title in header(run["unit"])], list(map(cells, rows)))


def contestants(runs: Mapping[str, Run], suite: str) -> str:
    """What ours took, and how many times as much each of the others."""
    if suite not in runs:
        return ""
    run = runs[suite]
    peers = list(dict.fromkeys(peer for row in run["rows"] for peer in row["ratios"]))
    columns = ["name", "function"]
    if len({row["threads"] for row in run["rows"]}) > 1:
        columns.append("threads")
    lines = [
        [*(str(row[column]) for column in columns), number(row["took"][1])]
        + [f"{row['ratios'][peer]:.2f}x" if peer in row["ratios"] else "" for peer in peers]
        for row in run["rows"]
    ]
    unit = {"us": "µs", "MB": "MB"}[run["unit"]]
    return markdown(["", "", *columns[2:], f"ours, {unit}", *peers], lines)


def where(runs: Mapping[str, Run]) -> str:
    """The machine in a sentence."""
    if not runs:
        return ""
    run = next(iter(runs.values()))
    machine, ceiling = run["machine"], run["ceilings"][0]
    name = machine.get("gpu") or f"{machine['cpu']}, {machine['isa'].replace('_', ' ')}"
    threads = f"{ceiling['threads']} thread" + "s" * (ceiling["threads"] > 1)
    return f"{name}, torch {machine['torch']}, {threads}: {ceilings_in_words(ceiling)}."


# Each is "" where its suite was not run.
TABLES: dict[str, Callable[[Mapping[str, Run]], str]] = {
    "where": where,
    "summary": summary,
    "layers": every_layer,
    "bfloat16": partial(every_layer, dtype="bfloat16"),
    **{
        suite: partial(contestants, suite=suite)
        for suite in ("lm", "generation", "overhead", "memory", "determinism")
    },
}
