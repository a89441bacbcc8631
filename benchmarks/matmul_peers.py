"""Convolutions that users write themselves: of matrix products, or of shifted rows."""

from typing import NamedTuple

import torch
from problem import Data, Problem
from providers import Provider
from torch import Tensor
from torch.nn import functional as F


class UnfoldMatmul(Provider):
    """Columns of taps (im2col) and one matrix product."""

    name = "unfold + matmul"

    @classmethod
    def can_run(cls, problem: Problem) -> bool:
        geometry = problem.geometry
        rows = problem.batch * problem.in_channels * problem.kernel_size
        columns = rows * geometry.out_length * problem.dtype.itemsize
        return problem.groups == 1 and columns < 2**29  # a peer that takes seconds is not the best

    def columns(self) -> Tensor:
        p = self.problem
        return F.unfold(
            self.padded.unsqueeze(2), (1, p.kernel_size), (1, p.dilation), 0, (1, p.stride)
        )

    def forward(self) -> Tensor:
        weight = self.weight.flatten(1).expand(self.problem.batch, -1, -1)
        return self.activate(torch.baddbmm(self.bias[:, None], weight, self.columns()))

    def grad_input(self) -> Tensor:
        p = self.problem
        columns = self.weight.flatten(1).T @ self.grad_output
        grad_padded = F.fold(
            columns,
            (1, self.padded.shape[2]),
            (1, p.kernel_size),
            (1, p.dilation),
            0,
            (1, p.stride),
        )
        return self.unpadded(grad_padded.squeeze(2))

    def grad_weight(self) -> tuple[Tensor, Tensor]:
        products = self.grad_output @ self.columns().transpose(1, 2)
        return products.sum(0).view_as(self.weight), self.grad_output.sum((0, 2))


class Tap(NamedTuple):
    """The outputs and the inputs that meet in one tap; no padding zeros among them."""

    number: int
    outputs: slice
    inputs: slice


def taps(problem: Problem) -> list[Tap]:
    found = []
    stride, left, out_length = problem.stride, problem.pads[0], problem.geometry.out_length
    for index in range(problem.kernel_size):
        offset = index * problem.dilation - left
        begin = max(0, -(offset // stride))  # the first output that reads at 0 or later
        end = min(out_length, (problem.length - 1 - offset) // stride + 1)
        if begin < end:
            first = begin * stride + offset
            inputs = slice(first, first + (end - begin - 1) * stride + 1, stride)
            found.append(Tap(index, slice(begin, end), inputs))
    return found


class MatmulPerTap(Provider):
    """One matrix product for each tap, added up in place."""

    name = "matmul per tap"

    def __init__(self, data: Data) -> None:
        super().__init__(data)
        self.taps = taps(data.problem)

    @classmethod
    def can_run(cls, problem: Problem) -> bool:
        return problem.groups == 1

    def forward(self) -> Tensor:
        batch = self.problem.batch
        y = self.bias[:, None].expand_as(self.grad_output).contiguous()
        weights = self.weight.permute(2, 0, 1).contiguous().unsqueeze(1)
        for tap in self.taps:
            weight = weights[tap.number].expand(batch, -1, -1)
            y[..., tap.outputs].baddbmm_(weight, self.x[..., tap.inputs])
        return self.activate(y)

    def grad_input(self) -> Tensor:
        grad_x = torch.zeros_like(self.x)
        weights = self.weight.permute(2, 1, 0).contiguous().unsqueeze(1)
        for tap in self.taps:
            weight = weights[tap.number].expand(self.problem.batch, -1, -1)
            grad_x[..., tap.inputs].baddbmm_(weight, self.grad_output[..., tap.outputs])
        return grad_x

    def grad_weight(self) -> tuple[Tensor, Tensor]:
        grad_w = torch.zeros_like(self.weight)
        for tap in self.taps:
            rows = self.x[..., tap.inputs].transpose(1, 2)
            grad_w[..., tap.number] = (self.grad_output[..., tap.outputs] @ rows).sum(0)
        return grad_w, self.grad_output.sum((0, 2))


class ShiftedMultiplyAdds(Provider):
    """Depthwise: the rows times one weight each, shifted and added up in place."""

    name = "shifted multiply-adds"

    def __init__(self, data: Data) -> None:
        super().__init__(data)
        self.taps = taps(data.problem)

    @classmethod
    def can_run(cls, problem: Problem) -> bool:
        return problem.is_depthwise

    def forward(self) -> Tensor:
        y = self.bias[:, None].expand_as(self.grad_output).contiguous()
        for tap in self.taps:
            y[..., tap.outputs].addcmul_(self.x[..., tap.inputs], self.weight[..., tap.number])
        return self.activate(y)

    def grad_input(self) -> Tensor:
        grad_x = torch.zeros_like(self.x)
        for tap in self.taps:
            weight = self.weight[..., tap.number]
            grad_x[..., tap.inputs].addcmul_(self.grad_output[..., tap.outputs], weight)
        return grad_x

    def grad_weight(self) -> tuple[Tensor, Tensor]:
        grad_w = torch.zeros_like(self.weight)
        for tap in self.taps:
            products = self.grad_output[..., tap.outputs] * self.x[..., tap.inputs]
            grad_w[:, 0, tap.number] = products.sum((0, 2))
        return grad_w, self.grad_output.sum((0, 2))

    def backward(self) -> tuple[Tensor, ...]:
        return self.grad_input(), *self.grad_weight()
