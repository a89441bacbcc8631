"""Models of which something is hooked, replaced or overridden: no fused way leaves that out."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from convlm_kernels import Conv1d, StackLayer
from convlm_kernels.lm import CNN, MLP, DilatedCNN

MODELS = {"dilated": DilatedCNN, "cnn": CNN, "mlp": MLP}


class DoubledWords(nn.Embedding):
    def forward(self, tokens):
        return 2 * super().forward(tokens)


def hook(module):
    module.register_forward_hook(lambda module, inputs, y: 2 * y)


def hook_model(model):
    hook(model)


def hook_words(model):
    hook(model.embedding)


def replace_words(model):
    model.embedding = DoubledWords(28, 10)


def limit_words(model):
    model.embedding = nn.Embedding(28, 10, max_norm=0.5)


def override_embed(model):
    embed = model.embed
    model.embed = lambda tokens: 2 * embed(tokens)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (hook_model, "it has hooks"),
        (hook_words, "its embedding has hooks"),
        (replace_words, "its embedding has its own forward"),
        (limit_words, "its embedding has a max_norm"),
        (override_embed, "it has its own embed"),
    ],
)
def test_what_steps_would_leave_out_is_refused(kind, change, reason):
    model = MODELS[kind]()
    change(model)
    with pytest.raises(ValueError, match=f"{type(model).__name__} cannot stream: {reason}"):
        model.init_state()


def test_hooked_layers_are_refused():
    for model, layer, where in (
        (DilatedCNN(), "layers", "Sequential"),
        (DilatedCNN(), "layers.1", r"layer '1' \(Conv1d\)"),
        (CNN(), "conv", "Conv1d"),
        (MLP(), "linear", r"layer 'linear' \(Linear\)"),
    ):
        hook(model.get_submodule(layer))
        with pytest.raises(ValueError, match=f"{where} cannot stream: it has hooks"):
            model.init_state()
    model = MLP()
    model.linear = nn.Sequential(model.linear, nn.ReLU())
    with pytest.raises(ValueError, match=r"layer 'linear' \(Sequential\) .* is not a Linear"):
        model.init_state()


def doubled_loss(kind):
    class DoubledLoss(kind):
        def loss(self, x, y, reduction="mean"):
            return 2 * super().loss(x, y, reduction)

    return DoubledLoss()


def doubled_forward(kind):
    class DoubledForward(kind):
        def forward(self, tokens):
            return 2 * super().forward(tokens)

    return DoubledForward()


def doubled_embeddings(kind):
    class DoubledEmbeddings(kind):
        def embed(self, tokens):
            return 2 * super().embed(tokens)

    return DoubledEmbeddings()


def halved_gradients(kind):
    """Whose step is half as long, of the same loss."""

    class HalvedGradients(kind):
        def training_step(self, x, y, rows=None):
            loss = super().training_step(x, y, rows)
            for p in self.parameters():
                p.grad /= 2
            return loss

    return HalvedGradients()


def loss_of_an_instance(kind):
    model = kind()
    loss = model.loss
    model.loss = lambda *arguments: 2 * loss(*arguments)
    return model


def hooked_model(kind):
    model = kind()
    hook(model)
    return model


def hooked_layers(kind):
    model = kind()
    hook(model.layers if kind is DilatedCNN else model.conv)
    return model


DOUBLED = [
    doubled_loss,
    doubled_forward,
    doubled_embeddings,
    loss_of_an_instance,
    hooked_model,
    hooked_layers,
]


def assert_same_steps(model, plain, x, y):
    """The loss, its gradients and what SGD makes of them are those of `plain`."""
    torch.testing.assert_close(model.loss(x, y), plain.loss(x, y))
    torch.testing.assert_close(model.training_step(x, y), plain.training_step(x, y))
    for own, right in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(own.grad, right.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(model.sgd_step(x, y, 0.5), plain.sgd_step(x, y, 0.5))
    torch.testing.assert_close(model.state_dict(), plain.state_dict(), rtol=1e-4, atol=1e-6)
    assert not model.steps_on_gpu(x)


@pytest.mark.parametrize("kind", [CNN, DilatedCNN])
@pytest.mark.parametrize("make", [*DOUBLED, halved_gradients])
def test_steps_are_of_the_loss_that_was_written(kind, make):
    """As autograd makes them of that loss, with every module and method called."""
    torch.manual_seed(0)
    model = make(kind)
    plain = make(kind)
    plain.fused = False
    plain.load_state_dict(model.state_dict())
    tokens = torch.randint(28, (32, 24))
    x, y = tokens[:, :-1], tokens[:, 8:]
    torch.testing.assert_close(model(x), plain(x))
    assert_same_steps(model, plain, x, y)
    plain_kind = kind()
    plain_kind.load_state_dict(model.state_dict())
    changed = make is not halved_gradients
    assert changed != torch.allclose(model.loss(x, y), plain_kind.loss(x, y))


def other_activation(model):
    for layer in layers_of(model):
        layer.activation = "silu"


def other_dilation(model):
    model.layers[1].dilation = (3,)


def other_padding(model):
    layers_of(model)[-1].padding = (2, 0) if isinstance(model, DilatedCNN) else (20, 0)


def other_stride(model):
    layers_of(model)[0].stride = (5,)


def fewer_taps(model):
    layer = layers_of(model)[0]
    layer.weight = nn.Parameter(layer.weight[:, :, 10:].detach())


def taps_of_half_an_embedding(model):
    layer = layers_of(model)[0]
    layer.weight = nn.Parameter(layer.weight[:, :, 5:].detach())


def more_taps(model):
    model.layers[1].weight = nn.Parameter(0.1 * torch.ones(100, 100, 3))


def another_layer(model):
    model.layers[1] = Conv1d(100, 100, 2, dilation=4, groups=2)


def a_gate(model):
    model.layers[1] = StackLayer(100, 50, 2, dilation=2, gated=True, padding=0)
    model.layers[2] = Conv1d(50, 28, 2, dilation=4)


def a_gate_over_embeddings(model):
    layer = StackLayer(1, 28, 20, padding=0, gated=True)
    layer.stride = (10,)
    if isinstance(model, CNN):
        model.conv = layer
    else:
        model.layers[0] = layer
        model.layers[1] = Conv1d(28, 100, 2, dilation=2)


def a_layer_more(model):
    model.layers.append(nn.Softplus())


def a_residual(model):
    model.layers.insert(2, StackLayer(100, 100, 2, residual=True))


def layers_of(model):
    return [model.conv] if isinstance(model, CNN) else list(model.layers)


BOTH = [
    other_activation,
    other_padding,
    other_stride,
    fewer_taps,
    taps_of_half_an_embedding,
    a_gate_over_embeddings,
]
OF_LAYERS = [other_dilation, more_taps, another_layer, a_gate, a_layer_more, a_residual]


@pytest.mark.parametrize(
    ("kind", "change"),
    [(kind, change) for kind in (CNN, DilatedCNN) for change in BOTH]
    + [(DilatedCNN, change) for change in OF_LAYERS],
)
def test_layers_that_were_changed_are_computed_as_they_are(kind, change):
    torch.manual_seed(0)
    model = kind()
    change(model)
    plain = deepcopy(model)
    plain.fused = False
    x = torch.randint(28, (32, 24))
    y = torch.randint(28, (32, plain(x).shape[2]))
    torch.testing.assert_close(model(x), plain(x))
    for reduction in ("mean", "none"):
        with torch.no_grad():
            torch.testing.assert_close(model.loss(x, y, reduction), plain.loss(x, y, reduction))
    assert_same_steps(model, plain, x, y)


@pytest.mark.parametrize("kind", [CNN, DilatedCNN])
def test_other_embeddings_than_a_layer_moves_by_are_computed_as_they_are(kind):
    torch.manual_seed(0)
    model = kind()
    model.embedding = nn.Embedding(28, 20)
    plain = deepcopy(model)
    plain.fused = False
    x = torch.randint(28, (32, 23))
    torch.testing.assert_close(model(x), plain(x))


@pytest.mark.parametrize("kind", [CNN, DilatedCNN, MLP])
@pytest.mark.parametrize(
    "register", [torch.Tensor.register_hook, torch.Tensor.register_post_accumulate_grad_hook]
)
def test_hooks_on_parameters_are_called_by_steps(kind, register):
    """Here they freeze the embedding."""
    torch.manual_seed(0)
    model = kind()
    words = model.embedding.weight

    def to_zero(gradient):
        if gradient is words:
            words.grad.zero_()
        return None if gradient is words else torch.zeros_like(gradient)

    handle = register(words, to_zero)
    tokens = torch.randint(28, (32, 24))
    x, y = (tokens[:, :-1], tokens[:, 8:]) if kind is not MLP else (tokens[:, :8], tokens[:, 8:9])
    before = deepcopy(model.state_dict())
    model.training_step(x, y)
    assert not words.grad.any()
    model.sgd_step(x, y, 0.5)
    changed = [n for n, value in model.state_dict().items() if not torch.equal(value, before[n])]
    assert changed == [name for name in before if name != "embedding.weight"]
    handle.remove()
    model.sgd_step(x, y, 0.5)
    assert not torch.equal(words, before["embedding.weight"])


@pytest.mark.parametrize("kind", [CNN, DilatedCNN])
def test_what_is_derived_and_nothing_else_is_as_quick(kind):
    class Derived(kind):
        def number_of_parameters(self):
            return sum(p.numel() for p in self.parameters())

    assert Derived().is_as_written(("forward", "loss", "training_step"))
    assert Derived().is_by_look_up() if kind is CNN else Derived().is_a_stack()
