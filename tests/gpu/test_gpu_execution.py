"""How kernels run among others: streams, graphs, devices, and the same bits every time."""

from __future__ import annotations

import pytest
import torch
from cases import DTYPES, FEW, Case, Problem, parametrize, problem
from device import DEVICE, convolve, needs_gpu, settings_of, skip_unless_can_run, to_device
from torch import Tensor

from convlm_kernels import conv1d

LAYER = Case("a layer of a language model", 8, 96, 128, 1000, 3, 1, 2, 1, (4, 0))


def assert_same_bits(actual: list[Tensor], expected: list[Tensor]) -> None:
    for own, right in zip(actual, expected, strict=True):
        assert torch.equal(own, right)


@parametrize("dtype", DTYPES)
@parametrize("case", [*FEW, LAYER])
def test_the_same_bits_every_time(backend: str, case: Case, dtype: torch.dtype) -> None:
    skip_unless_can_run(backend, case, dtype)
    p = to_device(problem(case, dtype))
    first = convolve(backend, case, p)
    for _ in range(5):
        assert_same_bits(convolve(backend, case, p), first)


@parametrize("dtype", DTYPES)
@parametrize("case", [*FEW, LAYER])
def test_the_same_bits_in_any_batch(backend: str, case: Case, dtype: torch.dtype) -> None:
    case = case._replace(batch=9)
    skip_unless_can_run(backend, case, dtype)
    p = to_device(problem(case, dtype))
    y, grad_x, *_ = convolve(backend, case, p)
    for part in (slice(4, 5), slice(0, 3), slice(7, 9)):
        own = Problem(p.x[part], p.weight, p.bias, p.grad_output[part])
        y_part, grad_part, *_ = convolve(backend, case, own)
        assert_same_bits([y_part, grad_part], [y[part], grad_x[part]])


def test_deterministic_mode(backend: str) -> None:
    p = to_device(problem(LAYER, torch.float32))
    expected = convolve(backend, LAYER, p)
    torch.use_deterministic_algorithms(True)
    try:
        actual = convolve(backend, LAYER, p)
    finally:
        torch.use_deterministic_algorithms(False)
    assert_same_bits(actual, expected)


@parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_captured_graph_gives_the_same_bits(backend: str, dtype: torch.dtype) -> None:
    """Forward and backward, replayed on other numbers."""
    needs_gpu()
    p, other = to_device(problem(LAYER, dtype)), to_device(problem(LAYER, dtype))
    other.x.neg_()
    other.grad_output.mul_(2)
    expected = convolve(backend, LAYER, other, "tanh")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        convolve(backend, LAYER, p, "tanh")  # what is loaded lazily
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = convolve(backend, LAYER, p, "tanh")
    p.x.copy_(other.x)
    p.grad_output.copy_(other.grad_output)
    for _ in range(3):
        for result in results:
            result.fill_(torch.nan)
        graph.replay()
        assert_same_bits(results, expected)


def test_the_current_stream_is_used(backend: str) -> None:
    """What is still being computed on a stream is waited for there, and nowhere else."""
    needs_gpu()
    p = to_device(problem(LAYER, torch.float32))
    expected = convolve(backend, LAYER, p)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        late = Problem(*map(torch.zeros_like, p))
        convolve(backend, LAYER, late)  # so that there is memory for this stream
        stream.synchronize()
        torch.cuda._sleep(1_000_000_000)  # half a second
        for to, value in zip(late, p, strict=True):
            to.copy_(value)
        results = convolve(backend, LAYER, late)
    assert not stream.query(), "the calls waited for the device"
    stream.synchronize()
    assert_same_bits(results, expected)


def test_two_streams_at_once(backend: str) -> None:
    needs_gpu()
    problems = [to_device(problem(LAYER, torch.float32)) for _ in range(4)]
    for factor, p in enumerate(problems, 1):
        p.x.mul_(factor)
    expected = [convolve(backend, LAYER, p) for p in problems]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in problems]
    results = []
    for stream, p in zip(streams, problems, strict=True):
        with torch.cuda.stream(stream):
            results.append([convolve(backend, LAYER, p) for _ in range(5)])
    torch.cuda.synchronize()
    for several, right in zip(results, expected, strict=True):
        for actual in several:
            assert_same_bits(actual, right)


def test_a_device_that_is_not_the_current_one(backend: str) -> None:
    needs_gpu()
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU only")
    case = FEW[1]
    p = problem(case, torch.float32)
    expected = convolve(backend, case, to_device(p))
    with torch.cuda.device(0):
        actual = convolve(backend, case, Problem(*(t.to("cuda:1") for t in p)))
        assert torch.cuda.current_device() == 0
    assert {t.device for t in actual} == {torch.device("cuda:1")}
    assert_same_bits([t.to(DEVICE) for t in actual], expected)


def test_operands_of_two_devices_are_refused(backend: str) -> None:
    needs_gpu()
    p = problem(LAYER, torch.float32)
    with pytest.raises((RuntimeError, ValueError), match=r"(?i)device|cpu"):
        conv1d(p.x.to(DEVICE), p.weight, p.bias, **settings_of(LAYER), backend=backend)
    torch.cuda.synchronize()  # and nothing was started that fails later


def test_a_launch_allocates_its_results_and_little_more(backend: str) -> None:
    needs_gpu()
    p = to_device(problem(LAYER, torch.bfloat16))
    with torch.no_grad():
        conv1d(*p[:3], **settings_of(LAYER), backend=backend)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        y = conv1d(*p[:3], **settings_of(LAYER), backend=backend)
        peak = torch.cuda.max_memory_allocated() - before
    assert peak <= 2 * (y.nbytes + p.x.nbytes) + 2**22
