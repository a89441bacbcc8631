"""What has become slower between two files of results, judged by ratios to the best peer.

    python benchmarks/compare.py OLD.json NEW.json
    make bench-compare OLD=... NEW=...

Times of two runs differ with the mood of a machine; ratios were measured by turns, in moments. A
row is slower, or quicker, where the ranges between its quartiles do not meet and the medians differ
by more than `--least`. Exit code: 0; 1 where a row is slower; 2 where the files share none.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from results import load
from tables import print_table

Key = tuple[str, ...]  # suite, name, function, threads, backend


class Change(NamedTuple):
    key: Key
    old: Mapping[str, Any]
    new: Mapping[str, Any]

    @property
    def factor(self) -> float:
        """Below 1 where the new ratio is the lower one."""
        return self.new["ratio"][1] / self.old["ratio"][1]

    def beyond(self, least: float) -> bool:
        """Whether it is more than noise."""
        (old_low, _, old_high), (new_low, _, new_high) = self.old["ratio"], self.new["ratio"]
        apart = new_high < old_low or old_high < new_low
        return apart and max(self.factor, 1 / self.factor) > 1 + least

    def cells(self) -> list[str]:
        ratios = (f"{row['ratio'][1]:.2f}x {row['best']}" for row in (self.old, self.new))
        suite, name, function, threads, backend = self.key
        return [f"{suite}: {name}", function, threads, backend, *ratios, f"{self.factor:.2f}"]


def rows_of(runs: Mapping[str, Any]) -> dict[Key, Mapping[str, Any]]:
    """Those with a peer."""
    return {
        (suite, row["name"], row["function"], str(row["threads"]), row.get("backend", "")): row
        for suite, run in runs.items()
        for row in run["rows"]
        if row["ratio"]
    }


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Change]:
    """Of the rows that both have, the worst first."""
    before, after = rows_of(old), rows_of(new)
    common = [Change(key, before[key], after[key]) for key in before if key in after]
    return sorted(common, key=lambda change: change.factor)


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What else is not the same in the two files, and may be the reason."""
    found = []
    for name in ("cpu", "isa", "gpu", "torch", "allocator"):
        was, is_ = (
            sorted({str(run["machine"].get(name)) for run in runs.values()}) for runs in (old, new)
        )
        if was != is_:
            found.append(f"{name}: {', '.join(was)} -> {', '.join(is_)}")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("old", type=Path, metavar="OLD.json")
    parser.add_argument("new", type=Path, metavar="NEW.json")
    parser.add_argument("--least", type=float, default=0.05, help="a change of note (default 0.05)")
    args = parser.parse_args(argv)
    old, new = load(args.old), load(args.new)
    common = changes(old, new)
    if not common:
        print("the two files have no row in common", file=sys.stderr)
        return 2
    print(*differences(old, new), sep="\n", end="\n" if differences(old, new) else "")
    beyond = [change for change in common if change.beyond(args.least)]
    slower = [change for change in beyond if change.factor < 1]
    for title, some in ("slower", slower), ("quicker", [c for c in beyond if c.factor > 1]):
        if some:
            header = [title, "function", "T", "backend", "was", "is", "factor"]
            print_table(header, [change.cells() for change in some])
    alone = rows_of(old).keys() ^ rows_of(new).keys()
    quicker = len(beyond) - len(slower)
    print(
        f"{len(common)} rows in both, {len(slower)} slower, {quicker} quicker, "
        f"{len(alone)} in one file only"
    )
    return int(bool(slower))


if __name__ == "__main__":
    sys.exit(main())
