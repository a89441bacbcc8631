"""Checkpoints: exact, whole or refused, and never in the way of the last good one."""

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from convlm_kernels.lm import (
    Alphabet,
    Checkpoint,
    DilatedCNN,
    Progress,
    Schedule,
    load_checkpoint,
    make_data,
    train,
)
from convlm_kernels.lm.checkpoint import FILE, HEADER

WORDS = [a + b + a for a in "abcde" for b in "abcde"]


def new_run(dtype=torch.float32) -> Checkpoint:
    alphabet = Alphabet.of(WORDS)
    torch.manual_seed(0)
    model = DilatedCNN(len(alphabet), context=4, embedding=3, hidden=5).to(dtype)
    return Checkpoint("dilated", model, alphabet, {"lr": 0.1}, Progress.start(3))


@pytest.fixture
def saved(tmp_path) -> Path:
    run = new_run()
    run.progress.losses = [1.5, 0.1 + 0.2]
    run.progress.evaluations = [(2, 0.7)]
    run.save(tmp_path / FILE)
    return tmp_path / FILE


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_round_trip(tmp_path, dtype):
    run = new_run(dtype)
    run.save(tmp_path / FILE)
    loaded = load_checkpoint(tmp_path)
    for name, tensor in run.model.state_dict().items():
        assert loaded.model.state_dict()[name].dtype == dtype
        assert torch.equal(loaded.model.state_dict()[name], tensor)
    assert loaded.model.sizes() == run.model.sizes()
    assert (loaded.kind, loaded.alphabet, loaded.settings) == ("dilated", run.alphabet, {"lr": 0.1})


def test_a_path_may_be_a_string(saved, tmp_path):
    run = load_checkpoint(str(saved))
    run.save(str(tmp_path / "other"))
    assert (tmp_path / "other").read_bytes() == Path(saved).read_bytes()


def test_progress_round_trip(saved):
    progress = load_checkpoint(saved).progress
    assert progress.losses == [1.5, 0.1 + 0.2]
    assert progress.evaluations == [(2, 0.7)]
    expected = torch.rand(3, generator=Progress.start(3).generator)
    assert torch.equal(torch.rand(3, generator=progress.generator), expected)


@pytest.mark.parametrize("at", [1, 30, 50])
def test_resumed_equals_uninterrupted(tmp_path, at):
    """Bit for bit, across the drop of the learning rate at step 40."""
    data = make_data(WORDS, context=4)
    schedule = Schedule(steps=60, batch_size=4, lr_drop=40)
    whole, first = new_run(), new_run()
    train(whole.model, data.train, schedule, whole.progress)

    def stop(progress):
        progress.stop = progress.step == at

    train(first.model, data.train, schedule, first.progress, stop)
    first.save(tmp_path / FILE)
    second = load_checkpoint(tmp_path)
    train(second.model, data.train, schedule, second.progress)
    assert second.progress.losses == whole.progress.losses
    for a, b in zip(second.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_file_is_plain_safetensors_with_json(saved):
    size = int.from_bytes(saved.read_bytes()[:8], "little")
    header = json.loads(saved.read_bytes()[8 : 8 + size])
    assert json.loads(header["__metadata__"]["convlm"])["alphabet"] == ".abcde;"
    assert set(new_run().model.state_dict()) < set(header)


def test_every_truncation_is_refused(saved):
    content = saved.read_bytes()
    for keep in (0, 7, 100, len(content) // 2, len(content) - 1):
        saved.write_bytes(content[:keep])
        with pytest.raises(ValueError, match="not a whole checkpoint"):
            load_checkpoint(saved)


def test_foreign_files_are_refused(tmp_path):
    path = tmp_path / "file"
    torch.save({"weight": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match="not a whole checkpoint"):
        load_checkpoint(path)
    save_file({"weight": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match="a safetensors file, but not a convlm checkpoint 1"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "header",
    [
        "{}",
        "[]",
        "not json",
        '{"format": "convlm checkpoint 0"}',
        '{"format": "convlm checkpoint 1"}',
        '{"format": "convlm checkpoint 1", "kind": "rnn", "sizes": {}}',
        '{"format": "convlm checkpoint 1", "kind": "cnn", "sizes": {"vocab": "x"}}',
    ],
)
def test_a_header_that_lies_is_refused(tmp_path, header):
    tensors = {
        "training/generator": torch.Generator().get_state(),
        "training/losses": torch.ones(1),
    }
    save_file(tensors, tmp_path / FILE, {HEADER: header})
    with pytest.raises(ValueError, match="does not hold what its header says"):
        load_checkpoint(tmp_path)


def test_missing(tmp_path):
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ValueError, match="no checkpoint at"):
            load_checkpoint(path)


def test_a_failed_write_leaves_the_old_file(saved, monkeypatch):
    before = saved.read_bytes()

    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        new_run().save(saved)
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == [FILE]


def test_killed_at_any_moment(tmp_path):
    """A process that does nothing but save is killed: the last whole checkpoint is there."""
    new_run().save(tmp_path / FILE)
    rng, seen = random.Random(0), []
    for _ in range(20):
        run, before = load_checkpoint(tmp_path), (tmp_path / FILE).stat()
        seen.append(run.progress.step)
        child = os.fork()
        if child == 0:
            while True:
                run.progress.losses += [1.0] * 100
                run.save(tmp_path / FILE)
        while (tmp_path / FILE).stat().st_mtime_ns == before.st_mtime_ns:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.01))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert seen == sorted(set(seen))
    assert {path.name for path in tmp_path.iterdir()} <= {FILE, f".{FILE}.partial"}
    run.save(tmp_path / FILE)
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
