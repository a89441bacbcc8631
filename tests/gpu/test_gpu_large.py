"""More than 2^31 elements, where an index of 32 bits would come round to another one."""

from __future__ import annotations

import pytest
import torch
from device import DEVICE, needs_gpu, skip_unless
from torch import Tensor
from torch.nn import functional as F

from convlm_kernels import conv1d

pytestmark = pytest.mark.xdist_group("the memory is for one of these at a time")

PAST = 2**31 + 4097


def needs_gigabytes(needed: int) -> None:
    needs_gpu()
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    skip_unless(None if free >= needed * 1e9 else f"{free / 1e9:.0f} GB are free, of {needed}")


def numbers(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    generator = torch.Generator(DEVICE).manual_seed(0)
    return torch.empty(shape, dtype=dtype, device=DEVICE).normal_(generator=generator)


def assert_near(actual: Tensor, exact: Tensor) -> None:
    error = (actual.double() - exact).abs().max()
    assert float(error) <= 2**-7 * float(exact.abs().max())


def test_one_row_past_2_31(backend: str) -> None:
    """Windows of the results against the same windows alone: at both ends and around 2^31."""
    needs_gigabytes(20)
    x, weight = numbers(1, 1, PAST), numbers(1, 1, 3)
    y = conv1d(x, weight, padding="causal", dilation=4, backend=backend)
    assert y.shape == x.shape
    for start in (8, 2**30, 2**31 - 50, PAST - 100):
        window = x[..., start - 8 : start + 100].double()
        assert_near(y[..., start : start + 100], F.conv1d(window, weight.double(), dilation=4))


def test_gradient_of_one_row_past_2_31(backend: str) -> None:
    needs_gigabytes(20)
    weight, grad_y = numbers(1, 1, 3), numbers(1, 1, PAST)
    x = torch.zeros(1, 1, PAST, dtype=grad_y.dtype, device=DEVICE, requires_grad=True)
    y = conv1d(x, weight, padding="causal", dilation=4, backend=backend)
    (grad_x,) = torch.autograd.grad(y, x, grad_y)
    for start in (0, 2**30, 2**31 - 50, PAST - 108):
        window = grad_y[..., start : start + 108].double()
        exact = F.conv1d(window, weight.double().flip(2), dilation=4)
        assert_near(grad_x[..., start : start + 100], exact)


@pytest.mark.parametrize("groups", [1, 32])
def test_many_samples_together_past_2_31(backend: str, groups: int) -> None:
    """The last sample and the last channels alike, with strides; the same bits as alone."""
    needs_gigabytes(30)
    batch, channels, length = 33, 32, 2**21 + 3
    x, weight = numbers(batch, channels, length), numbers(channels, channels // groups, 3)
    assert x.numel() > 2**31
    settings = dict(padding=(3, 2), dilation=2, groups=groups, backend=backend)
    y = conv1d(x, weight, **settings)
    for sample in (0, batch // 2, batch - 1):
        assert torch.equal(y[sample], conv1d(x[sample : sample + 1], weight, **settings)[0])
    exact = F.conv1d(
        F.pad(x[-1:, :, -1000:].double(), (0, 2)), weight.double(), dilation=2, groups=groups
    )
    assert_near(y[-1:, :, -exact.shape[2] :], exact)


def test_weight_gradient_of_products_past_2_31(backend: str) -> None:
    needs_gigabytes(30)
    x = numbers(2**11, 1, 2**20 + 2)
    weight = numbers(1, 1, 3).requires_grad_()
    y = conv1d(x, weight, backend=backend)
    (gradient,) = torch.autograd.grad(y, weight, torch.ones_like(y))
    out_length = y.shape[2]
    by_tap = [
        sum(part[..., tap : tap + out_length].double().sum() for part in x.split(64))
        for tap in range(3)
    ]
    # Sums of 2^31 random numbers: far from zero only by chance, so the error is held to their size.
    error = (gradient.double().flatten() - torch.stack(by_tap)).abs().max()
    assert float(error) <= 2**-6 * y.numel() ** 0.5
