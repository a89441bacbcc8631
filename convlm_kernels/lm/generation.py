"""New words from a trained model."""

import torch
from torch import Tensor

from .data import Alphabet
from .models import CharModel


@torch.no_grad()
def sample(
    model: CharModel,
    alphabet: Alphabet,
    count: int = 1,
    *,
    prefix: str = "",
    temperature: float = 1.0,
    top_k: int | None = None,
    max_length: int = 64,
    generator: torch.Generator | None = None,
) -> list[str]:
    """`count` words that begin with `prefix`, each drawn character by character up to stop.

    temperature: below 1 keeps to the likely, above 1 strays; 0 always takes the likeliest.
    top_k: draw among the k likeliest characters only. max_length: characters, prefix included,
    at which a word that has not stopped is cut. generator: a CPU generator; the same state, count
    and settings give the same words. Raises ValueError for a character that is not in `alphabet`.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature must be 0 or more, and finite; got {temperature}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1, got {top_k}")
    if max_length < max(1, len(prefix)):
        raise ValueError(f"max_length must hold the prefix and be at least 1, got {max_length}")
    was_training = model.training
    model.eval()
    device = model.embedding.weight.device
    start = [alphabet.start] * model.context + alphabet.encode(prefix)
    tokens = torch.tensor([start] * count, device=device)
    stopped = torch.zeros(count, dtype=torch.bool, device=device)
    while tokens.shape[1] - model.context < max_length and not stopped.all():
        logits = model(tokens[:, -model.context :])[:, :, -1].float()
        logits[:, alphabet.start] = float("-inf")  # never a target in training
        drawn = draw(logits.cpu(), temperature, top_k, generator).to(device)
        drawn[stopped] = alphabet.stop
        stopped |= drawn == alphabet.stop
        tokens = torch.cat([tokens, drawn[:, None]], dim=1)
    model.train(was_training)
    return [alphabet.decode(row) for row in tokens[:, model.context :].tolist()]


def draw(
    logits: Tensor, temperature: float, top_k: int | None, generator: torch.Generator | None
) -> Tensor:
    """One token number (batch,) for each row of `logits` (batch, vocab)."""
    if temperature == 0:
        return logits.argmax(1)
    if top_k is not None and top_k < logits.shape[1]:
        kept = logits.topk(top_k, dim=1)
        logits = torch.full_like(logits, float("-inf")).scatter(1, kept.indices, kept.values)
    return torch.multinomial((logits / temperature).softmax(1), 1, generator=generator)[:, 0]
