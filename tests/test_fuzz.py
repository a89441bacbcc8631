"""Random problems: whatever torch accepts, we compute alike; whatever it refuses, we refuse."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from cases import DTYPES, Case, Problem, problem
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import Exact, exact_forward, exact_gradients, torch_conv1d
from torch import Tensor

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


@st.composite
def wide_cases(draw: st.DrawFn) -> Case:
    """Layers of language models, which have fast filters in tiles along the dilation."""
    kernel_size, dilation = draw(number(7, 2, 3, 4)), draw(number(140, 1, 2, 8, 64, 100, 128))
    reach = dilation * (kernel_size - 1)
    pads = draw(st.sampled_from([(reach, 0), (0, 0), (reach // 2, reach // 3), (0, reach)]))
    length = max(1, reach + 1 - sum(pads)) + draw(number(600, 0, 63, 128, 300, 500, least=0))
    channels = draw(number(100, 64, 65, 96, least=60)), draw(number(100, 64, 80, least=60))
    batch = draw(st.integers(1, 2))
    return Case("drawn at random", batch, *channels, length, kernel_size, 1, dilation, 1, pads)


@st.composite
def long_kernels(draw: st.DrawFn) -> Case:
    """Kernels longer than their input, strided: many taps read nothing but padding."""
    kernel_size, dilation = draw(number(100, 16, 80, least=10)), draw(number(5, 1, 2))
    pads = draw(st.tuples(number(90, 0, 20, least=0), number(90, 0, 20, least=0)))
    shortest = max(1, dilation * (kernel_size - 1) + 1 - sum(pads))
    length = shortest + draw(number(200, 0, 1, 16, least=0))
    channels = draw(number(20, 1, 5)), draw(number(40, 1, 2, 3))
    stride = draw(number(12, 2, 3, 6, least=2))
    batch = draw(st.integers(1, 2))
    return Case("drawn at random", batch, *channels, length, kernel_size, stride, dilation, 1, pads)


@st.composite
def few_positions(draw: st.DrawFn) -> Case:
    """Samples of a few outputs and more channels: weights are read or written as they lie."""
    groups, kernel_size = draw(st.sampled_from([1, 1, 2])), draw(number(7, 1, 2, 3))
    dilation, stride = draw(number(3, 1)), draw(number(3, 1))
    pads = draw(st.tuples(number(9, 0, 1, least=0), number(9, 0, 1, least=0)))
    shortest = max(1, dilation * (kernel_size - 1) + 1 - sum(pads))
    length = shortest + draw(number(12, 0, 1, 3, least=0))
    in_per_group, out_per_group = draw(number(300, 16, 64, 200)), draw(number(300, 16, 64, 200))
    channels = in_per_group * groups, out_per_group * groups
    batch = draw(number(9, 1, 2))
    return Case(
        "drawn at random", batch, *channels, length, kernel_size, stride, dilation, groups, pads
    )


def settings_of(case: Case) -> dict:
    return dict(stride=case.stride, padding=case.pads, dilation=case.dilation, groups=case.groups)


def results(p: Problem, case: Case) -> Iterator[tuple[Tensor, Exact]]:
    """Ours beside the exact ones: y and the gradients."""
    leaves = [t.requires_grad_() for t in p[:3]]
    y = conv1d(*leaves, **settings_of(case))
    yield y.detach(), exact_forward(*p[:3], case.window)
    gradients = torch.autograd.grad(y, leaves, p.grad_output)
    exact = exact_gradients(p.x, p.weight, p.grad_output, case.window)
    yield from zip(gradients, exact, strict=True)


@settings(max_examples=EXAMPLES, deadline=None)
@given(case=cases(), dtype=st.sampled_from(DTYPES), transposed=st.booleans())
def test_values_and_gradients(case: Case, dtype: torch.dtype, transposed: bool) -> None:
    p = problem(case, dtype)
    if transposed:
        p = p._replace(x=p.x.mT.contiguous().mT, grad_output=p.grad_output.mT.contiguous().mT)
    for own, exact in results(p, case):
        exact.allows(own)


@settings(max_examples=max(1, EXAMPLES // 5), deadline=None)
@given(case=wide_cases())
def test_values_and_gradients_of_wide_layers(case: Case) -> None:
    """A fast filter errs by a share of what its neighbours along the row come to, not of itself."""
    for own, exact in results(problem(case, torch.float32), case):
        exact._replace(magnitude=exact.magnitude.amax(-1, keepdim=True)).allows(own)


@settings(max_examples=EXAMPLES, deadline=None)
@given(case=long_kernels(), dtype=st.sampled_from(DTYPES))
def test_values_and_gradients_of_long_kernels(case: Case, dtype: torch.dtype) -> None:
    for own, exact in results(problem(case, dtype), case):
        exact.allows(own)


@settings(max_examples=EXAMPLES, deadline=None)
@given(case=few_positions(), dtype=st.sampled_from(DTYPES), swapped=st.booleans())
def test_values_and_gradients_of_few_positions(
    case: Case, dtype: torch.dtype, swapped: bool
) -> None:
    p = problem(case, dtype)
    if swapped:
        p = p._replace(weight=p.weight.transpose(0, 1).contiguous().transpose(0, 1))
    for own, exact in results(p, case):
        exact.allows(own)


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
