"""A stack of dilated convolutions as a language model."""

from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import stack_autograd, stack_ops
from ..layers import Conv1d
from ..lookup import by_tap, end_to_end
from ..network_layers import NetworkLayer, layers_of
from ..optim import PLAIN, mark_changed
from ..plain import has_hooks, have_gradient_hooks
from ..stack_layers import operands_of, reason_not_fusable
from ..stack_ops import Settings
from .char_model import (
    LOGITS_METHODS,
    LOSS_METHODS,
    STEP_METHODS,
    CharModel,
    all_require_grad,
    are_of_steps,
    batch_of,
)
from .integers import check_positive, integer

# A model as fused operators take it: the embedding, the weights, and the biases or None; settings.
Stack = tuple[list[Any], Settings]


class DilatedCNN(CharModel):
    """Fuses characters progressively: pairs, then fours, eights, ... up to the context.

    The first convolution fuses two neighbouring embeddings; each further one has two taps, and its
    dilation is the number of characters that its input has fused already. Tanh between them.

    fused: where :class:`DilatedStack` would be one operator over the characters, so is this, its
    loss and all gradients included; elsewhere the first convolution is by look-up, as in `CNN`.
    """

    share_contexts = True  # as in :class:`DilatedStack`
    _by_tap: "_LastingView | None" = None

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
        if integer("context", context) < 2 or context & (context - 1):
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

    def sizes(self) -> dict[str, int]:
        return {**super().sizes(), "hidden": self.hidden}

    def stream_layers(self) -> list[NetworkLayer]:
        self.check_streams()
        return layers_of(self.layers)

    def forward(self, tokens: Tensor) -> Tensor:
        self.check_tokens(tokens)
        stack = self.as_stack(tokens.shape[-1])
        if stack is not None:
            words, weights, biases, settings = self.operands(*stack)
            return stack_autograd.stack(
                words, tokens, weights, biases, settings, self.share_contexts
            )
        layers: Any = self.layers
        if self.fused and is_a_chain(layers) and self.look_up_of(layers[0]) is not None:
            return layers[1:](self.embed_and_convolve(tokens, layers[0]))
        return layers(self.embed_as_signal(tokens))

    def loss(self, x: Tensor, y: Tensor, reduction: str = "mean") -> Tensor:
        self.check_tokens(x)
        stack = self.as_stack_with_loss(x.shape[-1], LOGITS_METHODS)
        if stack is None:
            return super().loss(x, y, reduction)
        words, weights, biases, settings = self.operands(*stack)
        return stack_autograd.cross_entropy(
            words, x, y, weights, biases, settings, reduction, self.share_contexts
        )

    def training_step(self, x: Tensor, y: Tensor, rows: Tensor | None = None) -> Tensor:
        """Without autograd where the loss comes with its gradients."""
        stack = self.as_stack_with_loss(x.shape[-1], LOSS_METHODS)
        if stack is None or not are_apart(stack[0]):
            return super().training_step(x, y, rows)
        x, y = batch_of(x, y, rows)
        self.check_tokens(x)
        parameters, _ = stack
        with torch.set_grad_enabled(False):
            words, weights, biases, settings = self.operands(*stack)
            loss, gradients = stack_ops.stack_cross_entropy(
                words, x, y, weights, biases, settings, self.share_contexts
            )
            of_words, of_first, *others = gradients
            gradients = [of_words, end_to_end(of_first, parameters[1]), *others]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if parameter is not None:
                parameter.grad = gradient if parameter.requires_grad else None
        return loss

    def sgd_step(self, x: Tensor, y: Tensor, lr: float, rows: Tensor | None = None) -> Tensor:
        """In one operator where the loss comes with its gradients."""
        stack = self.as_stack_trained_at_once(x.shape[-1])
        if stack is None or (are_of_steps(rows) and not x.is_cpu):
            return super().sgd_step(x, y, lr, rows)
        self.check_tokens(x)
        with torch.set_grad_enabled(False):
            words, weights, biases, settings = self.operands(*stack)
            loss = stack_ops.stack_sgd_(
                words, x, y, rows, weights, biases, settings, self.share_contexts, lr
            )
        mark_changed([p for p in stack[0] if p is not None])
        return loss

    def steps_on_gpu(self, x: Tensor) -> bool:
        return x.is_cuda and self.as_stack_trained_at_once(x.shape[-1]) is not None

    def is_a_stack(self, length: int | None = None) -> bool:
        """Whether fused operators take the whole model, on rows of `length` tokens (default: one
        context).
        """
        return self.as_stack(length) is not None

    def as_stack(self, length: int | None = None) -> Stack | None:
        """What they take, as the layers are now; None where :meth:`is_a_stack` is False."""
        words = self.words()
        if not self.fused or reason_not_fusable(words) is not None:
            return None
        layers: Any = self._modules["layers"]
        if not (is_a_chain(layers) and self.embeds_plainly()):
            return None
        found = operands_of(layers._modules.values(), words, end_to_end=words.shape[1])
        if len(found) == 2:
            return None
        weights, biases, settings = found
        stack = [words, *weights, *biases], settings
        if not words.is_cpu:
            length = max(self.context, length or 0)  # a shorter one is refused for what it is
            operands = words, length, True, self.operands(*stack)[1], settings
            if stack_ops.reason_does_not_fit(*operands) is not None:
                return None
        return stack

    def as_stack_with_loss(self, length: int, methods: tuple[str, ...]) -> Stack | None:
        """What operators take that give the loss with its gradients; None where there are none, or
        `methods` must be called.
        """
        has_loss = self.words().dtype in (torch.float32, torch.float64)
        return self.as_stack(length) if has_loss and self.is_as_written(methods) else None

    def as_stack_trained_at_once(self, length: int) -> Stack | None:
        """What the one operator takes that is a step of SGD, or None."""
        stack = self.as_stack_with_loss(length, STEP_METHODS)
        if stack is None or not all_require_grad(*stack[0]) or not are_apart(stack[0]):
            return None
        return stack

    def operands(
        self, parameters: list[Any], settings: Settings
    ) -> tuple[Tensor, list[Tensor], list[Tensor], Settings]:
        """Embedding, weights whose kernels count characters, biases, and settings."""
        depth = len(parameters) // 2
        words, weights = parameters[0], parameters[1 : 1 + depth]
        biases = [words.new_empty(0) if b is None else b for b in parameters[1 + depth :]]
        weights[0] = self.by_tap(weights[0], words)
        return words, weights, biases, settings

    def by_tap(self, weight: Tensor, words: Tensor) -> Tensor:
        """The first `weight` as (hidden, embedding, 2).

        Steps take the same view again while it is of the same memory: making one takes longer than
        all else that they do in Python.
        """
        lasting = type(weight) in PLAIN and weight.is_contiguous()
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or not lasting:
            return by_tap(weight, words.shape[1])
        kept = self._by_tap
        if kept is None or not kept.is_of(weight):
            view = by_tap(weight.detach(), words.shape[1])  # no part of a graph
            self._by_tap = kept = _LastingView(view, weight.shape, weight.dtype)
        return kept.view


class _LastingView(NamedTuple):
    """A view of a weight, by its taps, and what tells whether it still is one."""

    view: Tensor
    shape: torch.Size  # of the weight
    dtype: torch.dtype

    def is_of(self, weight: Tensor) -> bool:
        """The view keeps its memory, so no other tensor can have the address of it."""
        return (
            self.view.data_ptr() == weight.data_ptr()
            and self.shape == weight.shape
            and self.dtype == weight.dtype
        )

    def __reduce__(self) -> Any:
        return type(None), ()  # a copied or saved model makes its own


def is_a_chain(layers: Any) -> bool:
    """Whether a call of `layers` is one of each after the other, of some."""
    return type(layers) is nn.Sequential and not has_hooks(layers) and bool(layers._modules)


def are_apart(parameters: list[Tensor | None]) -> bool:
    """Whether each is a tensor of its own, for which nothing but its gradient is to be found.

    Where one stands for two their gradients add up, and where one has hooks on its gradient these
    are called, as autograd does it. Two biases that are None count as one for two.
    """
    return len({*map(id, parameters)}) == len(parameters) and not have_gradient_hooks(parameters)
