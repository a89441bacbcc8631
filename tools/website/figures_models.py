"""Figures of language models: contexts that repeat, rings, and sequences split over processes."""

from __future__ import annotations

from drawing import BLUE, GREEN, GREY, MUTED, ORANGE, PAPER, RED, STRONG, Drawing

from convlm_kernels.geometry import input_position
from convlm_kernels.lm.data import Alphabet, encode_rows

CELL = 30


def one_convolution() -> Drawing:
    """The model of one convolution: a kernel over embeddings laid end to end."""
    d = Drawing(640, 262, "A kernel of context times embedding moves one character a step.")
    context, size, shown = 4, 3, 7
    x0, y0, cell = 60, 150, 24
    for i, character in enumerate("...mari"):
        for j in range(size):
            d.box(x0 + (i * size + j) * cell, y0, cell, cell, BLUE)
        d.text(x0 + (i + 0.5) * size * cell, y0 + 46, character, size=16, mono=True)
    for out in range(shown - context + 1):
        first = input_position(out, 0, size, 1, 0)
        y = 118 - 24 * out
        fill = GREEN if out == 1 else GREY
        d.box(x0 + first * cell, y, context * size * cell, 18, fill, f"output {out}", size=11)
    d.text(320, 26, "one channel, stride = embedding, kernel = context * embedding", bold=True)
    d.note(
        320,
        226,
        "Embeddings laid end to end (here 3 numbers a character, context 4).",
        anchor="middle",
    )
    d.note(
        320,
        244,
        "Each output is one matrix product of the MLP: the weights are the same.",
        anchor="middle",
    )
    return d


def look_up() -> Drawing:
    """An output as a sum of rows of the table, one for each tap."""
    word, taps = "mary", 3
    letters = sorted(word)
    d = Drawing(640, 290, "An output is a sum of table rows, one for each tap.")
    d.text(320, 30, "What a tap makes of a word is a row that can be looked up", bold=True)
    d.text(335, 58, "table: a row of output channels for each tap and word", size=12)
    total = d.box(500, 132, 100, 26, ORANGE, "output 0", size=12)
    for tap in range(taps):
        token = d.box(120, 84 + tap * 70, CELL, CELL, BLUE, word[tap])
        d.note(106, 104 + tap * 70, f"tap {tap} reads", anchor="end")
        for i, letter in enumerate(letters):
            y = 70 + tap * 70 + i * 16
            row = d.box(270, y, 130, 14, GREEN if letter == word[tap] else GREY)
            d.text(260, y + 11, letter, size=11, anchor="end")
            if letter == word[tap]:
                d.line(token.right, (244, y + 7), arrow=True)
                d.line(row.right, total.left, STRONG[GREEN], width=2, arrow=True)
    d.note(550, 178, "the rows' sum,", anchor="middle")
    d.note(550, 194, "plus the bias", anchor="middle")
    return d


def shared_contexts() -> Drawing:
    """Which pairs of characters of four padded names are new."""
    names, context = ("mary", "mark", "anna", "anne"), 4
    alphabet = Alphabet.of(names)
    tokens = encode_rows(names, alphabet, context, max(map(len, names)) + 1).x
    d = Drawing(640, 286, "In a batch of padded names most pairs of characters repeat.")
    x0, y0 = 60, 56
    seen: set[tuple[int, int]] = set()
    for n, row in enumerate(tokens.tolist()):
        y = y0 + n * 50
        for i, token in enumerate(row):
            d.box(x0 + i * CELL, y, CELL, 22, PAPER, alphabet.symbols[token])
            if i == 0:
                continue
            pair = (row[i - 1], token)
            fill = GREY if pair in seen else GREEN
            seen.add(pair)
            d.box(x0 + (i - 0.5) * CELL + 3, y + 25, CELL - 6, 12, fill)
    total = tokens.shape[0] * (tokens.shape[1] - 1)
    d.box(420, 84, 24, 12, GREEN)
    d.note(454, 94, "first of its kind: computed")
    d.box(420, 112, 24, 12, GREY)
    d.note(454, 122, "seen before: copied")
    d.text(420, 166, f"{len(seen)} distinct pairs", anchor="start", bold=True)
    d.text(420, 186, f"for {total} positions", anchor="start", bold=True)
    d.text(320, 30, "A unit sees only its receptive field", bold=True)
    d.note(60, 272, "Backward, the gradients of all copies are summed first.")
    return d


def rings() -> Drawing:
    """The ring of a layer with two taps, dilation 4, before step 9."""
    dilation, taps, step = 4, 2, 9
    slots = dilation * (taps - 1)
    d = Drawing(640, 250, "A layer keeps the last inputs that later outputs read in a ring.")
    x0, y0, cell = 60, 130, 46
    d.text(
        320,
        30,
        f"kernel_size {taps}, dilation {dilation}: a ring of {slots} slots, before step {step}",
        bold=True,
    )
    for slot in range(slots):
        newest = step - 1 - (step - 1 - slot) % slots
        oldest = newest == step - dilation
        box = d.box(x0 + slot * cell, y0, cell, cell, ORANGE if oldest else BLUE, f"x{newest}")
        d.note(box.bottom.x, y0 + cell + 18, f"slot {slot}", anchor="middle")
        if oldest:
            held = box
    new = d.box(x0 + 6.5 * cell, y0, cell, cell, GREEN, f"x{step}")
    out = d.box(x0 + 9 * cell, 62, cell, cell, RED, f"y{step}")
    d.line(held.top, out.left, STRONG[ORANGE], width=2, arrow=True)
    d.line(new.top, out.bottom, STRONG[GREEN], width=2, arrow=True)
    d.line(new.left, (x0 + 4 * cell + 6, y0 + cell / 2), MUTED, dashed=True, arrow=True)
    d.note(new.bottom.x, y0 + cell + 18, "the new input", anchor="middle")
    d.note(held.top.x + 70, 84, "tap 0", anchor="middle")
    d.note(new.top.x - 6, 116, "tap 1", anchor="end")
    d.note(
        60,
        230,
        f"Then x{step} takes slot {step % slots}: nothing reads x{step - dilation} any more.",
    )
    return d


def halo() -> Drawing:
    """Two processes, each with a run of positions, and what the second one borrows."""
    d = Drawing(640, 240, "A process reads the last positions of its neighbour's run.")
    run, taps, dilation = 8, 2, 3
    span = dilation * (taps - 1)
    d.text(
        320,
        30,
        f"causal, kernel_size {taps}, dilation {dilation}: a halo of {span} positions",
        bold=True,
    )
    for rank in range(2):
        x0 = 50 + rank * (run + 1.5) * CELL
        for i in range(run):
            lent = rank == 0 and i >= run - span
            d.box(x0 + i * CELL, 80, CELL, CELL, ORANGE if lent else BLUE, str(rank * run + i))
        d.note(x0, 70, f"process {rank}")
    x1 = 50 + (run + 1.5) * CELL
    for i in range(span):
        d.box(x1 + (i - span) * CELL, 150, CELL, CELL, ORANGE, str(run - span + i), dashed=True)
    for i in range(run):
        d.box(x1 + i * CELL, 150, CELL, CELL, BLUE, str(run + i))
    d.line(
        (50 + (run - span / 2) * CELL, 112),
        (x1 - span * CELL / 2, 148),
        STRONG[ORANGE],
        width=2,
        arrow=True,
    )
    d.note(x1 + 20, 134, "the layer runs on the run with its halo")
    d.note(
        60,
        220,
        "Backward the gradient of the halo goes the other way, and is added to the run's own.",
    )
    return d
