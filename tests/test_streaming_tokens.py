"""Steps of an embedding and its convolution, and of stacks that begin with one."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from cases import DTYPES, random
from streams import LENGTH, run_steps, stream
from torch import Tensor, nn

from convlm_kernels import DilatedStack, EmbeddingConv1d, StackLayer
from convlm_kernels.streaming import Streaming

pytestmark = pytest.mark.usefixtures("nan_in_empty")


def over_tokens(dtype: torch.dtype = torch.float32) -> DilatedStack:
    torch.manual_seed(0)
    first = EmbeddingConv1d(28, 5, 8, 3, padding="causal", padding_idx=2, activation="tanh")
    return DilatedStack(
        OrderedDict(words=first, out=StackLayer(8, 6, 2, dilation=2, gated=True))
    ).to(dtype)


def some_tokens() -> Tensor:
    return torch.randint(28, (3, LENGTH), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("alone", [False, True], ids=["stack", "layer"])
def test_steps_over_tokens(alone: bool, dtype: torch.dtype) -> None:
    stack, tokens = over_tokens(dtype), some_tokens()
    module = stack[0] if alone else stack
    tolerance = dict(rtol=0, atol=2e-2) if dtype.itemsize == 2 else {}
    with torch.no_grad():
        y = module(tokens)
    torch.testing.assert_close(stream(module, tokens), y, **tolerance)
    state = module.init_state(3)
    begun = module.prefill(tokens[:, :9], state)
    rest = run_steps(module, tokens[:, 9:], state)
    torch.testing.assert_close(torch.cat([begun, rest], dim=2), y, **tolerance)
    packed = module.forward_packed(tokens.flatten(), torch.tensor([0, 4, 4, LENGTH, 3 * LENGTH]))
    torch.testing.assert_close(packed[:, :4], y[0, :, :4], **tolerance)


def test_changed_words_are_seen() -> None:
    stack, tokens = over_tokens(), some_tokens()
    stream(stack, tokens)
    state = stack.init_state(3)
    stack[0].embedding.weight = nn.Parameter(random(28, 5))
    torch.testing.assert_close(run_steps(stack, tokens, state), stack(tokens))


def test_tokens_that_cannot_be() -> None:
    stack = over_tokens()
    state = stack.init_state(3)
    with pytest.raises(ValueError, match=r"tokens must be \(batch, length\), got shape \(3,\)"):
        stack.prefill(some_tokens()[:, 0], state)
    with pytest.raises(ValueError, match=r"and x \(total\), got shape \(3, 23\)"):
        stack.forward_packed(some_tokens(), torch.tensor([0, LENGTH]))
    with pytest.raises(RuntimeError, match="28"):
        stack.step(torch.full((3,), 28), state)


def test_compiled() -> None:
    torch._dynamo.reset()
    stack, tokens = over_tokens(), some_tokens()
    state = stack.init_state(3)
    compiled = torch.compile(
        lambda column, state: 2 * stack.step(column, state), backend="aot_eager", fullgraph=True
    )
    y = torch.stack([compiled(column, state) for column in tokens.unbind(1)], dim=2)
    assert torch.equal(y, 2 * stream(stack, tokens))


class OtherWords(EmbeddingConv1d):
    def forward(self, tokens: Tensor) -> Tensor:
        return 2 * super().forward(tokens)


def hooked() -> EmbeddingConv1d:
    layer = EmbeddingConv1d(28, 5, 8, 3, padding="causal")
    layer.embedding.register_forward_hook(lambda *_: None)
    return layer


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (EmbeddingConv1d(9, 1, 3, 2, stride=2), "EmbeddingConv1d cannot stream: stride must be 1"),
        (EmbeddingConv1d(9, 3, 3, 3, padding=1), r"Conv1d cannot stream: .* got \(1,\)"),
        (DilatedStack(hooked()), "EmbeddingConv1d cannot stream: its embedding has hooks"),
        (OtherWords(9, 3, 3, 2), "OtherWords cannot stream: its class has a forward of its own"),
        (
            DilatedStack(StackLayer(3, 3, 2), EmbeddingConv1d(9, 3, 3, 2)),
            r"layer '1' \(EmbeddingConv1d\) cannot stream: it is not a Conv1d",
        ),
    ],
)
def test_what_cannot_stream_is_named_with_the_reason(module: Streaming, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        module.init_state()
