"""The documentation: its code runs, its links lead somewhere, figures and names are complete."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import convlm_kernels
from convlm_kernels import lm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools" / "website"))

import cells  # noqa: E402
import figures  # noqa: E402
import figures_cpu  # noqa: E402
import links  # noqa: E402

DOCS = ROOT / "docs"
TUTORIAL = ROOT / "examples" / "tutorial.py"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", TUTORIAL, *sorted(DOCS.rglob("*.md"))]

_CODE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
WITH_CODE = [page for page in PAGES if _CODE.search(page.read_text("utf-8"))]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture
def torch_as_it_was() -> Iterator[None]:
    switches = torch.backends.mkldnn.conv, torch.backends.cudnn.conv
    before = [switch.fp32_precision for switch in switches]
    yield
    for switch, precision in zip(switches, before, strict=True):
        switch.fp32_precision = precision


@pytest.mark.parametrize("page", WITH_CODE, ids=name_of)
def test_code_runs(page: Path, torch_as_it_was: None) -> None:
    namespace: dict[str, object] = {}
    text = page.read_text("utf-8")
    for block in _CODE.finditer(text):
        if not block[1].startswith("# torchrun"):  # several processes: tests/test_parallel.py
            line = text.count("\n", 0, block.start(1))
            exec(compile("\n" * line + block[1], str(page), "exec"), namespace)


def test_steps_of_the_cpu_guide(tmp_path: Path) -> None:
    """They compile, agree with each other, and are those of the page."""
    compiler = shlex.split(os.environ.get("CXX", "g++"))
    command = [*compiler, "-std=c++17", "-O3", "-march=native", str(DOCS / "cpu_steps.cpp")]
    subprocess.run([*command, "-o", str(tmp_path / "cpu_steps")], check=True)
    run = subprocess.run([tmp_path / "cpu_steps", "8"], check=True, capture_output=True, text=True)
    steps = [line[0] for line in run.stdout.splitlines()]
    assert steps == list("12345")
    assert steps == [step.name[0] for step in figures_cpu.steps_of_guide()[:5]]


def test_pages_have_code() -> None:
    assert {"README.md", "docs/geometry.md", "docs/streaming.md"} <= set(map(name_of, WITH_CODE))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for link in links.links(page.read_text("utf-8")):
        assert links.target(name_of(page), link)
        assert (page.parent / link).exists()


def test_links_become_those_of_the_site() -> None:
    text = "[a](../csrc/geometry.h) [b](cpu.md#x) [c](https://x.org) [d](#y) ![e](figures/a.svg)"
    assert links.rewrite(text, "guide.md") == (
        "[a](source/csrc/geometry.h.md) [b](cpu.md#x) [c](https://x.org) [d](#y) "
        "![e](figures/a.svg)"
    )
    assert links.rewrite("[a](../geometry.md)", "api/layers.md") == "[a](../geometry.md)"
    assert links.rewrite("[a](../README.md)", "tutorial.md") == "[a](index.md)"
    assert links.rewrite("[a](docs/cpu.md)", "contributing.md") == "[a](cpu.md)"
    code = "```python\ntable[row](no.md)\n```\n`a[b](no.md)`"
    assert links.rewrite(f"{code} [`c`](../cpu.md)", "api/layers.md").startswith(code)
    with pytest.raises(FileNotFoundError, match=r"docs/cpu.md links to ../no.md"):
        links.rewrite("[a](../no.md)", "cpu.md")


def test_sources_have_pages() -> None:
    page = links.source_page("source/csrc/geometry.h.md")
    assert "# csrc/geometry.h\n\n```` { .cpp linenums=1 }\n// The arithmetic of" in page


def documented() -> set[str]:
    pages = "\n".join(page.read_text("utf-8") for page in (DOCS / "api").glob("*.md"))
    return set(re.findall(r"^::: (\S+)$", pages, re.MULTILINE))


@pytest.mark.parametrize("module", [convlm_kernels, lm], ids=lambda module: module.__name__)
def test_every_public_name_is_in_the_reference(module: object) -> None:
    missing = {f"{module.__name__}.{name}" for name in module.__all__} - documented()
    assert not missing, f"no entry in docs/api for {sorted(missing)}"


@pytest.mark.parametrize("figure", figures.FIGURES, ids=lambda figure: figure.__name__)
def test_figure_is_up_to_date_and_shown(figure: figures.Figure) -> None:
    path = figures.FOLDER / f"{figure.__name__}.svg"
    assert path.read_text("utf-8") == str(figure()), "run tools/website/figures.py"
    assert any(f"(figures/{path.name})" in page.read_text("utf-8") for page in PAGES)


def test_no_figure_is_left_over() -> None:
    drawn = {f"{figure.__name__}.svg" for figure in figures.FIGURES}
    assert {path.name for path in figures.FOLDER.iterdir()} == drawn


NOTEBOOK = """\
# For readers of the source.

# %% [markdown]
# # Title
#
# Text.

# %%
value = 6
print(value * 7)

# %%
import matplotlib.pyplot as plt
plt.plot([1, value])

# %%
silent = value
"""


def test_notebook_tells_what_it_prints_and_draws(tmp_path: Path) -> None:
    path = tmp_path / "notebook.py"
    path.write_text(NOTEBOOK)
    told = cells.tell(path)
    assert told.startswith("# Title\n\nText.\n\n```python\nvalue = 6")
    assert "``` { .text .output }\n42\n```" in told
    assert told.count("data:image/svg+xml;base64,") == 1
    assert told.endswith("silent = value\n```\n")


def test_notebook_fails_where_a_cell_does(tmp_path: Path) -> None:
    path = tmp_path / "notebook.py"
    path.write_text("# %%\nx = 1\n\n# %%\nx / 0\n")
    with pytest.raises(ZeroDivisionError) as error:
        cells.tell(path)
    frame = traceback.extract_tb(error.value.__traceback__)[-1]
    assert (frame.filename, frame.lineno) == (str(path), 5)
