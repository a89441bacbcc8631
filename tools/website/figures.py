"""Writes the figures of the documentation into docs/figures, or checks that they are up to date.

python tools/website/figures.py [--check]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import figures_cpu as cpu
import figures_geometry as geometry
import figures_gpu as gpu
import figures_models as models
from drawing import Drawing

FOLDER = Path(__file__).parents[2] / "docs" / "figures"

Figure = Callable[[], Drawing]

FIGURES: tuple[Figure, ...] = (
    geometry.geometry,
    geometry.padding,
    geometry.receptive_field,
    geometry.stride_classes,
    cpu.cpu_steps,
    cpu.loops,
    cpu.register_block,
    cpu.staging,
    cpu.fast_filter,
    gpu.implicit_gemm,
    gpu.shared_window,
    gpu.stages,
    gpu.taps_of_a_tile,
    cpu.pieces,
    models.one_convolution,
    models.look_up,
    models.shared_contexts,
    models.rings,
    models.halo,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--check", action="store_true", help="write nothing, fail where one differs"
    )
    check = parser.parse_args().check
    FOLDER.mkdir(exist_ok=True)
    stale = []
    for figure in FIGURES:
        path = FOLDER / f"{figure.__name__}.svg"
        text = str(figure())
        if not check:
            path.write_text(text, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(path.name)
    if stale:
        sys.exit(f"{', '.join(stale)}: not what tools/website/figures.py draws; run it")


if __name__ == "__main__":
    main()
