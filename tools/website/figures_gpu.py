"""Figures of the GPU kernels: tiles, stages, and how they lie in shared memory."""

from __future__ import annotations

from drawing import BLUE, GREEN, GREY, ORANGE, PAPER, RED, STRONG, Drawing


def implicit_gemm() -> Drawing:
    """A block's tile of the product of the weights with the matrix of windows."""
    d = Drawing(680, 380, "The convolution as a product of matrices, and the tile of a block.")
    d.text(340, 28, "A block of threads makes 64 rows by 128 positions", bold=True)
    d.box(300, 56, 330, 110, PAPER, dashed=True)
    d.box(390, 56, 128, 110, GREY)
    d.box(390, 90, 128, 30, BLUE, "a stage of x", size=12)
    d.note(465, 50, "windows: channels · taps by positions, never written down", anchor="middle")
    d.box(40, 190, 230, 150, PAPER)
    d.box(40, 228, 230, 64, GREY)
    d.box(108, 228, 62, 64, ORANGE, "weights", size=12)
    d.note(155, 360, "weight: rows by channels · taps", anchor="middle")
    d.box(300, 190, 330, 150, PAPER)
    for row in range(2):
        for column in range(2):
            d.box(
                390 + 64 * column,
                228 + 32 * row,
                64,
                32,
                GREEN,
                f"warp {2 * row + column}",
                size=11,
            )
    d.note(465, 360, "outputs: rows by positions", anchor="middle")
    d.line((170, 260), (386, 260), arrow=True)
    d.line((454, 122), (454, 224), arrow=True)
    d.note(526, 256, "sums in registers")
    d.note(526, 272, "over all stages")
    return d


def shared_window() -> Drawing:
    """x in shared memory by positions: a tap is a shift by whole rows."""
    d = Drawing(680, 330, "Staged as [position][channel], a tap's shift is a shift by rows.")
    d.text(340, 28, "x in shared memory, dilation 2", bold=True)
    for column, (title, by_rows) in enumerate(
        (("[channel][position]: shifted by numbers", False), ("[position][channel]: by rows", True))
    ):
        x0, y0, cell = 60 + 330 * column, 90, 24
        d.text(x0 + 4 * cell, 64, title, size=12, bold=True)
        for row in range(8):
            for j in range(8):
                place = row if by_rows else j
                d.box(x0 + j * cell, y0 + row * cell, cell, cell, BLUE if 2 <= place < 6 else GREY)
        if by_rows:
            d.note(x0 + 8 * cell + 8, y0 + 4.2 * cell, "tap 1 of")
            d.note(x0 + 8 * cell + 8, y0 + 4.9 * cell, "positions 0..3")
        else:
            d.note(x0 + 4 * cell, y0 - 8, "position →", anchor="middle")
        text = (
            "every row starts at a multiple of 16 bytes"
            if by_rows
            else "rows at any address: not for ldmatrix"
        )
        d.text(x0 + 4 * cell, 306, text, size=12, color=STRONG[GREEN if by_rows else RED])
    d.note(390 + 4 * 24, 82, "channel →", anchor="middle")
    return d


def stages() -> Drawing:
    """Two buffers in shared memory: one is multiplied while the other is filled."""
    d = Drawing(680, 250, "While one stage is multiplied, the next one is copied.")
    d.text(
        340, 28, "Two buffers: the copy of a stage hides behind the products before it", bold=True
    )
    x0, width = 130, 100
    for buffer in range(2):
        y = 64 + 56 * buffer
        d.text(x0 - 14, y + 25, f"buffer {buffer}", anchor="end")
        for time in range(5):
            copied = (time + buffer) % 2 == 0
            stage = time if copied else time - 1
            if stage < 0 or (copied and stage > 3):
                continue
            fill = ORANGE if copied else GREEN
            word = "copy" if copied else "multiply"
            d.box(x0 + time * width, y, width - 4, 40, fill, f"{word} {stage}")
    for time in range(1, 5):
        d.line((x0 + time * width - 2, 52), (x0 + time * width - 2, 172), dashed=True)
    d.note(x0 + width, 190, "barriers: one for each stage", anchor="start")
    d.line((x0, 212), (x0 + 5 * width, 212), arrow=True)
    d.note(x0 + 5 * width, 230, "time", anchor="end")
    return d


def taps_of_a_tile() -> Drawing:
    """The loop of the Triton kernel: a matrix product for each tap, over a shifted tile of x."""
    d = Drawing(680, 290, "A tile of outputs is a sum of matrix products, one for each tap.")
    d.text(340, 28, "One loop over taps and blocks of channels, one product a step", bold=True)
    for tap in range(3):
        y = 60 + 66 * tap
        d.box(30, y, 74, 44, ORANGE, f"weight[{tap}]", size=12)
        d.text(122, y + 28, "\N{MULTIPLICATION SIGN}", size=16)
        d.box(140, y, 300, 44, GREY)
        d.box(176 + 40 * tap, y, 160, 44, BLUE, f"x, tap {tap}", size=12)
        d.line((446, y + 22), (516, 126), arrow=True)
    d.box(520, 96, 130, 60, GREEN, "sums in registers", size=12)
    d.note(585, 88, "rows by positions", anchor="middle")
    d.note(30, 268, "rows by channels")
    d.note(160, 268, "channels by positions: each tap reads the tile a dilation further on")
    return d
