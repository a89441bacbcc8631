"""What MkDocs does beyond its plugins: pages from other files, sources, mathematics."""

from __future__ import annotations

import functools
import re
import sys
from html import unescape
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).parent))

import cells
import links

TUTORIAL = links.ROOT / "examples" / "tutorial.py"

_MATH = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that do not lie in docs/."""
    tutorial = _tutorial(TUTORIAL.stat().st_mtime)
    files.append(File.generated(config, "tutorial.md", content=tutorial))
    for page in ("contributing.md", "changelog.md"):
        text = (links.ROOT / links.origin(page)).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=text))
    for page in sorted(_sources(files)):
        files.append(File.generated(config, page, content=links.source_page(page)))
    return files


@functools.cache
def _tutorial(changed: float) -> str:
    """Run once, and again when it has changed (`mkdocs serve`)."""
    return cells.tell(TUTORIAL)


def _sources(files: Files) -> set[str]:
    found = set()
    for file in files.documentation_pages():
        origin = links.origin(file.src_uri)
        found |= {links.target(origin, link) for link in links.links(file.content_string)}
    return {page for page in found if page.startswith("source/")}


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    if page.file.src_uri.startswith("source/"):
        return markdown
    return links.rewrite(markdown, page.file.src_uri)


def on_page_content(html: str, **_: Any) -> str:
    """TeX becomes MathML, which browsers show without a script."""
    return _MATH.sub(_mathml, html)


def _mathml(match: re.Match[str]) -> str:
    display = "block" if match[2] == "[" else "inline"
    return convert(unescape(match[3]), display=display)
