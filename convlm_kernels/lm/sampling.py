"""How tokens are drawn from logits."""

from dataclasses import dataclass

from .integers import integer, integers, positive


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn from logits.

    temperature: below 1 keeps to the likely, above 1 strays; 0 always takes the likeliest.
    top_k: draw among the k likeliest only. top_p: among the fewest of these that have together at
    least this probability. stop: the token that ends a request. never: tokens that are not drawn.
    Raises ValueError for a temperature, top_k or top_p that is out of range, TypeError for what is
    no number, or no integer where it must be one; ValueError where it is used for a `stop` or
    `never` that the model has no token for.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    stop: int | None = None
    never: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for argument in ("temperature", "top_p"):
            value = getattr(self, argument)
            if not hasattr(value, "__float__"):
                raise TypeError(f"{argument} must be a number, got {value!r}")
        if not 0 <= self.temperature <= 1e38:  # float32 logits are divided by it
            raise ValueError(
                f"temperature must be at least 0 and at most 1e38, got {self.temperature}"
            )
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, got {self.top_p}")
        given = {
            "temperature": float(self.temperature),
            "top_k": None if self.top_k is None else positive("top_k", self.top_k),
            "top_p": float(self.top_p),
            "stop": None if self.stop is None else integer("stop", self.stop),
            "never": tuple(integers("never", self.never)),
        }
        for argument, value in given.items():
            object.__setattr__(self, argument, value)

    def check_tokens(self, vocab: int) -> None:
        """Raises ValueError unless a model of so many tokens has all that are named here."""
        named = {"stop": () if self.stop is None else (self.stop,), "never": self.never}
        for argument, tokens in named.items():
            if not all(0 <= token < vocab for token in tokens):
                value = getattr(self, argument)
                raise ValueError(f"{argument} must be of tokens from 0 to {vocab - 1}, got {value}")
