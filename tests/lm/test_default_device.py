"""Torch's default device may be any: words, draws and files are on the CPU all the same."""

import pytest
import torch

from convlm_kernels.lm import (
    Alphabet,
    Batch,
    DilatedCNN,
    Sampling,
    contexts,
    evaluate,
    generation,
    make_data,
    sample,
)
from convlm_kernels.lm.checkpoint import Checkpoint, load_checkpoint
from convlm_kernels.lm.training import Progress, Schedule, train

WORDS = ["ab", "cde", "fg", "hab", "cab", "deaf", "bag", "face"]


def check_everywhere(work):
    """`work` gives the same on a default device from which nothing can be read."""
    expected = work()
    with torch.device("meta"):
        assert work() == expected
    return expected


def model_of(alphabet):
    with torch.device("cpu"):
        torch.manual_seed(0)
        return DilatedCNN(len(alphabet), context=4, embedding=3, hidden=8)


def test_words_become_tensors_on_the_cpu():
    def work():
        data = make_data(WORDS, context=4)
        return [t.tolist() for split in (data.train, data.val, data.test) for t in split]

    assert len(check_everywhere(work)) == 6


def test_training_and_its_losses():
    def work():
        data = make_data(WORDS, context=4)
        model, progress = model_of(data.alphabet), Progress.start(0)
        train(model, data.train, Schedule(steps=3, batch_size=2), progress)
        losses = evaluate(model, data.val, data.alphabet.stop)
        return progress.losses, losses, [t.tolist() for t in contexts(data.test, 4)]

    assert len(check_everywhere(work)[0]) == 3


@pytest.mark.parametrize("by_window", [False, True])
def test_generation(by_window, monkeypatch):
    if by_window:
        monkeypatch.setattr(generation, "can_run_steps", lambda device: "by the full forward")
    alphabet = Alphabet(".abcdefgh;")
    model = model_of(alphabet)

    def work():
        generator = torch.Generator().manual_seed(0)
        return sample(model, alphabet, 3, prefix="a", generator=generator)

    check_everywhere(work)


def test_a_batch():
    model = model_of(Alphabet(".abcdefgh;"))

    def work():
        batch = Batch(model, Sampling(stop=9, never=(0,)))
        batch.add("a", [0] * 4, 6, torch.Generator().manual_seed(0))
        return list(batch.step(6))

    check_everywhere(work)


def test_files(tmp_path):
    alphabet = Alphabet(".abcdefgh;")
    model = model_of(alphabet)

    def work():
        run = Checkpoint("dilated", model, alphabet, {}, Progress.start(0))
        run.progress.losses += [1.0, 0.5]
        run.save(tmp_path / "checkpoint.safetensors")
        loaded = load_checkpoint(tmp_path / "checkpoint.safetensors")
        model.save_pretrained(tmp_path / "model")
        again = DilatedCNN.from_pretrained(tmp_path / "model")
        assert all(map(torch.equal, loaded.model.parameters(), model.parameters()))
        assert all(map(torch.equal, again.parameters(), model.parameters()))
        return loaded.progress.losses

    check_everywhere(work)
