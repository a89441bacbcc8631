"""Serves many requests at once: they join a running batch as they arrive, and leave when done.

    python examples/serve_many.py                 # an untrained model
    python examples/serve_many.py runs/dilated    # that of `convlm train` or save_pretrained

Each request has a prefix, a length and a seed of its own, and gets the word that it would get
alone: at the end that is checked.
"""

import argparse
import random
import sys
import time
from typing import NamedTuple

import torch

from convlm_kernels.lm import Alphabet, Batch, DilatedCNN, Sampling, sample
from convlm_kernels.lm.char_model import CharModel
from convlm_kernels.lm.checkpoint import load_model


class Request(NamedTuple):
    prefix: str
    max_length: int
    seed: int
    arrival: int  # the step of the batch before which it comes


def make_requests(alphabet: Alphabet, count: int, steps: int) -> list[Request]:
    """Requests that arrive over so many steps, in order."""
    rng = random.Random(0)
    letters = alphabet.symbols[1:-1]
    arrivals = sorted(rng.randrange(steps) for _ in range(count))
    return [
        Request("".join(rng.choices(letters, k=rng.randrange(4))), rng.randrange(4, 30), seed, step)
        for seed, step in enumerate(arrivals)
    ]


def serve(model: CharModel, alphabet: Alphabet, requests: list[Request]) -> tuple[list[str], int]:
    """The word of each request, and how many were in the batch at most."""
    batch = Batch(model, Sampling(stop=alphabet.stop, never=(alphabet.start,)))
    words = [request.prefix for request in requests]
    arrived = most = step = 0
    while arrived < len(requests) or batch:
        while arrived < len(requests) and requests[arrived].arrival <= step:
            prefix, max_length, seed, _ = requests[arrived]
            batch.add(
                arrived,
                [alphabet.start] * model.context + alphabet.encode(prefix),
                max_length - len(prefix),
                torch.Generator().manual_seed(seed),
            )
            arrived += 1
        most = max(most, len(batch))
        for event in batch.step():
            if event.error:  # the others go on
                print(event.error, file=sys.stderr)
                continue
            words[event.name] += alphabet.decode([event.token])
        step += 1
    return words, most


def alone(model: CharModel, alphabet: Alphabet, request: Request) -> str:
    return sample(
        model,
        alphabet,
        prefix=request.prefix,
        max_length=request.max_length,
        generator=torch.Generator().manual_seed(request.seed),
    )[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("checkpoint", nargs="?", help="folder of a training, or of save_pretrained")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--steps", type=int, default=1, help="over which they arrive")
    args = parser.parse_args()
    if args.checkpoint:
        try:
            model, alphabet = load_model(args.checkpoint)
        except ValueError as error:
            parser.error(str(error))
    else:
        alphabet = Alphabet(".abcdefghijklmnopqrstuvwxyz;")
        model = DilatedCNN(len(alphabet))
    requests = make_requests(alphabet, args.requests, args.steps)
    begin = time.perf_counter()
    words, most = serve(model, alphabet, requests)
    seconds = time.perf_counter() - begin
    wrong = [n for n, r in enumerate(requests) if words[n] != alone(model, alphabet, r)]
    assert not wrong, f"requests {wrong} did not get what they get alone"
    characters = sum(map(len, words))
    print(
        f"{len(words)} requests, up to {most} at once: {characters:,} characters, "
        f"{characters / seconds:,.0f} a second; each as it is alone"
    )


if __name__ == "__main__":
    main()
