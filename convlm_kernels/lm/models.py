"""The language models: one convolution, the same as a matrix product, a stack of dilated ones."""

from typing import Any, Self

from torch import Tensor, nn

from ..embedding_loss import (
    embedding_conv1d_cross_entropy,
    loss_with_gradients,
    sgd_step_of_loss,
    steps_on_gpu,
)
from ..layers import Conv1d
from ..network_layers import NetworkLayer, cannot_stream, check_is_plain, layers_of
from ..plain import have_gradient_hooks
from .char_model import (
    LOGITS_METHODS,
    LOSS_METHODS,
    STEP_METHODS,
    CharModel,
    LookUp,
    all_require_grad,
    are_of_steps,
)
from .dilated import DilatedCNN


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
        self.check_streams()
        return layers_of(self.conv)

    def forward(self, tokens: Tensor) -> Tensor:
        if self.is_by_look_up():
            return self.embed_and_convolve(tokens, self.conv)
        return self.conv(self.embed_as_signal(tokens))

    def loss(self, x: Tensor, y: Tensor, reduction: str = "mean") -> Tensor:
        if self.look_up_with_loss(LOGITS_METHODS) is None:
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
        conv: Any = self._modules["conv"]  # in less time than by its name
        parameters, found = self.look_up_with_loss(LOSS_METHODS), None
        if parameters is not None and not have_gradient_hooks(parameters):
            found = loss_with_gradients(x, y, rows, *parameters, backend=conv.backend)
        if parameters is None or found is None:
            return super().training_step(x, y, rows)
        loss, *gradients = found
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if parameter is not None:
                parameter.grad = gradient if parameter.requires_grad else None
        return loss

    def sgd_step(self, x: Tensor, y: Tensor, lr: float, rows: Tensor | None = None) -> Tensor:
        """In one operator where the loss comes with its gradients."""
        conv: Any = self._modules["conv"]
        parameters = self.look_up_trained_at_once()
        if parameters is not None and (x.is_cpu or not are_of_steps(rows)):
            loss = sgd_step_of_loss(x, y, rows, *parameters, lr, backend=conv.backend)
            if loss is not None:
                return loss
        return super().sgd_step(x, y, lr, rows)

    def steps_on_gpu(self, x: Tensor) -> bool:
        parameters = self.look_up_trained_at_once()
        return parameters is not None and steps_on_gpu(x, *parameters[:2], self.conv.backend)

    def is_by_look_up(self) -> bool:
        """Whether the embedding and the convolution are computed as one."""
        return self.fused and self.look_up_of(self._modules["conv"]) is not None

    def look_up_with_loss(self, methods: tuple[str, ...]) -> LookUp | None:
        """What gives the loss and its gradients in one operator; None where there is none, as for
        activations, or `methods` must be called.
        """
        conv: Any = self._modules["conv"]
        if not self.fused or not self.is_as_written(methods):
            return None
        look_up = self.look_up_of(conv)
        return None if look_up is None or conv.activation is not None else look_up

    def look_up_trained_at_once(self) -> LookUp | None:
        """What takes a step of SGD in one operator, or None."""
        parameters = self.look_up_with_loss(STEP_METHODS)
        if parameters is None or not all_require_grad(*parameters):
            return None
        return None if have_gradient_hooks(parameters) else parameters


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
        self.check_streams()
        if not isinstance(self.linear, nn.Linear):
            raise cannot_stream(self.linear, "it is not a Linear", "linear")
        check_is_plain(self.linear, "linear")
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


MODELS: dict[str, type[CharModel]] = {"dilated": DilatedCNN, "cnn": CNN, "mlp": MLP}


def build_model(kind: str, sizes: dict[str, int], backend: str = "auto") -> CharModel:
    """The model of that `kind` and those sizes."""
    if kind not in MODELS:
        raise ValueError(f"model must be one of {', '.join(MODELS)}; got {kind!r}")
    return MODELS[kind].build(sizes, backend)
