"""``forward_with_state`` on the emulator: the depthwise kernel reads and writes the state."""

from __future__ import annotations

import pytest
import torch
from cases import DTYPES, LAYOUTS, Case, parametrize, problem, random
from tolerances import exact_forward

from build import emulated, operators

pytestmark = pytest.mark.usefixtures("nan_in_empty")

CASES = [
    Case("several tiles of channels", 2, 37, 37, 60, 4, 1, 3, 37, (9, 0)),
    Case("several tiles of positions", 1, 2, 4, 4500, 3, 1, 50, 2, (100, 0)),
    Case("one tap: the state is empty", 2, 3, 3, 40, 1, 1, 1, 3, (0, 0)),
    Case("dense, joined", 2, 6, 10, 40, 2, 1, 4, 1, (4, 0)),
]


@parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["unaligned", "channels_last"])
@parametrize("case", CASES)
def test_parts_give_the_whole(case: Case, layout: str, dtype: torch.dtype) -> None:
    p = problem(case, dtype)
    state = random(case.batch, case.in_channels, case.pads[0], dtype=dtype, seed=6)
    whole = torch.cat([state, p.x], 2)
    outputs = []
    for x in p.x.split([1, 17, case.length - 18], dim=2):
        settings = case.dilation, case.groups, "ieee", "none"
        x, state = LAYOUTS[layout](x), LAYOUTS[layout](state)
        y, state = emulated("forward_with_state")(x, p.weight, p.bias, state, *settings)
        outputs.append(y)
    y = torch.cat(outputs, 2)
    window = 1, 0, 0, case.dilation, case.groups, "ieee"
    exact_forward(whole, p.weight, p.bias, window).allows(y)
    assert torch.equal(state, whole[..., case.length :])
    if case.groups > 1:  # the same sums, whatever the parts
        assert torch.equal(y, operators()[0](whole, p.weight, p.bias, *window, "none"))
