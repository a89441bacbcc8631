"""One training as a folder: checkpoint, loss curve and figures."""

import hashlib
import json
import math
import os
import shutil
import signal
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .char_model import CharModel
from .checkpoint import FILE, INDEX, Checkpoint, load_checkpoint
from .data import Alphabet, Data, Split, contexts, make_data
from .errors import is_out_of_memory
from .files import make_writable, only_one_trains, write_whole
from .generation import sample
from .models import MLP, build_model
from .options import DTYPES
from .output import going_on_without_a_reader
from .plots import plot_losses
from .processes import OneProcess, join
from .scalars import EVERY as POINT_EVERY
from .scalars import Scalars
from .steps import (
    READ_EVERY,
    CapturedSteps,
    JoinedSteps,
    Steps,
    are_short,
    reason_not_captured,
)
from .training import Losses, Progress, Schedule, evaluate, train
from .words import load_words

if TYPE_CHECKING:
    from .distributed import ManyProcesses

# What a training is made of. It is kept in the checkpoint, and a resumed training keeps to it.
DEFAULTS: dict[str, Any] = {
    "model": "dilated",
    "words": None,
    "steps": 20_000,
    "batch_size": 32,
    "lr": 0.1,
    "final_lr": 0.01,
    "lr_drop": 0.75,
    "seed": 42,
    "dtype": "float32",
    "context": 8,
    "embedding": 10,
    "hidden": 100,
}
MAY_CHANGE = ("steps", "words")  # on resuming; the words may be elsewhere, if they are the same
PACKAGED_STEPS = 4_000  # the val loss of the dilated model is lowest there on the packaged list

# What is written beside the checkpoint at the end: two files and a folder.
REPORT = ("loss.png", "metrics.json")
MODEL = "model"

# Below this many parameters one thread is the default. A step of the seed's dilated model takes
# about 2 ms: a second thread gained 1.4x on two idle cores, but where another program kept a core
# busy, the threads waited for each other and a step took 20 times as long.
SMALL_MODEL = 1_000_000


def run_training(args: Namespace) -> int:
    """`convlm train`: trains or resumes, writes the folder, returns the exit code."""
    folder = Path(args.out or f"runs/{args.model or DEFAULTS['model']}")
    with (
        going_on_without_a_reader(),
        join(args.distributed, args.device) as processes,
        ExitStack() as until_the_end,
    ):
        args.device = processes.device
        own = only_one_trains(folder) if processes.first else nullcontext()
        processes.together(lambda: until_the_end.enter_context(own))
        opened = processes.together(lambda: open_training(args, folder))
        return train_and_report(args, processes, *opened, folder)


def open_training(args: Namespace, folder: Path) -> tuple[Checkpoint, list[str], Data]:
    """A training with its words and its data on the device; `folder` can be written but is as it
    was.
    """
    given = {name: getattr(args, name) for name in DEFAULTS if getattr(args, name) is not None}
    if not (args.resume or args.overwrite) and any((folder / f).exists() for f in (FILE, INDEX)):
        raise ValueError(
            f"{folder} holds a training: --resume goes on with it, --overwrite begins another in "
            "its place, --out names another folder"
        )
    run, words = resume(folder, given, args.backend) if args.resume else start(given, args.backend)
    data = to_device(make_data(words, run.model.context, alphabet=run.alphabet), args.device)
    prepare(run.model, args)
    make_writable(folder)
    return run, words, data


def train_and_report(
    args: Namespace,
    processes: "OneProcess | ManyProcesses",
    run: Checkpoint,
    words: Sequence[str],
    data: Data,
    folder: Path,
) -> int:
    parameters, schedule = count_parameters(run.model), schedule_of(run.settings)
    model = processes.trainable(run)
    print(f"{run.kind} model, {parameters:,} parameters, {len(words):,} words")
    scalars = processes.together(
        lambda: (
            Scalars(folder / "tensorboard", run.progress.step)
            if args.tensorboard and processes.first
            else None
        )
    )

    saved = False

    def save() -> None:
        nonlocal saved
        processes.save(run, folder)
        if not (args.resume or saved) and processes.first:
            remove_report(folder)  # of the training whose checkpoint is replaced
        saved = True

    def after_step(progress: Progress) -> None:
        progress.stop = processes.stopping
        if args.eval_every and progress.step % args.eval_every == 0:
            loss = evaluate(model, data.val, run.alphabet.stop).all_positions
            progress.evaluations.append((progress.step, loss))
        if scalars:
            scalars.after_step(progress, schedule)
        # Not before a loss shows that a step has left finite weights; but then at once, to see
        # before hours of work that it can be written.
        if progress.step > 1 and (progress.step % args.save_every == 0 or not saved):
            save()

    examples = data.train
    if isinstance(run.model, MLP):
        examples = contexts(data.train, data.context)
    in_one_process = model is run.model
    steps = steps_ahead(run, examples, args) if in_one_process else None
    with stop_when_told(processes.ask_to_stop):
        train(model, examples, schedule, run.progress, after_step, steps)
    if run.progress.stop and not saved:  # what one step left is not worth an earlier training
        print("stopped before there was anything to save")
        return 130
    save()
    if run.progress.stop:
        print(f"stopped at step {run.progress.step:,}; --resume goes on from there")
        return 130
    run.model = processes.whole_model(run, args.backend)
    processes.together(
        lambda: report(run, data, words, folder, args.samples) if processes.first else None
    )
    return 0


def steps_ahead(run: Checkpoint, split: Split, args: Namespace) -> Steps | None:
    """Steps as CUDA graphs, or short ones joined; read whenever something is to be done.

    None where each is to be a call.
    """
    points = POINT_EVERY if args.tensorboard else 0
    ahead = math.gcd(READ_EVERY, args.save_every, args.eval_every, points)
    batch_size = run.settings["batch_size"]
    if args.capture and reason_not_captured(run.model, split) is None:
        return CapturedSteps(run.model, split, batch_size, ahead)
    if split.x.is_cpu and are_short(run.model, split, batch_size):
        return JoinedSteps(run.model, split, ahead)
    return None


def start(given: dict[str, Any], backend: str) -> tuple[Checkpoint, list[str]]:
    """A new training and its words."""
    settings = DEFAULTS | given
    if settings["words"] is None and "steps" not in given:
        settings["steps"] = PACKAGED_STEPS
    kind = settings["model"]
    if kind != "dilated" and "hidden" in given:
        raise ValueError(f"--hidden is for the dilated model; the {kind} has no hidden layer")
    words = load_words(settings["words"])
    settings["words_sha256"] = fingerprint(words)
    alphabet = Alphabet.of(words)
    sizes = {"vocab": len(alphabet), **{key: settings[key] for key in ("context", "embedding")}}
    if kind == "dilated":
        sizes["hidden"] = settings["hidden"]
    torch.manual_seed(settings["seed"])
    model = build_model(kind, sizes, backend).to(DTYPES[settings["dtype"]])
    return Checkpoint(kind, model, alphabet, settings, Progress.start(settings["seed"])), words


def resume(folder: Path, given: dict[str, Any], backend: str) -> tuple[Checkpoint, list[str]]:
    """The training in `folder` and its words; what is `given` may not contradict it."""
    run = load_checkpoint(folder, backend)
    for name, value in given.items():
        if name not in MAY_CHANGE and value != run.settings[name]:
            option = "--" + name.replace("_", "-")
            raise ValueError(
                f"{option} {value} contradicts {folder}, which was begun with {run.settings[name]}"
            )
    run.settings |= given
    words = words_of(run, folder)
    if run.progress.step > run.settings["steps"]:
        raise ValueError(
            f"{folder} is at step {run.progress.step} already, past --steps {run.settings['steps']}"
        )
    return run, words


def words_of(run: Checkpoint, where: str | os.PathLike[str]) -> list[str]:
    """Those that a training was begun with; ValueError where others stand in their place now."""
    source = run.settings["words"]
    words = load_words(source)
    if fingerprint(words) != run.settings["words_sha256"]:
        raise ValueError(
            f"the words in {source or 'the packaged list'} are not those that {where} was begun "
            "with; --words says where those are"
        )
    return words


def schedule_of(settings: dict[str, Any]) -> Schedule:
    drop = settings["lr_drop"]
    if isinstance(drop, float):
        drop = int(drop * settings["steps"])
    return Schedule(
        settings["steps"], settings["batch_size"], settings["lr"], settings["final_lr"], drop
    )


def remove_report(folder: Path) -> None:
    """Removes what :func:`report` wrote there."""
    for name in REPORT:
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / MODEL, ignore_errors=True)


def report(run: Checkpoint, data: Data, words: Sequence[str], folder: Path, samples: int) -> None:
    """Writes and prints losses and invented words, writes the model and the loss curve.

    What can be had no other way comes first: printing and plotting may fail.
    """
    run.model.save_pretrained(folder / MODEL, run.alphabet)
    losses = evaluate_all(run.model, data)
    invented = []
    if samples:
        generator = torch.Generator().manual_seed(run.settings["seed"])
        invented = sample(run.model, run.alphabet, samples, generator=generator)
    plot, figures = (folder / name for name in REPORT)
    metrics = {
        "model": run.kind,
        "sizes": run.model.sizes(),
        "settings": run.settings,
        "step": run.progress.step,
        "losses": {name: asdict(loss) for name, loss in losses.items()},
        "evaluations": run.progress.evaluations,
        "samples": invented,
    }
    write_whole(figures, json.dumps(metrics, indent=2).encode())
    print_losses(losses)
    if invented:
        known = set(words)
        print("\nnew words (* is in the list):")
        print("\n".join(f"  {word}{' *' * (word in known)}" for word in invented))
    plot_losses(run.progress, plot, f"{run.kind} model")
    print(f"\nwrote the checkpoint, loss.png, metrics.json and model/ in {folder}")


def evaluate_all(model: CharModel, data: Data) -> dict[str, Losses]:
    splits = {"train": data.train, "val": data.val, "test": data.test}
    return {name: evaluate(model, split, data.alphabet.stop) for name, split in splits.items()}


def print_losses(losses: dict[str, Losses]) -> None:
    """A table, one column a split."""
    print(f"\n{'loss (nats)':<18}" + "".join(f"{name:>9}" for name in losses))
    for title, attribute in (
        ("all positions", "all_positions"),
        ("real predictions", "real_predictions"),
    ):
        values = (getattr(loss, attribute) for loss in losses.values())
        print(f"{title:<18}" + "".join(f"{value:>9.4f}" for value in values))


def prepare(model: CharModel, args: Namespace) -> CharModel:
    """Sets the threads and moves `model` to the device; ValueError if it cannot run there."""
    if args.threads or count_parameters(model) < SMALL_MODEL:
        torch.set_num_threads(args.threads or 1)
    try:
        model.to(args.device)(torch.zeros(1, model.context, dtype=torch.int64, device=args.device))
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        raise ValueError(f"the model cannot run on {args.device}: {error}") from error
    return model


def to_device(data: Data, device: torch.device) -> Data:
    moved = (Split(*(t.to(device) for t in split)) for split in (data.train, data.val, data.test))
    return Data(data.alphabet, data.context, *moved)


def count_parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def fingerprint(words: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(words).encode()).hexdigest()


@contextmanager
def stop_when_told(ask_to_stop: Callable[[], None]) -> Iterator[None]:
    """The first Ctrl-C ends the training after its current step, a second one at once.

    So does SIGTERM, by which job schedulers and torchrun announce that the time is up.
    """

    def stop(signum: int, frame: object) -> None:
        ask_to_stop()
        signal.signal(signum, signal.default_int_handler)

    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, stop) for number in signals]
    try:
        yield
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)
