"""Makes a table of configurations for the Triton kernels from what an exploration has found.

    CONVLM_TRITON_AUTOTUNE=1 CONVLM_TRITON_FINDINGS=findings.jsonl python ...
    python benchmarks/triton_table.py findings.jsonl

For each key it prints the configuration that is the least behind: the one with the smallest
geometric mean, over the problems, of its time as a multiple of the fastest's. Only configurations
that ran for every problem count. The lines go into TABLE in ``triton_kernels/configurations.py``.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from convlm_kernels.triton_kernels.configurations import Configuration, Key

Times = dict[str, dict[Configuration, float]]  # by problem


def read(lines: Iterable[str]) -> dict[Key, Times]:
    times: dict[Key, Times] = defaultdict(lambda: defaultdict(dict))
    for line in lines:
        finding = json.loads(line)
        problem, configuration = str(finding["problem"]), Configuration(*finding["configuration"])
        times[Key(*finding["key"])][problem][configuration] = finding["milliseconds"]
    return times


def least_behind(times: Times) -> tuple[Configuration, float]:
    """The configuration, and how many times as long as the fastest it takes."""
    common = set.intersection(*(set(of_problem) for of_problem in times.values()))

    def behind(configuration: Configuration) -> float:
        ratios = [t[configuration] / min(t.values()) for t in times.values()]
        return math.exp(sum(map(math.log, ratios)) / len(ratios))

    best = min(sorted(common), key=behind)
    return best, behind(best)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("findings", type=Path, nargs="+", metavar="FINDINGS.jsonl")
    lines = [
        line for path in parser.parse_args().findings for line in path.read_text().splitlines()
    ]
    for key, times in sorted(read(lines).items()):
        configuration, behind = least_behind(times)
        print(f"{key.kernel}, {key.kind}: {len(times)} problems, {behind:.2f} times the fastest")
        print(f"    {key.rows}: Configuration{tuple(configuration)},")


if __name__ == "__main__":
    main()
