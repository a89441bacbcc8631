"""Steps, prefills and packed sequences against the full forward of the same layers."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from cases import CASES, DTYPES, Case, parametrize, random
from tolerances import exact_forward
from torch import Tensor, nn
from torch.nn import functional as F

from convlm_kernels import (
    CausalConv1d,
    Conv1d,
    DilatedStack,
    StackLayer,
    _host,
    step_ops,
)
from convlm_kernels.activations import ACTIVATIONS
from convlm_kernels.network import layers_of
from convlm_kernels.streaming import Streaming, StreamState

pytestmark = pytest.mark.usefixtures("nan_in_empty")

LENGTH = 23


def causal(case: Case) -> Case:
    """The case with the most padding on its left that may be, and nothing else of it."""
    reach = case.dilation * (case.kernel_size - 1)
    pads = min(case.pads[0], reach), 0
    return case._replace(why="", batch=2, length=reach + LENGTH - pads[0], stride=1, pads=pads)


STREAMS = sorted({causal(case) for case in CASES if case.kernel_size * case.dilation < 100})


def layer_of(case: Case, dtype: torch.dtype, **options: object) -> Conv1d:
    layer = Conv1d(
        case.in_channels,
        case.out_channels,
        case.kernel_size,
        padding=case.pads,
        dilation=case.dilation,
        groups=case.groups,
        dtype=dtype,
        **options,
    )
    with torch.no_grad():
        layer.weight.copy_(random(*case.weight_shape, dtype=dtype, seed=2))
        layer.bias.copy_(random(case.out_channels, dtype=dtype, seed=3))
    return layer


def run_steps(module: Streaming, x: Tensor, state: StreamState, **options: object) -> Tensor:
    return torch.stack([module.step(column, state, **options) for column in x.unbind(-1)], dim=2)


def stream(module: Streaming, x: Tensor) -> Tensor:
    """All outputs by steps, without the NaNs before the first one."""
    y = run_steps(module, x, module.init_state(len(x)))
    lag = sum(layer.lag for layer in module.stream_layers())
    assert y[:, :, :lag].isnan().all()
    return y[:, :, lag:]


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


def gated(channels: int, dilation: int, **options: object) -> StackLayer:
    return StackLayer(channels, channels, 2, dilation=dilation, gated=True, **options)


STACKS = {
    "gates and residuals": lambda: DilatedStack(
        StackLayer(3, 8, 2),
        gated(8, 1, residual=True),
        gated(8, 2, residual=True),
        StackLayer(8, 5, 1, activation="relu"),
    ),
    "residuals without gates": lambda: DilatedStack(
        StackLayer(19, 19, 3, dilation=4, activation="silu", residual=True),
        StackLayer(19, 19, 3, padding=0, activation="gelu", residual=True),
    ),
    "no padding": lambda: DilatedStack(
        Conv1d(3, 70, 2, activation="tanh"), Conv1d(70, 20, 2, dilation=3)
    ),
    "padding after a layer without, and less than causal": lambda: DilatedStack(
        Conv1d(3, 7, 3, activation="sigmoid"),
        CausalConv1d(7, 7, 3, dilation=2),
        Conv1d(7, 4, 3, padding=(1, 0), dilation=2),
        nn.Sequential(CausalConv1d(4, 4, 5, groups=4), CausalConv1d(4, 6, 2, groups=2)),
    ),
    "the seed's": lambda: DilatedStack(
        Conv1d(1, 100, 20, stride=10, activation="tanh"),
        Conv1d(100, 100, 2, dilation=2, activation="tanh"),
        Conv1d(100, 28, 2, dilation=4),
    ),
}


def stack_and_input(name: str, dtype: torch.dtype = torch.float64) -> tuple[Streaming, Tensor]:
    torch.manual_seed(0)
    stack = STACKS[name]().to(dtype)
    return stack, random(3, layers_of(stack)[0].in_channels, LENGTH, dtype=dtype)


def forward(stack: Streaming, x: Tensor) -> Tensor:
    """Layer by layer: a stack may have quicker ways, which round otherwise."""
    x = x.mT.reshape(len(x), 1, -1) if stack[0].stride != (1,) else x
    with torch.no_grad():
        for layer in stack:
            x = layer(x)
    return x


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


# ---- weights ----


def update_in_place(layer: Conv1d) -> None:
    with torch.no_grad():
        layer.weight.mul_(2)


def take_an_optimizer_step(layer: Conv1d) -> None:
    layer.weight.grad = torch.ones_like(layer.weight)
    torch.optim.SGD(layer.parameters(), lr=0.1).step()


def load_other_weights(layer: Conv1d) -> None:
    layer.load_state_dict({name: 2 * tensor for name, tensor in layer.state_dict().items()})


def give_it_other_storage(layer: Conv1d) -> None:
    layer.weight.data = layer.weight.data + 1


def assign_other_weights(layer: Conv1d) -> None:
    others = {name: 2 * tensor for name, tensor in layer.state_dict().items()}
    layer.load_state_dict(others, assign=True)


def replace_the_parameter(layer: Conv1d) -> None:
    """By one of the same memory and version: only that it is another one tells."""
    memory, version = layer.weight.data, layer.weight._version
    layer.weight = nn.Parameter(memory)
    with torch.no_grad():
        while layer.weight._version < version:
            layer.weight.mul_(2)


def replace_the_bias(layer: Conv1d) -> None:
    layer.bias = nn.Parameter(layer.bias + 1)


CHANGES = [
    update_in_place,
    take_an_optimizer_step,
    load_other_weights,
    give_it_other_storage,
    assign_other_weights,
    replace_the_parameter,
    replace_the_bias,
]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("weight_dtype", [None, torch.bfloat16])
def test_changed_weights_are_seen(change, weight_dtype: torch.dtype | None) -> None:
    layer = CausalConv1d(3, 5, 2)
    x = random(2, 3)
    before = layer.step(x, layer.init_state(2), weight_dtype=weight_dtype)
    state = layer.init_state(2)
    assert torch.equal(before, layer.step(x, layer.init_state(2), weight_dtype=weight_dtype))
    change(layer)
    after = layer.step(x, state, weight_dtype=weight_dtype)
    assert not torch.equal(before, after)
    fresh = copy.deepcopy(layer)
    assert fresh._network is None
    assert torch.equal(after, fresh.step(x, fresh.init_state(2), weight_dtype=weight_dtype))


def test_a_state_is_of_weights_that_were_changed_unseen() -> None:
    """Of a change through .data torch keeps no count. And they lie where they lay."""
    layer, x = CausalConv1d(3, 5, 2), random(2, 3, 7)
    stream(layer, x)
    address = layer.stream_network().packed().weights.data_ptr()
    layer.weight.data.mul_(2)
    layer.bias.data.copy_(torch.ones(5))
    assert torch.equal(stream(layer, x), layer(x))
    assert layer.stream_network().packed().weights.data_ptr() == address


def test_weights_are_packed_again_into_the_same_memory() -> None:
    """Which a captured graph goes on reading; also where the first to pack was inference mode."""
    layer = CausalConv1d(3, 5, 2)
    with torch.inference_mode():
        layer.step(random(2, 3), layer.init_state(2))
    before = layer.stream_network().packed()
    kept, addresses = before.weights.clone(), [t.data_ptr() for t in before[1:]]
    update_in_place(layer)
    layer.init_state(2)
    assert torch.equal(before.weights, 2 * kept)
    update_in_place(layer)
    layer.step(random(2, 3), layer.init_state(2))
    assert torch.equal(before.weights, 4 * kept)
    assert [t.data_ptr() for t in layer.stream_network().packed()[1:]] == addresses


def test_changed_settings_and_parameters_are_seen_by_the_next_state() -> None:
    layer = CausalConv1d(3, 5, 2)
    x = random(2, 3, 7)
    stream(layer, x)
    layer.dilation, layer.activation = (3,), "tanh"
    layer.weight = nn.Parameter(torch.randn(5, 3, 2))
    assert torch.equal(stream(layer, x), layer(x))
    layer.double()
    torch.testing.assert_close(stream(layer, x.double()), layer(x.double()))


def test_parametrized_weights() -> None:
    layer = nn.utils.parametrizations.weight_norm(CausalConv1d(3, 5, 2))
    x = random(2, 3, 7)
    assert torch.equal(stream(layer, x), layer(x))
    with torch.no_grad():
        layer.parametrizations.weight.original0.mul_(3)
    assert torch.equal(stream(layer, x), layer(x))


def test_new_weights_may_lie_where_old_ones_did() -> None:
    layer = Conv1d(3, 5, 2, padding="causal")
    x = random(1, 3)
    for seed in range(40):
        layer.step(x, layer.init_state(1))
        for n in (1, 2):  # the second may get the memory of what the first replaced
            layer.weight.data = random(5, 3, 2, seed=2 * seed + n)
        y = layer.step(x, layer.init_state(1))
        torch.testing.assert_close(y, layer(x[:, :, None])[:, :, 0])


def test_weights_made_in_inference_mode_have_no_version_and_are_read_each_time() -> None:
    with torch.inference_mode():
        layer = CausalConv1d(3, 5, 2)
        x = random(2, 3, 7)
        assert torch.equal(stream(layer, x), layer(x))
        layer.weight.mul_(2)
        assert torch.equal(stream(layer, x), layer(x))


# Two more: chains that begin with the second weight of a pair.
ODD_CHAINS = [Case("", 2, c, 9, LENGTH, k, 1, 1, 1, (k - 1, 0)) for c, k in ((65, 2), (2, 65))]


@parametrize("case", [*STREAMS, *ODD_CHAINS])
def test_weights_of_bfloat16_are_the_rounded_ones(case: Case) -> None:
    layer = layer_of(case, torch.float32)
    x = random(*case.x_shape, seed=1)
    y = run_steps(layer, x, layer.init_state(2), weight_dtype=torch.bfloat16)
    exact = run_steps(layer, x, layer.init_state(2))
    assert not torch.equal(y.nan_to_num(), exact.nan_to_num())
    with torch.no_grad():
        layer.weight.copy_(layer.weight.bfloat16())
    rounded = run_steps(layer, x, layer.init_state(2))
    assert torch.equal(y.nan_to_num(), rounded.nan_to_num())


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


# ---- what cannot be ----


class OtherForward(CausalConv1d):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Conv1d(3, 3, 3, padding="same"), r"Conv1d cannot stream: .* got 'same'"),
        (Conv1d(3, 3, 3, padding=1), r"at most \(2, 0\), got \(1,\)"),
        (Conv1d(3, 3, 3, padding=(3, 0)), r"at most \(2, 0\), got \(3, 0\)"),
        (CausalConv1d(3, 3, 3, stride=2), "stride must be 1, got 2"),
        (Conv1d(1, 3, 5, stride=2), "stride must be 1, got 2"),
        (Conv1d(1, 3, 4, stride=2, padding=1), r"with a stride padding must be 0, got \(1,\)"),
        (Conv1d(3, 3, 3, padding=(2, 0), padding_mode="reflect"), "must be 'zeros', got 'reflect'"),
        (
            DilatedStack(Conv1d(1, 1, 2), Conv1d(1, 3, 2, stride=2)),
            r"layer '1' \(Conv1d\) cannot stream: stride",
        ),
        (
            DilatedStack(CausalConv1d(3, 3, 2), nn.Sequential(nn.Linear(3, 3))),
            r"layer '1\.0' \(Linear\) cannot stream: it is not a Conv1d",
        ),
        (OtherForward(3, 3, 1), "OtherForward cannot stream: its class has a forward of its own"),
        (nn.utils.weight_norm(CausalConv1d(3, 3, 2)), "it has forward hooks"),
        (DilatedStack(), "DilatedStack cannot stream: it has no layers"),
        (DilatedStack(Conv1d(1, 1, 1), Conv1d(1, 1, 1).double()), "in several dtypes"),
    ],
)
def test_what_cannot_stream_is_named_with_the_reason(module: Streaming, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        module.init_state()


def test_a_batch_is_not_negative() -> None:
    with pytest.raises(ValueError, match="batch must not be negative, got -1"):
        CausalConv1d(1, 1, 1).init_state(-1)


def call(**changes: object) -> Tensor:
    """``ops.step`` of a layer 3 -> 4 of two taps on a batch of 2, with one thing changed."""
    layer = CausalConv1d(3, 4, 2)
    state = layer.init_state(2)
    possible = dict(x=random(2, 3), embedding=None, rings=state.rings, position=state.position)
    possible |= layer.stream_network().packed()._asdict() | dict(out_channels=4)
    return step_ops.step(*(possible | changes).values())


def plan_with(column: int, value: int) -> Tensor:
    plan = torch.tensor([[3, 4, 1, 2, 1, 1, 0, 0, 0]])
    plan[0, column] = value
    return plan


IMPOSSIBLE = {
    "x has the size": (dict(x=random(3, 3)), "x must have the size 2 in dimension 0"),
    "channels": (dict(x=random(2, 4)), "x must have the size 3 in dimension 1, got shape (2, 4)"),
    "x dimensions": (dict(x=random(2, 3, 1)), "x must be (batch, in_channels) or tokens (batch)"),
    "x dtype": (dict(x=random(2, 3).double()), "x must have the dtype"),
    "rings": (dict(rings=random(2, 4)), "rings must have the size 3 in dimension 1"),
    "rings layout": (dict(rings=random(3, 2).T), "rings must be contiguous"),
    "position": (dict(position=torch.zeros(3).long()), "position must have the size 2"),
    "position dtype": (dict(position=torch.zeros(2).int()), "position must have the dtype Long"),
    "negative": (dict(position=torch.tensor([0, -1])), "position must not be negative, got -1"),
    "weights": (dict(weights=random(7)), "weights must have the size 96 in dimension 0"),
    "weight dtype": (dict(weights=random(96).half()), "weights must have the dtype of rings"),
    "biases": (dict(biases=random(4)), "biases must have the size 32 in dimension 0"),
    "plan": (dict(plan=torch.zeros(1, 8).long()), "plan must have the size 9 in dimension 1"),
    "no layers": (dict(plan=torch.zeros(0, 9).long()), "plan must have at least one layer"),
    "out_channels": (dict(out_channels=5), "out_channels must be that of the last layer, 4, got 5"),
    "groups": (dict(plan=plan_with(2, 2)), "groups (2) must divide in_channels and out_channels"),
    "pad_left": (dict(plan=plan_with(5, 2)), "pad_left must be between 0 and 1, got 2"),
    "dilation": (dict(plan=plan_with(4, 0)), "layer 0: dilation must be between 1 and"),
    "activation": (dict(plan=plan_with(6, 6)), "activation must be between 0 and 5, got 6"),
    "residual": (dict(plan=plan_with(8, 1)), "a residual needs as many outputs as in_channels"),
    "chain": (
        dict(plan=plan_with(0, 3).repeat(2, 1)),
        "layer 1 takes 3 channels, but the one before gives 4",
    ),
    "token": (
        dict(x=torch.tensor([0, 5]), embedding=random(5, 3)),
        "tokens must be from 0 to 4, got 5",
    ),
    "tokens": (dict(x=random(2), embedding=random(5, 3)), "tokens must have the dtype Long"),
    "embedding": (
        dict(x=torch.tensor([0, 1]), embedding=random(5, 2)),
        "embedding must have the size 3 in dimension 1",
    ),
}


@pytest.mark.parametrize("what", IMPOSSIBLE)
def test_impossible_steps(what: str) -> None:
    assert call().shape == (2, 4)
    changes, message = IMPOSSIBLE[what]
    with pytest.raises(RuntimeError) as raised:
        call(**changes)
    assert message in str(raised.value)


@pytest.mark.parametrize("what", ["x has the size", "x dimensions", "position"])
def test_impossible_steps_without_data(what: str) -> None:
    changes, message = IMPOSSIBLE[what]
    layer = CausalConv1d(3, 4, 2)
    state, network = layer.init_state(2), layer.stream_network()
    possible = dict(x=random(2, 3), embedding=None, rings=state.rings, position=state.position)
    possible |= network.packed()._asdict()
    arguments = [v.to("meta") if v is not None else v for v in (possible | changes).values()]
    with pytest.raises(RuntimeError) as raised:
        step_ops.step(*arguments, 4)
    assert message in str(raised.value)


def test_the_kernels_run_on_the_cpu_and_on_gpus() -> None:
    layer = CausalConv1d(3, 4, 2, device="meta")
    with pytest.raises(RuntimeError, match="on the CPU and on CUDA devices, not on meta"):
        layer.step(random(1, 3).to("meta"), layer.init_state())


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


def test_padding_of_packed_weights_is_never_read_as_an_output() -> None:
    """One channel less than a panel, a panel, and one more."""
    for channels in (63, 64, 65):
        layer = CausalConv1d(2, channels, 2)
        x = random(1, 2, 5)
        y = F.conv1d(F.pad(x, (1, 0)), layer.weight, layer.bias)
        torch.testing.assert_close(stream(layer, x), y)
