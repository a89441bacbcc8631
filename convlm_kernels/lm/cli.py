"""`convlm train | sample | eval | info | bench`, also `python -m convlm_kernels`."""

import argparse
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

import torch

from ..backends import BACKENDS
from .bench_command import run_benchmarks
from .checkpoint import load_checkpoint, load_model
from .data import make_data
from .errors import out_of_memory
from .generation import GenerationError, Piece, sample_pieces
from .info import print_info
from .models import MODELS
from .options import DTYPES, device, number, probability, rate, step_or_fraction, threads, whole
from .output import print_what_can_be_printed, write_to_nothing
from .pretrained import is_pretrained
from .processes import STRATEGIES
from .runs import (
    DEFAULTS,
    PACKAGED_STEPS,
    evaluate_all,
    prepare,
    print_losses,
    run_training,
    to_device,
    words_of,
)
from .sampling import Sampling
from .training import TrainingError
from .words import load_words


class Parser(argparse.ArgumentParser):
    """Errors in one line, the same as those of bad input."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"convlm: error: {message}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0, 2 for bad usage or input, 130 when interrupted."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    print_what_can_be_printed()
    try:
        if arguments[:1] == ["bench"]:  # whose options are its own
            run_benchmarks(arguments[1:])
        args = make_parser().parse_args(arguments)
        code: int = args.run(args)
        sys.stdout.flush()
        return code
    except (ValueError, OSError, TrainingError, GenerationError) as error:
        # The reader, such as `head`, has had enough. In `train` there is more to do than to print.
        if isinstance(error, BrokenPipeError) and arguments[:1] != ["train"]:
            write_to_nothing(sys.stdout)
            return 0
        print(f"convlm: error: {error}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        reason = out_of_memory(error, arguments[0])
        if reason is None:
            raise
        print(f"convlm: error: {reason}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def make_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="convlm", description="Character language models on our own Conv1d.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (add_train, add_sample, add_eval):
        add_machine_options(add(commands))
    info = commands.add_parser("info", help="versions, and which backends run here")
    info.set_defaults(run=lambda args: print_info())
    commands.add_parser("bench", help="time everything on this machine, from a checkout")
    return parser


def add_train(commands: argparse._SubParsersAction) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "train",
        help="train a model and write checkpoint, loss curve and figures",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="The defaults are those of the notebook that this project starts from.",
    )

    def option(name: str, help: str, **keywords: Any) -> None:
        default = DEFAULTS[name.removeprefix("--").replace("-", "_")]
        parser.add_argument(name, help=f"{help} (default {default})", **keywords)

    option("--model", "which model", choices=MODELS)
    parser.add_argument(
        "--words",
        help='a file with one word a line, or "names" for the public list, which is downloaded '
        "once (default: a small list of English words that comes with the package)",
    )
    parser.add_argument(
        "--steps",
        type=whole(1),
        help=f"steps of SGD in all (default {DEFAULTS['steps']}; {PACKAGED_STEPS} on the packaged "
        "list, which is so small that the model would learn it by heart)",
    )
    option("--batch-size", "words in a batch, drawn with replacement", type=whole(1))
    option("--lr", "learning rate", type=rate)
    option("--final-lr", "learning rate from --lr-drop on", type=rate)
    option("--lr-drop", "a step, or with a point a fraction of the steps", type=step_or_fraction)
    option("--seed", "of the weights and the batches", type=whole(0))
    option("--dtype", "of the weights", choices=DTYPES)
    option("--context", "characters that a prediction sees", type=whole(1))
    option("--embedding", "size of a character's embedding", type=whole(1))
    option("--hidden", "channels of the dilated model", type=whole(1))
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="folder to write; one that holds a training takes --resume or --overwrite "
        "(default runs/MODEL)",
    )
    earlier = parser.add_mutually_exclusive_group()
    earlier.add_argument(
        "--resume", action="store_true", help="go on from the checkpoint in the folder"
    )
    earlier.add_argument(
        "--overwrite", action="store_true", help="begin anew where the folder holds a training"
    )
    parser.add_argument(
        "--save-every",
        type=whole(1),
        default=1_000,
        metavar="STEPS",
        help="write the checkpoint that often, and at the end (default 1000)",
    )
    parser.add_argument(
        "--eval-every",
        type=whole(0),
        default=1_000,
        metavar="STEPS",
        help="measure the val loss for the curve, 0 never (default 1000)",
    )
    parser.add_argument(
        "--no-capture",
        dest="capture",
        action="store_false",
        help="call each step; by default those of --backend cuda are replayed as CUDA graphs",
    )
    parser.add_argument(
        "--samples", type=whole(0), default=10, help="words to invent at the end (default 10)"
    )
    parser.add_argument(
        "--tensorboard",
        action="store_true",
        help="write curves for TensorBoard, too; needs the package tensorboard",
    )
    parser.add_argument(
        "--distributed",
        choices=STRATEGIES,
        help="how the processes of torchrun share the work: ddp, each the whole model (their "
        "default), or fsdp, each a part of it; --batch-size is that of all together",
    )
    parser.set_defaults(run=run_training)
    return parser


def add_sample(commands: argparse._SubParsersAction) -> argparse.ArgumentParser:
    parser = commands.add_parser("sample", help="words that a trained model invents")
    add_checkpoint(parser)
    parser.add_argument("--count", type=whole(1), default=20, help="how many (default 20)")
    parser.add_argument("--prefix", default="", help="what each word begins with")
    parser.add_argument(
        "--temperature", type=number, default=1.0, help="0 takes the likeliest (default 1)"
    )
    parser.add_argument("--top-k", type=whole(1), help="draw among the k likeliest characters")
    parser.add_argument(
        "--top-p",
        type=probability,
        default=1.0,
        metavar="P",
        help="draw among the fewest characters that have probability P together (default 1: all)",
    )
    parser.add_argument(
        "--max-length", type=whole(1), default=64, help="cut longer words (default 64)"
    )
    parser.add_argument("--seed", type=whole(0), help="for the same words again")
    parser.add_argument(
        "--batch", type=whole(1), help="words at once, which changes none of them (default all)"
    )
    parser.add_argument(
        "--stream", action="store_true", help="one word after the other, each character as it comes"
    )
    parser.set_defaults(run=run_sample)
    return parser


def add_eval(commands: argparse._SubParsersAction) -> argparse.ArgumentParser:
    parser = commands.add_parser("eval", help="losses of a trained model on train, val and test")
    add_checkpoint(parser)
    parser.add_argument("--words", help="a file of other words than those it was trained on")
    parser.set_defaults(run=run_eval)
    return parser


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoint",
        nargs="?",
        default="runs/dilated",
        help="folder of a training, or the checkpoint in it, or a folder of save_pretrained "
        "(default runs/dilated)",
    )


def add_machine_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device",
        type=device,
        default=device("cpu"),
        help="cpu, cuda or cuda:N (default cpu)",
    )
    parser.add_argument(
        "--backend",
        choices=("auto", *BACKENDS),
        default="auto",
        help="whose kernels run the convolutions, of those that `convlm info` lists (default auto: "
        "the quickest that is measured)",
    )
    parser.add_argument(
        "--threads", type=threads, help="CPU threads (default 1; torch's choice for large models)"
    )


def run_sample(args: argparse.Namespace) -> int:
    model, alphabet = load_model(args.checkpoint, args.backend)
    generator = torch.Generator()
    if args.seed is None:
        generator.seed()
    else:
        generator.manual_seed(args.seed)
    begin = time.perf_counter()
    pieces = sample_pieces(
        prepare(model, args),
        alphabet,
        args.count,
        prefix=args.prefix,
        sampling=Sampling(
            args.temperature, args.top_k, args.top_p, alphabet.stop, (alphabet.start,)
        ),
        max_length=args.max_length,
        batch=1 if args.stream else args.batch,
        chunk=1 if args.stream else 8,
        generator=generator,
    )
    written = print_pieces(pieces, args.count, as_they_come=args.stream)
    speed = written / (time.perf_counter() - begin)
    print(f"{written:,} characters, {speed:,.0f} a second", file=sys.stderr)
    return 0


def print_pieces(pieces: Iterable[Piece], count: int, as_they_come: bool) -> int:
    """Prints words of which no two come at once, or else all at the end; returns their length."""
    words = [""] * count
    for which, text, last in pieces:
        words[which] += text
        if as_they_come:
            print(text, end="\n" if last else "", flush=True)
    if not as_they_come:
        print("\n".join(words), flush=True)
    return sum(map(len, words))


def run_eval(args: argparse.Namespace) -> int:
    if is_pretrained(args.checkpoint):
        if args.words is None:
            raise ValueError(f"{args.checkpoint} does not say which words it is for; give --words")
        model, alphabet = load_model(args.checkpoint, args.backend)
        words, title = load_words(args.words), type(model).__name__
    else:
        run = load_checkpoint(args.checkpoint, args.backend)
        model, alphabet = run.model, run.alphabet
        words = words_of(run, args.checkpoint) if args.words is None else load_words(args.words)
        title = f"{run.kind} model at step {run.progress.step:,}"
    data = make_data(words, model.context, alphabet=alphabet)
    print(f"{title}, {len(words):,} words")
    print_losses(evaluate_all(prepare(model, args), to_device(data, args.device)))
    return 0
