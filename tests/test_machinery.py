"""Torch's machinery around a layer: what a training set-up that exists already may use."""

from __future__ import annotations

import concurrent.futures
import copy
import subprocess
import sys
import sysconfig
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from cases import random
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential
from torch.utils.data import DataLoader, Dataset

from convlm_kernels import CausalConv1d, Conv1d, conv1d, swap_conv1d


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        CausalConv1d(4, 8, 3, dilation=2, activation="tanh"),
        Conv1d(8, 8, 3, padding="same", groups=2),
        nn.ReLU(),
        Conv1d(8, 2, 2, stride=2),
    )


def loss_and_gradients(
    layers: nn.Module, x: Tensor, run: Callable[[Tensor], Tensor] | None = None
) -> list[Tensor]:
    loss = (run or layers)(x).square().sum()
    return [loss.detach(), *torch.autograd.grad(loss, [x, *layers.parameters()])]


@pytest.fixture
def x() -> Tensor:
    return random(3, 4, 17).requires_grad_()


def same_bits(actual: list[Tensor], expected: list[Tensor]) -> bool:
    return all(map(torch.equal, actual, expected))


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing(x: Tensor, reentrant: bool) -> None:
    layers = model()
    expected = loss_and_gradients(layers, x)

    def run(x: Tensor) -> Tensor:
        return checkpoint_sequential(layers, 2, x, use_reentrant=reentrant)

    if reentrant:  # which torch.autograd.grad cannot go through
        loss = run(x).square().sum()
        loss.backward()
        actual = [loss.detach(), x.grad, *(p.grad for p in layers.parameters())]
    else:
        actual = loss_and_gradients(layers, x, run)
    assert same_bits(actual, expected)


def test_checkpointing_of_one_layer_saves_nothing_else(x: Tensor) -> None:
    packed: list[Tensor] = []
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t) or t, lambda t: t)
    with hooks:
        checkpoint(CausalConv1d(4, 8, 3, activation="tanh"), x, use_reentrant=False)
    assert all(t is x for t in packed)


def test_checkpointing_under_autocast(x: Tensor) -> None:
    """What is computed again for the backward pass is computed in the same dtype."""
    layers = model()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layers(x).dtype == torch.bfloat16
        expected = loss_and_gradients(layers, x)
        actual = loss_and_gradients(
            layers, x, lambda x: checkpoint_sequential(layers, 2, x, use_reentrant=False)
        )
    assert same_bits(actual, expected)


def test_compiled_autograd(x: Tensor) -> None:
    layers = model()
    expected = loss_and_gradients(layers, x)[1:]
    compiler = torch.compile(backend="aot_eager", fullgraph=True)
    torch._dynamo.reset()
    with torch._dynamo.compiled_autograd._enable(compiler):
        layers(x).square().sum().backward()
    torch.testing.assert_close([x.grad, *(p.grad for p in layers.parameters())], expected)


def test_saved_tensors_on_their_way(x: Tensor, tmp_path: Path) -> None:
    layers = model()
    expected = loss_and_gradients(layers, x)

    def pack(t: Tensor) -> Path:
        name = tmp_path / f"{len(list(tmp_path.iterdir()))}.pt"
        torch.save(t, name)
        return name

    with torch.autograd.graph.saved_tensors_hooks(pack, torch.load):
        assert same_bits(loss_and_gradients(layers, x), expected)
    assert any(tmp_path.iterdir())
    with torch.autograd.graph.save_on_cpu():
        assert same_bits(loss_and_gradients(layers, x), expected)


def test_anomaly_mode_names_the_forward_call(x: Tensor) -> None:
    layer = Conv1d(4, 8, 3, activation="tanh")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.autograd.detect_anomaly(), pytest.raises(RuntimeError, match="nan values"):
            (layer(x) * torch.nan).sum().backward()
        with torch.autograd.detect_anomaly():
            layer(x).sum().backward()


@pytest.fixture
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("deterministic")
def test_deterministic_algorithms(x: Tensor) -> None:
    layers = model()
    assert same_bits(loss_and_gradients(layers, x), loss_and_gradients(layers, x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_jacrev_and_hessian() -> None:
    weight, x = random(3, 2, 3, dtype=torch.float64), random(1, 2, 6, dtype=torch.float64)

    def loss(weight: Tensor) -> Tensor:
        return conv1d(x, weight, padding="causal", activation="tanh").square().sum()

    def composed(weight: Tensor) -> Tensor:
        return torch.conv1d(nn.functional.pad(x, (2, 0)), weight).tanh().square().sum()

    for transform in (torch.func.jacrev, torch.func.jacfwd, torch.func.hessian):
        torch.testing.assert_close(transform(loss)(weight), transform(composed)(weight))


def test_an_ensemble_of_models() -> None:
    """Many sets of parameters for one input, as one call."""
    torch.manual_seed(0)
    layers = [Conv1d(4, 6, 3, dilation=2, activation="tanh") for _ in range(3)]
    parameters, _ = torch.func.stack_module_state(layers)
    base = copy.deepcopy(layers[0]).to("meta")
    x = random(2, 4, 9)

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(base, parameters, (x,)).square().sum()

    gradients, losses = torch.func.vmap(torch.func.grad_and_value(loss))(parameters)
    for i, layer in enumerate(layers):
        value, *expected = loss_and_gradients(layer, x.clone().requires_grad_())
        torch.testing.assert_close(losses[i], value)
        own = [gradients[name][i] for name, _ in layer.named_parameters()]
        torch.testing.assert_close(own, expected[1:])


def test_aot_inductor(x: Tensor, tmp_path: Path) -> None:
    layers = nn.Sequential(nn.Conv1d(4, 8, 3), nn.Tanh(), nn.Conv1d(8, 2, 2, dilation=2)).eval()
    assert swap_conv1d(layers) == ["0", "2"]
    shapes = ({0: torch.export.Dim("batch", min=2), 2: torch.export.Dim("length", min=8)},)
    with torch.no_grad():
        exported = torch.export.export(layers, (x.detach(),), dynamic_shapes=shapes)
        package = torch._inductor.aoti_compile_and_package(
            exported, package_path=str(tmp_path / "model.pt2")
        )
        loaded = torch._inductor.aoti_load_package(package)
        for sample in (x.detach(), random(5, 4, 33)):
            torch.testing.assert_close(loaded(sample), layers(sample))


def test_made_on_the_meta_device(x: Tensor) -> None:
    """As large models are: first their shapes, then memory, then weights from elsewhere."""
    weights = model().state_dict()
    with torch.device("meta"):
        layers = model()
    assert layers(x.to("meta")).shape == (3, 2, 8)
    filled = copy.deepcopy(layers).to_empty(device="cpu")
    filled.load_state_dict(weights)
    layers.load_state_dict(weights, assign=True)
    for loaded in (filled, layers):
        assert same_bits(loss_and_gradients(loaded, x), loss_and_gradients(model(), x))


class Convolved(Dataset):
    """Examples that a worker process convolves, as an augmentation would."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer

    def __len__(self) -> int:
        return 6

    @torch.no_grad()
    def __getitem__(self, index: int) -> Tensor:
        return self.layer(random(4, 3000, seed=index))


def test_a_data_loader_that_forks_after_the_kernels_ran() -> None:
    torch.set_num_threads(2)
    layer = CausalConv1d(4, 32, 3)
    data = Convolved(layer)
    expected = torch.stack([data[i] for i in range(len(data))])
    loader = DataLoader(data, 2, num_workers=2, multiprocessing_context="fork")
    assert torch.equal(torch.cat(list(loader)), expected)


def test_threads_of_python(x: Tensor) -> None:
    layers = model()
    inputs = [random(2, 4, 50 + i, seed=i).requires_grad_() for i in range(32)]
    expected = [loss_and_gradients(layers, x) for x in inputs]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        actual = list(pool.map(lambda x: loss_and_gradients(layers, x), inputs))
    assert all(map(same_bits, actual, expected))


def test_the_first_call_may_come_from_any_thread() -> None:
    script = """
import threading, torch, convlm_kernels
layer = convlm_kernels.Conv1d(4, 8, 3)
x = torch.ones(2, 4, 100)
results = []
threads = [threading.Thread(target=lambda: results.append(layer(x))) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert len(results) == 8 and all(torch.equal(y, results[0]) for y in results)
"""
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.skipif(
    not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="this Python has no free threads"
)
def test_importing_leaves_the_gil_as_it_is() -> None:
    script = """
import sys, numpy, torch
before = sys._is_gil_enabled()
import convlm_kernels
assert sys._is_gil_enabled() == before
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_frozen_and_tied_weights(x: Tensor) -> None:
    first, second = Conv1d(4, 4, 3, padding=1), Conv1d(4, 4, 3, padding=1)
    second.weight = first.weight
    first.bias.requires_grad_(False)
    y = second(first(x))
    w_grad, b_grad = torch.autograd.grad(y.sum(), [first.weight, second.bias])
    theirs = [copy_of(layer) for layer in (first, second)]
    theirs[1].weight = theirs[0].weight
    expected = theirs[1](theirs[0](x))
    right = torch.autograd.grad(expected.sum(), [theirs[0].weight, theirs[1].bias])
    torch.testing.assert_close((w_grad, b_grad), right)


def copy_of(layer: nn.Conv1d) -> nn.Conv1d:
    """Torch's own layer with the same numbers."""
    copy = nn.Conv1d(
        layer.in_channels, layer.out_channels, layer.kernel_size, padding=layer.padding
    )
    copy.load_state_dict(layer.state_dict())
    return copy


def test_weights_changed_in_place_count_at_once(x: Tensor) -> None:
    layer = Conv1d(4, 8, 3)
    with torch.no_grad():
        for change in (
            lambda: layer.weight.mul_(2),
            lambda: layer.weight.data.add_(1),
            lambda: layer.weight.data.view(-1)[5:9].zero_(),
        ):
            change()
            torch.testing.assert_close(layer(x), copy_of(layer)(x))


def test_spectral_norm_and_pruning(x: Tensor) -> None:
    from torch.nn.utils import prune
    from torch.nn.utils.parametrizations import spectral_norm

    torch.manual_seed(0)
    theirs = nn.Sequential(spectral_norm(nn.Conv1d(4, 4, 3, padding=1)), nn.Conv1d(4, 2, 3))
    prune.l1_unstructured(theirs[1], "weight", amount=0.5)
    theirs.eval()
    expected = theirs(x)
    right = torch.autograd.grad(expected.sum(), list(theirs.parameters()))
    assert swap_conv1d(theirs) == ["0", "1"]
    y = theirs(x)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(torch.autograd.grad(y.sum(), list(theirs.parameters())), right)
