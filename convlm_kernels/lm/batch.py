"""A running batch: requests that generate together, and join and leave between any two steps."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import step_ops
from ..streaming import StreamState, state_of
from .char_model import CharModel
from .integers import integers, positive
from .sampling import Sampling

NO_TOKEN = (
    "there is no token to draw: its logits hold a NaN or an infinity, or rule out every token"
)
PIECE = 4096  # so many numbers are drawn for a request at once: few are given all they ask for


class _Event(NamedTuple):
    name: Any
    token: int
    last: bool


class Event(_Event):
    """A token that a request was given; with `last` it is its last one.

    A request for which no token can be drawn, or whose prompt cannot be run, ends with an event
    whose token is -1, and `error` says why.
    """

    reason = NO_TOKEN  # where there is no token

    @property
    def error(self) -> str | None:
        return f"request {self.name!r}: {self.reason}" if self.token < 0 else None

    @classmethod
    def of_failure(cls, name: Any, error: Exception) -> Event:
        """The end of a request whose prompt raised `error`."""
        event = cls(name, -1, True)
        event.reason = f"its prompt cannot be run: {type(error).__name__}: {error}"
        return event


@dataclass
class _Request:
    name: Hashable
    prompt: list[int]
    left: int  # so many tokens it may yet be given
    uniform: Tensor  # a number for each token, as far as they are drawn
    more: torch.Generator | None  # which others come from
    used: int = 0  # of the numbers

    def numbers(self, count: int) -> Tensor:
        """(count,), one for each of the next tokens."""
        missing = self.used + count - len(self.uniform)
        if missing > 0:
            drawn = _draw(-(-missing // PIECE) * PIECE, self.more)
            self.uniform, self.used = torch.cat([self.uniform[self.used :], drawn]), 0
        return self.uniform[self.used : self.used + count]

    def take(self, count: int) -> None:
        self.left -= count
        self.used += count


def _draw(count: int, generator: torch.Generator | None) -> Tensor:
    return torch.rand(count, generator=generator, dtype=torch.float64, device="cpu")


class Batch:
    """Requests on one model, on the CPU or a GPU. What one gets does not depend on the others.

    Raises ValueError where `sampling` names a token that the model does not have.
    """

    def __init__(self, model: CharModel, sampling: Sampling | None = None) -> None:
        self.model = model
        self.sampling = sampling or Sampling()
        self.sampling.check_tokens(model.vocab)
        self._state = model.init_state(0)
        self._names: set[Hashable] = set()
        self._running: list[_Request] = []
        self._joining: list[_Request] = []
        self._failed: list[Event] = []  # which no step has told of
        # A token of each that no step has taken.
        self._newest = self._to_device(torch.empty(0, dtype=torch.int64, device="cpu"))

    def __len__(self) -> int:
        return len(self._names)

    def add(
        self,
        name: Hashable,
        prompt: Sequence[int],
        max_tokens: int,
        generator: torch.Generator | None = None,
    ) -> None:
        """A request joins, to be given up to `max_tokens` that follow `prompt`.

        name: what its events are called. prompt: at least a context of tokens. generator: a CPU
        generator; the same state gives the same tokens, whatever else is in the batch. Raises
        ValueError for a prompt that is too short or has an unknown token, for no `max_tokens`, and
        for a name that is in the batch already; TypeError for a prompt or `max_tokens` of other
        than integers, and for a name that cannot be hashed.
        """
        self._add(
            name, self._tokens_of("prompt", prompt), positive("max_tokens", max_tokens), generator
        )

    def _add(
        self,
        name: Hashable,
        prompt: list[int],
        max_tokens: int,
        generator: torch.Generator | None,
    ) -> None:
        if name in self._names:
            raise ValueError(f"there is a request {name!r} in the batch")
        uniform, more = _draw(min(max_tokens, PIECE), generator), None
        if max_tokens > PIECE:
            seed = torch.randint(2**63 - 1, (), generator=generator, device="cpu")
            more = torch.Generator("cpu").manual_seed(int(seed))
        self._joining.append(_Request(name, prompt, max_tokens, uniform, more))
        self._names.add(name)

    def _tokens_of(self, argument: str, prompt: Sequence[int]) -> list[int]:
        tokens = integers(argument, prompt)
        if len(tokens) < self.model.context:
            raise ValueError(
                f"{argument} must be at least a context of {self.model.context} tokens, "
                f"got {len(tokens)}"
            )
        if not all(0 <= token < self.model.vocab for token in tokens):
            raise ValueError(
                f"{argument} must be tokens from 0 to {self.model.vocab - 1}, got {tokens}"
            )
        return tokens

    def drop(self, name: Hashable) -> None:
        """A request leaves before its end. KeyError where there is none of that name."""
        self._names.remove(name)
        self._failed = [event for event in self._failed if event.name != name]
        self._joining = [request for request in self._joining if request.name != name]
        self._keep([i for i, request in enumerate(self._running) if request.name != name])

    def step(self, count: int = 1) -> list[Event]:
        """Gives each request up to `count` tokens, request by request, in one call.

        Fewer where one of them may have no more. Those that are at their end leave; so does one
        for which there is no token to draw, or whose prompt cannot be run, with an event that has
        an `error`. Where this raises, no request has been given anything.
        """
        count = positive("count", count)
        self._join()
        if not self._running:
            return self._failures()
        count = min(count, *(request.left for request in self._running))
        tokens = self._generate(count)
        events = self._failures()
        stop = self.sampling.stop
        running = []
        for i, (request, row) in enumerate(zip(self._running, tokens.tolist(), strict=True)):
            ends_at = [row.index(token) for token in (stop, -1) if token in row]
            row = row[: min(ends_at, default=count) + 1]
            request.take(len(row))
            last = bool(ends_at) or request.left == 0
            ends = [False] * (len(row) - 1) + [last]
            events += [
                Event(request.name, token, end) for token, end in zip(row, ends, strict=True)
            ]
            if last:
                self._names.remove(request.name)
            else:
                running.append(i)
        self._newest = tokens[:, -1]
        if len(running) < len(self._running):
            self._keep(running)
        return events

    def _generate(self, count: int) -> Tensor:
        embedding, weights, biases, plan = self.model.stream_network().packed()
        sampling = self.sampling
        uniform = torch.stack([request.numbers(count) for request in self._running])
        logit_bias = None
        if sampling.never:
            logit_bias = torch.zeros(self.model.vocab, dtype=biases.dtype, device="cpu")
            logit_bias[list(sampling.never)] = float("-inf")
            logit_bias = self._to_device(logit_bias)
        return step_ops.generate(
            self._newest,
            embedding,
            *self._state,
            weights,
            biases,
            plan,
            logit_bias,
            self._to_device(uniform),
            sampling.temperature,
            self.model.vocab if sampling.top_k is None else min(sampling.top_k, self.model.vocab),
            sampling.top_p,
            -1 if sampling.stop is None else sampling.stop,
        )

    def _failures(self) -> list[Event]:
        """The events of those that could not join; they leave."""
        failed, self._failed = self._failed, []
        self._names.difference_update(event.name for event in failed)
        return failed

    def _join(self) -> None:
        """Runs the prompts of those that join, each length at once, up to their last token.

        Where that fails, these requests end: it would fail again, and the others go on.
        """
        by_length: dict[int, list[_Request]] = {}
        for request in self._joining:
            by_length.setdefault(len(request.prompt), []).append(request)
        for length, requests in by_length.items():
            try:
                prompts = torch.tensor([request.prompt for request in requests], device="cpu")
                prompts = self._to_device(prompts)
                state = state_of(self.model.stream_network(), len(requests))
                self.model.prefill(prompts[:, :-1], state)
                state = StreamState.join(self._state, state)
                newest = torch.cat([self._newest, prompts[:, -1]])
            except Exception as error:
                self._failed += [Event.of_failure(request.name, error) for request in requests]
            else:
                self._state, self._newest = state, newest
                self._running += requests
            self._joining = [r for r in self._joining if len(r.prompt) != length]

    def _to_device(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.model.embedding.weight.device)

    def _keep(self, indices: list[int]) -> None:
        self._state = self._state.select(indices)
        self._newest = self._newest[indices]
        self._running = [self._running[i] for i in indices]


def generate(
    model: CharModel,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    sampling: Sampling | None = None,
    *,
    batch: int | None = None,
    chunk: int = 1,
    generator: torch.Generator | None = None,
) -> Iterator[Event]:
    """The tokens that follow each of `prompts`, as they come; events are named by its number.

    batch: at most so many at once; when one is done, the next joins. None: all. chunk: tokens that
    each gets between two looks at who is done. Neither changes the tokens. Otherwise as `Batch`; a
    prompt that is refused is so before the first event.
    """
    at_once = None if batch is None else positive("batch", batch)
    chunk, max_tokens = positive("chunk", chunk), positive("max_tokens", max_tokens)
    running = Batch(model, sampling)
    checked = [running._tokens_of(f"prompts[{n}]", prompt) for n, prompt in enumerate(prompts)]
    waiting = iter(enumerate(checked))
    while True:
        while at_once is None or len(running) < at_once:
            number, prompt = next(waiting, (None, []))
            if number is None:
                break
            running._add(number, prompt, max_tokens, generator)
        if not running:
            return
        yield from running.step(chunk)
