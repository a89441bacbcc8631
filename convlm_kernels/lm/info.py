"""What `convlm info` prints: versions, and which backends run here."""

import platform

import torch

import convlm_kernels

from .. import _host, backends
from ..geometry import Conv1dGeometry

# The middle layer of the seed's dilated model at its batch.
PROBLEM = Conv1dGeometry(
    batch=32,
    in_channels=100,
    out_channels=100,
    groups=1,
    length=22,
    kernel_size=2,
    stride=1,
    dilation=2,
    pad_left=0,
    pad_right=0,
)


def print_info() -> int:
    build = convlm_kernels.build_info()
    cuda = f"yes, for {build['cuda_archs']}" if build["cuda"] else "no"
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    facts = {
        "convlm_kernels": convlm_kernels.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "built with": f"torch {build['torch']}, {build['compiler']}",
        "CUDA kernels": cuda,
        "CUDA devices": ", ".join(devices) or "none",
        "CPU threads": str(torch.get_num_threads()),
        "CPU code": f"{_host.cpu_isa()} (can run {', '.join(_host.cpu_isas())})",
    }
    for name, fact in facts.items():
        print(f"{name:<15} {fact}")
    for kind in ("cpu", "cuda"):
        print(f"\nbackends on {kind}, float32")
        for name, can_run in backends.PREDICATES.items():
            reason = can_run(PROBLEM, torch.float32, torch.device(kind))
            if reason is None and kind == "cuda" and not devices:
                reason = "there is no CUDA device"
            print(f"  {name:<13} {'yes' if reason is None else f'no: {reason}'}")
    return 0
