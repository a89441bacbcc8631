"""Weights as others keep them: a folder with config.json and model.safetensors.

These are the names and the habits of Hugging Face's `save_pretrained`. Nothing is ever unpickled.
"""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from .files import write_whole
from .options import DTYPES

if TYPE_CHECKING:
    from .data import Alphabet

CONFIG, WEIGHTS = "config.json", "model.safetensors"


class Pretrained(nn.Module):
    """A model that can be kept in a folder. A subclass says its `sizes` and how to `build` it."""

    def sizes(self) -> dict[str, int]:
        """The arguments that build a model of the same shape."""
        raise NotImplementedError

    @classmethod
    def build(cls, sizes: dict[str, int], backend: str = "auto") -> Self:
        """A new model of those sizes whose convolutions run on `backend`."""
        raise NotImplementedError

    def save_pretrained(
        self, folder: str | os.PathLike[str], alphabet: "Alphabet | None" = None
    ) -> None:
        """Writes `folder`: the weights, and a config.json that says how to build the model again.

        `alphabet` is what its tokens mean; `Alphabet.from_pretrained` reads it back. The config is
        written last, so a folder that has one has weights. One weight that stands for two is
        written twice, and read as two.

        Raises ValueError for an alphabet that is not the model's, and for a model whose tensors
        are not those of a new one, as that of a weight norm; nothing is written then. OSError,
        naming the file, where it cannot be written.
        """
        folder = Path(folder)
        self._check_readable(alphabet)
        config: dict[str, Any] = {"architectures": [type(self).__name__], **self.sizes()}
        config["dtype"] = str(next(self.parameters()).dtype).removeprefix("torch.")
        if alphabet is not None:
            config["alphabet"] = alphabet.symbols
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / WEIGHTS, save(each_by_itself(self.state_dict()), {"format": "pt"}))
        write_whole(folder / CONFIG, json.dumps(config, indent=2).encode())

    def _check_readable(self, alphabet: "Alphabet | None") -> None:
        sizes = self.sizes()
        if alphabet is not None and len(alphabet) != sizes.get("vocab", len(alphabet)):
            raise ValueError(
                f"alphabet must have the {sizes['vocab']} symbols of the model, "
                f"got {len(alphabet)}: {alphabet.symbols!r}"
            )
        with torch.device("meta"):
            new = self.build(sizes).state_dict()
        others = sorted(new.keys() ^ self.state_dict().keys())
        if others:
            raise ValueError(
                f"the model cannot be read back: a new {type(self).__name__} of its sizes has "
                f"other tensors, {', '.join(others)} (a parametrization, such as a weight norm, "
                "is to be removed first)"
            )

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str], backend: str = "auto") -> Self:
        """The model in `folder`, on the CPU, in the dtype that it was saved in.

        A class gives its own models and those of its subclasses.

        Raises ValueError where there is none, or where its files are truncated, foreign or do not
        belong together.
        """
        folder = Path(folder)
        config = read_config(folder)
        config.pop("alphabet", None)
        kinds = cls._kinds()
        try:
            (name,), dtype = config.pop("architectures"), config.pop("dtype")
            if name not in kinds:
                raise ValueError(f"it is a {name!r}, and one of {', '.join(kinds)} is expected")
            with torch.device("cpu"):
                model = kinds[name].build(config, backend).to(DTYPES[dtype])
            model.load_state_dict(load((folder / WEIGHTS).read_bytes()))
        except OSError as error:
            raise ValueError(f"{folder / WEIGHTS} cannot be read: {error.strerror}") from None
        except SafetensorError as error:
            raise ValueError(
                f"{folder / WEIGHTS} is not a whole safetensors file: {error}"
            ) from None
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{folder} does not hold a model of ours: {error}") from error
        return model

    @classmethod
    def _kinds(cls) -> dict[str, type[Self]]:
        """The class and all that are derived from it, by name; of two of one name the nearer."""
        kinds: dict[str, type[Self]] = {}
        nearest = [cls]
        while nearest:
            for kind in nearest:
                kinds.setdefault(kind.__name__, kind)
            nearest = [derived for kind in nearest for derived in kind.__subclasses__()]
        return kinds


def each_by_itself(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same, contiguous and none in the memory of another: what safetensors can write."""
    found, memories = {}, set()
    for name, tensor in tensors.items():
        memory = tensor.untyped_storage().data_ptr()
        found[name] = tensor.clone() if memory in memories else tensor
        found[name] = found[name].contiguous()
        memories.add(memory)
    return found


def is_pretrained(folder: str | os.PathLike[str]) -> bool:
    """Whether `folder` is one of `save_pretrained`."""
    return (Path(folder) / CONFIG).is_file()


def read_config(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """What config.json in `folder` says; ValueError where there is none that can be read."""
    path = Path(folder) / CONFIG
    try:
        config = json.loads(path.read_bytes())
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path} must be a JSON object, got {type(config).__name__}")
    return config
