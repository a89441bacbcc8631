"""Steps on the emulator: against the oracle, the layers and the CPU's operators."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cases import DTYPES, Case, parametrize, random
from streams import (
    ODD_CHAINS,
    STACKS,
    STREAMS,
    forward,
    layer_of,
    run_steps,
    stack_and_input,
    stream,
)
from tolerances import exact_forward
from torch import Tensor

from build import run_sanitized, shared_bytes
from convlm_kernels import CausalConv1d, DilatedStack, StackLayer, step_ops
from convlm_kernels.activations import ACTIVATIONS
from convlm_kernels.lm import DilatedCNN
from convlm_kernels.streaming import StreamState

pytestmark = pytest.mark.usefixtures("nan_in_empty", "steps_on_the_emulator")

NATIVE = step_ops.step


@parametrize("dtype", DTYPES)
@parametrize("case", STREAMS)
def test_steps_are_the_forward(case: Case, dtype: torch.dtype) -> None:
    case = case._replace(length=case.dilation * (case.kernel_size - 1) + 5 - case.pads[0])
    layer = layer_of(case, dtype)
    x = random(*case.x_shape, dtype=dtype, seed=1)
    exact_forward(x, layer.weight, layer.bias, case.window).allows(stream(layer, x))


@parametrize("name", STACKS)
def test_stacks(name: str) -> None:
    stack, x = stack_and_input(name)
    x = x[:, :, :17]
    torch.testing.assert_close(stream(stack, x), forward(stack, x))


@parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fused_activations(activation: str, dtype: torch.dtype) -> None:
    layer = CausalConv1d(3, 21, 2, activation=activation, dtype=dtype)
    x = 3 * random(2, 3, 4, dtype=dtype)
    torch.testing.assert_close(stream(layer, x), layer(x))


# More outputs than there are threads for; groups of several panels; a layer in whose products fewer
# take part than in the one before, and one that is cut as the one before is.
LARGE = {
    "many outputs": lambda: DilatedStack(
        CausalConv1d(5, 1100, 2, activation="tanh"), CausalConv1d(1100, 3, 2)
    ),
    "groups of panels": lambda: DilatedStack(
        CausalConv1d(6, 390, 3, groups=3), CausalConv1d(390, 390, 1, groups=3)
    ),
    "wide and narrow": lambda: DilatedStack(
        CausalConv1d(4, 70, 2),
        CausalConv1d(70, 70, 2, groups=70, dilation=3),
        CausalConv1d(70, 9, 1),
        CausalConv1d(9, 9, 1),
        CausalConv1d(9, 130, 2, dilation=2),
    ),
}


@parametrize("name", LARGE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_layers(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    stack = LARGE[name]().to(dtype)
    x = random(2, stack[0].in_channels, 9, dtype=dtype)
    torch.testing.assert_close(stream(stack, x), forward(stack, x))


def test_many_layers() -> None:
    stack = DilatedStack(*(StackLayer(3, 3, 2, dilation=i + 1, residual=True) for i in range(56)))
    x = random(1, 3, 4)
    torch.testing.assert_close(stream(stack, x), forward(stack, x))
    stack.append(CausalConv1d(3, 3, 1))
    with pytest.raises(RuntimeError, match="plan must have at most 56 layers on a GPU, got 57"):
        stack.step(x[:, :, 0], stack.init_state())


@pytest.mark.parametrize(
    ("name", "dtype", "weight_dtype"),
    [
        ("no padding", torch.float64, None),
        *(("gates and residuals", dtype, None) for dtype in DTYPES if dtype != torch.float64),
        ("gates and residuals", torch.float32, torch.bfloat16),
    ],
)
def test_same_bits_in_any_batch_and_wherever_the_memory_is(
    name: str, dtype: torch.dtype, weight_dtype: torch.dtype | None
) -> None:
    """Alone in a block, four in one, and in a workspace."""
    stack, _ = stack_and_input(name, dtype)
    x = random(131, 3, 3, dtype=dtype)

    def run(x: Tensor) -> Tensor:
        return run_steps(stack, x, stack.init_state(len(x)), weight_dtype=weight_dtype)

    expected = torch.cat([run(row[None]) for row in x[-9:]])
    together = run(x)
    with shared_bytes(0):
        in_workspace = run(x)
    assert torch.equal(together.nan_to_num(7), in_workspace.nan_to_num(7))
    assert torch.equal(together[-9:].nan_to_num(7), expected.nan_to_num(7))


def test_inputs_of_any_strides() -> None:
    stack, x = stack_and_input("gates and residuals")
    state, other = stack.init_state(3), stack.init_state(3)
    for column in x[:, :, :4].unbind(2):
        assert not column.is_contiguous()
        assert torch.equal(stack.step(column, state), stack.step(column.contiguous(), other))


@pytest.mark.parametrize("case", [STREAMS[7], STREAMS[20], *ODD_CHAINS], ids=str)
def test_weights_of_bfloat16_are_the_rounded_ones(case: Case) -> None:
    """As exactly as another order of the sums allows."""
    layer = layer_of(case, torch.float32)
    x = random(*case.x_shape, seed=1)[:, :, :9]
    y = run_steps(layer, x, layer.init_state(2), weight_dtype=torch.bfloat16)
    with torch.no_grad():
        layer.weight.copy_(layer.weight.bfloat16())
    torch.testing.assert_close(y, run_steps(layer, x, layer.init_state(2)), equal_nan=True)


# ---- states ----


def test_a_state_moves_between_devices() -> None:
    """Samples at different positions go on where the CPU stopped, and the CPU where they do."""
    stack, x = stack_and_input("gates and residuals")
    state = StreamState.join(stack.init_state(2), stack.init_state(1))
    stack.prefill(x[:, :, :6], state, torch.tensor([6, 0, 3]))
    reference = state.clone()
    torch.testing.assert_close(
        run_steps(stack, x[:, :, :4], state), by_cpu(stack, x[:, :, :4], reference)
    )
    torch.testing.assert_close(state, reference)
    torch.testing.assert_close(
        by_cpu(stack, x[:, :, 4:], state), run_steps(stack, x[:, :, 4:], reference)
    )


def by_cpu(stack: DilatedStack, x: Tensor, state: StreamState) -> Tensor:
    _, *packed = stack.stream_network().packed()
    columns = [
        NATIVE(column, None, *state, *packed, stack.stream_network().out_channels)
        for column in x.unbind(2)
    ]
    return torch.stack(columns, dim=2)


def test_an_empty_batch() -> None:
    stack, x = stack_and_input("no padding")
    assert stack.step(x[:0, :, 0], stack.init_state(0)).shape == (0, stack[-1].out_channels)


def test_positions_beyond_32_bits_and_below_zero() -> None:
    """Nothing outside a ring is touched; a position is what it is modulo the number of slots."""
    layer = CausalConv1d(3, 5, 4, dilation=5)
    x = random(3, 3, 20)
    plain, far = layer.init_state(3), layer.init_state(3)
    far.position.copy_(torch.tensor([15 * 2**40, 15 * 3**22, 15]))
    assert torch.equal(run_steps(layer, x, far), run_steps(layer, x, plain))
    assert far.position.tolist() == [15 * 2**40 + 20, 15 * 3**22 + 20, 35]
    below = layer.init_state(3)
    below.position.fill_(-7)
    run_steps(layer, x, below)  # the guards around the ring watch


def test_a_token_that_is_none_is_a_row_of_nan() -> None:
    model = DilatedCNN(7, context=4, embedding=3, hidden=5)
    tokens = torch.tensor([[1, 2], [3, 7], [-1, 4], [5, 6]])
    state = model.init_state(4)
    for _ in range(3):
        y = model.step(tokens[:, 0], state)
    assert y.isnan().any(1).tolist() == [True] * 4
    y = model.step(tokens[:, 1], state)
    assert y.isnan().any(1).tolist() == [False, True, True, False]
    for _ in range(4):  # until no output sees it any more
        y = model.step(tokens[:, 0].clamp(min=0), state)
    assert not y.isnan().any()


# ---- what cannot be ----


def test_weights_that_are_not_aligned() -> None:
    layer = CausalConv1d(3, 4, 2)
    state = layer.init_state(1)
    _, weights, biases, plan = layer.stream_network().packed()
    shifted = torch.cat([weights.new_zeros(1), weights])[1:]
    with pytest.raises(RuntimeError, match="weights must begin at a multiple of 16 bytes"):
        step_ops.step(random(1, 3), None, *state, shifted, biases, plan, 4)


def test_layers_beyond_what_a_block_counts(tmp_path: Path) -> None:
    taps, channels = 2**20, 2**8
    plan = torch.tensor([[channels, channels, channels, taps, 1, 0, 0, 0, 0]])
    weights = torch.from_file(  # nothing reads them, so they take no memory
        str(tmp_path / "weights"), shared=True, size=taps * channels, dtype=torch.bfloat16
    )
    rings, position = torch.empty(0, (taps - 1) * channels), torch.empty(0, dtype=torch.int64)
    biases = torch.empty(channels + 16)
    with pytest.raises(RuntimeError, match="fewer than 268435456 numbers in a step"):
        step_ops.step(
            torch.empty(0, channels), None, rings, position, weights, biases, plan, channels
        )


def test_nothing_is_read_or_written_outside_under_the_sanitizer() -> None:
    run_sanitized(__file__, "stacks or (large and float32) or beyond_32")
