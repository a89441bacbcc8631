"""``conv1d``: the signature and semantics of ``torch.nn.functional.conv1d``, and a little more."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import handle_torch_function, has_torch_function_variadic

from . import autograd, backends
from .activations import ACTIVATIONS
from .autograd import Window
from .backends import is_traced
from .geometry import Conv1dGeometry, Padding, as_int, resolve_padding

_any_autocast_enabled = torch._C._is_any_autocast_enabled
_torch_precision = torch._C._get_fp32_precision_getter

_AUTOCAST_FROM = frozenset({torch.float32, torch.bfloat16, torch.float16})


def conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, ...] = 1,
    padding: Padding = 0,
    dilation: int | tuple[int, ...] = 1,
    groups: int = 1,
    *,
    activation: str | None = None,
    backend: str = "auto",
) -> Tensor:
    """activation(convolution of ``input`` with ``weight`` + ``bias``), differentiable to any order.

    Args:
        input: (batch, in_channels, length), or (in_channels, length) unbatched.
        weight: (out_channels, in_channels / groups, kernel_size), of the dtype of ``input``.
        bias: (out_channels), of the same dtype, or None.
        stride, dilation, groups: at least 1.
        padding: zeros around the input: an int or (int,) for both sides, (left, right), "valid",
            "same" (stride 1 only), or "causal" (all on the left).
        activation: None, "tanh", "relu", "silu", "gelu" (the exact one) or "sigmoid".
        backend: "auto" or one of ``backends.BACKENDS``.

    Returns:
        (batch, out_channels, out_length), or without batch as ``input``. float32, float64,
        bfloat16 or float16; under autocast the dtype that torch's own convolution would have.

    Raises:
        TypeError: an argument of the wrong type, or an unsupported dtype.
        ValueError: an unknown ``activation`` or ``backend``.
        RuntimeError: an impossible geometry, differing dtypes, or an explicit backend that cannot
            run this problem.
    """
    if has_torch_function_variadic(input, weight, bias):
        return handle_torch_function(
            conv1d,
            (input, weight, bias),
            input,
            weight,
            bias,
            stride,
            padding,
            dilation,
            groups,
            activation=activation,
            backend=backend,
        )
    if not (isinstance(input, Tensor) and isinstance(weight, Tensor)) or not (
        bias is None or isinstance(bias, Tensor)
    ):
        check_tensors(input=input, weight=weight, bias=bias)
    # As layers hold them; in line, like all that a call of next to no work would notice.
    if type(stride) is tuple and len(stride) == 1:
        (stride,) = stride
    if type(padding) is tuple and len(padding) == 1:
        (padding,) = padding
    if type(dilation) is tuple and len(dilation) == 1:
        (dilation,) = dilation
    if not (type(stride) is type(dilation) is type(groups) is int):
        stride = as_int("stride", stride)
        dilation = as_int("dilation", dilation)
        groups = as_int("groups", groups)
    if type(padding) is int and padding >= 0:
        pad_left = pad_right = padding
    else:
        pad_left, pad_right = resolve_padding(padding, _kernel_size(weight), stride, dilation)
    if activation is None:
        activation = "none"
    elif type(activation) is not str or activation not in ACTIVATIONS:
        check_activation(activation)

    on_cpu = input.is_cpu
    precision = fp32_precision("mkldnn" if on_cpu else "cuda")
    window = (stride, pad_left, pad_right, dilation, groups, precision)
    if _any_autocast_enabled() and autocast_enabled(input):
        input, weight, bias = _autocast(input.device.type, input, weight, bias)

    rank = input.dim()
    if rank == 2:
        return _run(input.unsqueeze(0), weight, bias, window, activation, backend).squeeze(0)
    if rank != 3:
        raise RuntimeError(
            "input must be (in_channels, length) or (batch, in_channels, length), "
            f"got shape {tuple(input.shape)}"
        )
    if on_cpu and backend == "auto" and input.dtype in backends.KERNEL_DTYPES and not is_traced():
        # What select() would answer, without describing the problem to it first.
        return autograd.forward(input, weight, bias, window, activation)
    return _run(input, weight, bias, window, activation, backend)


def _run(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    window: Window,
    activation: str,
    backend: str,
) -> Tensor:
    stride, pad_left, pad_right, dilation, groups, _ = window
    geometry = Conv1dGeometry(
        batch=x.shape[0],
        in_channels=x.shape[1],
        out_channels=weight.shape[0],
        groups=groups,
        length=x.shape[2],
        kernel_size=_kernel_size(weight),
        stride=stride,
        dilation=dilation,
        pad_left=pad_left,
        pad_right=pad_right,
    )
    chosen = backends.select(backend, geometry, x.dtype, x.device)
    if chosen != "torch":
        kernels = "triton" if chosen == "triton" else "native"
        return autograd.forward(x, weight, bias, window, activation, kernels)
    padding = pad_left
    if pad_left != pad_right:
        x, padding = F.pad(x, (pad_left, pad_right)), 0
    z = F.conv1d(x, weight, bias, stride, padding, dilation, groups)
    return z if activation == "none" else ACTIVATIONS[activation](z)


def fp32_precision(torch_backend: str) -> str:
    """How exact convolutions of float32 must be: "ieee", or "tf32" where torch allows that.

    ``torch_backend`` is torch's own name for who computes them: "mkldnn" on the CPU, "cuda". The
    switch is ``torch.backends.mkldnn.conv.fp32_precision``, or ``torch.backends.cudnn.conv``'s.
    """
    return "tf32" if _torch_precision(torch_backend, "conv") in ("tf32", "bf16") else "ieee"


# Compiled code keeps what the switch said when it was compiled: torch.compile cannot read it.
fp32_precision._dynamo_marked_constant = True  # type: ignore[attr-defined]


def check_activation(activation: str | None) -> None:
    """ValueError unless ``activation`` is None or a name that :func:`conv1d` knows."""
    known = activation is None or (isinstance(activation, str) and activation in ACTIVATIONS)
    if not known:
        allowed = ", ".join(ACTIVATIONS)
        raise ValueError(f"activation must be None or one of {allowed}, got {activation!r}")


def _kernel_size(weight: Tensor) -> int:
    if weight.dim() != 3:
        raise RuntimeError(
            "weight must be (out_channels, in_channels / groups, kernel_size), "
            f"got shape {tuple(weight.shape)}"
        )
    return weight.shape[2]


def autocast_enabled(tensor: Tensor) -> bool:
    """Whether autocast casts the arguments of convolutions where ``tensor`` is."""
    if not _any_autocast_enabled():
        return False
    device_type = tensor.device.type
    return torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)


def castable(dtype: torch.dtype) -> bool:
    """Whether autocast casts tensors of ``dtype`` for a convolution."""
    return dtype in _AUTOCAST_FROM


def _autocast(device_type: str, *tensors: Tensor | None) -> Any:
    """The casts that autocast applies to the arguments of torch's own convolutions."""
    dtype = torch.get_autocast_dtype(device_type)
    return tuple(
        tensor.to(dtype) if tensor is not None and tensor.dtype in _AUTOCAST_FROM else tensor
        for tensor in tensors
    )


def check_tensors(**arguments: object) -> None:
    """TypeError, which names it, for the first that is no Tensor; a bias may be None, too."""
    for name, value in arguments.items():
        if not isinstance(value, Tensor) and not (name == "bias" and value is None):
            raise TypeError(f"{name} must be a Tensor, got {type(value).__name__}")
