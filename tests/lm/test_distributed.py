"""Trainings in several processes: that of one process, and whole whatever happens to them."""

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from ranks import run

import convlm_kernels
from convlm_kernels.lm import (
    CNN,
    MLP,
    Checkpoint,
    DilatedCNN,
    Progress,
    Schedule,
    contexts,
    evaluate,
    load_checkpoint,
    make_data,
    train,
)
from convlm_kernels.lm.cli import main
from convlm_kernels.lm.distributed import DataParallel, ManyProcesses, whole_state
from convlm_kernels.lm.sharded import write_sharded
from convlm_kernels.lm.together import together
from convlm_kernels.lm.training import TrainingError

WORDS = [a + b + a for a in "abcde" for b in "abcde"]
SMALL = ["--context=4", "--hidden=6", "--batch-size=5", "--dtype=float64"]
MODELS = {
    "cnn": lambda vocab: CNN(vocab, context=4),
    "mlp": lambda vocab: MLP(vocab, context=4),
    "dilated": lambda vocab: DilatedCNN(vocab, context=4, hidden=6),
    "layers": lambda vocab: DilatedCNN(vocab, context=4, hidden=6, fused=False),
}


def trains_as_one(rank):
    """Also where the batch is no multiple of the processes: 5 rows for 2."""
    data = make_data(WORDS, context=4)
    for name, build in MODELS.items():
        examples = contexts(data.train, 4) if name == "mlp" else data.train
        for strategy in ("ddp", "fsdp"):
            torch.manual_seed(0)
            alone = build(len(data.alphabet)).double()
            torch.manual_seed(0)
            model = build(len(data.alphabet)).double()
            shared = DataParallel(model, strategy)
            expected, progress = Progress.start(3), Progress.start(3)
            train(alone, examples, Schedule(12, batch_size=5, lr=0.3), expected)
            train(shared, examples, Schedule(12, batch_size=5, lr=0.3), progress)
            assert progress.losses == pytest.approx(expected.losses, rel=1e-12)
            torch.testing.assert_close(whole_state(model), dict(alone.state_dict()))
            losses = [evaluate(m, data.val, data.alphabet.stop) for m in (alone, shared)]
            assert losses[0].all_positions == pytest.approx(losses[1].all_positions, rel=1e-12)


def agrees_to_stop(rank):
    """Asked in one process, at the same step in all."""
    data = make_data(WORDS, context=4)
    model = DataParallel(CNN(len(data.alphabet), context=4), "ddp")
    progress = Progress.start(3)

    def after_step(progress):
        model.stop_asked = rank == 1 and progress.step >= 3
        progress.stop = model.stop_agreed

    train(model, data.train, Schedule(9, batch_size=4), progress, after_step)
    assert progress.step == 4


def a_bad_share_stops_all(rank):
    data = make_data(WORDS, context=4)
    model = DataParallel(CNN(len(data.alphabet), context=4), "ddp")
    if rank == 1:
        with torch.no_grad():
            model.model.conv.bias.fill_(math.nan)
    with pytest.raises(TrainingError, match="loss became nan at step 0"):
        train(model, data.train, Schedule(9, batch_size=4), Progress.start(3))


def fails_together(rank):
    def fail_here(*ranks):
        if rank in ranks:
            raise ValueError(f"process {rank}")
        return rank

    assert together(fail_here) == rank
    for ranks in ((0,), (1,), (0, 1)):
        error = ValueError if rank == ranks[0] else SystemExit
        with pytest.raises(error, match="2" if error is SystemExit else f"process {rank}"):
            together(lambda ranks=ranks: fail_here(*ranks))


def needs_a_row_for_each(rank):
    run = Checkpoint("cnn", CNN(), None, {"batch_size": 1}, Progress.start(0))
    with pytest.raises(SystemExit if rank else ValueError, match="2"):
        ManyProcesses("ddp", torch.device("cpu")).trainable(run)


def a_folder_of_its_own(rank, folder):
    """As on two machines that share no file system."""
    own = folder / f"of process {rank}"
    own.mkdir()
    expected = (
        pytest.raises(OSError, match="is not seen by process 1")
        if rank
        else (pytest.raises(SystemExit))
    )
    with expected:
        write_sharded(own, {}, {"x": torch.zeros(3)})


def all_of_it(rank, folder):
    a_folder_of_its_own(rank, folder)
    for check in (
        trains_as_one,
        agrees_to_stop,
        a_bad_share_stops_all,
        fails_together,
        needs_a_row_for_each,
    ):
        check(rank)


def test_two_processes(tmp_path):
    run(all_of_it, 2, tmp_path, tmp_path)


def free_port():
    with socket.create_server(("localhost", 0)) as free:
        return free.getsockname()[1]


def torchrun(processes, *arguments):
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}"]
    return subprocess.Popen(
        [*command, f"--master-port={free_port()}", "-m", "convlm_kernels", *map(str, arguments)],
        cwd=Path(convlm_kernels.__file__).parents[1],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_torchrun_resumes_on_other_numbers(words_file, tmp_path):
    """Two processes, then three with the other strategy, then one: as one process in one go."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    options = ["--words", words_file, "--lr-drop=20", "--eval-every=10", *SMALL]
    for processes, strategy, steps in (2, "ddp", 13), (3, "fsdp", 22):
        resume = ["--resume"] if parts.exists() else options
        extra = f"--steps={steps}", "--distributed", strategy, "--eval-every=10", "--samples=2"
        out, error = torchrun(processes, "train", "--out", parts, *extra, *resume).communicate()
        assert out.count("dilated model, 287 parameters, 25 words") == 1, error  # one speaks
        assert out.count("new words") == 1
        assert "Traceback" not in error
        assert load_checkpoint(parts).progress.step == steps
    assert main(["train", "--resume", "--out", str(parts), "--steps=30", "--eval-every=10"]) == 0
    assert main(["train", "--steps=30", "--out", str(whole), *map(str, options)]) == 0
    one, many = load_checkpoint(whole), load_checkpoint(parts)
    assert many.progress.losses == pytest.approx(one.progress.losses, rel=1e-12)
    assert many.progress.evaluations == [
        (step, pytest.approx(loss)) for step, loss in one.progress.evaluations
    ]
    torch.testing.assert_close(many.model.state_dict(), one.model.state_dict())


@pytest.fixture
def endless(words_file, tmp_path):
    """Two processes in the middle of a training, and its folder."""
    folder = tmp_path / "run"
    options = ["--steps=1000000", "--save-every=3", "--words", words_file, *SMALL]
    process = torchrun(2, "train", "--out", folder, *options)
    saved = set()
    while process.poll() is None and len(saved) < 4:
        time.sleep(0.01)
        saved |= set(folder.glob("shards-*"))
    yield process, folder
    process.terminate()
    process.communicate()


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_killed_process_leaves_a_whole_checkpoint(endless):
    process, folder = endless
    os.kill(children(process.pid)[1], signal.SIGKILL)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 1, error
    step = load_checkpoint(folder).progress.step
    assert step >= 3
    assert step % 3 == 0
    resume = ["train", "--resume", "--out", str(folder), f"--steps={step + 2}", "--samples=0"]
    assert main(resume) == 0
    assert load_checkpoint(folder).progress.step == step + 2


def test_a_terminated_training_saves(endless):
    """SIGTERM to torchrun, as from a scheduler whose time is up."""
    process, folder = endless
    process.terminate()
    out, error = process.communicate(timeout=120)
    assert process.returncode != 0
    step = load_checkpoint(folder).progress.step
    assert f"stopped at step {step:,}; --resume goes on from there" in out, error


@pytest.fixture
def alone_in_a_group(words_file, tmp_path, monkeypatch):
    """What torchrun --nproc-per-node=1 sets; runs `convlm train` and returns its exit code."""
    environment = dict(RANK=0, WORLD_SIZE=1, MASTER_ADDR="localhost", MASTER_PORT=free_port())
    for name, value in environment.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.chdir(tmp_path)

    def convlm(*options):
        try:
            return main(["train", f"--words={words_file}", "--out=run", *SMALL, *options])
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()

    return convlm


def test_one_replaces_the_other(alone_in_a_group, monkeypatch, words_file, tmp_path):
    """Only the last checkpoint stays, with all its shards and none of others."""
    run = tmp_path / "run"
    assert alone_in_a_group("--steps=3", "--samples=0", "--save-every=1") == 0
    assert len(list(run.glob("shards-*"))) == 1
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name)
    assert main(["train", "--resume", "--out=run", "--steps=5", "--samples=0"]) == 0
    assert load_checkpoint("run").progress.step == 5
    assert {path.name for path in run.iterdir()} == {
        "checkpoint.safetensors",
        "loss.png",
        "metrics.json",
        "model",
    }


@pytest.mark.parametrize("damage", ["truncated", "missing", "foreign", "renamed", "index"])
def test_damaged_checkpoints_are_refused(alone_in_a_group, tmp_path, damage):
    assert alone_in_a_group("--steps=1", "--samples=0") == 0
    index = tmp_path / "run" / "checkpoint.json"
    (shard,) = (tmp_path / "run").glob("shards-*/*")
    content = shard.read_bytes()
    if damage == "truncated":
        shard.write_bytes(content[:-1])
    elif damage == "missing":
        shard.unlink()
    elif damage == "foreign":
        shard.write_bytes(b"\x80\x04" + bytes(len(content) - 2))
    elif damage == "renamed":
        index.write_text(index.read_text().replace("shards-", "other-"))
    else:
        index.write_text(json.dumps({"header": {}}))
    with pytest.raises(ValueError, match="checkpoint.json is not a whole checkpoint"):
        load_checkpoint("run")


def test_a_full_disk_leaves_the_old_checkpoint(alone_in_a_group, capsys, full_disk):
    assert alone_in_a_group("--steps=1", "--samples=0") == 0
    before = load_checkpoint("run").progress.losses
    with full_disk(4_000):
        assert alone_in_a_group("--steps=9", "--overwrite") == 2
    assert load_checkpoint("run").progress.losses == before
    assert len(list(Path("run").glob("shards-*"))) == 1
    assert "cannot be written: [Errno 27] File too large" in capsys.readouterr().err


def test_bad_options(alone_in_a_group, monkeypatch, capsys):
    assert alone_in_a_group("--words=absent.txt") == 2
    assert "absent.txt cannot be read" in capsys.readouterr().err
    monkeypatch.delenv("RANK")
    assert alone_in_a_group("--distributed=fsdp") == 2
    assert "--distributed fsdp needs processes: start with torchrun" in capsys.readouterr().err
