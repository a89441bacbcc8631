"""The build: what setup.py finds and how it fails, what is in the binaries, how they load."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType

import pytest
import torch

import convlm_kernels
from convlm_kernels import _library, ops

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = Path(convlm_kernels.__file__).parent
SETTINGS = [
    "CONVLM_PORTABLE",
    "CONVLM_CUDA",
    "CONVLM_CUDA_ARCHS",
    "CONVLM_SANITIZE",
    "CONVLM_TORCH_DIR",
    "CUDA_HOME",
    "CUDA_PATH",
    "CXX",
]


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """setup.py as a module, with none of its settings in the environment."""
    pytest.importorskip("setuptools", reason="the build needs it")
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    spec = importlib.util.spec_from_file_location("convlm_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_torch(path: Path, version: str = "2.12.1+cpu", header: bool = True) -> Path:
    """A folder that looks like an installed torch."""
    (path / "lib").mkdir(parents=True)
    (path / "version.py").write_text(f"debug = False\n__version__ = '{version}'\n")
    if header:
        stable = path / "include/torch/csrc/stable"
        stable.mkdir(parents=True)
        (stable / "library.h").touch()
    return path


def make_program(path: Path, script: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def make_toolkit(home: Path) -> Path:
    """A folder that looks like a CUDA toolkit with conda's layout of headers and libraries."""
    make_program(home / "bin/nvcc", "exit 1")
    for file in ("include/cuda_runtime.h", "lib/libcudart_static.a"):
        path = home / "targets/x86_64-linux" / file
        path.parent.mkdir(parents=True)
        path.touch()
    return home


# --- What was built -------------------------------------------------------------------------------


def test_build_info() -> None:
    info = convlm_kernels.build_info()
    assert {name: type(value) for name, value in info.items()} == {
        "torch": str,
        "cuda": bool,
        "cuda_archs": str,
        "compiler": str,
    }
    assert info["cuda"] == bool(info["cuda_archs"])


def test_cpu_isas_are_the_best_first_and_the_portable_one_last() -> None:
    isas = _library.host.cpu_isas()
    assert isas == [
        isa for isa in ("amx", "avx512_bf16", "avx512", "avx2", "generic") if isa in isas
    ]
    assert isas[-1] == "generic"


@pytest.mark.parametrize("binary", sorted(p.name for p in PACKAGE.glob("*.so")))
def test_the_binaries_do_not_depend_on_the_python_side_of_torch(binary: str) -> None:
    if shutil.which("readelf") is None:
        pytest.skip("readelf is not installed")
    command = ["readelf", "--dynamic", str(PACKAGE / binary)]
    dynamic = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    needed = [line for line in dynamic.splitlines() if "(NEEDED)" in line]
    assert not [line for line in needed if "libtorch_python" in line or "libpython" in line]
    assert any("libtorch.so" in line or "libconvlm_ops.so" in line for line in needed)


def test_host_output_length_refuses_a_stride_of_zero() -> None:
    with pytest.raises(ValueError, match="stride must be at least 1, but it is 0"):
        _library.host.output_length(8, 3, 0, 1, 0, 0)


# --- How it loads ---------------------------------------------------------------------------------


def test_a_missing_library_says_how_to_build_it(tmp_path: Path) -> None:
    with pytest.raises(ImportError, match=r"missing from .*checkout or the wheel.* PATH$"):
        _library.load_operators(tmp_path)


def test_a_library_that_is_none_says_so(tmp_path: Path) -> None:
    (tmp_path / "libconvlm_ops.so").write_bytes(b"not a library, " * 100)
    with pytest.raises(ImportError, match=r"another platform, or is damaged .*pip install"):
        _library.load_operators(tmp_path)


def test_a_source_tree_is_told_apart_from_an_installation(tmp_path: Path) -> None:
    (tmp_path / "setup.py").touch()
    with pytest.raises(ImportError, match=f"source tree.*--editable {tmp_path}"):
        _library.load_operators(tmp_path / "convlm_kernels")


def test_compiled_graphs_of_another_build_are_kept_apart(tmp_path: Path) -> None:
    library = tmp_path / "libconvlm_ops.so"
    tags = []
    for build in ("one", "another"):
        library.write_text(build)
        with torch.compiler.config.patch(cache_key_tag="the user's own"):
            _library.mark_compiled_graphs(library)
            tags.append(torch.compiler.config.cache_key_tag)
    assert tags[0] != tags[1]
    assert all(tag.startswith("the user's own") for tag in tags)


def test_the_cache_of_compiled_graphs_knows_this_build() -> None:
    size = (Path(_library.__file__).parent / "libconvlm_ops.so").stat().st_size
    assert str(size) in torch.compiler.config.cache_key_tag


@pytest.mark.parametrize("version", ["2.9.1+cu128", "1.13.0"])
def test_loading_refuses_an_old_torch(version: str) -> None:
    with pytest.raises(ImportError, match=r"2\.10 or later"):
        _library.check_torch(version)


@pytest.mark.parametrize("version", ["2.10.0", "2.14.0a0+git1234", "3.0"])
def test_loading_accepts_a_newer_torch(version: str) -> None:
    _library.check_torch(version)


# --- What setup.py finds --------------------------------------------------------------------------


def test_torch_from_the_environment_variable(
    build: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_torch(tmp_path / "torch")
    monkeypatch.setenv("CONVLM_TORCH_DIR", str(path))
    assert build.find_torch() == build.Torch(path, "2.12.1+cpu", cuda=False)
    (path / "lib/libtorch_cuda.so").touch()
    assert build.find_torch().cuda


@pytest.mark.parametrize("how", ["interpreter", "frontend", "activated"])
def test_torch_from_inside_an_isolated_build(
    build: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    venv = tmp_path / "venv"
    packages = venv / f"lib/python3.{sys.version_info.minor}/site-packages"
    path = make_torch(packages / "torch")
    nothing = str(tmp_path / "nothing")
    hook = packages / "pip/_vendor/pyproject_hooks/_in_process/_in_process.py"
    paths = str(packages) if how == "interpreter" else nothing
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"platlib": paths, "purelib": paths})
    monkeypatch.setattr("sys.argv", [str(hook) if how == "frontend" else nothing])
    monkeypatch.setenv("VIRTUAL_ENV", str(venv) if how == "activated" else nothing)
    assert build.find_torch().path == path


def test_no_torch_is_an_error(build: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(build, "site_directories", lambda: iter(()))
    with pytest.raises(SystemExit, match=r"torch was not found.*pip install 'torch>=2\.10'"):
        build.find_torch()


@pytest.mark.parametrize(
    ("version", "header", "message"),
    [
        ("2.9.1+cu128", True, r"torch 2\.9\.1\+cu128 .* is too old.*pip install --upgrade"),
        ("1.13", True, "is too old"),
        ("2.10.0", False, "without its C.. headers"),
        ("unknown", True, "is not a torch package"),
    ],
)
def test_an_unusable_torch_is_an_error(
    build: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    version: str,
    header: bool,
    message: str,
) -> None:
    path = make_torch(tmp_path / "torch", version, header)
    monkeypatch.setenv("CONVLM_TORCH_DIR", str(path))
    with pytest.raises(SystemExit, match=message):
        build.find_torch()


def test_the_compiler(build: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match=r"no C\+\+ compiler.*Install g\+\+"):
        build.find_compiler()
    make_program(tmp_path / "clang++", "exit 0")
    assert build.find_compiler() == ["clang++"]
    make_program(tmp_path / "ccache", "exit 0")
    monkeypatch.setenv("CXX", "ccache g++-13")
    assert build.find_compiler() == ["ccache", "g++-13"]
    monkeypatch.setenv("CXX", "icpx")
    with pytest.raises(SystemExit, match="CXX is 'icpx'"):
        build.find_compiler()


def test_missing_python_headers_are_an_error(
    build: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"include": str(tmp_path)})
    with pytest.raises(SystemExit, match=r"Python\.h.*python3-dev"):
        build.python_includes()


# --- CUDA -----------------------------------------------------------------------------------------


def torch_with(build: ModuleType, cuda: bool) -> object:
    return build.Torch(Path("torch"), "2.12.1", cuda)


@pytest.fixture
def cuda_source(build: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A source tree that has CUDA code."""
    source = tmp_path / "csrc/cuda/forward.cu"
    source.parent.mkdir(parents=True)
    source.touch()
    monkeypatch.setattr(build, "CSRC", tmp_path / "csrc")


@pytest.mark.usefixtures("cuda_source")
@pytest.mark.parametrize("wanted", ["auto", "0", "1", None])
@pytest.mark.parametrize("torch_has_cuda", [True, False])
def test_cuda_is_built_where_it_is_wanted_and_possible(
    build: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    wanted: str | None,
    torch_has_cuda: bool,
) -> None:
    monkeypatch.setenv("CUDA_HOME", str(make_toolkit(tmp_path / "cuda")))
    if wanted:
        monkeypatch.setenv("CONVLM_CUDA", wanted)
    found = build.find_cuda(torch_with(build, torch_has_cuda))
    if wanted == "1" or (wanted != "0" and torch_has_cuda):
        assert found == build.toolkit_at(tmp_path / "cuda") is not None
    else:
        assert found is None


def test_without_cuda_sources_there_is_no_cuda(
    build: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(build, "CSRC", tmp_path / "csrc")
    monkeypatch.setenv("CUDA_HOME", str(make_toolkit(tmp_path / "cuda")))
    monkeypatch.setenv("CONVLM_CUDA", "1")
    assert build.find_cuda(torch_with(build, True)) is None
    assert "no CUDA source" in capsys.readouterr().err


def test_no_toolkit_is_an_error_only_where_cuda_is_demanded(
    build: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert build.find_cuda(torch_with(build, True)) is None
    monkeypatch.setenv("CONVLM_CUDA", "1")
    with pytest.raises(SystemExit, match=r"CONVLM_CUDA=1, but no CUDA toolkit.*set CUDA_HOME"):
        build.find_cuda(torch_with(build, False))


def test_a_wrong_value_of_convlm_cuda_is_an_error(
    build: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONVLM_CUDA", "yes")
    with pytest.raises(SystemExit, match="CONVLM_CUDA is 'yes'; it must be auto, 0 or 1"):
        build.find_cuda(torch_with(build, True))


def test_the_toolkit_behind_an_nvcc_that_is_a_wrapper_script(
    build: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = make_toolkit(tmp_path / "cuda-99")
    make_program(tmp_path / "wrappers/nvcc", f"echo '#$ TOP={home}/bin/..' >&2")
    monkeypatch.setenv("PATH", str(tmp_path / "wrappers"))
    target = home / "targets/x86_64-linux"
    assert build.find_toolkit() == (
        home / "bin/nvcc",
        target / "include",
        target / "lib/libcudart_static.a",
    )


def test_gencode_flags(build: ModuleType) -> None:
    assert build.gencode_flags("8.0;9.0a;9.0+PTX") == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90a,code=sm_90a",
        "-gencode=arch=compute_90,code=compute_90",
    ]
    assert build.gencode_flags(" 8.6, 12.0a ; ") == [
        "-gencode=arch=compute_86,code=sm_86",
        "-gencode=arch=compute_120a,code=sm_120a",
    ]


@pytest.mark.parametrize("archs", ["sm_90", "90", "9.0b", "8.0;hopper", "8.0+ptx", ";"])
def test_a_wrong_architecture_is_an_error(build: ModuleType, archs: str) -> None:
    with pytest.raises(SystemExit, match="CONVLM_CUDA_ARCHS has the entry"):
        build.gencode_flags(archs)


# --- The build file -------------------------------------------------------------------------------


@pytest.mark.usefixtures("cuda_source")
def test_the_build_file_has_every_source_once_in_its_library(
    build: ModuleType, tmp_path: Path
) -> None:
    sources = ["library.cpp", "host.cpp", "cpu/forward.cpp", "cuda/operators.cpp"]
    for name in sources:
        path = tmp_path / "csrc" / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    torch = build.Torch(make_torch(tmp_path / "torch"), "2.12.1", cuda=True)
    toolkit = build.toolkit_at(make_toolkit(tmp_path / "cuda"))
    lines = build.build_file(torch, toolkit, "_host.so").splitlines()

    def inputs(output: str) -> list[str]:
        (line,) = (line for line in lines if line.startswith(f"build {output}: "))
        return line.split()[2:]

    kernels = ["library.cpp.o", "cpu/forward.cpp.o", "cuda/operators.cpp.o", "cuda/forward.cu.o"]
    assert inputs("libconvlm_ops.so") == ["link", *kernels]
    assert inputs("_host.so") == ["link", "host.cpp.o", "libconvlm_ops.so"]
    assert inputs("cuda/forward.cu.o") == ["nvcc", str(tmp_path / "csrc/cuda/forward.cu")]
    assert inputs("cuda/operators.cpp.o") == ["cxx", str(tmp_path / "csrc/cuda/operators.cpp")]


def test_portable_code_alone(build: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """To run the sanitizers soon: a quarter of the CPU code, and not optimised."""
    torch = torch_with(build, False)
    assert "avx2.cpp" in build.build_file(torch, None, "_host.so")
    monkeypatch.setenv("CONVLM_PORTABLE", "1")
    monkeypatch.setenv("CONVLM_SANITIZE", "address")
    text = build.build_file(torch, None, "_host.so")
    assert "generic.cpp" in text
    assert "avx" not in text
    assert "-DCONVLM_PORTABLE" in text
    assert "-O0" in text
    monkeypatch.setenv("CONVLM_PORTABLE", "yes")
    with pytest.raises(SystemExit, match="CONVLM_PORTABLE is 'yes'; it must be 0 or 1"):
        build.build_file(torch, None, "_host.so")


def test_a_check_names_its_source_without_the_path_of_this_machine() -> None:
    library = (PACKAGE / "libconvlm_ops.so").read_bytes()
    assert b"csrc/checks.h" in library
    assert f"{ROOT}/csrc/checks.h".encode() not in library


def test_the_build_file_quotes_paths_for_ninja_and_for_the_shell(build: ModuleType) -> None:
    assert build.NinjaFile.path("/a b/c:$d") == "/a$ b/c$:$$d"
    assert build.NinjaFile.words(["-I/a b", "-rpath,$ORIGIN"]) == "'-I/a b' '-rpath,$$ORIGIN'"


def test_the_version_stands_in_one_place() -> None:
    version = importlib.metadata.version("convlm-kernels")
    assert convlm_kernels.__version__ == version


def test_cuda_operators_are_there_where_the_build_has_them() -> None:
    """On a CPU build of torch too: what they need of the other one is looked up when they run."""
    for operator in (ops.forward, ops.grad_input, ops.grad_weight):
        has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key(operator.name(), "CUDA")
        assert has_kernel == convlm_kernels.build_info()["cuda"]


def run_setup(*command: object) -> None:
    run = [sys.executable, "setup.py", "--quiet", *map(str, command)]
    subprocess.run(run, cwd=ROOT, capture_output=True, check=True)


def test_packages_are_where_they_are_imported_from(tmp_path: Path) -> None:
    """triton_kernels/ lies beside convlm_kernels/ in the source, and inside it once installed."""
    run_setup("build_py", "--build-lib", tmp_path)
    names = {path.name for path in (ROOT / "triton_kernels").glob("*.py")}
    assert "correlation_kernels.py" in names
    assert {path.name for path in tmp_path.glob("convlm_kernels/triton_kernels/*")} == names
    spec = importlib.util.find_spec("convlm_kernels.triton_kernels")
    assert spec is not None, "as installed here, in place or not"


SOURCE_FOLDERS = {
    *("benchmarks", "convlm_kernels", "csrc", "docs", "examples", "tests", "tools"),
    "triton_kernels",
}
SOURCE_FILES = {
    *("CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "MANIFEST.in", "Makefile", "README.md"),
    *("mkdocs.yml", "pyproject.toml", "setup.py"),
}
WRITTEN_BY_SETUPTOOLS = {"PKG-INFO", "setup.cfg", "convlm_kernels.egg-info"}


def test_the_sources_are_whole_and_there_is_nothing_else(tmp_path: Path) -> None:
    """What a wheel is built from, and what its tests are run from; no binary, nothing hidden."""
    run_setup("sdist", "--dist-dir", tmp_path)
    (archive,) = tmp_path.iterdir()
    with tarfile.open(archive) as sources:
        names = {m.name.partition("/")[2] for m in sources.getmembers() if m.isfile()}
    tops = {name.partition("/")[0] for name in names}
    assert tops == SOURCE_FOLDERS | SOURCE_FILES | WRITTEN_BY_SETUPTOOLS
    here = (path for folder in SOURCE_FOLDERS for path in (ROOT / folder).rglob("*"))
    ours = {
        str(path.relative_to(ROOT))
        for path in here
        if path.is_file() and path.suffix not in (".so", ".pyc")
    }
    assert {name for name in names if name.partition("/")[0] in SOURCE_FOLDERS} == ours
    assert not [name for name in names if "/." in name]
