"""Character models that predict, at every position at once, what follows the last few characters.

All take tokens (batch, length), int64, and return logits (batch, vocab, length - context + 1);
the logits at position i belong to the character after tokens[:, i : i + context].
"""

from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from ..layers import Conv1d
from ..network import NetworkLayer, layers_of
from ..streaming import Streamed, StreamState, prefill


class CharModel(Streamed):
    """What the models share: the embedding, the check of the tokens, their sizes and their steps.

    A step takes the next token of each sample. The first logits need a whole context, and are NaN
    before that.
    """

    def __init__(self, vocab: int, context: int, embedding: int) -> None:
        super().__init__()
        _positive(vocab=vocab, context=context, embedding=embedding)
        self.vocab = vocab
        self.context = context
        self.embedding = nn.Embedding(vocab, embedding)

    @property
    def receptive_field(self) -> int:
        """How many characters, the newest included, one prediction depends on."""
        return self.context

    def sizes(self) -> dict[str, int]:
        """The arguments that build a model of the same shape."""
        return {
            "vocab": self.vocab,
            "context": self.context,
            "embedding": self.embedding.embedding_dim,
        }

    def embed(self, tokens: Tensor) -> Tensor:
        """Embeddings (batch, length, embedding) of `tokens` (batch, length)."""
        if tokens.dim() != 2:
            raise ValueError(f"tokens must be (batch, length), got shape {tuple(tokens.shape)}")
        if tokens.shape[1] < self.context:
            raise ValueError(
                f"tokens have length {tokens.shape[1]}, but a prediction needs a context of "
                f"{self.context}"
            )
        return self.embedding(tokens)

    def embed_as_signal(self, tokens: Tensor) -> Tensor:
        """Embeddings end to end as one channel (batch, 1, length * embedding).

        A convolution over it with stride `embedding` moves one character a step.
        """
        return self.embed(tokens).flatten(1).unsqueeze(1)

    def stream_embedding(self) -> nn.Embedding:
        return self.embedding

    def step(self, tokens: Tensor, state: StreamState) -> Tensor:
        """Logits (batch, vocab) of what follows `tokens` (batch), int64. Updates `state`."""
        return self.stream_network().step(tokens, state, None)

    def prefill(self, tokens: Tensor, state: StreamState) -> Tensor:
        """Logits (batch, vocab, length) of what follows each of `tokens` (batch, length).

        As many steps at once. Updates `state`.
        """
        return prefill(self.stream_network(), self.embedding(tokens).mT, state, None)


class CNN(CharModel):
    """One convolution that sees the whole context: kernel context * embedding, stride embedding."""

    def __init__(
        self, vocab: int = 28, context: int = 8, embedding: int = 10, *, backend: str = "auto"
    ) -> None:
        super().__init__(vocab, context, embedding)
        self.conv = Conv1d(1, vocab, context * embedding, stride=embedding, backend=backend)

    def stream_layers(self) -> list[NetworkLayer]:
        return layers_of(self.conv)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.conv(self.embed_as_signal(tokens))


class MLP(CharModel):
    """The same function as `CNN`, one matrix product a context instead of a convolution."""

    def __init__(self, vocab: int = 28, context: int = 8, embedding: int = 10) -> None:
        super().__init__(vocab, context, embedding)
        self.linear = nn.Linear(context * embedding, vocab)

    @classmethod
    def from_cnn(cls, cnn: CNN) -> "MLP":
        """The MLP with a copy of the CNN's parameters, on its device and in its dtype."""
        mlp = cls(**cnn.sizes()).to(cnn.conv.weight)
        mlp.load_state_dict(
            {
                "embedding.weight": cnn.embedding.weight,
                "linear.weight": cnn.conv.weight.flatten(1),
                "linear.bias": cnn.conv.bias,
            }
        )
        return mlp

    def stream_layers(self) -> list[NetworkLayer]:
        features = self.embedding.embedding_dim
        return [
            NetworkLayer(
                module=self.linear,
                in_channels=features,
                out_channels=self.vocab,
                groups=1,
                kernel_size=self.context,
                dilation=1,
                pad_left=0,
                activation=None,
                gated=False,
                residual=False,
            )
        ]

    def forward(self, tokens: Tensor) -> Tensor:
        embeddings = self.embed(tokens)
        windows = embeddings.unfold(1, self.context, 1).transpose(2, 3)
        return self.linear(windows.flatten(2)).transpose(1, 2)


class DilatedCNN(CharModel):
    """Fuses characters progressively: pairs, then fours, eights, ... up to the context.

    The first convolution fuses two neighbouring embeddings; each further one has two taps, and its
    dilation is the number of characters that its input has fused already. Tanh between them.
    """

    def __init__(
        self,
        vocab: int = 28,
        context: int = 8,
        embedding: int = 10,
        hidden: int = 100,
        *,
        backend: str = "auto",
    ) -> None:
        if context < 2 or context & (context - 1):
            raise ValueError(f"context must be a power of two from 2 on, got {context}")
        _positive(hidden=hidden)
        super().__init__(vocab, context, embedding)
        self.hidden = hidden
        depth = context.bit_length() - 1
        channels = [1] + [hidden] * (depth - 1) + [vocab]
        self.layers = nn.Sequential()
        for i, (fan_in, fan_out) in enumerate(pairwise(channels)):
            self.layers.append(
                Conv1d(
                    fan_in,
                    fan_out,
                    kernel_size=2 if i else 2 * embedding,
                    stride=1 if i else embedding,
                    dilation=2**i,
                    activation="tanh" if i < depth - 1 else None,
                    backend=backend,
                )
            )

    def sizes(self) -> dict[str, int]:
        return {**super().sizes(), "hidden": self.hidden}

    def stream_layers(self) -> list[NetworkLayer]:
        return layers_of(self.layers)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.layers(self.embed_as_signal(tokens))


MODELS: dict[str, type[CharModel]] = {"dilated": DilatedCNN, "cnn": CNN, "mlp": MLP}


def build_model(kind: str, sizes: dict[str, int], backend: str = "auto") -> CharModel:
    """The model of that `kind` and those sizes; the MLP has no convolution to give a backend."""
    if kind not in MODELS:
        raise ValueError(f"model must be one of {', '.join(MODELS)}; got {kind!r}")
    options: dict[str, Any] = dict(sizes)
    if kind != "mlp":
        options["backend"] = backend
    return MODELS[kind](**options)


def _positive(**sizes: int) -> None:
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
