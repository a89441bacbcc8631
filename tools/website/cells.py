"""Runs a notebook in the percent format and tells it as Markdown, with what it prints and draws.

A cell begins with "# %%", one of text with "# %% [markdown]". All cells run in one namespace. What
stands before the first cell is for readers of the source alone.
"""

from __future__ import annotations

import base64
import io
import re
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

_MARK = re.compile(r"^# %%(?: \[(markdown)\])?\n", re.MULTILINE)


class Cell(NamedTuple):
    is_text: bool
    source: str
    line: int  # of its first line in the file, from 1


def read_cells(text: str) -> list[Cell]:
    marks = list(_MARK.finditer(text))
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    return [
        Cell(mark[1] is not None, text[mark.end() : end], text.count("\n", 0, mark.end()) + 1)
        for mark, end in zip(marks, ends, strict=True)
    ]


def tell(path: Path) -> str:
    """Raises what a cell raises; the traceback has the file's own lines."""
    import matplotlib

    matplotlib.use("svg")
    namespace: dict[str, Any] = {"__name__": "__main__", "__file__": str(path)}
    parts = []
    for cell in read_cells(path.read_text(encoding="utf-8")):
        if cell.is_text:
            lines = cell.source.strip().split("\n")
            parts.append("\n".join(line.removeprefix("#").removeprefix(" ") for line in lines))
            continue
        printed, figures = _run(cell, path, namespace)
        parts.append(f"```python\n{cell.source.strip()}\n```")
        if printed.strip():
            parts.append(f"``` {{ .text .output }}\n{printed.rstrip()}\n```")
        for svg in figures:
            data = base64.b64encode(svg).decode()
            parts.append(f"![What the cell above draws.](data:image/svg+xml;base64,{data})")
    return "\n\n".join(parts) + "\n"


def _run(cell: Cell, path: Path, namespace: dict[str, Any]) -> tuple[str, list[bytes]]:
    """What a cell prints, and the figures that it draws, as SVG."""
    import matplotlib.pyplot as plt

    plt.close("all")  # what others have left
    out = io.StringIO()
    code = compile("\n" * (cell.line - 1) + cell.source, str(path), "exec")
    with redirect_stdout(out):
        exec(code, namespace)
    figures = []
    for number in plt.get_fignums():
        svg = io.BytesIO()
        plt.figure(number).savefig(svg, format="svg")
        figures.append(svg.getvalue())
    plt.close("all")
    return out.getvalue(), figures
