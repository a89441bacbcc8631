"""Checkpoints: one safetensors file, replaced as a whole, from which training goes on exactly.

Weights are under their own names, the generator and the losses under "training/...", and all
settings as JSON in the header. One file, since weights and generator must be of the same step.
Several processes write their parts of the same together, as `sharded` says; either form can be
read by any number of processes. Nothing is ever unpickled.
"""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .char_model import CharModel
from .data import Alphabet
from .files import write_whole
from .models import build_model
from .pretrained import each_by_itself, is_pretrained
from .training import Progress

FILE = "checkpoint.safetensors"
INDEX = "checkpoint.json"  # of the shards that several processes wrote
SHARDS = "shards-"  # how the name of their folder begins
FORMAT = "convlm checkpoint 1"
HEADER = "convlm"
TRAINING = "training/"


@dataclass
class Checkpoint:
    """A model, what its tokens mean, how it was trained (`settings`, plain JSON), how far it is."""

    kind: str
    model: CharModel
    alphabet: Alphabet
    settings: dict[str, Any]
    progress: Progress

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the file at `path`, or leaves what is there as it is: OSError, which names it."""
        write_whole(
            Path(path), save(each_by_itself(self.tensors()), {HEADER: json.dumps(self.header())})
        )

    def header(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "kind": self.kind,
            "sizes": self.model.sizes(),
            "alphabet": self.alphabet.symbols,
            "settings": self.settings,
            "evaluations": self.progress.evaluations,
        }

    def tensors(self) -> dict[str, Tensor]:
        tensors = dict(self.model.state_dict())
        tensors[TRAINING + "generator"] = self.progress.generator.get_state()
        losses = torch.tensor(self.progress.losses, dtype=torch.float64, device="cpu")
        tensors[TRAINING + "losses"] = losses
        return tensors


def load_checkpoint(path: str | os.PathLike[str], backend: str = "auto") -> Checkpoint:
    """The checkpoint at `path`, a file or the folder of a training; the model is on the CPU.

    Raises ValueError where there is none, or where the file is truncated or not one of ours.
    """
    path = Path(path)
    if path.is_dir():
        path /= INDEX if (path / INDEX).exists() else FILE
    read = _read
    if path.name == INDEX:
        from .sharded import read_sharded as read  # takes as long to import as half of torch
    header, tensors = read(path)
    try:
        return _restore(header, tensors, backend)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path} does not hold what its header says: {error}") from error


def load_model(path: str | os.PathLike[str], backend: str = "auto") -> tuple[CharModel, Alphabet]:
    """The model of a checkpoint, or of a folder of `save_pretrained`, and its alphabet.

    Raises ValueError as :func:`load_checkpoint` and `from_pretrained` do.
    """
    if is_pretrained(path):
        return CharModel.from_pretrained(path, backend), Alphabet.from_pretrained(path)
    run = load_checkpoint(path, backend)
    return run.model, run.alphabet


def remove_shards(folder: Path, keep: str | None = None) -> None:
    """Removes all shards in `folder` but those of the name to `keep`."""
    for shards in folder.glob(SHARDS + "*"):
        if shards.name != keep:
            shutil.rmtree(shards, ignore_errors=True)


def _read(path: Path) -> tuple[Any, dict[str, Tensor]]:
    """The header and the tensors of the file at `path`."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise ValueError(
            f"no checkpoint at {path}: `convlm train` makes one, in runs/ or where --out says"
        ) from None
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} is not a whole checkpoint: {error}") from None
    if HEADER not in metadata:
        raise ValueError(f"{path} is a safetensors file, but not a {FORMAT}")
    try:
        return json.loads(metadata[HEADER]), tensors
    except ValueError as error:
        raise ValueError(f"{path} does not hold what its header says: {error}") from None


def _restore(header: dict[str, Any], tensors: dict[str, Tensor], backend: str) -> Checkpoint:
    if header["format"] != FORMAT:
        raise ValueError(f"it is a {header['format']}, and this version reads {FORMAT}")
    generator = torch.Generator()
    generator.set_state(tensors.pop(TRAINING + "generator"))
    losses = tensors.pop(TRAINING + "losses").tolist()
    with torch.device("cpu"):
        model = build_model(header["kind"], header["sizes"], backend)
    model.to(tensors["embedding.weight"].dtype).load_state_dict(tensors)
    evaluations = [(step, loss) for step, loss in header["evaluations"]]
    progress = Progress(generator, losses, evaluations)
    alphabet = Alphabet(header["alphabet"])
    return Checkpoint(header["kind"], model, alphabet, header["settings"], progress)
