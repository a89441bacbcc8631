"""``forward_with_state``: a sequence that comes in parts gives what it gives in one."""

from __future__ import annotations

import pytest
import torch
from cases import DTYPES, LAYOUTS, Case, parametrize, problem, random
from tolerances import exact_forward
from torch import Tensor

from convlm_kernels import ops

pytestmark = pytest.mark.usefixtures("nan_in_empty")

# Padded on the left by what the kernel spans, and cut into parts that are shorter than that too.
CAUSAL = [
    Case("depthwise", 3, 7, 7, 60, 4, 1, 3, 7, (9, 0)),
    Case("depthwise, one tap: the state is empty", 2, 3, 3, 30, 1, 1, 1, 3, (0, 0)),
    Case("depthwise with a multiplier", 2, 5, 10, 50, 3, 1, 8, 5, (16, 0)),
    Case("dense", 2, 6, 10, 40, 2, 1, 4, 1, (4, 0)),
]
PARTS = [1, 2, 17]


def in_parts(operator: object, p: object, case: Case, activation: str) -> tuple[Tensor, Tensor]:
    settings = case.dilation, case.groups, "ieee", activation
    state = p.x.new_zeros(case.batch, case.in_channels, case.pads[0])
    outputs = []
    for x in p.x.split([*PARTS, case.length - sum(PARTS)], dim=2):
        y, state = operator(x, p.weight, p.bias, state, *settings)
        assert y.is_contiguous()
        assert state.is_contiguous()
        outputs.append(y)
    return torch.cat(outputs, 2), state


@parametrize("dtype", DTYPES)
@parametrize("case", CAUSAL)
def test_parts_give_the_whole(case: Case, dtype: torch.dtype) -> None:
    p = problem(case, dtype)
    y, state = in_parts(ops.forward_with_state, p, case, "none")
    exact_forward(p.x, p.weight, p.bias, case.window).allows(y)
    assert torch.equal(state, p.x[..., case.length - case.pads[0] :])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_and_activation(layout: str) -> None:
    case = CAUSAL[0]
    x, state = random(*case.x_shape), random(case.batch, case.in_channels, 9, seed=1)
    turned = [LAYOUTS[layout](t) for t in (x, problem(case, x.dtype).weight, state)]
    y, new_state = ops.forward_with_state(
        turned[0], turned[1], None, turned[2], case.dilation, case.groups, "ieee", "tanh"
    )
    whole = torch.cat([turned[2], turned[0]], 2)
    window = 1, 0, 0, case.dilation, case.groups, "ieee"
    torch.testing.assert_close(y, ops.forward(whole, turned[1], None, *window, "tanh"))
    assert torch.equal(new_state, whole[..., -9:])


POSSIBLE = dict(
    x=random(2, 4, 10),
    weight=random(4, 1, 3),
    bias=random(4),
    state=random(2, 4, 6),
    dilation=3,
    groups=4,
    fp32_precision="ieee",
    activation="none",
)
IMPOSSIBLE = {
    "x_dimensions": dict(x=random(4, 10)),
    "in_channels": dict(x=random(2, 5, 10)),
    "bias_shape": dict(bias=random(3)),
    "dilation": dict(dilation=0),
    "empty_x": dict(x=random(2, 4, 0)),
    "state_positions": dict(state=random(2, 4, 5)),
    "state_batch": dict(state=random(1, 4, 6)),
    "state_dimensions": dict(state=random(4, 6)),
    "state_dtype": dict(state=random(2, 4, 6, dtype=torch.float64)),
}


@pytest.mark.parametrize("what", IMPOSSIBLE)
def test_impossible_problems_raise_alike_with_and_without_data(what: str) -> None:
    arguments = POSSIBLE | IMPOSSIBLE[what]
    messages = []
    for device in ("cpu", "meta"):
        there = [a.to(device) if isinstance(a, Tensor) else a for a in arguments.values()]
        with pytest.raises(RuntimeError) as raised:
            ops.forward_with_state(*there)
        messages.append(str(raised.value))
    native, fake = messages
    if "dtype" in what:  # dtypes have other names in C++
        native, fake = (m.partition(", got")[0] for m in (native, fake))
    assert fake in native


def test_opcheck() -> None:
    torch.library.opcheck(ops.forward_with_state, tuple(POSSIBLE.values()))
    no_bias = POSSIBLE | dict(bias=None)
    torch.library.opcheck(ops.forward_with_state, tuple(no_bias.values()))


def test_a_gradient_is_not_lost_in_silence() -> None:
    arguments = POSSIBLE | dict(weight=random(4, 1, 3).requires_grad_())
    y, _ = ops.forward_with_state(*arguments.values())
    with pytest.warns(UserWarning, match="autograd kernel was not registered"):
        y.sum().backward()
