"""Random problems: whatever torch accepts, we compute alike; whatever it refuses, we refuse."""

from __future__ import annotations

import os

import pytest
import torch
from cases import DTYPES, Case, problem
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import exact_forward, exact_gradients, torch_conv1d

from convlm_kernels import conv1d

pytestmark = pytest.mark.usefixtures("nan_in_empty")

# More on demand: CONVLM_FUZZ=5000 pytest tests/test_fuzz.py
EXAMPLES = int(os.environ.get("CONVLM_FUZZ", "150"))


def number(most: int, *likely: int, least: int = 1) -> st.SearchStrategy[int]:
    """Up to ``most``, with a preference for the numbers around which kernels change their ways."""
    chosen = [n for n in likely if least <= n <= most]
    return st.integers(least, most) | st.sampled_from(chosen)


@st.composite
def cases(draw: st.DrawFn, possible: bool = True) -> Case:
    groups = draw(st.sampled_from([1, 1, 1, 2, 3, 5]))
    depthwise = draw(st.booleans()) and groups > 1
    in_per_group = 1 if depthwise else draw(number(33, 1, 3, 8, 16, 28, 32))
    out_per_group = draw(number(40, 1, 3, 8, 15, 16, 17, 32))
    kernel_size, dilation = draw(number(9, 1, 2, 3)), draw(number(9, 1, 2))
    pads = draw(st.tuples(number(20, 0, 1, least=0), number(20, 0, 1, least=0)))
    reach = dilation * (kernel_size - 1)
    shortest = max(1, reach + 1 - sum(pads)) if possible else 1
    length = shortest + draw(number(150, 0, 1, 2, 15, 16, 17, 63, 64, 127, 128, least=0))
    return Case(
        "drawn at random",
        draw(number(5, 1, 2)),
        in_per_group * groups,
        out_per_group * groups,
        length,
        kernel_size,
        draw(number(7, 1, 2, 4)),
        dilation,
        groups,
        pads,
    )


def settings_of(case: Case) -> dict:
    return dict(stride=case.stride, padding=case.pads, dilation=case.dilation, groups=case.groups)


@settings(max_examples=EXAMPLES, deadline=None)
@given(case=cases(), dtype=st.sampled_from(DTYPES), transposed=st.booleans())
def test_values_and_gradients(case: Case, dtype: torch.dtype, transposed: bool) -> None:
    p = problem(case, dtype)
    if transposed:
        p = p._replace(x=p.x.mT.contiguous().mT, grad_output=p.grad_output.mT.contiguous().mT)
    leaves = [t.requires_grad_() for t in p[:3]]
    y = conv1d(*leaves, **settings_of(case))
    exact_forward(*p[:3], case.window).allows(y.detach())
    exact = exact_gradients(p.x, p.weight, p.grad_output, case.window)
    gradients = torch.autograd.grad(y, leaves, p.grad_output)
    for own, right in zip(gradients, exact, strict=True):
        right.allows(own)


@settings(max_examples=EXAMPLES, deadline=None)
@given(case=cases(possible=False), wrong_channels=st.integers(0, 3))
def test_refuses_what_torch_refuses(case: Case, wrong_channels: int) -> None:
    x = torch.zeros(case.batch, case.in_channels + max(0, wrong_channels - 2), case.length)
    weight = torch.zeros(case.weight_shape)
    try:
        expected = torch_conv1d(x, weight, None, case.window).shape
    except RuntimeError:
        for device in ("cpu", "meta"):
            with pytest.raises(RuntimeError):
                conv1d(x.to(device), weight.to(device), **settings_of(case))
    else:
        for device in ("cpu", "meta"):
            y = conv1d(x.to(device), weight.to(device), **settings_of(case))
            assert y.shape == expected
