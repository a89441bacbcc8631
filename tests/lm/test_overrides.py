"""Models of which something is hooked, replaced or overridden: no fused way leaves that out."""

import pytest
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
