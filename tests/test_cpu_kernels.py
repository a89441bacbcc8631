"""Which CPU kernel a problem gets, and what fast filtering must not change."""

from __future__ import annotations

import pytest
import torch
from cases import (
    BY_HAND,
    CHANNELS,
    DTYPES,
    FAST,
    FEW_POSITIONS,
    FEW_ROWS,
    IN_PARTS,
    IN_PLACE,
    MANY_GROUPS,
    OF_ANY_BATCH,
    PACKED_LATE,
    PARTLY_FAST,
    SEED,
    TAPS_FIRST,
    Case,
    parametrize,
    problem,
    random,
)
from tolerances import assert_close, exact_forward, exact_gradients, kinds
from torch import Tensor
from torch.nn import functional as F

from convlm_kernels import _host, ops

FUNCTIONS = ("forward", "grad_input", "grad_weight")


def kernel(function: str, case: Case, dtype: str = "float32", precision: str = "ieee") -> str:
    """Where the instructions are those that the prices of kernels were fitted to."""
    fitted = ("avx512_bf16",) if dtype == "bfloat16" else ("avx512", "avx512_bf16", "amx")
    if _host.cpu_isa() not in fitted:
        pytest.skip(f"another kernel may cost less with {_host.cpu_isa()}")
    return _host.cpu_kernel(
        function,
        dtype,
        case.batch,
        case.in_channels,
        case.out_channels,
        case.length,
        case.kernel_size,
        *case.window[:-1],
        fp32_precision=precision,
    )


def language_model(channels: int, kernel_size: int, dilation: int) -> Case:
    pads = ((kernel_size - 1) * dilation, 0)
    return Case("", 16, channels, channels, 1024, kernel_size, 1, dilation, 1, pads)


@pytest.mark.parametrize("dilation", [1, 4, 16, 64])
@pytest.mark.parametrize("channels", [64, 100, 256, 512])
@pytest.mark.parametrize("kernel_size", [3, 6, 7])
def test_layers_of_language_models_are_filtered_fast(
    channels: int, kernel_size: int, dilation: int
) -> None:
    case = language_model(channels, kernel_size, dilation)
    assert kernel("forward", case) == "fast_filter_2"
    assert kernel("grad_input", case) == "fast_filter_2"
    assert kernel("grad_weight", case) == "fast_filter_4"


def test_runs_that_must_be_copied_need_more_channels() -> None:
    assert kernel("forward", language_model(64, 3, 3)) == "positions"
    assert kernel("forward", language_model(256, 3, 3)) == "fast_filter_2"


@pytest.mark.parametrize("dilation", [1, 64])
def test_two_taps_and_few_channels_are_worth_it(dilation: int) -> None:
    assert kernel("forward", language_model(64, 2, dilation)) == "fast_filter_2"
    assert kernel("forward", language_model(32, 3, dilation)) == "fast_filter_2"
    assert kernel("forward", language_model(32, 2, dilation)) == "positions"


@parametrize("case", FAST)
def test_the_cases_for_fast_filtering_get_it(case: Case) -> None:
    assert {kernel(function, case) for function in FUNCTIONS} <= {"fast_filter_2", "fast_filter_4"}


@pytest.mark.parametrize("function", FUNCTIONS)
def test_precision_decides_how_fast(function: str) -> None:
    case = language_model(256, 3, 4)
    # The outputs of a tile of F(4, r) err by a share of inputs that they do not read.
    of_16_bits = "fast_filter_4" if function == "grad_weight" else "fast_filter_2"
    assert kernel(function, case, "float16") == of_16_bits
    assert kernel(function, case, precision="tf32") == "fast_filter_4"
    for precision in ("ieee", "tf32"):
        assert not kernel(function, case, "float64", precision).startswith("fast_filter")


def test_fewer_products_are_taken_where_both_filters_are_exact_enough() -> None:
    # Tiles of 4 dilated positions would be half empty.
    assert kernel("forward", PARTLY_FAST[0], precision="tf32") == "fast_filter_2"


@parametrize(
    "case",
    [
        Case("many taps", 1, 64, 64, 10_000, 51),
        Case("few positions", 1, 64, 64, 1000, 3),
    ],
)
def test_where_torch_sums_more_exactly_so_do_we(case: Case) -> None:
    assert kernel("grad_weight", case) == "fast_filter_2"


@pytest.mark.parametrize("function", FUNCTIONS)
@parametrize(
    "case",
    [
        BY_HAND,
        *SEED,
        CHANNELS[4],  # one tap has nothing to share
        language_model(8, 3, 1),  # too few channels to pay for the transforms
        language_model(256, 3, 512)._replace(length=63, pads=(1024, 0)),  # short rows
        Case("strided", 1, 64, 128, 52_428, 3, 3, 4),
    ],
)
def test_what_fast_filtering_is_not_for(function: str, case: Case) -> None:
    assert not kernel(function, case).startswith("fast_filter")


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_few_rows_and_short_inputs_are_multiplied_by_taps_first(dtype: str) -> None:
    one_row = Case("", 8, 64, 1, 2000, 7, 1, 1, 1, (6, 0))
    assert kernel("forward", one_row, dtype) == "taps"
    assert kernel("grad_input", Case("", 32, 1, 231, 171, 11, 1, 46, 1, (460, 0)), dtype) == "taps"
    far_apart = Case("", 8, 20, 80, 200, 31, 1, 4)
    assert kernel("grad_input", far_apart, dtype) == ("positions" if dtype == "float64" else "taps")
    assert kernel("forward", far_apart, dtype) != "taps"
    assert kernel("grad_input", Case("one tap", 2, 8, 8, 1, 1, 2), dtype) != "taps"


@pytest.mark.parametrize(
    "case",
    [
        Case("", 1, 64, 128, 5000, 3, 3, 4),
        Case("", 2, 64, 128, 8191, 5, 2, 1, 1, (2, 2)),
        Case("", 8, 60, 1, 1000, 5, 2, 1, 1, (2, 2)),
        Case("", 1, 32, 64, 5000, 8, 4, 1, 1, (2, 2)),
    ],
)
def test_classes_of_many_positions_go_together(case: Case) -> None:
    assert kernel("grad_input", case) == "positions"


@pytest.mark.parametrize("function", FUNCTIONS)
@parametrize("case", MANY_GROUPS)
def test_groups_fill_the_vectors_of_short_rows(function: str, case: Case) -> None:
    assert kernel(function, case) == "depthwise"


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("function", FUNCTIONS)
@parametrize(
    "case",
    [
        Case("squeeze and excitation", 1, 512, 512, 1, 1),
        Case("the same, narrow", 1, 512, 64, 1, 1),
        Case("an input as long as the reach", 1, 512, 512, 7, 7),
        Case("four positions of a causal layer", 1, 512, 512, 4, 3, 1, 1, 1, (2, 0)),
        Case("classes of a stride", 1, 256, 256, 6, 4, 2),
    ],
)
def test_weights_that_meet_few_positions_are_read_as_they_lie(
    case: Case, function: str, dtype: str
) -> None:
    assert kernel(function, case, dtype) == "windows"
    if function != "grad_weight":
        assert kernel(function, case._replace(batch=32), dtype) == "windows"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@parametrize(
    "case",
    [
        Case("a number for each position", 2, 300, 1, 1000, 1),
        Case("two, with padding", 2, 300, 2, 100, 1, 1, 1, 1, (3, 1)),
        Case("few weights, groups", 2, 24, 15, 100, 1, 1, 1, 3),
    ],
)
def test_one_tap_of_few_rows_is_a_sum_of_rows_in_place(case: Case, dtype: str) -> None:
    assert kernel("forward", case, dtype) == "depthwise"
    assert kernel("forward", case._replace(stride=2), dtype) != "depthwise"


def test_windows_are_for_few_positions() -> None:
    many = Case("", 32, 512, 512, 50, 3, 1, 1, 1, (2, 0))
    assert all(kernel(function, many) != "windows" for function in FUNCTIONS)


def test_windows_of_taps_far_apart_cost_more_than_packing() -> None:
    apart = Case(
        "each of many channels' inputs is laid out by itself", 1, 276, 51, 10, 5, 2, 4, 1, (8, 8)
    )
    assert kernel("forward", apart) == kernel("forward", apart._replace(batch=32)) == "rows"


@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_cases_of_few_positions_get_windows(function: str) -> None:
    cases = [case for case in FEW_POSITIONS if kernel(function, case) == "windows"]
    assert len(cases) > len(FEW_POSITIONS) // 2
    for case in cases:
        if function != "grad_weight":  # a sum over the batch
            assert kernel(function, case._replace(batch=32)) == "windows"


def test_the_batch_has_no_say() -> None:
    for case in TAPS_FIRST:
        for function in ("forward", "grad_input"):
            assert kernel(function, case) == kernel(function, case._replace(batch=32))


@parametrize("case", SEED[2:])
def test_short_samples_are_joined(case: Case) -> None:
    forward, grad_input, grad_weight = (kernel(f, case._replace(batch=32)) for f in FUNCTIONS)
    assert (forward, grad_input, grad_weight) == ("joined", "taps", "rows")


@parametrize("case", FEW_ROWS)
def test_so_are_the_gradients_of_few_rows(case: Case) -> None:
    assert kernel("grad_weight", case) == "joined"


@parametrize("dtype", (torch.float32, torch.float64))
@parametrize("case", IN_PLACE)
def test_what_is_read_in_place_has_the_bits_of_a_copy(case: Case, dtype: torch.dtype) -> None:
    assert kernel("forward", case, str(dtype).removeprefix("torch.")) == "positions"
    p = problem(case, dtype)
    apart = torch.stack((p.x, p.x), -1)[..., 0]  # positions that are not neighbours are copied
    copied = ops.forward(apart, p.weight, p.bias, *case.window, "none")
    for threads in (1, 2):
        torch.set_num_threads(threads)
        y = ops.forward(p.x, p.weight, p.bias, *case.window, "none")
        assert torch.equal(y, copied)
        alone = ops.forward(p.x[1:2], p.weight, p.bias, *case.window, "none")
        assert torch.equal(alone, copied[1:2])


def test_vectors_that_are_not_full_count_whole() -> None:
    case = Case("34 outputs", 32, 112, 217, 148, 11, 2, 8)
    assert kernel("forward", case) == "joined"  # three vectors of positions would be a third empty


@parametrize("dtype", DTYPES)
@parametrize("case", IN_PARTS[2:])
def test_pieces_of_the_channels_do_not_show_in_the_bits(case: Case, dtype: torch.dtype) -> None:
    assert kernel("forward", case, str(dtype).removeprefix("torch.")) == "positions"
    p = problem(case._replace(batch=3), dtype)

    def run(samples: slice) -> tuple[Tensor, Tensor]:
        y = ops.forward(p.x[samples], p.weight, p.bias, *case.window, "none")
        gradient = p.grad_output[samples]
        return y, ops.grad_input(gradient, p.weight, case.length, *case.window)

    expected = run(slice(None))
    for threads in (1, 2):
        torch.set_num_threads(threads)
        assert all(map(torch.equal, run(slice(None)), expected))
        alone = run(slice(1, 2))
        assert all(torch.equal(a, e[1:2]) for a, e in zip(alone, expected, strict=True))


def test_nothing_is_multiplied_where_nothing_but_padding_is_read() -> None:
    assert kernel("forward", Case("", 32, 137, 216, 2, 2, 1, 4, 1, (2, 2))) == "rows"


def test_the_batch_decides_only_between_kernels_of_the_same_bits() -> None:
    case = SEED[3]
    assert [kernel("forward", case._replace(batch=n)) for n in (1, 32)] == ["rows", "joined"]
    assert kernel("grad_input", case._replace(batch=1)) == "taps"
    of_two = [[kernel("forward", c._replace(batch=n)) for n in (1, 32)] for c in OF_ANY_BATCH[:3]]
    joined, rows = ["positions", "joined"], ["positions", "rows"]
    assert of_two == [joined, joined, rows]


@parametrize("case", PACKED_LATE)
def test_few_outputs_that_are_one_tile_go_by_rows(case: Case) -> None:
    assert kernel("forward", case) == "rows"


@pytest.mark.parametrize("function", FUNCTIONS)
@parametrize(
    "case",
    [
        Case("one of few outputs", 1, 100, 100, 5, 2, 1, 2),
        Case("long samples", 2, 8, 32, 258, 3, 1, 1),
    ],
)
def test_what_is_not_joined(function: str, case: Case) -> None:
    assert kernel(function, case) in ("positions", "rows", "taps", "windows")


def test_depthwise_has_its_own() -> None:
    case = Case("", 8, 512, 512, 2048, 4, 1, 4, 512, (12, 0))
    assert kernel("forward", case) == kernel("grad_input", case) == "depthwise"
    assert kernel("grad_weight", case) == "positions"


@parametrize(
    "case",
    [
        Case("strided", 8, 100, 100, 1003, 7, 2, 1, 100, (3, 3)),
        Case("strided, few outputs", 8, 100, 100, 30, 7, 5, 2, 100, (3, 3)),
        Case("taps far apart", 8, 100, 100, 5000, 3, 1, 2000, 100, (3, 3)),
        Case("a multiplier", 8, 100, 400, 1003, 7, 1, 3, 100, (3, 3)),
        Case("a multiplier, strided", 8, 100, 200, 1003, 7, 3, 2, 100, (3, 3)),
    ],
)
def test_so_have_layers_of_few_channels(case: Case) -> None:
    assert kernel("forward", case) == kernel("grad_input", case) == "depthwise"


def test_more_channels_are_blocked() -> None:
    case = Case("a multiplier of five", 8, 100, 500, 1003, 7, 1, 3, 100, (3, 3))
    assert kernel("forward", case) == "positions"
    assert kernel("grad_input", case) != "depthwise"


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"function": "backward"}, "function must be forward, grad_input or grad_weight"),
        ({"dtype": "int8"}, "dtype must be float32, float64, bfloat16 or float16"),
        ({"fp32_precision": "half"}, "fp32_precision must be ieee or tf32"),
        ({"stride": 0}, "at least 1"),
        ({"groups": 3}, "groups must divide"),
        ({"kernel_size": 99}, "longer than the padded input"),
    ],
)
def test_impossible_questions(replaced: dict[str, object], message: str) -> None:
    asked = {
        "function": "forward",
        "dtype": "float32",
        "batch": 1,
        "in_channels": 8,
        "out_channels": 8,
        "length": 20,
        "kernel_size": 3,
    }
    with pytest.raises(ValueError, match=message):
        _host.cpu_kernel(**(asked | replaced))


@parametrize("case", FAST)
def test_tf32_allows_a_few_times_the_error_of_a_direct_sum(case: Case) -> None:
    """F(4, r) everywhere: far from the error of operands of TF32, which would be 1,000 times."""
    p = problem(case, torch.float32)
    window = *case.window[:-1], "tf32"
    y = ops.forward(p.x, p.weight, p.bias, *window, "none")
    grad_x = ops.grad_input(p.grad_output, p.weight, case.length, *window)
    grad_w, grad_b = ops.grad_weight(p.grad_output, p.x, case.kernel_size, *window, True)
    exact_x, exact_w, exact_b = exact_gradients(p.x, p.weight, p.grad_output, case.window)
    exact_y = exact_forward(p.x, p.weight, p.bias, case.window)
    for actual, exact in ((y, exact_y), (grad_x, exact_x), (grad_w, exact_w), (grad_b, exact_b)):
        assert_close(actual, exact.value, 4 * exact.sum_error(torch.float32))


@pytest.mark.parametrize("precision", ["ieee", "tf32"])
@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
@parametrize("case", [FAST[0], FAST[1], FAST[4], FAST[6]])
def test_not_finite_where_a_direct_sum_is_not(case: Case, bad: float, precision: str) -> None:
    window = *case.window[:-1], precision
    p = problem(case, torch.float32)
    x, weight, grad_output = p.x.clone(), p.weight.clone(), p.grad_output.clone()
    x[0, 5, 40] = bad
    grad_output[0, 3, 50] = bad
    y = ops.forward(x, p.weight, p.bias, *window, "none")
    assert torch.equal(kinds(y), kinds(exact_forward(x, p.weight, p.bias, case.window).value))
    assert not y.isfinite().all()
    grad_x = ops.grad_input(grad_output, p.weight, case.length, *window)
    exact_x, _, _ = exact_gradients(p.x, p.weight, grad_output, case.window)
    assert torch.equal(kinds(grad_x), kinds(exact_x.value))
    grad_w, grad_b = ops.grad_weight(grad_output, x, case.kernel_size, *window, True)
    _, exact_w, exact_b = exact_gradients(x, p.weight, grad_output, case.window)
    assert torch.equal(kinds(grad_w), kinds(exact_w.value))
    assert torch.equal(kinds(grad_b), kinds(exact_b.value))

    weight[7, 2, 1] = bad
    y = ops.forward(p.x, weight, p.bias, *window, "none")
    exact = exact_forward(p.x, weight, p.bias, case.window).value
    # Zeros of the padding are read or left out: infinity times zero may be NaN or nothing.
    source = torch.arange(case.out_length) + case.dilation - case.pads[0]
    inside = (source >= 0) & (source < case.length)
    assert torch.equal(kinds(y[:, :, inside]), kinds(exact[:, :, inside]))
    assert (y[:, 7, ~inside].isnan() | y[:, 7, ~inside].isfinite()).all()


@pytest.mark.parametrize("channels", [2, 64])
@pytest.mark.parametrize("length", [9, 400])
def test_taps_that_read_only_padding_are_left_out(length: int, channels: int) -> None:
    """They would cost as much as others, and make NaN of zeros and an infinite weight."""
    x, weight = random(2, channels, length), random(channels, channels, 4)
    weight[:, :, [0, 2, 3]] = torch.inf
    window = 1, length, 2 * length, length, 1
    y = ops.forward(x, weight, None, *window, "ieee", "none")
    torch.testing.assert_close(y, F.conv1d(x, weight[:, :, 1:2]), rtol=1e-5, atol=1e-4)
    grad_x = ops.grad_input(x, weight, length, *window, "ieee")
    right = F.conv_transpose1d(x, weight[:, :, 1:2])
    torch.testing.assert_close(grad_x, right, rtol=1e-5, atol=1e-4)


def test_an_activation_does_not_hide_what_is_not_finite() -> None:
    case = FAST[0]
    p = problem(case, torch.float32)
    x = p.x.clone()
    x[1, 0, 9] = torch.inf
    y = ops.forward(x, p.weight, p.bias, *case.window, "tanh")
    exact = exact_forward(x, p.weight, p.bias, case.window).value.tanh()
    torch.testing.assert_close(y.double(), exact, rtol=0, atol=1e-5)


def test_sums_of_inputs_that_overflow_are_no_sums_of_the_result() -> None:
    """Components add inputs up before they meet a weight."""
    case = FAST[0]
    p = problem(case, torch.float32)
    x = p.x.sign() * 3e38
    weight = p.weight * 1e-30
    y = ops.forward(x, weight, None, *case.window, "none")
    assert y.isfinite().all()
    exact_forward(x, weight, None, case.window).allows(y)


def test_a_sample_that_is_not_finite_leaves_its_neighbours_their_bits() -> None:
    case = Case("several short samples share a vector of tiles", 5, 64, 64, 66, 3)
    assert kernel("forward", case) == "fast_filter_2"
    p = problem(case, torch.float32)
    expected = ops.forward(p.x, p.weight, p.bias, *case.window, "none")
    x = p.x.clone()
    x[2, 1, 65] = torch.nan
    y = ops.forward(x, p.weight, p.bias, *case.window, "none")
    others = [0, 1, 3, 4]
    assert torch.equal(y[others], expected[others])
    assert not torch.equal(y[2], expected[2])


@parametrize(
    "case",
    [
        Case("four taps far apart, padded as far", 9, 256, 128, 366, 4, 1, 48, 1, (144, 144)),
        Case("few rows for many channels: the gradient", 9, 24, 100, 107, 2, 1, 2, 1, (2, 2)),
    ],
)
def test_several_samples_that_are_not_finite(case: Case) -> None:
    """Each is summed again by a kernel that multiplies by taps first."""
    p = problem(case, torch.float32)
    x, grad_output = p.x.clone(), p.grad_output.clone()
    x[::2, 0, 50] = grad_output[::2, 0, 50] = torch.inf

    def forward(x: Tensor) -> Tensor:
        return ops.forward(x, p.weight, p.bias, *case.window, "none")

    def grad_input(grad_output: Tensor) -> Tensor:
        return ops.grad_input(grad_output, p.weight, case.length, *case.window)

    for function, values in ((forward, x), (grad_input, grad_output)):
        together = function(values)
        for n in range(case.batch):
            assert torch.equal(together[n : n + 1], function(values[n : n + 1]))


@pytest.mark.parametrize("dtype", DTYPES)
@parametrize("case", [FAST[0], PARTLY_FAST[0]])
def test_no_output_knows_of_inputs_that_it_does_not_read(case: Case, dtype: torch.dtype) -> None:
    """However large they are: the past of a causal layer does not change with its future."""
    p = problem(case, dtype)
    pads = (case.kernel_size - 1) * case.dilation, 0
    window = (1, *pads, case.dilation, *case.window[4:])
    y = ops.forward(p.x, p.weight, p.bias, *window, "none")
    for position in range(100, 112):
        x = p.x.clone()
        x[:, :, position:] = 3e4
        changed = ops.forward(x, p.weight, p.bias, *window, "none")
        assert torch.equal(changed[:, :, :position], y[:, :, :position])


@pytest.mark.parametrize("value", [1e3, 1e6, -1e9])
def test_inputs_without_a_gradient_do_not_show_in_that_of_the_weight(value: float) -> None:
    """A padded tail may hold anything where the loss is masked."""
    case = language_model(64, 3, 1)._replace(batch=4, length=512)
    assert kernel("grad_weight", case) == "fast_filter_4"
    p = problem(case, torch.float32)
    x, grad_output = p.x.clone(), p.grad_output.clone()
    x[:, :, 398:] = value
    grad_output[:, :, 398:] = 0
    grad_w, _ = ops.grad_weight(grad_output, x, case.kernel_size, *case.window, False)
    _, exact, _ = exact_gradients(x, p.weight, grad_output, case.window)
    without = exact_gradients(x[:, :, :398], p.weight, grad_output[:, :, :398], case.window)[1]
    assert_close(grad_w, exact.value, 2 * without.sum_error(torch.float32))


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_error_is_bounded_by_the_largest_product_in_reach(scale: float) -> None:
    """Weights and inputs of unlike sizes: the tap that sees the large inputs has small weights.

    A direct sum errs by a share of sum |weight * input|; fast filtering by a share of the largest
    weight times the largest input that an output reads, which is what its notes promise.
    """
    case = FAST[0]
    p = problem(case, torch.float32)
    weight = p.weight * torch.tensor([1.0, scale, 1.0])
    x = p.x.clone()
    x[:, :, 1::4] *= scale
    y = ops.forward(x, weight, None, *case.window, "none").double()
    exact = exact_forward(x, weight, None, case.window)
    reach = torch.nn.functional.max_pool1d(x.abs().amax(1, keepdim=True).double(), 3, 1)
    products = case.in_channels * case.kernel_size
    allowed = (4 + products**0.5) * 2.0**-24 * products**0.5 * 4 * weight.abs().max() * reach
    assert ((y - exact.value).abs() <= allowed).all()
