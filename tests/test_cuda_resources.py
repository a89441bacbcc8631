"""The table of what CUDA kernels take, from reports as the assembler writes them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import cuda_resources  # noqa: E402
import kernel_names  # noqa: E402

PREFIX = "_ZN6convlm4cuda47_GLOBAL__N__59cf9fe4_9_direct_cu_a8597330_11869"
SYMBOL = f"{PREFIX}16correlate_kernelINS_7float16EEEvNS0_11CorrelationIT_EE"


def entry(arch: str, symbol: str = SYMBOL, stack: int = 0, spilled: int = 0) -> str:
    return f"""\
ptxas info    : Compiling entry function '{symbol}' for '{arch}'
ptxas info    : Function properties for {symbol}
    {stack} bytes stack frame, {spilled} bytes spill stores, {spilled} bytes spill loads
ptxas info    : Used 100 registers, used 1 barriers, 512 bytes smem, 8 bytes cmem[2]
ptxas info    : Compile time = 903.532 ms
"""


def report(*entries: str) -> str:
    return "ptxas info    : 0 bytes gmem\n" + "".join(entries)


def test_a_report_is_read() -> None:
    text = report(entry("sm_80"), entry("sm_90a", stack=8, spilled=4))
    first, second = cuda_resources.parse("direct.cu", text)
    assert first == ("direct.cu", "correlate_kernel", "float16", "sm_80", 100, 512, 0, 0)
    assert (second.arch, second.stack, second.spilled) == ("sm_90a", 8, 8)


def test_spills_of_what_a_kernel_calls_are_its_own() -> None:
    called = """\
ptxas info    : Function properties for __internal_slow_path
    16 bytes stack frame, 12 bytes spill stores, 8 bytes spill loads
"""
    (usage,) = cuda_resources.parse("direct.cu", report(entry("sm_80"), called))
    assert (usage.stack, usage.spilled) == (16, 20)


@pytest.mark.parametrize("amount", [dict(spilled=4), dict(stack=8)])
def test_a_spill_is_an_error_unless_it_is_allowed(amount: dict) -> None:
    usages = cuda_resources.parse("direct.cu", report(entry("sm_80", **amount)))
    (message,) = cuda_resources.complaints(usages, {})
    assert message.startswith("correlate_kernel float16 for sm_80 in direct.cu: ")
    assert cuda_resources.complaints(usages, {"direct.cu correlate_kernel": "slow anyway"}) == []
    other_source = cuda_resources.complaints(usages, {"other.cu correlate_kernel": ""})
    assert "other.cu correlate_kernel does not spill" in other_source[1]


def test_names() -> None:
    readable = kernel_names.readable
    name = "void convlm::cuda::(anonymous namespace)::gemm<convlm::bfloat16, 64, (Mode)1>(A<T>)"
    assert readable(name) == "gemm<bfloat16, 64, (Mode)1>"
    assert kernel_names.without_dtype(readable(name)) == ("gemm<64, (Mode)1>", "bfloat16")
    assert kernel_names.without_dtype("plain") == ("plain", "")
    assert kernel_names.demangle("no symbol") == "no symbol"


def test_reports_must_be_there_and_for_every_architecture(tmp_path: Path) -> None:
    source = tmp_path / "direct.cu"
    with pytest.raises(SystemExit, match="build with CUDA first"):
        cuda_resources.read_reports(tmp_path, [source])
    log = tmp_path / "cuda/direct.cu.o.log"
    log.parent.mkdir()
    log.write_text(report(entry("sm_80")))
    with pytest.raises(SystemExit, match=r"was built for sm_80, and this is about sm_80, sm_90a"):
        cuda_resources.read_reports(tmp_path, [source])
    log.write_text(report(*map(entry, cuda_resources.ARCHS)))
    assert len(cuda_resources.read_reports(tmp_path, [source])) == 3
    log.write_text("")  # host code only
    assert cuda_resources.read_reports(tmp_path, [source]) == []


def test_the_page_tells_which_kernels_it_is_about() -> None:
    text = report(*(entry(arch, spilled=i) for i, arch in enumerate(cuda_resources.ARCHS)))
    rows = cuda_resources.table(cuda_resources.parse("direct.cu", text))
    assert rows == [["direct.cu", "correlate_kernel", "float16", "100", "512", "0", "0 / 2 / 4"]]
    page = cuda_resources.markdown(rows)
    assert cuda_resources.differences(page, rows) == []
    more = [*rows, ["direct.cu", "another", "", "1", "0", "0", "0"]]
    assert cuda_resources.differences(page, more) == ["not on the page: direct.cu another "]
    assert len(cuda_resources.differences(page, [])) == 1


def test_the_committed_page_is_about_the_sources_that_there_are() -> None:
    page = (ROOT / "docs/cuda-resources.md").read_text()
    kernels = cuda_resources.kernels_on(page)
    with_kernels = {
        path.name
        for path in (ROOT / "csrc/cuda").glob("*.cu")
        if any(word in path.read_text() for word in ("CONVLM_INSTANTIATE", "__global__"))
    }
    assert {source for source, _, _ in kernels} == with_kernels, "make cuda-resources"
    for name in cuda_resources.MAY_SPILL:
        assert name in {f"{source} {kernel.partition('<')[0]}" for source, kernel, _ in kernels}
