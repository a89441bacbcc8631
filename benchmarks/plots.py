"""Draws a file of results: a figure for each question, in colours that a dark page can change.

Lines and letters are drawn in INK, which `svg_of` turns into the colour of the text around them.
"""

import io
import re
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
from problem import BACKWARD, FORWARD, FUNCTIONS, GRAD_INPUT, GRAD_WEIGHT, STEP
from tables import number

matplotlib.use("Agg")  # pyplot would look for a display
from matplotlib import pyplot as plt
from matplotlib.ticker import FuncFormatter, NullFormatter

Row = Mapping[str, Any]
Run = Mapping[str, Any]

INK = "#1f2a37"
# Okabe and Ito's colours, which colour-blind readers can tell apart.
BLUE, ORANGE, GREEN, RED, PURPLE, SKY, GREY = (
    "#0072b2",
    "#e69f00",
    "#009e73",
    "#d55e00",
    "#cc79a7",
    "#56b4e9",
    "#8a8f98",
)
OF_FUNCTION = {
    FORWARD: BLUE,
    GRAD_INPUT: SKY,
    GRAD_WEIGHT: GREEN,
    BACKWARD: PURPLE,
    STEP: ORANGE,
}
MARKERS = {FORWARD: "o", GRAD_INPUT: "<", GRAD_WEIGHT: "s"}
OTHERS = (ORANGE, GREEN, PURPLE, SKY, GREY, RED)
WIDTH = 7.6  # inches

STYLE = {
    "font.size": 9,
    "svg.fonttype": "none",
    "svg.hashsalt": "convlm",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.titlesize": 9.5,
    "grid.linewidth": 0.4,
    "grid.alpha": 0.35,
    **dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK
    ),
    "grid.color": INK,
    "legend.frameon": False,
}


class Drawing(NamedTuple):
    name: str  # of its files
    caption: str  # what is measured, in a sentence
    figure: Any


def drawings(runs: Mapping[str, Run]) -> Iterator[Drawing]:
    """Of every suite in the file. Each figure is closed when the next one is asked for."""
    makers: dict[str, Callable[[Run], Iterator[Drawing]]] = {"layers": of_layers, "cost": of_cost}
    for name, run in runs.items():
        if not run["rows"]:
            continue
        with plt.rc_context(STYLE):
            if name in makers:
                drawn = makers[name](run)
            else:
                drawn = iter([Drawing(name, DOTS, dots(run["rows"], run["unit"]))])
            for drawing in drawn:
                yield drawing
                plt.close(drawing.figure)


def of_layers(run: Run) -> Iterator[Drawing]:
    threads = run["rows"][0]["threads"]
    rows = [row for row in run["rows"] if row["threads"] == threads]
    dtype = statistics.mode(row["dtype"] for row in rows)
    caption = (
        f"Each point is one function of one layer in {dtype}; a line leads down to the best other "
        "way in torch. The roof is what this machine can do: copying to the left, arithmetic to "
        "the right. Points above it skip work (fast filtering) or copy within the caches."
    )
    some = [row for row in rows if row["dtype"] == dtype and row["function"] in FUNCTIONS]
    yield Drawing("roofline", caption, roofline(some, run["ceilings"][0], dtype))
    for family in dict.fromkeys(row["family"] for row in rows):
        caption = (
            f"Layers, {family}: how many times faster than the best other way in torch, with "
            f"{threads} thread{'s' * (threads > 1)}. The thin line spans the middle half of the "
            "rounds; left of 1 torch is faster."
        )
        some = [row for row in rows if row["family"] == family and row["ratio"]]
        yield Drawing(f"layers-{slug(family)}", caption, bars(some))


def roofline(rows: Sequence[Row], ceiling: Mapping[str, Any], dtype: str) -> Any:
    figure, axes = plt.subplots(figsize=(WIDTH, 4.6), layout="constrained")
    peak, copy = ceiling["fma"].get(dtype, ceiling["sgemm"]), ceiling["copy"]
    intensities = [row["gflops"] / row["gbytes"] for row in rows]
    low, high = min([*intensities, peak / copy]) / 1.6, max([*intensities, peak / copy]) * 1.6
    ridge = peak / copy
    axes.plot([low, ridge, high], [low * copy, peak, peak], color=INK, linewidth=1.4, zorder=3)
    label = dict(textcoords="offset points", ha="left")
    axes.annotate(f"arithmetic, {peak:,.0f} GFLOP/s", (ridge, peak), (2, 5), **label)
    axes.annotate(f"copying, {copy:,.0f} GB/s", (low, 4.5 * low * copy), (5, 0), **label)
    for row, x in zip(rows, intensities, strict=True):
        if row["ratio"]:
            below = row["gflops"] / row["ratio"][1]
            axes.plot([x, x], [below, row["gflops"]], color=GREY, linewidth=0.7, zorder=1)
            axes.plot([x], [below], "_", color=GREY, markersize=5, zorder=1)
    for function, marker in MARKERS.items():
        chosen = [i for i, row in enumerate(rows) if row["function"] == function]
        axes.scatter(
            [intensities[i] for i in chosen], [rows[i]["gflops"] for i in chosen], s=26,
            marker=marker, color=OF_FUNCTION[function], linewidths=0, label=function, zorder=4,
        )  # fmt: skip
    axes.plot([], [], "_", color=GREY, label="best other way")
    axes.set(xscale="log", yscale="log", xlim=(low, high))
    axes.set(xlabel="operations a byte moved", ylabel="GFLOP/s")
    plain(axes.xaxis, axes.yaxis)
    axes.grid()
    axes.legend(loc="lower right")
    return figure


def bars(rows: Sequence[Row]) -> Any:
    """Ratios to the best peer, from 1 on, grouped by problem."""
    names = list(dict.fromkeys(row["name"] for row in rows))
    functions = [name for name in OF_FUNCTION if any(row["function"] == name for row in rows)]
    figure, axes = plt.subplots(
        figsize=(WIDTH, 0.9 + 0.145 * len(rows) + 0.1 * len(names)), layout="constrained"
    )
    height, ticks, labelled = 0.0, [], set()
    for name in names:
        begin = height
        for row in (row for row in rows if row["name"] == name):
            function, (low, ratio, high) = row["function"], row["ratio"]
            label = None if function in labelled else function
            labelled.add(function)
            color = OF_FUNCTION[function]
            axes.barh(height, ratio - 1, 0.8, left=1, color=color, label=label)
            axes.plot([low, high], [height, height], color=INK, linewidth=0.8)
            place, align = (2, "left") if ratio >= 1 else (-2, "right")
            axes.annotate(
                f"{ratio:.2f}", (max(high, 1) if ratio >= 1 else low, height), (place, 0),
                textcoords="offset points", ha=align, va="center", fontsize=6.5,
            )  # fmt: skip
            height += 1
        ticks.append((begin + height - 1) / 2)
        height += 0.7
    axes.axvline(1, color=INK, linewidth=0.9)
    axes.set_xscale("log", base=2)
    low = min([0.9, *(row["ratio"][0] for row in rows)])
    high = max([2.2, *(row["ratio"][2] for row in rows)])
    axes.set_xlim(low / 1.12, high * 1.2)
    steps = [0.25, 0.5, 0.75, 1, 1.25, 1.5, 2, 3, 4, 6, 8, 16, 32, 64, 128, 256, 512]
    marks = [step for step in steps if low / 1.12 <= step <= high * 1.2]
    axes.set_xticks(marks, [f"{mark:g}x" for mark in marks])
    axes.minorticks_off()
    axes.set_yticks(ticks, names)
    axes.set_ylim(height - 0.5, -0.9)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
    axes.set_xlabel("times faster than the best other way in torch")
    if len(functions) > 1:
        figure.legend(loc="outside upper center", ncols=len(functions))
    return figure


def of_cost(run: Run) -> Iterator[Drawing]:
    for function in FORWARD, STEP:
        rows = [row for row in run["rows"] if row["function"] == function]
        what = "forward" if function == FORWARD else "a whole step, forward and all gradients,"
        caption = (
            f"Time of {what} against one size of a layer while the others stay: batch 2, 64 "
            "channels, length 2,048, kernel size 3, dilation 1, causal. The dashed line is what "
            "this machine cannot go below without skipping work."
        )
        if rows:
            yield Drawing(f"cost-{function}", caption, curves(rows))


def curves(rows: Sequence[Row]) -> Any:
    sizes = list(dict.fromkeys(row["size"] for row in rows))
    lines = -(-(len(sizes) + 1) // 3)
    figure, grid = plt.subplots(lines, 3, figsize=(WIDTH, 2.3 * lines), layout="constrained")
    panels = list(grid.flat)
    for axes, size in zip(panels, sizes, strict=False):
        some = [row for row in rows if row["size"] == size]
        at = [row["at"] for row in some]
        ours = [row["took"][1] for row in some]
        conv1d = [row["took"][1] * row["ratios"]["conv1d"] for row in some]
        best = [row["took"][1] * row["ratio"][1] for row in some]
        axes.plot(at, conv1d, "-", marker=".", color=ORANGE, label="F.conv1d")
        axes.plot(at, best, ":", marker=".", color=GREY, label="best other way in torch")
        axes.plot(at, ours, "-", marker="o", markersize=3.5, color=BLUE, label="ours")
        limit = [row["limit"] for row in some]
        low, high = min(limit + ours) / 1.5, max(conv1d + best + ours) * 1.5
        axes.set(xscale="log", yscale="log", title=size.replace("_", " "))
        axes.plot(at, limit, "--", color=INK, linewidth=1, label="limit")
        axes.set_ylim(low, max(high, 20 * low))  # with at least one number on the axis
        plain(axes.xaxis, axes.yaxis)
        axes.minorticks_off()
        axes.set_xticks(at[::2])
        axes.grid()
    panels[0].set_ylabel("µs")
    for axes in panels[len(sizes) :]:
        axes.axis("off")
    handles, labels = panels[0].get_legend_handles_labels()
    panels[len(sizes)].legend(handles, labels, loc="center")
    return figure


DOTS = "Each row is one task, each dot one way to do it, on a logarithmic axis: left is better."


def dots(rows: Sequence[Row], unit: str) -> Any:
    """A line for each row, and on it what each contestant took."""
    names = ["ours", *dict.fromkeys(peer for row in rows for peer in row["ratios"])]
    colors = {name: OTHERS[i % len(OTHERS)] for i, name in enumerate(names[1:])}
    figure, axes = plt.subplots(figsize=(WIDTH, 1.1 + 0.3 * len(rows)), layout="constrained")
    for height, row in enumerate(rows):
        took = row["took"][1]
        values = {peer: took * ratio for peer, ratio in row["ratios"].items()}
        ends = min([took, *values.values()]), max([took, *values.values()])
        axes.plot(ends, [height, height], color=GREY, linewidth=0.8, zorder=1)
        for peer, value in values.items():
            axes.plot(value, height, "o", color=colors[peer], markersize=5, label=peer)
        axes.plot(took, height, "D", color=BLUE, markersize=6.5, label="ours", zorder=5)
        best = f", {row['ratio'][1]:.1f}x" if row["ratio"] else ""
        axes.annotate(
            f"{number(took)}{best}", (ends[0], height), (-6, 0), textcoords="offset points",
            ha="right", va="center", fontsize=7.5,
        )  # fmt: skip
    low = min(row["took"][1] * min([1, *row["ratios"].values()]) for row in rows)
    high = max(row["took"][1] * max([1, *row["ratios"].values()]) for row in rows)
    axes.set(
        xscale="log", xlim=(low / (high / low) ** 0.22, high * 1.3), ylim=(len(rows) - 0.4, -0.6)
    )
    axes.set_yticks(range(len(rows)), [f"{row['name']}\n{row['function']}" for row in rows])
    axes.tick_params(axis="y", length=0, labelsize=7.5)
    axes.set_xlabel({"us": "µs", "MB": "MB"}[unit])
    axes.grid(axis="x")
    plain(axes.xaxis)
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(
        [handles[name] for name in names], names, loc="outside upper center",
        ncols=min(4, len(names)), fontsize=8,
    )  # fmt: skip
    return figure


def plain(*several: Any) -> None:
    """Numbers as one writes them on a logarithmic axis."""
    for axis in several:
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
        axis.set_minor_formatter(NullFormatter())


def slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower().replace("'", "")).strip("-")


def svg_of(drawing: Drawing) -> str:
    """A figure without a background, its ink in the colour of the text around it."""
    text = io.StringIO()
    drawing.figure.savefig(
        text,
        format="svg",
        transparent=True,
        metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")),
    )
    svg = text.getvalue()
    return svg[svg.index("<svg") :].replace(INK, "currentColor")
