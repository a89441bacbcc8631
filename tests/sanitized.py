"""Builds the CPU library under a sanitizer, apart from the ordinary build, and runs tests on it.

python tests/sanitized.py address,undefined
python tests/sanitized.py thread tests/test_ops.py -k threads
python tests/sanitized.py --quick address      # portable code alone and a few tests, half a minute
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
    "address": [
        "tests/test_ops.py",
        "tests/test_ops_errors.py",
        "tests/test_fuzz.py",
        "-k",
        "not isa and not opcheck",
    ],
    "thread": ["tests/test_ops.py", "-k", "number_of_threads"],
}
QUICK_TESTS = {
    "address": ["tests/test_ops.py", "-k", "b4_i100_o28 or b3_i3_o4 or b2_i3_o5_l1_"],
    "thread": ["tests/test_ops.py", "-k", "number_of_threads and b4_i24_o40 and float32"],
}
OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0:halt_on_error=1",
    "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
    # Python and torch are not instrumented: what happens in them alone is not ours to judge.
    "TSAN_OPTIONS": "halt_on_error=1:ignore_noninstrumented_modules=1",
}


def build(sanitizer: str, quick: bool) -> Path:
    """A copy of the sources in build/, where only what has changed is compiled again."""
    folder = f"sanitized-{sanitizer.replace(',', '-')}" + ("-quick" if quick else "")
    copy = ROOT / "build" / folder
    for name in COPIED:
        source, target = ROOT / name, copy / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            ignored = shutil.ignore_patterns("*.so", "__pycache__")
            shutil.copytree(source, target, dirs_exist_ok=True, ignore=ignored)
        else:
            shutil.copy2(source, target)
    environment = os.environ | {"CONVLM_SANITIZE": sanitizer, "CONVLM_CUDA": "0"}
    environment["CONVLM_PORTABLE"] = str(int(quick))
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    subprocess.run(command, cwd=copy, env=environment, check=True, stdout=subprocess.DEVNULL)
    return copy


def library(name: str) -> str:
    """Where the compiler has it."""
    command = ["gcc", f"-print-file-name={name}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def main(*arguments: str) -> int:
    quick = arguments[0] == "--quick"
    sanitizer, *tests = arguments[quick:]
    kind = sanitizer.partition(",")[0]
    if kind not in RUNTIME:
        raise SystemExit(f"the sanitizer must be one of {', '.join(RUNTIME)}, got {sanitizer!r}")
    copy = build(sanitizer, quick)
    # The C++ library too, or the sanitizer would not find the function that throws.
    preload = " ".join(map(library, (RUNTIME[kind], "libstdc++.so.6")))
    # The package in this copy, not the one that is installed.
    environment = os.environ | OPTIONS | {"LD_PRELOAD": preload, "PYTHONPATH": str(copy)}
    tests = tests or (QUICK_TESTS if quick else TESTS)[kind]
    # -s, or a report would end with the process in pytest's hands
    command = [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", *tests]
    return subprocess.run(command, cwd=copy, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
