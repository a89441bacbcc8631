from typing import TypedDict

class BuildInfo(TypedDict):
    torch: str
    cuda: bool
    cuda_archs: str
    compiler: str

def build_info() -> BuildInfo: ...
def cpu_isa() -> str: ...
def cpu_isas() -> list[str]: ...
def cpu_kernel(
    function: str,
    dtype: str,
    batch: int,
    in_channels: int,
    out_channels: int,
    length: int,
    kernel_size: int,
    stride: int = 1,
    pad_left: int = 0,
    pad_right: int = 0,
    dilation: int = 1,
    groups: int = 1,
    fp32_precision: str = "ieee",
) -> str: ...
def cuda_kernel(
    dtype: str,
    batch: int,
    in_channels: int,
    out_channels: int,
    length: int,
    kernel_size: int,
    stride: int = 1,
    pad_left: int = 0,
    pad_right: int = 0,
    dilation: int = 1,
    groups: int = 1,
    fp32_precision: str = "ieee",
) -> str: ...
def output_length(
    length: int, kernel_size: int, stride: int, dilation: int, pad_left: int, pad_right: int
) -> int: ...
def input_position(out: int, tap: int, stride: int, dilation: int, pad_left: int) -> int: ...
def cuda_reason_stack_not_fused(
    dtype: str,
    channels: int,
    length: int,
    vocab: int,
    weights: list[tuple[int, int]],
    dilations: list[int],
    pads: list[int],
    gated: list[bool],
    capability: int,
) -> str | None: ...
def cuda_reason_contexts_not_shared(
    dtype: str,
    channels: int,
    length: int,
    vocab: int,
    weights: list[tuple[int, int]],
    dilations: list[int],
    pads: list[int],
    gated: list[bool],
    capability: int,
    batch: int,
) -> str | None: ...
