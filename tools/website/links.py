"""Links of the site: its pages, and pages for the sources that they point at.

Markdown files link to each other and to sources as files of the repository, which is what works
where the repository is browsed. On the site these become links to pages.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]

# Files outside docs/ that are pages of the site.
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "examples/tutorial.py": "tutorial.md",
}
_FILES = {page: file for file, page in PAGES.items() if page != "index.md"}

_LINK = re.compile(r"(\]\()(?![a-z]+:|#)([^)\s#]+)(#[^)\s]*)?\)")
_LANGUAGES = {".py": "python", ".pyi": "python", ".md": "markdown", ".txt": "text"}


def origin(page: str) -> str:
    """The file of the repository that a page is made of."""
    return _FILES.get(page, f"docs/{page}")


def target(file: str, link: str) -> str:
    """The page to which a link in a file leads.

    Raises:
        FileNotFoundError: there is no such file.
    """
    path = posixpath.normpath(posixpath.join(posixpath.dirname(file), link))
    if path in PAGES:
        return PAGES[path]
    if path.startswith("docs/") and path.endswith((".md", ".svg", ".png")):
        return path.removeprefix("docs/")
    if not (ROOT / path).exists():
        raise FileNotFoundError(f"{file} links to {link}, but there is no {path}")
    return f"source/{path}.md"


def links(markdown: str) -> list[str]:
    """The relative links in a text, without their anchors."""
    return [match[2] for match in _LINK.finditer(markdown)]


def rewrite(markdown: str, page: str) -> str:
    """The text of a page with its links as the site has them."""

    def replace(match: re.Match[str]) -> str:
        to = os.path.relpath(target(origin(page), match[2]), posixpath.dirname(page) or ".")
        return f"{match[1]}{to}{match[3] or ''})"

    return _LINK.sub(replace, markdown)


def source_page(page: str) -> str:
    """The Markdown of a page that shows a source, or what a folder has."""
    path = page.removeprefix("source/").removesuffix(".md")
    file = ROOT / path
    language = _LANGUAGES.get(file.suffix, "text" if file.is_dir() else "cpp")
    text = "\n".join(sorted(os.listdir(file))) if file.is_dir() else file.read_text("utf-8")
    fence = "````"
    return (
        f"---\ntitle: {file.name}\nsearch:\n  exclude: true\n---\n"
        f"# {path}\n\n{fence} {{ .{language} linenums=1 }}\n{text.rstrip()}\n{fence}\n"
    )
