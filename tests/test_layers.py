"""Conv1d in the place of torch.nn.Conv1d, and swap_conv1d, which puts it there."""

from __future__ import annotations

import copy
import io
import pickle
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize

from convlm_kernels import CausalConv1d, Conv1d, conv1d, layers, swap_conv1d

X = torch.randn(3, 6, 20, generator=torch.Generator().manual_seed(0))

# Constructor arguments that torch.nn.Conv1d knows.
SETTINGS = {
    "defaults": dict(),
    "strided": dict(stride=3, padding=2, dilation=2),
    "tuples": dict(stride=(2,), padding=(1,), dilation=(2,)),
    "same": dict(padding="same", dilation=3),
    "valid": dict(padding="valid", stride=2),
    "groups": dict(groups=3, bias=False),
    "float64": dict(dtype=torch.float64, padding=1),
    "reflect": dict(padding=2, padding_mode="reflect", stride=2),
    "replicate": dict(padding=3, padding_mode="replicate", dilation=2),
    "circular": dict(padding=(4,), padding_mode="circular"),
    "circular_same": dict(padding="same", padding_mode="circular", dilation=3),
    "reflect_valid": dict(padding="valid", padding_mode="reflect"),
}


def pair(**settings: object) -> tuple[nn.Conv1d, Conv1d]:
    """torch's layer and ours, made alike."""
    torch.manual_seed(1)
    theirs = nn.Conv1d(6, 9, 4, **settings)
    torch.manual_seed(1)
    return theirs, Conv1d(6, 9, 4, **settings)


def assert_same_layer(theirs: nn.Module, ours: nn.Module, x: Tensor) -> None:
    """Same results and same gradients."""
    expected, y = theirs(x), ours(x)
    torch.testing.assert_close(y, expected)
    expected.square().sum().backward()
    y.square().sum().backward()
    # Long sums cancel: what they may differ by is a share of the largest.
    largest = max(right.grad.abs().max().item() for right in theirs.parameters())
    for right, own in zip(theirs.parameters(), ours.parameters(), strict=True):
        difference = 16 * torch.finfo(own.dtype).eps * largest
        torch.testing.assert_close(own.grad, right.grad, rtol=0, atol=difference)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("name", SETTINGS)
def test_is_the_layer_of_torch(name: str) -> None:
    theirs, ours = pair(**SETTINGS[name])
    assert isinstance(ours, nn.Conv1d)
    assert repr(ours) == repr(theirs)
    for attribute in nn.Conv1d.__constants__:
        assert getattr(ours, attribute) == getattr(theirs, attribute)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for own, right in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(own, right)
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    x = X.to(theirs.weight.dtype)
    assert_same_layer(theirs, ours, x)
    torch.testing.assert_close(ours(x[0]), theirs(x[0]))


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize(
    ("padding", "pads"), [("causal", (6, 0)), ((1, 4), (1, 4)), ((0, 2), (0, 2))]
)
def test_paddings_that_torch_lacks(
    padding: object, pads: tuple[int, int], padding_mode: str
) -> None:
    layer = Conv1d(6, 9, 4, dilation=2, padding=padding, padding_mode=padding_mode)
    x = F.pad(X, pads, mode="constant" if padding_mode == "zeros" else padding_mode)
    expected = F.conv1d(x, layer.weight, layer.bias, dilation=2)
    torch.testing.assert_close(layer(X), expected)


def test_activation_and_repr() -> None:
    layer = Conv1d(6, 9, 4, padding="causal", activation="tanh", backend="torch")
    assert repr(layer) == (
        "Conv1d(6, 9, kernel_size=(4,), stride=(1,), padding=causal, "
        "activation='tanh', backend='torch')"
    )
    torch.testing.assert_close(layer(X), F.conv1d(F.pad(X, (3, 0)), *layer.parameters()).tanh())
    for name in layers.CausalConv1d, Conv1d:
        assert "activation" not in repr(name(1, 1, 1))


def test_causal_conv1d() -> None:
    torch.manual_seed(2)
    layer = CausalConv1d(6, 6, 3, dilation=2, groups=2, activation="silu")
    torch.manual_seed(2)
    same = Conv1d(6, 6, 3, dilation=2, groups=2, padding="causal", activation="silu")
    y = layer(X)
    assert torch.equal(y, same(X))
    assert y.shape == X.shape
    for position in range(X.shape[2]):
        changed = X.clone()
        changed[..., position] += 1
        differs = (layer(changed) != y).any(dim=(0, 1)).nonzero()
        assert differs.min() == position


def test_constructor_errors() -> None:
    for settings in (
        dict(groups=0),
        dict(groups=4),
        dict(padding="full"),
        dict(padding="same", stride=2),
        dict(padding_mode="mirror"),
    ):
        with pytest.raises(ValueError) as theirs:
            nn.Conv1d(6, 9, 3, **settings)
        with pytest.raises(theirs.type):
            Conv1d(6, 9, 3, **settings)
    with pytest.raises(ValueError, match="'causal'"):
        Conv1d(6, 9, 3, padding="full")
    with pytest.raises(ValueError, match="activation must be None or one of"):
        Conv1d(6, 9, 3, activation="swish")
    with pytest.raises(ValueError, match="backend must be"):
        Conv1d(6, 9, 3, backend="gpu")
    with pytest.raises(TypeError):
        Conv1d(6, 9, 3, 1, 0, 1, 1, True, "zeros", None, None, "tanh")


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect"])
def test_settings_changed_afterwards(padding_mode: str) -> None:
    layer = Conv1d(6, 9, 3, padding_mode=padding_mode)
    mode = "constant" if padding_mode == "zeros" else padding_mode
    layer.stride, layer.padding, layer.dilation = (2,), (3,), (2,)
    layer.activation, layer.backend = "relu", "cpp"
    x = F.pad(X, (3, 3), mode=mode)
    expected = F.conv1d(x, layer.weight, layer.bias, 2, 0, 2).relu()
    torch.testing.assert_close(layer(X), expected)
    layer.stride, layer.padding, layer.dilation, layer.activation = 1, "causal", 1, None
    x = F.pad(X, (2, 0), mode=mode)
    torch.testing.assert_close(layer(X), F.conv1d(x, layer.weight, layer.bias))
    layer.weight = nn.Parameter(torch.ones(9, 6, 5))
    x = F.pad(X, (4, 0), mode=mode)
    torch.testing.assert_close(layer(X), F.conv1d(x, layer.weight, layer.bias))


def test_copies_and_pickles() -> None:
    layer = CausalConv1d(6, 9, 4, activation="gelu", backend="cpp")
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    copies = [
        copy.deepcopy(layer),
        pickle.loads(pickle.dumps(layer)),
        torch.load(file, weights_only=False),
    ]
    for other in copies:
        assert type(other) is CausalConv1d
        assert repr(other) == repr(layer)
        assert torch.equal(other(X), layer(X))
        assert other.weight is not layer.weight


def test_state_without_our_attributes() -> None:
    """As pickled by a torch.nn.Conv1d, and by one from before padding modes."""
    theirs, _ = pair()
    state = theirs.__getstate__() if hasattr(theirs, "__getstate__") else theirs.__dict__
    for missing in ((), ("padding_mode",)):
        old = Conv1d.__new__(Conv1d)
        old.__setstate__({k: v for k, v in copy.copy(state).items() if k not in missing})
        torch.testing.assert_close(old(X), theirs(X))


def test_subclass_with_its_own_weight() -> None:
    class Standardised(Conv1d):
        def forward(self, input: Tensor) -> Tensor:
            weight = self.weight - self.weight.mean(dim=(1, 2), keepdim=True)
            return self._conv_forward(input, weight, self.bias)

    layer = Standardised(6, 9, 3, padding=1)
    weight = layer.weight - layer.weight.mean(dim=(1, 2), keepdim=True)
    torch.testing.assert_close(layer(X), F.conv1d(X, weight, layer.bias, padding=1))


# --- swap_conv1d


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(6, 8, 3, padding=1)
        self.again = self.first
        self.rest = nn.Sequential(
            nn.ReLU(), nn.Conv1d(8, 8, 3, padding=1, padding_mode="reflect"), nn.BatchNorm1d(8)
        )
        self.other = nn.Conv2d(1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.rest(self.first(x))
        return self.rest(y) + self.again(x)


def silently_swapped(model: nn.Module, **settings: str) -> list[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return swap_conv1d(model, **settings)


def test_swap_keeps_everything() -> None:
    torch.manual_seed(3)
    model = Net().eval()
    model.rest.train()
    original = copy.deepcopy(model)
    before = {name: id(tensor) for name, tensor in model.state_dict(keep_vars=True).items()}
    modules = [id(module) for module in model.modules()]
    seen: list[str] = []
    model.first.register_forward_pre_hook(lambda *_: seen.append("pre"))
    model.first.register_forward_hook(lambda *_: seen.append("post"))
    model.first.register_full_backward_hook(lambda *_: seen.append("backward"))

    assert silently_swapped(model) == ["first", "again", "rest.1"]
    assert type(model.first) is type(model.rest[1]) is Conv1d
    assert model.again is model.first
    assert type(model.other) is nn.Conv2d
    assert [id(module) for module in model.modules()] == modules
    after = {name: id(tensor) for name, tensor in model.state_dict(keep_vars=True).items()}
    assert after == before
    assert [m.training for m in model.modules()] == [m.training for m in original.modules()]
    assert repr(model) == repr(original)
    for net in (original, model):
        del net.other  # has no part in the result
    assert_same_layer(original, model, X.clone().requires_grad_())
    assert sorted(set(seen)) == ["backward", "post", "pre"]
    assert seen.count("post") == 2
    assert silently_swapped(model) == []


def test_swap_of_a_layer_itself() -> None:
    theirs, _ = pair()
    swapped = copy.deepcopy(theirs)
    assert silently_swapped(swapped, backend="cpp") == [""]
    assert type(swapped) is Conv1d
    assert swapped.backend == "cpp"
    assert_same_layer(theirs, swapped, X)
    assert repr(copy.deepcopy(swapped)) == repr(swapped)
    assert repr(pickle.loads(pickle.dumps(swapped))) == repr(swapped)


def test_swap_with_a_backend_that_is_not_there() -> None:
    model = nn.Sequential(nn.Conv1d(6, 8, 3))
    with pytest.raises(ValueError, match="backend must be"):
        swap_conv1d(model, backend="gpu")
    assert type(model[0]) is nn.Conv1d
    swap_conv1d(model, backend="triton")
    with pytest.raises(RuntimeError, match="backend='triton' cannot run"):
        model(X)


def test_swap_keeps_an_optimizer_going() -> None:
    torch.manual_seed(4)
    model = nn.Sequential(nn.Conv1d(6, 8, 3), nn.Tanh(), nn.Conv1d(8, 2, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for step in range(6):
        if step == 2:
            assert silently_swapped(model) == ["0", "2"]
        optimizer.zero_grad()
        loss = model(X).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)


PARAMETRIZED = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "both_tensors": lambda layer: parametrize.register_parametrization(
        parametrizations.weight_norm(layer), "bias", nn.Tanh(), unsafe=True
    ),
}


@pytest.mark.parametrize("kind", PARAMETRIZED)
def test_swap_of_a_parametrized_layer(kind: str) -> None:
    torch.manual_seed(5)
    model = nn.Sequential(PARAMETRIZED[kind](nn.Conv1d(6, 8, 3, padding=1)))
    untouched = copy.deepcopy(model)
    state = {name: t.clone() for name, t in model.state_dict().items()}
    assert silently_swapped(model) == ["0"]
    layer = model[0]
    assert isinstance(layer, Conv1d)
    assert parametrize.type_before_parametrizations(layer) is Conv1d
    assert parametrize.is_parametrized(layer, "weight")
    assert not isinstance(untouched[0], Conv1d), "a copy shares the class that parametrize made"
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name])
    for module in (untouched, model):
        module.eval()  # spectral_norm changes its state in every training step
    assert_same_layer(untouched, model, X)
    torch.testing.assert_close(copy.deepcopy(model)(X), model(X))

    weight = layer.weight.detach().clone()
    parametrize.remove_parametrizations(layer, "weight")
    assert torch.equal(layer.weight, weight)
    if kind != "both_tensors":
        assert type(layer) is Conv1d
    torch.testing.assert_close(model(X), untouched(X))


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
def test_swap_of_an_old_weight_norm() -> None:
    torch.manual_seed(6)
    theirs = nn.utils.weight_norm(nn.Conv1d(6, 8, 3))
    ours = nn.utils.weight_norm(nn.Conv1d(6, 8, 3))
    ours.load_state_dict(theirs.state_dict())
    assert silently_swapped(ours) == [""]
    with torch.no_grad():
        for layer in (theirs, ours):
            layer.weight_g.mul_(2)
    assert_same_layer(theirs, ours, X)
    assert list(ours.state_dict()) == ["bias", "weight_g", "weight_v"]
    nn.utils.remove_weight_norm(ours)
    torch.testing.assert_close(ours(X), theirs(X))


class Shifted(nn.Conv1d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + 1


def test_swap_says_what_it_leaves_alone() -> None:
    model = nn.ModuleDict(
        dict(
            plain=nn.Conv1d(6, 8, 3),
            shifted=Shifted(6, 8, 3),
            lazy=nn.LazyConv1d(8, 3),
            complex=nn.Conv1d(6, 8, 3, dtype=torch.complex64),
            ours=Conv1d(6, 8, 3),
        )
    )
    kinds = {name: type(module) for name, module in model.items()}
    with pytest.warns(UserWarning, match="left alone.*: shifted, lazy, complex"):
        assert swap_conv1d(model) == ["plain"]
    assert {name: type(module) for name, module in model.items()} == kinds | {"plain": Conv1d}


def test_swap_of_a_lazy_layer_once_it_is_known() -> None:
    lazy = nn.LazyConv1d(8, 3)
    lazy(X)
    assert silently_swapped(lazy) == [""]
    torch.testing.assert_close(lazy(X), conv1d(X, lazy.weight, lazy.bias))


def test_swap_keeps_what_was_put_on_the_instance() -> None:
    layer = nn.Conv1d(6, 8, 3)
    forward = layer.forward
    layer.forward = lambda input: forward(input) * 2
    expected = layer(X)
    silently_swapped(layer)
    torch.testing.assert_close(layer(X), expected)
