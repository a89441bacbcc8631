"""Builds the native half of convlm_kernels; everything else about the package is in pyproject.toml.

Two shared objects, neither linked to libtorch_python:

- ``libconvlm_ops.so``: the operators, on torch's stable ABI. One binary serves every torch from
  2.10 on and every Python version.
- ``_host.<abi tag>.so``: a small pybind11 module for what takes no tensor.

Torch is read (its headers and libtorch.so), never imported, and is not a build requirement: the one
of the environment that is being installed into is found, also from inside an isolated build.

Environment:
    CONVLM_CUDA        auto (default): with CUDA where there is a toolkit and torch is a CUDA build;
                       1: with CUDA, which a CPU build of torch allows too; 0: without.
    CONVLM_CUDA_ARCHS  default "8.0;9.0a;9.0+PTX"; an entry with +PTX gives PTX alone.
    CUDA_HOME          the CUDA toolkit; default: the one behind nvcc on PATH, or /usr/local/cuda.
    CONVLM_TORCH_DIR   the directory of the torch package, where it is not found by itself.
    CONVLM_PORTABLE    1: only the CPU code that runs on any processor, to compile a quarter of it.
    CONVLM_SANITIZE    passed to -fsanitize=, for example "address,undefined".
    CXX, MAX_JOBS      the C++ compiler; how many compilations run at once.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import site
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"

OLDEST_TORCH = (2, 10)
TORCH_TARGET_VERSION = "0x020a000000000000"
OPS_LIBRARY = "libconvlm_ops.so"


class Torch(NamedTuple):
    path: Path
    version: str
    cuda: bool


class Toolkit(NamedTuple):
    nvcc: Path
    include: Path
    runtime: Path


def fail(message: str) -> NoReturn:
    """Ends the build with one line: a SystemExit passes through pip and setuptools untouched."""
    raise SystemExit(f"convlm_kernels: error: {message}")


def say(message: str) -> None:
    print(f"convlm_kernels: {message}", file=sys.stderr)


# --- What the build needs and where it is ---------------------------------------------------------


def site_directories() -> Iterator[Path]:
    """Where the torch of the environment being installed into may be, the likeliest first.

    An isolated build hides that environment in one of two ways. Older pips run the environment's
    own interpreter with its site-packages off ``sys.path``: sysconfig still names them. Newer pips
    run the interpreter of a temporary venv, but through a script of their own, ``sys.argv[0]``,
    which lies in the site-packages that pip itself is in.
    """
    paths = sysconfig.get_paths()
    yield Path(paths["platlib"])
    yield Path(paths["purelib"])
    yield from (p for p in Path(sys.argv[0]).absolute().parents if p.name.endswith("-packages"))
    if "VIRTUAL_ENV" in os.environ:
        library = f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
        yield Path(os.environ["VIRTUAL_ENV"], library)
    yield from map(Path, site.getsitepackages([sys.prefix, sys.base_prefix]))
    yield Path(site.getusersitepackages())


def torch_directory() -> Path:
    if explicit := os.environ.get("CONVLM_TORCH_DIR"):
        return Path(explicit).resolve()
    spec = importlib.util.find_spec("torch")
    importable = list(spec.submodule_search_locations or []) if spec else []
    for directory in [*map(Path, importable), *(d / "torch" for d in site_directories())]:
        if (directory / "version.py").is_file():
            return directory
    fail(
        f"torch was not found (Python {sys.version_info.major}.{sys.version_info.minor}, "
        f"{sys.executable}). Install it first: pip install 'torch>=2.10'. If it is installed, "
        "use pip install --no-build-isolation, or set CONVLM_TORCH_DIR to its package directory."
    )


def find_torch() -> Torch:
    path = torch_directory()
    version_file = path / "version.py"
    text = version_file.read_text() if version_file.is_file() else ""
    found = re.search(r"^__version__\s*=\s*['\"]((\d+)\.(\d+)[^'\"]*)['\"]", text, re.MULTILINE)
    if found is None:
        fail(f"{path} is not a torch package: {version_file} gives no version.")
    if (int(found[2]), int(found[3])) < OLDEST_TORCH:
        fail(
            f"torch {found[1]} at {path} is too old: 2.10 or later is needed. "
            "Upgrade it: pip install --upgrade 'torch>=2.10'."
        )
    header = path / "include/torch/csrc/stable/library.h"
    if not header.is_file():
        fail(
            f"torch {found[1]} at {path} comes without its C++ headers ({header} is missing). "
            "Reinstall it from its own wheel: pip install --force-reinstall torch."
        )
    return Torch(path, found[1], cuda=(path / "lib/libtorch_cuda.so").exists())


def find_compiler() -> list[str]:
    if explicit := os.environ.get("CXX"):
        command = shlex.split(explicit)
        if not command or shutil.which(command[0]) is None:
            fail(f"CXX is {explicit!r}, which is not a program on PATH. Unset it or correct it.")
        return command
    for name in ("g++", "c++", "clang++"):
        if shutil.which(name):
            return [name]
    fail(
        "no C++ compiler was found (tried g++, c++, clang++). Install g++, "
        "or set CXX to a compiler for C++17."
    )


def find_ninja() -> str:
    try:
        import ninja
    except ImportError:
        program = shutil.which("ninja")
        return program or fail("ninja was not found. Install it: pip install ninja.")
    # Before one on PATH: two versions that take turns do not read each other's log, and start over.
    return str(Path(ninja.BIN_DIR) / "ninja")


def python_includes() -> list[Path]:
    python = Path(sysconfig.get_paths()["include"])
    if not (python / "Python.h").is_file():
        fail(
            f"Python's C headers are missing ({python / 'Python.h'}). Install them: "
            "the package is called python3-dev on Debian and Ubuntu, python3-devel on Fedora."
        )
    try:
        import pybind11
    except ImportError:
        fail("pybind11 was not found. Install it: pip install pybind11.")
    return [python, Path(pybind11.get_include())]


def toolkit_home(nvcc: str) -> Path | None:
    """Where the toolkit of an nvcc is. It may be a wrapper script far from it, so nvcc is asked."""
    command = [nvcc, "--dryrun", "-c", "-x", "cu", os.devnull]
    try:
        dryrun = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"^#\$ TOP=(.+)$", dryrun.stderr, re.MULTILINE)
    return Path(found[1].strip()).resolve() if found else None


def toolkit_at(home: Path) -> Toolkit | None:
    """The toolkit in a folder, where it is whole: nvcc, the headers and the static runtime."""
    nvcc = home / "bin/nvcc"
    headers = [
        h for d in ("include", "targets/*/include") for h in home.glob(f"{d}/cuda_runtime.h")
    ]
    runtimes = [
        r for d in ("lib64", "lib", "targets/*/lib") for r in home.glob(f"{d}/libcudart_static.a")
    ]
    if not (nvcc.is_file() and headers and runtimes):
        return None
    return Toolkit(nvcc, headers[0].parent, runtimes[0])


def find_toolkit() -> Toolkit | None:
    explicit = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if explicit:
        return toolkit_at(Path(explicit))
    nvcc = shutil.which("nvcc")
    behind_nvcc = toolkit_home(nvcc) if nvcc else None
    return (behind_nvcc and toolkit_at(behind_nvcc)) or toolkit_at(Path("/usr/local/cuda"))


def find_cuda(torch: Torch) -> Toolkit | None:
    """What to build the CUDA code with, or None where it is not wanted, or there is none."""
    wanted = os.environ.get("CONVLM_CUDA") or "auto"
    if wanted not in ("auto", "0", "1"):
        fail(f"CONVLM_CUDA is {wanted!r}; it must be auto, 0 or 1.")
    if wanted == "0" or (wanted == "auto" and not torch.cuda):
        return None
    toolkit = find_toolkit()
    if toolkit is None and wanted == "1":
        fail(
            "CONVLM_CUDA=1, but no CUDA toolkit was found (nvcc with cuda_runtime.h and "
            "libcudart_static.a beside it). Install one and put its nvcc on PATH or set CUDA_HOME "
            "to it, or set CONVLM_CUDA=0."
        )
    if toolkit is None:
        say("torch is a CUDA build, but no CUDA toolkit was found: building for the CPU only")
        return None
    if not any(CSRC.glob("cuda/*.cu")):
        say("there is no CUDA source in csrc/cuda: building for the CPU only")
        return None
    return toolkit


def cuda_archs() -> str:
    return os.environ.get("CONVLM_CUDA_ARCHS") or "8.0;9.0a;9.0+PTX"


def gencode_flags(archs: str) -> list[str]:
    """nvcc's flags for a list such as "8.0;9.0a;9.0+PTX" (split at semicolons, commas, spaces)."""
    flags = []
    for arch in re.split(r"[;,\s]+", archs.strip("; ,\t")):
        found = re.fullmatch(r"(\d+)\.(\d[af]?)(\+PTX)?", arch)
        if found is None:
            fail(
                f"CONVLM_CUDA_ARCHS has the entry {arch!r}; an entry is a compute capability "
                "such as 8.0 or 9.0a, or one for PTX such as 9.0+PTX."
            )
        number = found[1] + found[2]
        kind = "compute" if found[3] else "sm"
        flags.append(f"-gencode=arch=compute_{number},code={kind}_{number}")
    return flags


# --- The build file -------------------------------------------------------------------------------

# nvcc's messages are kept: tools/cuda_resources.py reads what the assembler says of each kernel.
NINJA_RULES = """\
rule cxx
  command = $cxx -MMD -MF $out.d $flags -c $in -o $out
  depfile = $out.d
  deps = gcc
  description = CXX $out
rule nvcc
  command = $nvcc -MMD -MF $out.d $flags -c $in -o $out 2>$out.log; status=$$?; $
    sed '/^ptxas info/d; /bytes stack frame/d' $out.log; exit $$status
  depfile = $out.d
  deps = gcc
  description = NVCC $out
rule link
  command = $cxx -shared -o $out $in $flags
  description = LINK $out
"""


class NinjaFile:
    """The text of a build.ninja."""

    def __init__(self, cxx: Sequence[str], nvcc: Sequence[str]) -> None:
        self.text = f"cxx = {self.words(cxx)}\nnvcc = {self.words(nvcc)}\n{NINJA_RULES}"

    @staticmethod
    def words(arguments: Sequence[str]) -> str:
        return shlex.join(arguments).replace("$", "$$")

    @staticmethod
    def path(path: Path | str) -> str:
        return re.sub(r"([$: ])", r"$\1", str(path))

    def build(
        self, rule: str, output: str, inputs: Sequence[Path | str], flags: Sequence[str]
    ) -> str:
        sources = " ".join(map(self.path, inputs))
        self.text += f"build {self.path(output)}: {rule} {sources}\n  flags = {self.words(flags)}\n"
        return output

    def compile(self, source: Path, flags: Sequence[str]) -> str:
        rule = "nvcc" if source.suffix == ".cu" else "cxx"
        return self.build(rule, f"{source.relative_to(CSRC)}.o", [source], flags)


def sanitizer_flags() -> list[str]:
    wanted = os.environ.get("CONVLM_SANITIZE")
    # -O1, as the sanitizers' manuals have it: more takes minutes to compile. -O0 takes seconds,
    # and only with portable code do the tests remain as quick.
    level = "-O0" if portable() else "-O1"
    return [f"-fsanitize={wanted}", "-fno-omit-frame-pointer", "-g1", level] if wanted else []


def portable() -> bool:
    wanted = os.environ.get("CONVLM_PORTABLE") or "0"
    if wanted not in ("0", "1"):
        fail(f"CONVLM_PORTABLE is {wanted!r}; it must be 0 or 1.")
    return wanted == "1"


def build_file(torch: Torch, toolkit: Toolkit | None, host_library: str) -> str:
    """The build.ninja for both libraries, which land beside it."""
    ninja = NinjaFile(find_compiler(), [str(toolkit.nvcc)] if toolkit else [])
    cxx = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", f"-I{CSRC}"]
    # What the checks quote as their place is the same from wherever the sources were built.
    cxx += [f"-ffile-prefix-map={CSRC}=csrc", f"-ffile-prefix-map={torch.path}=torch"]
    cxx += sanitizer_flags()
    add_operators(ninja, cxx, torch, toolkit)
    facts = {"TORCH_VERSION": torch.version, "CUDA_ARCHS": cuda_archs() if toolkit else ""}
    add_host(ninja, cxx, facts, host_library)
    return ninja.text


def add_operators(ninja: NinjaFile, cxx: list[str], torch: Torch, toolkit: Toolkit | None) -> None:
    flags = [*cxx, f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}"]
    flags += [f"-isystem{torch.path / 'include'}"]
    left_out = {CSRC / "host.cpp"}
    if portable():
        flags += ["-DCONVLM_PORTABLE"]
        left_out.update(CSRC.glob("cpu/avx*.cpp"))
    sources = [*sorted(CSRC.glob("*.cpp")), *sorted(CSRC.glob("cpu/*.cpp"))]
    objects = [ninja.compile(source, flags) for source in sources if source not in left_out]
    # CUDA's symbols in torch are reached through libtorch.so alone; it defines nothing itself, so
    # the linker would leave it out.
    link = [f"-Wl,-soname,{OPS_LIBRARY}", f"-L{torch.path / 'lib'}"]
    link += ["-Wl,--no-as-needed", "-ltorch", "-ltorch_cpu", *sanitizer_flags()]
    if not sanitizer_flags():  # whose symbols may be the executable's to provide
        link += ["-Wl,-z,defs"]
    if toolkit:
        objects += cuda_objects(ninja, flags, toolkit)
        link += [str(toolkit.runtime), "-lrt", "-ldl", "-lpthread"]
    ninja.build("link", OPS_LIBRARY, objects, link)


def cuda_objects(ninja: NinjaFile, flags: list[str], toolkit: Toolkit) -> list[str]:
    registration = [*flags, "-DUSE_CUDA", f"-isystem{toolkit.include}"]
    kernels = ["-std=c++17", "-O3", "-lineinfo", "-Xptxas=-v", "-Xcompiler"]
    kernels += ["-fPIC,-fvisibility=hidden"]
    kernels += [f"-I{CSRC}", *gencode_flags(cuda_archs())]
    objects = [ninja.compile(source, registration) for source in sorted(CSRC.glob("cuda/*.cpp"))]
    return objects + [ninja.compile(source, kernels) for source in sorted(CSRC.glob("cuda/*.cu"))]


def add_host(ninja: NinjaFile, cxx: list[str], facts: dict[str, str], library: str) -> None:
    flags = [*cxx, *(f"-isystem{path}" for path in python_includes())]
    flags += [f'-DCONVLM_{name}="{value}"' for name, value in facts.items()]
    inputs = [ninja.compile(CSRC / "host.cpp", flags), OPS_LIBRARY]
    # What the operators' library needs in turn, libtorch.so, is not looked for.
    link = ["-Wl,-rpath,$ORIGIN", "-Wl,--allow-shlib-undefined", *sanitizer_flags()]
    ninja.build("link", library, inputs, link)


# --- setuptools -----------------------------------------------------------------------------------


class BuildExt(build_ext):
    """Writes a ninja file into build/ninja-<platform> and runs it; what is up to date stays."""

    def get_ext_filename(self, fullname: str) -> str:
        filename = super().get_ext_filename(fullname)
        if fullname.endswith(OPS_LIBRARY.removesuffix(".so")):
            return str(Path(filename).with_name(OPS_LIBRARY))  # no Python in it, so no Python's tag
        return filename

    def build_extensions(self) -> None:
        if sys.platform != "linux":
            fail(f"only Linux is supported so far, and this is {sys.platform}.")
        torch = find_torch()
        toolkit = find_cuda(torch)
        cuda = f"{toolkit.nvcc} for {cuda_archs()}" if toolkit else "no CUDA"
        say(f"building with torch {torch.version} at {torch.path}, {cuda}")

        targets = [Path(self.get_ext_fullpath(extension.name)) for extension in self.extensions]
        directory = ROOT / "build" / f"ninja-{sys.implementation.cache_tag}-{self.plat_name}"
        directory.mkdir(parents=True, exist_ok=True)
        (host_library,) = (target.name for target in targets if target.name != OPS_LIBRARY)
        (directory / "build.ninja").write_text(build_file(torch, toolkit, host_library))

        jobs = ["-j", os.environ["MAX_JOBS"]] if os.environ.get("MAX_JOBS") else []
        if subprocess.run([find_ninja(), *jobs], cwd=directory).returncode != 0:
            fail(f"compilation failed; the compiler's own message is above ({directory}).")
        for target in targets:
            target.parent.mkdir(parents=True, exist_ok=True)
            # Not in place: a process that has the old library loaded would crash.
            target.unlink(missing_ok=True)
            shutil.copy2(directory / target.name, target)


def packages() -> dict[str, str]:
    """Package -> folder. triton_kernels is ours only below convlm_kernels: Triton has one too."""
    folders = {"convlm_kernels": "convlm_kernels", "convlm_kernels.lm": "convlm_kernels/lm"}
    return folders | {"convlm_kernels.triton_kernels": "triton_kernels"}


# Tests import this file for its functions; the build runs it as a script.
if __name__ == "__main__":
    setup(
        packages=list(packages()),
        package_dir=packages(),
        ext_modules=[
            Extension("convlm_kernels.libconvlm_ops", sources=[]),
            Extension("convlm_kernels._host", sources=[]),
        ],
        cmdclass={"build_ext": BuildExt},
    )
