"""The command line, mostly in this process; in another where a signal is the point."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from commands import SMALL

import convlm_kernels
from convlm_kernels.lm import JoinedSteps, load_checkpoint


def test_train_then_eval_and_sample(convlm, words_file, tmp_path):
    train = ["train", "--words", words_file, "--steps=40", "--eval-every=20", *SMALL]
    code, trained, _ = convlm(*train)
    assert code == 0
    folder = tmp_path / "runs" / "dilated"
    files = {path.name for path in folder.iterdir()}
    assert files == {"checkpoint.safetensors", "loss.png", "metrics.json", "model"}
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["step"] == 40
    assert [step for step, _ in metrics["evaluations"]] == [20, 40]
    assert len(metrics["samples"]) == 10
    assert set(metrics["losses"]) == {"train", "val", "test"}
    losses = [line for line in trained.splitlines() if line.startswith(("all pos", "real pred"))]
    assert len(losses) == 2

    code, evaluated, _ = convlm("eval")
    assert code == 0
    assert all(line in evaluated for line in losses)

    sample = "sample", "--count=5", "--seed=1", "--prefix=ab"
    code, words, speed = convlm(*sample, folder)
    assert code == 0
    assert all(word.startswith("ab") for word in words.splitlines())
    assert len(words.splitlines()) == 5
    assert speed.startswith(f"{len(words) - 5} characters, ")
    assert speed.endswith(" a second\n")
    for options in ((), ("--batch=2",), ("--stream",), ("--top-p=1", "--top-k=99")):
        assert convlm(*sample, *options)[1] == words
    assert convlm(*sample, "--top-p=0.01")[1] == convlm(*sample, "--temperature=0")[1]

    sample = "sample", folder / "model", "--count=5", "--seed=1", "--prefix=ab"
    assert convlm(*sample)[1] == words
    assert "does not say which words it is for" in convlm("eval", folder / "model")[2]
    code, evaluated, _ = convlm("eval", folder / "model", "--words", words_file)
    assert code == 0
    assert all(line in evaluated for line in losses)


@pytest.mark.parametrize("model", ["cnn", "mlp"])
def test_other_models(convlm, words_file, tmp_path, model):
    code, out, _ = convlm("train", "--model", model, "--words", words_file, "--steps=5")
    assert code == 0
    assert f"wrote the checkpoint, loss.png, metrics.json and model/ in runs/{model}" in out


@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "float16"])
def test_other_dtypes(convlm, words_file, dtype):
    code, _, error = convlm("train", "--words", words_file, "--steps=3", "--dtype", dtype, *SMALL)
    assert (code, error) == (0, "")


def test_threads(convlm, words_file):
    """One by default, since the default model is small."""
    train = ["train", "--words", words_file, "--steps=1", *SMALL]
    for option, threads in (["--threads=2"], 2), ([], 1):
        assert convlm(*train, "--overwrite", *option)[0] == 0
        assert torch.get_num_threads() == threads


def test_backends_agree(convlm, words_file, tmp_path):
    for backend in ("cpp", "torch"):
        train = ["train", "--words", words_file, "--steps=20", "--backend", backend]
        assert convlm(*train, "--dtype=float64", "--out", backend, *SMALL)[0] == 0
    ours, aten = (load_checkpoint(backend).progress.losses for backend in ("cpp", "torch"))
    assert ours == pytest.approx(aten, rel=1e-10)


def test_packaged_words_are_the_default(convlm):
    code, out, _ = convlm("train", "--steps=2", *SMALL)
    assert code == 0
    assert "words" in out
    assert convlm("eval")[0] == 0


def test_resume(convlm, words_file, tmp_path):
    """Stopped half way and resumed, the weights and losses are those of one go."""
    train = ["train", "--words", words_file, *SMALL, "--lr-drop=30", "--seed=5"]
    assert convlm(*train, "--steps=40", "--out=whole")[0] == 0
    assert convlm(*train, "--steps=17", "--out=parts")[0] == 0
    assert convlm("train", "--out=parts", "--resume", "--steps=40")[0] == 0
    whole, parts = (tmp_path / name / "checkpoint.safetensors" for name in ("whole", "parts"))
    assert whole.read_bytes() == parts.read_bytes()


def test_resume_refuses_contradictions(convlm, words_file, tmp_path):
    train = ["train", "--out=run", "--words", words_file, "--steps=5", *SMALL]
    assert convlm("train", "--out=run", "--resume")[2].startswith("convlm: error: no checkpoint")
    assert convlm(*train)[0] == 0
    code, _, error = convlm("train", "--out=run", "--resume", "--lr=0.5")
    assert code == 2
    assert error == "convlm: error: --lr 0.5 contradicts run, which was begun with 0.1\n"
    assert (
        "is at step 5 already, past --steps 4\n"
        in convlm("train", "--out=run", "--resume", "--steps=4")[2]
    )
    words_file.write_text(words_file.read_text() + "bad\n")
    assert "not those that run was begun with" in convlm("train", "--out=run", "--resume")[2]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--steps=0", "'0' is not a whole number from 1 on"),
        ("--steps=1e3", "'1e3' is not a whole number"),
        ("--batch-size=-4", "'-4' is not a whole number"),
        ("--lr=0", "'0' is not above 0"),
        ("--lr=nan", "'nan' is not a finite number"),
        ("--final-lr=inf", "'inf' is not a finite number"),
        ("--lr-drop=1.5", "'1.5' is neither a step (15000) nor a fraction"),
        ("--lr-drop=-1", "'-1' is neither"),
        ("--seed=x", "'x' is not a whole number"),
        ("--seed=9223372036854775808", "'9223372036854775808' is above 9223372036854775807"),
        ("--threads=0", "'0' is not a whole number"),
        ("--threads=1_000_000", "'1_000_000' is above "),
        ("--batch-size=1_000_000_000_000_000", "not enough memory; a smaller --batch-size, "),
        ("--hidden=1_000_000_000", "not enough memory; a smaller --batch-size, "),
        ("--embedding=1_000_000_000_000_000", "not enough memory; a smaller --batch-size, "),
        ("--context=6", "context must be a power of two from 2 on, got 6"),
        ("--dtype=int8", "invalid choice: 'int8'"),
        ("--model=rnn", "invalid choice: 'rnn'"),
        ("--backend=fast", "invalid choice: 'fast'"),
        ("--backend=cuda", "the model cannot run on cpu: "),
        ("--device=tpu", "'tpu' is not cpu, cuda or cuda:N"),
        ("--device=cuda:99", "'cuda:99' is not available"),
        ("--words=absent.txt", "words file absent.txt cannot be read: No such file or directory"),
        ("--out=words.txt", "words.txt is a file, where a folder is to be written"),
        ("--out=words.txt/run", "Not a directory: 'words.txt/run'"),
        ("--out=/proc/convlm", "/proc/convlm"),
    ],
)
def test_bad_options(convlm, option, message):
    """One line that says what is wrong, exit code 2."""
    code, _, error = convlm("train", "--steps=1", option)
    assert code == 2
    assert error.startswith("convlm: error: ")
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"ann\n\nbob\n", "line 2: a blank line"),
        (b"zo\xeb\n", "not UTF-8"),
        (b"st.ann\nbob\n", "contains '.', which is the start symbol"),
        (b"ann\n", "1 word(s) cannot be split"),
    ],
)
def test_bad_words(convlm, words_file, content, message):
    words_file.write_bytes(content)
    code, _, error = convlm("train", "--steps=1", "--words", words_file)
    assert code == 2
    assert message in error
    assert error.count("\n") == 1


def test_bad_requests_of_a_trained_model(convlm, words_file, tmp_path):
    convlm("train", "--words", words_file, "--steps=2", "--out=run", *SMALL)
    assert "'x', which is not among" in convlm("sample", "run", "--prefix=x")[2]
    assert "not a whole checkpoint" in convlm("sample", words_file)[2]
    assert "'0' is not above 0 and at most 1" in convlm("sample", "run", "--top-p=0")[2]
    assert "at most 1e38, got 1e+39" in convlm("sample", "run", "--temperature=1e39")[2]
    code, _, error = convlm("sample", "runs/nothing")
    assert code == 2
    assert "no checkpoint at runs/nothing: `convlm train` makes one" in error
    other = tmp_path / "other.txt"
    other.write_text("\n".join(["xyz"] * 9))
    code, _, error = convlm("eval", "run", "--words", other)
    assert code == 2
    assert "which is not among 'abcde'" in error


def test_hidden_is_for_the_dilated_model(convlm):
    assert "--hidden is for the dilated model" in convlm("train", "--model=cnn", "--hidden=5")[2]


def contents(folder):
    return {path: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def test_a_training_is_not_overwritten_unasked(convlm, words_file):
    train = ["train", "--out=run", "--words", words_file, *SMALL]
    assert convlm(*train, "--steps=5")[0] == 0
    before = contents("run")
    code, _, error = convlm(*train, "--steps=7")
    assert code == 2
    assert error.startswith("convlm: error: run holds a training: --resume goes on with it, --over")
    assert "not allowed with" in convlm(*train, "--resume", "--overwrite")[2]
    assert contents("run") == before
    assert convlm(*train, "--steps=7", "--overwrite")[0] == 0
    assert load_checkpoint("run").progress.step == 7


@pytest.mark.parametrize("option", ["--lr=1e300", "--device=cpu:1", "--words=absent.txt"])
def test_a_training_that_fails_leaves_an_earlier_one(convlm, words_file, option):
    """Also where the first step's loss was finite, and the weights that it left are not."""
    train = ["train", "--out=run", "--words", words_file, *SMALL]
    assert convlm(*train, "--steps=5", "--tensorboard")[0] == 0
    before = contents("run")
    assert convlm(*train, "--steps=9", "--overwrite", "--tensorboard", option)[0] == 2
    assert contents("run") == before


def test_a_training_replaces_the_whole_of_an_earlier_one(convlm, words_file, full_disk):
    """What was written at the end of the earlier one is not of the checkpoint beside it."""
    train = ["train", "--out=run", "--words", words_file, *SMALL]
    assert convlm(*train, "--steps=5")[0] == 0
    with full_disk(9_000):
        assert convlm(*train, "--steps=900", "--overwrite", "--save-every=5")[0] == 2
    assert [path.name for path in Path("run").iterdir()] == ["checkpoint.safetensors"]
    assert load_checkpoint("run").progress.step > 5


def test_a_loss_that_is_not_finite(convlm, words_file):
    code, _, error = convlm("train", "--words", words_file, "--lr=1e38", *SMALL)
    assert code == 2
    assert "convlm: error: the loss became" in error


def test_info(convlm):
    code, out, _ = convlm("info")
    assert code == 0
    assert "torch" in out
    for backend in ("cpp", "cuda", "triton", "torch"):
        assert backend in out
    _, on_cuda = out.split("backends on cuda")
    if not torch.cuda.is_available():
        assert "yes" not in on_cuda
        assert "torch         no: there is no CUDA device" in on_cuda


def test_usage(convlm):
    assert convlm()[0] == 2
    assert convlm("--help")[0] == 0
    assert "--lr-drop" in convlm("train", "--help")[1]


def test_a_full_disk_leaves_the_last_checkpoint(convlm, words_file, full_disk):
    """The losses make it longer at each step, until it no longer fits."""
    train = ["train", "--out=run", "--words", words_file, "--save-every=5", *SMALL]
    with full_disk(9_000):
        code, _, error = convlm(*train, "--steps=900")
    assert code == 2
    assert error.startswith("convlm: error: [Errno 27] File too large: 'run/checkpoint.safetensors")
    step = load_checkpoint("run").progress.step
    assert step > 0
    assert step % 5 == 0
    assert [path.name for path in Path("run").iterdir()] == ["checkpoint.safetensors"]
    assert convlm("train", "--out=run", "--resume", f"--steps={step + 1}")[0] == 0


def test_tensorboard(convlm, words_file, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train = ["train", "--out=run", "--tensorboard", "--eval-every=20"]
    assert convlm(*train, "--steps=30", "--words", words_file, *SMALL)[0] == 0
    assert convlm(*train, "--steps=50", "--resume")[0] == 0
    events = EventAccumulator("run/tensorboard").Reload()
    steps = {tag: [event.step for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert steps["loss/train"] == steps["learning rate"] == [10, 20, 30, 40, 50]
    assert steps["loss/val"] == [20, 40]
    losses = load_checkpoint("run").progress.losses
    assert events.Scalars("loss/train")[3].value == pytest.approx(sum(losses[30:40]) / 10)

    before = contents("run")
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    code, _, error = convlm(*train, "--steps=1", "--overwrite", "--words", words_file)
    assert code == 2
    assert "this needs the package tensorboard: pip install tensorboard" in error
    assert contents("run") == before


def test_killed_training_resumes(endless, convlm, words_file):
    """What is left is a whole checkpoint, and it leads where an uninterrupted run does."""
    process, folder = endless
    process.kill()
    _, error = process.communicate()
    assert process.returncode == -signal.SIGKILL, error
    step = load_checkpoint(folder).progress.step
    assert step > 0
    assert step % 10 == 0
    steps = f"--steps={step + 7}"
    train = ["train", "--words", words_file, "--lr-drop=750000", *SMALL, steps]
    assert convlm(*train, "--out=whole")[0] == 0
    losses = load_checkpoint("whole").progress.losses
    assert convlm("train", "--resume", "--out", folder, steps, "--threads=1")[0] == 0
    assert load_checkpoint(folder).progress.losses == losses


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_training_saves(endless, number):
    process, folder = endless
    process.send_signal(number)
    out, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert "--resume goes on from there" in out
    assert "Traceback" not in error
    step = load_checkpoint(folder).progress.step
    assert f"stopped at step {step:,}" in out


def test_a_training_that_is_stopped_in_its_first_step_leaves_an_earlier_one(
    convlm, words_file, monkeypatch
):
    each = "--save-every=1"  # so that no steps are joined
    train = ["train", "--out=run", each, "--words", words_file, *SMALL]
    assert convlm(*train, "--steps=5")[0] == 0
    before = contents("run")
    take = JoinedSteps.take

    def take_and_interrupt(steps, rows, lr):
        take(steps, rows, lr)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(JoinedSteps, "take", take_and_interrupt)
    code, out, _ = convlm(*train, "--steps=9", "--overwrite")
    assert code == 130
    assert out.endswith("stopped before there was anything to save\n")
    assert contents("run") == before
    assert convlm(*train[:3], "--resume", "--steps=9")[0] == 130
    assert load_checkpoint("run").progress.step == 6


def test_eval_is_of_the_words_that_a_training_was_begun_with(convlm, words_file):
    convlm("train", "--words=words.txt", "--steps=2", "--out=run", *SMALL)
    evaluated = convlm("eval", "run")
    assert evaluated[0] == 0
    others = words_file.read_text().replace("aba", "abc")
    words_file.write_text(others)
    Path("others.txt").write_text(others)
    for checkpoint in ("run", "run/checkpoint.safetensors"):
        code, _, error = convlm("eval", checkpoint)
        assert code == 2
        assert f"words in words.txt are not those that {checkpoint} was begun with" in error
    code, out, _ = convlm("eval", "run", "--words=others.txt")
    assert code == 0
    assert out != evaluated[1]
    assert "words file  cannot be read" in convlm("eval", "run", "--words=")[2]


def test_a_sample_without_a_character_to_draw(convlm, words_file):
    convlm("train", "--words", words_file, "--steps=2", "--out=run", *SMALL)
    run = load_checkpoint("run")
    with torch.no_grad():
        run.model.layers[-1].bias[2] = float("nan")
    run.save(Path("run/checkpoint.safetensors"))
    code, _, error = convlm("sample", "run")
    assert code == 2
    assert error.startswith("convlm: error: sample 0: there is no token to draw")


def with_closed_output(*arguments, stderr=subprocess.PIPE):
    """Exit code and errors of a command whose output nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "convlm_kernels", *map(str, arguments)],
        cwd=Path(convlm_kernels.__file__).parents[1],
        stdout=writer,
        stderr=writer if stderr is None else stderr,
        text=True,
    )
    os.close(writer)
    return done.returncode, done.stderr


def test_commands_that_only_print_end_with_their_reader(convlm, words_file, tmp_path):
    convlm("train", "--words", words_file, "--steps=2", "--out=run", *SMALL)
    run = tmp_path / "run"
    for command in ["sample", run], ["sample", run, "--stream"], ["eval", run], ["info"]:
        assert with_closed_output(*command) == (0, "")


@pytest.mark.parametrize("stderr", [subprocess.PIPE, None], ids=["stdout", "both"])
def test_training_goes_on_without_a_reader(convlm, words_file, tmp_path, stderr):
    run = tmp_path / "run"
    options = ["--words", words_file, "--steps=1100", "--eval-every=0", *SMALL]
    code, error = with_closed_output("train", "--out", run, *options, stderr=stderr)
    assert code == 0
    if stderr is not None:
        assert error == "convlm: nobody reads the output; going on without it\n"
    assert load_checkpoint(run).progress.step == 1100
    assert {path.name for path in run.iterdir()} == {
        "checkpoint.safetensors",
        "loss.png",
        "metrics.json",
        "model",
    }
