"""Models of which something is hooked, replaced or overridden: no fused way leaves that out."""

import pytest
import torch
from torch import nn

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
    torch.testing.assert_close(model.loss(x, y), plain.loss(x, y))
    torch.testing.assert_close(model.training_step(x, y), plain.training_step(x, y))
    for own, right in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(own.grad, right.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(model.sgd_step(x, y, 0.5), plain.sgd_step(x, y, 0.5))
    torch.testing.assert_close(model.state_dict(), plain.state_dict(), rtol=1e-4, atol=1e-6)
    assert not model.steps_on_gpu(x)
    plain_kind = kind()
    plain_kind.load_state_dict(model.state_dict())
    changed = make is not halved_gradients
    assert changed != torch.allclose(model.loss(x, y), plain_kind.loss(x, y))


@pytest.mark.parametrize("kind", [CNN, DilatedCNN])
def test_what_is_derived_and_nothing_else_is_as_quick(kind):
    class Derived(kind):
        def number_of_parameters(self):
            return sum(p.numel() for p in self.parameters())

    assert Derived().is_as_written(("forward", "loss", "training_step"))
    assert Derived().is_by_look_up() if kind is CNN else Derived().is_a_stack()
