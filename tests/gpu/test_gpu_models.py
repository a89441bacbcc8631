"""Fused stacks, look-ups and training steps on a GPU."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from cases import DTYPES, parametrize
from device import DEVICE, GEOMETRY, needs_gpu, skip_unless
from stacks import (
    NATIVE,
    REPEATED,
    SIGNALS,
    TOKENS,
    Stack,
    bits,
    check,
    check_loss,
    inputs_of,
    run,
    run_loss,
)

from convlm_kernels import CausalConv1d, DilatedStack, EmbeddingConv1d, StackLayer
from convlm_kernels.backends import can_run_cuda
from convlm_kernels.lm import (
    CNN,
    CapturedSteps,
    DilatedCNN,
    Progress,
    Schedule,
    Split,
    make_data,
    train,
)

ON_GPU = NATIVE._replace(device=str(DEVICE), roundings=4 if DEVICE.type == "cuda" else 1)
BACKEND = "cuda" if DEVICE.type == "cuda" else "cpp"
DATA = make_data([a + b + a for a in "abcde" for b in "abcde"], context=2)


@pytest.fixture(autouse=True)
def kernels() -> None:
    if DEVICE.type != "cpu":
        skip_unless(can_run_cuda(GEOMETRY, torch.float32, DEVICE))


@parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stack", [*SIGNALS, *TOKENS], ids=str)
def test_stacks(stack: Stack, dtype: torch.dtype) -> None:
    check(stack, dtype, operators=ON_GPU)


@parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("stack", TOKENS, ids=str)
def test_losses_of_stacks(stack: Stack, dtype: torch.dtype) -> None:
    check_loss(stack, dtype, operators=ON_GPU)


@parametrize("dtype", DTYPES)
def test_shared_contexts(dtype: torch.dtype) -> None:
    check(REPEATED, dtype, share=True, operators=ON_GPU)


@parametrize("dtype", [torch.float32, torch.float64])
def test_losses_of_shared_contexts(dtype: torch.dtype) -> None:
    check_loss(REPEATED, dtype, share=True, operators=ON_GPU)


# What a compiler might join in one kernel and not in the other: a product and what is added to it.
REPEATED_GATES = TOKENS[2]._replace(why="gates and residuals for a GPU to share", batch=28_000)


@parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stack", [REPEATED, REPEATED_GATES], ids=str)
def test_sharing_contexts_changes_no_bit(stack: Stack, dtype: torch.dtype) -> None:
    inputs = inputs_of(stack, dtype).to(str(DEVICE))
    shared, plain = (
        ON_GPU.forward(*inputs, stack.settings, share, False)[0] for share in (True, False)
    )
    assert torch.equal(shared, plain)


def test_sharing_contexts_changes_no_bit_of_a_loss() -> None:
    inputs = inputs_of(REPEATED, torch.float32)
    shared, plain = (run_loss(REPEATED, inputs, share, ON_GPU)[:2] for share in (True, False))
    assert bits(shared) == bits(plain)


def test_the_plan_counts_shared_contexts() -> None:
    layers = EmbeddingConv1d(5, 8, 64, 2, backend=BACKEND), StackLayer(64, 64, 2, backend=BACKEND)
    stack = DilatedStack(*layers).to(DEVICE)
    tokens = torch.randint(5, (8192, 10), device=DEVICE)
    assert stack.plan(tokens).rows[0] == 25
    assert "layer 0: 25 distinct contexts for 73728 positions" in str(stack.plan(tokens))
    if DEVICE.type == "cuda":
        assert stack.plan(tokens).rows[1] == 125
        assert "contexts are not shared: there are " in str(stack.plan(tokens[:32]))


def test_a_graph_shares_the_contexts_of_other_tokens() -> None:
    """How many there are the host never knows, and nothing is left over from a replay before."""
    needs_gpu()
    inputs = inputs_of(REPEATED, torch.float32).to(str(DEVICE))
    few = inputs.tokens.clone()
    few[:, 3:] = 0
    tokens = few.clone()
    operands = *inputs[2:], REPEATED.settings, True
    target = torch.zeros(1100, 16, dtype=torch.long, device=DEVICE)

    def gradients() -> list[torch.Tensor]:
        loss, found = ON_GPU.cross_entropy(inputs.x, tokens, target, *operands)
        return [loss, *found]

    gradients()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = gradients()
    for others in (inputs.tokens, few, inputs.tokens):
        tokens.copy_(others)
        graph.replay()
        assert all(map(torch.equal, captured, gradients()))


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("stack", [SIGNALS[1], TOKENS[0], REPEATED], ids=str)
def test_the_same_bits_every_time(stack: Stack, share: bool) -> None:
    inputs = inputs_of(stack, torch.float32)
    expected = bits(run(stack, inputs, share, ON_GPU))
    assert all(bits(run(stack, inputs, share, ON_GPU)) == expected for _ in range(5))


def test_a_stack_of_layers_runs_fused() -> None:
    torch.manual_seed(0)
    layers = [
        StackLayer(8, 8, 2, dilation=d, gated=True, residual=True, backend=BACKEND)
        for d in (1, 2, 4)
    ]
    stack = DilatedStack(*layers, CausalConv1d(8, 5, 1, backend=BACKEND)).to(DEVICE)
    x = torch.randn(3, 8, 40, device=DEVICE, requires_grad=True)
    assert str(stack.plan(x)) == "one fused operator"
    y = stack(x)
    expected = torch.nn.Sequential.forward(stack, x)
    torch.testing.assert_close(y, expected)
    leaves = [x, *stack.parameters()]
    seed = torch.randn_like(y)
    torch.testing.assert_close(
        torch.autograd.grad(y, leaves, seed), torch.autograd.grad(expected, leaves, seed)
    )
    long = torch.randn(1, 8, 100_000, device=DEVICE)
    if DEVICE.type == "cuda":
        assert "bytes of shared memory" in stack.plan(long).reason
    torch.testing.assert_close(stack(long), torch.nn.Sequential.forward(stack, long))


def test_tokens_of_another_device_are_refused() -> None:
    needs_gpu()
    stack = TOKENS[1]
    inputs = inputs_of(stack, torch.float32).to(str(DEVICE))
    mixed = inputs._replace(tokens=inputs.tokens.cpu())
    with pytest.raises(RuntimeError, match="tokens and x must be on one device"):
        NATIVE.forward(*mixed, stack.settings, False, False)


def test_embeddings_are_looked_up() -> None:
    torch.manual_seed(0)
    layer = EmbeddingConv1d(28, 10, 33, 3, padding="causal", activation="tanh", backend=BACKEND)
    layer = layer.to(DEVICE)
    tokens = torch.randint(28, (9, 50), device=DEVICE)
    plain = deepcopy(layer)
    plain.conv.backend = "torch"
    results = [m(tokens) for m in (layer, plain)]
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)
    seed = torch.randn_like(results[0])
    gradients = [
        torch.autograd.grad(y, list(m.parameters()), seed)
        for y, m in zip(results, (layer, plain), strict=True)
    ]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [CNN, DilatedCNN])
def test_captured_training_is_the_same(kind: type) -> None:
    """Bit for bit, with losses read only now and then."""
    needs_gpu()
    torch.manual_seed(0)
    model = kind(len(DATA.alphabet), context=2, embedding=4, backend="cuda").to(DEVICE)
    twin = deepcopy(model)
    split = Split(*(t.to(DEVICE) for t in DATA.train))
    schedule = Schedule(90, batch_size=8, lr=0.3, final_lr=0.1, lr_drop=45)
    own, right = Progress.start(7), Progress.start(7)
    steps = CapturedSteps(model, split, schedule.batch_size)
    train(model, split, schedule, own, steps=steps)
    train(twin, split, schedule, right)
    assert own.losses == right.losses
    assert all(map(torch.equal, model.parameters(), twin.parameters()))


def test_a_captured_training_learns_what_torch_learns() -> None:
    needs_gpu()
    torch.manual_seed(0)
    sizes = {"vocab": len(DATA.alphabet), "context": 2, "embedding": 4}
    model = DilatedCNN(**sizes, backend="cuda")
    twin = DilatedCNN(**sizes, fused=False, backend="torch")
    twin.load_state_dict(model.state_dict())
    split = Split(*(t.to(DEVICE) for t in DATA.train))
    schedule = Schedule(40, batch_size=8, lr=0.3)
    own, right = Progress.start(7), Progress.start(7)
    model.to(DEVICE)
    train(model, split, schedule, own, steps=CapturedSteps(model, split, schedule.batch_size))
    train(twin, DATA.train, schedule, right)
    assert own.losses == pytest.approx(right.losses, rel=1e-4)
