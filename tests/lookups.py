"""Look-ups for the tests of every device, and the convolution of one-hot vectors in float64."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from cases import LAYOUTS, Case, random
from hypothesis import strategies as st
from tolerances import exact_forward, exact_gradients
from torch import Tensor
from torch.nn import functional as F


class Operators(NamedTuple):
    lookup: Any
    grad_table: Any
    device: str = "cpu"


# in_channels are the words
CASES = [
    Case("the seed's first layer", 3, 28, 100, 23, 2, 1, 1, 1, (0, 0)),
    Case("the seed's CNN", 2, 28, 28, 23, 8, 1, 1, 1, (0, 0)),
    Case("more positions and more words than a block takes", 1, 70, 5, 75, 3, 1, 2, 1, (4, 0)),
    Case("strided, padded on both sides", 5, 9, 33, 31, 3, 3, 4, 1, (5, 7)),
    Case("more samples than blocks, one word", 70, 1, 1, 2, 1, 1, 1, 1, (0, 1)),
]


def tokens_of(case: Case) -> Tensor:
    generator = torch.Generator().manual_seed(6)
    return torch.randint(case.in_channels, (case.batch, case.length), generator=generator)


def check(operators: Operators, case: Case, dtype: torch.dtype, layout: str | None = None) -> None:
    tokens, window = tokens_of(case), case.window[:4]
    table = random(case.kernel_size, case.in_channels, case.out_channels, dtype=dtype)
    bias, grad_output = random(case.out_channels, dtype=dtype), random(*case.y_shape, dtype=dtype)
    if layout:
        table, bias, grad_output = map(LAYOUTS[layout], (table, bias, grad_output))
    one_hot = F.one_hot(tokens, case.in_channels).mT.to(dtype)
    weight = table.permute(2, 1, 0)
    own = [t.to(operators.device) for t in (tokens, table, bias, grad_output)]
    y = operators.lookup(*own[:3], *window, "none")
    exact_forward(one_hot, weight, bias, case.window).allows(y.cpu(), bool(layout))
    sizes = case.kernel_size, case.in_channels
    grad_table, grad_bias = operators.grad_table(own[3], own[0], *sizes, *window, True)
    _, exact_t, exact_b = exact_gradients(one_hot, weight, grad_output, case.window)
    exact_t.allows(grad_table.cpu().permute(2, 1, 0), bool(layout))
    exact_b.allows(grad_bias.cpu(), bool(layout))


def check_a_token_that_is_no_word(operators: Operators, wrong: int) -> None:
    """It shows as NaN where it is read, and has no part in a gradient."""
    case = CASES[0]
    tokens, window = tokens_of(case), case.window[:4]
    table = random(case.kernel_size, case.in_channels, case.out_channels).to(operators.device)
    right = operators.lookup(tokens.to(operators.device), table, None, *window, "none").cpu()
    tokens[1, 5] = wrong
    tokens = tokens.to(operators.device)
    y = operators.lookup(tokens, table, None, *window, "none").cpu()
    expected = torch.zeros_like(y, dtype=torch.bool)
    expected[1, :, 4:6] = True
    assert torch.equal(y.isnan(), expected)
    assert torch.equal(y.nan_to_num(0), right.where(~expected, 0))
    ones = torch.ones_like(y, device=operators.device)
    sizes = case.kernel_size, case.in_channels
    grad_table, _ = operators.grad_table(ones, tokens, *sizes, *window, False)
    counted = grad_table[..., 0].sum().item()
    assert counted == case.batch * case.kernel_size * y.shape[2] - 2


def results(operators: Operators, case: Case) -> list[Tensor]:
    """A look-up, and the gradients of table and bias where that of its result is itself."""
    tokens, window = tokens_of(case).to(operators.device), case.window[:4]
    table = random(case.kernel_size, case.in_channels, case.out_channels).to(operators.device)
    y = operators.lookup(tokens, table, None, *window, "tanh")
    sizes = case.kernel_size, case.in_channels
    return [y, *operators.grad_table(y, tokens, *sizes, *window, True)]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    def number(most: int, least: int = 1) -> int:
        return draw(st.integers(least, most))

    kernel_size, stride, dilation = number(5), number(4), number(4)
    pads = number(9, 0), number(9, 0)
    length = number(50, max(1, (kernel_size - 1) * dilation + 1 - sum(pads)))
    return Case("", number(4), number(40), number(40), length, kernel_size, stride, dilation, 1,
                pads)  # fmt: skip
