"""What this machine can do at best, measured where the problems are: the yardsticks of "share".

python benchmarks/ceilings.py --threads 2
"""

import argparse
import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import torch
from environment import processors
from timing import calibrate, timed

Peak = Callable[[int], float]

DTYPES = (torch.float32, torch.float64, torch.bfloat16)


class Ceilings(NamedTuple):
    threads: int
    fma: dict[str, float]  # GFLOP/s of multiply-adds in registers, by dtype; empty: no compiler
    sgemm: float  # GFLOP/s of a square float32 matrix product of torch's
    copy: float  # GB/s, read and written, of torch copying a tensor larger than the caches
    scaling: float  # how many times the float32 rate of one thread the threads together reach

    def peak(self, dtype: torch.dtype) -> float:
        """GFLOP/s; that of float32 for a 16-bit dtype without instructions of its own."""
        name = str(dtype).removeprefix("torch.")
        return self.fma.get(name, self.fma.get("float32", self.sgemm))

    @property
    def trusted(self) -> bool:
        """Whether each thread had a core to itself, as two threads on one core do not."""
        return self.scaling >= 0.95 * self.threads

    def rounded(self) -> dict[str, Any]:
        """For a file of results."""
        return {
            "threads": self.threads,
            "fma": {dtype: round(rate, 1) for dtype, rate in self.fma.items()},
            "sgemm": round(self.sgemm, 1),
            "copy": round(self.copy, 1),
            "scaling": round(self.scaling, 2),
            "trusted": self.trusted,
        }

    def best(self, other: "Ceilings") -> "Ceilings":
        """A ceiling is the most that was seen; trust, the least."""
        return Ceilings(
            self.threads,
            {dtype: max(rate, other.fma[dtype]) for dtype, rate in self.fma.items()},
            max(self.sgemm, other.sgemm),
            max(self.copy, other.copy),
            min(self.scaling, other.scaling),
        )


@cache
def peaks() -> dict[str, Peak]:
    """The functions of fma_peak.c, by dtype; empty, with a message, where they do not compile."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("g++")
    if not compiler:
        return _without_peaks("no C compiler (cc, g++ or $CC) is there to measure it with")
    source = Path(__file__).with_name("fma_peak.c")
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "fma_peak.so"
        flags = ["-O3", "-march=native", "-ffp-contract=fast", "-shared", "-fPIC", "-x", "c"]
        command = [*compiler.split(), *flags, str(source), "-o", str(library)]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
            loaded = ctypes.CDLL(str(library))
        except (OSError, subprocess.CalledProcessError) as error:
            return _without_peaks(getattr(error, "stderr", "") or str(error))
    found: dict[str, Peak] = {}
    for dtype in DTYPES:
        name = str(dtype).removeprefix("torch.")
        function = getattr(loaded, f"peak_{name}")
        function.argtypes, function.restype = [ctypes.c_long], ctypes.c_double
        if function(1):
            found[name] = function
    return found


def _without_peaks(reason: str) -> dict[str, Peak]:
    print(f"FMA peak unknown, sgemm's rate takes its place: {reason.strip()}", file=sys.stderr)
    return {}


def fma_rate(peak: Peak, threads: int, seconds: float = 0.05) -> float:
    """GFLOP/s of `threads` threads at once, each on a processor of its own."""
    cpus = processors()
    barrier = threading.Barrier(threads)
    spans, flops = [(0.0, 0.0)] * threads, [0.0] * threads
    steps = calibrate(lambda: peak(1000), seconds) * 1000

    def work(index: int) -> None:
        if threads > 1:
            os.sched_setaffinity(0, {cpus[index % len(cpus)]})
        barrier.wait()
        begin = perf_counter()
        flops[index] = peak(steps)
        spans[index] = begin, perf_counter()

    workers = [threading.Thread(target=work, args=(index,)) for index in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    begins, ends = zip(*spans, strict=True)
    return sum(flops) / (max(ends) - min(begins)) / 1e9


def best_time(call: Callable[[], object], repeats: int) -> float:
    call()
    return min(timed(call, 1) for _ in range(repeats))


def measure_ceilings(threads: int, repeats: int = 5) -> Ceilings:
    """With torch's number of threads, which this leaves at `threads`. Takes about two seconds."""
    torch.set_num_threads(threads)
    fma, scaling = {}, float(threads)
    for name, peak in peaks().items():
        together = [fma_rate(peak, threads) for _ in range(repeats)]
        fma[name] = max(together)
        if name == "float32" and threads > 1:
            scaling = fma[name] / max(fma_rate(peak, 1) for _ in range(repeats))
    size = 1536
    a, b = torch.randn(size, size), torch.randn(size, size)
    c = torch.empty(size, size)
    sgemm = 2 * size**3 / best_time(lambda: torch.mm(a, b, out=c), repeats) / 1e9
    source, target = torch.ones(2**26), torch.zeros(2**26)
    # More often: neighbours share the memory, but not the arithmetic.
    copied = 2 * source.nbytes / best_time(lambda: target.copy_(source), 4 * repeats) / 1e9
    return Ceilings(threads, fma, sgemm, copied, scaling)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=1)
    ceilings = measure_ceilings(parser.parse_args().threads)
    for dtype, rate in ceilings.fma.items():
        print(f"{dtype} multiply-adds {rate:8.1f} GFLOP/s")
    print(f"sgemm {ceilings.sgemm:8.1f} GFLOP/s, copy {ceilings.copy:.1f} GB/s")
    print(f"{ceilings.threads} threads reach {ceilings.scaling:.2f} times the rate of one")


if __name__ == "__main__":
    main()
