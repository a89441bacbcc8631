"""``embedding_conv1d`` and its layer against an embedding and a convolution of torch."""

from __future__ import annotations

import pytest
import torch
from cases import DTYPES, LAYOUTS, Case, parametrize, random
from tolerances import Exact, torch_conv1d
from torch import Tensor, func
from torch.nn import functional as F

from convlm_kernels import embedding, embedding_conv1d
from convlm_kernels.activations import ACTIVATIONS
from convlm_kernels.embedding import prefers_table

# in_channels of a case is the embedding's dimension. Each has 7 words.
VOCAB = 7
CASES = [
    Case("the seed's first layer, pairs", 4, 10, 100, 23, 2),
    Case("the seed's CNN", 4, 10, 28, 23, 8),
    Case("strided, dilated, padded unevenly", 3, 5, 9, 40, 4, 3, 2, 1, (5, 2)),
    Case("more padding than tokens", 2, 6, 5, 3, 3, 1, 4, 1, (9, 8)),
    Case("one channel, one tap", 5, 4, 1, 30, 1),
    Case("taps that read only padding", 2, 4, 3, 40, 5, 2, 30, 1, (90, 1)),
    Case("wider than the vectors in registers, and a rest", 2, 8, 131, 33, 3, 1, 1, 1, (1, 1)),
    Case("several tiles and pieces", 3, 6, 33, 1300, 3, 2, 1, 1, (2, 0)),
]


def operands(case: Case, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    tokens = torch.randint(VOCAB, (case.batch, case.length), generator=generator)
    table = random(VOCAB, case.in_channels, dtype=dtype, seed=1)
    weight = random(*case.weight_shape, dtype=dtype, seed=2)
    return tokens, table, weight, random(case.out_channels, dtype=dtype, seed=3)


def settings(case: Case) -> dict[str, object]:
    return dict(stride=case.stride, padding=case.pads, dilation=case.dilation)


def composed(tokens: Tensor, table: Tensor, weight: Tensor, bias: Tensor | None, case: Case):
    return torch_conv1d(F.embedding(tokens.long(), table).mT, weight, bias, case.window)


def exact_forward(case: Case, tokens: Tensor, *others: Tensor | None) -> Exact:
    doubles = [t if t is None else t.detach().double() for t in others]
    magnitude = composed(tokens, *(t if t is None else t.abs() for t in doubles), case)
    return Exact(composed(tokens, *doubles, case), magnitude, others[1][0].numel())


def exact_gradients(
    case: Case, tokens: Tensor, others: list[Tensor], grad_output: Tensor
) -> list[Exact]:
    """Of embedding, weight and bias."""

    def gradients(g: Tensor, *doubles: Tensor) -> list[Tensor]:
        leaves = [t.detach().requires_grad_() for t in doubles]
        return list(torch.autograd.grad(composed(tokens, *leaves, case), leaves, g))

    doubles = [t.detach().double() for t in (grad_output, *others)]
    values, magnitudes = gradients(*doubles), gradients(*(t.abs() for t in doubles))
    products = [grad_output.numel(), grad_output[:, 0].numel(), grad_output[:, 0].numel()]
    return [Exact(*three) for three in zip(values, magnitudes, products, strict=True)]


@pytest.fixture(params=["table", "gathered"])
def method(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each of the two ways, whatever the rule would say."""
    monkeypatch.setattr(embedding, "prefers_table", lambda *sizes: request.param == "table")
    return request.param


@parametrize("dtype", DTYPES)
@parametrize("case", CASES)
def test_forward(case: Case, dtype: torch.dtype, method: str) -> None:
    tokens, *others = operands(case, dtype)
    for bias in (others[2], None):
        y = embedding_conv1d(tokens, *others[:2], bias, **settings(case))
        assert y.dtype == dtype
        exact_forward(case, tokens, *others[:2], bias).allows(y)


@parametrize("dtype", [torch.float32, torch.float64])
@parametrize("case", CASES)
def test_gradients(case: Case, dtype: torch.dtype, method: str) -> None:
    tokens, *others = operands(case, dtype)
    leaves = [t.requires_grad_() for t in others]
    grad_output = random(*case.y_shape, dtype=dtype, seed=4)
    y = embedding_conv1d(tokens, *leaves, **settings(case))
    exact = exact_gradients(case, tokens, leaves, grad_output)
    for own, right in zip(torch.autograd.grad(y, leaves, grad_output), exact, strict=True):
        right.allows(own)


@parametrize("dtype", [torch.bfloat16, torch.float16])
@parametrize("case", CASES)
def test_gradients_of_sixteen_bits_are_rounded_once(
    case: Case, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By table; a convolution rounds the gradients of gathered embeddings too."""
    monkeypatch.setattr(embedding, "prefers_table", lambda *sizes: True)
    tokens, *others = operands(case, dtype)
    leaves = [t.requires_grad_() for t in others]
    grad_output = random(*case.y_shape, dtype=dtype, seed=4)
    y = embedding_conv1d(tokens, *leaves, **settings(case))
    exact = exact_gradients(case, tokens, leaves, grad_output)
    for own, right in zip(torch.autograd.grad(y, leaves, grad_output), exact, strict=True):
        assert own.dtype == dtype
        right.allows(own)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activation(activation: str, method: str) -> None:
    case = CASES[2]
    tokens, *others = operands(case, torch.float64)
    leaves = [t.requires_grad_() for t in others]
    y = embedding_conv1d(tokens, *leaves, **settings(case), activation=activation)
    expected = ACTIVATIONS[activation](composed(tokens, *leaves, case))
    torch.testing.assert_close(y, expected)
    own, right = (torch.autograd.grad(t.square().sum(), leaves) for t in (y, expected))
    torch.testing.assert_close(own, right)


TINY = Case("stride, dilation, uneven padding", 2, 3, 2, 7, 3, 2, 2, 1, (1, 3))


def test_first_and_second_derivatives(method: str) -> None:
    tokens, *others = operands(TINY, torch.float64)
    leaves = [t.requires_grad_() for t in others]

    def run(*leaves: Tensor) -> Tensor:
        return embedding_conv1d(tokens, *leaves, **settings(TINY), activation="tanh")

    assert torch.autograd.gradcheck(run, leaves, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(run, leaves, check_fwd_over_rev=True)


def test_torch_func(method: str) -> None:
    case = CASES[0]
    tokens, *others = operands(case, torch.float64)

    def loss(tokens: Tensor, *others: Tensor) -> Tensor:
        return embedding_conv1d(tokens[None], *others, **settings(case)).square().sum()

    def plain(tokens: Tensor, *others: Tensor) -> Tensor:
        return composed(tokens[None], *others, case).square().sum()

    for wanted in ((1, 2, 3), (3,)):
        own, right = (
            func.vmap(func.grad(f, wanted), (0, None, None, None))(tokens, *others)
            for f in (loss, plain)
        )
        torch.testing.assert_close(own, right)
    several = [torch.stack([t, 2 * t, -t]) for t in others]
    for f in (loss, plain):
        f.result = func.vmap(func.grad(f, 1), (None, 0, 0, 0))(tokens[0], *several)
    torch.testing.assert_close(loss.result, plain.result)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides(layout: str, method: str) -> None:
    case = CASES[2]
    tokens, *others = operands(case, torch.float64)
    others = [LAYOUTS[layout](t) for t in others]
    grad_output = LAYOUTS[layout](random(*case.y_shape, dtype=torch.float64))
    leaves = [t.requires_grad_() for t in others]
    for words in (
        tokens,
        tokens.int(),
        tokens.mT.contiguous().mT,
        tokens.int()[:, :1].expand_as(tokens),
    ):
        y = embedding_conv1d(words, *leaves, **settings(case))
        expected = composed(words, *leaves, case)
        torch.testing.assert_close(y, expected)
        own, right = (torch.autograd.grad(t, leaves, grad_output) for t in (y, expected))
        torch.testing.assert_close(own, right)


def test_unbatched_and_empty(method: str) -> None:
    case = CASES[0]
    tokens, *others = operands(case, torch.float32)
    y = embedding_conv1d(tokens, *others)
    assert torch.equal(embedding_conv1d(tokens[1], *others), y[1])
    leaves = [t.requires_grad_() for t in others]
    nothing = embedding_conv1d(tokens[:0], *leaves)
    assert nothing.shape == (0, *y.shape[1:])
    for gradient in torch.autograd.grad(nothing.sum(), leaves):
        assert not gradient.any()


def bits(tensors: object) -> list[bytes]:
    return [t.detach().flatten().view(torch.uint8).numpy().tobytes() for t in tensors]


@parametrize("dtype", DTYPES)
@parametrize("case", CASES)
def test_same_bits_for_any_number_of_threads(case: Case, dtype: torch.dtype) -> None:
    tokens, *others = operands(case, dtype)
    leaves = [t.requires_grad_() for t in others]

    def run() -> list[bytes]:
        y = embedding_conv1d(tokens, *leaves, **settings(case), activation="tanh")
        return bits([y, *torch.autograd.grad(y.sum(), leaves)])

    expected = run()
    for count in (2, 3):
        torch.set_num_threads(count)
        assert run() == expected, f"{count} threads"


@pytest.mark.parametrize("value", [-1, VOCAB, 2**40, -(2**63), 2**63 - 1])
def test_a_token_outside_the_vocabulary(value: int, method: str) -> None:
    tokens, *others = operands(CASES[0], torch.float32)
    tokens[2, 5] = value
    message = rf"tokens must lie in \[0, vocab = {VOCAB}\), got {value} at \(2, 5\)"
    with pytest.raises(RuntimeError, match=message):
        embedding_conv1d(tokens, *others)
    if abs(value) < 2**31:
        with pytest.raises(RuntimeError, match=message):
            embedding_conv1d(tokens.int(), *others)


def test_a_weight_laid_end_to_end(method: str) -> None:
    case = CASES[0]
    tokens, table, weight, bias = operands(case, torch.float64)
    laid = weight.mT.flatten(1).unsqueeze(1)
    torch.testing.assert_close(
        embedding_conv1d(tokens, table, laid, bias), embedding_conv1d(tokens, table, weight, bias)
    )


def test_padding_idx_gets_no_gradient(method: str) -> None:
    tokens, *others = operands(CASES[0], torch.float64)
    leaves = [t.requires_grad_() for t in others]
    for padding_idx in (2, 2 - VOCAB):
        y = embedding_conv1d(tokens, *leaves, padding_idx=padding_idx)
        x = F.embedding(tokens, leaves[0], padding_idx=padding_idx).mT
        expected = F.conv1d(x, *leaves[1:])
        torch.testing.assert_close(y, expected)
        own, right = (torch.autograd.grad(t.square().sum(), leaves) for t in (y, expected))
        torch.testing.assert_close(own, right)
    for wrong in (VOCAB, -VOCAB - 1):
        with pytest.raises(ValueError, match=rf"padding_idx must lie in \[-7, 7\), got {wrong}"):
            embedding_conv1d(tokens, *leaves, padding_idx=wrong)


def test_autocast(method: str) -> None:
    tokens, *others = operands(CASES[0], torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = embedding_conv1d(tokens, *others)
    rounded = [t.bfloat16() for t in others]
    assert torch.equal(y, embedding_conv1d(tokens, *rounded))


def test_the_rule() -> None:
    """A table where words repeat, and not where it is too large to be looked up in."""
    assert prefers_table(28, 8, 32 * 16)  # the seed's batch
    assert not prefers_table(28, 8, 16)  # one word
    assert not prefers_table(50_000, 3, 32 * 128)
    assert prefers_table(50_000, 1, 100_000)
    assert not prefers_table(50_000, 8, 100_000)  # more rows than results
    assert prefers_table(28, 8)  # any length
    assert not prefers_table(50_000, 3)


def test_the_rule_is_followed() -> None:
    class Calls(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
            names.append(operator._schema.name)
            return operator(*args, **(kwargs or {}))

    weight = random(6, 10, 2)
    for vocab, calls in (
        (28, ["convlm::forward", "convlm::lookup"]),
        (900, ["convlm::lookup", "convlm::forward"]),
    ):
        names: list[str] = []
        with Calls():
            embedding_conv1d(torch.zeros(4, 30, dtype=torch.int64), torch.ones(vocab, 10), weight)
        assert [name for name in names if name.startswith("convlm")] == calls


@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_an_explicit_backend_runs_or_raises(backend: str) -> None:
    tokens, *others = operands(CASES[0], torch.float32)
    with pytest.raises(RuntimeError, match=f"backend='{backend}' cannot run this convolution"):
        embedding_conv1d(tokens, *others, backend=backend)
    with pytest.raises(ValueError, match="backend must be 'auto' or one of"):
        embedding_conv1d(tokens, *others, backend="fast")


def test_backends_agree() -> None:
    tokens, *others = operands(CASES[2], torch.float64)
    expected = composed(tokens, *others, CASES[2])
    for backend in ("auto", "cpp", "torch"):
        y = embedding_conv1d(tokens, *others, **settings(CASES[2]), backend=backend)
        torch.testing.assert_close(y, expected)


def test_meta() -> None:
    tokens, *others = (t.to("meta") for t in operands(CASES[2], torch.float32))
    assert embedding_conv1d(tokens, *others, **settings(CASES[2])).shape == CASES[2].y_shape


WRONG = {
    "tokens (1, 2, 3)": (dict(tokens=torch.zeros(1, 2, 3, dtype=torch.int64)), "tokens must be"),
    "float tokens": (dict(tokens=torch.zeros(2, 9)), "tokens must be int64 or int32, got torch.fl"),
    "embedding": (dict(embedding=random(7)), r"embedding must be \(vocab, embedding_dim\), got"),
    "embedding_dim": (
        dict(embedding=random(7, 4)),
        r"weight must be \(out_channels, 4, kernel",
    ),
    "weight": (dict(weight=random(5, 3)), r"weight must be \(out_channels, 3, kernel_size\)"),
    "end to end": (dict(weight=random(5, 1, 7)), r"kernel_size \* 3\), got shape \(5, 1, 7\)"),
    "bias": (dict(bias=random(6)), r"bias must have the shape \(5\), got \(6\)"),
    "dtype": (dict(weight=random(5, 3, 2).double()), "must have one dtype"),
    "stride": (dict(stride=0), "stride must be at least 1, got 0"),
    "padding": (dict(padding=-1), "padding must not be negative, got -1"),
    "dilation": (dict(dilation=9), "greater than the padded input"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_cannot_be_is_said(what: str, method: str) -> None:
    change, message = WRONG[what]
    right = dict(
        tokens=torch.zeros(2, 9, dtype=torch.int64),
        embedding=random(7, 3),
        weight=random(5, 3, 2),
        bias=random(5),
    )
    with pytest.raises(RuntimeError, match=message):
        embedding_conv1d(**(right | change))
    with pytest.raises(ValueError, match="activation must be None or one of"):
        embedding_conv1d(**right, activation="swish")
