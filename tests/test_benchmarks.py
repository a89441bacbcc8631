"""The benchmarks run, say what they should, and do not time what is wrong. Nothing here has a time.

Each file of `benchmarks/` is a script, and finds the others beside it.
"""

from __future__ import annotations

import math
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from html import escape as html_escape
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import bench  # noqa: E402
import bench_determinism  # noqa: E402
import bench_generation  # noqa: E402
import bench_lm  # noqa: E402
import bench_memory  # noqa: E402
import bench_overhead  # noqa: E402
import ceilings  # noqa: E402
import compare  # noqa: E402
import oracle  # noqa: E402
import peers  # noqa: E402
import report  # noqa: E402
import results  # noqa: E402
import suite  # noqa: E402
import sweep  # noqa: E402
from problem import BACKWARD, FUNCTIONS, STEP, Data, Problem  # noqa: E402
from problems import PROBLEMS  # noqa: E402
from providers import Ours, Provider, TorchConv1d  # noqa: E402
from suite import OURS, Setting, figures  # noqa: E402

ALL = (*FUNCTIONS, BACKWARD, STEP)

SMALL = [
    Problem(
        "causal + tanh", 2, 3, 5, 19, 3, 1, 2, padding="causal", activation="tanh", functions=ALL
    ),
    Problem("strided", 3, 4, 6, 23, 4, 3, 2, padding=2, functions=ALL),
    Problem("same", 2, 3, 4, 9, 4, padding="same", dtype=torch.float64),
    Problem("only padding is read", 1, 2, 3, 1, 4, 3, 2, padding=(5, 4)),
    Problem("groups", 2, 6, 4, 17, 3, groups=2),
    Problem("depthwise", 2, 5, 5, 17, 3, 2, 2, 5, (4, 1), functions=ALL),
]


@pytest.fixture(autouse=True)
def torch_as_it_was() -> Iterator[None]:
    threads = torch.get_num_threads()
    with torch.no_grad():
        yield
    torch.set_num_threads(threads)


@pytest.fixture
def no_ceilings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measuring them takes seconds and gigabytes of copies."""

    def known(threads: int) -> ceilings.Ceilings:
        torch.set_num_threads(threads)
        return ceilings.Ceilings(threads, {"float32": 100.0}, 90.0, 20.0, float(threads))

    monkeypatch.setattr(bench, "measure_ceilings", known)
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)


@pytest.mark.parametrize("problem", SMALL, ids=lambda problem: problem.name)
def test_every_provider_is_right(problem: Problem) -> None:
    data = Data.random(problem)
    providers = peers.providers_of(data)
    for function in problem.functions:
        checked = peers.checked(providers, function, oracle.Oracle(function, data))
        assert checked.wrong == {}
        assert {"ours", "conv1d"} <= set(checked.calls)


def test_part_of_a_large_problem_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oracle, "AFFORDABLE", 1.0)
    data = Data.random(Problem("", 8, 4, 9, 16, 3))
    for function, count in zip(ALL, (2, 2, 2, 2, 2), strict=True):
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
    checked = peers.checked([Ours(data), kind(data)], "forward", oracle.Oracle("forward", data))
    assert list(checked.calls) == ["ours"]
    assert kind.name in checked.wrong[kind.name]


def test_a_wrong_result_of_ours_is_an_error() -> None:
    data = Data.random(SMALL[0])
    with pytest.raises(oracle.WrongResult, match="wrong: forward is off by"):
        peers.checked([Wrong(data), Ours(data)], "forward", oracle.Oracle("forward", data))


@pytest.mark.parametrize("name", bench.SUITES)
def test_every_suite_runs(name: str, no_ceilings: None, tmp_path: Path) -> None:
    path = tmp_path / "here" / "results.json"
    only = {"lm": ["CNN"], "layers": ["100->28", "depthwise C100"]}.get(name)
    arguments = [name, "--quick", "--output", str(path), "--no-report"]
    bench.main(arguments + (["--only", *only] if only else []))

    (run,) = results.load(path).values()
    assert run["machine"].keys() >= {"cpu", "isa", "torch", "convlm_kernels", "commit", "allocator"}
    assert run["ceilings"][0]["trusted"]
    assert run["rows"]
    for row in run["rows"]:
        assert row["took"] == sorted(row["took"])
        assert row["took"][0] > 0
        assert row["best"] in row["ratios"]
        assert row["ratio"] == sorted(row["ratio"])
        assert row.get("error", 0) < 1e-5
        if name in ("layers", "cost", "determinism"):
            assert row["bound"] in ("FMA", "copy")
            assert row["share"] > 0


def test_a_suite_takes_the_place_of_its_earlier_run(no_ceilings: None, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    results.write_json(path, {name: {"rows": [], "machine": {}, "unit": "us"} for name in "ab"})
    results.add_runs(path, {"b": {"rows": [{}], "machine": {}, "unit": "MB"}})
    runs = results.load(path)
    assert [(name, run["unit"]) for name, run in runs.items()] == [("a", "us"), ("b", "MB")]
    path.write_text("{}[")
    with pytest.raises(SystemExit, match="holds no results of benchmarks"):
        results.load(path)


def test_files_tell_instruction_sets_and_allocators_apart() -> None:
    machine = {"cpu": "AMD EPYC", "isa": "avx2", "allocator": "tuned"}
    assert results.results_path(machine).name == "cpu-amd-epyc-avx2.json"
    machine |= {"isa": "avx512_bf16", "allocator": "default"}
    name = "cpu-amd-epyc-avx512-bf16-default-allocator.json"
    assert results.results_path(machine).name == name


def test_no_such_suite_or_case(no_ceilings: None, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench.main(["layer"])
    assert "no suite 'layer': there are memory, layers" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="no case of that name"):
        bench.main(["cost", "--quick", "--only", "nothing"])
    bench.main(["cost", "--list"])
    assert "  dilation 512" in capsys.readouterr().out


def test_the_best_peer_is_the_quickest_that_counts() -> None:
    times = {OURS: [1.0, 1.0], "slow": [3.0, 3.0], "shown": [0.5, 0.5], "good": [2.0, 1.0]}
    row = figures(times, shown=["shown"])
    assert row["best"] == "good"
    assert row["ratio"] == [1.25, 1.5, 1.75]
    assert row["ratios"] == {"slow": 3.0, "shown": 0.5, "good": 1.5}
    assert row["took"] == [1e6, 1e6, 1e6]


def test_problems_have_names_of_their_own() -> None:
    names = [problem.name for problem in PROBLEMS]
    assert len(set(names)) == len(names)
    assert all(problem.geometry.out_length >= 1 and problem.family for problem in PROBLEMS)
    assert {*bench_memory.NAMES, *bench_determinism.NAMES} <= set(names)


def test_sweep_is_repeatable_and_checks_what_it_times(capsys: pytest.CaptureFixture[str]) -> None:
    one, other = (sweep.random_problems(seed=3) for _ in range(2))
    assert [next(one) for _ in range(20)] == [next(other) for _ in range(20)]
    sweep.main(["--problems", "2", "--seed", "3"])
    said = capsys.readouterr().out
    assert "conv1d(randn(" in said
    assert "grad_weight: 2 problems, median" in said
    wide = sweep.random_problems(seed=3, channels=1024, dtype=torch.bfloat16)
    some = [next(wide) for _ in range(200)]
    assert {problem.dtype for problem in some} == {torch.bfloat16}
    assert 300 < max(problem.in_channels for problem in some) <= 1024
    sweep.main(["--problems", "1", "--channels", "16", "--dtype", "bfloat16"])
    assert "bfloat16, 1 thread(s), seed 0" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        sweep.main(["--channels", "3"])
    assert "--channels must be at least 4" in capsys.readouterr().err


def test_without_a_compiler_matrix_products_are_the_ceiling(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ceilings.peaks.cache_clear()
    monkeypatch.setenv("CC", "/nowhere/cc")
    assert ceilings.peaks() == {}
    ceilings.peaks.cache_clear()
    assert "FMA peak unknown" in capsys.readouterr().err
    assert ceilings.Ceilings(1, {}, 90.0, 20.0, 1.0).peak(torch.float32) == 90.0


@pytest.mark.parametrize("function", ["training_step", "full_loss"])
@pytest.mark.parametrize(
    "model", bench_lm.models(Setting(small=True)), ids=lambda model: model.name
)
def test_models_are_compared_before_they_are_timed(
    model: bench_lm.Model, function: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = Setting(small=True, compiled=False)
    contest = getattr(bench_lm, function)
    assert list(contest(model, setting).calls) == [OURS, bench_lm.PEER, bench_lm.BY_HAND]
    other = bench_lm.seeded(model.build)
    with torch.no_grad():
        other.embedding.weight.mul_(1.5)
    monkeypatch.setattr(bench_lm, "peers_of", lambda *_: {bench_lm.PEER: other})
    with pytest.raises(AssertionError, match="the losses of torch.nn are"):
        contest(model, setting)


def test_a_gradient_that_is_missing_shows_in_the_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    class Forgetful(bench_lm.TorchSteps):
        def __init__(self, model: torch.nn.Module, split: bench_lm.Split) -> None:
            model.embedding.weight.requires_grad_(False)
            super().__init__(model, split)

    monkeypatch.setattr(bench_lm, "TorchSteps", Forgetful)
    with pytest.raises(AssertionError, match="the losses of"):
        bench_lm.training_step(bench_lm.models(Setting(small=True))[0], Setting(compiled=False))


def test_steps_are_compared_before_they_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def other_window(layers: list) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda x: torch.zeros(1, layers[-1].out_channels)

    monkeypatch.setattr(bench_generation, "window_of", other_window)
    with pytest.raises(AssertionError, match="not close"):
        bench_generation.stack_step(16, 2)
    with pytest.raises(AssertionError, match="not close"):
        bench_generation.model_step(bench_generation.DilatedCNN)


def test_tiny_calls_are_compared_before_they_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    name = next(iter(bench_overhead.MODULES))
    monkeypatch.setattr(bench_overhead, "copied", lambda ours, peer: peer)
    for work in bench_overhead.forward, bench_overhead.step:
        with pytest.raises(AssertionError, match="not close"):
            bench_overhead.contest(name, work, False, Setting())


@pytest.mark.parametrize("depends_on", ["threads", "batch"])
def test_bits_must_not_change(depends_on: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = Ours.forward

    def other_bits(self: Ours) -> torch.Tensor:
        count = torch.get_num_threads() if depends_on == "threads" else self.problem.batch
        return right(self) + 1e-6 * count

    monkeypatch.setattr(Ours, "forward", other_bits)
    with pytest.raises(oracle.WrongResult, match="other bits"):
        bench_determinism.assert_determined(Data.random(SMALL[0]), Setting(), "forward")


def test_the_switch_is_on_only_within_a_promised_call() -> None:
    switch = torch.are_deterministic_algorithms_enabled
    assert bench_determinism.promised(switch)() is True
    assert switch() is False


def test_memory_is_what_is_written_to_at_the_peak() -> None:
    megabytes = 2**20

    def call() -> torch.Tensor:
        # Above 32 MB nothing that was freed before is taken again, whatever other tests have left.
        kept = torch.ones(40 * megabytes, dtype=torch.uint8)
        torch.ones(48 * megabytes, dtype=torch.uint8)
        return kept + 1

    small = bench_memory.Call(call, lambda: torch.ones(8) + 1)
    (grown,) = bench_memory.measure({"call": small})["call"]
    assert abs(grown / megabytes - 88) < 0.5  # the kernel counts pages a few dozen at a time


def test_what_a_fork_raises_is_raised() -> None:
    def fails() -> None:
        raise oracle.WrongResult("off by much")

    with pytest.raises(oracle.WrongResult, match="off by much"):
        bench_memory.in_fork(fails)
    with pytest.raises(RuntimeError, match="ended with status 9"):
        bench_memory.in_fork(lambda: os.kill(os.getpid(), signal.SIGKILL))


def ratios_file(path: Path, **ratios: list[float] | None) -> str:
    rows = [
        {"name": name, "function": "forward", "threads": 1, "best": "conv1d", "ratio": ratio}
        for name, ratio in ratios.items()
    ]
    results.write_json(path, {"layers": {"machine": {"cpu": "x"}, "unit": "us", "rows": rows}})
    return str(path)


def test_what_became_slower_beyond_noise_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {"same": [1.0, 1.1, 1.2], "noisy": [1.0, 2.0, 3.0], "little": [2.0, 2.0, 2.0]}
    old = ratios_file(tmp_path / "old", **before, bad=[1.9, 2.0, 2.1], alone=None, gone=[1, 1, 1])
    after = {"same": [1.0, 1.1, 1.2], "noisy": [0.5, 1.0, 1.5], "little": [1.95, 1.95, 1.95]}
    good = ratios_file(tmp_path / "good", **after, bad=[1.8, 1.9, 1.95])
    bad = ratios_file(tmp_path / "bad", **after, bad=[1.5, 1.6, 1.7])
    other = ratios_file(tmp_path / "other", nothing=[1.0, 1.0, 1.0])

    assert compare.main([old, good]) == 0
    assert "4 rows in both, 0 slower, 0 quicker, 1 in one file only" in capsys.readouterr().out
    assert compare.main([old, bad]) == 1
    said = capsys.readouterr().out
    assert "layers: bad" in said
    assert "noisy" not in said
    assert "1 slower" in said
    assert compare.main([bad, old]) == 0
    assert "1 quicker" in capsys.readouterr().out
    assert compare.main([old, other]) == 2


@pytest.fixture(scope="module")
def some_results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with two rows of every suite."""
    ours = {"threads": 1, "took": [1.0, 2.0, 3.0], "best": "conv1d", "ratio": [0.5, 1.5, 2.0]}
    ours |= {"ratios": {"conv1d": 1.5, "<script>": 3.0}, "limit": 1.0, "share": 0.5, "bound": "FMA"}
    ours |= {"dtype": "float32", "family": "some", "gflops": 20.0, "gbytes": 3.0, "size": "batch"}
    rows = [
        ours | {"name": "a layer", "function": function, "at": at}
        for function in ("forward", "step")
        for at in (1, 2)
    ]
    machine = {"cpu": "X", "isa": "avx2", "torch": "2", "commit": "c", "allocator": "tuned"}
    ceiling = ceilings.Ceilings(1, {"float32": 100.0}, 90.0, 20.0, 1.0).rounded()
    units = {name: suite.suite_named(name).unit for name in suite.SUITES}
    path = tmp_path_factory.mktemp("results") / "some.json"
    run = {"machine": machine, "ceilings": [ceiling], "rows": rows}
    results.write_json(path, {name: run | {"unit": unit} for name, unit in units.items()})
    return path


def test_the_page_needs_nothing_but_itself(some_results: Path) -> None:
    html, folder = report.write_report(some_results)
    text = html.read_text()
    assert not re.search(r'(src|href)="(?!#)', text)
    assert "<script" not in text
    assert "prefers-color-scheme: dark" in text
    for name in suite.SUITES:
        assert f'<section id="{name}">' in text
        assert html_escape(suite.suite_named(name).question) in text
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    referred = re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', text)
    assert {one or other for one, other in referred} <= set(ids)
    drawn = {path.name for path in folder.iterdir()}
    names = {"roofline", "layers-some", "cost-forward", "cost-step", "lm", "memory", "overhead"}
    assert {f"{name}.{kind}" for name in names for kind in ("png", "svg")} <= drawn
    assert "currentColor" in (folder / "roofline.svg").read_text()


def test_tables_are_written_between_their_marks(some_results: Path, tmp_path: Path) -> None:
    begin = f"<!-- benchmarks: {some_results} "
    document = tmp_path / "README.md"
    document.write_text(
        f"before\n{begin}lm -->\nold\n<!-- end -->\nafter\n{begin}plot lm -->\n<!-- end -->"
    )
    drawn = []
    text = report.updated(document, lambda path, drawing: drawn.append(path.name))
    assert text.startswith(f"before\n{begin}lm -->\n| ")
    assert "| a layer | forward | 2 | 1.50x | 3.00x |" in text
    assert "old" not in text
    assert "docs/plots/some-lm.svg)" in text
    assert drawn == ["some-lm.svg"]
    document.write_text(text)
    assert report.updated(document) == text
    document.write_text(f"{begin}nothing -->\n<!-- end -->")
    with pytest.raises(SystemExit, match="no table 'nothing': there are where, summary"):
        report.updated(document)
    begin = "<!-- benchmarks: no-such-file.json "
    for what in (*report.TABLES, "plot lm"):
        document.write_text(f"{begin}{what} -->\n<!-- end -->")
        assert report.updated(document) == f"{begin}{what} -->\n*Not measured yet.*\n<!-- end -->"


@pytest.mark.parametrize("document", report.DOCUMENTS, ids=lambda path: path.name)
def test_documents_say_what_was_measured(document: Path) -> None:
    """Otherwise: make bench-report."""
    text = document.read_text()
    assert report.updated(document) == text
    images = re.findall(r"\]\((\S+\.svg)\)", text)
    assert images
    assert all((document.parent / image).is_file() for image in images)
