"""What a benchmark says: a table for the eye, and one small JSON file for each machine."""

import json
import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from environment import allocator

import convlm_kernels
from convlm_kernels import _host

HERE = Path(__file__).resolve().parent


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """First column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        first, *others = row
        cells = [first.ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        print("  ".join(cells).rstrip())


def machine() -> dict[str, Any]:
    """Where the figures come from, and from which version of what."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if platform.system() == "Linux" else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor() or platform.machine(),
        "cores": len(models) or torch.get_num_threads(),
        "isa": _host.cpu_isa(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "convlm_kernels": convlm_kernels.__version__,
        "commit": commit(),
        "allocator": allocator(),
    }


def commit() -> str:
    """The short hash of the checkout, with "+" where it was changed; "" outside one.

    Outside one it may be said by $CONVLM_COMMIT.
    """
    if said := os.environ.get("CONVLM_COMMIT"):
        return said
    git = ["git", "-C", str(HERE), "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def results_path(cpu: str) -> Path:
    """The file of this model of processor, beside the benchmarks."""
    slug = re.sub(r"[^a-z0-9]+", "-", cpu.lower()).strip("-")
    return HERE / "results" / f"cpu-{slug}.json"


def write_json(path: str | Path, results: Mapping[str, Any]) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(_layout(results, 3) + "\n")


def add_run(path: str | Path, run: Mapping[str, Any]) -> None:
    """Writes `run` in the place of an earlier one with the same allocator."""
    path = Path(path)
    runs = json.loads(path.read_text()) if path.is_file() else {}
    write_json(path, runs | {run["machine"]["allocator"]: run})


def _layout(value: Any, levels: int, indent: str = "") -> str:
    """JSON with one line for what lies `levels` deep: it diffs well, at a third of the size."""
    if not value or not levels or not isinstance(value, (dict, list)):
        return json.dumps(value)
    inner = indent + " "
    if isinstance(value, list):
        items, (left, right) = [_layout(item, levels - 1, inner) for item in value], "[]"
    else:
        items = [f"{json.dumps(k)}: {_layout(v, levels - 1, inner)}" for k, v in value.items()]
        left, right = "{}"
    return f"{left}\n{inner}" + f",\n{inner}".join(items) + f"\n{indent}{right}"


def significant(value: float, digits: int = 4) -> float:
    """`value` rounded to `digits` significant digits: more would be noise in every diff."""
    return float(f"{value:.{digits}g}")
