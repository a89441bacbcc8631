"""What each CUDA kernel takes of a multiprocessor, as the assembler reported it in the last build.

    make cuda-resources                                        # build, print, and write the page
    python tools/cuda_resources.py --check docs/cuda-resources.md

Fails on a kernel that keeps registers in memory (spills) and is not allowed to below, and, with
--check, on a page that lists other kernels than there are. The PTX that is for future GPUs is
judged by what the assembler makes of it for its own architecture.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from kernel_names import demangle, readable, without_dtype

ROOT = Path(__file__).resolve().parent.parent

# What is built by default: 8.0, 9.0a, and PTX for 9.0, which must have been assembled as well.
ARCHS = ("sm_80", "sm_90a", "sm_90")

# By source and name, with the reason why it does not matter there.
MAY_SPILL = {
    "direct.cu correlate_kernel": "registers kept across the calls of the 64-bit division",
    "implicit_gemm.cu weight_gradient_kernel": "four words of 255 on 8.0, kept over a stage",
}


class Usage(NamedTuple):
    source: str
    kernel: str
    dtype: str
    arch: str
    registers: int
    shared: int  # bytes, without those that a launch asks for
    stack: int
    spilled: int  # bytes stored and loaded

    @property
    def name(self) -> str:
        """As in MAY_SPILL."""
        return f"{self.source} {self.kernel.partition('<')[0]}"

    @property
    def spills(self) -> bool:
        return bool(self.spilled or self.stack)


def parse(source: str, report: str) -> list[Usage]:
    """The entry functions in what ``ptxas -v`` printed for one source file."""
    found = []
    for entry in report.split("Compiling entry function ")[1:]:
        symbol, arch = re.match(r"'(\S+)' for '(\w+)'", entry).groups()
        kernel, dtype = without_dtype(readable(demangle(symbol)))

        def total(pattern: str, entry: str = entry) -> int:
            return sum(map(int, re.findall(pattern, entry)))  # of the functions it calls, too

        found.append(
            Usage(
                source,
                kernel,
                dtype,
                arch,
                total(r"Used (\d+) registers"),
                total(r"(\d+) bytes smem"),
                total(r"(\d+) bytes stack frame"),
                total(r"(\d+) bytes spill"),
            )
        )
    return found


def read_reports(build: Path, sources: Iterable[Path]) -> list[Usage]:
    found = []
    for source in sources:
        report = build / f"cuda/{source.name}.o.log"
        if not report.is_file():
            raise SystemExit(f"{report} is missing: build with CUDA first (make cuda-resources)")
        usages = parse(source.name, report.read_text())
        archs = {usage.arch for usage in usages}
        if usages and archs != set(ARCHS):
            raise SystemExit(
                f"{source.name} was built for {', '.join(sorted(archs))}, and this is about "
                f"{', '.join(ARCHS)}: make cuda-resources builds for those"
            )
        found += usages
    return found


def complaints(usages: Sequence[Usage], may_spill: dict[str, str]) -> list[str]:
    spilling = [usage for usage in usages if usage.spills]
    unneeded = may_spill.keys() - {usage.name for usage in spilling}
    return [
        f"{usage.kernel} {usage.dtype} for {usage.arch} in {usage.source}: "
        f"{usage.spilled} bytes spilled, {usage.stack} bytes of stack"
        for usage in spilling
        if usage.name not in may_spill
    ] + [f"{name} does not spill: take it out of MAY_SPILL" for name in sorted(unneeded)]


HEADER = ["source", "kernel", "dtype", "registers", "static shared", "stack", "spilled"]


def table(usages: Sequence[Usage]) -> list[list[str]]:
    """A row for each kernel and dtype; numbers that differ between architectures side by side."""
    kernels: dict[tuple[str, str, str], list[Usage]] = {}
    for usage in usages:
        kernels.setdefault((usage.source, usage.kernel, usage.dtype), []).append(usage)

    def side_by_side(several: list[Usage], field: str) -> str:
        values = {usage.arch: str(getattr(usage, field)) for usage in several}
        ordered = [values.get(arch, "-") for arch in ARCHS]
        return ordered[0] if len(set(ordered)) == 1 else " / ".join(ordered)

    fields = ("registers", "shared", "stack", "spilled")
    return [
        [*key, *(side_by_side(several, field) for field in fields)]
        for key, several in sorted(kernels.items())
    ]


def markdown(rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in (HEADER, ["---"] * len(HEADER), *rows)]
    allowed = [f"- `{name}`: {reason}." for name, reason in MAY_SPILL.items()]
    return "\n".join(
        [
            "# What the CUDA kernels take of a multiprocessor",
            "",
            "Written by `make cuda-resources` from the assembler's report; not to be edited.",
            f"Three numbers are those of {', '.join(ARCHS)}; the last is what becomes of the PTX.",
            "Registers of a thread; the rest in bytes. Shared memory that a launch asks for, which",
            "is all that there is, is not known to the assembler.",
            "",
            *lines,
            "",
            "Allowed to spill:",
            "",
            *allowed,
            "",
        ]
    )


def kernels_on(page: str) -> set[tuple[str, ...]]:
    """Source, kernel and dtype of each row."""
    rows = re.findall(r"^\| ([^|]+\.cu) \| ([^|]+) \| ([^|]*) \|", page, re.MULTILINE)
    return {tuple(cell.strip() for cell in row) for row in rows}


def differences(page: str, rows: Sequence[Sequence[str]]) -> list[str]:
    wanted, there = {tuple(row[:3]) for row in rows}, kernels_on(page)
    return [f"not on the page: {' '.join(key)}" for key in sorted(wanted - there)] + [
        f"on the page, but there is none: {' '.join(key)}" for key in sorted(there - wanted)
    ]


def last_build() -> Path:
    builds = sorted(ROOT.glob("build/ninja-*"), key=lambda path: path.stat().st_mtime)
    return builds[-1] if builds else ROOT / "build/ninja"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--write", metavar="PAGE.md", type=Path)
    parser.add_argument("--check", metavar="PAGE.md", type=Path)
    args = parser.parse_args(argv)

    usages = read_reports(last_build(), sorted(ROOT.glob("csrc/cuda/*.cu")))
    rows = table(usages)
    widths = [max(map(len, column)) for column in zip(HEADER, *rows, strict=True)]
    for row in (HEADER, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)))
    if args.write:
        args.write.write_text(markdown(rows))
    found = complaints(usages, MAY_SPILL)
    if args.check:
        page = args.check.read_text() if args.check.is_file() else ""
        found += [f"{args.check}: {text} (make cuda-resources)" for text in differences(page, rows)]
    if found:
        raise SystemExit("\n".join(found))


if __name__ == "__main__":
    main()
