"""The GPU benchmark, rehearsed on CPU tensors. Nothing here has a time."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import bench_gpu  # noqa: E402
import bench_overhead  # noqa: E402
import gpu_generation  # noqa: E402
import gpu_models  # noqa: E402
import gpu_providers  # noqa: E402
import gpu_suites  # noqa: E402
import gpu_timing  # noqa: E402
import oracle  # noqa: E402
import report  # noqa: E402
import results  # noqa: E402
from gpu_ceilings import GpuCeilings  # noqa: E402
from gpu_problems import PROBLEMS  # noqa: E402
from problem import BACKWARD, FUNCTIONS, Data, Problem  # noqa: E402
from suite import QUICK, Setting  # noqa: E402

CPU = torch.device("cpu")
TINY = Problem(
    "tiny", 2, 4, 6, 19, 3, dilation=2, padding="causal", functions=(*FUNCTIONS, BACKWARD)
)
CEILINGS = GpuCeilings(dict.fromkeys(["bfloat16", "float32", "tf32"], 100.0), 50.0)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_gpu, "PROBLEMS", [TINY])
    monkeypatch.setattr(bench_gpu, "MOST_SETS", 2)
    for rows in ("MANY_ROWS", "MANY_WORDS", "BATCH_OF_WORDS"):
        monkeypatch.setattr(gpu_models, rows, 8)
    monkeypatch.setattr(bench_gpu, "measure_ceilings", lambda device: CEILINGS)
    monkeypatch.setattr(bench_gpu, "generation", lambda device, seconds: ([], [], []))
    monkeypatch.setattr(bench_gpu, "own_backends", lambda problem, device: ["cpp"])
    monkeypatch.setattr(gpu_providers, "own_backends", lambda problem, device: ["cpp"])


@pytest.fixture(autouse=True)
def switches() -> object:
    """The benchmark sets torch's for its whole process."""
    flags = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [flag.allow_tf32 for flag in flags], torch.backends.cudnn.benchmark
    yield
    for flag, value in zip(flags, before[0], strict=True):
        flag.allow_tf32 = value
    torch.backends.cudnn.benchmark = before[1]


def test_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bench.json"
    assert bench_gpu.main(["--device", "cpu", "--seconds", "5", "--output", str(path)]) == 0
    runs = results.load(path)
    assert runs["lm"]["rows"][0]["function"] == "training step"
    run = runs["layers"]
    assert run["machine"].keys() >= {"cpu", "torch", "commit"}
    assert run["skipped"] == []
    described = [(row["name"], row["backend"], row["function"]) for row in run["rows"]]
    assert described == [("tiny", "cpp", function) for function in (*FUNCTIONS, BACKWARD)]
    for row in run["rows"]:
        assert row["took"] == sorted(row["took"])
        assert {"conv1d", "conv1d deterministic"} <= set(row["ratios"])
        assert row["best"] not in ("conv1d deterministic", "channels-last throughout")
        assert row["error"] < 1e-5
    assert "left out" not in capsys.readouterr().out


def test_everything_has_the_other_suites_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows_of = gpu_suites.rows_of

    def small_rows(name: str, setting: Setting, seconds: float) -> object:
        return rows_of(name, setting._replace(small=True, compiled=False), seconds, QUICK)

    monkeypatch.setattr(gpu_suites, "rows_of", small_rows)
    monkeypatch.setattr(gpu_suites, "NAMES", ("overhead", "memory", "determinism"))  # one a way
    path = tmp_path / "bench.json"
    assert (
        bench_gpu.main(["--device", "cpu", "--all", "--seconds", "60", "--output", str(path)]) == 0
    )
    runs = results.load(path)
    assert set(runs) == {"layers", "lm", *gpu_suites.NAMES}
    for name in gpu_suites.NAMES:
        assert runs[name]["rows"], name
        assert {row["backend"] for row in runs[name]["rows"]} == {"cpp"}
    assert "Overhead" in capsys.readouterr().out
    report.write_report(path)
    assert '<section id="determinism">' in path.with_suffix(".html").read_text()


def test_a_case_that_cannot_be_had_is_skipped_and_a_wrong_one_is_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    setting = Setting(small=True, compiled=False)
    late = list(gpu_suites.rows_of("overhead", setting, 0.0))
    assert {type(found) for found in late} == {gpu_suites.Skipped}
    assert "out of time" in str(late[0])
    monkeypatch.setattr(bench_overhead, "copied", lambda ours, peer: peer)
    wrong = list(gpu_suites.rows_of("overhead", setting, 10.0, QUICK))
    assert {type(found) for found in wrong} == {oracle.WrongResult}
    assert "not close" in str(wrong[0])


def test_without_a_gpu_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert bench_gpu.main([]) == 2
    assert "no CUDA device" in capsys.readouterr().err


WORKS = [gpu_models.Step, gpu_models.Losses, gpu_models.StepOfWords, gpu_models.LossesOfWords]


@pytest.mark.parametrize("work", WORKS)
def test_a_model_is_compared_with_that_of_torch(
    work: type[gpu_models.Work], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, wrong, left_out = gpu_models.compare(work, ["cpp"], CPU, 0.1, compiled=False)
    ways = [work.function, f"{work.function}, called from Python"]
    assert [(row["backend"], row["function"]) for row in rows] == [("cpp", way) for way in ways]
    for row in rows:
        assert row["took"] == sorted(row["took"])
        assert row["ratios"].keys() == {"torch, captured", "torch, eager"}
    assert wrong == left_out == []
    monkeypatch.setattr(gpu_models, "same_losses", lambda one, other: False)
    _, wrong, _ = gpu_models.compare(work, ["cpp"], CPU, 0.1, compiled=False)
    assert wrong == [f"{work.function}: losses on cpp are not those of torch"]


def test_a_step_is_compared_with_layers_and_queues(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [gpu_generation.Size(5, 2)]
    rows, wrong, left_out = gpu_generation.generation(CPU, 0.1, sizes)
    assert [row["backend"] for row in rows] == ["one launch", "one launch, bf16 weights"]
    assert all(row["ratios"].keys() == {"queues, captured", "queues, eager"} for row in rows)
    assert wrong == left_out == []
    monkeypatch.setattr(torch, "allclose", lambda *tensors, **bounds: False)
    _, wrong, _ = gpu_generation.generation(CPU, 0.1, sizes)
    assert len(wrong) == 2
    assert "one launch is not what torch's layers give" in wrong[0]
    _, _, left_out = gpu_generation.generation(torch.device("meta"), 0.1, sizes)
    assert left_out == ["generation: " + gpu_generation.can_run_steps(torch.device("meta"))]


def test_what_there_was_no_time_for_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_gpu.main(["--device", "cpu", "--seconds", "0"]) == 0
    assert "left out: tiny: out of time" in capsys.readouterr().out


def test_a_wrong_result_of_ours_is_not_timed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = gpu_providers.OnBackend.forward

    def wrong(self: gpu_providers.OnBackend) -> Tensor:
        y = right(self)
        y[-1, -1, -1] += 0.01
        return y

    monkeypatch.setattr(gpu_providers.OnBackend, "forward", wrong)
    assert bench_gpu.main(["--device", "cpu", "--seconds", "5"]) == 1
    said = capsys.readouterr().out
    assert "WRONG: tiny, forward: cpp: forward is off by" in said
    assert "grad_input" in said


def test_a_peer_that_cannot_is_left_out_and_the_others_timed() -> None:
    def fails() -> None:
        raise ValueError("not on this device")

    times, failed = gpu_timing.measure({"good": [int, int], "bad": [fails]}, CPU, 0.01)
    assert len(times["good"]) >= 5
    assert failed == {"bad": "ValueError: not on this device"}


def test_operands_are_rotated_until_the_cache_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_gpu, "ROTATED_BYTES", 3 * TINY.bytes("forward") // 2)
    sets = bench_gpu.sets_of(TINY, CPU)
    assert len(sets) == 2
    assert not torch.equal(sets[0].x, sets[1].x)


def test_sums_over_samples_may_be_taken_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    data = Data.random(TINY)
    whole = oracle.Oracle("grad_weight", data).exact
    monkeypatch.setattr(oracle, "MOST_ELEMENTS", 1)
    for part, right in zip(oracle.Oracle("grad_weight", data).exact, whole, strict=True):
        torch.testing.assert_close(part, right)


def test_ceilings_are_of_the_same_kind_of_numbers() -> None:
    ceilings = GpuCeilings({"tf32": 3.0, "float32": 2.0, "bfloat16": 9.0}, 50.0)
    assert ceilings.of(torch.float32, "tf32").peak(torch.float32) == 3.0
    assert ceilings.of(torch.float32).rate == 2.0
    assert ceilings.of(torch.bfloat16, "tf32") == (9.0, 50.0)


def test_problems_have_names_of_their_own() -> None:
    names = [problem.name for problem in PROBLEMS]
    assert len(set(names)) == len(names)
    core = [problem.core for problem in PROBLEMS]
    assert core == sorted(core, reverse=True)
    assert all(problem.geometry.out_length >= 1 for problem in PROBLEMS)
