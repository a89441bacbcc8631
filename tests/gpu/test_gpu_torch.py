"""What torch does around the kernels, on the device: autograd, autocast, compilation, layers."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest
import torch
from cases import FEW, SETTINGS, Case, parametrize, problem, random
from device import DEVICE, needs_gpu, settings_of
from torch import Tensor, nn
from torch.nn import functional as F

from convlm_kernels import CausalConv1d, Conv1d, conv1d, swap_conv1d
from convlm_kernels.lm import DilatedCNN

SMALL = [
    Case("gradcheck", 2, 3, 4, 9, 3, 2, 2, 1, (3, 1)),
    Case("gradcheck, groups", 2, 4, 6, 8, 2, 1, 3, 2, (3, 0)),
    Case("gradcheck, depthwise", 2, 4, 4, 11, 3, 3, 1, 4, (1, 1)),
]


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("activation", [None, "tanh", "gelu"])
@parametrize("case", SMALL)
def test_first_and_second_derivatives(backend: str, case: Case, activation: str | None) -> None:
    p = problem(case, torch.float64)
    leaves = [t.to(DEVICE).requires_grad_() for t in p[:3]]

    def function(*leaves: Tensor) -> Tensor:
        return conv1d(*leaves, **settings_of(case), activation=activation, backend=backend)

    assert torch.autograd.gradcheck(function, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, leaves, fast_mode=True)


def test_a_gradient_penalty(backend: str) -> None:
    """Second derivatives in float32, as a critic's penalty takes them."""
    p = problem(SETTINGS[2], torch.float32)

    def penalty_gradients(run: str) -> tuple[Tensor, ...]:
        leaves = [t.double().to(DEVICE) if run == "torch" else t.to(DEVICE) for t in p[:3]]
        leaves = [t.requires_grad_() for t in leaves]
        y = conv1d(*leaves, **settings_of(SETTINGS[2]), activation="tanh", backend=run)
        (grad_x,) = torch.autograd.grad(y.square().sum(), leaves[0], create_graph=True)
        return torch.autograd.grad(grad_x.square().sum(), leaves[:2])

    for own, right in zip(penalty_gradients(backend), penalty_gradients("torch"), strict=True):
        torch.testing.assert_close(
            own.double(), right, rtol=1e-4, atol=1e-4 * float(right.abs().max())
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(backend: str, dtype: torch.dtype) -> None:
    p = problem(FEW[3], torch.float32)
    leaves = [t.to(DEVICE).requires_grad_() for t in p[:3]]
    with torch.autocast(DEVICE.type, dtype=dtype):
        y = conv1d(*leaves, **settings_of(FEW[3]), backend=backend)
    assert y.dtype == dtype
    cast = [t.detach().to(dtype) for t in leaves]
    assert torch.equal(y, conv1d(*cast, **settings_of(FEW[3]), backend=backend))
    gradients = torch.autograd.grad(y.float().square().sum(), leaves)
    assert all(g.dtype == torch.float32 and g.isfinite().all() for g in gradients)


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_compiled_in_one_graph(backend: str, compiler: str) -> None:
    if compiler == "inductor":
        needs_gpu()  # the CPU's is tested in tests/test_compile.py
    p = problem(FEW[5], torch.float32)
    leaves = [t.to(DEVICE).requires_grad_() for t in p[:3]]
    grad_output = p.grad_output.to(DEVICE)

    def function(*leaves: Tensor) -> Tensor:
        y = conv1d(*leaves, **settings_of(FEW[5]), activation="tanh", backend=backend)
        return y * 2

    compiled = torch.compile(function, backend=compiler, fullgraph=True)
    y, expected = compiled(*leaves), function(*leaves)
    torch.testing.assert_close(y, expected)
    gradients = torch.autograd.grad(y, leaves, grad_output)
    for own, right in zip(
        gradients, torch.autograd.grad(expected, leaves, grad_output), strict=True
    ):
        torch.testing.assert_close(own, right)


def test_compiled_with_cuda_graphs(backend: str) -> None:
    needs_gpu()
    model = nn.Sequential(
        CausalConv1d(8, 16, 2, activation="tanh", backend=backend),
        CausalConv1d(16, 8, 2, dilation=2, backend=backend),
    ).to(DEVICE)
    compiled = torch.compile(model, mode="reduce-overhead", fullgraph=True)
    for seed in range(4):
        x = random(2, 8, 33, seed=seed).to(DEVICE)
        with torch.no_grad():
            torch.testing.assert_close(compiled(x).clone(), model(x))


@pytest.mark.parametrize("padding", [0, "same", "causal", (3, 1)])
def test_layer(backend: str, padding: object) -> None:
    torch.manual_seed(0)
    layer = Conv1d(6, 8, 3, padding=padding, dilation=2, activation="relu", backend=backend)
    layer.to(DEVICE)
    x = random(3, 6, 40).to(DEVICE).requires_grad_()
    y = layer(x)
    pads = {0: (0, 0), "same": (2, 2), "causal": (4, 0)}.get(padding, padding)
    double = [t.detach().double().requires_grad_() for t in (x, layer.weight, layer.bias)]
    expected = F.conv1d(F.pad(double[0], pads), *double[1:], dilation=2).relu()
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)
    own = torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])
    right = torch.autograd.grad(expected.square().sum(), double)
    for gradient, exact in zip(own, right, strict=True):
        torch.testing.assert_close(gradient.double(), exact, rtol=1e-4, atol=1e-4)


def test_a_model_of_torch_swapped_in_place(backend: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(4, 8, 3, padding=1), nn.ReLU(), nn.Conv1d(8, 4, 3)).to(DEVICE)
    x = random(2, 4, 50).to(DEVICE)
    expected = model.double()(x.double())
    model.float()
    assert swap_conv1d(model, backend=backend) == ["0", "2"]
    torch.testing.assert_close(model(x).double(), expected, rtol=1e-5, atol=1e-5)


def test_training_steps_follow_those_of_torch(backend: str) -> None:
    """Of the dilated language model, in float32, for as long as rounding does not show."""

    def losses(run: str) -> list[float]:
        torch.manual_seed(0)
        model = DilatedCNN()
        for module in model.modules():
            if isinstance(module, Conv1d):
                module.backend = run
        model.to(DEVICE)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        generator = torch.Generator().manual_seed(1)
        found = []
        for _ in range(20):
            x = torch.randint(28, (32, 23), generator=generator).to(DEVICE)
            y = torch.randint(28, (32, 16), generator=generator).to(DEVICE)
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(loss.item())
        return found

    assert losses(backend) == pytest.approx(losses("torch"), rel=1e-4)


def test_auto_says_what_it_takes(backend: str) -> None:
    """No rule of "auto" may raise on the device, whatever it chooses."""
    x, weight = random(2, 3, 20).to(DEVICE), random(5, 3, 2).to(DEVICE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        y = conv1d(x, weight)
    torch.testing.assert_close(y, conv1d(x, weight, backend=backend), rtol=1e-5, atol=1e-5)
