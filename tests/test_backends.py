"""Who runs what, and that nothing falls back in silence."""

from __future__ import annotations

import subprocess
import sys
import warnings

import pytest
import torch
from cases import DTYPES, FEW, Case, parametrize, problem
from tolerances import exact_forward, exact_gradients

from convlm_kernels import backends, conv1d, functional
from convlm_kernels.geometry import Conv1dGeometry

GEOMETRY = Conv1dGeometry(2, 3, 5, 1, 10, 3, 1, 1, 0, 0)
CPU, META, CUDA = map(torch.device, ("cpu", "meta", "cuda"))


@pytest.fixture(autouse=True)
def nothing_said_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_devices_warned", set())


def conv1d_of(case: Case) -> dict:
    return dict(stride=case.stride, padding=case.pads, dilation=case.dilation, groups=case.groups)


def test_every_backend_has_a_predicate() -> None:
    assert tuple(backends.PREDICATES) == backends.BACKENDS
    for name, predicate in backends.PREDICATES.items():
        assert getattr(backends, f"can_run_{name}") is predicate


@parametrize("dtype", DTYPES)
def test_predicates(dtype: torch.dtype) -> None:
    assert backends.can_run_cpp(GEOMETRY, dtype, CPU) is None
    assert backends.can_run_cpp(GEOMETRY, dtype, META) is None
    assert "on the CPU, not on cuda" in str(backends.can_run_cpp(GEOMETRY, dtype, CUDA))
    assert backends.can_run_torch(GEOMETRY, dtype, CUDA) is None


def test_the_reasons_of_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    def reason(device: torch.device = CUDA, dtype: torch.dtype = torch.float32) -> str | None:
        return backends.can_run_cuda(GEOMETRY, dtype, device)

    assert "on CUDA devices, not on cpu" in str(reason(CPU))
    monkeypatch.setattr(backends, "_BUILT_WITH_CUDA", False)
    assert reason() == "this build has no CUDA kernels"
    monkeypatch.setattr(backends, "_BUILT_WITH_CUDA", True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert reason() == "torch finds no CUDA device"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert reason() == "compute capability 7.5 is below 8.0"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert reason() is None
    assert "int32 is not one of" in str(reason(dtype=torch.int32))


def test_the_reasons_of_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    def reason(device: torch.device = CUDA, dtype: torch.dtype = torch.float32) -> str | None:
        return backends.can_run_triton(GEOMETRY, dtype, device)

    missing = "Triton is not installed: pip install 'triton>=3.6'"
    monkeypatch.setattr(backends, "_triton", lambda: (missing, False))
    assert reason() == missing
    monkeypatch.setattr(backends, "_triton", lambda: (None, False))
    assert reason(CPU) == "the Triton kernels run on CUDA devices, not on cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert reason() == "torch finds no CUDA device"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert reason() == "compute capability 7.5 is below 8.0"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert reason() is None
    assert "int32 is not one of" in str(reason(dtype=torch.int32))
    monkeypatch.setattr(backends, "_triton", lambda: (None, True))
    assert reason(CPU) is None, "the interpreter runs on the CPU"


def test_triton_is_imported_only_when_it_is_asked_for() -> None:
    script = "import convlm_kernels, sys; print('triton' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert run.stdout == "False\n", run.stderr


def test_a_missing_triton_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    script = """
import sys
sys.modules["triton"] = None
from convlm_kernels import backends
print(backends._triton())
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "Triton is not installed: pip install 'triton>=3.6'" in run.stdout, run.stderr


def test_a_dtype_without_kernels() -> None:
    reason = backends.can_run_cpp(GEOMETRY, torch.complex64, CPU)
    assert reason == "dtype complex64 is not one of bfloat16, float16, float32, float64"
    with pytest.raises(TypeError, match=r"complex64 is not one of bfloat16.*backend='torch'"):
        backends.select("auto", GEOMETRY, torch.complex64, CPU)
    with pytest.raises(RuntimeError, match=r"backend='cpp' cannot run.*complex64"):
        backends.select("cpp", GEOMETRY, torch.complex64, CPU)
    assert backends.select("torch", GEOMETRY, torch.complex64, CPU) == "torch"


def test_an_unknown_backend() -> None:
    x, weight = torch.zeros(1, 1, 3), torch.zeros(1, 1, 1)
    with pytest.raises(ValueError, match=r"'auto' or one of \('cpp', .*'torch'\), got 'gpu'"):
        conv1d(x, weight, backend="gpu")


@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_an_explicit_backend_never_falls_back(backend: str) -> None:
    x, weight = torch.zeros(1, 1, 3), torch.zeros(1, 1, 1)
    reason = backends.PREDICATES[backend](GEOMETRY, x.dtype, x.device)
    assert reason is not None
    with pytest.raises(RuntimeError) as raised:
        conv1d(x, weight, backend=backend)
    assert f"backend={backend!r} cannot run this convolution: {reason}" in str(raised.value)


def test_auto_runs_our_own_kernels_on_the_cpu() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert backends.select("auto", GEOMETRY, torch.float32, CPU) == "cpp"
    assert backends.AUTO_ORDER == ("cpp", "torch")


def test_auto_says_once_for_each_device_that_it_has_no_kernel() -> None:
    with pytest.warns(UserWarning, match="no kernel for device 'cuda'"):
        assert backends.select("auto", GEOMETRY, torch.float32, CUDA) == "torch"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert backends.select("auto", GEOMETRY, torch.float32, CUDA) == "torch"
        assert backends.select("torch", GEOMETRY, torch.float32, torch.device("xpu")) == "torch"
    with pytest.warns(UserWarning, match="no kernel for device 'xpu'"):
        backends.select("auto", GEOMETRY, torch.float32, torch.device("xpu"))


def test_auto_says_so_when_compiled_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(backends.PREDICATES, "cpp", lambda *_: "as on another device")
    x, weight = torch.ones(1, 1, 3), torch.ones(1, 1, 1)

    def function(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        window = (1, 0, 0, 1, 1, "ieee")
        return functional._run(x, weight, None, window, "none", "auto")

    torch._dynamo.reset()
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    with pytest.warns(UserWarning, match="no kernel for device 'cpu'"):
        assert torch.equal(compiled(x, weight), x)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert torch.equal(compiled(x, weight), x)


def test_auto_and_the_shortcut_for_the_cpu_agree() -> None:
    """conv1d does not ask select() on its way to the CPU kernels; the two must not drift apart."""
    for dtype in (torch.float32, torch.bfloat16, torch.complex64, torch.int32):
        x, weight = torch.ones(1, 1, 3, dtype=dtype), torch.ones(1, 1, 1, dtype=dtype)
        allowed = backends.can_run_cpp(GEOMETRY, dtype, CPU) is None
        if allowed:
            assert torch.equal(conv1d(x, weight), conv1d(x, weight, backend="cpp"))
        else:
            with pytest.raises(TypeError, match="is not one of"):
                conv1d(x, weight)


# Without torch's own 16-bit convolutions on the CPU: they do not keep our tolerances.
HELD_TO_OURS = [(b, d) for b in backends.BACKENDS for d in DTYPES if b != "torch" or d.itemsize > 2]


@pytest.mark.parametrize(("backend", "dtype"), HELD_TO_OURS, ids=str)
@parametrize("case", FEW)
def test_every_backend_gives_the_same_values(
    backend: str, case: Case, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    device = torch.device("cpu" if backend in ("cpp", "torch") else "cuda")
    reason = backends.PREDICATES[backend](GEOMETRY, dtype, device)
    if reason is not None:
        pytest.skip(reason)
    p = problem(case, dtype)
    leaves = [t.to(device).requires_grad_() for t in p[:3]]
    y = conv1d(*leaves, **conv1d_of(case), backend=backend)
    exact_forward(*p[:3], case.window).allows(y.detach().cpu())
    gradients = torch.autograd.grad(y, leaves, p.grad_output.to(device))
    exact = exact_gradients(p.x, p.weight, p.grad_output, case.window)
    for own, right in zip(gradients, exact, strict=True):
        right.allows(own.cpu())


@pytest.mark.parametrize("padding", ["same", "causal", (2, 2), (0, 3)])
@pytest.mark.parametrize("activation", [None, "tanh", "gelu"])
def test_the_torch_backend_knows_our_extras(padding: object, activation: str | None) -> None:
    x, weight = torch.randn(2, 3, 9), torch.randn(4, 3, 2)
    options = dict(padding=padding, activation=activation)
    torch.testing.assert_close(
        conv1d(x, weight, **options, backend="torch"), conv1d(x, weight, **options)
    )
