"""Conv1d kernels for PyTorch, written by hand, and language models that run on them."""

from ._library import build_info
from .embedding import embedding_conv1d
from .embedding_layer import EmbeddingConv1d
from .embedding_loss import embedding_conv1d_cross_entropy
from .functional import conv1d
from .layers import CausalConv1d, Conv1d, swap_conv1d
from .optim import sgd_step
from .stack import DilatedStack, StackLayer
from .streaming import StreamState

__version__ = "0.1.0"

__all__ = [
    "CausalConv1d",
    "Conv1d",
    "DilatedStack",
    "EmbeddingConv1d",
    "StackLayer",
    "StreamState",
    "build_info",
    "conv1d",
    "embedding_conv1d",
    "embedding_conv1d_cross_entropy",
    "sgd_step",
    "swap_conv1d",
]
