"""The table of docs/compatibility.md: its rows are tests that exist, and it says what they said."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from compatibility import Environment, Outcome, Row, is_of, markdown, one_library, outcomes, row
from compatibility_rows import ROWS

ROOT = Path(__file__).resolve().parent.parent
LABELS = {label: tests for rows in ROWS.values() for label, tests in rows.items()}
ENVIRONMENT = Environment("3.11.7", "2.10.0", "CPU", "2.13.0+cpu", True, "0a1b")


def functions(file: Path) -> set[str]:
    tree = ast.parse(file.read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_row_names_tests_that_exist() -> None:
    files = {path.name: functions(path) for path in ROOT.glob("tests/**/test_*.py")}
    for tests in LABELS.values():
        assert tests
        for test in tests:
            file, _, function = test.partition("[")[0].partition("::")
            assert function in files[file], test


def test_the_page_has_these_rows_and_nothing_fails() -> None:
    lines = (ROOT / "docs/compatibility.md").read_text().splitlines()
    cells = [[c.strip() for c in line.split("|")[1:-1]] for line in lines if line.startswith("| ")]
    there = {first: rest[-1] for first, *rest in cells if rest[-1].startswith("`")}
    wanted = {label: ", ".join(f"`{t}`" for t in tests) for label, tests in LABELS.items()}
    assert there == wanted, "make compat writes it anew"
    assert "fails" not in "\n".join(lines)


def test_what_a_row_names() -> None:
    assert is_of("test_a.py::test_b", "test_a.py::test_b")
    assert is_of("test_a.py::test_b[None-static]", "test_a.py::test_b")
    assert is_of("test_a.py::test_b[None-static]", "test_a.py::test_b[*static]")
    assert not is_of("test_a.py::test_b[None-dynamic]", "test_a.py::test_b[*static]")
    assert not is_of("test_a.py::test_before", "test_a.py::test_b")


REPORT = """<testsuites><testsuite>
<testcase classname="tests.test_a" name="test_b[1]"/>
<testcase classname="tests.gpu.test_a" name="test_b[2]"><skipped message="no GPU"/></testcase>
<testcase classname="test_a" name="test_c"><failure message="it is&#10;wrong"/></testcase>
<testcase classname="test_a" name="test_d"><error message=""/></testcase>
</testsuite></testsuites>"""


def test_a_report_is_read(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(REPORT)
    ran = outcomes(report)
    assert ran == [
        Outcome("test_a.py::test_b[1]", "", False),
        Outcome("test_a.py::test_b[2]", "no GPU", True),
        Outcome("test_a.py::test_c", "it is", False),
        Outcome("test_a.py::test_d", "error", False),
    ]
    assert row(["test_a.py::test_b"], ran) == Row(1, {"no GPU"}, [])
    assert row(["test_a.py::test_b[2]"], ran) == Row(0, {"no GPU"}, [])
    assert row(["test_a.py::test_c"], ran).failed == ["test_a.py::test_c: it is"]
    assert row(["test_a.py::test_e"], ran).failed == ["test_a.py::test_e: no such test ran"]


def test_the_page_says_what_failed_and_what_was_not_run() -> None:
    first, second, *others = LABELS
    rows = {label: Row(3, set(), []) for label in others}
    rows |= {first: Row(0, {"no GPU"}, []), second: Row(2, set(), ["test_a.py::test_c: it is"])}
    page = markdown({ENVIRONMENT: rows})
    assert f"| {first} | not run<sup>1</sup> |" in page
    assert f"| {second} | **fails**<sup>2</sup> |" in page
    assert f"| {others[0]} | yes |" in page
    assert "\n1. no GPU\n2. test_a.py::test_c: it is\n" in page


def test_one_library_for_all() -> None:
    other = ENVIRONMENT._replace(python="3.13.0", torch="2.13.0")
    one_library([ENVIRONMENT, other])
    with pytest.raises(SystemExit, match=r"differs.*\n0a1b with Python 3\.11\.7\nffff"):
        one_library([ENVIRONMENT, other._replace(library="ffff")])
