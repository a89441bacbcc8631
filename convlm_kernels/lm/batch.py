"""A running batch: requests that generate together, and join and leave between any two steps."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from operator import index
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import step_ops
from ..streaming import StreamState, state_of
from .char_model import CharModel

NO_TOKEN = (
    "there is no token to draw: its logits hold a NaN or an infinity, or rule out every token"
)


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn from logits.

    temperature: below 1 keeps to the likely, above 1 strays; 0 always takes the likeliest.
    top_k: draw among the k likeliest only. top_p: among the fewest of these that have together at
    least this probability. stop: the token that ends a request. never: tokens that are not drawn.
    Raises ValueError for a temperature, top_k or top_p that is out of range, and where it is used
    for a `stop` or `never` that the model has no token for.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    stop: int | None = None
    never: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= 1e38:  # float32 logits are divided by it
            raise ValueError(
                f"temperature must be at least 0 and at most 1e38, got {self.temperature}"
            )
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, got {self.top_p}")

    def check_tokens(self, vocab: int) -> None:
        """Raises ValueError unless a model of so many tokens has all that are named here."""
        named = {"stop": () if self.stop is None else (self.stop,), "never": self.never}
        for argument, tokens in named.items():
            if not all(0 <= token < vocab for token in tokens):
                value = getattr(self, argument)
                raise ValueError(f"{argument} must be of tokens from 0 to {vocab - 1}, got {value}")


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
    uniform: Tensor  # one number for each token
    taken: int = 0

    @property
    def left(self) -> int:
        return len(self.uniform) - self.taken


class Batch:
    """Requests on one model, on the CPU or a GPU. What one gets does not depend on the others.

    Raises ValueError where `sampling` names a token that the model does not have.
    """

    def __init__(self, model: CharModel, sampling: Sampling | None = None) -> None:
        self.model = model
        self.sampling = sampling or Sampling()
        self.sampling.check_tokens(model.vocab)
        self._state = model.init_state(0)
        self._running: list[_Request] = []
        self._joining: list[_Request] = []
        # A token of each that no step has taken.
        self._newest = self._to_device(torch.empty(0, dtype=torch.int64, device="cpu"))

    def __len__(self) -> int:
        return len(self._running) + len(self._joining)

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
        for a name that is in the batch already; TypeError for a prompt of other than integers.
        """
        try:
            prompt = [index(token) for token in prompt]
        except TypeError:
            raise TypeError(f"prompt must be integers, got {prompt!r}") from None
        if len(prompt) < self.model.context:
            raise ValueError(
                f"prompt must be at least a context of {self.model.context} tokens, "
                f"got {len(prompt)}"
            )
        if not all(0 <= token < self.model.vocab for token in prompt):
            raise ValueError(
                f"prompt must be tokens from 0 to {self.model.vocab - 1}, got {prompt}"
            )
        if max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, got {max_tokens}")
        if any(request.name == name for request in (*self._running, *self._joining)):
            raise ValueError(f"there is a request {name!r} in the batch")
        uniform = torch.rand(max_tokens, generator=generator, dtype=torch.float64, device="cpu")
        self._joining.append(_Request(name, prompt, uniform))

    def drop(self, name: Hashable) -> None:
        """A request leaves before its end. KeyError where there is none of that name."""
        if name not in [request.name for request in (*self._running, *self._joining)]:
            raise KeyError(name)
        self._joining = [request for request in self._joining if request.name != name]
        self._keep([i for i, request in enumerate(self._running) if request.name != name])

    def step(self, count: int = 1) -> list[Event]:
        """Gives each request up to `count` tokens, request by request, in one call.

        Fewer where one of them may have no more. Those that are at their end leave; so does one
        for which there is no token to draw, or whose prompt cannot be run, with an event that has
        an `error`.
        """
        if count < 1:
            raise ValueError(f"count must be at least 1, got {count}")
        events = self._join()
        if not self._running:
            return events
        count = min(count, *(request.left for request in self._running))
        tokens = self._generate(count)
        stop = self.sampling.stop
        running = []
        for i, (request, row) in enumerate(zip(self._running, tokens.tolist(), strict=True)):
            ends_at = [row.index(token) for token in (stop, -1) if token in row]
            row = row[: min(ends_at, default=count) + 1]
            request.taken += len(row)
            last = bool(ends_at) or request.left == 0
            ends = [False] * (len(row) - 1) + [last]
            events += [
                Event(request.name, token, end) for token, end in zip(row, ends, strict=True)
            ]
            if not last:
                running.append(i)
        self._newest = tokens[:, -1]
        if len(running) < len(self._running):
            self._keep(running)
        return events

    def _generate(self, count: int) -> Tensor:
        embedding, weights, biases, plan = self.model.stream_network().packed()
        sampling = self.sampling
        uniform = torch.stack([r.uniform[r.taken : r.taken + count] for r in self._running])
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
            self.model.vocab if sampling.top_k is None else sampling.top_k,
            sampling.top_p,
            -1 if sampling.stop is None else sampling.stop,
        )

    def _join(self) -> list[Event]:
        """Runs the prompts of those that join, each length at once, up to their last token.

        Where that fails, these requests end: it would fail again, and the others go on.
        """
        by_length: dict[int, list[_Request]] = {}
        for request in self._joining:
            by_length.setdefault(len(request.prompt), []).append(request)
        failures = []
        for length, requests in by_length.items():
            try:
                prompts = torch.tensor([request.prompt for request in requests], device="cpu")
                prompts = self._to_device(prompts)
                state = state_of(self.model.stream_network(), len(requests))
                self.model.prefill(prompts[:, :-1], state)
                state = StreamState.join(self._state, state)
                newest = torch.cat([self._newest, prompts[:, -1]])
            except Exception as error:
                failures += [Event.of_failure(request.name, error) for request in requests]
            else:
                self._state, self._newest = state, newest
                self._running += requests
            self._joining = [r for r in self._joining if len(r.prompt) != length]
        return failures

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
    each gets between two looks at who is done. Neither changes the tokens. Otherwise as `Batch`.
    """
    if batch is not None and batch < 1:
        raise ValueError(f"batch must be at least 1, got {batch}")
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    running = Batch(model, sampling)
    waiting = iter(enumerate(prompts))
    while True:
        while batch is None or len(running) < batch:
            number, prompt = next(waiting, (None, ()))
            if number is None:
                break
            running.add(number, prompt, max_tokens, generator)
        if not running:
            return
        yield from running.step(chunk)
