"""The language models: one convolution, the same as a matrix product, a stack of dilated ones."""

from typing import Any, Self

from torch import Tensor, nn

from ..embedding_loss import (
    embedding_conv1d_cross_entropy,
    loss_with_gradients,
    sgd_step_of_loss,
    steps_on_gpu,
)
from ..layers import Conv1d, parameters_of
from ..network_layers import NetworkLayer, layers_of
from .char_model import CharModel, all_require_grad
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
        parameters, backend = self.look_up_parameters()
        found = loss_with_gradients(x, y, rows, *parameters, backend=backend)
        if found is None:
            return super().training_step(x, y, rows)
        loss, *gradients = found
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if parameter is not None:
                parameter.grad = gradient if parameter.requires_grad else None
        return loss

    def sgd_step(self, x: Tensor, y: Tensor, lr: float, rows: Tensor | None = None) -> Tensor:
        """In one operator where the loss comes with its gradients."""
        if self.is_by_look_up():
            parameters, backend = self.look_up_parameters()
            if all_require_grad(*parameters):
                loss = sgd_step_of_loss(x, y, rows, *parameters, lr, backend=backend)
                if loss is not None:
                    return loss
        return super().sgd_step(x, y, lr, rows)

    def steps_on_gpu(self, x: Tensor) -> bool:
        parameters, backend = self.look_up_parameters()
        return (
            self.is_by_look_up()
            and all_require_grad(*parameters)
            and steps_on_gpu(x, *parameters[:2], backend)
        )

    def is_by_look_up(self) -> bool:
        """Whether the embedding and the convolution are computed as one."""
        conv: Any = self._modules["conv"]
        return self.fused and self.is_plain((conv,))

    def look_up_parameters(self) -> tuple[tuple[Tensor, Tensor, Tensor | None], str]:
        """Embedding, weight and bias, and the backend of the convolution."""
        conv: Any = self._modules["conv"]
        return (self.words(), *parameters_of(conv)), conv.backend


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


MODELS: dict[str, type[CharModel]] = {"dilated": DilatedCNN, "cnn": CNN, "mlp": MLP}


def build_model(kind: str, sizes: dict[str, int], backend: str = "auto") -> CharModel:
    """The model of that `kind` and those sizes."""
    if kind not in MODELS:
        raise ValueError(f"model must be one of {', '.join(MODELS)}; got {kind!r}")
    return MODELS[kind].build(sizes, backend)
