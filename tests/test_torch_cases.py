"""Torch's own test cases of Conv1d and conv1d, the ones inside its wheel, on ours."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.common_modules import module_db

from convlm_kernels import Conv1d, conv1d

# Importing them froze torch's global switches, which other tests set.
torch.backends.flags_frozen.__globals__["__allow_nonbracketed_mutation_flag"] = True

(MODULE,) = (info for info in module_db if info.module_cls is nn.Conv1d)
(OPERATOR,) = (info for info in op_db if info.name == "nn.functional.conv1d")
DTYPES = (torch.float32, torch.float64)


def results(function: Any, inputs: list[Tensor | None], arguments: dict[str, Any]) -> list[Tensor]:
    """What ``function`` gives, and the gradients of all inputs that want one."""
    y = function(*inputs, **arguments)
    leaves = [t for t in inputs if t is not None and t.requires_grad]
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
    return [y, *torch.autograd.grad(y, leaves, weights, allow_unused=True)]


def assert_all_close(actual: list[Tensor], expected: list[Tensor]) -> None:
    for own, torchs in zip(actual, expected, strict=True):
        assert own.shape == torchs.shape
        torch.testing.assert_close(own, torchs)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("training", [False, True])
def test_module(dtype: torch.dtype, training: bool) -> None:
    cases = MODULE.module_inputs_func(MODULE, "cpu", dtype, True, training=training)
    assert len(cases) >= 4
    for case in cases:
        made, given = case.constructor_input, case.forward_input
        theirs = nn.Conv1d(*made.args, **made.kwargs, dtype=dtype).train(training)
        ours = Conv1d(*made.args, **made.kwargs, dtype=dtype).train(training)
        ours.load_state_dict(theirs.state_dict())
        assert repr(ours) == repr(theirs)
        for module in (ours, copy.deepcopy(ours)):
            y, expected = module(*given.args), theirs(*given.args)
            torch.testing.assert_close(y, expected)
            grads = torch.autograd.grad(y.sum(), [*module.parameters(), *given.args])
            right = torch.autograd.grad(expected.sum(), [*theirs.parameters(), *given.args])
            assert_all_close(list(grads), list(right))
        if case.reference_fn is not None:
            reference = case.reference_fn(ours, *given.args)
            torch.testing.assert_close(ours(*given.args), reference)


@pytest.mark.parametrize("dtype", DTYPES)
def test_operator(dtype: torch.dtype) -> None:
    samples = list(OPERATOR.sample_inputs("cpu", dtype, requires_grad=True))
    assert len(samples) > 5
    for sample in samples:
        inputs = [sample.input, *sample.args]
        assert_all_close(
            results(conv1d, inputs, sample.kwargs), results(F.conv1d, inputs, sample.kwargs)
        )


def test_operator_refuses_what_torch_refuses() -> None:
    errors = list(OPERATOR.error_inputs("cpu"))
    assert len(errors) > 5
    for error in errors:
        sample = error.sample_input
        for function in (F.conv1d, conv1d):
            with pytest.raises((RuntimeError, ValueError, TypeError)):
                function(sample.input, *sample.args, **sample.kwargs)
