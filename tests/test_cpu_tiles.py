"""The kernels of bfloat16 that multiply whole tiles, where the processor has AMX.

What every kernel must do, `test_ops.py` asks of them too; here are the shapes that they cut, fold
and pad in their own way.
"""

from __future__ import annotations

import pytest
import torch
from cases import LAYOUTS, Case, parametrize, problem, random
from tolerances import exact_forward, exact_gradients, kinds
from torch import Tensor

from convlm_kernels import _host, ops

pytestmark = pytest.mark.skipif(_host.cpu_isa() != "amx", reason="no tiles of bfloat16 here")

FUNCTIONS = ("forward", "grad_input", "grad_weight")

CUT = [
    Case("two taps of 15 channels share a tile, and one tap is left", 2, 15, 15, 700, 51, 1, 8),
    Case("five taps of three channels come back to the first one's phase", 2, 3, 96, 700, 20, 5),
    Case("more phases than taps in a tile", 2, 4, 32, 620, 7, 9),
    Case("an odd number of channels, folded, with a stride", 2, 5, 40, 211, 7, 2, 3, 1, (4, 5)),
    Case("one tile of rows, four of positions", 2, 70, 9, 333, 3, 1, 2, 1, (4, 0)),
    Case(
        "half a block of rows, and an odd number of positions", 3, 33, 49, 131, 4, 1, 1, 1, (1, 2)
    ),
    Case("three classes of a stride, not as many of each", 2, 48, 40, 301, 5, 3, 2, 1, (3, 4)),
    Case("classes without taps", 2, 40, 40, 90, 2, 5),
    Case("each tap has a stream", 1, 64, 64, 3000, 3, 1, 900, 1, (900, 900)),
    Case("taps that read nothing but padding", 2, 64, 64, 40, 9, 1, 16, 1, (64, 64)),
    Case("groups", 2, 96, 72, 140, 3, 1, 1, 3, (1, 1)),
    Case("weights that do not stay in the L2 cache", 2, 320, 600, 100, 4),
    Case("several tiles of positions, and pieces of sums", 6, 48, 48, 1500, 3, 1, 1, 1, (2, 0)),
]


def kernel(function: str, case: Case, dtype: str = "bfloat16") -> str:
    sizes = case.batch, case.in_channels, case.out_channels, case.length, case.kernel_size
    return _host.cpu_kernel(function, dtype, *sizes, *case.window[:-1])


def results(case: Case, x: Tensor, weight: Tensor, bias: Tensor, grad: Tensor) -> list[Tensor]:
    return [
        ops.forward(x, weight, bias, *case.window, "none"),
        ops.grad_input(grad, weight, case.length, *case.window),
        *ops.grad_weight(grad, x, case.kernel_size, *case.window, True),
    ]


@pytest.mark.parametrize("function", FUNCTIONS)
@parametrize("case", CUT)
def test_the_cases_get_tiles(function: str, case: Case) -> None:
    assert kernel(function, case) == "tiles"
    for other in ("float32", "float64", "float16"):
        assert kernel(function, case, other) != "tiles"


@pytest.mark.parametrize("function", FUNCTIONS)
@parametrize(
    "case",
    [
        Case("depthwise", 8, 512, 512, 2048, 4, groups=512, pads=(3, 0)),
        Case("one channel and one row", 8, 1, 1, 2048, 4),
        Case("next to nothing", 1, 4, 4, 4, 2),
    ],
)
def test_what_tiles_are_not_for(function: str, case: Case) -> None:
    assert kernel(function, case) != "tiles"


@pytest.mark.parametrize("layout", LAYOUTS)
@parametrize("case", CUT)
def test_values(case: Case, layout: str) -> None:
    p = problem(case, torch.bfloat16)
    x, weight, grad = (LAYOUTS[layout](t) for t in (p.x, p.weight, p.grad_output))
    y, *gradients = results(case, x, weight, p.bias, grad)
    exact_forward(x, weight, p.bias, case.window).allows(y)
    exact = exact_gradients(x, weight, grad, case.window)
    for actual, right in zip(gradients, exact, strict=True):
        right.allows(actual)


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@parametrize("case", [CUT[0], CUT[5]])
def test_activations(case: Case, activation: str) -> None:
    p = problem(case, torch.bfloat16)
    y = ops.forward(p.x, p.weight, p.bias, *case.window, activation)
    exact = getattr(torch, activation)(exact_forward(p.x, p.weight, p.bias, case.window).value)
    torch.testing.assert_close(y.double(), exact, rtol=2**-8, atol=1e-3)


@parametrize("case", CUT)
def test_same_bits_for_any_number_of_threads_and_in_any_batch(case: Case) -> None:
    p = problem(case, torch.bfloat16)
    torch.set_num_threads(1)
    expected = results(case, *p)
    for threads in (2, 3, 8):
        torch.set_num_threads(threads)
        assert all(map(torch.equal, results(case, *p), expected))
    alone = case._replace(batch=1)
    y, grad_x, *_ = results(alone, p.x[-1:], p.weight, p.bias, p.grad_output[-1:])
    assert torch.equal(y[0], expected[0][-1])
    assert torch.equal(grad_x[0], expected[1][-1])


@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
@parametrize("case", CUT)
def test_zeros_that_fill_a_tile_meet_no_infinity(case: Case, bad: float) -> None:
    """Rows, channels, taps and positions that do not exist are zeros in both operands."""
    p = problem(case, torch.bfloat16)
    for position in {0, case.length // 2, case.length - 1}:
        x, grad = p.x.clone(), p.grad_output.clone()
        x[0, -1, position] = grad[0, 0, position % case.out_length] = bad
        y, _, grad_w, grad_b = results(case, x, p.weight, p.bias, p.grad_output)
        exact = exact_forward(x, p.weight, p.bias, case.window).value
        assert torch.equal(kinds(y), kinds(exact))
        _, exact_w, exact_b = exact_gradients(x, p.weight, p.grad_output, case.window)
        assert torch.equal(kinds(grad_w), kinds(exact_w.value))
        assert torch.equal(kinds(grad_b), kinds(exact_b.value))
        _, grad_x, grad_w, grad_b = results(case, p.x, p.weight, p.bias, grad)
        exact_x, _, exact_b = exact_gradients(p.x, p.weight, grad, case.window)
        assert torch.equal(kinds(grad_x), kinds(exact_x.value))
        assert torch.equal(kinds(grad_b), kinds(exact_b.value))
        assert grad_w[1:].isfinite().all()


def test_denormals_count_as_zeros() -> None:
    """So they do where pairs are multiplied; float has room for the products."""
    case = Case("", 1, 64, 64, 64, 3)
    p = problem(case, torch.bfloat16)
    tiny = torch.full_like(p.x, 1e-39)
    y = ops.forward(tiny, p.weight, None, *case.window, "none")
    assert not y.any()


def test_another_library_may_have_used_the_registers() -> None:
    """oneDNN multiplies by tiles too: each must set the registers up for itself."""
    case = CUT[9]
    p = problem(case, torch.bfloat16)
    expected = results(case, *p)
    a = random(256, 256, dtype=torch.bfloat16, seed=5)
    product = a @ a
    for _ in range(3):
        assert torch.equal(a @ a, product)
        assert all(map(torch.equal, results(case, *p), expected))
