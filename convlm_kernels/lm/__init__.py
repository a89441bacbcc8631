"""Character language models on `convlm_kernels.Conv1d`: data, models, training, generation."""

from .batch import Batch, Event, generate
from .checkpoint import Checkpoint, load_checkpoint
from .data import Alphabet, Data, Split, contexts, make_data
from .generation import sample
from .models import CNN, MLP, DilatedCNN
from .sampling import Sampling
from .steps import CapturedSteps, JoinedSteps, PlainSteps
from .training import Losses, Progress, Schedule, evaluate, train
from .words import load_words

__all__ = [
    "CNN",
    "MLP",
    "Alphabet",
    "Batch",
    "CapturedSteps",
    "Checkpoint",
    "Data",
    "DilatedCNN",
    "Event",
    "JoinedSteps",
    "Losses",
    "PlainSteps",
    "Progress",
    "Sampling",
    "Schedule",
    "Split",
    "contexts",
    "evaluate",
    "generate",
    "load_checkpoint",
    "load_words",
    "make_data",
    "sample",
    "train",
]
