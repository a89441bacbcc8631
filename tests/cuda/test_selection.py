"""Which CUDA kernel each family of problems gets."""

from __future__ import annotations

import pytest

from convlm_kernels import _host


def kernel(dtype: str, precision: str = "ieee", **geometry: int) -> str:
    problem = {"batch": 8, "in_channels": 64, "out_channels": 64, "length": 4096, "kernel_size": 3}
    return _host.cuda_kernel(dtype, fp32_precision=precision, **(problem | geometry))


DENSE = [
    {},
    {"in_channels": 512, "out_channels": 512, "dilation": 64, "pad_left": 128},
    {"in_channels": 64, "out_channels": 128, "stride": 3, "dilation": 4},
    {"in_channels": 100, "out_channels": 28, "kernel_size": 2, "dilation": 4},
    {"kernel_size": 51, "in_channels": 15, "out_channels": 15, "dilation": 8},
    {"groups": 8, "batch": 1, "length": 77},
    {"kernel_size": 1, "in_channels": 8, "out_channels": 8},
]


@pytest.mark.parametrize("geometry", DENSE)
def test_dense_problems_are_tiled(geometry: dict[str, int]) -> None:
    assert kernel("bfloat16", **geometry) == "implicit_gemm"
    assert kernel("float16", **geometry) == "implicit_gemm"
    assert kernel("float32", "tf32", **geometry) == "implicit_gemm"
    assert kernel("float32", **geometry) == "register_tile"
    assert kernel("float64", **geometry) == "register_tile"
    assert kernel("float64", "tf32", **geometry) == "register_tile"


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
def test_few_channels_would_leave_tiles_empty(dtype: str) -> None:
    for geometry in (
        {"in_channels": 7},
        {"out_channels": 7},
        {"in_channels": 12, "out_channels": 12, "groups": 4},
        {"in_channels": 1, "out_channels": 28, "kernel_size": 80, "stride": 10},
    ):
        assert kernel(dtype, **geometry) not in ("implicit_gemm", "register_tile")
