"""What a GPU does at best: large matrix products of each kind of numbers, and a large copy."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from gpu_timing import measure
from results import significant

KINDS = {
    "bfloat16": (torch.bfloat16, "ieee"),
    "float16": (torch.float16, "ieee"),
    "tf32": (torch.float32, "tf32"),
    "float32": (torch.float32, "ieee"),
    "float64": (torch.float64, "ieee"),
}


class Yardstick(NamedTuple):
    """What one problem is held to, in GFLOP/s and GB/s."""

    rate: float
    copy: float

    def peak(self, dtype: torch.dtype) -> float:
        return self.rate


class GpuCeilings(NamedTuple):
    matmul: dict[str, float]  # GFLOP/s by kind
    copy: float  # GB/s, read and written

    def of(self, dtype: torch.dtype, fp32_precision: str = "ieee") -> Yardstick:
        kind = str(dtype).removeprefix("torch.")
        if kind == "float32" and fp32_precision == "tf32":
            kind = "tf32"
        return Yardstick(self.matmul[kind], self.copy)

    def rounded(self) -> dict[str, Any]:
        """For a file of results, as those of a CPU."""
        return {
            "threads": 1,
            "by": "matrix products",
            "fma": {kind: significant(rate) for kind, rate in self.matmul.items()},
            "sgemm": significant(self.matmul["float32"]),
            "copy": significant(self.copy),
            "scaling": 1.0,
            "trusted": True,
        }

    def __str__(self) -> str:
        rates = ", ".join(f"{kind} {rate / 1e3:,.1f}" for kind, rate in self.matmul.items())
        return f"ceilings: matrix products {rates} TFLOP/s, copy {self.copy:,.0f} GB/s"


def measure_ceilings(device: torch.device, size: int | None = None) -> GpuCeilings:
    """Of products of ``size`` rows and columns, and a copy of a gigabyte; small on a CPU."""
    size = size or (8192 if device.type == "cuda" else 64)
    rates = {}
    for kind, (dtype, precision) in KINDS.items():
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        rates[kind] = 2 * size**3 / _best(lambda a=a, b=b: a @ b, device) / 1e9
    source = torch.ones(4 * size * size, device=device)
    target = torch.empty_like(source)
    seconds = _best(lambda: target.copy_(source), device)
    return GpuCeilings(rates, 2 * source.nbytes / seconds / 1e9)


def _best(call: Callable[[], object], device: torch.device) -> float:
    times, failed = measure({"": [call]}, device, budget=0.2, rounds=20)
    if failed:
        raise RuntimeError(f"a ceiling could not be measured: {failed['']}")
    return sorted(times[""])[len(times[""]) // 2]
