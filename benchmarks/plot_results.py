"""Draws the results of `bench_conv1d.py`: shares of the ceiling, and ratios to the best peer.

    python benchmarks/plot_results.py benchmarks/results/cpu-....json

One PNG and one SVG for each run in the file (allocator) and number of threads, beside it.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from problem import BACKWARD, FORWARD, GRAD_INPUT, GRAD_WEIGHT

matplotlib.use("Agg")  # pyplot would look for a display
from matplotlib import pyplot as plt

Row = dict[str, Any]
MARKERS = {FORWARD: "o", GRAD_INPUT: "<", GRAD_WEIGHT: "s", BACKWARD: "D"}


def plot_run(run: dict[str, Any], threads: int, path: Path) -> list[Path]:
    """The rows of one number of threads, as `path` with .png and .svg; returns both."""
    rows = [row for row in run["rows"] if row["threads"] == threads]
    names = list(dict.fromkeys(row["problem"] for row in rows))
    figure, (share, ratio) = plt.subplots(
        1, 2, figsize=(11, 1.6 + 0.22 * len(names)), sharey=True, layout="constrained"
    )
    scatter(share, rows, names, lambda row: 100 * row["share"])
    share.axvline(100, color="black", linewidth=0.8)
    share.set_xlim(left=0)
    share.set_xlabel("share of what the machine can do (multiply-adds or copying), %")
    compared = [row for row in rows if row["ratio"]]
    scatter(ratio, compared, names, lambda row: row["ratio"][1])
    ratio.axvline(1, color="black", linewidth=0.8)
    ratio.set_xscale("log", base=2)
    ratio.xaxis.set_major_formatter("{x:g}x")
    ratio.set_xlabel("times faster than the best other way in torch")
    share.set_yticks(range(len(names)), names, fontsize=8)
    share.invert_yaxis()
    machine = run["machine"]
    figure.suptitle(
        f"{machine['cpu']}, {threads} thread(s), torch {machine['torch']}, "
        f"{machine['allocator']} allocator, commit {machine['commit'] or 'unknown'}",
        fontsize=10,
    )
    handles, labels = share.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(MARKERS), fontsize=8)
    written = [path.with_name(f"{path.name}.{kind}") for kind in ("png", "svg")]
    for file in written:
        figure.savefig(file, dpi=150)
    plt.close(figure)
    return written


def scatter(
    axes: Any, rows: Sequence[Row], names: Sequence[str], value: Callable[[Row], float]
) -> None:
    """One marker a row, at the height of its problem."""
    for function, marker in MARKERS.items():
        chosen = [row for row in rows if row["function"] == function]
        if chosen:
            heights = [names.index(row["problem"]) for row in chosen]
            values = [value(row) for row in chosen]
            axes.scatter(values, heights, marker=marker, s=22, alpha=0.8, label=function)
    axes.grid(axis="both", linewidth=0.3)


def plot_file(results: Path) -> list[Path]:
    """Every run of the file, for every number of threads."""
    written = []
    for allocator, run in json.loads(results.read_text()).items():
        for threads in sorted({row["threads"] for row in run["rows"]}):
            name = f"{results.stem}-{allocator}-T{threads}"
            written += plot_run(run, threads, results.with_name(name))
    return written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("results", type=Path, nargs="+", metavar="FILE.json")
    for results in parser.parse_args().results:
        print(*plot_file(results), sep="\n")


if __name__ == "__main__":
    main()
