"""The three operators against the oracle, in every dtype, and what torch must know about them."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from cases import (
    BY_HAND,
    CASES,
    DTYPES,
    FEW,
    FEW_POSITIONS,
    JOINED,
    LAYOUTS,
    OF_ANY_BATCH,
    PACKED_LATE,
    SEED,
    Case,
    Problem,
    parametrize,
    problem,
    random,
)
from tolerances import (
    ACTIVATION_SLOPE,
    ACTIVATION_ULPS,
    FROM_OUTPUT,
    TABLE,
    assert_close,
    exact_forward,
    exact_gradients,
    roundoff,
    torch_conv1d,
)
from torch import Tensor

from convlm_kernels import _host, ops
from convlm_kernels.activations import ACTIVATIONS

pytestmark = pytest.mark.usefixtures("nan_in_empty")


@parametrize("dtype", DTYPES)
@parametrize("case", CASES)
def test_forward(case: Case, dtype: torch.dtype) -> None:
    p = problem(case, dtype)
    for bias in (p.bias, None):
        y = ops.forward(p.x, p.weight, bias, *case.window, "none")
        assert y.dtype == dtype
        assert y.is_contiguous()
        exact_forward(p.x, p.weight, bias, case.window).allows(y)


@parametrize("dtype", DTYPES)
@parametrize("case", CASES)
def test_grad_input(case: Case, dtype: torch.dtype) -> None:
    p = problem(case, dtype)
    grad_x = ops.grad_input(p.grad_output, p.weight, case.length, *case.window)
    assert grad_x.dtype == dtype
    assert grad_x.is_contiguous()
    exact_gradients(p.x, p.weight, p.grad_output, case.window)[0].allows(grad_x)


@parametrize("dtype", DTYPES)
@parametrize("case", CASES)
def test_grad_weight(case: Case, dtype: torch.dtype) -> None:
    p = problem(case, dtype)
    settings = case.kernel_size, *case.window
    grad_w, grad_b = ops.grad_weight(p.grad_output, p.x, *settings, True)
    assert grad_w.dtype == grad_b.dtype == dtype
    assert grad_w.is_contiguous()
    _, exact_weight, exact_bias = exact_gradients(p.x, p.weight, p.grad_output, case.window)
    exact_weight.allows(grad_w)
    exact_bias.allows(grad_b)
    without, empty = ops.grad_weight(p.grad_output, p.x, *settings, False)
    assert torch.equal(without, grad_w)
    assert empty.shape == (0,)


@parametrize("dtype", DTYPES)
@parametrize("case", CASES)
def test_both_gradients(case: Case, dtype: torch.dtype) -> None:
    p = problem(case, dtype)
    grad_x, grad_w, grad_b = ops.gradients(p.grad_output, p.x, p.weight, *case.window, True)
    assert grad_x.is_contiguous()
    assert grad_w.is_contiguous()
    exact = exact_gradients(p.x, p.weight, p.grad_output, case.window)
    for own, right in zip((grad_x, grad_w, grad_b), exact, strict=True):
        assert own.dtype == dtype
        right.allows(own)
    alone = ops.grad_input(p.grad_output, p.weight, case.length, *case.window)
    without = ops.gradients(p.grad_output, p.x, p.weight, *case.window, False)
    assert bits(alone, grad_w, torch.empty(0)) == bits(*without)
    assert bits(alone) == bits(grad_x)


@parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("length", [70_000, 70_001])
def test_both_gradients_of_more_than_the_caches_hold(length: int, dtype: torch.dtype) -> None:
    case = Case("", 1, 64, 64, length, 3, 1, 2, 64, (2, 2))
    p = problem(case, dtype)
    own = ops.gradients(p.grad_output, p.x, p.weight, *case.window, True)
    exact = exact_gradients(p.x, p.weight, p.grad_output, case.window)
    for gradient, right in zip(own, exact, strict=True):
        right.allows(gradient)


@parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
@parametrize("case", FEW)
def test_any_strides(case: Case, layout: str, dtype: torch.dtype) -> None:
    contiguous = problem(case, dtype)
    variants = [
        Problem(*(LAYOUTS[layout](t) if i in which else t for i, t in enumerate(contiguous)))
        for which in ({0}, {1}, {2}, {3}, {0, 1, 2, 3})
    ]
    alike = "expanded" in layout
    for p in variants:
        y = ops.forward(p.x, p.weight, p.bias, *case.window, "none")
        grad_x = ops.grad_input(p.grad_output, p.weight, case.length, *case.window)
        grads_w = ops.grad_weight(p.grad_output, p.x, case.kernel_size, *case.window, True)
        both = ops.gradients(p.grad_output, p.x, p.weight, *case.window, True)
        exact_forward(p.x, p.weight, p.bias, case.window).allows(y, alike)
        exact = exact_gradients(p.x, p.weight, p.grad_output, case.window)
        for gradients in ((grad_x, *grads_w), both):
            for own, right in zip(gradients, exact, strict=True):
                right.allows(own, alike)


@parametrize("dtype", DTYPES)
@parametrize("case", [case for case in FEW_POSITIONS if case.groups == 1])
def test_a_weight_with_channels_swapped(case: Case, dtype: torch.dtype) -> None:
    """It lies for forward as others do for grad_input, and the other way round."""
    p = problem(case, dtype)
    weight = p.weight.transpose(0, 1).contiguous().transpose(0, 1)
    for bias in (p.bias, None):
        y = ops.forward(p.x, weight, bias, *case.window, "relu")
        exact = exact_forward(p.x, weight, bias, case.window)
        exact._replace(value=exact.value.relu()).allows(y)
    grad_x = ops.grad_input(p.grad_output, weight, case.length, *case.window)
    exact_gradients(p.x, weight, p.grad_output, case.window)[0].allows(grad_x)


@parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@parametrize("case", FEW)
def test_fused_activation(case: Case, activation: str, dtype: torch.dtype) -> None:
    p = problem(case, dtype)
    x = 3 * p.x  # into the flat parts of tanh and sigmoid
    exact = exact_forward(x, p.weight, p.bias, case.window)
    y = ops.forward(x, p.weight, p.bias, *case.window, activation)
    value = ACTIVATIONS[activation](exact.value)
    own_error = ACTIVATION_ULPS * torch.finfo(TABLE[dtype].accumulated).eps
    sum_error = ACTIVATION_SLOPE * exact.sum_error(dtype)
    assert_close(y, value, sum_error + own_error * value.abs().clamp(min=1e-3))


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("activation", ["tanh", "sigmoid"])
def test_tanh_and_sigmoid_err_by_two_ulp_at_most(activation: str, sign: int) -> None:
    # Every float of a range: below it tanh is a series in x, above it both are nearly flat.
    first, last = torch.tensor([0.05, 0.4]).view(torch.int32).tolist()
    small = torch.arange(first, last, dtype=torch.int32).view(torch.float32)
    first, last = torch.tensor([0.4, 100.0]).view(torch.int32).tolist()
    large = torch.arange(first, last, 13, dtype=torch.int32).view(torch.float32)
    x = sign * torch.cat([small, large]).view(1, 1, -1)
    one = torch.ones(1, 1, 1)
    y = ops.forward(x, one, None, 1, 0, 0, 1, 1, "ieee", activation)
    exact = ACTIVATIONS[activation](x.double())
    _, exponent = torch.frexp(exact)
    ulp = torch.ldexp(torch.ones_like(exact), exponent.clamp(min=-125) - 24)
    assert ((y - exact).abs() / ulp).max() <= 2


@pytest.mark.parametrize("activation", ACTIVATIONS)
@parametrize("dtype", DTYPES)
def test_activation_of_extreme_values(activation: str, dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    values = [0.0, -0.0, 1e-7, -1e-4, 20.0, -20.0, 88.0, -88.0, 1e4, -1e4, largest, -largest]
    x = torch.tensor([*values, torch.inf, -torch.inf, torch.nan]).to(dtype).view(1, 1, -1)
    y = ops.forward(x, torch.ones(1, 1, 1, dtype=dtype), None, 1, 0, 0, 1, 1, "ieee", activation)
    expected = ACTIVATIONS[activation](x.double()).to(dtype)
    ulp = torch.finfo(dtype).eps
    own_error = ACTIVATION_ULPS * torch.finfo(TABLE[dtype].accumulated).eps
    # What is below the smallest normal float32 may be flushed to zero.
    torch.testing.assert_close(y, expected, equal_nan=True, rtol=max(ulp, own_error), atol=1.2e-38)


@parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", FROM_OUTPUT)
@parametrize("case", FEW)
def test_gradients_of_activated_outputs(case: Case, activation: str, dtype: torch.dtype) -> None:
    p = problem(case, dtype)
    y = ACTIVATIONS[activation](random(*case.y_shape, dtype=dtype, seed=5))
    product = FROM_OUTPUT[activation](p.grad_output.double(), y.double())
    # The product is rounded once, before it is summed up with the others.
    exact = exact_gradients(p.x, p.weight, product, case.window)
    own = roundoff(dtype) + 4 * roundoff(TABLE[dtype].accumulated)
    for turn in (lambda t: t, LAYOUTS["transposed"], LAYOUTS["sliced"]):
        activated = turn(y), activation
        gradient = turn(p.grad_output)
        grads = (
            ops.grad_input(gradient, p.weight, case.length, *case.window, *activated),
            *ops.grad_weight(gradient, p.x, case.kernel_size, *case.window, True, *activated),
        )
        for actual, right in zip(grads, exact, strict=True):
            assert_close(actual, right.value, right.sum_error(dtype) + own * right.magnitude)


@pytest.mark.parametrize("batched", [{"gradient"}, {"weight"}, {"y"}, {"gradient", "y"}])
def test_vmap_of_gradients_of_activated_outputs(batched: set[str]) -> None:
    case = FEW[1]
    p = problem(case, torch.float64)
    one = {"gradient": p.grad_output, "x": p.x, "weight": p.weight, "y": p.grad_output.tanh()}
    many = {k: torch.stack([v, 0.5 * v]) if k in batched else v for k, v in one.items()}

    def grads(gradient: Tensor, x: Tensor, weight: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        activated = y, "tanh"
        grad_x = ops.grad_input(gradient, weight, case.length, *case.window, *activated)
        settings = case.kernel_size, *case.window, True
        return grad_x, *ops.grad_weight(gradient, x, *settings, *activated)

    in_dims = tuple(0 if k in batched else None for k in one)
    actual = torch.func.vmap(grads, in_dims)(*many.values())
    for i in range(2):
        expected = grads(*(many[k][i] if k in batched else many[k] for k in one))
        for own, right in zip(actual, expected, strict=True):
            torch.testing.assert_close(own[i], right)


def assert_same_infinities(actual: Tensor, exact: Tensor) -> None:
    assert torch.equal(actual.isnan(), exact.isnan())
    assert torch.equal(actual.isinf(), exact.isinf())


@parametrize("dtype", DTYPES)
@pytest.mark.parametrize("out_length", [1, 2, 7, 40, 601])
def test_infinities_stay_in_the_sums_they_belong_to(out_length: int, dtype: torch.dtype) -> None:
    # Odd channels and lengths, where kernels that multiply pairs have half a pair left. No padding:
    # a zero of it times an infinity is a NaN.
    case = Case("", 2, 5, 9, out_length + 4, 3, 1, 2, 1, (0, 0))
    for positions in ([0], [-1], [-2], [0, -1]):
        p = problem(case, dtype)
        p.weight[3, -1, 0] = torch.inf
        p.x[0, 2, positions] = torch.inf
        p.grad_output[0, 6, 0] = torch.inf
        y = ops.forward(p.x, p.weight, p.bias, *case.window, "none")
        assert_same_infinities(y, exact_forward(p.x, p.weight, p.bias, case.window).value)
        grad_w, grad_b = ops.grad_weight(p.grad_output, p.x, 3, *case.window, True)
        exact = exact_gradients(p.x, p.weight, p.grad_output, case.window)
        assert_same_infinities(grad_w, exact[1].value)
        assert_same_infinities(grad_b, exact[2].value)


@parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", [20, 1000])
@pytest.mark.parametrize("pads", [(0, 0), (4, 0)])
def test_infinities_of_depthwise_layers(
    pads: tuple[int, int], length: int, dtype: torch.dtype
) -> None:
    case = Case("", 2, 3, 3, length, 3, 1, 2, 3, pads)
    for position in (0, 1, 5, -5, -1):
        p = problem(case, dtype)
        p.x[0, 2, position] = torch.inf
        grad_x, grad_w, grad_b = ops.gradients(p.grad_output, p.x, p.weight, *case.window, True)
        # A product with an infinity belongs to those taps that read it.
        outputs = (position % length + pads[0] - 2 * torch.arange(3)).tolist()
        read = [0 <= output < case.out_length for output in outputs]
        assert torch.isinf(grad_w[2, 0]).tolist() == read
        assert not any(torch.isnan(grad).any() for grad in (grad_x, grad_w, grad_b))
        assert torch.isfinite(grad_x).all()
        assert torch.isfinite(grad_w[:2]).all()


@parametrize("case", CASES)
def test_no_worse_than_twice_torch(case: Case) -> None:
    p = problem(case, torch.float32)
    leaves = [t.clone().requires_grad_() for t in p[:3]]
    y = torch_conv1d(*leaves, case.window)
    grad_x, grad_w, grad_b = torch.autograd.grad(y, leaves, p.grad_output)
    own_w, own_b = ops.grad_weight(p.grad_output, p.x, case.kernel_size, *case.window, True)
    _, both_w, both_b = ops.gradients(p.grad_output, p.x, p.weight, *case.window, True)
    results = [
        (ops.forward(*p[:3], *case.window, "none"), y.detach()),
        (ops.grad_input(p.grad_output, p.weight, case.length, *case.window), grad_x),
        (own_w, grad_w),
        (own_b, grad_b),
        (both_w, grad_w),
        (both_b, grad_b),
    ]
    exact_grads = exact_gradients(p.x, p.weight, p.grad_output, case.window)
    exact = exact_forward(*p[:3], case.window), *exact_grads, *exact_grads[1:]
    for (own, theirs), right in zip(results, exact, strict=True):
        # The last rounding is luck for both; it must not decide where torch's sums are exact.
        luck = torch.finfo(torch.float32).eps * right.magnitude.max()
        assert (own - right.value).abs().max() <= 2 * (theirs - right.value).abs().max() + luck


def bits(*tensors: Tensor) -> list[bytes]:
    return [t.contiguous().view(torch.uint8).numpy().tobytes() for t in tensors]


def run_all(case: Case, p: Problem) -> list[bytes]:
    return bits(
        ops.forward(p.x, p.weight, p.bias, *case.window, "tanh"),
        ops.grad_input(p.grad_output, p.weight, case.length, *case.window),
        *ops.grad_weight(p.grad_output, p.x, case.kernel_size, *case.window, True),
        *ops.gradients(p.grad_output, p.x, p.weight, *case.window, True),
    )


LARGE = [
    Case("long enough for every thread to get a share", 4, 24, 40, 3001, 3, 1, 2, 2, (4, 0)),
    Case("depthwise", 4, 40, 40, 3001, 4, 1, 2, 40, (6, 0)),
    Case("depthwise, strided", 4, 40, 40, 3001, 4, 2, 1, 40, (2, 1)),
    Case("smaller tiles would have a stream for each tap", 2, 2, 16, 8000, 7, 3, 500),
]


@parametrize("dtype", DTYPES)
@parametrize("case", [*FEW, *SEED, *JOINED, *PACKED_LATE, *FEW_POSITIONS, *LARGE])
def test_same_bits_for_any_number_of_threads(case: Case, dtype: torch.dtype) -> None:
    p = problem(case, dtype)
    torch.set_num_threads(1)
    expected = run_all(case, p)
    assert run_all(case, p) == expected, "repeated"
    for count in (2, 3, 8):
        torch.set_num_threads(count)
        assert run_all(case, p) == expected, f"{count} threads"


@pytest.mark.parametrize("rows", [144, 192])
def test_same_bits_where_many_channels_have_no_gradient(rows: int) -> None:
    """Whether too much cancels for a fast filter is not a matter of how threads share the rows."""
    x, grad_output = random(1, 40, 258, seed=1), random(1, rows, 256, seed=2)
    grad_output[:, 33:64] = 0  # one channel is left where two vectors may make a panel
    results = []
    for count in (1, 2, 3, 5):
        torch.set_num_threads(count)
        results.append(ops.grad_weight(grad_output, x, 3, 1, 0, 0, 1, 1, "tf32", True)[0])
    assert all(torch.equal(result, results[0]) for result in results)


@parametrize("dtype", DTYPES)
@parametrize(
    "case",
    [*FEW, *SEED, *JOINED, *OF_ANY_BATCH, *FEW_POSITIONS, *LARGE]
    + [case._replace(batch=9) for case in PACKED_LATE],
)
def test_same_bits_in_any_batch(case: Case, dtype: torch.dtype) -> None:
    p = problem(case, dtype)
    y = ops.forward(p.x, p.weight, p.bias, *case.window, "none")
    grad_x = ops.grad_input(p.grad_output, p.weight, case.length, *case.window)
    for size in (1, 2):
        part = slice(0, size)
        y_part = ops.forward(p.x[part], p.weight, p.bias, *case.window, "none")
        grad_part = ops.grad_input(p.grad_output[part], p.weight, case.length, *case.window)
        assert bits(y_part, grad_part) == bits(y[part], grad_x[part])


@parametrize("dtype", DTYPES)
def test_empty_batch(dtype: torch.dtype) -> None:
    case = BY_HAND._replace(batch=0)
    p = problem(case, dtype)
    assert ops.forward(p.x, p.weight, p.bias, *case.window, "none").shape == case.y_shape
    grad_x = ops.grad_input(p.grad_output, p.weight, case.length, *case.window)
    assert grad_x.shape == case.x_shape
    grad_w, grad_b = ops.grad_weight(p.grad_output, p.x, case.kernel_size, *case.window, True)
    assert torch.equal(grad_w, torch.zeros(case.weight_shape, dtype=dtype))
    assert torch.equal(grad_b, torch.zeros(case.out_channels, dtype=dtype))
    both = ops.gradients(p.grad_output, p.x, p.weight, *case.window, True)
    assert bits(*both) == bits(grad_x, grad_w, grad_b)


def test_an_input_of_length_zero_is_all_padding() -> None:
    case = Case("", 2, 3, 4, 0, 3, 1, 1, 1, (2, 3))
    p = problem(case, torch.float32)
    y = ops.forward(p.x, p.weight, p.bias, *case.window, "none")
    assert torch.equal(y, p.bias[:, None].expand(case.y_shape))
    grad_w, _ = ops.grad_weight(p.grad_output, p.x, case.kernel_size, *case.window, True)
    assert torch.equal(grad_w, torch.zeros(case.weight_shape))


@parametrize("case", FEW)
def test_opcheck(case: Case) -> None:
    p = problem(case, torch.float32)
    activated = p.grad_output.tanh(), "tanh"
    samples = [
        (ops.forward, (p.x, p.weight, p.bias, *case.window, "tanh")),
        (ops.forward, (p.x, p.weight, None, *case.window, "none")),
        (ops.grad_input, (p.grad_output, p.weight, case.length, *case.window)),
        (ops.grad_weight, (p.grad_output, p.x, case.kernel_size, *case.window, True)),
        (ops.grad_weight, (p.grad_output, p.x, case.kernel_size, *case.window, False)),
        (ops.gradients, (p.grad_output, p.x, p.weight, *case.window, True)),
        (ops.gradients, (p.grad_output, p.x, p.weight, *case.window, False)),
        (ops.grad_input, (p.grad_output, p.weight, case.length, *case.window, *activated)),
        (ops.grad_weight, (p.grad_output, p.x, case.kernel_size, *case.window, True, *activated)),
        (ops.activate, (p.x, "gelu")),
    ]
    for operator, arguments in samples:
        torch.library.opcheck(operator, arguments)


def test_a_raw_operator_does_not_lose_a_gradient_in_silence() -> None:
    weight = random(5, 3, 2).requires_grad_()
    y = ops.forward(random(2, 3, 9), weight, None, 1, 0, 0, 1, 1, "ieee", "none")
    with pytest.warns(UserWarning, match="convlm::forward.*autograd kernel was not registered"):
        y.sum().backward()


def test_isa_is_the_one_asked_for() -> None:
    supported = _host.cpu_isas()
    assert supported[-1] == "generic"
    assert _host.cpu_isa() == (os.environ.get("CONVLM_CPU_ISA") or supported[0])


def _python(isa: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    environment = os.environ | {"CONVLM_CPU_ISA": isa}
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("isa", [isa for isa in _host.cpu_isas() if isa != _host.cpu_isa()])
def test_every_other_isa_of_this_cpu(isa: str) -> None:
    values = "(test_forward or test_grad_ or extreme_values) and (float32 or float64 or bfloat16)"
    names = f"isa_is_the_one or ({values})"
    run = _python(isa, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", names)
    assert run.returncode == 0, run.stdout


def test_an_unknown_isa_is_an_error() -> None:
    script = """
import torch, convlm_kernels
from convlm_kernels import _host, ops
def message(function, *arguments):
    try:
        return function(*arguments), "no error"
    except RuntimeError as error:
        return str(error)
print(message(_host.cpu_isa))
one = torch.ones(1, 1, 1)
print(message(ops.forward, one, one, None, 1, 0, 0, 1, 1, "ieee", "none"))
"""
    run = _python("abacus", "-c", script)
    assert run.returncode == 0, run.stderr
    first, *_, second = run.stdout.splitlines()
    for line in (first, second):
        assert "abacus" in line
        assert "generic" in line
