"""Which backend runs what.

Each ``can_run_<backend>(geometry, dtype, device)`` returns None, or the reason why not. Dispatch,
test skips, benchmarks and the command line all ask these predicates, so there is one truth.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch

from ._library import build_info
from .geometry import Conv1dGeometry

BACKENDS = ("cpp", "cuda", "triton", "torch")

KERNEL_DTYPES = frozenset({torch.float32, torch.float64, torch.bfloat16, torch.float16})

_BUILT_WITH_CUDA = build_info()["cuda"]

Predicate = Callable[[Conv1dGeometry, torch.dtype, torch.device], str | None]


def _dtype_reason(dtype: torch.dtype) -> str | None:
    if dtype in KERNEL_DTYPES:
        return None
    allowed = ", ".join(sorted(str(d).removeprefix("torch.") for d in KERNEL_DTYPES))
    return f"dtype {str(dtype).removeprefix('torch.')} is not one of {allowed}"


def _gpu_reason(device: torch.device) -> str | None:
    if not torch.cuda.is_available():
        return "torch finds no CUDA device"
    capability = torch.cuda.get_device_capability(device)
    if capability < (8, 0):
        return f"compute capability {capability[0]}.{capability[1]} is below 8.0"
    return None


def can_run_cpp(geometry: Conv1dGeometry, dtype: torch.dtype, device: torch.device) -> str | None:
    """C++ kernels: every geometry. A meta tensor has a shape only, which the operators know."""
    if device.type not in ("cpu", "meta"):
        return f"the C++ kernels run on the CPU, not on {device.type}"
    return _dtype_reason(dtype)


def can_run_cuda(geometry: Conv1dGeometry, dtype: torch.dtype, device: torch.device) -> str | None:
    """CUDA kernels: every geometry, on GPUs from compute capability 8.0 on."""
    return reason_no_cuda_kernels(dtype, device)


def reason_no_cuda_kernels(dtype: torch.dtype, device: torch.device) -> str | None:
    if device.type != "cuda":
        return f"the CUDA kernels run on CUDA devices, not on {device.type}"
    if not _BUILT_WITH_CUDA:
        return "this build has no CUDA kernels"
    return _gpu_reason(device) or _dtype_reason(dtype)


def can_run_steps(device: torch.device) -> str | None:
    """The kernels of a step: on the CPU, and on GPUs from compute capability 8.0 on."""
    if device.type == "cpu":
        return None
    if device.type != "cuda":
        return f"the kernels of a step run on the CPU and on CUDA devices, not on {device.type}"
    return reason_no_cuda_kernels(torch.float32, device)  # or any other that a step may have


def is_traced() -> bool:
    """Whether torch.jit.trace looks on, which can neither record nor save our gradients.

    "auto" then is torch's own, and what was traced runs where this package is not.
    """
    return torch._C._is_tracing()


is_traced._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _triton() -> tuple[str | None, bool]:
    """Imports the Triton kernels: why that cannot be, and whether the interpreter runs them."""
    try:
        from . import triton_ops, triton_stack_ops  # noqa: F401
    except ImportError as error:
        if error.name != "triton":
            raise
        return "Triton is not installed: pip install 'triton>=3.6'", False
    return None, triton_ops.INTERPRETED


# Imported while torch.compile traces, instead of being traced.
_triton._dynamo_marked_constant = True  # type: ignore[attr-defined]


def can_run_triton(
    geometry: Conv1dGeometry, dtype: torch.dtype, device: torch.device
) -> str | None:
    """Triton kernels: every geometry, on GPUs from compute capability 8.0 on.

    With TRITON_INTERPRET=1 also on the CPU, slowly: that is how they are tested without a GPU.
    """
    return reason_no_triton_kernels(dtype, device)


def reason_no_triton_kernels(dtype: torch.dtype, device: torch.device) -> str | None:
    reason, interpreted = _triton()
    if reason is not None:
        return reason
    if device.type == "cpu" and interpreted:
        return _dtype_reason(dtype)
    if device.type != "cuda":
        return f"the Triton kernels run on CUDA devices, not on {device.type}"
    return _gpu_reason(device) or _dtype_reason(dtype)


def can_run_torch(geometry: Conv1dGeometry, dtype: torch.dtype, device: torch.device) -> str | None:
    """ATen, the yardstick: whatever torch itself runs."""
    return None


PREDICATES: dict[str, Predicate] = {
    "cpp": can_run_cpp,
    "cuda": can_run_cuda,
    "triton": can_run_triton,
    "torch": can_run_torch,
}


# "auto" takes the first that can run the problem.
AUTO_ORDER = (
    "cpp",  # float32 and float64 measured faster; fused activation
    # cuda and triton, once they are measured; until then they run only where they are asked for.
    "torch",  # correct everywhere; says so once for each device
)


def check_name(backend: str) -> None:
    """ValueError unless ``backend`` is "auto" or one of BACKENDS."""
    if backend != "auto" and backend not in BACKENDS:
        raise ValueError(f"backend must be 'auto' or one of {BACKENDS}, got {backend!r}")


def select(backend: str, geometry: Conv1dGeometry, dtype: torch.dtype, device: torch.device) -> str:
    """The backend that runs this problem: ``backend`` itself, or the choice of "auto".

    Raises:
        ValueError: an unknown backend.
        TypeError: "auto" with a dtype that is not one of float32, float64, bfloat16, float16.
        RuntimeError: an explicit backend that cannot run the problem, with its reason.
    """
    if backend == "auto":
        return _select_auto(geometry, dtype, device)
    check_name(backend)
    reason = PREDICATES[backend](geometry, dtype, device)
    if reason is not None:
        raise RuntimeError(f"backend={backend!r} cannot run this convolution: {reason}")
    return backend


def _select_auto(geometry: Conv1dGeometry, dtype: torch.dtype, device: torch.device) -> str:
    dtype_reason = _dtype_reason(dtype)
    if dtype_reason is not None:
        raise TypeError(f"{dtype_reason} (backend='torch' runs whatever torch does)")
    if is_traced():
        return "torch"
    chosen = next(
        backend for backend in AUTO_ORDER if PREDICATES[backend](geometry, dtype, device) is None
    )
    if chosen == "torch":
        _say_once_that_there_is_no_kernel(device.type)
    return chosen


_devices_warned: set[str] = set()


def _say_once_that_there_is_no_kernel(device_type: str) -> None:
    if device_type in _devices_warned:
        return
    _devices_warned.add(device_type)
    warnings.warn(
        f"convlm_kernels has no kernel for device {device_type!r} that it is known to be faster "
        "with; convolutions there are torch's own (backend='torch' says so without this warning)",
        UserWarning,
        stacklevel=6,
    )


# torch.compile then calls it while it traces, instead of failing on the warning. The same as
# torch.compiler.assume_constant_result, which takes a second to import.
_say_once_that_there_is_no_kernel._dynamo_marked_constant = True  # type: ignore[attr-defined]
