"""What the language models share.

All take tokens (batch, length), int64, and return logits (batch, vocab, length - context + 1);
the logits at position i belong to the character after tokens[:, i : i + context].
"""

import math
from typing import Any, Self, TypeGuard

import torch
from torch import Tensor, nn

from .. import indices
from ..embedding import embedding_conv1d
from ..functional import check_tensors
from ..layers import Conv1d, parameters_of
from ..network_layers import cannot_stream, check_is_plain, check_is_plain_embedding
from ..optim import sgd_step
from ..plain import (
    has_global_hooks,
    has_hooks,
    reason_not_a_plain_embedding,
    reason_overridden,
)
from ..prefill import prefill
from ..stack_layers import convolves_embeddings, reason_not_a_plain_layer
from ..streaming import Streamed, StreamState
from .integers import check_positive
from .pretrained import Pretrained

# For what fused operators and steps may stand, if nobody has overridden it.
EMBEDDING_METHODS = "embed", "embed_as_signal", "embed_and_convolve"
LOGITS_METHODS = ("forward",)
LOSS_METHODS = "forward", "loss"
STEP_METHODS = "forward", "loss", "training_step"

LookUp = tuple[Tensor, Tensor, Tensor | None]  # embedding, weight and bias


def loss_of(logits: Tensor, y: Tensor, reduction: str = "mean") -> Tensor:
    """Cross-entropy of logits (batch, vocab, length) and y (batch, length), in float32 at least.

    Raises RuntimeError for a `y` that is no token, -100 included.
    """
    if logits.dtype in (torch.bfloat16, torch.float16):
        logits = logits.float()
    return indices.cross_entropy(logits, y, reduction)


def batch_of(x: Tensor, y: Tensor, rows: Tensor | None) -> tuple[Tensor, Tensor]:
    """Some `rows` of `x` and `y`, or all."""
    if rows is None:
        return x, y
    return x.index_select(0, rows), y.index_select(0, rows)


def are_of_steps(rows: Tensor | None) -> TypeGuard[Tensor]:
    """Whether they are (steps, batch), not those of one step."""
    return isinstance(rows, Tensor) and rows.dim() == 2


class CharModel(Streamed, Pretrained):
    """What the models share: the embedding, the check of the tokens, their sizes, loss and steps.

    A step takes the next token of each sample. The first logits need a whole context, and are NaN
    before that.

    What a subclass overrides (`forward`, `loss`, `training_step`, `embed`, ...), or a hook adds, on
    a module or on the gradient of a parameter, is called: then no operator does its work along with
    that of others. Layers and their settings may be changed at any time.
    """

    def __init__(self, vocab: int, context: int, embedding: int) -> None:
        super().__init__()
        check_positive(vocab=vocab, context=context, embedding=embedding)
        self.vocab = vocab
        self.context = context
        self.embedding = nn.Embedding(vocab, embedding)

    def sizes(self) -> dict[str, int]:
        """The arguments that build a model of the same shape."""
        return {
            "vocab": self.vocab,
            "context": self.context,
            "embedding": self.embedding.embedding_dim,
        }

    @classmethod
    def build(cls, sizes: dict[str, int], backend: str = "auto") -> Self:
        options: dict[str, Any] = {**sizes, "backend": backend}
        return cls(**options)

    def loss(self, x: Tensor, y: Tensor, reduction: str = "mean") -> Tensor:
        """Cross-entropy of the predictions from `x` (batch, length) and what follows, `y`.

        Every position counts: a `y` of -100 is no token, and raises RuntimeError. The reduction is
        "mean", "sum" or "none"; ValueError for another.
        """
        indices.check_reduction(reduction)
        return loss_of(self(x), y, reduction)

    def training_step(self, x: Tensor, y: Tensor, rows: Tensor | None = None) -> Tensor:
        """The mean loss of `x` and `y`, or of some `rows` of both; leaves its gradients in `.grad`,
        in place of others.
        """
        self.zero_grad()
        with torch.enable_grad():
            loss = self.loss(*batch_of(x, y, rows))
        loss.backward()
        return loss.detach()

    @torch.no_grad()
    def sgd_step(self, x: Tensor, y: Tensor, lr: float, rows: Tensor | None = None) -> Tensor:
        """A step of gradient descent on the loss of :meth:`training_step`, which is returned.

        Where the loss is not finite the parameters stay as they are. What is in `.grad` then is
        of no meaning: not every model goes by way of it.

        `rows` may be those of several steps, (steps, batch): these are taken one after the other,
        and their losses (steps) are returned. One that is not finite ends them, and NaN stands for
        the losses of the others. Small models spend less time in Python then. A row or token out
        of range is an error before the first step where they are one operator, else at its own. As
        one operator it reads the tokens of all steps first, and keeps 8 bytes for each.
        """
        if are_of_steps(rows):
            return self.steps_one_by_one(x, y, lr, rows)
        loss = self.training_step(x, y, rows)
        if math.isfinite(loss.item()):
            sgd_step(self.parameters(), lr)
        return loss

    def steps_one_by_one(self, x: Tensor, y: Tensor, lr: float, rows: Tensor) -> Tensor:
        """The steps of `rows` (steps, batch), a call of :meth:`sgd_step` each."""
        dtype = torch.promote_types(self.words().dtype, torch.float32)
        losses = x.new_full((len(rows),), torch.nan, dtype=dtype)
        for i, batch in enumerate(rows):
            losses[i] = loss = self.sgd_step(x, y, lr, batch)
            if not math.isfinite(loss.item()):
                break
        return losses

    def steps_on_gpu(self, x: Tensor) -> bool:
        """Whether :meth:`sgd_step` on `x` is work for a GPU alone, which nobody waits for."""
        return False

    def embeds_plainly(self) -> bool:
        """Whether :meth:`embed` does nothing but what the weight of the embedding says."""
        if reason_overridden(self, EMBEDDING_METHODS) is not None:
            return False
        embedding: Any = self._modules["embedding"]
        return reason_not_a_plain_embedding(embedding) is None and embedding.padding_idx is None

    def look_up_of(self, conv: Any) -> LookUp | None:
        """What a look-up takes that may stand for calls of the embedding and of `conv`, or None."""
        if has_global_hooks() or not self.embeds_plainly():
            return None
        words = self.words()
        if reason_not_a_plain_layer(conv, words) is not None:
            return None
        weight, bias = parameters_of(conv)
        if not convolves_embeddings(conv, weight.shape, words.shape[1]):
            return None
        return words, weight, bias

    def is_as_written(self, methods: tuple[str, ...]) -> bool:
        """Whether calls of the model and of these `methods` do what is written here, and no more.

        Else what stands for them must call them.
        """
        return not has_hooks(self) and reason_overridden(self, methods) is None

    def words(self) -> Tensor:
        """The weight of the embedding, found in less time than by its name."""
        embedding: Any = self._modules["embedding"]
        weight: Tensor | None = embedding._parameters.get("weight")
        return embedding.weight if weight is None else weight

    def check_tokens(self, tokens: Tensor) -> None:
        """Raises ValueError unless `tokens` is (batch, length) and holds a context.

        TypeError where it is no Tensor.
        """
        if not isinstance(tokens, Tensor):
            check_tensors(tokens=tokens)
        if tokens.dim() != 2:
            raise ValueError(f"tokens must be (batch, length), got shape {tuple(tokens.shape)}")
        if tokens.shape[1] < self.context:
            raise ValueError(
                f"tokens have length {tokens.shape[1]}, but a prediction needs a context of "
                f"{self.context}"
            )

    def embed(self, tokens: Tensor) -> Tensor:
        """Embeddings (batch, length, embedding) of `tokens` (batch, length)."""
        self.check_tokens(tokens)
        try:
            return self.embedding(tokens)
        except IndexError:
            indices.refuse_outside("tokens", tokens, "vocab", self.vocab)
            raise

    def embed_as_signal(self, tokens: Tensor) -> Tensor:
        """Embeddings end to end as one channel (batch, 1, length * embedding).

        A convolution over it with stride `embedding` moves one character a step.
        """
        return self.embed(tokens).flatten(1).unsqueeze(1)

    def embed_and_convolve(self, tokens: Tensor, conv: Conv1d) -> Tensor:
        """`conv` of the embeddings as one signal, by look-up."""
        self.check_tokens(tokens)
        return embedding_conv1d(
            tokens,
            self.embedding.weight,
            conv.weight,
            conv.bias,
            activation=conv.activation,
            backend=conv.backend,
        )

    def stream_embedding(self) -> nn.Embedding:
        return self.embedding

    def check_streams(self) -> None:
        """Raises ValueError unless steps may stand for calls of the model and its embedding."""
        check_is_plain(self)
        check_is_plain_embedding(self.embedding, self)
        reason = reason_overridden(self, EMBEDDING_METHODS)
        if reason is not None:
            raise cannot_stream(self, f"it {reason}")

    def step(self, tokens: Tensor, state: StreamState) -> Tensor:
        """Logits (batch, vocab) of what follows `tokens` (batch), int64. Updates `state`."""
        return self.stream_network().step(tokens, state, None)

    def prefill(self, tokens: Tensor, state: StreamState) -> Tensor:
        """Logits (batch, vocab, length) of what follows each of `tokens` (batch, length).

        As many steps at once. Updates `state`.
        """
        return prefill(self.stream_network(), tokens, state, None)


def all_require_grad(*parameters: Tensor | None) -> bool:
    """None, as an empty bias, is no parameter."""
    frozen = [p for p in parameters if p is not None and not p.requires_grad and p.numel()]
    return not frozen
