"""Links of the site: its pages, and pages for the sources that they point at.

Markdown files link to each other and to sources as files of the repository, which is what works
where the repository is browsed. On the site these become links to pages.
"""

from __future__ import annotations

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

# Code comes first, so that what looks like a link in it is none.
_LINK = re.compile(
    r"^(?P<fence>`{3,})[^\n]*\n.*?^(?P=fence)$|`[^`\n]+`"
    r"|\]\((?![a-z]+:|#)(?P<link>[^)\s#]+)(?P<anchor>#[^)\s]*)?\)",
    re.MULTILINE | re.DOTALL,
)
_LANGUAGES = {".py": "python", ".h": "cpp", ".cpp": "cpp", ".cu": "cpp", ".inl": "cpp"}


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
    if not (ROOT / path).is_file():
        raise FileNotFoundError(f"{file} links to {link}, but there is no file {path}")
    return f"source/{path}.md"


def links(markdown: str) -> list[str]:
    """The relative links in a text, without their anchors."""
    return [match["link"] for match in _LINK.finditer(markdown) if match["link"]]


def rewrite(markdown: str, page: str) -> str:
    """The text of a page with its links as the site has them."""

    def replace(match: re.Match[str]) -> str:
        if not match["link"]:
            return match[0]
        to = target(origin(page), match["link"])
        return f"]({posixpath.relpath(to, posixpath.dirname(page) or '.')}{match['anchor'] or ''})"

    return _LINK.sub(replace, markdown)


def source_page(page: str) -> str:
    """The Markdown of a page that shows a source."""
    path = page.removeprefix("source/").removesuffix(".md")
    file = ROOT / path
    language = _LANGUAGES.get(file.suffix, "text")
    text = file.read_text(encoding="utf-8").rstrip()
    fence = "````"
    return (
        f"---\ntitle: {file.name}\nsearch:\n  exclude: true\n---\n"
        f"# {path}\n\n{fence} {{ .{language} linenums=1 }}\n{text}\n{fence}\n"
    )
