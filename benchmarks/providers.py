"""What computes a problem: a class for each way, with one method for each function.

Operands are prepared in `__init__`, before any timing: that is where a peer gets its best form.
The input with its padding zeros around it is one of them, for every peer that wants it. All run
without gradients, except a step.
"""

from copy import copy
from functools import cached_property
from typing import Any

import torch
from problem import BACKWARD, FORWARD, GRAD_INPUT, GRAD_WEIGHT, Data, Problem
from torch import Tensor
from torch.nn import functional as F

from convlm_kernels import conv1d, ops

convolution_backward = torch.ops.aten.convolution_backward.default

LEAVES = "x", "padded", "weight", "bias"  # of which a provider reads either x or padded

MASKS = {
    GRAD_INPUT: [True, False, False],
    GRAD_WEIGHT: [False, True, True],
    BACKWARD: [True, True, True],
}


class Provider:
    """Methods are named after the functions; one that is missing cannot be done this way."""

    name: str
    counts = True  # False: shown, but never the best peer

    def __init__(self, data: Data) -> None:
        self.data = data
        self.problem = data.problem
        self.x, self.weight, self.bias = data.x, data.weight, data.bias
        self.grad_output, self.padded = data.grad_output, data.padded

    @classmethod
    def can_run(cls, problem: Problem) -> bool:
        return True

    @cached_property
    def taped(self) -> "Provider":
        """The same on operands that gradients are asked of."""
        other = copy(self)
        for name in LEAVES:
            setattr(other, name, getattr(self, name).detach().requires_grad_())
        return other

    def step(self) -> tuple[Tensor, ...]:
        """Forward, and the gradients of input, weight and bias by autograd."""
        taped = self.taped
        with torch.enable_grad():
            y = taped.differentiable()
        leaves = [getattr(taped, name) for name in LEAVES]
        grad_x, grad_padded, *grads = torch.autograd.grad(
            y, leaves, self.grad_output, allow_unused=True
        )
        return y.detach(), self.unpadded(grad_padded) if grad_x is None else grad_x, *grads

    def differentiable(self) -> Tensor:
        """`forward`, as autograd can follow it."""
        return self.forward()  # type: ignore[attr-defined]

    def activate(self, y: Tensor) -> Tensor:
        name = self.problem.activation
        return y if name is None else getattr(torch, f"{name}_")(y)

    def unpadded(self, grad_padded: Tensor) -> Tensor:
        """The part that belongs to x, as a view: no peer pays for a copy that x would not need."""
        return grad_padded.narrow(2, self.problem.pads[0], self.problem.length)


class Ours(Provider):
    name = "ours"

    def forward(self) -> Tensor:
        activation = self.problem.activation or "none"
        return ops.forward(self.x, self.weight, self.bias, *self.problem.window, activation)

    def differentiable(self) -> Tensor:
        p = self.problem
        settings: Any = dict(stride=p.stride, padding=p.pads, dilation=p.dilation, groups=p.groups)
        return conv1d(self.x, self.weight, self.bias, **settings, activation=p.activation)

    def grad_input(self) -> Tensor:
        return ops.grad_input(
            self.grad_output, self.weight, self.problem.length, *self.problem.window
        )

    def grad_weight(self) -> tuple[Tensor, Tensor]:
        kernel_size = self.problem.kernel_size
        return ops.grad_weight(self.grad_output, self.x, kernel_size, *self.problem.window, True)

    def backward(self) -> tuple[Tensor, ...]:
        return ops.gradients(self.grad_output, self.x, self.weight, *self.problem.window, True)


class OnBackend(Provider):
    """Ours, as a user calls it: gradients by autograd, whose forward is not timed."""

    def __init__(self, data: Data, backend: str) -> None:
        super().__init__(data)
        self.name = backend
        self.graphs: dict[str, tuple[Tensor, list[Tensor]]] = {}

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor, activation: str | None) -> Tensor:
        p = self.problem
        settings: Any = dict(stride=p.stride, padding=p.pads, dilation=p.dilation, groups=p.groups)
        return conv1d(x, weight, bias, **settings, activation=activation, backend=self.name)

    def forward(self) -> Tensor:
        with torch.no_grad():
            return self.differentiable()

    def differentiable(self) -> Tensor:
        return self.convolve(self.x, self.weight, self.bias, self.problem.activation)

    def gradients(self, wanted: str) -> tuple[Tensor, ...]:
        """Of those of "x", "weight" and "bias" that are wanted; nothing else is computed."""
        if wanted not in self.graphs:
            operands = {"x": self.x, "weight": self.weight, "bias": self.bias}
            leaves = {
                name: tensor.detach().requires_grad_(name in wanted.split())
                for name, tensor in operands.items()
            }
            with torch.enable_grad():
                y = self.convolve(*leaves.values(), None)
            self.graphs[wanted] = y, [leaf for leaf in leaves.values() if leaf.requires_grad]
        y, wanted_leaves = self.graphs[wanted]
        return torch.autograd.grad(y, wanted_leaves, self.grad_output, retain_graph=True)

    def grad_input(self) -> Tensor:
        return self.gradients("x")[0]

    def grad_weight(self) -> tuple[Tensor, ...]:
        return self.gradients("weight bias")

    def backward(self) -> tuple[Tensor, ...]:
        return self.gradients("x weight bias")


class WithGradients(Provider):
    """A provider whose three gradients come from one call with a mask, as `aten`'s do."""

    def gradients(self, function: str) -> tuple[Tensor, ...]:
        """Of input, weight and bias; `function` says which of them are wanted."""
        raise NotImplementedError

    def grad_input(self) -> Tensor:
        return self.gradients(GRAD_INPUT)[0]

    def grad_weight(self) -> tuple[Tensor, ...]:
        return self.gradients(GRAD_WEIGHT)[1:]

    def backward(self) -> tuple[Tensor, ...]:
        return self.gradients(BACKWARD)


class TorchConv1d(WithGradients):
    """`F.conv1d` as a user would write it, padding included: `F.pad` where the sides differ."""

    name = "conv1d"

    def operand(self) -> tuple[Tensor, int]:
        left, right = self.problem.pads
        return (self.x, left) if left == right else (F.pad(self.x, (left, right)), 0)

    def forward(self) -> Tensor:
        p, (x, padding) = self.problem, self.operand()
        y = F.conv1d(x, self.weight, self.bias, p.stride, padding, p.dilation, p.groups)
        return self.activate(y)

    def gradients(self, function: str) -> tuple[Tensor, ...]:
        p, (x, padding) = self.problem, self.operand()
        window: Any = [p.stride], [padding], [p.dilation], False, [0], p.groups
        grads = convolution_backward(
            self.grad_output, x, self.weight, [p.out_channels], *window, MASKS[function]
        )
        if function != GRAD_WEIGHT and not padding:
            return self.unpadded(grads[0]), *grads[1:]
        return grads


class PaddedConv1d(TorchConv1d):
    """The same where the padded input is there already."""

    name = "conv1d, padded before"

    @classmethod
    def can_run(cls, problem: Problem) -> bool:
        return any(problem.pads)

    def operand(self) -> tuple[Tensor, int]:
        return self.padded, 0


class FlippedConv1d(Provider):
    """grad_input as the convolution that it is: no gradients of padding zeros are computed."""

    name = "flipped conv1d"
    step = None  # type: ignore[assignment]

    @classmethod
    def can_run(cls, problem: Problem) -> bool:
        reach = problem.dilation * (problem.kernel_size - 1)
        return problem.stride == problem.groups == 1 and max(problem.pads) <= reach

    def grad_input(self) -> Tensor:
        p = self.problem
        reach = p.dilation * (p.kernel_size - 1)
        left, right = (reach - pad for pad in p.pads)
        grad_output, padding = self.grad_output, left
        if left != right:
            grad_output, padding = F.pad(grad_output, (left, right)), 0
        weight = self.weight.transpose(0, 1).flip(2)
        return F.conv1d(grad_output, weight, None, 1, padding, p.dilation)


class ChannelsLast(WithGradients):
    """A channels-last conv2d of height 1, converted from and to channels-first."""

    name = "channels-last"

    def to_last(self, tensor: Tensor) -> Tensor:
        return tensor.unsqueeze(2).contiguous(memory_format=torch.channels_last)

    def to_first(self, tensor: Tensor) -> Tensor:
        return tensor.squeeze(2).contiguous()

    def operands(self) -> tuple[Tensor, Tensor, Tensor]:
        return tuple(map(self.to_last, (self.padded, self.weight, self.grad_output)))  # type: ignore[return-value]

    def forward(self) -> Tensor:
        p = self.problem
        x, weight = self.to_last(self.padded), self.to_last(self.weight)
        y = F.conv2d(x, weight, self.bias, (1, p.stride), 0, (1, p.dilation), p.groups)
        return self.to_first(self.activate(y))

    def gradients(self, function: str) -> tuple[Tensor, ...]:
        p, (x, weight, grad_output) = self.problem, self.operands()
        window: Any = [1, p.stride], [0, 0], [1, p.dilation], False, [0, 0], p.groups
        grad_x, grad_w, grad_b = convolution_backward(
            grad_output, x, weight, [p.out_channels], *window, MASKS[function]
        )
        if grad_x is not None:
            grad_x = self.unpadded(self.to_first(grad_x))
        if grad_w is not None:
            grad_w = self.to_first(grad_w)
        return grad_x, grad_w, grad_b


class ChannelsLastThroughout(ChannelsLast):
    """The same in a model that is channels-last throughout: no conversion at either end."""

    name = "channels-last throughout"
    counts = False
    step = None  # type: ignore[assignment]  # its operands were converted before

    def __init__(self, data: Data) -> None:
        super().__init__(data)
        to_last = super().to_last
        self.kept = {id(t): to_last(t) for t in (self.padded, self.weight, self.grad_output)}

    def to_last(self, tensor: Tensor) -> Tensor:
        return self.kept[id(tensor)]

    def to_first(self, tensor: Tensor) -> Tensor:
        return tensor.squeeze(2)


class Compiled(Provider):
    """Another provider under `torch.compile`."""

    def __init__(self, provider: Provider) -> None:
        super().__init__(provider.data)
        self.name = f"compiled {provider.name}"
        torch.compiler.reset()  # a cache of its own: no recompilation limit, no dynamic sizes
        for function in (FORWARD, GRAD_INPUT, GRAD_WEIGHT, BACKWARD):
            if method := getattr(provider, function, None):
                setattr(self, function, torch.compile(method, dynamic=False))
        self.taped = provider.taped  # type: ignore[misc]
        self.taped.differentiable = torch.compile(self.taped.differentiable, dynamic=False)  # type: ignore[method-assign]
