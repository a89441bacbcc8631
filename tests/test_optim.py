"""``sgd_step`` against its formula, in every dtype and layout."""

from __future__ import annotations

import pytest
import torch
from cases import DTYPES, LAYOUTS, parametrize, random

from convlm_kernels import optim, sgd_step


@parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["contiguous", "sliced", "transposed", "unaligned"])
def test_sgd_step(layout: str, dtype: torch.dtype) -> None:
    shapes = (), (1,), (17,), (5, 33), (3, 4, 50)
    change = LAYOUTS.get(layout, torch.clone)
    parameters = [change(random(*shape, dtype=dtype, seed=1)) for shape in shapes]
    for p in parameters:
        p.grad = random(*p.shape, dtype=dtype, seed=2)
    without = random(3)
    expected = [(p.double() - 0.3 * p.grad.double()).to(dtype) for p in parameters]
    sgd_step([*parameters, without], lr=0.3)
    for own, right in zip(parameters, expected, strict=True):
        torch.testing.assert_close(own, right)
    assert torch.equal(without, random(3))
    sgd_step([without], lr=1.0)


def test_sgd_refuses() -> None:
    for gradient, message in (
        ([random(4)], r"gradient 0 must have the shape \(3\) of its parameter, got \(4\)"),
        ([random(3).double()], "gradient 0 and its parameter must have one dtype"),
        ([], "there must be a gradient for each parameter, got 0 for 1"),
    ):
        with pytest.raises(RuntimeError, match=message):
            optim.sgd_([random(3)], gradient, 0.1)
    with pytest.raises(RuntimeError, match="parameter 0 must not be expanded"):
        optim.sgd_([random(1).expand(3)], [random(3)], 0.1)


def test_denormals_are_treated_alike_in_every_lane() -> None:
    parameter = torch.full((17,), 1e-39, dtype=torch.bfloat16)
    optim.sgd_([parameter], [torch.zeros_like(parameter)], 0.1)
    assert len(set(parameter.tolist())) == 1


def test_opcheck() -> None:
    parameters, gradients = ([random(3, 4, seed=s), random(5, seed=s)] for s in (1, 2))
    torch.library.opcheck(optim.sgd_, (parameters, gradients, 0.1))


def test_sparse_gradients() -> None:
    """Beside others; torch takes them all."""
    words, dense = torch.nn.Embedding(5, 3, sparse=True), random(4)
    dense.grad = random(4, seed=1)
    words(torch.tensor([1, 1, 2])).sum().backward()
    expected = words.weight.detach() - 0.5 * words.weight.grad.to_dense()
    expected_dense = dense - 0.5 * dense.grad
    sgd_step([dense, words.weight], 0.5)
    torch.testing.assert_close(words.weight.detach(), expected)
    torch.testing.assert_close(dense, expected_dense)


def test_one_tensor_is_no_list_of_parameters() -> None:
    with pytest.raises(TypeError, match="parameters must be an iterable of Tensors"):
        sgd_step(random(3), 0.1)
