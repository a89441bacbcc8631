"""The files of results: one small JSON for each kind of machine, with a run of each suite."""

import json
import os
import platform
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from environment import allocator

import convlm_kernels
from convlm_kernels import _host

HERE = Path(__file__).resolve().parent


def machine() -> dict[str, Any]:
    """Where the figures come from, and from which version of what."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if platform.system() == "Linux" else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cpu = models[0] if models else platform.processor() or platform.machine()
    return {
        "cpu": re.sub(r"\((R|TM)\)", "", cpu),
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


def results_path(machine: Mapping[str, Any]) -> Path:
    """The file of a model of processor, its instruction set and, unless tuned, the allocator.

    Clouds give one name to processors of several generations.
    """
    parts = ["cpu", machine["cpu"], machine["isa"]]
    if machine["allocator"] != "tuned":
        parts += [machine["allocator"], "allocator"]
    slug = re.sub(r"[^a-z0-9]+", "-", " ".join(parts).lower()).strip("-")
    return HERE / "results" / f"{slug}.json"


def load(path: str | Path) -> dict[str, Any]:
    """The run of each suite, by its name.

    Raises:
        SystemExit: there is no such file, or it holds something else.
    """
    try:
        runs = json.loads(Path(path).read_text())
        for run in runs.values():
            run["rows"], run["machine"], run["unit"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SystemExit(f"{path} holds no results of benchmarks: {error!r}") from None
    return runs


def write_json(path: str | Path, results: Mapping[str, Any]) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(_layout(results, 3) + "\n")


def add_runs(path: str | Path, runs: Mapping[str, Any]) -> None:
    """Writes each run in the place of an earlier one of the same suite."""
    earlier = load(path) if Path(path).is_file() else {}
    write_json(path, earlier | dict(runs))


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
