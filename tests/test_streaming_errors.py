"""What cannot stream, and steps that cannot be: refused with the reason."""

from __future__ import annotations

import pytest
import torch
from cases import random
from torch import Tensor, nn

from convlm_kernels import CausalConv1d, Conv1d, DilatedStack, step_ops
from convlm_kernels.streaming import Streaming

pytestmark = pytest.mark.usefixtures("nan_in_empty")


class OtherForward(CausalConv1d):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Conv1d(3, 3, 3, padding="same"), r"Conv1d cannot stream: .* got 'same'"),
        (Conv1d(3, 3, 3, padding=1), r"at most \(2, 0\), got \(1,\)"),
        (Conv1d(3, 3, 3, padding=(3, 0)), r"at most \(2, 0\), got \(3, 0\)"),
        (CausalConv1d(3, 3, 3, stride=2), "stride must be 1, got 2"),
        (Conv1d(1, 3, 5, stride=2), "stride must be 1, got 2"),
        (Conv1d(3, 3, 4, stride=2, groups=3), "stride must be 1, got 2"),
        (Conv1d(1, 3, 4, stride=2, padding=1), r"with a stride padding must be 0, got \(1,\)"),
        (Conv1d(3, 3, 3, padding=(2, 0), padding_mode="reflect"), "must be 'zeros', got 'reflect'"),
        (
            DilatedStack(Conv1d(1, 1, 2), Conv1d(1, 3, 2, stride=2)),
            r"layer '1' \(Conv1d\) cannot stream: stride",
        ),
        (
            DilatedStack(CausalConv1d(3, 3, 2), nn.Sequential(nn.Linear(3, 3))),
            r"layer '1\.0' \(Linear\) cannot stream: it is not a Conv1d",
        ),
        (OtherForward(3, 3, 1), "OtherForward cannot stream: it has its own forward"),
        (nn.utils.weight_norm(CausalConv1d(3, 3, 2)), "CausalConv1d cannot stream: it has hooks"),
        (DilatedStack(), "DilatedStack cannot stream: it has no layers"),
        (DilatedStack(Conv1d(1, 1, 1), Conv1d(1, 1, 1).double()), "in several dtypes"),
    ],
)
def test_what_cannot_stream_is_named_with_the_reason(module: Streaming, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        module.init_state()


def test_a_batch_is_not_negative() -> None:
    with pytest.raises(ValueError, match="batch must not be negative, got -1"):
        CausalConv1d(1, 1, 1).init_state(-1)


def call(**changes: object) -> Tensor:
    """``ops.step`` of a layer 3 -> 4 of two taps on a batch of 2, with one thing changed."""
    layer = CausalConv1d(3, 4, 2)
    state = layer.init_state(2)
    possible = dict(x=random(2, 3), embedding=None, rings=state.rings, position=state.position)
    possible |= layer.stream_network().packed()._asdict() | dict(out_channels=4)
    return step_ops.step(*(possible | changes).values())


def plan_with(column: int, value: int) -> Tensor:
    plan = torch.tensor([[3, 4, 1, 2, 1, 1, 0, 0, 0]])
    plan[0, column] = value
    return plan


IMPOSSIBLE = {
    "x has the size": (dict(x=random(3, 3)), "x must have the size 2 in dimension 0"),
    "channels": (dict(x=random(2, 4)), "x must have the size 3 in dimension 1, got shape (2, 4)"),
    "x dimensions": (dict(x=random(2, 3, 1)), "x must be (batch, in_channels) or tokens (batch)"),
    "x dtype": (dict(x=random(2, 3).double()), "x must have the dtype"),
    "rings": (dict(rings=random(2, 4)), "rings must have the size 3 in dimension 1"),
    "rings layout": (dict(rings=random(3, 2).T), "rings must be contiguous"),
    "position": (dict(position=torch.zeros(3).long()), "position must have the size 2"),
    "position dtype": (dict(position=torch.zeros(2).int()), "position must have the dtype Long"),
    "negative": (dict(position=torch.tensor([0, -1])), "position must not be negative, got -1"),
    "weights": (dict(weights=random(7)), "weights must have the size 96 in dimension 0"),
    "weight dtype": (dict(weights=random(96).half()), "weights must have the dtype of rings"),
    "biases": (dict(biases=random(4)), "biases must have the size 32 in dimension 0"),
    "plan": (dict(plan=torch.zeros(1, 8).long()), "plan must have the size 9 in dimension 1"),
    "no layers": (dict(plan=torch.zeros(0, 9).long()), "plan must have at least one layer"),
    "out_channels": (dict(out_channels=5), "out_channels must be that of the last layer, 4, got 5"),
    "groups": (dict(plan=plan_with(2, 2)), "groups (2) must divide in_channels and out_channels"),
    "pad_left": (dict(plan=plan_with(5, 2)), "pad_left must be between 0 and 1, got 2"),
    "dilation": (dict(plan=plan_with(4, 0)), "layer 0: dilation must be between 1 and"),
    "activation": (dict(plan=plan_with(6, 6)), "activation must be between 0 and 5, got 6"),
    "residual": (dict(plan=plan_with(8, 1)), "a residual needs as many outputs as in_channels"),
    "chain": (
        dict(plan=plan_with(0, 3).repeat(2, 1)),
        "layer 1 takes 3 channels, but the one before gives 4",
    ),
    "token": (
        dict(x=torch.tensor([0, 5]), embedding=random(5, 3)),
        "tokens must be from 0 to 4, got 5",
    ),
    "tokens": (dict(x=random(2), embedding=random(5, 3)), "tokens must have the dtype Long"),
    "embedding": (
        dict(x=torch.tensor([0, 1]), embedding=random(5, 2)),
        "embedding must have the size 3 in dimension 1",
    ),
}


@pytest.mark.parametrize("what", IMPOSSIBLE)
def test_impossible_steps(what: str) -> None:
    assert call().shape == (2, 4)
    changes, message = IMPOSSIBLE[what]
    with pytest.raises(RuntimeError) as raised:
        call(**changes)
    assert message in str(raised.value)


@pytest.mark.parametrize("what", ["x has the size", "x dimensions", "position"])
def test_impossible_steps_without_data(what: str) -> None:
    changes, message = IMPOSSIBLE[what]
    layer = CausalConv1d(3, 4, 2)
    state, network = layer.init_state(2), layer.stream_network()
    possible = dict(x=random(2, 3), embedding=None, rings=state.rings, position=state.position)
    possible |= network.packed()._asdict()
    arguments = [v.to("meta") if v is not None else v for v in (possible | changes).values()]
    with pytest.raises(RuntimeError) as raised:
        step_ops.step(*arguments, 4)
    assert message in str(raised.value)


def test_the_kernels_run_on_the_cpu_and_on_gpus() -> None:
    layer = CausalConv1d(3, 4, 2, device="meta")
    with pytest.raises(RuntimeError, match="on the CPU and on CUDA devices, not on meta"):
        layer.step(random(1, 3).to("meta"), layer.init_state())
