"""Compiles the Triton kernels without a GPU, and says what they take of one.

    python benchmarks/triton_resources.py --write docs/triton.md

Launchers run as always, on tensors without data; only the last step is replaced: where a kernel
would be launched, it is compiled for the architecture asked for. So what is compiled is what runs,
with the same constants and the same knowledge of alignments.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget

from convlm_kernels.geometry import Conv1dGeometry
from convlm_kernels.triton_kernels import functions, launch, lookup, stack
from convlm_kernels.triton_kernels.configurations import TABLE, Configuration, Key
from convlm_kernels.triton_kernels.stack_plan import Layer, saved_size

ARCHITECTURES = (80, 90)
# Of one program, in bytes: what CUDA allows on an A100 and on an H100.
SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024}

DTYPES = {
    "half": torch.bfloat16,
    "tf32": torch.float32,
    "ieee": torch.float32,
    "float64": torch.float64,
}
LOOKUPS = ("lookup", "lookup_grad_table")
STACKS = ("stack_forward", "stack_backward", "stack_grad_weight")
FUNCTIONS = {
    "correlation": ("forward", "grad_input"),
    "described_correlation": ("forward", "grad_input"),  # channels last, on Hopper
    "weight_gradient": ("grad_weight",),
}


class Target(NamedTuple):
    """One compilation; ``activation`` is fused, as its derivative in the gradients."""

    function: str
    kind: str
    rows: int
    architecture: int
    activation: str = "none"
    channels_last: bool = False
    depthwise: bool = False

    def __str__(self) -> str:
        words = [self.function, self.kind, f"rows{self.rows}", f"sm{self.architecture}"]
        words += [self.activation] * (self.activation != "none")
        words += ["channels_last"] * self.channels_last + ["depthwise"] * self.depthwise
        return "-".join(words)

    @property
    def meets_wgmma(self) -> bool:
        """Tensor cores by warp groups: tiles of 64 rows and more, on Hopper."""
        fits = self.rows >= 64 and self.kind in ("half", "tf32")
        return fits and self.architecture == 90 and not self.depthwise


class Resources(NamedTuple):
    kernel: str
    blocks: Configuration
    registers: int
    shared: int
    spills: int
    wgmma: int
    tma: bool


class _NoDriver:
    """What Triton asks a driver for before it compiles."""

    def __init__(self, architecture: int) -> None:
        self.architecture = architecture

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.architecture, 32)

    def get_current_device(self) -> int:
        return self.architecture  # what kernels are cached under

    def get_current_stream(self, device: int) -> int:
        return 0


def _empty(dtype: torch.dtype, *shape: int, channels_last: bool = False) -> Tensor:
    if not channels_last:
        return torch.empty(shape, dtype=dtype, device="meta")
    batch, channels, length = shape
    return torch.empty((batch, length, channels), dtype=dtype, device="meta").transpose(1, 2)


def _call(target: Target) -> None:
    """A layer as language models have it: causal, dilated, three taps."""
    if target.function in LOOKUPS:
        _call_lookup(target)
        return
    if target.function in STACKS:
        _call_stack(target)
        return
    rows, dtype = target.rows, DTYPES[target.kind]
    channels, groups = (rows, rows) if target.depthwise else (max(64, rows), 1)
    channels_in, channels_out = channels, rows
    if target.function == "grad_input":
        channels_in, channels_out = rows, channels
    geometry = Conv1dGeometry(8, channels_in, channels_out, groups, 4096, 3, 1, 4, 8, 0)
    x = _empty(dtype, 8, channels_in, 4096, channels_last=target.channels_last)
    y = _empty(dtype, 8, channels_out, 4096, channels_last=target.channels_last)
    weight, bias = (
        _empty(dtype, channels_out, channels_in // groups, 3),
        _empty(dtype, channels_out),
    )
    precision = "tf32" if target.kind == "tf32" else "ieee"
    through = None if target.activation == "none" else y
    if target.function == "forward":
        out = _empty(dtype, 8, channels_out, 4096)
        functions.forward(out, x, weight, bias, geometry, precision, target.activation)
    elif target.function == "grad_input":
        out = _empty(dtype, 8, channels_in, 4096)
        functions.grad_input(out, y, weight, geometry, precision, through, target.activation)
    else:
        functions.grad_weight(weight, bias, y, x, geometry, precision, through, target.activation)


def _call_lookup(target: Target) -> None:
    """Of 28 words."""
    geometry = Conv1dGeometry(8, 28, target.rows, 1, 4096, 3, 1, 4, 8, 0)
    dtype = DTYPES[target.kind]
    tokens = torch.empty((8, 4096), dtype=torch.int64, device="meta")
    table, bias = _empty(dtype, 3, 28, target.rows), _empty(dtype, target.rows)
    y = _empty(dtype, 8, target.rows, 4096)
    if target.function == "lookup":
        lookup.forward(y, tokens, table, bias, geometry, target.activation)
    else:
        lookup.grad_table(table, y, tokens, geometry)


def _call_stack(target: Target) -> None:
    """Over 28 words, two layers of the same kind, gated if that is the activation."""
    dtype, channels, words = DTYPES[target.kind], target.rows, 28
    columns = channels * (2 if target.activation == "gate" else 1)
    layers = tuple(
        Layer(channels, columns, 3, 4, 8, 128, 128, target.activation, True, True) for _ in range(2)
    )
    x, tokens = _empty(dtype, words, channels), torch.empty((8, 128), dtype=torch.int64)
    weights = [_empty(dtype, columns, channels, 3) for _ in layers]
    biases = [_empty(dtype, columns) for _ in layers]
    y, saved = _empty(dtype, 8, channels, 128), _empty(dtype, 8, saved_size(layers))
    if target.function == "stack_forward":
        stack.forward(y, saved, x, tokens.to("meta"), weights, biases, layers)
    else:
        stack.backward(y, saved, weights, biases, layers, True)


def compiled(target: Target) -> list[Resources]:
    """The kernels of a target; that of the weights of a stack is the second of its backward."""
    found = compile_launches(lambda: _call(target), target.architecture)
    return found[target.function == "stack_grad_weight" :]


def compile_launches(call: Callable[[], None], architecture: int) -> list[Resources]:
    """What each kernel that ``call`` launches takes, in order."""
    found: list[Resources] = []

    def compile_only(
        kernel: Any, programs: int, arguments: dict[str, Any], blocks: Configuration
    ) -> None:
        options = dict(num_warps=blocks.warps, num_stages=blocks.stages)
        found.append(_resources(kernel.warmup(**arguments, grid=(1,), **options), blocks))

    launched, has_descriptors = launch.run, launch.has_descriptors
    launch.run = compile_only
    launch.has_descriptors = lambda device: architecture >= 90
    triton.runtime.driver.set_active(_NoDriver(architecture))
    try:
        call()
    finally:
        launch.run, launch.has_descriptors = launched, has_descriptors
        if torch.cuda.is_available():  # otherwise there is no driver to go back to
            triton.runtime.driver.reset_active()
    return found


def _resources(kernel: Any, blocks: Configuration) -> Resources:
    tools = Path(triton.__file__).parent / "backends/nvidia/bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()

        def output(tool: str, option: str) -> str:
            command = [str(tools / tool), option, file.name]
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout

        usage, code = output("cuobjdump", "-res-usage"), output("nvdisasm", "-c")
    registers = re.search(r"REG:(\d+)", usage)
    assert registers is not None, usage
    return Resources(
        kernel=kernel.metadata.name,
        blocks=blocks,
        registers=int(registers[1]),
        shared=kernel.metadata.shared,
        spills=len(re.findall(r"\bSTL", code)),
        wgmma=kernel.asm["ptx"].count("wgmma.mma_async"),
        tma="cp.async.bulk.tensor" in kernel.asm["ptx"],
    )


def every_target() -> Iterator[Target]:
    """Each configuration of the table, in each function that it serves."""
    for architecture in ARCHITECTURES:
        for kernel, kinds in TABLE.items():
            described = kernel == "described_correlation"
            if described and architecture < 90:
                continue
            keys = [Key(kernel, kind, rows) for kind, buckets in kinds.items() for rows in buckets]
            for key in keys:
                for function in FUNCTIONS[kernel]:
                    activation = "none" if function == "forward" else "tanh"
                    yield Target(function, key.kind, key.rows, architecture, activation, described)
        for function in ("forward", "grad_input", "grad_weight"):
            for last in (False, True):
                yield Target(
                    function, "half", 512, architecture, channels_last=last, depthwise=True
                )
        for kind in ("half", "ieee", "float64"):
            yield Target("lookup", kind, 64, architecture, "tanh")
            yield Target("lookup_grad_table", kind, 64, architecture)
            for function in STACKS:
                yield Target(function, kind, 64, architecture, "gate")


def table(targets: Iterator[Target]) -> str:
    """As Markdown; of the kernels of a target, the first: the second only adds up parts."""
    lines = [
        "| function | products | rows | tile, reduced, warps, stages | GPU | registers | shared KB "
        "| spills | wgmma |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for target in targets:
        used = compiled(target)[0]
        b = used.blocks
        tile = f"{b.rows} x {b.columns}, {b.reduced}, {b.warps}, {b.stages}"
        rows = "depthwise" if target.depthwise else str(target.rows)
        rows += ", channels last" * target.channels_last + ", TMA" * used.tma
        function = target.function + f", {target.activation}" * (target.activation != "none")
        cells = [function, target.kind, rows, tile, f"sm_{target.architecture}", used.registers]
        cells += [round(used.shared / 1024), used.spills, "yes" if used.wgmma else ""]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


START, END = "<!-- resources -->", "<!-- end of resources -->"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--write", type=Path, metavar="FILE.md", help="between its two markers")
    path = parser.parse_args().write
    text = table(every_target())
    if path is None:
        print(text)
        return
    before, rest = path.read_text().split(START)
    _, after = rest.split(END)
    path.write_text(f"{before}{START}\n\n{text}\n\n{END}{after}")


if __name__ == "__main__":
    main()
