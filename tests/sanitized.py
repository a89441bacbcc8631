"""Builds the CPU library under a sanitizer, apart from the ordinary build, and runs tests on it.

python tests/sanitized.py address,undefined
python tests/sanitized.py thread tests/test_ops.py -k threads
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("convlm_kernels", "csrc", "tests", "setup.py", "pyproject.toml", "README.md", "LICENSE")

# By the first sanitizer's name: the library to load before Python, the tests to run where none are
# named, and the options under which a report ends the process.
RUNTIME = {"address": "libasan.so", "thread": "libtsan.so"}
TESTS = {
    "address": ["tests/test_ops.py", "tests/test_fuzz.py", "-k", "not isa and not opcheck"],
    "thread": ["tests/test_ops.py", "-k", "number_of_threads"],
}
OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0:halt_on_error=1",
    "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
    # Python and torch are not instrumented: what happens in them alone is not ours to judge.
    "TSAN_OPTIONS": "halt_on_error=1:ignore_noninstrumented_modules=1",
}


def build(sanitizer: str) -> Path:
    """A copy of the sources in build/, where only what has changed is compiled again."""
    copy = ROOT / "build" / f"sanitized-{sanitizer.replace(',', '-')}"
    for name in COPIED:
        source, target = ROOT / name, copy / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            ignored = shutil.ignore_patterns("*.so", "__pycache__")
            shutil.copytree(source, target, dirs_exist_ok=True, ignore=ignored)
        else:
            shutil.copy2(source, target)
    environment = os.environ | {"CONVLM_SANITIZE": sanitizer, "CONVLM_CUDA": "0"}
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    subprocess.run(command, cwd=copy, env=environment, check=True, stdout=subprocess.DEVNULL)
    return copy


def library(name: str) -> str:
    """Where the compiler has it."""
    command = ["gcc", f"-print-file-name={name}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def main(sanitizer: str, *arguments: str) -> int:
    kind = sanitizer.partition(",")[0]
    if kind not in RUNTIME:
        raise SystemExit(f"the sanitizer must be one of {', '.join(RUNTIME)}, got {sanitizer!r}")
    copy = build(sanitizer)
    # The C++ library too, or the sanitizer would not find the function that throws.
    preload = " ".join(map(library, (RUNTIME[kind], "libstdc++.so.6")))
    # The package in this copy, not the one that is installed.
    environment = os.environ | OPTIONS | {"LD_PRELOAD": preload, "PYTHONPATH": str(copy)}
    tests = list(arguments) or TESTS[kind]
    # -s, or a report would end with the process in pytest's hands
    command = [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", *tests]
    return subprocess.run(command, cwd=copy, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
