"""Steps, prefills and packed sequences against the full forward of the same layers."""

from __future__ import annotations

import io

import pytest
import torch
from cases import DTYPES, Case, parametrize, random
from streams import LENGTH, STACKS, STREAMS, forward, layer_of, run_steps, stack_and_input, stream
from tolerances import exact_forward
from torch import Tensor, nn

from convlm_kernels import CausalConv1d, _host, step_ops
from convlm_kernels.activations import ACTIVATIONS
from convlm_kernels.streaming import StreamState

pytestmark = pytest.mark.usefixtures("nan_in_empty")


def same_bits(dtype: torch.dtype) -> bool:
    """Whether the full forward adds up as a step does; it multiplies pairs where it can."""
    return not (dtype == torch.bfloat16 and _host.cpu_isa() == "avx512_bf16")


def is_summed_in_order(case: Case, dtype: torch.dtype) -> bool:
    """Whether the full forward adds up tap by tap, and neither filters fast nor sums taps apart."""
    sizes = case.batch, case.in_channels, case.out_channels, case.length, case.kernel_size
    name = str(dtype).removeprefix("torch.")
    kernel = _host.cpu_kernel("forward", name, *sizes, *case.window[:-1])
    return kernel in ("depthwise", "positions", "rows", "joined")


@parametrize("dtype", DTYPES)
@parametrize("case", STREAMS)
def test_steps_are_the_forward(case: Case, dtype: torch.dtype) -> None:
    layer = layer_of(case, dtype)
    x = random(*case.x_shape, dtype=dtype, seed=1)
    y = stream(layer, x)
    exact_forward(x, layer.weight, layer.bias, case.window).allows(y)
    if same_bits(dtype) and is_summed_in_order(case, dtype):
        assert torch.equal(y, layer(x))


@parametrize("name", STACKS)
def test_stacks(name: str) -> None:
    stack, x = stack_and_input(name)
    torch.testing.assert_close(stream(stack, x), forward(stack, x))


@pytest.mark.parametrize("name", ["no padding", "the seed's"])
def test_stacks_have_the_bits_of_the_forward(name: str) -> None:
    stack, x = stack_and_input(name, torch.float32)
    assert torch.equal(stream(stack, x), forward(stack, x))


@parametrize("activation", ACTIVATIONS)
def test_fused_activations(activation: str) -> None:
    layer = CausalConv1d(3, 21, 2, activation=activation)
    x = 3 * random(2, 3, LENGTH)
    with torch.no_grad():  # else some are torch's own
        assert torch.equal(stream(layer, x), layer(x))


@pytest.mark.parametrize("name", ["gates and residuals", "no padding"])
def test_same_bits_in_any_batch_and_on_any_number_of_threads(name: str) -> None:
    stack, _ = stack_and_input(name, torch.float32)
    x = random(37, 3, 9)
    expected = torch.cat([run_steps(stack, row[None], stack.init_state()) for row in x])
    for batch, threads in ((2, 1), (3, 1), (7, 1), (37, 1), (37, 2)):
        torch.set_num_threads(threads)
        y = run_steps(stack, x[:batch], stack.init_state(batch))
        assert torch.equal(y.nan_to_num(7), expected[:batch].nan_to_num(7))


def test_inputs_of_any_strides() -> None:
    stack, x = stack_and_input("gates and residuals")
    state, other = stack.init_state(3), stack.init_state(3)
    for column in x.unbind(2):
        assert not column.is_contiguous()
        assert torch.equal(stack.step(column, state), stack.step(column.contiguous(), other))
    assert torch.equal(
        stack.step(x[:1, :, 0].expand(3, -1), state),
        stack.step(x[:1, :, 0].repeat(3, 1), other),
    )


# ---- prefill ----


@parametrize("name", STACKS)
def test_a_prefill_in_pieces_is_as_many_steps(name: str) -> None:
    stack, x = stack_and_input(name)
    stepped = stack.init_state(3)
    expected = run_steps(stack, x, stepped)
    state = stack.init_state(3)
    y = torch.cat([stack.prefill(piece, state) for piece in x.split([1, 13, 9], dim=2)], dim=2)
    torch.testing.assert_close(y, expected, equal_nan=True)
    torch.testing.assert_close(state, stepped)
    torch.testing.assert_close(stack.step(x[:, :, 0], state), stack.step(x[:, :, 0], stepped))


def test_prompts_of_different_lengths() -> None:
    stack, x = stack_and_input("padding after a layer without, and less than causal")
    lengths = torch.tensor([0, LENGTH, 5])
    state = stack.init_state(3)
    y = stack.prefill(x, state, lengths)
    assert state.position.tolist() == lengths.tolist()
    for n, length in enumerate(lengths):
        alone = stack.init_state()
        expected = run_steps(stack, x[n : n + 1, :, :length], alone) if length else y[:1, :, :0]
        torch.testing.assert_close(y[n : n + 1, :, :length], expected, equal_nan=True)
        torch.testing.assert_close(state.select([n]), alone)


def test_impossible_prefills() -> None:
    stack, x = stack_and_input("no padding")
    state = stack.init_state(3)
    with pytest.raises(ValueError, match=r"batch 3 and in_channels 3, got shape \(2, 3, 23\)"):
        stack.prefill(x[:2], state)
    with pytest.raises(ValueError, match=r"in_channels 3, got shape \(3, 23\)"):
        stack.prefill(x[0], state)
    for lengths in ([1, 2], [1, 2, 24], [-1, 2, 3]):
        with pytest.raises(ValueError, match="lengths must be 3 numbers from 0 to 23"):
            stack.prefill(x, state, torch.tensor(lengths))
    assert not state.position.any()


# ---- states ----


def test_samples_come_and_go_while_the_batch_runs() -> None:
    """Each is at a position of its own, and gets what it would get alone."""
    stack, x = stack_and_input("gates and residuals")
    expected = [run_steps(stack, row[None], stack.init_state())[0] for row in x]
    state = stack.init_state()
    running, at = [0], [0]

    def step() -> None:
        y = stack.step(torch.stack([x[n, :, t] for n, t in zip(running, at, strict=True)]), state)
        for row, n, t in zip(y, running, at, strict=True):
            assert torch.equal(row, expected[n][:, t])
        at[:] = [t + 1 for t in at]

    step()
    step()
    state = StreamState.join(state, stack.init_state(2))
    running, at = [0, 1, 2], [2, 0, 0]
    step()
    state = state.select([2, 0, 1, 2])  # and one of them twice
    running, at = [2, 0, 1, 2], [1, 3, 1, 1]
    step()
    state = state.drop([0, 2])
    running, at = [0, 2], [4, 2]
    step()
    assert state.position.tolist() == at


def test_a_state_can_be_copied_saved_and_moved() -> None:
    stack, x = stack_and_input("no padding")
    state = stack.init_state(3)
    run_steps(stack, x, state)
    kept = state.clone()
    file = io.BytesIO()
    torch.save(tuple(state.to("cpu")), file)
    expected = run_steps(stack, x, state)
    assert torch.equal(run_steps(stack, x, kept), expected)
    file.seek(0)
    loaded = StreamState(*torch.load(file))
    assert torch.equal(run_steps(stack, x, loaded), expected)


def test_an_empty_batch() -> None:
    stack, x = stack_and_input("no padding")
    state = stack.init_state(0)
    assert stack.step(x[:0, :, 0], state).shape == (0, 20)
    assert stack.prefill(x[:0], state).shape == (0, 20, LENGTH)
    assert stack.prefill(x[:, :, :0], stack.init_state(3)).shape == (3, 20, 0)
    assert state.drop([]).position.shape == (0,)


def test_no_gradient() -> None:
    stack, x = stack_and_input("no padding")
    state = stack.init_state(3)
    assert not stack.prefill(x, state).requires_grad
    assert not stack.step(x[:, :, 0], state).requires_grad
    assert not stack.step(x[:, :, 0].detach().requires_grad_(), state).requires_grad


# ---- packed sequences ----


@pytest.mark.parametrize(
    "lengths", [[5, 1, 0, 17, 4, 3], [7], [0, 3]], ids=["several", "one", "an empty one"]
)
def test_packed_sequences_are_the_separate_ones(lengths: list[int]) -> None:
    stack, _ = stack_and_input("gates and residuals")
    x = random(3, sum(lengths), dtype=torch.float64).requires_grad_()
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0)
    y = stack.forward_packed(x, cu_seqlens)
    pieces = [piece for piece in x.split(lengths, dim=1) if piece.shape[1]]
    expected = torch.cat([stack(piece[None])[0] for piece in pieces], dim=1)
    torch.testing.assert_close(y, expected)
    grad_output = random(*y.shape, dtype=torch.float64)
    leaves = [x, *stack.parameters()]
    torch.testing.assert_close(
        torch.autograd.grad(y, leaves, grad_output),
        torch.autograd.grad(expected, leaves, grad_output),
    )


def test_no_sequence_sees_another() -> None:
    stack, _ = stack_and_input("gates and residuals")
    x = random(3, 24, dtype=torch.float64)
    x[:, 6:15] = torch.nan
    x.requires_grad_()
    y = stack.forward_packed(x, torch.tensor([0, 6, 15, 24]))
    assert y[:, 6:15].isnan().all()
    assert not torch.cat([y[:, :6], y[:, 15:]], dim=1).isnan().any()
    (grad_x,) = torch.autograd.grad(y[:, 15:].sum(), x)
    assert not grad_x[:, :6].any()
    assert not grad_x[:, 15:].isnan().any()
    assert grad_x[:, 15:].any(dim=1).all()


@pytest.mark.parametrize(
    ("cu_seqlens", "message"),
    [
        ([0, 5], "from 0 to the length of x"),
        ([1, 9], "from 0 to the length of x"),
        ([0], "from 0 to the length of x"),
        ([0, 7, 4, 9], "must not decrease"),
    ],
)
def test_bad_cu_seqlens(cu_seqlens: list[int], message: str) -> None:
    stack, _ = stack_and_input("gates and residuals")
    with pytest.raises(ValueError, match=message):
        stack.forward_packed(random(3, 9, dtype=torch.float64), torch.tensor(cu_seqlens))


def test_packed_layers_must_be_causal() -> None:
    with pytest.raises(ValueError, match="padding='causal' in every layer"):
        STACKS["no padding"]().forward_packed(random(3, 9), torch.tensor([0, 9]))


# ---- what torch must know ----


def test_opcheck() -> None:
    stack, x = stack_and_input("gates and residuals", torch.float32)
    state = stack.init_state(3)
    network = stack.stream_network()
    _, *packed = network.packed()
    arguments = *state, *packed, network.out_channels
    torch.library.opcheck(step_ops.step, (x[:, :, 0], None, *arguments))
    embedding, tokens = random(11, 3), torch.tensor([3, 0, 10])
    torch.library.opcheck(step_ops.step, (tokens, embedding, *arguments))


@pytest.mark.parametrize("first_call_compiled", [False, True])
def test_compiled(first_call_compiled: bool) -> None:
    torch._dynamo.reset()
    stack, x = stack_and_input("gates and residuals", torch.float32)
    state = stack.init_state(3)
    compiled = torch.compile(
        lambda column, state: 2 * stack.step(column, state), backend="aot_eager", fullgraph=True
    )
    if not first_call_compiled:
        run_steps(stack, x, stack.init_state(3))
    y = torch.stack([compiled(column, state) for column in x.unbind(2)], dim=2)
    assert torch.equal(y, 2 * stream(stack, x))
    with torch.no_grad():
        stack[0].weight.mul_(2)
    y = torch.stack([compiled(column, stack.init_state(3)) for column in x[:, :, :1].unbind(2)])
    assert torch.equal(y[0], 2 * stack.step(x[:, :, 0], stack.init_state(3)))


def test_compiled_prefill() -> None:
    torch._dynamo.reset()
    stack, x = stack_and_input("gates and residuals", torch.float32)
    compiled = torch.compile(
        lambda x, state: stack.prefill(x, state), backend="aot_eager", fullgraph=True
    )
    state, expected = stack.init_state(3), stack.init_state(3)
    for piece in (x[:, :, :2], x[:, :, 2:]):
        y = stack.prefill(piece, expected)
        torch.testing.assert_close(compiled(piece, state), y, equal_nan=True)
        assert torch.equal(state.position, expected.position)
        torch.testing.assert_close(state.rings, expected.rings)


@pytest.mark.parametrize("name", ["gates and residuals", "no padding"])
def test_autocast_changes_neither_steps_nor_prefills(name: str) -> None:
    """They stay in the dtype of the state, and take what autocast cast for a layer before."""
    stack, x = stack_and_input(name, torch.float32)
    x = x.bfloat16().float()
    states = [stack.init_state(3) for _ in range(3)]
    before = stack.prefill(x, states[0])
    last = stack.step(x[:, :, 0], states[0])
    for state, given in zip(states[1:], (x, x.bfloat16()), strict=True):
        with torch.autocast("cpu", torch.bfloat16):
            y = stack.prefill(given, state)
            after = stack.step(given[:, :, 0], state)
        torch.testing.assert_close(y, before, rtol=0, atol=0, equal_nan=True)
        assert torch.equal(after, last)
        assert torch.equal(state.rings, states[0].rings)


class Mixed(nn.Module):
    """Weights that a matrix product computes: autocast casts it."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Parameter(random(8, 8))

    def forward(self, weight: Tensor) -> Tensor:
        return (self.mix @ weight.flatten(1)).view_as(weight)


def test_weights_are_computed_and_packed_without_autocast() -> None:
    layer, x = CausalConv1d(8, 8, 2), random(2, 8, 3)
    nn.utils.parametrize.register_parametrization(layer, "weight", Mixed())
    state = layer.init_state(2)
    with torch.autocast("cpu", torch.bfloat16):
        by_steps = run_steps(layer, x, state.clone())
        at_once = layer.prefill(x, state)
    assert torch.equal(by_steps, layer(x))
    assert torch.equal(at_once, layer(x))


def test_inputs_of_other_dtypes_are_refused_also_under_autocast() -> None:
    """As by the layers themselves: float64 is not cast."""
    layer = CausalConv1d(3, 5, 2)
    with torch.autocast("cpu", torch.bfloat16):
        for x in (random(2, 3, dtype=torch.float64), torch.ones(2, 3, dtype=torch.int32)):
            with pytest.raises(RuntimeError, match="x must have the dtype"):
                layer.step(x, layer.init_state(2))
            with pytest.raises(RuntimeError, match="x must have the dtype"):
                layer.prefill(x[:, :, None], layer.init_state(2))
    with pytest.raises(RuntimeError, match="x must have the dtype"):
        layer.step(random(2, 3).bfloat16(), layer.init_state(2))
