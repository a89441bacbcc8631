"""The operators of fused stacks against the same layers in float64 on torch's own convolution."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import NamedTuple

import pytest
import torch
from cases import DTYPES, LAYOUTS, parametrize, random
from torch import Tensor
from torch.nn import functional as F

from convlm_kernels import _host
from convlm_kernels.autograd import ACTIVATIONS
from convlm_kernels.stack_ops import (
    stack_backward,
    stack_cross_entropy,
    stack_forward,
    stack_losses,
    stack_rows,
    stack_sgd_,
)

pytestmark = pytest.mark.usefixtures("nan_in_empty")


class Stack(NamedTuple):
    why: str
    batch: int
    length: int
    channels: tuple[int, ...]  # before, between and after the layers
    kernel_size: int
    dilations: tuple[int, ...]
    activations: tuple[str, ...]
    causal: bool = False
    residuals: tuple[int, ...] = ()
    vocab: int = 0  # of tokens; 0: the input is a signal

    def __str__(self) -> str:
        shape = f"b{self.batch}_l{self.length}_c{'-'.join(map(str, self.channels))}"
        kind = f"k{self.kernel_size}_{'causal' if self.causal else 'valid'}"
        return f"{shape}_{kind}_{'-'.join(self.activations)}_v{self.vocab}"

    @property
    def depth(self) -> int:
        return len(self.dilations)

    @property
    def settings(self) -> tuple[list[int], list[int], list[str], list[int]]:
        pads = [d * (self.kernel_size - 1) if self.causal else 0 for d in self.dilations]
        residuals = self.residuals or (0,) * self.depth
        return list(self.dilations), pads, list(self.activations), list(residuals)


SEED = ("tanh", "tanh", "none")
SIGNALS = [
    Stack("the seed's last two layers", 5, 22, (100, 100, 28), 2, (2, 4), ("tanh", "none")),
    Stack("several groups of samples, the last one smaller", 45, 40, (9, 33, 17), 3, (1, 3),
          ("tanh", "relu")),
    Stack("WaveNet: gates and residuals", 3, 29, (12,) * 4, 2, (1, 2, 4), ("gate",) * 3, True,
          (1, 1, 1)),
    Stack("a residual without padding takes the last positions", 2, 31, (7, 7, 7), 3, (2, 5),
          ("silu", "gelu"), False, (1, 1)),
    Stack("activated last layer, padding longer than the input", 2, 5, (3, 6, 4), 4, (3, 9),
          ("sigmoid", "tanh"), True),
    Stack("a chain longer than one register adds up", 2, 9, (300, 5), 2, (1,), ("none",)),
    Stack("one layer, one channel, one position", 1, 1, (1, 1), 1, (1,), ("relu",)),
    Stack("one tap", 3, 11, (5, 8, 5), 1, (1, 1), ("gelu", "silu")),
]  # fmt: skip
TOKENS = [
    Stack("the seed's model", 33, 23, (10, 100, 100, 28), 2, (1, 2, 4), SEED, vocab=28),
    Stack("contexts repeat in each layer", 40, 23, (10, 20, 20, 28), 2, (1, 2, 4), SEED, vocab=3),
    Stack("three taps, padding is a context too, residuals and gates", 9, 17, (8,) * 4, 3,
          (1, 2, 4), ("gate",) * 3, True, (1, 1, 1), vocab=2),
    Stack("no context repeats often enough", 2, 19, (6, 9, 5), 2, (1, 2), ("tanh", "none"),
          vocab=50),
    Stack("one tap, many tokens to a word", 20, 6, (4, 5, 3), 1, (1, 1), ("relu", "none"), vocab=2),
]  # fmt: skip
STACKS = SIGNALS + TOKENS


class Inputs(NamedTuple):
    x: Tensor
    tokens: Tensor | None
    weights: list[Tensor]
    biases: list[Tensor]

    def with_x(self, x: Tensor) -> Inputs:
        return self._replace(x=x)


def inputs_of(stack: Stack, dtype: torch.dtype) -> Inputs:
    """Every second layer has a bias."""
    weights, biases = [], []
    for i, activation in enumerate(stack.activations):
        fan_in, columns = stack.channels[i], stack.channels[i + 1]
        columns *= 2 if activation == "gate" else 1
        scale = (fan_in * stack.kernel_size) ** -0.5
        weight = random(columns, fan_in, stack.kernel_size, dtype=torch.float64, seed=i) * scale
        weights.append(weight.to(dtype))
        biases.append(random(columns if i % 2 == 0 else 0, dtype=dtype, seed=7))
    if not stack.vocab:
        x = random(stack.batch, stack.channels[0], stack.length, dtype=dtype)
        return Inputs(x, None, weights, biases)
    generator = torch.Generator().manual_seed(5)
    tokens = torch.randint(stack.vocab, (stack.batch, stack.length), generator=generator)
    return Inputs(random(stack.vocab, stack.channels[0], dtype=dtype), tokens, weights, biases)


def reference(stack: Stack, inputs: Inputs) -> Tensor:
    x, tokens, weights, biases = inputs
    if tokens is not None:
        x = F.embedding(tokens, x).transpose(1, 2)
    for weight, bias, dilation, pad, activation, residual in zip(
        weights, biases, *stack.settings, strict=True
    ):
        z = F.conv1d(F.pad(x, (pad, 0)), weight, bias if bias.numel() else None, dilation=dilation)
        if activation == "gate":
            a, b = z.chunk(2, 1)
            y = a.tanh() * b.sigmoid()
        else:
            y = z if activation == "none" else ACTIVATIONS[activation](z)
        x = y + x[..., x.shape[2] - y.shape[2] :] if residual else y
    return x


def reference_gradients(stack: Stack, inputs: Inputs, seed: Tensor) -> list[Tensor]:
    x, tokens, weights, biases = inputs
    leaves = [t.clone().requires_grad_() for t in (x, *weights, *biases)]
    depth = stack.depth
    y = reference(stack, Inputs(leaves[0], tokens, leaves[1 : depth + 1], leaves[depth + 1 :]))
    used = [t for t in leaves if t.numel()]
    found = iter(torch.autograd.grad(y, used, seed))
    return [next(found) if t.numel() else t.detach() for t in leaves]


def double(inputs: Inputs) -> Inputs:
    x, tokens, weights, biases = inputs
    return Inputs(x.double(), tokens, [t.double() for t in weights], [t.double() for t in biases])


def assert_as_near_as_torch(actual: Tensor, exact: Tensor, torchs: Tensor) -> None:
    """In float32 no further from ``exact`` than twice torch's own layers. The others are compared
    with roundoff: torch rounds 16-bit types after each layer, and float64 is the oracle's own."""
    assert actual.shape == exact.shape
    if not exact.numel():
        return
    allowed = torch.finfo(actual.dtype).eps * exact.abs().max()
    if actual.dtype == torch.float32:
        allowed = 2 * (torchs.double() - exact).abs().max() + 8 * allowed
    if actual.dtype == torch.float64:
        allowed = 64 * allowed
    assert (actual.double() - exact).abs().max() <= allowed


def run(stack: Stack, inputs: Inputs, share: bool = False) -> list[Tensor]:
    """The result, and the gradients of everything."""
    y, saved = stack_forward(*inputs, *stack.settings, share, True)
    seed = random(*y.shape, dtype=y.dtype, seed=9)
    return [y, *stack_backward(seed, saved, *inputs, *stack.settings, share, True)]


def run_loss(stack: Stack, inputs: Inputs, share: bool) -> list[Tensor]:
    """The losses, their mean, and its gradients of everything."""
    operands = (*inputs[:2], target_of(stack, inputs), *inputs[2:], *stack.settings, share)
    loss, gradients = stack_cross_entropy(*operands)
    return [stack_losses(*operands), loss, *gradients]


def target_of(stack: Stack, inputs: Inputs) -> Tensor:
    shape = reference(stack, inputs).shape
    generator = torch.Generator().manual_seed(3)
    return torch.randint(shape[1], (shape[0], shape[2]), generator=generator)


def bits(tensors: list[Tensor]) -> list[bytes]:
    return [t.flatten().view(torch.uint8).numpy().tobytes() for t in tensors]


@parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("stack", "share"), [*((s, False) for s in STACKS), *((s, True) for s in TOKENS)], ids=str
)
def test_result_and_gradients(stack: Stack, share: bool, dtype: torch.dtype) -> None:
    inputs = inputs_of(stack, dtype)
    own = run(stack, inputs, share)
    seed = random(*own[0].shape, dtype=dtype, seed=9)
    exact = double(inputs)
    right = [reference(stack, exact), *reference_gradients(stack, exact, seed.double())]
    torchs = own
    if dtype == torch.float32:
        torchs = [reference(stack, inputs), *reference_gradients(stack, inputs, seed)]
    for actual, value, other in zip(own, right, torchs, strict=True):
        assert_as_near_as_torch(actual, value, other)


@parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("share", [False, True], ids=["dense", "shared"])
@pytest.mark.parametrize("stack", TOKENS, ids=str)
def test_cross_entropy_and_gradients(stack: Stack, share: bool, dtype: torch.dtype) -> None:
    inputs = inputs_of(stack, dtype)
    target = target_of(stack, inputs)

    def reference_loss(inputs: Inputs) -> list[Tensor]:
        logits = reference(stack, inputs)
        losses = F.cross_entropy(logits, target, reduction="none")
        one = torch.ones((), dtype=logits.dtype) / target.numel()
        seed = torch.func.grad(lambda z: F.cross_entropy(z, target, reduction="sum"))(logits) * one
        return [losses, losses.mean(), *reference_gradients(stack, inputs, seed)]

    exact, torchs = reference_loss(double(inputs)), reference_loss(inputs)
    for actual, value, other in zip(run_loss(stack, inputs, share), exact, torchs, strict=True):
        assert_as_near_as_torch(actual, value, other)


@pytest.mark.parametrize("stack", STACKS, ids=str)
def test_same_bits_with_and_without_what_gradients_need(stack: Stack) -> None:
    inputs = inputs_of(stack, torch.float32)
    results = [stack_forward(*inputs, *stack.settings, False, save)[0] for save in (False, True)]
    assert bits(results[:1]) == bits(results[1:])


@pytest.mark.parametrize("stack", TOKENS, ids=str)
def test_shared_contexts_do_not_show_in_the_bits(stack: Stack) -> None:
    inputs = inputs_of(stack, torch.float32)
    dense, shared = (stack_forward(*inputs, *stack.settings, share, False)[0] for share in (0, 1))
    assert bits([dense]) == bits([shared])


@pytest.mark.parametrize("share", [False, True], ids=["dense", "shared"])
@pytest.mark.parametrize("stack", [SIGNALS[1], SIGNALS[2], TOKENS[0], TOKENS[2]], ids=str)
def test_same_bits_for_any_number_of_threads(stack: Stack, share: bool) -> None:
    inputs = inputs_of(stack, torch.float32)
    results = []
    for threads in (1, 2, 3, 5):
        torch.set_num_threads(threads)
        results.append(bits(run(stack, inputs, share)))
        if stack.vocab:
            results[-1] += bits(run_loss(stack, inputs, share))
    assert all(result == results[0] for result in results)


@pytest.mark.parametrize("share", [False, True], ids=["dense", "shared"])
@pytest.mark.parametrize("stack", [SIGNALS[1], TOKENS[0], TOKENS[1]], ids=str)
def test_same_bits_in_any_batch(stack: Stack, share: bool) -> None:
    inputs = inputs_of(stack, torch.float32)
    y, _ = stack_forward(*inputs, *stack.settings, share, False)
    for first, last in ((0, 1), (2, 5), (stack.batch - 1, stack.batch)):
        some = inputs
        if inputs.tokens is None:
            some = inputs.with_x(inputs.x[first:last])
        else:
            some = inputs._replace(tokens=inputs.tokens[first:last])
        part, _ = stack_forward(*some, *stack.settings, share, False)
        assert bits([part]) == bits([y[first:last]])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides(layout: str) -> None:
    stack, change = SIGNALS[2], LAYOUTS[layout]
    x, _, weights, biases = inputs_of(stack, torch.float32)
    strange = Inputs(change(x), None, [change(w) for w in weights], [change(b) for b in biases])
    plain = Inputs(*(t if t is None else _contiguous(t) for t in strange))
    assert bits(run(stack, strange)) == bits(run(stack, plain))


def _contiguous(tensors: Tensor | list[Tensor]) -> Tensor | list[Tensor]:
    if isinstance(tensors, list):
        return [t.contiguous() for t in tensors]
    return tensors.contiguous()


@pytest.mark.parametrize("stack", [SIGNALS[0], TOKENS[0]], ids=str)
def test_empty_batch(stack: Stack) -> None:
    inputs = inputs_of(stack, torch.float32)
    if inputs.tokens is None:
        empty = inputs.with_x(inputs.x[:0])
    else:
        empty = inputs._replace(tokens=inputs.tokens[:0])
    y, *gradients = run(stack, empty)
    assert y.shape[0] == 0
    assert all((g == 0).all() for g in gradients)


def test_rows_are_the_distinct_contexts_that_are_few() -> None:
    tokens = torch.tensor([[0, 0, 0, 1, 2], [0, 0, 0, 1, 1], [0, 0, 0, 0, 0], [0, 0, 0, 0, 1]])
    stack = Stack("", 4, 5, (3, 4, 4, 4), 2, (1, 1, 1), SEED, vocab=4)
    inputs = inputs_of(stack, torch.float32)._replace(tokens=tokens)
    pairs = {(0, 0), (0, 1), (1, 2), (1, 1)}  # of 16
    threes = {(0, 0, 0), (0, 0, 1), (0, 1, 2), (0, 1, 1)}  # of 12
    rows = stack_rows(*inputs, *stack.settings, True).tolist()
    assert rows == [len(pairs), len(threes), 4 * 2]
    assert stack_rows(*inputs, *stack.settings, False).tolist() == [16, 12, 8]


@pytest.mark.parametrize("stack", [SIGNALS[2], TOKENS[2]], ids=str)
def test_opcheck(stack: Stack) -> None:
    inputs = inputs_of(stack, torch.float32)
    torch.library.opcheck(stack_forward, (*inputs, *stack.settings, True, True))
    y, saved = stack_forward(*inputs, *stack.settings, True, True)
    arguments = (torch.ones_like(y), saved, *inputs, *stack.settings, True, True)
    torch.library.opcheck(stack_backward, arguments)
    if stack.vocab:
        operands = (*inputs[:2], target_of(stack, inputs), *inputs[2:], *stack.settings, True)
        torch.library.opcheck(stack_cross_entropy, operands)
        torch.library.opcheck(stack_losses, operands)
        torch.library.opcheck(stack_sgd_, (*_with_rows(operands, torch.tensor([1, 0])), 0.1))


def _with_rows(operands: tuple, rows: Tensor) -> tuple:
    return (*operands[:3], rows, *operands[3:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_step_of_some_rows(dtype: torch.dtype) -> None:
    stack = TOKENS[1]
    x, tokens, weights, biases = inputs_of(stack, dtype)
    target = target_of(stack, Inputs(x, tokens, weights, biases))
    rows = torch.tensor([3, 0, 3, 39])
    loss, gradients = stack_cross_entropy(
        x, tokens[rows], target[rows], weights, biases, *stack.settings, True
    )
    parameters = [x, *weights, *biases]
    expected = [p - 0.5 * g for p, g in zip(parameters, gradients, strict=True)]
    operands = x, tokens, target, weights, biases, *stack.settings, True
    own = stack_sgd_(*_with_rows(operands, rows.repeat_interleave(2)[::2]), 0.5)
    assert torch.equal(own, loss)
    torch.testing.assert_close(parameters, expected)
    before = [p.clone() for p in parameters]
    for wrong, message in (
        (torch.tensor([0, 40]), r"rows must lie in \[0, 40\), got 40 at 1"),
        (torch.tensor([-1]), r"rows must lie in \[0, 40\), got -1 at 0"),
        (rows.int(), "rows must have one dimension and be int64, got shape"),
        (rows[0], "rows must have one dimension and be int64, got shape"),
    ):
        with pytest.raises(RuntimeError, match=message):
            stack_sgd_(*_with_rows(operands, wrong), 0.5)
    assert stack_sgd_(*_with_rows(operands, rows[:0]), 0.5).isnan()  # the mean of nothing
    assert all(map(torch.equal, parameters, before))


def _wrong(**changes: object) -> tuple:
    stack = Stack("", 2, 9, (3, 4, 4), 2, (1, 2), ("gate", "none"), vocab=5)
    inputs = inputs_of(stack, torch.float32)._asdict()
    settings = dict(
        zip(("dilations", "pads", "activations", "residuals"), stack.settings, strict=True)
    )
    return (*{**inputs, **settings, **changes}.values(), True, False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"tokens": torch.full((2, 9), 5)},
            r"tokens must lie in \[0, vocab = 5\), got 5 at \(0, 0",
        ),
        ({"tokens": torch.zeros(2, 9)}, "tokens must be int64 or int32, got Float"),
        ({"tokens": torch.zeros(9, dtype=torch.long)}, r"two dimensions \(batch, length\)"),
        ({"x": torch.zeros(5, 2)}, r"weights\[0\] must have the shape \(out_channels, 2, k"),
        ({"x": torch.zeros(5)}, r"two dimensions \(vocab, channels\), got shape \(5\)"),
        ({"x": torch.zeros(5, 3).double()}, r"weights\[0\] and x must have one dtype"),
        ({"dilations": [1]}, "dilations must have one entry for each of the 2 weights, got 1"),
        ({"dilations": [1, 0]}, "dilation must be at least 1, got 0"),
        ({"dilations": [1, 20]}, "the kernel spans 21 positions"),
        ({"pads": [-1, 0]}, "pad_left must be at least 0, got -1"),
        ({"activations": ["gate", "abs"]}, "activation must be .*, got 'abs'"),
        ({"activations": ["none", "gate"]}, r"weights\[1\] must have the shape"),
        ({"residuals": [1, 0]}, "residual layer 0 must have as many channels as its input, 3, g"),
        ({"biases": [torch.zeros(3), torch.zeros(0)]}, r"biases\[0\] must have the shape \(8\)"),
        ({"weights": []}, "weights must have at least one entry"),
    ],
)
def test_impossible_stacks(changes: dict, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        stack_forward(*_wrong(**changes))


def test_impossible_targets() -> None:
    stack = TOKENS[1]
    inputs = inputs_of(stack, torch.float32)
    target = target_of(stack, inputs)

    def losses(inputs: Inputs, target: Tensor) -> Tensor:
        return stack_losses(*inputs[:2], target, *inputs[2:], *stack.settings, True)

    with pytest.raises(RuntimeError, match=r"target must lie in \[0, out_channels = 28\), got 28"):
        losses(inputs, torch.full_like(target, 28))
    with pytest.raises(
        RuntimeError, match=r"target must have the shape \(40, 16\), got \(40, 15\)"
    ):
        losses(inputs, target[:, 1:])
    with pytest.raises(RuntimeError, match="x must be float32 or float64, got Half"):
        losses(inputs_of(stack, torch.float16), target)


@pytest.mark.parametrize("isa", _host.cpu_isas()[1:])
def test_every_other_isa_of_this_cpu(isa: str) -> None:
    arguments = "-q", "-p", "no:cacheprovider", __file__, "-k", "gradients and float32"
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *arguments],
        env={**os.environ, "CONVLM_CPU_ISA": isa},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout
