"""The benchmarks run, say what they should, and do not time what is wrong. Nothing here has a time.

Each file of `benchmarks/` is a script, and finds the others beside it.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import bench_conv1d  # noqa: E402
import bench_generation  # noqa: E402
import bench_lm  # noqa: E402
import ceilings  # noqa: E402
import oracle  # noqa: E402
import plot_results  # noqa: E402
import rows  # noqa: E402
import sweep  # noqa: E402
from problem import BACKWARD, FUNCTIONS, Data, Problem, Target  # noqa: E402
from problems import PROBLEMS  # noqa: E402
from providers import Ours, Provider, TorchConv1d  # noqa: E402

SMALL = [
    Problem("causal + tanh", 2, 3, 5, 19, 3, 1, 2, padding="causal", activation="tanh"),
    Problem("strided", 3, 4, 6, 23, 4, 3, 2, padding=2, functions=(*FUNCTIONS, BACKWARD)),
    Problem("same", 2, 3, 4, 9, 4, padding="same", dtype=torch.float64),
    Problem("only padding is read", 1, 2, 3, 1, 4, 3, 2, padding=(5, 4)),
    Problem("groups", 2, 6, 4, 17, 3, groups=2),
    Problem("depthwise", 2, 5, 5, 17, 3, 2, 2, 5, (4, 1), functions=(*FUNCTIONS, BACKWARD)),
]


@pytest.fixture
def no_ceilings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measuring them takes seconds and gigabytes of copies."""

    def known(threads: int) -> ceilings.Ceilings:
        torch.set_num_threads(threads)
        return ceilings.Ceilings(threads, {"float32": 100.0}, 90.0, 20.0, float(threads))

    monkeypatch.setattr(bench_conv1d, "measure_ceilings", known)


@pytest.mark.parametrize("problem", SMALL, ids=lambda problem: problem.name)
def test_every_provider_is_right(problem: Problem) -> None:
    data = Data.random(problem)
    providers = rows.providers_of(data)
    for function in problem.functions:
        checked = rows.checked(providers, function, oracle.Oracle(function, data))
        assert checked.wrong == {}
        assert {"ours", "conv1d"} <= set(checked.calls)


def test_part_of_a_large_problem_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oracle, "AFFORDABLE", 1.0)
    data = Data.random(Problem("", 8, 4, 9, 16, 3))
    for function, count in zip((*FUNCTIONS, BACKWARD), (2, 2, 2, 2), strict=True):
        part = oracle.Oracle(function, data)
        assert part.exact[0].shape[0] == count
        call = getattr(Ours(data), function)
        part.error("ours", call())


class Wrong(TorchConv1d):
    """One number among all is wrong."""

    name = "wrong"

    def forward(self) -> torch.Tensor:
        y = super().forward()
        y[-1, -1, -1] += 0.01
        return y


class Short(TorchConv1d):
    name = "short"

    def forward(self) -> torch.Tensor:
        return super().forward()[..., :-1]


class NotANumber(TorchConv1d):
    name = "not a number"

    def forward(self) -> torch.Tensor:
        return super().forward() * math.nan


@pytest.mark.parametrize("kind", [Wrong, Short, NotANumber])
def test_a_wrong_peer_is_not_timed(kind: type[Provider]) -> None:
    data = Data.random(SMALL[0])
    checked = rows.checked([Ours(data), kind(data)], "forward", oracle.Oracle("forward", data))
    assert list(checked.calls) == ["ours"]
    assert kind.name in checked.wrong[kind.name]


def test_a_wrong_result_of_ours_is_an_error() -> None:
    data = Data.random(SMALL[0])
    with pytest.raises(oracle.WrongResult, match="wrong: forward is off by"):
        rows.checked([Wrong(data), Ours(data)], "forward", oracle.Oracle("forward", data))


def test_results_and_plots(
    no_ceilings: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    targets = {"forward": (Target(0.5, "share"), Target(1.0, "best"), Target(2.0))}
    problem = Problem("tiny", 1, 2, 2, 12, 3, padding="causal", targets=targets)
    monkeypatch.setattr(bench_conv1d, "PROBLEMS", [problem, *SMALL])
    results = tmp_path / "here" / "results.json"
    bench_conv1d.main(["--quick", "--only", "tiny", "depthwise", "--output", str(results)])

    run = json.loads(results.read_text())["default"]
    assert run["machine"].keys() >= {"cpu", "torch", "convlm_kernels", "python", "commit"}
    (known,) = run["ceilings"]
    assert known["trusted"]
    described = [(row["problem"], row["function"], row["threads"]) for row in run["rows"]]
    assert described == [
        *(("tiny", function, 1) for function in FUNCTIONS),
        *(("depthwise", function, 1) for function in (*FUNCTIONS, BACKWARD)),
    ]
    for row in run["rows"]:
        assert row["us"] == sorted(row["us"])
        assert row["best"] in row["ratios"]
        assert row["best"] != "channels-last throughout"
        assert row["error"] < 1e-5
        assert row["bound"] in ("FMA", "copy")
        assert row["share"] > 0
    first = run["rows"][0]
    assert [(target["of"], target["least"]) for target in first["targets"]] == [
        ("share", 0.5),
        ("best", 1.0),
        ("conv1d", 2.0),
    ]
    assert all(target["measured"] > 0 for target in first["targets"])

    written = plot_results.plot_file(results)
    assert [path.name for path in written] == ["results-default-T1.png", "results-default-T1.svg"]
    assert all(path.stat().st_size > 1000 for path in written)


def test_targets_name_what_is_measured() -> None:
    for problem in PROBLEMS:
        assert problem.geometry.out_length >= 1
        assert set(problem.targets) <= set(problem.functions), problem.name
        for targets in problem.targets.values():
            assert {target.of for target in targets} <= {"share", "best", "conv1d", "channels-last"}
    names = [problem.name for problem in PROBLEMS]
    assert len(set(names)) == len(names)


def test_sweep_is_repeatable_and_checks_what_it_times(capsys: pytest.CaptureFixture[str]) -> None:
    one, other = (sweep.random_problems(seed=3) for _ in range(2))
    assert [next(one) for _ in range(20)] == [next(other) for _ in range(20)]
    sweep.main(["--problems", "2", "--seed", "3"])
    said = capsys.readouterr().out
    assert "conv1d(randn(" in said
    assert "grad_weight: 2 problems, median" in said


def test_without_a_compiler_matrix_products_are_the_ceiling(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ceilings.peaks.cache_clear()
    monkeypatch.setenv("CC", "/nowhere/cc")
    assert ceilings.peaks() == {}
    ceilings.peaks.cache_clear()
    assert "FMA peak unknown" in capsys.readouterr().err
    assert ceilings.Ceilings(1, {}, 90.0, 20.0, 1.0).peak(torch.float32) == 90.0


@pytest.mark.parametrize("bench", bench_lm.BENCHES, ids=lambda bench: bench.name)
def test_language_models_are_compared_before_they_are_timed(
    bench: bench_lm.Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_lm, "ROWS", 100)
    split = bench_lm.names_like_rows()
    providers = bench.make(split)
    assert list(providers) == [bench_lm.OURS, bench_lm.PEER]
    ours, peer = (torch.as_tensor(provider()) for provider in providers.values())
    bench_lm.assert_equal(ours, peer)
    monkeypatch.setattr(bench_lm, "on_torch_layers", lambda model: bench_lm.CNN(fused=False))
    with pytest.raises(AssertionError, match="not close"):
        bench.make(split)


def test_generation_is_right_before_it_is_timed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def call_once(providers: bench_generation.Providers, rounds: int) -> dict[str, list[float]]:
        return {name: [(provider(), 1.0)[1]] * rounds for name, provider in providers.items()}

    monkeypatch.setattr(bench_generation, "measure", call_once)
    monkeypatch.setattr(bench_generation, "LAYERS", 5)
    monkeypatch.setattr(sys, "argv", ["bench_generation.py", "--rounds=2"])
    bench_generation.main()
    said = capsys.readouterr().out
    assert "5 layers, 256 channels: step, bf16 weights" in said
    assert "loop with drawing: loop" in said
    with pytest.raises(AssertionError, match="not close"):
        bench_generation.assert_equal({"step": torch.ones(2), "window": torch.zeros(2)})
