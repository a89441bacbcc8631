"""One self-contained page of a file of results: no script, no network, dark and light."""

import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from plots import Drawing, svg_of
from suite import Suite
from tables import ceilings_in_words, cells, header

CSS = """
:root { color-scheme: light dark; --ink: #1f2a37; --soft: #5b6675; --page: #fff; --line: #d9dde3 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e8ee; --soft: #a3adba; --page: #14181e; --line: #343c47 }
}
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 62rem; padding: 1rem; color: var(--ink);
  background: var(--page); font: 16px/1.5 system-ui, sans-serif }
h1 { font-size: 1.6rem; line-height: 1.2 } h2 { margin: 2.5rem 0 .3rem; font-size: 1.25rem }
nav a, a { color: inherit } nav { display: flex; flex-wrap: wrap; gap: .3rem 1rem }
p, figcaption, dd, dt { max-width: 46rem }
figcaption { color: var(--soft); font-size: .9rem }
figure { margin: 1rem 0 } .wide { overflow-x: auto }
svg { color: var(--ink); width: 100%; min-width: 34rem; max-width: 52rem; height: auto }
svg text { font-family: system-ui, sans-serif !important }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem } dd { margin: 0 }
summary { cursor: pointer }
table { border-collapse: collapse; font-size: .85rem; white-space: nowrap }
td, th { padding: .15rem .6rem; border-bottom: 1px solid var(--line); text-align: right }
td:first-child, th:first-child { text-align: left }
"""

HOW = (
    "All ways to do the same take turns within one process, in a new order each round; ratios are "
    "taken within a round, and what is shown are medians. Every result is compared before anything "
    "is timed. Limits are measured in the same run. “Times” is the time of the best other way over "
    "ours: above 1 ours is faster."
)


def page(
    runs: Mapping[str, Any], suites: Sequence[Suite], drawings: Mapping[str, Sequence[Drawing]]
) -> str:
    machine = next(iter(runs.values()))["machine"]
    title = f"convlm_kernels on {machine.get('gpu') or machine['cpu']}"
    links = "".join(f'<a href="#{suite.name}">{escape(suite.title)}</a>' for suite in suites)
    sections = "".join(section(suite, runs[suite.name], drawings[suite.name]) for suite in suites)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{CSS}</style></head><body>"
        f"<h1>{escape(title)}</h1><p>{escape(HOW)}</p>{facts(runs)}<nav>{links}</nav>{sections}"
        "</body></html>\n"
    )


def facts(runs: Mapping[str, Any]) -> str:
    """Where the figures come from."""
    run = next(iter(runs.values()))
    machine = {k: v for k, v in run["machine"].items() if v not in ("", None)}
    machine["commit"] = ", ".join(dict.fromkeys(r["machine"]["commit"] for r in runs.values()))
    for ceiling in run["ceilings"]:
        trust = "" if ceiling["trusted"] else " (not to be trusted: the threads shared a core)"
        machine[f"limits, {ceiling['threads']} T"] = ceilings_in_words(ceiling) + trust
    entries = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>" for name, value in machine.items()
    )
    return f"<details><summary>The machine</summary><dl>{entries}</dl></details>"


def section(suite: Suite, run: Mapping[str, Any], drawings: Sequence[Drawing]) -> str:
    figures = "".join(
        f'<figure><div class="wide">{unique_ids(svg_of(drawing), drawing.name)}</div>'
        f"<figcaption>{escape(drawing.caption)}</figcaption></figure>"
        for drawing in drawings
    )
    return (
        f'<section id="{suite.name}"><h2>{escape(suite.title)}</h2>'
        f"<p>{escape(suite.question)}</p>{figures}"
        f"<details><summary>All {len(run['rows'])} figures</summary>"
        f'<div class="wide">{table(run)}</div></details></section>'
    )


def unique_ids(svg: str, prefix: str) -> str:
    """Several figures of one page must not share the names of their parts."""
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    return re.sub(r'(href="#|url\(#)', rf"\g<1>{prefix}-", svg)


def table(run: Mapping[str, Any]) -> str:
    def line(tag: str, texts: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(text)}</{tag}>" for text in texts) + "</tr>"

    body = "".join(line("td", cells(row)) for row in run["rows"])
    return f"<table>{line('th', header(run['unit']))}{body}</table>"
