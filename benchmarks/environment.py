"""The process that a benchmark runs in: its allocator and where its threads may run.

Both are settled before a process starts, so a benchmark replaces itself by one that has them.

By default glibc gives every block above 32 MB back to the system and faults it in anew at the next
call. On a virtual machine a fault costs about 2 us per 4 KB: filling a new 34 MB tensor takes ten
times as long as filling one that exists, and whoever allocates less looks faster than it computes.
With `TUNABLES` freed memory stays with the process, and without a cache of small blocks it is also
found again: an aligned block leaves a splinter beside it, and one that lies in the cache keeps its
neighbours from growing together. Both are true of some user: results say which.

Threads are bound because two of them may otherwise share a core for a while.
"""

import os
import platform
import sys

TUNABLES = (
    "glibc.malloc.mmap_threshold=4294967296"
    ":glibc.malloc.trim_threshold=4294967296"
    ":glibc.malloc.top_pad=268435456"
    ":glibc.malloc.tcache_count=0"
)
CPUS = "CONVLM_BENCH_CPUS"


def enter(tuned_allocator: bool, threads: int) -> None:
    """Runs this command again in the environment asked for, unless this is it."""
    wanted = {}
    if threads > 1:
        wanted["OMP_PROC_BIND"] = "true"
    if tuned_allocator:
        if platform.libc_ver()[0] != "glibc":
            sys.exit("only glibc can be told to keep freed memory: bench.py --default-allocator")
        wanted["GLIBC_TUNABLES"] = TUNABLES
    if all(os.environ.get(name) == value for name, value in wanted.items()):
        return
    # A bound process sees only the processor of its first thread, but the ceilings use them all.
    wanted[CPUS] = ",".join(map(str, os.sched_getaffinity(0)))
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | wanted)


def allocator() -> str:
    """ "tuned" or "default"."""
    return "tuned" if os.environ.get("GLIBC_TUNABLES") == TUNABLES else "default"


def processors() -> list[int]:
    """The numbers of those that this process was started on."""
    if listed := os.environ.get(CPUS):
        return [int(number) for number in listed.split(",")]
    return sorted(os.sched_getaffinity(0))
