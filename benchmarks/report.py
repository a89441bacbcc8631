"""Draws the stored figures, puts them on a page, and writes them into README.md and docs.

    make bench-report
    python benchmarks/report.py benchmarks/results/cpu-....json    # plots and page of this one

Beside a file of results come its page, `<name>.html`, and a folder of plots, `<name>/*.png` and
`*.svg`; none of them is kept in git. In README.md and docs/benchmarks.md, the text between

    <!-- benchmarks: FILE WHAT -->
    <!-- end -->

is replaced: by the table named WHAT (one of tables.TABLES) or, for "plot NAME", by that plot, which
is written to docs/plots.
"""

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from page import page
from plots import Drawing, drawings, svg_of
from results import HERE, load
from suite import SUITES, suite_named
from tables import TABLES

ROOT = HERE.parent
DOCUMENTS = ROOT / "README.md", ROOT / "docs/benchmarks.md"
PLOTS = ROOT / "docs/plots"

MISSING = "*Not measured yet.*"
BLOCK = re.compile(r"(<!-- benchmarks: (\S+) ([^>]+?) -->\n).*?(<!-- end -->)", re.DOTALL)

# An image has no text around it: its ink follows the reader's choice of dark or light.
STANDALONE = (
    "<style>svg { color: #1f2a37 } "
    "@media (prefers-color-scheme: dark) { svg { color: #d7dde5 } }</style>"
)


def write_report(results: Path) -> list[Path]:
    """The page and the plots of one file of results, beside it; returns the page and the folder."""
    runs = load(results)
    suites = [suite_named(name) for name in SUITES if name in runs]
    folder = results.with_suffix("")
    folder.mkdir(exist_ok=True)
    drawn: dict[str, list[Drawing]] = {}
    for suite in suites:
        drawn[suite.name] = list(drawings({suite.name: runs[suite.name]}))
        for drawing in drawn[suite.name]:
            write_svg(folder / f"{drawing.name}.svg", drawing)
            drawing.figure.savefig(folder / f"{drawing.name}.png", dpi=160)
    html = results.with_suffix(".html")
    html.write_text(page(runs, suites, drawn))
    return [html, folder]


def write_svg(path: Path, drawing: Drawing) -> None:
    svg = svg_of(drawing)
    end_of_tag = svg.index(">") + 1
    path.parent.mkdir(exist_ok=True)
    path.write_text(svg[:end_of_tag] + STANDALONE + svg[end_of_tag:])


def updated(document: Path, draw: Callable[[Path, Drawing], None] | None = None) -> str:
    """The text of `document` with its blocks written anew; `draw` writes the plots that it shows.

    Raises:
        SystemExit: a block names a table that does not exist.
    """

    def block(match: re.Match[str]) -> str:
        begin, file, what, end = match.groups()
        path = HERE / "results" / file
        runs = load(path) if path.is_file() else {}
        if what.startswith("plot "):
            text = plot_of(document, file, runs, what.removeprefix("plot "), draw)
        elif what in TABLES:
            text = TABLES[what](runs)
        else:
            raise SystemExit(f"{document.name}: no table {what!r}: there are {', '.join(TABLES)}")
        return f"{begin}{text or MISSING}\n{end}"

    return BLOCK.sub(block, document.read_text())


def plot_of(
    document: Path,
    file: str,
    runs: dict[str, object],
    name: str,
    draw: Callable[[Path, Drawing], None] | None,
) -> str:
    """The image in Markdown, and its caption; nothing where that was not measured."""
    for drawing in drawings(runs):  # type: ignore[arg-type]
        if drawing.name == name:
            path = PLOTS / f"{Path(file).stem}-{name}.svg"
            if draw is not None:
                draw(path, drawing)
            image = Path(os.path.relpath(path, document.parent)).as_posix()
            return f"![{drawing.caption}]({image})\n\n*{drawing.caption}*"
    return ""


def update_documents() -> None:
    for document in DOCUMENTS:
        document.write_text(updated(document, write_svg))
        print(document)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("results", type=Path, nargs="*", metavar="FILE.json", help="(default all)")
    args = parser.parse_args(argv)
    for results in args.results or sorted((HERE / "results").glob("*.json")):
        print(*write_report(results), sep="\n")
    if not args.results:
        update_documents()


if __name__ == "__main__":
    sys.exit(main())
