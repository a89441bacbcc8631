"""Look-ups by Triton: the operators, and what differentiates them."""

from __future__ import annotations

import os

import pytest
import torch
from cases import DTYPES, LAYOUTS, Case, parametrize, random
from hypothesis import given, settings
from hypothesis import strategies as st
from lookups import (
    CASES,
    Operators,
    cases,
    check,
    check_a_token_that_is_no_word,
    results,
    tokens_of,
)
from torch import Tensor, func
from torch.nn import functional as F

from convlm_kernels import EmbeddingConv1d, embedding, embedding_conv1d, lookup_ops, ops, triton_ops
from convlm_kernels.activations import ACTIVATIONS
from convlm_kernels.triton_kernels import launch, lookup

pytestmark = pytest.mark.usefixtures("nan_in_empty")

DEVICE = "cpu" if triton_ops.INTERPRETED else "cuda"
KERNELS = lookup_ops.OPERATORS["triton"]
OPERATORS = Operators(*KERNELS, DEVICE)

# In the interpreter a program takes some 6 ms, and a row of the table is one.
EVERY_CASE = DEVICE == "cuda" or os.environ.get("CONVLM_TRITON_EVERY_CASE") == "1"


def affordable(case: Case) -> Case:
    return case if EVERY_CASE else case._replace(batch=min(case.batch, 3), in_channels=5)


@parametrize("case", CASES)
def test_result_and_gradients(case: Case) -> None:
    check(OPERATORS, affordable(case), torch.float32)


@parametrize("dtype", DTYPES[1:])
def test_the_other_dtypes(dtype: torch.dtype) -> None:
    check(OPERATORS, affordable(CASES[3]), dtype)


@pytest.mark.skipif(DEVICE == "cuda", reason="strides do not go along to another device")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides(layout: str) -> None:
    check(OPERATORS, affordable(CASES[3]), torch.float16, layout)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activation(activation: str) -> None:
    case, dtype = CASES[3], torch.float64
    table = random(case.kernel_size, case.in_channels, case.out_channels, dtype=dtype)
    tokens, bias = tokens_of(case).int(), random(case.out_channels, dtype=dtype)
    expected = ACTIVATIONS[activation](lookup_ops.lookup(tokens, table, bias, *WINDOW, "none"))
    own = (t.to(DEVICE) for t in (tokens, table, bias))
    torch.testing.assert_close(KERNELS.lookup(*own, *WINDOW, activation).cpu(), expected)


WINDOW, ONE_TAP = CASES[3].window[:4], (1, 0, 0, 1)


def test_the_same_bits_again_and_in_any_batch() -> None:
    case = affordable(CASES[3])
    y, *gradients = results(OPERATORS, case)
    assert all(map(torch.equal, results(OPERATORS, case), (y, *gradients)))
    table = random(case.kernel_size, case.in_channels, case.out_channels).to(DEVICE)
    some = tokens_of(case)[2:].to(DEVICE)
    assert torch.equal(KERNELS.lookup(some, table, None, *WINDOW, "tanh"), y[2:])


def test_a_batch_and_a_length_of_nothing() -> None:
    for nothing in (dict(batch=0), dict(length=0)):
        case = affordable(CASES[3])._replace(**nothing)
        y, grad_table, grad_bias = results(OPERATORS, case)
        assert y.shape == case.y_shape
        assert not y.any()
        assert not grad_table.any()
        assert not grad_bias.any()


@pytest.mark.parametrize("wrong", [28, -(2**63)] if EVERY_CASE else [28])
def test_a_token_that_is_no_word(wrong: int) -> None:
    check_a_token_that_is_no_word(OPERATORS, wrong)


def test_infinities_stay_in_the_sums_they_belong_to() -> None:
    tokens = torch.tensor([[0, 1, 2, 1, 0]], device=DEVICE)
    grad_output = torch.ones(1, 2, 5, device=DEVICE)
    grad_output[0, 1, 3] = torch.inf
    grad_table, _ = KERNELS.lookup_grad_table(grad_output, tokens, 1, 4, 1, 0, 0, 1, False)
    expected = [[2, 2], [2, torch.inf], [1, 1], [0, 0]]
    assert grad_table[0].tolist() == expected
    y = KERNELS.lookup(tokens, grad_table, None, 1, 0, 0, 1, "none")
    assert y[0, 1].tolist() == [2, torch.inf, 1, torch.inf, 2]


def test_numbers_of_64_bits_and_grids_of_two_dimensions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "LARGEST_IN_TILE", 0)
    monkeypatch.setattr(launch, "LARGEST_GRID", 7)
    check(OPERATORS, CASES[3], torch.float32)


def test_one_part_is_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookup, "PROGRAMS", 1)
    check(OPERATORS, CASES[3], torch.bfloat16)


@given(cases(), st.sampled_from(DTYPES))
@settings(max_examples=100 if EVERY_CASE else 8, deadline=None, derandomize=True)
def test_fuzz(case: Case, dtype: torch.dtype) -> None:
    check(OPERATORS, affordable(case), dtype)


def test_opcheck_and_schemas() -> None:
    tokens, table, grad_output = tokens_of(CASES[3]), random(3, 9, 4), random(5, 4, 31)
    tokens, table, grad_output, bias = (
        t.to(DEVICE) for t in (tokens, table, grad_output, random(4))
    )
    samples = [
        (KERNELS.lookup, (tokens, table, bias, *WINDOW, "tanh")),
        (KERNELS.lookup_grad_table, (grad_output, tokens.int(), 1, 9, *ONE_TAP, True)),
    ]
    for operator, arguments in samples:
        torch.library.opcheck(operator, arguments)
    for own, native in zip(KERNELS, lookup_ops.OPERATORS["native"], strict=True):
        assert str(own._schema) == str(native._schema).replace("convlm::", "convlm_triton::")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (dict(tokens=torch.zeros(9, dtype=torch.long)), "lookup: tokens must have the two dim"),
        (dict(tokens=torch.zeros(2, 9)), "tokens must be int64 or int32, got torch.float32"),
        (dict(table=random(9, 4)), r"table must have the three dimensions \(kernel_size, vocab"),
        (dict(table=random(3, 0, 4)), "vocab must be at least 1, got 0"),
        (dict(table=random(30, 9, 4)), "the kernel spans 117 positions"),
        (dict(bias=random(5)), r"bias must have the shape \(4\), got \(5\)"),
        (dict(bias=random(4).double()), "bias and table must have one dtype"),
        (dict(stride=0), "stride must be at least 1, got 0"),
        (dict(activation="sine"), "activation must be none, tanh, relu, silu, gelu or sigmoid"),
    ],
)
def test_impossible_lookups(changed: dict, message: str) -> None:
    possible = dict(tokens=tokens_of(CASES[3]), table=random(3, 9, 4), bias=random(4))
    window = dict(zip(("stride", "pad_left", "pad_right", "dilation"), WINDOW, strict=True))
    arguments = (possible | window | dict(activation="none") | changed).values()
    with pytest.raises(RuntimeError, match=message):
        KERNELS.lookup(*(t.to(DEVICE) if isinstance(t, Tensor) else t for t in arguments))


# --- embedding_conv1d ---

TINY = Case("stride, dilation, uneven padding", 2, 3, 2, 5, 2, 2, 2, 1, (1, 3))
VOCAB = 3


@pytest.fixture
def table_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """By table, whatever the rule would say, and no kernels but Triton's."""
    monkeypatch.setattr(embedding, "prefers_table", lambda *sizes: True)
    monkeypatch.setitem(lookup_ops.OPERATORS, "native", lookup_ops.Operators(None, None))
    monkeypatch.setitem(ops.OPERATORS, "native", ops.Operators(None, None, None))


def operands(case: Case, dtype: torch.dtype = torch.float64) -> tuple[Tensor, list[Tensor]]:
    shapes = (VOCAB, case.in_channels), case.weight_shape, (case.out_channels,)
    tokens = tokens_of(case._replace(in_channels=VOCAB)).to(DEVICE)
    return tokens, [random(*shape, dtype=dtype).to(DEVICE).requires_grad_() for shape in shapes]


def run(tokens: Tensor, *leaves: Tensor, backend: str = "triton") -> Tensor:
    window = TINY.stride, TINY.pads, TINY.dilation
    return embedding_conv1d(tokens, *leaves, *window, activation="tanh", backend=backend)


@pytest.mark.usefixtures("table_alone")
def test_first_and_second_derivatives() -> None:
    tokens, leaves = operands(TINY)

    def derivatives(backend: str) -> list[Tensor]:
        y = run(tokens, *leaves, backend=backend)
        first = torch.autograd.grad(y.square().sum(), leaves, create_graph=True)
        second = torch.autograd.grad(sum(t.square().sum() for t in first), leaves)
        return [y, *first, *second]

    torch.testing.assert_close(derivatives("triton"), derivatives("torch"))


@pytest.mark.usefixtures("table_alone")
def test_transforms() -> None:
    tokens, leaves = operands(TINY)
    several = [torch.stack([t, 2 * t]).detach() for t in leaves]

    def derivatives(backend: str) -> list[Tensor]:
        def loss(tokens: Tensor, *leaves: Tensor) -> Tensor:
            return run(tokens[None], *leaves, backend=backend).square().sum()

        gradients = func.grad(loss, (1, 2, 3))
        primals, tangents = (tokens[0], *leaves), (t.cos() for t in leaves)
        over = func.jvp(lambda *t: gradients(tokens[0], *t), primals[1:], tuple(tangents))
        each = func.vmap(gradients, (0, None, None, None))(tokens, *leaves)
        return [*over, each, func.vmap(gradients, (None, 0, 0, 0))(tokens[0], *several)]

    torch.testing.assert_close(derivatives("triton"), derivatives("torch"))


def test_a_token_that_is_no_word_is_none_in_any_example() -> None:
    tokens = torch.tensor([[[0, 2, 1]], [[-1, 1, 1]]], device=DEVICE)
    grads = random(2, 1, 3, 3).to(DEVICE)

    def gradient(grad_output: Tensor, tokens: Tensor) -> Tensor:
        return KERNELS.lookup_grad_table(grad_output, tokens, 1, 2, *ONE_TAP, False)[0]

    each = [gradient(*example) for example in zip(grads, tokens, strict=True)]
    assert torch.equal(func.vmap(gradient)(grads, tokens), torch.stack(each))


@parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("by_table", [False, True], ids=["gathered", "table"])
@pytest.mark.usefixtures("table_alone")
def test_as_a_layer(dtype: torch.dtype, by_table: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "prefers_table", lambda *sizes: by_table)
    torch.manual_seed(0)
    layer = EmbeddingConv1d(VOCAB, 4, 6, 3, padding="causal", dilation=2, backend="triton")
    layer = layer.to(DEVICE, dtype)
    tokens = tokens_of(TINY._replace(in_channels=VOCAB)).to(DEVICE)
    x = F.pad(F.embedding(tokens, layer.embedding.weight.double()).mT, (4, 0))
    weights = (t.double() for t in (layer.conv.weight, layer.conv.bias))
    expected = F.conv1d(x, *weights, dilation=2)
    torch.testing.assert_close(layer(tokens), expected.to(dtype))
    tokens[0] = VOCAB
    y = layer(tokens)
    assert y[0].isnan().any()
    assert not y[1].isnan().any()


@pytest.mark.usefixtures("table_alone")
def test_compiled_whole() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(run, backend="aot_eager", fullgraph=True, dynamic=True)
    for length in (5, 9):
        tokens, leaves = operands(TINY._replace(length=length))
        y, expected = compiled(tokens, *leaves), run(tokens, *leaves)
        torch.testing.assert_close(y, expected)
        own, right = (torch.autograd.grad(t.square().sum(), leaves) for t in (y, expected))
        torch.testing.assert_close(own, right)
