"""The language models that are timed, and the same models as one writes them with torch."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convlm_kernels import Conv1d
from convlm_kernels.lm import CNN, DilatedCNN, Split
from convlm_kernels.lm.char_model import CharModel

SEED_ROWS, LETTERS, CONTEXT, LENGTH = 25_626, 26, 8, 23
BYTES, BYTE_CONTEXT, BYTE_CHANNELS = 256, 1_024, 128


def dense() -> DilatedCNN:
    """Each position computed by itself, whatever repeats."""
    model = DilatedCNN()
    model.share_contexts = False
    return model


def byte_model() -> DilatedCNN:
    """Ten layers of two taps, dilations 1 to 512, over bytes."""
    model = DilatedCNN(BYTES, BYTE_CONTEXT, embedding=32, hidden=BYTE_CHANNELS)
    with torch.no_grad():
        for layer in model.layers:
            # Torch's start shrinks signals that much a layer: ten leave nothing to compare.
            layer.weight.mul_(3**0.5)
    return model


def seeded(build: Callable[[], CharModel]) -> CharModel:
    torch.manual_seed(0)
    return build()


def names_like_rows(rows: int = SEED_ROWS) -> Split:
    """Rows of the seed's shape: a start, 2 to 15 letters, and stops up to the end."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, LETTERS + 1, (rows, LENGTH + 1), generator=generator)
    ends = CONTEXT + torch.randint(2, LENGTH - CONTEXT + 1, (rows, 1), generator=generator)
    position = torch.arange(LENGTH + 1)
    tokens = tokens.where(position < ends, LETTERS + 1).where(position >= CONTEXT, 0)
    return Split(tokens[:, :-1].contiguous(), tokens[:, CONTEXT:].contiguous())


def byte_rows(rows: int, predictions: int) -> Split:
    generator = torch.Generator().manual_seed(0)
    length = BYTE_CONTEXT + predictions
    tokens = torch.randint(BYTES, (rows, length), generator=generator)
    return Split(tokens[:, :-1].contiguous(), tokens[:, BYTE_CONTEXT:].contiguous())


def on_torch_layers(module: nn.Module) -> nn.Module:
    """A copy on `torch.nn.Conv1d` and `torch.nn.Tanh`, with the same parameters."""
    if isinstance(module, Conv1d):
        window: Any = (module.kernel_size, module.stride, module.padding, module.dilation)
        plain = nn.Conv1d(module.in_channels, module.out_channels, *window)
        plain.load_state_dict(module.state_dict())
        return nn.Sequential(plain, nn.Tanh()) if module.activation == "tanh" else plain
    copy = deepcopy(module)
    if hasattr(copy, "fused"):
        copy.fused = False
    for name, child in module.named_children():
        setattr(copy, name, on_torch_layers(child))
    return copy


class AsMatrixProducts(nn.Module):
    """The model by hand, channels last: each layer one product with the taps side by side."""

    def __init__(self, model: CNN | DilatedCNN) -> None:
        super().__init__()
        self.embedding = deepcopy(model.embedding)
        features = self.embedding.embedding_dim
        first, *others = list(model.layers) if isinstance(model, DilatedCNN) else [model.conv]
        weights = [first.weight.unflatten(2, (-1, features))[:, 0]]  # out, taps, in
        weights += [layer.weight.mT for layer in others]
        self.linears = nn.ModuleList()
        self.taps: list[Sequence[int]] = []  # of each layer: by how much its inputs are shifted
        for weight, layer in zip(weights, (first, *others), strict=True):
            linear = nn.Linear(weight[0].numel(), len(weight))
            linear.weight = nn.Parameter(weight.detach().flatten(1).clone())
            linear.bias = nn.Parameter(layer.bias.detach().clone())
            self.linears.append(linear)
            dilation = 1 if layer is first else layer.dilation[0]
            self.taps.append(range(0, weight.shape[1] * dilation, dilation))

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.embedding(tokens)
        for number, (linear, taps) in enumerate(zip(self.linears, self.taps, strict=True)):
            if number:
                h = h.tanh()
            length = h.shape[1] - taps[-1]
            h = F.linear(
                torch.cat([h[:, t : t + length] for t in taps], 2), linear.weight, linear.bias
            )
        return h.transpose(1, 2)
