"""Stacks of convolutions for the tests of every device, and the same layers of torch's own."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from cases import LAYOUTS, random
from torch import Tensor
from torch.nn import functional as F

from convlm_kernels import stack_ops
from convlm_kernels.activations import ACTIVATIONS
from convlm_kernels.stack_ops import LayerSettings


class Operators(NamedTuple):
    forward: Any
    backward: Any
    cross_entropy: Any
    losses: Any
    roundings: int = 1  # of 16-bit numbers, one after the other, until there is a result
    device: str = "cpu"


NATIVE = Operators(
    stack_ops.stack_forward,
    stack_ops.stack_backward,
    stack_ops.stack_cross_entropy,
    stack_ops.stack_losses,
)


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
    def layers(self) -> list[LayerSettings]:
        pads = [d * (self.kernel_size - 1) if self.causal else 0 for d in self.dilations]
        residuals = self.residuals or (0,) * self.depth
        rows = zip(self.dilations, pads, self.activations, map(bool, residuals), strict=True)
        return [LayerSettings(*row) for row in rows]

    @property
    def settings(self) -> list[int]:
        return stack_ops.settings_of(self.layers)


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
# Layers of two taps that the CPU filters fast in losses and gradients.
FILTERED_SIGNALS = [
    Stack("the last rows have no second", 3, 31, (48, 64, 56), 2, (1, 4), ("relu", "none")),
    Stack("padding, gates and residuals", 40, 45, (56,) * 4, 2, (1, 2, 4),
          ("gate", "tanh", "gate"), True, (1, 0, 1)),
]  # fmt: skip
FILTERED_TOKENS = [
    Stack("from the second layer on", 33, 40, (6, 50, 66, 40, 40), 2, (1, 2, 4, 8),
          ("gelu", "relu", "tanh", "none"), vocab=40),
]  # fmt: skip
FILTERED = FILTERED_SIGNALS + FILTERED_TOKENS
STACKS = SIGNALS + TOKENS
REPEATED = TOKENS[0]._replace(why="few contexts, often enough for a GPU", batch=1100, vocab=5)


class Inputs(NamedTuple):
    x: Tensor
    tokens: Tensor | None
    weights: list[Tensor]
    biases: list[Tensor]

    def to(self, device: str) -> Inputs:
        x, tokens, weights, biases = self
        tokens = None if tokens is None else tokens.to(device)
        return Inputs(
            x.to(device), tokens, [w.to(device) for w in weights], [b.to(device) for b in biases]
        )

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
    for weight, bias, (dilation, pad, activation, residual) in zip(
        weights, biases, stack.layers, strict=True
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


def assert_as_near_as_torch(
    actual: Tensor, exact: Tensor, torchs: Tensor, roundings: int = 1
) -> None:
    """In float32 no further from ``exact`` than twice torch's own layers. The others are compared
    with roundoff: torch rounds 16-bit types after each layer, and float64 is the oracle's own. Its
    sums of some ten thousand products are themselves off by 64 eps."""
    assert actual.shape == exact.shape
    if not exact.numel():
        return
    allowed = torch.finfo(actual.dtype).eps * exact.abs().max()
    if actual.dtype in (torch.bfloat16, torch.float16):
        allowed = roundings * allowed
    if actual.dtype == torch.float32:
        allowed = 2 * (torchs.double() - exact).abs().max() + 8 * allowed
    if actual.dtype == torch.float64:
        allowed = 256 * allowed
    assert (actual.double() - exact).abs().max() <= allowed


def run(
    stack: Stack, inputs: Inputs, share: bool = False, operators: Operators = NATIVE
) -> list[Tensor]:
    """The result, and the gradients of everything, on the CPU."""
    inputs = inputs.to(operators.device)
    y, saved = operators.forward(*inputs, stack.settings, share, True)
    seed = random(*y.shape, dtype=y.dtype, seed=9).to(y.device)
    gradients = operators.backward(seed, saved, *inputs, stack.settings, share, True)
    return [t.cpu() for t in (y, *gradients)]


def run_loss(
    stack: Stack, inputs: Inputs, share: bool = False, operators: Operators = NATIVE
) -> list[Tensor]:
    """The losses, their mean, and its gradients of everything, on the CPU."""
    target = target_of(stack, inputs).to(operators.device)
    inputs = inputs.to(operators.device)
    operands = (*inputs[:2], target, *inputs[2:], stack.settings, share)
    loss, gradients = operators.cross_entropy(*operands)
    return [t.cpu() for t in (operators.losses(*operands), loss, *gradients)]


def check(
    stack: Stack, dtype: torch.dtype, share: bool = False, operators: Operators = NATIVE
) -> None:
    """Result and gradients against torch's layers in float64."""
    inputs = inputs_of(stack, dtype)
    own = run(stack, inputs, share, operators)
    seed = random(*own[0].shape, dtype=dtype, seed=9)
    exact = double(inputs)
    right = [reference(stack, exact), *reference_gradients(stack, exact, seed.double())]
    torchs = own
    if dtype == torch.float32:
        torchs = [reference(stack, inputs), *reference_gradients(stack, inputs, seed)]
    for actual, value, other in zip(own, right, torchs, strict=True):
        assert_as_near_as_torch(actual, value, other, operators.roundings)


def check_loss(
    stack: Stack, dtype: torch.dtype, share: bool = False, operators: Operators = NATIVE
) -> None:
    """Losses and gradients of their mean against torch's layers in float64."""
    inputs = inputs_of(stack, dtype)
    target = target_of(stack, inputs)

    def reference_loss(inputs: Inputs) -> list[Tensor]:
        logits = reference(stack, inputs)
        losses = F.cross_entropy(logits, target, reduction="none")
        one = torch.ones((), dtype=logits.dtype) / target.numel()
        seed = torch.func.grad(lambda z: F.cross_entropy(z, target, reduction="sum"))(logits) * one
        return [losses, losses.mean(), *reference_gradients(stack, inputs, seed)]

    exact, torchs = reference_loss(double(inputs)), reference_loss(inputs)
    own = run_loss(stack, inputs, share, operators)
    for actual, value, other in zip(own, exact, torchs, strict=True):
        assert_as_near_as_torch(actual, value, other)


def strange(stack: Stack, layout: str) -> tuple[Inputs, Inputs]:
    """Inputs of another layout, and the same contiguous."""
    change = LAYOUTS[layout]
    x, _, weights, biases = inputs_of(stack, torch.float32)
    inputs = Inputs(change(x), None, [change(w) for w in weights], [change(b) for b in biases])
    plain = [[t.contiguous() for t in tensors] for tensors in inputs[2:]]
    return inputs, Inputs(inputs.x.contiguous(), None, *plain)


def target_of(stack: Stack, inputs: Inputs) -> Tensor:
    shape = reference(stack, inputs).shape
    generator = torch.Generator().manual_seed(3)
    return torch.randint(shape[1], (shape[0], shape[2]), generator=generator)


def bits(tensors: list[Tensor]) -> list[bytes]:
    return [t.flatten().view(torch.uint8).numpy().tobytes() for t in tensors]


def check_empty_batch(stack: Stack, operators: Operators = NATIVE) -> None:
    inputs = inputs_of(stack, torch.float32)
    if inputs.tokens is None:
        empty = inputs.with_x(inputs.x[:0])
    else:
        empty = inputs._replace(tokens=inputs.tokens[:0])
    y, *gradients = run(stack, empty, operators=operators)
    assert y.shape[0] == 0
    assert all((g == 0).all() for g in gradients)


def check_closed_units(operators: Operators = NATIVE, channels: int = 6) -> None:
    """An infinite gradient ends where relu is closed."""
    stack = Stack("", 3, 20, (channels,) * 2, 2, (1,), ("relu",), True, (1,))
    inputs = inputs_of(stack, torch.float32).to(operators.device)
    y, saved = operators.forward(*inputs, stack.settings, False, True)
    closed = y == inputs.x
    gradients = [
        operators.backward(
            torch.ones_like(y).masked_fill(closed, value), saved, *inputs, stack.settings, 0, True
        )
        for value in (0.0, torch.inf)
    ]
    assert bits(gradients[0][1:]) == bits(gradients[1][1:])
    assert torch.equal(gradients[1][0].isinf(), closed)  # past the unit


def check_int32_and_strided_tokens(stack: Stack, operators: Operators) -> None:
    inputs = inputs_of(stack, torch.float32)
    assert inputs.tokens is not None
    expected = bits(run(stack, inputs, operators=operators))
    for tokens in (inputs.tokens.int(), inputs.tokens.T.contiguous().T):
        assert bits(run(stack, inputs._replace(tokens=tokens), operators=operators)) == expected


# Changes of a possible stack, and what is said of them.
IMPOSSIBLE: list[tuple[dict[str, Any], str]] = [
    ({"tokens": torch.zeros(2, 9)}, "tokens must be int64 or int32, got "),
    ({"tokens": torch.zeros(9, dtype=torch.long)}, r"two dimensions \(batch, length\)"),
    ({"x": torch.zeros(5, 2)}, r"weights\[0\] must have the shape \(out_channels, 2, k"),
    ({"x": torch.zeros(5)}, r"two dimensions \(vocab, channels\), got shape \(5\)"),
    ({"x": torch.zeros(5, 3).double()}, r"weights\[0\] and x must have one dtype"),
    ({"settings": [1, 0, 0, 0]}, "settings must have 4 entries for each of the 2 weights, got 4"),
    ({"settings": [1, 0, 6, 0, 0, 0, 0, 0]}, "dilation must be at least 1, got 0"),
    ({"settings": [1, 0, 6, 0, 20, 0, 0, 0]}, "the kernel spans 21 positions"),
    ({"settings": [1, -1, 6, 0, 1, 0, 0, 0]}, "pad_left must be at least 0, got -1"),
    ({"settings": [1, 0, 6, 0, 1, 0, 7, 0]}, "activation of layer 1 must be from 0 to 6, got 7"),
    ({"settings": [1, 0, 0, 0, 1, 0, 6, 0]}, r"weights\[1\] must have the shape"),
    (
        {"settings": [1, 0, 6, 1, 1, 0, 0, 0]},
        "residual layer 0 must have as many channels as its input, 3, got",
    ),
    ({"biases": [torch.zeros(3), torch.zeros(0)]}, r"biases\[0\] must have the shape \(8\)"),
    (
        {"weights": [torch.zeros(8, 3, 2), torch.zeros(4, 4, 2)]}
        | {"biases": [torch.zeros(0)] * 2, "settings": [1, 0, 6, 0, 2, 9, 0, 1]},
        "residual layer 1 must not be padded by more than its reach, 2, got 9",
    ),
    ({"weights": []}, "weights must have at least one entry"),
]


def impossible(changes: dict[str, Any]) -> tuple:
    """Arguments of the forward operator."""
    stack = Stack("", 2, 9, (3, 4, 4), 2, (1, 2), ("gate", "none"), vocab=5)
    inputs = inputs_of(stack, torch.float32)._asdict()
    return (*{**inputs, "settings": stack.settings, **changes}.values(), True, False)
