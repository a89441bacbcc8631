"""What works with which torch: the rows are tests, which each torch runs on the same wheel.

python tests/compatibility.py python3.11:torch==2.10.0 python3.13:torch==2.13.0
python tests/compatibility.py --section Package python3:torch==2.13.0

Every argument is an interpreter and a torch for it, installed into an environment of their own in
.venv-compat. The wheels are those in dist/; where an interpreter has none there, one is built from
the source distribution beside them. The tests run in a folder that holds nothing but tests, so that
the package is the installed one.
"""

from __future__ import annotations

import argparse
import fnmatch
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from compatibility_rows import ROWS

ROOT = Path(__file__).resolve().parents[1]
DIST = ROOT / "dist"
ENVIRONMENTS = ROOT / ".venv-compat"

PIP = ("-m", "pip", "--disable-pip-version-check", "-q")
REQUIREMENTS = ("pytest>=8", "hypothesis", "expecttest")


class Environment(NamedTuple):
    """A column of the table."""

    python: str
    torch: str
    kind: str  # of torch's build: CPU or CUDA 13.0
    built_with: str  # the torch whose headers the wheel was compiled with
    cuda: bool  # whether the wheel has CUDA code
    library: str  # the hash of the operators' library


class Outcome(NamedTuple):
    test: str
    problem: str  # "" where it passed
    skipped: bool


class Row(NamedTuple):
    passed: int
    skipped: set[str]
    failed: list[str]


# --- What ran -------------------------------------------------------------------------------------


def outcomes(report: Path) -> list[Outcome]:
    """From the XML that pytest writes."""
    found = []
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        file = case.get("classname", "").rpartition(".")[2]
        trouble = next((e for e in case if e.tag in ("skipped", "failure", "error")), None)
        message = (trouble.get("message") or trouble.tag).strip() if trouble is not None else ""
        skipped = trouble is not None and trouble.tag == "skipped"
        lines = message.splitlines()
        found.append(Outcome(f"{file}.py::{case.get('name')}", lines[0] if lines else "", skipped))
    return found


def is_of(test: str, pattern: str) -> bool:
    """Whether a test is what ``file::function`` or ``file::function[parameters]`` names."""
    function, _, parameters = pattern.partition("[")
    return test == function or fnmatch.fnmatchcase(test, f"{function}[[]{parameters or '*]'}")


def row(tests: Iterable[str], ran: Sequence[Outcome]) -> Row:
    """The outcomes of a row's tests; none at all counts as a failure."""
    passed, skipped, failed = 0, set(), []
    for pattern in tests:
        matching = [o for o in ran if is_of(o.test, pattern)]
        failed += [f"{o.test}: {o.problem}" for o in matching if o.problem and not o.skipped]
        failed += [] if matching else [f"{pattern}: no such test ran"]
        skipped |= {o.problem for o in matching if o.skipped}
        passed += sum(not o.problem for o in matching)
    return Row(passed, skipped, failed)


# --- The environments -----------------------------------------------------------------------------


def run(*command: object, **settings: object) -> str:
    arguments = list(map(str, command))
    done = subprocess.run(arguments, text=True, stdout=subprocess.PIPE, **settings)  # type: ignore
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(arguments)}\nfailed with exit code {done.returncode}")
    return done.stdout


def interpreter(python: str, requirement: str) -> Path:
    """Of the environment for one column, with torch and the tests' requirements."""
    version = run(python, "-c", "import platform; print(platform.python_version())").strip()
    home = ENVIRONMENTS / f"{version}-{requirement.replace('==', '-')}"
    if not (home / "bin/python").exists():
        run(python, "-m", "venv", home)
    run(home / "bin/python", *PIP, "install", requirement, *REQUIREMENTS)
    return home / "bin/python"


TAG = """
import sys, sysconfig
version = "cp" + sysconfig.get_config_var("py_version_nodot")
print(version, version + sys.abiflags, sep="-")
"""
FACTS = """
import hashlib, json, pathlib, platform, torch, convlm_kernels
built = convlm_kernels.build_info()
library = pathlib.Path(convlm_kernels.__file__).with_name("libconvlm_ops.so").read_bytes()
print(json.dumps(dict(python=platform.python_version(), torch=torch.__version__.partition("+")[0],
    kind=f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU", built_with=built["torch"],
    cuda=built["cuda"], library=hashlib.sha256(library).hexdigest())))
"""


def wheel_for(python: Path) -> Path:
    """The wheel in dist/ for the interpreter's ABI; built there from the sources if need be."""
    tag = run(python, "-c", TAG).strip()
    if not (found := sorted(DIST.glob(f"*-{tag}-*.whl"))):
        (sources,) = DIST.glob("*.tar.gz")
        print(f"building the wheel for {tag}", flush=True)
        # One torch's headers for all interpreters, so that the operators are the same bytes.
        headers = {"CONVLM_TORCH_DIR": str(Path(importlib.util.find_spec("torch").origin).parent)}
        build = [python, *PIP, "wheel", "--no-deps", "--wheel-dir", DIST, sources]
        run(*build, env=os.environ | headers)
        found = sorted(DIST.glob(f"*-{tag}-*.whl"))
    (wheel,) = found
    return wheel


def install(python: Path) -> Environment:
    """Installs the wheel as it is, and what it depends on; says what was installed."""
    wheel = wheel_for(python)
    run(python, *PIP, "install", wheel)
    run(python, *PIP, "install", "--force-reinstall", "--no-deps", wheel)
    return Environment(**json.loads(run(python, "-c", FACTS, cwd="/")))


def test(python: Path, tests: Iterable[str]) -> list[Outcome]:
    """Runs the tests on the installed package, in a folder with nothing else in it."""
    with tempfile.TemporaryDirectory() as folder:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / "tests", Path(folder, "tests"), ignore=ignored)
        shutil.copy2(ROOT / "pyproject.toml", folder)
        paths = {path.name: path for path in Path(folder, "tests").rglob("test_*.py")}
        selected = []
        for function in dict.fromkeys(test.partition("[")[0] for test in tests):
            file, _, name = function.partition("::")
            selected.append(f"{paths[file]}::{name}")
        report = Path(folder, "report.xml")
        command = [python, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        subprocess.run([*command, f"--junitxml={report}", *selected], cwd=folder)
        if not report.is_file():
            raise SystemExit(f"{python} wrote no report of its tests")
        return outcomes(report)


# --- The table ------------------------------------------------------------------------------------


def markdown(columns: Mapping[Environment, Mapping[str, Row]]) -> str:
    """The page: environments as columns, tests as rows, reasons as notes below."""
    notes: list[str] = []

    def note(reason: str) -> str:
        if reason not in notes:
            notes.append(reason)
        return f"<sup>{notes.index(reason) + 1}</sup>"

    def cell(outcome: Row) -> str:
        if outcome.failed:
            return "**fails**" + "".join(map(note, outcome.failed))
        said = "".join(map(note, sorted(outcome.skipped)))
        return ("yes" if outcome.passed else "not run") + said

    environments = list(columns)
    lines = [
        f"| | {' | '.join(f'torch {e.torch}' for e in environments)} | tests |",
        f"| --- |{' --- |' * len(environments)} --- |",
        f"| Python | {' | '.join(e.python for e in environments)} | |",
        f"| build of torch | {' | '.join(e.kind for e in environments)} | |",
    ]
    for section, rows in ROWS.items():
        lines.append(f"| **{section}** |{' |' * (len(environments) + 1)}")
        for label, tests in rows.items():
            cells = [cell(columns[e][label]) for e in environments]
            names = ", ".join(f"`{name}`" for name in tests)
            lines.append(f"| {label} | {' | '.join(cells)} | {names} |")
    numbered = [f"{number}. {reason}" for number, reason in enumerate(notes, 1)]
    return "\n".join([*introduction(environments), *lines, "", *numbered, ""])


TRACERS = """\
What `torch.jit.trace` records are torch's own operators: while it looks on, layers with
`backend="auto"` run torch's convolution, and stacks run layer by layer. So a traced module runs
on torch's kernels, loads without this package and can be trained. With another `backend` only
what was traced without gradients can be saved, and loading it takes this package.
`torch.jit.script` compiles no layer of this package.

What `torch.export` makes keeps each call of ours whole and can be trained. What
`run_decompositions` makes of that, as AOTInductor and ONNX do, holds bare kernels: for inference.

`torch.fx` takes stacks apart into their layers. A `torch.fx.Tracer` whose `is_leaf_module` is
true of `DilatedStack` leaves them fused; to trace around a language model, make that a leaf.

""".splitlines()


def introduction(environments: Sequence[Environment]) -> list[str]:
    first = environments[0]
    code = "with CUDA code" if first.cuda else "without CUDA code"
    return [
        "# Compatibility",
        "",
        "Written by `make compat`, from the tests named in the last column; not to be edited.",
        f"One library of operators, {code}, compiled with the headers of torch",
        f"{first.built_with}, ran in all of these environments: the same bytes. Its wheel was",
        "installed beside each torch, and the tests ran outside the checkout, without a GPU.",
        "",
        *TRACERS,
    ]


def one_library(environments: Sequence[Environment]) -> None:
    """Raises where the operators' library is not the same file everywhere."""
    libraries = {e.library for e in environments}
    if len(libraries) > 1:
        each = "\n".join(f"{e.library[:12]} with Python {e.python}" for e in environments)
        raise SystemExit(f"the operators' library differs between wheels:\n{each}")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("pairs", nargs="+", metavar="PYTHON:TORCH")
    parser.add_argument("--section", choices=ROWS, action="append", help="only these rows")
    parser.add_argument("--write", type=Path, metavar="PAGE.md")
    args = parser.parse_args(argv)
    if args.write and args.section:
        parser.error("--write takes all sections")

    rows = {k: v for name in args.section or ROWS for k, v in ROWS[name].items()}
    columns: dict[Environment, dict[str, Row]] = {}
    for pair in args.pairs:
        python = interpreter(*pair.split(":"))
        environment = install(python)
        print(f"=== {environment}", flush=True)
        ran = test(python, [name for tests in rows.values() for name in tests])
        columns[environment] = {label: row(tests, ran) for label, tests in rows.items()}
    one_library(list(columns))
    if args.write:
        args.write.write_text(markdown(columns))
    failures = [f for column in columns.values() for r in column.values() for f in r.failed]
    print(*failures, sep="\n", file=sys.stderr)
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
