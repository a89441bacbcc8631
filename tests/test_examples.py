"""The examples run, and do what they say."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest

from convlm_kernels.lm import Alphabet, DilatedCNN

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
sys.path.insert(0, str(ROOT / "tools" / "website"))

import cells  # noqa: E402


@pytest.mark.parametrize(("steps", "least"), [(1, 200), (40, 20)], ids=["at once", "one by one"])
def test_serve_many(
    steps: int,
    least: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    example = EXAMPLES / "serve_many.py"
    monkeypatch.setattr(sys, "argv", [str(example), f"--steps={steps}"])
    runpy.run_path(str(example), run_name="__main__")
    said = capsys.readouterr().out
    assert "200 requests" in said
    assert said.endswith("each as it is alone\n")
    at_once = int(said.partition("up to ")[2].split()[0])
    assert least <= at_once <= 200


def test_serve_many_takes_what_sample_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    DilatedCNN(5, context=2).save_pretrained(tmp_path / "model", Alphabet(".abc;"))
    example = str(EXAMPLES / "serve_many.py")
    monkeypatch.setattr(sys, "argv", [example, str(tmp_path / "model"), "--requests=9"])
    runpy.run_path(example, run_name="__main__")
    assert "9 requests" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", [example, str(tmp_path / "absent")])
    with pytest.raises(SystemExit) as exit:
        runpy.run_path(example, run_name="__main__")
    assert exit.value.code == 2
    assert "error: no checkpoint at" in capsys.readouterr().err


def test_tutorial(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the site tells it, with little training; its cells compare the layers themselves."""
    monkeypatch.setenv("TUTORIAL_STEPS", "60")
    monkeypatch.delenv("TUTORIAL_WORDS", raising=False)
    told = cells.tell(EXAMPLES / "tutorial.py")
    cnn, mlp = (re.search(rf"^{model}: ([\d.]+)$", told, re.MULTILINE) for model in ("CNN", "MLP"))
    assert cnn
    assert mlp
    assert float(cnn[1]) == pytest.approx(float(mlp[1]), abs=1e-4)
    assert "distinct contexts for" in told
    assert told.count("data:image/svg+xml") == 1
    assert len(re.findall(r"^loss \(nats\)", told, re.MULTILINE)) == 2


def test_train_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    example, out = EXAMPLES / "train_loop.py", tmp_path / "out"
    options = ["--epochs=3", f"--out={out}", "--tensorboard", "--bfloat16"]
    monkeypatch.setattr(sys, "argv", [str(example), *options])
    runpy.run_path(str(example), run_name="__main__")
    *epochs, last = capsys.readouterr().out.splitlines()
    losses = [float(line.split()[-1]) for line in epochs]
    assert len(losses) == 3
    assert losses[2] < losses[0]
    assert last.startswith(f"wrote {out}; from it:")
    assert {path.name.partition(".")[0] for path in out.iterdir()} >= {"config", "model", "events"}
