"""Derivatives: exact, to any order, in both directions, and only those that are wanted."""

from __future__ import annotations

import pytest
import torch
from cases import BY_HAND, DTYPES, FEW, LAYOUTS, Case, parametrize, problem, random
from tolerances import exact_gradients, torch_conv1d
from torch import Tensor, func
from torch.autograd import forward_ad

from convlm_kernels import autograd, ops
from convlm_kernels.activations import ACTIVATIONS

pytestmark = pytest.mark.usefixtures("nan_in_empty")

# Small, because numerical derivatives take one call for each number; otherwise as awkward as any.
TINY = [
    Case("stride, dilation, uneven padding", 2, 3, 2, 7, 3, 2, 2, 1, (1, 3)),
    Case("groups", 2, 4, 6, 5, 2, 1, 2, 2, (2, 0)),
    Case("depthwise with a multiplier", 2, 2, 4, 6, 3, 2, 1, 2, (0, 1)),
    Case("pointwise", 1, 2, 3, 4, 1),
    Case("out_length 1, some inputs unread", 3, 2, 2, 6, 2, 5, 3),
]


def leaves_of(case: Case, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return [t.requires_grad_() for t in problem(case, dtype)[:3]]


def run(case: Case, activation: str = "none"):
    return lambda x, weight, bias: autograd.forward(x, weight, bias, case.window, activation)


def by_torch(case: Case, activation: str = "none"):
    def function(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        z = torch_conv1d(x, weight, bias, case.window)
        return z if activation == "none" else ACTIVATIONS[activation](z)

    return function


@parametrize("case", TINY)
def test_first_and_second_derivatives(case: Case) -> None:
    leaves = leaves_of(case)
    assert torch.autograd.gradcheck(run(case), leaves, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(run(case), leaves, check_fwd_over_rev=True)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_derivatives_through_an_activation(activation: str) -> None:
    for case in TINY[:2]:
        leaves = leaves_of(case)
        function = run(case, activation)
        assert torch.autograd.gradcheck(function, leaves, check_forward_ad=True)
        if activation != "relu":  # its second derivative is zero almost everywhere
            assert torch.autograd.gradgradcheck(function, leaves)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_kernels_that_take_the_derivative_of_an_activation(
    activation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(autograd, "_kernels_take_derivatives", lambda *_: True)
    test_derivatives_through_an_activation(activation)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", [(9, 130, 100), (5, 31, 17)], ids=str)
@parametrize("dtype", DTYPES)
def test_same_bits_in_any_batch_and_for_any_number_of_threads(
    dtype: torch.dtype, shape: tuple[int, int, int], activation: str
) -> None:
    batch, channels, length = shape
    x = random(batch, 3, length, dtype=dtype)
    grad_output = random(*shape, dtype=dtype, seed=1)
    weight = random(channels, 3, 3, dtype=dtype, seed=2).requires_grad_()
    window = (1, 1, 1, 1, 1, "ieee")

    def run(samples: slice) -> tuple[Tensor, ...]:
        leaf = x[samples].clone().requires_grad_()
        y = autograd.forward(leaf, weight, None, window, activation)
        return y.detach(), *torch.autograd.grad(y, (leaf, weight), grad_output[samples])

    expected = run(slice(None))
    for n in range(batch):
        alone = run(slice(n, n + 1))
        assert all(torch.equal(a, e[n : n + 1]) for a, e in zip(alone[:2], expected, strict=False))
    torch.set_num_threads(2)
    assert all(map(torch.equal, run(slice(None)), expected))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_batched_gradients_through_an_activation(activation: str) -> None:
    leaves = leaves_of(TINY[0])
    y = run(TINY[0], activation)(*leaves)
    seeds = torch.stack([y.detach(), y.detach().cos()])
    batched = torch.autograd.grad(y, leaves, seeds, is_grads_batched=True, retain_graph=True)
    for n, seed in enumerate(seeds):
        alone = torch.autograd.grad(y, leaves, seed, retain_graph=True)
        torch.testing.assert_close([g[n] for g in batched], list(alone))


@parametrize("case", TINY)
def test_derivatives_of_the_gradients_themselves(case: Case) -> None:
    p = problem(case, torch.float64)
    grad_output, x, weight = (t.requires_grad_() for t in (p.grad_output, p.x, p.weight))

    def grad_input(grad_output: Tensor, weight: Tensor) -> Tensor:
        return autograd.grad_input(grad_output, weight, case.length, case.window)

    def grad_weight(grad_output: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        return autograd.grad_weight(grad_output, x, case.kernel_size, case.window, True)

    for function, other in ((grad_input, weight), (grad_weight, x)):
        assert torch.autograd.gradcheck(function, (grad_output, other), check_forward_ad=True)
        assert torch.autograd.gradgradcheck(function, (grad_output, other))


def test_third_derivative() -> None:
    case = TINY[0]

    def third(function) -> list[Tensor]:
        x, weight, bias = leaves_of(case)
        value = function(x, weight, bias).pow(3).sum()
        for _ in range(2):
            (gradient,) = torch.autograd.grad(value, weight, create_graph=True)
            value = gradient.pow(2).sum()
        return list(torch.autograd.grad(value, (x, weight, bias)))

    torch.testing.assert_close(third(run(case, "tanh")), third(by_torch(case, "tanh")))


@parametrize("dtype", DTYPES)
@parametrize("case", FEW)
def test_gradients_in_every_dtype(case: Case, dtype: torch.dtype) -> None:
    p = problem(case, dtype)
    leaves = [t.requires_grad_() for t in p[:3]]
    gradients = torch.autograd.grad(run(case)(*leaves), leaves, p.grad_output)
    exact = exact_gradients(p.x, p.weight, p.grad_output, case.window)
    for own, right in zip(gradients, exact, strict=True):
        assert own.dtype == dtype
        right.allows(own)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_grad_output(layout: str) -> None:
    p = problem(BY_HAND, torch.float64)
    grad_output = LAYOUTS[layout](p.grad_output)
    leaves = [t.requires_grad_() for t in p[:3]]
    gradients = torch.autograd.grad(run(BY_HAND)(*leaves), leaves, grad_output)
    exact = exact_gradients(p.x, p.weight, grad_output, BY_HAND.window)
    torch.testing.assert_close(list(gradients), [e.value for e in exact])


class Calls:
    """Counts the operators while it is on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names: list[str] = []
        for name in ("grad_input", "grad_weight"):
            native = ops.OPERATORS["native"]
            counted = native._replace(**{name: self.counted(name, getattr(native, name))})
            monkeypatch.setitem(ops.OPERATORS, "native", counted)
        monkeypatch.setattr(autograd, "gradients", self.counted("gradients", ops.gradients))

    def counted(self, name: str, operator):
        def call(*arguments: object) -> object:
            self.names.append(name)
            return operator(*arguments)

        return call


@pytest.mark.parametrize(
    ("needed", "expected"),
    [
        ("x", ["grad_input"]),
        ("w", ["grad_weight"]),
        ("b", []),
        ("xb", ["grad_input"]),
        ("wb", ["grad_weight"]),
        ("xw", ["gradients"]),
        ("xwb", ["gradients"]),
    ],
)
def test_only_what_is_needed(
    needed: str, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    p = problem(BY_HAND, torch.float64)
    tensors = [t.requires_grad_(name in needed) for name, t in zip("xwb", p, strict=False)]
    leaves = [t for t in tensors if t.requires_grad]
    exact = exact_gradients(p.x, p.weight, p.grad_output, BY_HAND.window)
    calls = Calls(monkeypatch)
    gradients = torch.autograd.grad(run(BY_HAND)(*tensors), leaves, p.grad_output)
    assert calls.names == expected
    values = [e.value for e, t in zip(exact, tensors, strict=True) if t.requires_grad]
    torch.testing.assert_close(list(gradients), values)


@pytest.mark.parametrize(
    ("needed", "activation", "expected"),
    [("x", "none", "w"), ("w", "none", "x"), ("b", "none", ""), ("xw", "tanh", "wxy")],
)
def test_saves_only_what_is_needed(needed: str, activation: str, expected: str) -> None:
    tensors = dict(zip("xwb", problem(BY_HAND, torch.float64), strict=False))
    for name in needed:
        tensors[name].requires_grad_()
    saved: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: saved.append(t.data_ptr()) or t, lambda t: t
    ):
        tensors["y"] = run(BY_HAND, activation)(*tensors.values())
    assert sorted(saved) == sorted(tensors[name].data_ptr() for name in expected)


def test_no_graph_without_a_reason() -> None:
    p = problem(BY_HAND, torch.float32)
    assert run(BY_HAND)(*p[:3]).grad_fn is None
    with torch.no_grad():
        assert run(BY_HAND)(p.x.requires_grad_(), p.weight, p.bias).grad_fn is None
    assert run(BY_HAND)(*p[:3]).grad_fn is not None


def test_changing_a_saved_tensor_is_noticed() -> None:
    x, weight, bias = leaves_of(BY_HAND)
    y = run(BY_HAND)(x, weight, bias)
    with torch.no_grad():
        weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@parametrize("case", TINY)
@pytest.mark.parametrize("activation", ["none", "tanh", "silu"])
def test_func_transforms(case: Case, activation: str) -> None:
    p = problem(case, torch.float64)[:3]

    def loss(function):
        return lambda *arguments: function(*arguments).square().sum()

    ours, theirs = run(case, activation), by_torch(case, activation)
    for transform in (
        lambda f: func.grad(loss(f), (0, 1, 2)),
        lambda f: func.jacrev(f, (1, 2)),
        lambda f: func.jacfwd(f, (0, 1)),
        lambda f: func.hessian(loss(f), (0, 1, 2)),
        lambda f: func.grad(lambda *a: func.grad(loss(f), 1)(*a).square().sum(), (0, 1)),
        lambda f: lambda *a: func.jvp(f, a, tuple(t.cos() for t in a)),
        lambda f: lambda *a: func.vjp(f, *a)[1](f(*a).sin()),
    ):
        torch.testing.assert_close(transform(ours)(*p), transform(theirs)(*p))


@parametrize("case", TINY)
@pytest.mark.parametrize(
    "in_dims",
    [
        (0, None, None),
        (2, None, None),
        (None, 0, None),
        (None, 1, None),
        (None, None, 1),
        (1, 3, 0),
    ],
    ids=str,
)
@pytest.mark.parametrize("activation", ["tanh", "gelu"])
def test_vmap(case: Case, in_dims: tuple[int | None, ...], activation: str) -> None:
    p = [
        t if dim is None else torch.stack([t, t.sin(), 2 * t], dim)
        for t, dim in zip(problem(case, torch.float64)[:3], in_dims, strict=True)
    ]

    def loss(function):
        return lambda *arguments: function(*arguments).square().sum()

    ours, theirs = run(case, activation), by_torch(case, activation)
    for transform in (
        lambda f: f,
        lambda f: func.grad(loss(f), (0, 1, 2)),
        lambda f: func.hessian(loss(f), (1, 2)),
    ):
        own, right = (func.vmap(transform(f), in_dims)(*p) for f in (ours, theirs))
        torch.testing.assert_close(own, right)


def test_vmap_inside_vmap_and_under_grad() -> None:
    case = TINY[1]
    x, weight, bias = problem(case, torch.float64)[:3]
    xs = torch.stack([x, x.sin(), x.cos()])
    weights = torch.stack([weight, weight.sin()])

    def total(function):
        def every_pair(weights: Tensor) -> Tensor:
            inner = func.vmap(function, (0, None, None))
            return func.vmap(inner, (None, 0, None))(xs, weights, bias).tanh().sum()

        return every_pair

    for activation in ("none", "tanh"):
        ours, theirs = total(run(case, activation)), total(by_torch(case, activation))
        for transform in (func.grad, func.hessian):
            torch.testing.assert_close(transform(ours)(weights), transform(theirs)(weights))
    right = func.grad(total(by_torch(case)))(weights)
    leaf = weights.clone().requires_grad_()
    total(run(case))(leaf).backward()
    torch.testing.assert_close(leaf.grad, right)


def test_without_bias() -> None:
    case = TINY[0]
    leaves = leaves_of(case)[:2]

    def function(x: Tensor, weight: Tensor) -> Tensor:
        return autograd.forward(x, weight, None, case.window, "sigmoid")

    assert torch.autograd.gradcheck(function, leaves, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, leaves)


def test_forward_mode_is_not_lost_where_nothing_requires_grad() -> None:
    case = TINY[0]
    x, weight, bias = problem(case, torch.float64)[:3]
    direction = random(*case.x_shape, dtype=torch.float64, seed=9)
    with forward_ad.dual_level():
        y = run(case)(forward_ad.make_dual(x, direction), weight, bias)
        tangent = forward_ad.unpack_dual(y).tangent
    torch.testing.assert_close(tangent, torch_conv1d(direction, weight, None, case.window))


def test_an_empty_batch() -> None:
    case = BY_HAND._replace(batch=0)
    leaves = leaves_of(case)
    run(case)(*leaves).sum().backward()
    for leaf in leaves:
        assert torch.equal(leaf.grad, torch.zeros_like(leaf))
