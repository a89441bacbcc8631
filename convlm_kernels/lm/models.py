"""The language models: one convolution, the same as a matrix product, a stack of dilated ones."""

from itertools import pairwise
from typing import Any, Self

import torch
from torch import Tensor, nn

from .. import stack_autograd, stack_ops
from ..embedding_loss import (
    embedding_conv1d_cross_entropy,
    loss_with_gradients,
    sgd_step_of_loss,
    steps_on_gpu,
)
from ..layers import Conv1d
from ..lookup import by_tap, end_to_end
from ..network import NetworkLayer, layers_of
from ..optim import mark_changed
from ..stack import parameters_of, reason_not_fusable
from ..stack_autograd import Settings
from .char_model import CharModel, all_require_grad, batch_of, check_positive


class CNN(CharModel):
    """One convolution that sees the whole context: kernel context * embedding, stride embedding.

    fused: look up what each tap makes of each character, and train without writing out the logits,
    instead of convolving the embeddings. The same function of the same parameters.
    """

    def __init__(
        self,
        vocab: int = 28,
        context: int = 8,
        embedding: int = 10,
        *,
        fused: bool = True,
        backend: str = "auto",
    ) -> None:
        super().__init__(vocab, context, embedding)
        self.fused = fused
        self.conv = Conv1d(1, vocab, context * embedding, stride=embedding, backend=backend)

    def stream_layers(self) -> list[NetworkLayer]:
        return layers_of(self.conv)

    def forward(self, tokens: Tensor) -> Tensor:
        if self.is_by_look_up():
            return self.embed_and_convolve(tokens, self.conv)
        return self.conv(self.embed_as_signal(tokens))

    def loss(self, x: Tensor, y: Tensor, reduction: str = "mean") -> Tensor:
        if not self.is_by_look_up():
            return super().loss(x, y, reduction)
        self.check_tokens(x)
        conv = self.conv
        return embedding_conv1d_cross_entropy(
            x,
            y,
            self.embedding.weight,
            conv.weight,
            conv.bias,
            reduction=reduction,
            backend=conv.backend,
        )

    def training_step(self, x: Tensor, y: Tensor, rows: Tensor | None = None) -> Tensor:
        """Without autograd where the loss comes with its gradients."""
        if not self.is_by_look_up():
            return super().training_step(x, y, rows)
        conv = self.conv
        parameters = self.embedding.weight, conv.weight, conv.bias
        found = loss_with_gradients(x, y, rows, *parameters, backend=conv.backend)
        if found is None:
            return super().training_step(x, y, rows)
        loss, *gradients = found
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if parameter is not None:
                parameter.grad = gradient if parameter.requires_grad else None
        return loss

    @torch.no_grad()
    def sgd_step(self, x: Tensor, y: Tensor, lr: float, rows: Tensor | None = None) -> Tensor:
        """In one operator where the loss comes with its gradients."""
        conv = self.conv
        words, weight, bias = self.embedding.weight, conv.weight, conv.bias
        if self.is_by_look_up() and all_require_grad(words, weight, bias):
            loss = sgd_step_of_loss(x, y, rows, words, weight, bias, lr, backend=conv.backend)
            if loss is not None:
                return loss
        return super().sgd_step(x, y, lr, rows)

    def steps_on_gpu(self, x: Tensor) -> bool:
        parameters = self.embedding.weight, self.conv.weight, self.conv.bias
        return (
            self.is_by_look_up()
            and all_require_grad(*parameters)
            and steps_on_gpu(x, *parameters[:2], self.conv.backend)
        )

    def is_by_look_up(self) -> bool:
        """Whether the embedding and the convolution are computed as one."""
        return self.fused and self.is_plain((self.conv,))


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

    @classmethod
    def build(cls, sizes: dict[str, int], backend: str = "auto") -> Self:
        """There is no convolution to give a backend."""
        return cls(**sizes)

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

    fused: where :class:`DilatedStack` would be one operator over the characters, so is this, its
    loss and all gradients included; elsewhere the first convolution is by look-up, as in `CNN`.
    """

    share_contexts = True  # as in :class:`DilatedStack`

    def __init__(
        self,
        vocab: int = 28,
        context: int = 8,
        embedding: int = 10,
        hidden: int = 100,
        *,
        fused: bool = True,
        backend: str = "auto",
    ) -> None:
        if context < 2 or context & (context - 1):
            raise ValueError(f"context must be a power of two from 2 on, got {context}")
        check_positive(hidden=hidden)
        super().__init__(vocab, context, embedding)
        self.fused = fused
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
        self.settings = Settings(
            dilations=[2**i for i in range(depth)],
            pads=[0] * depth,
            activations=["tanh"] * (depth - 1) + ["none"],
            residuals=[0] * depth,
        )

    def sizes(self) -> dict[str, int]:
        return {**super().sizes(), "hidden": self.hidden}

    def stream_layers(self) -> list[NetworkLayer]:
        return layers_of(self.layers)

    def forward(self, tokens: Tensor) -> Tensor:
        if self.is_a_stack(tokens.shape[-1]):
            self.check_tokens(tokens)
            words, weights, biases, settings = self.stack_operands()
            return stack_autograd.stack(
                words, tokens, weights, biases, settings, self.share_contexts
            )
        first: Any = self.layers[0]
        if self.fused and self.is_plain((first,)):
            return self.layers[1:](self.embed_and_convolve(tokens, first))
        return self.layers(self.embed_as_signal(tokens))

    def loss(self, x: Tensor, y: Tensor, reduction: str = "mean") -> Tensor:
        if not self.is_a_stack_with_loss(x.shape[-1]):
            return super().loss(x, y, reduction)
        self.check_tokens(x)
        words, weights, biases, settings = self.stack_operands()
        return stack_autograd.cross_entropy(
            words, x, y, weights, biases, settings, reduction, self.share_contexts
        )

    def training_step(self, x: Tensor, y: Tensor, rows: Tensor | None = None) -> Tensor:
        """Without autograd where the loss comes with its gradients."""
        parameters = self.stack_parameters()
        if not self.is_a_stack_with_loss(x.shape[-1]) or are_tied(parameters):
            return super().training_step(x, y, rows)
        x, y = batch_of(x, y, rows)
        self.check_tokens(x)
        words, weights, biases, settings = self.stack_operands()
        with torch.no_grad():
            loss, gradients = stack_ops.stack_cross_entropy(
                words, x, y, weights, biases, *settings, self.share_contexts
            )
            gradients[1] = end_to_end(gradients[1], parameters[1])
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient if parameter.requires_grad else None
        return loss

    @torch.no_grad()
    def sgd_step(self, x: Tensor, y: Tensor, lr: float, rows: Tensor | None = None) -> Tensor:
        """In one operator where the loss comes with its gradients."""
        if not self.is_trained_at_once(x):
            return super().sgd_step(x, y, lr, rows)
        self.check_tokens(x)
        words, weights, biases, settings = self.stack_operands()
        loss = stack_ops.stack_sgd_(
            words, x, y, rows, weights, biases, *settings, self.share_contexts, lr
        )
        mark_changed([words, *weights, *biases])
        return loss

    def steps_on_gpu(self, x: Tensor) -> bool:
        return x.is_cuda and self.is_trained_at_once(x)

    def is_trained_at_once(self, x: Tensor) -> bool:
        """Whether a step of SGD on rows like those of `x` is one operator."""
        if not self.is_a_stack_with_loss(x.shape[-1]):
            return False
        parameters = self.stack_parameters()
        return not are_tied(parameters) and all_require_grad(*parameters)

    def stack_parameters(self) -> list[Tensor]:
        """The embedding, the weights, and the biases: those of `parameters`, in less time."""
        layers: list[Any] = list(self.layers)
        weights, biases = [layer.weight for layer in layers], [layer.bias for layer in layers]
        return [self.embedding.weight, *weights, *biases]

    def is_a_stack(self, length: int | None = None) -> bool:
        """Whether fused operators take the whole model, on rows of `length` tokens (default: one
        context).
        """
        words = self.embedding.weight
        plain = (
            self.fused
            and reason_not_fusable(self.embedding.weight) is None
            and self.is_plain(self.layers)
        )
        if not plain or words.is_cpu:
            return plain
        _, weights, _, settings = self.stack_operands()
        length = max(self.context, length or 0)  # a shorter one is refused for what it is
        return stack_ops.reason_does_not_fit(words, length, True, weights, settings) is None

    def is_a_stack_with_loss(self, length: int | None = None) -> bool:
        """Whether the loss comes with its gradients."""
        has_loss = self.embedding.weight.dtype in (torch.float32, torch.float64)
        return has_loss and self.is_a_stack(length)

    def stack_operands(self) -> tuple[Tensor, list[Tensor], list[Tensor], Settings]:
        """Embedding, weights whose kernels count characters, biases, and settings."""
        words = self.embedding.weight
        weights, biases = parameters_of(list(self.layers), words)
        weights[0] = by_tap(weights[0], words.shape[1])
        return words, weights, biases, self.settings


def are_tied(parameters: list[Tensor]) -> bool:
    """Whether one tensor stands for two: their gradients add up, as autograd does it.

    Two biases that are None count as such.
    """
    return len({id(parameter) for parameter in parameters}) < len(parameters)


MODELS: dict[str, type[CharModel]] = {"dilated": DilatedCNN, "cnn": CNN, "mlp": MLP}


def build_model(kind: str, sizes: dict[str, int], backend: str = "auto") -> CharModel:
    """The model of that `kind` and those sizes."""
    if kind not in MODELS:
        raise ValueError(f"model must be one of {', '.join(MODELS)}; got {kind!r}")
    return MODELS[kind].build(sizes, backend)
