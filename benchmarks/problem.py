"""What a problem is: its geometry, what it costs, and its operands."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from convlm_kernels.geometry import Conv1dGeometry, Padding, resolve_padding

FORWARD, GRAD_INPUT, GRAD_WEIGHT = "forward", "grad_input", "grad_weight"
BACKWARD = "backward"  # of input, weight and bias together, where a peer may share work
STEP = "step"  # forward and then backward, through autograd and the activation
FUNCTIONS = (FORWARD, GRAD_INPUT, GRAD_WEIGHT)


@dataclass(frozen=True)
class Problem:
    name: str
    batch: int
    in_channels: int
    out_channels: int
    length: int
    kernel_size: int
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    padding: Padding = 0
    activation: str | None = None  # of forward and step; the other gradients are without it
    dtype: torch.dtype = torch.float32
    fp32_precision: str = "ieee"
    functions: tuple[str, ...] = FUNCTIONS
    family: str = ""
    core: bool = True  # part of every run; the others run with --all or when named

    @property
    def pads(self) -> tuple[int, int]:
        return resolve_padding(self.padding, self.kernel_size, self.stride, self.dilation)

    @property
    def geometry(self) -> Conv1dGeometry:
        return Conv1dGeometry(
            batch=self.batch,
            in_channels=self.in_channels,
            out_channels=self.out_channels,
            groups=self.groups,
            length=self.length,
            kernel_size=self.kernel_size,
            stride=self.stride,
            dilation=self.dilation,
            pad_left=self.pads[0],
            pad_right=self.pads[1],
        )

    @property
    def window(self) -> tuple[int, int, int, int, int, str]:
        """The settings in the order of the operators."""
        return self.stride, *self.pads, self.dilation, self.groups, self.fp32_precision

    @property
    def format(self) -> str:
        """The name of the dtype, or of the precision that stands in for it."""
        if self.dtype == torch.float32 and self.fp32_precision != "ieee":
            return self.fp32_precision
        return str(self.dtype).removeprefix("torch.")

    @property
    def is_depthwise(self) -> bool:
        return self.groups == self.in_channels == self.out_channels > 1

    def flops(self, function: str) -> int:
        """Multiplications and additions of the definition, those with padding zeros included.

        So whoever skips work, or needs less of it, may pass the peak.
        """
        weights = self.out_channels * self.in_channels // self.groups * self.kernel_size
        one = 2 * self.batch * self.geometry.out_length * weights
        return one * {BACKWARD: 2, STEP: 3}.get(function, 1)

    def bytes(self, function: str) -> int:
        """Of every operand and every result, moved once by forward and once by backward."""
        x = self.batch * self.in_channels * self.length
        y = self.batch * self.out_channels * self.geometry.out_length
        weight = self.out_channels * self.in_channels // self.groups * self.kernel_size
        one = x + weight + y
        backward = one + x + weight
        return {BACKWARD: backward, STEP: one + backward}.get(function, one) * self.dtype.itemsize

    def expression(self) -> str:
        """A call that makes this problem, to be pasted."""
        weight = self.out_channels, self.in_channels // self.groups, self.kernel_size
        return (
            f"conv1d(randn({self.batch}, {self.in_channels}, {self.length}), randn{weight}, "
            f"randn({self.out_channels}), stride={self.stride}, padding={self.pads}, "
            f"dilation={self.dilation}, groups={self.groups})"
        )


@dataclass(frozen=True)
class Data:
    """The operands of a problem. `padded` is x with its zeros around it: peers have it ready."""

    problem: Problem
    x: Tensor
    weight: Tensor
    bias: Tensor
    grad_output: Tensor
    padded: Tensor

    def first_sample(self) -> "Data":
        """The same problem with a batch of one."""
        problem = replace(self.problem, batch=1)
        operands = self.x[:1], self.weight, self.bias, self.grad_output[:1], self.padded[:1]
        return Data(problem, *operands)

    @classmethod
    def random(cls, problem: Problem, seed: int = 0, device: str = "cpu") -> "Data":
        """Normal numbers, weights scaled so that the results are of that size too."""
        generator = torch.Generator(device).manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            numbers = torch.randn(shape, generator=generator, device=device)
            return numbers.to(problem.dtype)

        fan_in = problem.in_channels // problem.groups * problem.kernel_size
        x = normal(problem.batch, problem.in_channels, problem.length)
        weight = normal(problem.out_channels, fan_in // problem.kernel_size, problem.kernel_size)
        return cls(
            problem,
            x,
            weight * fan_in**-0.5,
            normal(problem.out_channels),
            normal(problem.batch, problem.out_channels, problem.geometry.out_length),
            torch.nn.functional.pad(x, problem.pads) if any(problem.pads) else x,
        )
