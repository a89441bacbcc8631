"""A stack of dilated convolutions as a language model."""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from .. import stack_autograd, stack_ops
from ..layers import Conv1d, parameters_of
from ..lookup import by_tap, end_to_end
from ..network_layers import NetworkLayer, layers_of
from ..optim import PLAIN, mark_changed
from ..stack_layers import reason_not_fusable
from ..stack_ops import LayerSettings, Settings
from .char_model import CharModel, all_require_grad, batch_of, check_positive


class DilatedCNN(CharModel):
    """Fuses characters progressively: pairs, then fours, eights, ... up to the context.

    The first convolution fuses two neighbouring embeddings; each further one has two taps, and its
    dilation is the number of characters that its input has fused already. Tanh between them.

    fused: where :class:`DilatedStack` would be one operator over the characters, so is this, its
    loss and all gradients included; elsewhere the first convolution is by look-up, as in `CNN`.
    """

    share_contexts = True  # as in :class:`DilatedStack`
    _by_tap: tuple[Any, Tensor] | None = None

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
        self.settings = stack_ops.settings_of(
            LayerSettings(2**i, 0, "tanh" if i < depth - 1 else "none", False) for i in range(depth)
        )

    def sizes(self) -> dict[str, int]:
        return {**super().sizes(), "hidden": self.hidden}

    def stream_layers(self) -> list[NetworkLayer]:
        return layers_of(self.layers)

    def forward(self, tokens: Tensor) -> Tensor:
        if self.is_a_stack(tokens.shape[-1]):
            self.check_tokens(tokens)
            words, weights, biases, settings = self.stack_operands(self.stack_parameters())
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
        words, weights, biases, settings = self.stack_operands(self.stack_parameters())
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
        with torch.set_grad_enabled(False):
            words, weights, biases, settings = self.stack_operands(parameters)
            loss, gradients = stack_ops.stack_cross_entropy(
                words, x, y, weights, biases, settings, self.share_contexts
            )
            gradients[1] = end_to_end(gradients[1], parameters[1])
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if parameter is not None:
                parameter.grad = gradient if parameter.requires_grad else None
        return loss

    def sgd_step(self, x: Tensor, y: Tensor, lr: float, rows: Tensor | None = None) -> Tensor:
        """In one operator where the loss comes with its gradients."""
        parameters = self.stack_parameters()
        if not self.is_trained_at_once(x, parameters):
            return super().sgd_step(x, y, lr, rows)
        self.check_tokens(x)
        with torch.set_grad_enabled(False):
            words, weights, biases, settings = self.stack_operands(parameters)
            loss = stack_ops.stack_sgd_(
                words, x, y, rows, weights, biases, settings, self.share_contexts, lr
            )
        mark_changed([p for p in parameters if p is not None])
        return loss

    def steps_on_gpu(self, x: Tensor) -> bool:
        return x.is_cuda and self.is_trained_at_once(x, self.stack_parameters())

    def is_trained_at_once(self, x: Tensor, parameters: list[Any]) -> bool:
        """Whether a step of SGD on rows like those of `x` is one operator."""
        return (
            self.is_a_stack_with_loss(x.shape[-1])
            and all_require_grad(*parameters)
            and not are_tied(parameters)
        )

    def stack_parameters(self) -> list[Tensor]:
        """The embedding, the weights, and the biases: those of `parameters`, in less time."""
        weights, biases = zip(*map(parameters_of, self.convolutions()), strict=True)
        return [self.words(), *weights, *biases]

    def convolutions(self) -> list[Any]:
        layers: Any = self._modules["layers"]
        return list(layers._modules.values())

    def is_a_stack(self, length: int | None = None) -> bool:
        """Whether fused operators take the whole model, on rows of `length` tokens (default: one
        context).
        """
        words = self.words()
        plain = (
            self.fused and reason_not_fusable(words) is None and self.is_plain(self.convolutions())
        )
        if not plain or words.is_cpu:
            return plain
        _, weights, _, settings = self.stack_operands(self.stack_parameters())
        length = max(self.context, length or 0)  # a shorter one is refused for what it is
        return stack_ops.reason_does_not_fit(words, length, True, weights, settings) is None

    def is_a_stack_with_loss(self, length: int | None = None) -> bool:
        """Whether the loss comes with its gradients."""
        has_loss = self.words().dtype in (torch.float32, torch.float64)
        return has_loss and self.is_a_stack(length)

    def stack_operands(
        self, parameters: list[Any]
    ) -> tuple[Tensor, list[Tensor], list[Tensor], Settings]:
        """Embedding, weights whose kernels count characters, biases, and settings."""
        depth = len(parameters) // 2
        words, weights = parameters[0], parameters[1 : 1 + depth]
        biases = [words.new_empty(0) if b is None else b for b in parameters[1 + depth :]]
        weights[0] = self.by_tap(weights[0], words)
        return words, weights, biases, self.settings

    def by_tap(self, weight: Tensor, words: Tensor) -> Tensor:
        """The first `weight` as (hidden, embedding, 2).

        Steps take the same view again while it is of the same memory: making one takes longer than
        all else that they do in Python.
        """
        lasting = type(weight) in PLAIN and weight.is_contiguous()
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or not lasting:
            return by_tap(weight, words.shape[1])
        seen = weight.data_ptr(), weight.shape, weight.dtype
        if self._by_tap is None or self._by_tap[0] != seen:
            self._by_tap = seen, by_tap(weight.detach(), words.shape[1])  # no part of a graph
        return self._by_tap[1]


def are_tied(parameters: list[Tensor]) -> bool:
    """Whether one tensor stands for two: their gradients add up, as autograd does it.

    Two biases that are None count as such.
    """
    return len({id(parameter) for parameter in parameters}) < len(parameters)
