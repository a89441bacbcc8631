"""Figures of the CPU kernels: what is kept where, and what is read how often."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from drawing import BLUE, GREEN, GREY, MUTED, ORANGE, PAPER, RED, STRONG, Drawing

GUIDE = Path(__file__).parents[2] / "docs" / "cpu.md"


class Step(NamedTuple):
    name: str
    rates: tuple[float, float]  # GFLOP/s with 64 and with 256 channels


def steps_of_guide() -> list[Step]:
    """The rows of the table in docs/cpu.md."""
    steps = []
    for line in GUIDE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if len(cells) == 7 and cells[6].endswith("%"):
            steps.append(Step(cells[0], (float(cells[2]), float(cells[5]))))
    return steps


def cpu_steps() -> Drawing:
    """The measured rates of the guide, as bars against the peak of the machine."""
    peak, scale, x0, y0 = 117, 1.9, 250, 70
    steps = steps_of_guide()
    bottom = y0 + 44 * len(steps)
    d = Drawing(680, bottom + 36, "The rate of each step of the CPU guide, in GFLOP/s.")
    for i, (name, rates) in enumerate(steps):
        y = y0 + 44 * i
        d.text(x0 - 12, y + 22, name, anchor="end")
        for j, (rate, fill) in enumerate(zip(rates, (BLUE, ORANGE), strict=True)):
            d.box(x0, y + 16 * j, rate * scale, 14, fill)
            end, inside = x0 + rate * scale, rate > 10
            anchor = "end" if inside else "start"
            d.text(
                end + (-5 if inside else 6), y + 16 * j + 11, f"{rate:g}", size=11, anchor=anchor
            )
    x = x0 + peak * scale
    d.line((x, y0 - 8), (x, bottom), STRONG[RED], dashed=True)
    d.text(x, y0 - 14, f"multiply-adds on registers: {peak}", size=12, color=STRONG[RED])
    d.text(x0, 28, "GFLOP/s, one core of an AMD EPYC (Zen 4), float32", bold=True, anchor="start")
    for j, (label, fill) in enumerate((("64 channels", BLUE), ("256 channels", ORANGE))):
        d.box(20, 16 + 20 * j, 14, 14, fill)
        d.text(42, 28 + 20 * j, label, size=12, anchor="start")
    d.note(x0, bottom + 20, "Filters that multiply less pass the peak: all products are counted.")
    return d


def loops() -> Drawing:
    """What the innermost loop of the first four steps loads, and what stays in registers."""
    d = Drawing(680, 322, "Loads for each multiply-add in the first four steps.")
    d.text(340, 28, "What a multiply-add needs from memory", bold=True)
    columns = (
        ("1 as written down", 1, 1, False, "2 loads for 1", "one number at a time"),
        ("2 positions innermost", 1, 1, True, "2 loads, 1 store", "for 1 vector of 16"),
        ("3 sums in registers", 1, 3, False, "4 loads for 3", "vectors of 16"),
        ("4 a block of sums", 8, 3, False, "11 loads for 24", "vectors of 16"),
    )
    for i, (name, rows, vectors, in_memory, loads, unit) in enumerate(columns):
        x, y, cell = 28 + 168 * i, 108, 17
        d.text(x + 62, 92, name, size=12, bold=True)
        for j in range(vectors):
            d.box(x + 30 + 26 * j, y, 24, cell, BLUE)
        for row in range(rows):
            d.box(x, y + 24 + 19 * row, 24, cell, ORANGE)
            for j in range(vectors):
                fill = RED if in_memory else GREEN
                d.box(x + 30 + 26 * j, y + 24 + 19 * row, 24, cell, fill)
        d.text(x + 62, 298, loads, size=12)
        d.note(x + 62, 314, unit, anchor="middle")
    for i, (fill, label) in enumerate(
        ((BLUE, "x"), (ORANGE, "weight"), (GREEN, "sum in a register"), (RED, "sum in memory"))
    ):
        x = 110 + 90 * i + 50 * (i > 2)
        d.box(x, 46, 12, 12, fill)
        d.note(x + 18, 56, label)
    return d


def register_block() -> Drawing:
    """8 output channels by 3 vectors: 24 sums in registers."""
    d = Drawing(660, 344, "The register block: 8 output channels by 3 vectors of positions.")
    d.text(330, 28, "One step of the sum: a channel c and a tap k", bold=True)
    x0, y0, width, height = 190, 112, 106, 22
    for j in range(3):
        d.box(
            x0 + j * (width + 6), 70, width, height, BLUE, f"x[c][{16 * j}..{16 * j + 15}]", size=12
        )
    for i in range(8):
        y = y0 + i * (height + 3)
        d.box(110, y, 62, height, ORANGE, f"w[{i}]", size=12)
        for j in range(3):
            d.box(x0 + j * (width + 6), y, width, height, GREEN, f"sum[{i}][{j}]", size=12)
    d.note(180, 86, "3 vectors loaded", anchor="end")
    d.note(100, y0 + 96, "8 packed", anchor="end")
    d.note(100, y0 + 112, "weights,", anchor="end")
    d.note(100, y0 + 128, "broadcast", anchor="end")
    d.note(540, y0 + 96, "24 sums that stay")
    d.note(540, y0 + 112, "in registers over")
    d.note(540, y0 + 128, "all c and k")
    d.note(
        330,
        332,
        "sum[i][j] += w[i] * x[j]: 24 multiply-adds of 16 numbers for 11 loads.",
        anchor="middle",
    )
    return d


def staging() -> Drawing:
    """The staged panel: a strip of positions of all channels, with zeros for the padding."""
    d = Drawing(660, 320, "A tile is computed from a staged copy of what it reads.")
    d.text(330, 28, "x is copied once per tile, and read once per block of outputs", bold=True)
    for c in range(4):
        d.box(40, 60 + 30 * c, 240, 24, GREY)
        d.box(40, 60 + 30 * c, 90, 24, BLUE)
        d.note(32, 77 + 30 * c, f"x{c}", anchor="end")
    d.note(40, 194, "in memory: (channels, length)")
    for c in range(4):
        y = 60 + 30 * c
        d.box(370, y, 40, 24, PAPER, "0", dashed=True)
        d.box(410, y, 130, 24, BLUE)
        d.box(540, y, 24, 24, GREY)
    d.line((290, 117), (360, 117), arrow=True, width=1.6)
    d.note(370, 194, "zeros of the padding, the tile, and a filling that")
    d.note(370, 210, "makes rows an odd number of cache lines long")
    for k in range(3):
        d.box(370 + 20 * k, 232 + 22 * k, 130, 18, GREEN, f"tap {k}", size=12)
    d.note(356, 246, "what each tap reads of a row:", anchor="end")
    d.note(356, 262, "the same strip, a dilation further", anchor="end")
    return d


def fast_filter() -> Drawing:
    """The data flow of F(2, 3): four products for two outputs of three taps."""
    d = Drawing(680, 330, "Fast filtering F(2, 3): four products instead of six.")
    d.text(340, 28, "Two outputs of three taps, a dilation apart, from four products", bold=True)
    rows = [76 + 56 * i for i in range(4)]
    inputs = [d.box(40, y, 40, 30, BLUE, f"x{i}") for i, y in enumerate(rows)]
    sums = [
        d.box(150, y, 76, 30, BLUE, label)
        for y, label in zip(rows, ("x0 - x2", "x1 + x2", "x2 - x1", "x3 - x1"), strict=True)
    ]
    for i, reads in enumerate(((0, 2), (1, 2), (1, 2), (1, 3))):
        for read in reads:
            d.line(inputs[read].right, sums[i].left)
    weights = ("g0", "(g0+g1+g2)/2", "(g0-g1+g2)/2", "g2")
    products = []
    for i, y in enumerate(rows):
        box = d.box(272, y, 108, 30, ORANGE, weights[i], size=12)
        d.text(249, y + 20, "\N{MULTIPLICATION SIGN}", size=16)
        products.append(d.box(430, y, 56, 30, GREEN, f"m{i}"))
        d.line(box.right, products[i].left, arrow=True)
    outputs = [d.box(590, 102 + 112 * i, 50, 32, RED, f"y{i}") for i in range(2)]
    signs = ((0, 0, "+"), (1, 0, "+"), (2, 0, "+"), (1, 1, "+"), (2, 1, "-"), (3, 1, "+"))
    for product, output, sign in signs:
        start, end = products[product].right, outputs[output].left
        d.line(start, end, STRONG[RED] if sign == "-" else MUTED, dashed=sign == "-")
    d.note(40, 312, "once per input")
    d.note(272, 312, "once per weight")
    d.note(402, 312, "summed over channels")
    d.note(660, 312, "once per output", anchor="end")
    return d


def pieces() -> Drawing:
    """The gradient of the weight: pieces of the positions, added in a fixed order."""
    d = Drawing(680, 250, "Positions are cut by the geometry, and the sums added in order.")
    d.text(
        340, 28, "Few weights, many positions: cut the sum, and add the pieces in order", bold=True
    )
    x0, width = 100, 140
    total = None
    for piece in range(4):
        x = x0 + piece * width
        positions = d.box(x, 62, width - 6, 30, BLUE, f"positions {piece}")
        workers = d.box(x + 27, 118, 80, 30, ORANGE, f"sum {piece}")
        d.line(positions.bottom, workers.top, arrow=True)
        added = d.box(x + 27, 180, 80, 30, GREEN, "+" if piece else "")
        d.line(workers.bottom, added.top, arrow=True)
        if total is not None:
            d.line(total.right, added.left, arrow=True)
        total = added
    d.note(x0 + 16, 137, "any thread", anchor="end")
    d.note(x0 + 16, 199, "one order", anchor="end")
    d.text(x0 + 3.5 * width - 3, 230, "grad_weight", size=12)
    return d
