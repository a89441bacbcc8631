"""What a result should be, in float64, and whether it is.

Large problems are compared in part: some samples, or for grad_weight some output channels, from
the first to the last. What the providers compute is always the whole.
"""

import torch
from problem import BACKWARD, FORWARD, GRAD_INPUT, GRAD_WEIGHT, STEP, Data, Problem
from providers import MASKS, convolution_backward
from torch import Tensor
from torch.nn import functional as F

# Largest error, over the largest value of the oracle. A few times what sums of thousands of
# products come to in any order; a wrong or missing product is a thousand times larger.
LIMITS = {torch.float32: 3e-5, torch.float64: 1e-12, torch.bfloat16: 2e-2, torch.float16: 3e-3}
TF32_LIMIT = 3e-3

MOST_ELEMENTS = 2**28  # of an operand in float64

AFFORDABLE = 3e9  # flops in float64, about a tenth of a second


class WrongResult(AssertionError):
    """A provider does not compute what it is said to."""


class Oracle:
    """The exact results of one function of one problem."""

    def __init__(self, function: str, data: Data) -> None:
        self.function = function
        problem = data.problem
        share = AFFORDABLE / problem.flops(GRAD_INPUT)
        samples = _spread(problem.batch, share)
        channels = _spread(problem.out_channels, share if problem.groups == 1 else 1.0)
        self.parts: list[tuple[int, Tensor]] = []  # of each result: dimension and indices
        self.exact: list[Tensor] = []
        self.largest: list[float] = []  # value, or what one of these sums usually comes to
        self.dtype, self.limit = problem.dtype, LIMITS[problem.dtype]
        if problem.fp32_precision == "tf32" and problem.dtype == torch.float32:
            self.limit = TF32_LIMIT
        weight, bias = data.weight.double(), data.bias.double()
        x, grad_output = data.padded, data.grad_output
        through = problem.activation if function == STEP else None
        if function in (FORWARD, STEP):
            y = _convolve(problem, x[samples].double(), weight, bias)
            self._add(0, samples, _activate(problem.activation, y))
        if function in (GRAD_INPUT, BACKWARD, STEP):
            operands = x[samples].double(), weight
            before = _before(through, problem, grad_output[samples].double(), *operands, bias)
            grad_x = _gradients(problem, before, *operands, GRAD_INPUT)[0]
            self._add(0, samples, grad_x.narrow(2, problem.pads[0], problem.length))
        if function in (GRAD_WEIGHT, BACKWARD, STEP):
            several = grad_output[:, channels], x, weight[channels], bias[channels]
            # A lone bias has a sum that may cancel, with no larger one beside it.
            usual = grad_output[:, channels].double().norm(dim=(0, 2)).max()
            for gradient in _weight_gradients(through, problem, *several):
                self._add(0, channels, gradient, float(usual) if gradient.dim() == 1 else 0.0)

    def _add(self, dimension: int, indices: Tensor, exact: Tensor, usual: float = 0.0) -> None:
        self.parts.append((dimension, indices))
        self.exact.append(exact)
        # All are zeros where only padding is read.
        self.largest.append(max(float(exact.abs().max()), usual) or 1.0)

    def error(self, provider: str, result: Tensor | tuple[Tensor, ...]) -> float:
        """Largest error over the largest exact value, of the worst of the results.

        Raises:
            WrongResult: it is more than LIMITS allows, or the shape or dtype is another.
        """
        results = (result,) if isinstance(result, Tensor) else result
        worst = 0.0
        for actual, exact, largest, (dimension, indices) in zip(
            results, self.exact, self.largest, self.parts, strict=True
        ):
            part = actual.index_select(dimension, indices.to(actual.device))
            if part.shape != exact.shape or actual.dtype != self.dtype:
                got = f"shape {tuple(actual.shape)} and {actual.dtype}"
                raise WrongResult(f"{provider}: {self.function} has {got}")
            error = float((part.double() - exact).abs().max()) / largest
            if not error <= self.limit:  # NaN is wrong too
                message = f"{self.function} is off by {error:.2g} of the largest value"
                raise WrongResult(f"{provider}: {message}, more than {self.limit:.2g}")
            worst = max(worst, error)
        return worst


def _spread(count: int, share: float) -> Tensor:
    """About that share of `count` indices, the first and the last among them."""
    kept = min(count, max(2, int(count * share)))
    return torch.linspace(0, count - 1, kept).round().long()


def _convolve(problem: Problem, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv1d(x, weight, bias, problem.stride, 0, problem.dilation, problem.groups)


def _activate(activation: str | None, y: Tensor) -> Tensor:
    return y if activation is None else getattr(torch, activation)(y)


def _before(
    activation: str | None, problem: Problem, grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor
) -> Tensor:
    """The gradient before the activation that `grad` comes back through."""
    if activation is None:
        return grad
    y = _convolve(problem, x, weight, bias).requires_grad_()
    with torch.enable_grad():
        return torch.autograd.grad(_activate(activation, y), y, grad)[0]


def _weight_gradients(
    through: str | None,
    problem: Problem,
    grad_output: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
) -> tuple[Tensor, Tensor]:
    """Of weight and bias, a few samples after the other: in float64 all may be too many."""
    several = max(1, int(MOST_ELEMENTS / max(1, x[:1].numel())))
    grad_weight, grad_bias = torch.zeros_like(weight), torch.zeros_like(bias)
    for grad, part in zip(grad_output.split(several), x.split(several), strict=True):
        operands = part.double(), weight
        before = _before(through, problem, grad.double(), *operands, bias)
        _, more_weight, more_bias = _gradients(problem, before, *operands, GRAD_WEIGHT)
        grad_weight += more_weight
        grad_bias += more_bias
    return grad_weight, grad_bias


def _gradients(
    problem: Problem, grad_output: Tensor, x: Tensor, weight: Tensor, function: str
) -> tuple[Tensor, ...]:
    sizes = [weight.shape[0]]
    window = [problem.stride], [0], [problem.dilation], False, [0], problem.groups
    return convolution_backward(grad_output, x, weight, sizes, *window, MASKS[function])
