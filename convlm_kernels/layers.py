"""Layers: ``Conv1d`` and ``CausalConv1d``, and ``swap_conv1d`` for models that exist already."""

from __future__ import annotations

import warnings
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from . import backends
from .functional import check_activation, conv1d
from .geometry import PADDING_WORDS, Padding, as_int, resolve_padding
from .streaming import Streaming


class Conv1d(Streaming, nn.Conv1d):
    """``torch.nn.Conv1d`` on the kernels of this package, with an optional fused activation.

    Constructor, attributes, initialisation, ``state_dict``, padding modes and errors are those of
    ``torch.nn.Conv1d``. In addition ``padding`` may be "causal" or a (left, right) pair, and the
    keyword-only ``activation`` and ``backend`` are those of :func:`convlm_kernels.conv1d`.
    Settings that are changed after construction take effect with the next call.

    Shape:
        (batch, in_channels, length) or (in_channels, length) to the same with ``out_channels``
        and ``out_length``. float32, float64, bfloat16, float16.

    Raises:
        ValueError: an argument that ``torch.nn.Conv1d`` refuses, or an unknown ``padding`` word,
            ``activation`` or ``backend``.
    """

    # Defaults on the class: a module that became a Conv1d by swap_conv1d never ran __init__.
    activation: str | None = None
    backend: str = "auto"

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int],
        stride: int | tuple[int] = 1,
        padding: Padding = 0,
        dilation: int | tuple[int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str | None = None,
        backend: str = "auto",
    ) -> None:
        if isinstance(padding, str) and padding not in PADDING_WORDS:
            raise ValueError(
                f"Invalid padding string {padding!r}, should be one of {PADDING_WORDS}"
            )
        check_activation(activation)
        backends.check_name(backend)
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            0 if padding == "causal" else padding,  # type: ignore[arg-type]
            dilation,
            groups,
            bias,
            padding_mode,
            device,
            dtype,
        )
        if padding == "causal":
            self.padding = padding
        self.activation = activation
        self.backend = backend

    def forward(self, input: Tensor) -> Tensor:
        weight, bias = parameters_of(self)
        return self._conv_forward(input, weight, bias)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        padding: Any = self.padding
        if self.padding_mode != "zeros":
            pads = resolve_padding(
                padding,
                weight.shape[2],
                as_int("stride", self.stride),
                as_int("dilation", self.dilation),
            )
            input, padding = F.pad(input, pads, mode=self.padding_mode), 0
        return conv1d(
            input,
            weight,
            bias,
            self.stride,
            padding,
            self.dilation,
            self.groups,
            activation=self.activation,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        description = super().extra_repr()
        if self.activation is not None:
            description += f", activation={self.activation!r}"
        if self.backend != "auto":
            description += f", backend={self.backend!r}"
        return description


def parameters_of(layer: nn.Module) -> tuple[Tensor, Tensor | None]:
    """The weight of a convolution, and its bias.

    Found where Module.__getattr__ finds them too, which takes as long as half an operator.
    """
    own: Any = layer._parameters
    try:
        return own["weight"], own["bias"]
    except KeyError:  # a parametrization has them elsewhere
        found: Any = layer
        return found.weight, found.bias


class CausalConv1d(Conv1d):
    """``Conv1d(..., padding="causal")``: no output depends on an input to its right.

    At stride 1 there are as many outputs as inputs. Arguments, shapes and errors as for
    :class:`Conv1d`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int],
        stride: int | tuple[int] = 1,
        dilation: int | tuple[int] = 1,
        groups: int = 1,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            "causal",
            dilation,
            groups,
            bias,
            device=device,
            dtype=dtype,
            activation=activation,
            backend=backend,
        )


def swap_conv1d(model: nn.Module, backend: str = "auto") -> list[str]:
    """Turns every ``torch.nn.Conv1d`` in ``model``, itself included, into a :class:`Conv1d`.

    In place, and by changing the class only: each module stays the same object, so parameters,
    buffers, hooks, parametrizations, names, sharing and the training flag are untouched. A
    subclass of ``torch.nn.Conv1d`` may compute anything, and a module of another dtype (complex,
    integer) has no kernel here: both are left alone, with a UserWarning that names them.

    Returns:
        The names replaced, as in ``model.named_modules()``, every name of a shared module
        included; the name of ``model`` itself is "". Layers of this package are none of them.

    Raises:
        ValueError: an unknown ``backend``.
    """
    backends.check_name(backend)
    replaced, left = [], []
    found = list(model.named_modules(remove_duplicate=False))
    swappable = {id(module) for _, module in found if _is_swappable(module)}
    for name, module in found:
        if id(module) in swappable:
            replaced.append(name)
            if not isinstance(module, Conv1d):
                _become_conv1d(module)
                module.backend = backend
        elif isinstance(module, nn.Conv1d) and not isinstance(module, Conv1d):
            left.append(name)
    if left:
        warnings.warn(
            "swap_conv1d left alone (a subclass of torch.nn.Conv1d, or a dtype without a "
            f"kernel): {', '.join(left)}",
            UserWarning,
            stacklevel=2,
        )
    return replaced


def _is_swappable(module: nn.Module) -> bool:
    return parametrize.type_before_parametrizations(module) is nn.Conv1d and all(
        parameter.dtype in backends.KERNEL_DTYPES for parameter in module.parameters()
    )


def _become_conv1d(module: nn.Module) -> None:
    kind = type(module)
    if kind is nn.Conv1d:
        module.__class__ = Conv1d
        return
    # A parametrization gave the module a class of its own, derived from nn.Conv1d, with a property
    # for each parametrized tensor. Copies of the module share that class and were not asked about.
    members = {
        name: value
        for name, value in vars(kind).items()
        if name not in ("__dict__", "__weakref__", "__doc__")
    }
    module.__class__ = type(kind.__name__, (Conv1d,), members)
