"""Checkpoints that several processes write together, each its shards, and any number reads.

torch.distributed.checkpoint does the work, in safetensors: its usual format has its metadata in a
pickle, which runs any code that a foreign file brings. checkpoint.json holds the settings and names
the folder of the shards and the size of each. It is replaced last and as a whole, so that a crash
at any time leaves the old checkpoint or the new one.
"""

import json
import secrets
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from .checkpoint import INDEX, SHARDS, remove_shards
from .files import sync_folder, write_whole
from .together import together


def write_sharded(folder: Path, header: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Replaces the checkpoint in `folder`; every process calls it with the same arguments.

    Raises OSError in one process, and ends the others, where it cannot be written in any; what was
    there is unchanged then.
    """
    first = dist.get_rank() == 0
    names = [SHARDS + secrets.token_hex(4)]
    dist.broadcast_object_list(names)
    shards = folder / names[0]
    together(lambda: shards.mkdir() if first else None)
    together(lambda: _check_shared(shards))
    try:
        together(lambda: _save(shards, tensors))
    except (OSError, SystemExit):
        shutil.rmtree(shards, ignore_errors=True)
        raise
    # What is left of a failure from here on may be the checkpoint; the next one removes it.
    together(lambda: _commit(folder, shards, header) if first else None)
    if first:
        remove_shards(folder, keep=shards.name)


def _check_shared(shards: Path) -> None:
    if not shards.is_dir():
        raise OSError(
            f"{shards} is not seen by process {dist.get_rank()}: "
            "the folder to write must be one that all processes share"
        )


def _save(shards: Path, tensors: dict[str, Tensor]) -> None:
    writer = dcp.HuggingFaceStorageWriter(str(shards), save_distributed=True)
    try:
        dcp.save(dict(tensors), storage_writer=writer)
    except CheckpointException as error:
        reason = next(iter(error.failures.values()))[0]
        raise OSError(f"{shards} cannot be written: {reason}") from None


def _commit(folder: Path, shards: Path, header: dict[str, Any]) -> None:
    """From here on, `shards` are the checkpoint."""
    sync_folder(shards)
    sizes = {path.name: path.stat().st_size for path in sorted(shards.iterdir())}
    index = {"header": header, "shards": shards.name, "sizes": sizes}
    write_whole(folder / INDEX, json.dumps(index, indent=2).encode())


def read_sharded(path: Path) -> tuple[Any, dict[str, Tensor]]:
    """The header and the tensors, whole, of the checkpoint whose index is at `path`.

    A process reads all by itself.

    Raises ValueError where a shard is missing, truncated or not what it should be.
    """
    try:
        index = json.loads(path.read_bytes())
        shards, sizes = path.parent / index["shards"], dict(index["sizes"])
        found = {path.name: path.stat().st_size for path in shards.iterdir()}
        if found != sizes:
            raise ValueError(f"{shards} should hold the files {sizes}, and holds {found}")
        return index["header"], _load(shards)
    except OSError as error:
        raise ValueError(f"{path} is not a whole checkpoint: {error}") from None
    except (KeyError, TypeError, ValueError, SafetensorError) as error:
        raise ValueError(f"{path} is not a whole checkpoint: {error!r}") from None


def _load(shards: Path) -> dict[str, Tensor]:
    reader = dcp.HuggingFaceStorageReader(str(shards))
    tensors = {
        name: torch.empty(kept.size, dtype=kept.properties.dtype, device="cpu")
        for name, kept in reader.read_metadata().state_dict_metadata.items()
        if isinstance(kept, TensorStorageMetadata)
    }
    try:
        with warnings.catch_warnings():  # that no other process helps, which is what we ask for
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            dcp.load(tensors, storage_reader=reader, no_dist=True)
    except CheckpointException as error:
        raise ValueError(str(next(iter(error.failures.values()))[0])) from None
    return tensors
