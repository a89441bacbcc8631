"""New words from a trained model."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..backends import can_run_steps
from .batch import Event, generate
from .char_model import CharModel
from .data import Alphabet
from .integers import integer, positive
from .sampling import Sampling


class GenerationError(RuntimeError):
    """There is no next character: the logits are no distribution."""


class Piece(NamedTuple):
    """What is added to the word of that number, and whether the word is done then."""

    number: int
    text: str
    last: bool


def sample(
    model: CharModel,
    alphabet: Alphabet,
    count: int = 1,
    *,
    prefix: str = "",
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    max_length: int = 64,
    batch: int | None = None,
    chunk: int = 8,
    generator: torch.Generator | None = None,
) -> list[str]:
    """`count` words that begin with `prefix`, each drawn character by character up to stop.

    temperature: below 1 keeps to the likely, above 1 strays; 0 always takes the likeliest.
    top_k: draw among the k likeliest characters only. top_p: among the fewest of these that have
    together at least this probability. max_length: characters, prefix included, at which a word
    that has not stopped is cut. batch: at most so many words at once, all if None. chunk: steps
    between two looks at which words have stopped. Neither changes a word. generator: a CPU
    generator; the same state, count and settings give the same words. Raises ValueError for a
    character that is not in `alphabet`, or an alphabet that is not the model's, TypeError for a
    number that must be an integer and is none, and RuntimeError, naming the sample, where its
    logits leave no character to draw.
    """
    count, max_length = positive("count", count), integer("max_length", max_length)
    words = [""] * count
    for piece in sample_pieces(
        model,
        alphabet,
        count,
        prefix=prefix,
        sampling=Sampling(temperature, top_k, top_p, alphabet.stop, (alphabet.start,)),
        max_length=max_length,
        batch=batch,
        chunk=chunk,
        generator=generator,
    ):
        words[piece.number] += piece.text
    return words


def sample_pieces(
    model: CharModel,
    alphabet: Alphabet,
    count: int,
    *,
    prefix: str,
    sampling: Sampling,
    max_length: int,
    batch: int | None,
    chunk: int,
    generator: torch.Generator | None,
) -> Iterator[Piece]:
    """The words of `sample` as they come: of each the prefix first, then every character."""
    count = positive("count", count)
    if max_length < max(1, len(prefix)):
        raise ValueError(f"max_length must hold the prefix and be at least 1, got {max_length}")
    if len(alphabet) != model.vocab:
        raise ValueError(
            f"alphabet must have the {model.vocab} symbols of the model, got {len(alphabet)}: "
            f"{alphabet.symbols!r}"
        )
    prompts = [[alphabet.start] * model.context + alphabet.encode(prefix)] * count
    left = max_length - len(prefix)
    if left == 0:
        yield from (Piece(number, prefix, True) for number in range(count))
        return
    if can_run_steps(model.embedding.weight.device) is None:
        events = generate(
            model, prompts, left, sampling, batch=batch, chunk=chunk, generator=generator
        )
    else:
        tokens = torch.tensor(prompts, device="cpu")
        events = generate_by_window(model, tokens, left, sampling, generator)
    begun = [False] * count
    for event in events:
        number, token, last = event
        if token < 0:
            raise GenerationError(f"sample {number}: {event.reason}")
        if not begun[number]:
            yield Piece(number, prefix, False)
        begun[number] = True
        yield Piece(number, alphabet.decode([token]), last)


@torch.no_grad()
def generate_by_window(
    model: CharModel,
    tokens: Tensor,
    max_tokens: int,
    sampling: Sampling,
    generator: torch.Generator | None,
) -> Iterator[Event]:
    """`generate` by the full forward of the last context: for devices without a step kernel.

    tokens: (batch, length), at least a context. All of them run up to the end of the last one.
    """
    sampling.check_tokens(model.vocab)
    device = model.embedding.weight.device
    tokens = tokens.to(device)
    running = [True] * len(tokens)
    for left in reversed(range(max_tokens)):
        logits = model(tokens[:, -model.context :])[:, :, -1].float().cpu()
        logits[:, list(sampling.never)] = float("-inf")
        undrawable = ~logits.amax(1).isfinite()  # which a NaN is, too
        logits[undrawable] = 0
        drawn = draw(logits, sampling.temperature, sampling.top_k, generator, sampling.top_p)
        tokens = torch.cat([tokens, drawn[:, None].to(device)], dim=1)
        for number, token in enumerate(drawn.masked_fill(undrawable, -1).tolist()):
            if running[number]:
                running[number] = token not in (sampling.stop, -1) and left > 0
                yield Event(number, token, not running[number])
        if not any(running):
            return


def draw(
    logits: Tensor,
    temperature: float,
    top_k: int | None,
    generator: torch.Generator | None,
    top_p: float = 1.0,
) -> Tensor:
    """One token number (batch,) for each row of `logits` (batch, vocab)."""
    if temperature == 0:
        return logits.argmax(1)
    if top_k is not None and top_k < logits.shape[1]:
        kept = logits.topk(top_k, dim=1)
        logits = torch.full_like(logits, float("-inf")).scatter(1, kept.indices, kept.values)
    likelihood = (logits / temperature).softmax(1)
    if top_p < 1:
        sorted_, order = likelihood.sort(1, descending=True)
        before = sorted_.cumsum(1) - sorted_
        likelihood = likelihood.scatter(1, order, sorted_.masked_fill(before >= top_p, 0))
    return torch.multinomial(likelihood, 1, generator=generator)[:, 0]
