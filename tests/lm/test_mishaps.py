"""What goes wrong around a training: output, packages, other trainings, memory."""

import os
import subprocess
import sys
from pathlib import Path

from commands import SMALL

import convlm_kernels


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
