"""Conv1d kernels for PyTorch, written by hand, and language models that run on them."""

from ._library import build_info
from .functional import conv1d
from .layers import CausalConv1d, Conv1d, swap_conv1d
from .stack import DilatedStack, StackLayer
from .streaming import StreamState

__version__ = "0.1.0"

__all__ = [
    "CausalConv1d",
    "Conv1d",
    "DilatedStack",
    "StackLayer",
    "StreamState",
    "build_info",
    "conv1d",
    "swap_conv1d",
]
