"""Words as tensors: an alphabet, padded rows of inputs and targets, and three splits."""

import os
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .pretrained import read_config

START, STOP = ".", ";"
MAX_TOKENS = 2**28  # of all rows of x: 2 GiB, and as much for y


@dataclass(frozen=True)
class Alphabet:
    """Symbols by number: "." (start) is 0, then the characters in order, ";" (stop) is last.

    Stop is a symbol of its own: a word padded with "." would teach a model to start again.
    """

    symbols: str

    def __post_init__(self) -> None:
        inner = self.symbols[1:-1]
        if len(self.symbols) < 3 or self.symbols[0] != START or self.symbols[-1] != STOP:
            raise ValueError(
                f"symbols must be {START!r}, characters, {STOP!r}; got {self.symbols!r}"
            )
        if len(set(inner)) != len(inner) or START in inner or STOP in inner:
            raise ValueError(f"symbols must each occur once; got {self.symbols!r}")

    @classmethod
    def of(cls, words: Iterable[str]) -> "Alphabet":
        """The sorted characters of all `words` between start and stop, so a-z are 1 to 26."""
        words = list(words)  # which are read twice
        characters = set().union(*words)
        for reserved, meaning in ((START, "start"), (STOP, "stop")):
            if reserved in characters:
                word = next(word for word in words if reserved in word)
                raise ValueError(
                    f"the word {word!r} contains {reserved!r}, which is the {meaning} symbol"
                )
        return cls(START + "".join(sorted(characters)) + STOP)

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str]) -> "Alphabet":
        """The alphabet of the model in `folder`; ValueError where it has none."""
        config = read_config(folder)
        if not isinstance(config.get("alphabet"), str):
            raise ValueError(f"{folder} has no alphabet: it was saved without one")
        return cls(config["alphabet"])

    def __len__(self) -> int:
        return len(self.symbols)

    @property
    def start(self) -> int:
        return 0

    @property
    def stop(self) -> int:
        return len(self.symbols) - 1

    def encode(self, text: str) -> list[int]:
        """Numbers of the characters; ValueError for start, stop and what is not in the alphabet."""
        number = {symbol: i for i, symbol in enumerate(self.symbols[1:-1], 1)}
        for character in text:
            if character not in number:
                raise ValueError(
                    f"{text!r} has the character {character!r}, which is not among "
                    f"{self.symbols[1:-1]!r}"
                )
        return [number[character] for character in text]

    def decode(self, tokens: Iterable[int]) -> str:
        """The symbols up to, not including, the first stop; ValueError for what is no token.

        So is the -1 of an `Event` with an error.
        """
        symbols = []
        for token in tokens:
            if not 0 <= token < len(self.symbols):
                raise ValueError(f"tokens must be from 0 to {self.stop}, got {token}")
            symbols.append(self.symbols[token])
        return "".join(symbols).split(STOP, 1)[0]


class Split(NamedTuple):
    """`x` (words, context + longest) and `y` (words, longest + 1), int64 token numbers."""

    x: Tensor
    y: Tensor


@dataclass(frozen=True)
class Data:
    """A word list, shuffled, split and encoded."""

    alphabet: Alphabet
    context: int
    train: Split
    val: Split
    test: Split


def make_data(
    words: Sequence[str], context: int = 8, seed: int = 42, alphabet: Alphabet | None = None
) -> Data:
    """Shuffles `words` under `seed`, splits them 80/10/10 by count and encodes each split.

    All three splits are as wide as the longest of all words. One width keeps the loss over all
    positions comparable between them, since it depends on how much easy padding there is, and no
    word of val or test is ever cut. `alphabet` defaults to the one of the words.
    """
    if context < 1:
        raise ValueError(f"context must be at least 1, got {context}")
    if len(words) < 6:
        raise ValueError(f"{len(words)} word(s) cannot be split 80/10/10; at least 6 are needed")
    alphabet = alphabet or Alphabet.of(words)
    shuffled = list(words)
    random.Random(seed).shuffle(shuffled)
    train, val = int(0.8 * len(words)), int(0.9 * len(words))
    parts = shuffled[:train], shuffled[train:val], shuffled[val:]
    longest = max(map(len, words))
    tokens = len(words) * (context + longest)
    if tokens > MAX_TOKENS:
        raise ValueError(
            f"{len(words):,} words as wide as the longest, which has {longest:,} characters, are "
            f"{tokens:,} tokens; at most {MAX_TOKENS:,} are allowed"
        )
    splits = [encode_rows(part, alphabet, context, longest) for part in parts]
    return Data(alphabet, context, *splits)


def encode_rows(words: Sequence[str], alphabet: Alphabet, context: int, longest: int) -> Split:
    """Each row of x is `context` starts, the word, and stops to the full width.

    y is x moved on by the context, plus one stop: y[:, i] is what follows x[:, i : i + context].
    """
    x = torch.full((len(words), context + longest), alphabet.stop, device="cpu")
    x[:, :context] = alphabet.start
    for row, word in zip(x, words, strict=True):
        row[context : context + len(word)] = torch.tensor(alphabet.encode(word), device="cpu")
    stop = torch.full((len(words), 1), alphabet.stop, device="cpu")
    return Split(x, torch.cat([x[:, context:], stop], dim=1))


def real_predictions(y: Tensor, stop: int) -> Tensor:
    """Bool mask like `y` (words, length): each letter and the first stop, not the stops after it.

    Most positions of padded rows are the easy stops, so a mean over all of them flatters a model.
    """
    first = torch.ones_like(y[:, :1], dtype=torch.bool)
    return torch.cat([first, y[:, :-1] != stop], dim=1)


def contexts(split: Split, context: int) -> Split:
    """Each position as an example of its own, which is what an MLP trains on.

    x (words, length) becomes (words * positions, context), y (words * positions, 1).
    """
    windows = split.x.unfold(1, context, 1)
    return Split(windows.reshape(-1, context), split.y.reshape(-1, 1))
