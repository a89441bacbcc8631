"""Figures of what an output reads. Every line is drawn where `input_position` says."""

from __future__ import annotations

from drawing import BLUE, GREEN, GREY, INK, MUTED, ORANGE, PAPER, STRONG, Drawing

from convlm_kernels.geometry import input_position, output_length, resolve_padding

CELL = 34


def geometry() -> Drawing:
    """One convolution with everything: stride, dilation, and padding on both sides."""
    length, taps, stride, dilation, left, right = 10, 3, 2, 2, 3, 1
    outputs = output_length(length, taps, stride, dilation, left, right)
    d = Drawing(620, 262, "An output reads taps a dilation apart; outputs lie a stride apart.")
    x0, out_y, in_y = 70, 56, 170
    padded = left + length + right
    labels = [str(i - left) for i in range(padded)]
    fills = [BLUE if 0 <= i - left < length else PAPER for i in range(padded)]
    cells = d.row(x0, in_y, CELL, labels, fills)
    shown = {0: GREEN, 3: ORANGE}
    for out in range(outputs):
        reads = [cells[input_position(out, k, stride, dilation, left) + left] for k in range(taps)]
        fill = shown.get(out, GREY)
        box = d.box(reads[1].x, out_y, CELL, CELL, fill, str(out))
        for tap, read in enumerate(reads if out in shown else []):
            d.line(read.top, box.bottom, STRONG[fill], width=2)
            at = 0.25 if out == 0 else 0.35
            d.text(
                read.top.x + (box.bottom.x - read.top.x) * at + 15,
                in_y + (box.bottom.y - in_y) * at,
                f"w{tap}",
                size=12,
                color=STRONG[fill],
            )
    d.text(x0 - 10, out_y + 22, "outputs", anchor="end")
    d.text(x0 - 10, in_y + 22, "inputs", anchor="end")
    d.note(x0, in_y + 54, "zeros: pad_left = 3")
    d.note(x0 + padded * CELL, in_y + 54, "pad_right = 1", anchor="end")
    d.note(x0 + 7 * CELL, in_y + 54, "length = 10", anchor="middle")
    d.text(310, 30, "kernel_size 3, stride 2, dilation 2: out_length 5", bold=True)
    d.note(310, in_y + 78, "input_position(out, tap) = out * 2 + tap * 2 - 3", anchor="middle")
    return d


def padding() -> Drawing:
    """The three words, with an even kernel, where they differ most."""
    length, taps, dilation = 6, 4, 1
    d = Drawing(620, 318, 'What "valid", "same" and "causal" add to six positions.')
    d.text(310, 28, "kernel_size 4, dilation 1: the zeros that each word adds", bold=True)
    for i, word in enumerate(("valid", "same", "causal")):
        left, right = resolve_padding(word, taps, 1, dilation)
        outputs = output_length(length, taps, 1, dilation, left, right)
        x0, y = 190, 56 + 80 * i
        for j in range(-left, length + right):
            inside = 0 <= j < length
            cell = "x" if inside else "0"
            fill = BLUE if inside else PAPER
            d.box(x0 + j * CELL, y + 36, CELL, 26, fill, cell, dashed=not inside)
        for out in range(outputs):  # over the newest input that it reads
            newest = input_position(out, taps - 1, 1, dilation, left)
            d.box(x0 + newest * CELL, y, CELL, 26, GREEN, "y")
        d.text(72, y + 26, f'"{word}"', anchor="end", mono=True)
        d.note(72, y + 44, f"({left}, {right})", anchor="end")
        d.note(510, y + 18, f"{outputs} outputs")
    d.note(310, 306, "Each y stands over the newest input that it reads.", anchor="middle")
    return d


def receptive_field() -> Drawing:
    """Kernel size 2, dilations 1, 2, 4, 8: sixteen inputs behind one output."""
    dilations, count = (1, 2, 4, 8), 16
    d = Drawing(670, 330, "Four causal layers of two taps see sixteen positions.")
    pitch, top = 34, 50
    rows = [top + 60 * (len(dilations) - i) for i in range(len(dilations) + 1)]
    needed: list[set[int]] = [{count - 1}]
    for dilation in reversed(dilations):
        reads = {
            input_position(out, tap, 1, dilation, dilation) for out in needed[0] for tap in range(2)
        }
        needed.insert(0, reads)
    for level, dilation in enumerate(dilations, 1):
        for out in range(count):
            used = out in needed[level]
            for tap in range(2):
                read = input_position(out, tap, 1, dilation, dilation)
                if read >= 0:
                    d.line(
                        (50 + read * pitch, rows[level - 1]),
                        (50 + out * pitch, rows[level]),
                        STRONG[GREEN] if used else GREY,
                        width=2 if used else 1,
                    )
    for level, y in enumerate(rows):
        for i in range(count):
            fill = (GREEN if level else BLUE) if i in needed[level] else GREY
            d.box(50 + i * pitch - 7, y - 7, 14, 14, fill)
        name = f"dilation {dilations[level - 1]}" if level else "input"
        d.note(50 + count * pitch - 14, y + 4, name)
    d.text(320, 26, "four layers of two taps see 1 + 1 + 2 + 4 + 8 = 16 positions", bold=True)
    return d


def stride_classes() -> Drawing:
    """grad_input with stride 3: which taps a position was read with."""
    taps, stride, dilation, positions = 5, 3, 1, 12
    d = Drawing(620, 250, "Positions a stride apart were read by the same taps.")
    x0, in_y, out_y = 90, 150, 56
    colors = (BLUE, ORANGE, GREEN)
    read_by: dict[int, set[int]] = {p: set() for p in range(positions)}
    for out in range(positions // stride):
        box = d.box(x0 + (out * stride + 1) * CELL, out_y, CELL, CELL, GREY, f"g{out}")
        for tap in range(taps):
            p = input_position(out, tap, stride, dilation, 1)
            if 0 <= p < positions:
                read_by[p].add(tap)
                d.line(
                    box.bottom,
                    (x0 + p * CELL + CELL / 2, in_y),
                    STRONG[colors[p % stride]],
                    width=1.6,
                )
    for p in range(positions):
        d.box(x0 + p * CELL, in_y, CELL, CELL, colors[p % stride], str(p))
        taps_of = ",".join(map(str, sorted(read_by[p])))
        d.text(x0 + p * CELL + CELL / 2, in_y + 52, taps_of, size=12, color=MUTED)
    d.text(x0 - 10, out_y + 22, "grad_output", anchor="end", size=12)
    d.text(x0 - 10, in_y + 22, "grad_input", anchor="end", size=12)
    d.text(x0 - 10, in_y + 52, "taps", anchor="end", size=12, color=MUTED)
    d.text(310, 30, "kernel_size 5, stride 3, pad_left 1: three classes of positions", bold=True)
    d.text(
        310, 236, "Each class is a correlation of its own, without a stride.", size=12, color=INK
    )
    return d
