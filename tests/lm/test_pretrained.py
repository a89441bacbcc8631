"""Folders of weights and config: exact, readable by others, and refused where they are not ours."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.parametrize import remove_parametrizations

from convlm_kernels.lm import (
    CNN,
    MLP,
    Alphabet,
    Checkpoint,
    DilatedCNN,
    Progress,
    load_checkpoint,
)
from convlm_kernels.lm.char_model import CharModel

MODELS = {
    "CNN": lambda: CNN(7, context=4, embedding=3),
    "MLP": lambda: MLP(7, context=4, embedding=3),
    "DilatedCNN": lambda: DilatedCNN(7, context=4, embedding=3, hidden=5),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_round_trip(tmp_path, name, dtype):
    model, alphabet = MODELS[name]().to(dtype), Alphabet(".abcde;")
    model.save_pretrained(tmp_path / "new" / "folder", alphabet)
    for kind in (CharModel, type(model)):
        loaded = kind.from_pretrained(tmp_path / "new" / "folder", backend="torch")
        assert type(loaded) is type(model)
        assert loaded.sizes() == model.sizes()
        for key, tensor in model.state_dict().items():
            assert loaded.state_dict()[key].dtype == dtype
            assert torch.equal(loaded.state_dict()[key], tensor)
    assert Alphabet.from_pretrained(tmp_path / "new" / "folder") == alphabet


def test_the_files_are_those_of_others(tmp_path):
    model = MODELS["CNN"]()
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
    assert json.loads((tmp_path / "config.json").read_text()) == {
        "architectures": ["CNN"],
        "vocab": 7,
        "context": 4,
        "embedding": 3,
        "dtype": "float32",
    }
    assert load_file(tmp_path / "model.safetensors").keys() == model.state_dict().keys()
    with pytest.raises(ValueError, match="has no alphabet: it was saved without one"):
        Alphabet.from_pretrained(tmp_path)


def test_kinds_that_others_derive(tmp_path):
    class Ours(DilatedCNN):
        pass

    class OursToo(Ours):
        pass

    OursToo(7, context=4).save_pretrained(tmp_path)
    for kind in (CharModel, DilatedCNN, Ours, OursToo):
        assert type(kind.from_pretrained(tmp_path)) is OursToo
    with pytest.raises(ValueError, match="it is a 'OursToo', and one of CNN.* is expected"):
        CNN.from_pretrained(tmp_path)


@pytest.mark.parametrize("saved", ["folder", "checkpoint"])
def test_weights_that_are_not_each_by_themselves(tmp_path, saved):
    """One for two, a part of another's memory, and one that is not contiguous."""
    model = DilatedCNN(7, context=16, embedding=3, hidden=5)
    model.layers[2].weight = model.layers[1].weight
    model.layers[0].bias.data = model.layers[1].bias.data
    model.embedding.weight.data = torch.randn(3, 7).T
    if saved == "folder":
        model.save_pretrained(tmp_path)
        loaded = DilatedCNN.from_pretrained(tmp_path)
    else:
        run = Checkpoint("dilated", model, Alphabet(".abcde;"), {}, Progress.start(0))
        run.save(tmp_path / "checkpoint.safetensors")
        loaded = load_checkpoint(tmp_path).model
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)


def test_another_kind_is_refused(tmp_path):
    MODELS["CNN"]().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="it is a 'CNN', and one of DilatedCNN.* is expected"):
        DilatedCNN.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "config.json cannot be read: No such file"),
        ("no json", "config.json is not JSON"),
        ("[]", "config.json must be a JSON object, got list"),
        ("{}", "does not hold a model of ours: 'architectures'"),
        ('{"architectures": ["BertModel"], "dtype": "float32"}', "it is a 'BertModel'"),
        ('{"architectures": ["CNN"], "dtype": "int8", "vocab": 7}', "'int8'"),
        ('{"architectures": ["CNN"], "dtype": "float32", "rows": 7}', "'rows'"),
        ('{"architectures": ["CNN"], "dtype": "float32", "vocab": 8}', "size mismatch"),
    ],
)
def test_bad_configs(tmp_path, config, message):
    MODELS["CNN"]().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.unlink() if config is None else path.write_text(config)
    with pytest.raises(ValueError, match=message):
        CharModel.from_pretrained(tmp_path)


def test_bad_weights(tmp_path):
    MODELS["CNN"]().save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    content = weights.read_bytes()
    for keep in (0, 7, len(content) // 2, len(content) - 1):
        weights.write_bytes(content[:keep])
        with pytest.raises(ValueError, match="model.safetensors is not a whole safetensors file"):
            CNN.from_pretrained(tmp_path)
    torch.save({"weight": torch.zeros(3)}, weights)
    with pytest.raises(ValueError, match="model.safetensors is not a whole safetensors file"):
        CNN.from_pretrained(tmp_path)
    save_file({"weight": torch.zeros(3)}, weights)
    with pytest.raises(ValueError, match="Unexpected key"):
        CNN.from_pretrained(tmp_path)
    weights.unlink()
    with pytest.raises(ValueError, match="model.safetensors cannot be read: No such file"):
        CNN.from_pretrained(tmp_path)


def test_a_full_disk_leaves_the_old_folder(tmp_path, full_disk):
    model = MODELS["CNN"]()
    model.save_pretrained(tmp_path)
    with full_disk(500), pytest.raises(OSError, match="File too large"):
        MODELS["CNN"]().save_pretrained(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    assert torch.equal(CNN.from_pretrained(tmp_path).conv.weight, model.conv.weight)


def test_what_could_not_be_read_back_is_not_written(tmp_path):
    model = DilatedCNN(4, 4, 3, 5)
    with pytest.raises(ValueError, match=r"alphabet must have the 4 symbols .*, got 5: '\.abc;'"):
        model.save_pretrained(tmp_path / "folder", Alphabet(".abc;"))
    weight_norm(model.layers[1])
    with pytest.raises(
        ValueError, match=r"other tensors, layers\.1\.parametrizations.*weight norm"
    ):
        model.save_pretrained(tmp_path / "folder")
    assert not (tmp_path / "folder").exists()
    remove_parametrizations(model.layers[1], "weight")
    model.save_pretrained(tmp_path / "folder", Alphabet(".ab;"))
    tokens = torch.zeros(2, 6, dtype=torch.int64)
    assert torch.equal(DilatedCNN.from_pretrained(tmp_path / "folder")(tokens), model(tokens))
