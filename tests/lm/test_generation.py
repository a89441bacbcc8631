"""Sampling: repeatable, within its limits, and from the right distribution."""

import pytest
import torch

from convlm_kernels.lm import CNN, Alphabet, DilatedCNN, sample
from convlm_kernels.lm.generation import draw

ALPHABET = Alphabet(".abc;")


@pytest.fixture
def model():
    torch.manual_seed(0)
    return DilatedCNN(len(ALPHABET), context=4, embedding=3, hidden=5)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_the_same_seed_gives_the_same_words(model):
    words = sample(model, ALPHABET, 20, generator=generator())
    assert words == sample(model, ALPHABET, 20, generator=generator())
    assert words != sample(model, ALPHABET, 20, generator=generator(1))
    assert len(words) == 20
    assert set("".join(words)) <= set("abc")


def test_words_follow_the_model():
    """A CNN that spells "abc" and stops: each character follows from the one before."""
    model = CNN(len(ALPHABET), context=1, embedding=5)
    with torch.no_grad():
        model.embedding.weight.copy_(torch.eye(5))
        model.conv.weight.copy_(20.0 * torch.eye(5).roll(1, 0)[:, None])
        model.conv.bias.zero_()
    assert sample(model, ALPHABET, 3, generator=generator()) == ["abc"] * 3
    assert sample(model, ALPHABET, prefix="cab") == ["cabc"]
    assert sample(model, ALPHABET, prefix="b", max_length=1) == ["b"]
    assert sample(model, ALPHABET, temperature=0, max_length=2) == ["ab"]


def test_start_is_never_drawn_and_length_is_kept(model):
    with torch.no_grad():
        model.layers[-1].bias[ALPHABET.start] = 100
        model.layers[-1].bias[ALPHABET.stop] = -100
    words = sample(model, ALPHABET, 5, prefix="ab", max_length=9, generator=generator())
    assert all(len(word) == 9 and word.startswith("ab") and "." not in word for word in words)


def test_draw_follows_temperature_and_top_k():
    logits = torch.tensor([0.1, 0.5, 0.4]).log().expand(20_000, -1)
    for temperature, top_k, expected in (
        (1.0, None, [0.1, 0.5, 0.4]),
        (0.5, None, [0.01 / 0.42, 0.25 / 0.42, 0.16 / 0.42]),
        (1.0, 2, [0, 5 / 9, 4 / 9]),
        (1.0, 9, [0.1, 0.5, 0.4]),
        (1e-6, None, [0, 1, 0]),
        (0, None, [0, 1, 0]),
    ):
        drawn = draw(logits, temperature, top_k, generator()).bincount(minlength=3) / len(logits)
        torch.testing.assert_close(
            drawn, torch.tensor(expected, dtype=drawn.dtype), atol=0.02, rtol=0
        )


def test_the_mode_is_kept(model):
    for mode in (True, False):
        model.train(mode)
        sample(model, ALPHABET)
        assert model.training is mode


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prefix": "ax"}, "'ax' has the character 'x', which is not among 'abc'"),
        ({"prefix": "."}, "has the character '.'"),
        ({"count": 0}, "count must be at least 1, got 0"),
        ({"temperature": -1.0}, "temperature must be at least 0 and at most 1e38"),
        ({"temperature": float("nan")}, "temperature must be at least 0 and at most 1e38"),
        ({"top_k": 0}, "top_k must be at least 1, got 0"),
        ({"max_length": 0}, "max_length must hold the prefix"),
        ({"prefix": "abc", "max_length": 2}, "max_length must hold the prefix"),
    ],
)
def test_bad_arguments(model, options, message):
    with pytest.raises(ValueError, match=message):
        sample(model, ALPHABET, **options)
