"""The data set: the seed's own checks on the names list, and the rules on any list."""

import pytest
import torch

from convlm_kernels.lm import Alphabet, contexts, load_words, make_data
from convlm_kernels.lm.data import encode_rows, real_predictions


@pytest.fixture(scope="module")
def names(names_path):
    return make_data(load_words(names_path))


def test_names_shapes(names):
    assert names.alphabet.symbols == ".abcdefghijklmnopqrstuvwxyz;"
    assert names.train.x.shape == (25626, 23)
    assert names.train.y.shape == (25626, 16)
    assert names.val.x.shape == (3203, 23)
    assert names.test.x.shape == (3204, 23)


def test_names_rows(names):
    letters = [13, 21, 8, 1, 13, 13, 1, 4, 13, 21, 19, 20, 1, 6, 1]
    assert names.train.x[17026].tolist() == [0] * 8 + letters
    assert names.train.y[17026].tolist() == [*letters, 27]
    assert names.train.y[0].tolist() == [25, 21, 8, 5, 14, 7] + [27] * 10


def test_names_contexts(names):
    split = contexts(names.train, 8)
    assert split.x.shape == (410_016, 8)
    assert split.y.shape == (410_016, 1)


@pytest.mark.parametrize("context", [1, 2, 8])
def test_every_split_has_one_width_and_loses_nothing(context):
    words = load_words()
    data = make_data(words, context)
    longest = max(map(len, words))
    decoded = []
    for x, y in (data.train, data.val, data.test):
        assert x.dtype == y.dtype == torch.int64
        assert x.shape[1] == context + longest
        assert y.shape[1] == longest + 1
        assert (x[:, :context] == data.alphabet.start).all()
        assert (y[:, :-1] == x[:, context:]).all()
        assert (y[:, -1] == data.alphabet.stop).all()
        decoded += [data.alphabet.decode(row) for row in y.tolist()]
    assert sorted(decoded) == sorted(words)
    assert len(data.train.x) == int(0.8 * len(words))
    assert len(data.test.x) == len(words) - int(0.9 * len(words))


def test_alphabet_is_that_of_the_words():
    alphabet = Alphabet.of(["beç", "ab"])
    assert alphabet.symbols == ".abeç;"
    assert alphabet.encode("abe") == [1, 2, 3]
    assert alphabet.decode([4, 1, 5, 5]) == "ça"
    for token in (-1, 6):  # the first is that of an event with an error
        with pytest.raises(ValueError, match=f"tokens must be from 0 to 5, got {token}"):
            alphabet.decode([1, token, 2])


@pytest.mark.parametrize("word", ["st.ann", "a;b"])
def test_reserved_symbols_are_refused(word):
    with pytest.raises(ValueError, match=f"'{word}' contains '[.;]'"):
        Alphabet.of(["ann", word])


def test_words_that_can_be_read_once():
    assert Alphabet.of(word for word in ("ab", "c")).symbols == ".abc;"
    with pytest.raises(ValueError, match="the word 'c.d' contains '.'"):
        Alphabet.of(word for word in ("ab", "c.d"))


def test_unknown_characters_are_refused():
    alphabet = Alphabet.of(["abc"])
    for text in ("abd", ".a", "a;"):
        with pytest.raises(ValueError, match=f"'{text}' has the character"):
            alphabet.encode(text)


@pytest.mark.parametrize("symbols", ["", ".;", "abc", ".aa;", ".a.;"])
def test_impossible_alphabets(symbols):
    with pytest.raises(ValueError, match="symbols must"):
        Alphabet(symbols)


def test_too_few_words():
    with pytest.raises(ValueError, match=r"1 word\(s\).*at least 6"):
        make_data(["ann"])
    data = make_data(list("abcdef"))
    assert [len(split.x) for split in (data.train, data.val, data.test)] == [4, 1, 1]


def test_real_predictions_are_the_letters_and_the_first_stop():
    alphabet = Alphabet.of(["abc"])
    y = encode_rows(["abc", "b"], alphabet, context=2, longest=4).y
    mask = real_predictions(y, alphabet.stop)
    assert mask.tolist() == [[True] * 4 + [False], [True] * 2 + [False] * 3]


def test_contexts_are_the_windows():
    split = encode_rows(["ab"], Alphabet.of(["ab"]), context=2, longest=2)
    x, y = contexts(split, 2)
    assert x.tolist() == [[0, 0], [0, 1], [1, 2]]
    assert y.tolist() == [[1], [2], [3]]


def test_a_table_that_no_memory_holds_is_refused():
    """One endless word would make every row as long."""
    with pytest.raises(
        ValueError, match=r"4,000 words .* 99,992 characters, are 400,000,000 tokens"
    ):
        make_data(["ann", "bob", "eve", "dan"] * 999 + ["ann"] * 3 + ["a" * 99_992])
