"""What goes wrong around a training: output, packages, other trainings, memory."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from commands import SMALL

import convlm_kernels
from convlm_kernels.lm.cli import make_parser
from convlm_kernels.lm.files import write_whole


def test_output_that_cannot_encode_the_words(words_file, tmp_path):
    words_file.write_text("\n".join(f"{a}{b}é" for a in "abcde" for b in "xyz"), encoding="utf-8")
    command = [sys.executable, "-m", "convlm_kernels", "train", f"--words={words_file}"]
    done = subprocess.run(
        [*command, f"--out={tmp_path / 'run'}", "--steps=2", *SMALL],
        cwd=Path(convlm_kernels.__file__).parents[1],
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    assert b"?" in done.stdout
    assert {"loss.png", "metrics.json", "model"} <= {p.name for p in (tmp_path / "run").iterdir()}


def test_without_matplotlib_all_but_the_figure_is_there(convlm, words_file, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, out, error = convlm("train", "--out=run", "--words", words_file, "--steps=2", *SMALL)
    assert code == 2
    assert error.splitlines()[-1].startswith(
        "convlm: error: this needs the package matplotlib: pip install matplotlib"
    )
    assert "new words" in out
    assert {p.name for p in Path("run").iterdir()} == {
        "checkpoint.safetensors",
        "metrics.json",
        "model",
    }


def test_names_without_pooch(convlm, monkeypatch):
    monkeypatch.setitem(sys.modules, "pooch", None)
    code, _, error = convlm("train", "--words=names", "--steps=1")
    assert code == 2
    assert error.startswith("convlm: error: this needs the package pooch: pip install pooch")


def test_one_training_in_a_folder_at_a_time(endless, convlm, words_file):
    process, folder = endless
    train = ["train", "--out", folder, "--words", words_file, "--steps=1000000", *SMALL]
    for earlier in ("--resume", "--overwrite"):
        code, _, error = convlm(*train, earlier)
        assert code == 2
        assert error.startswith(f"convlm: error: {folder} is being written by another training, ")
        assert f"process {process.pid} on" in error
    process.kill()
    process.wait()
    code, _, error = convlm(*train, "--resume", "--lr-drop=3")
    assert "--lr-drop 3 contradicts" in error  # so the folder was opened
    assert not (folder / ".lock").exists()


def test_a_training_that_does_not_begin_leaves_no_folder(convlm):
    assert convlm("train", "--out=new", "--words=absent.txt")[0] == 2
    assert not Path("new").exists()


def test_writers_of_one_file_take_turns(tmp_path):
    path = tmp_path / "file"
    contents = [bytes([n]) * 100_000 for n in range(4)]

    def write(content):
        for _ in range(25):
            write_whole(path, content)

    with ThreadPoolExecutor() as pool:
        list(pool.map(write, contents))
    assert path.read_bytes() in contents
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_samples_beyond_all_memory(convlm, words_file):
    """Not words that may be that long: they take what they are."""
    convlm("train", "--words", words_file, "--steps=2", "--out=run", *SMALL)
    code, _, error = convlm("sample", "run", "--count=1_000_000_000_000_000")
    assert code == 2
    assert error == (
        "convlm: error: not enough memory; a smaller --count, --batch or --max-length takes less\n"
    )
    code, words, _ = convlm("sample", "run", "--count=7", "--max-length=1_000_000_000_000_000")
    assert code == 0
    assert len(words.splitlines()) == 7


def test_other_errors_are_not_taken_for_a_lack_of_memory(monkeypatch, convlm):
    def fail(_):
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr("convlm_kernels.lm.cli.run_sample", fail)
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        convlm("sample")


def test_every_option_says_what_it_is():
    (commands,) = make_parser()._subparsers._group_actions
    for command in commands.choices.values():
        for action in command._actions:
            assert action.help.strip()
            assert not action.help.startswith("("), action.option_strings
