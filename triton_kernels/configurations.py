"""Block sizes, warps and pipeline stages of the kernels: a small table, and what it is asked.

The key is what makes one problem unlike another for a program: how many rows and channels a group
has, and what the tensor cores do with the dtype. Never the length or the batch, so that results
do not change with them and nothing is tuned again for the next sequence.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class Configuration(NamedTuple):
    """``rows`` by ``columns`` is the tile of a program, ``reduced`` what it adds up at a time."""

    rows: int
    columns: int
    reduced: int
    warps: int
    stages: int


# By kernel, kind of arithmetic, and the largest number of rows; the last serves all above, too.
# Not measured on a GPU yet: chosen so that nothing spills, tiles fit into shared memory, and 16-bit
# tiles of 64 rows and more reach wgmma (docs/triton.md has what the compiler says of each).
TABLE: dict[str, dict[str, dict[int, Configuration]]] = {
    "correlation": {
        "half": {
            16: Configuration(16, 128, 32, 4, 3),
            32: Configuration(32, 128, 32, 4, 3),
            64: Configuration(64, 128, 32, 8, 3),
            128: Configuration(128, 128, 32, 8, 3),
        },
        "tf32": {
            16: Configuration(16, 128, 32, 4, 3),
            32: Configuration(32, 128, 32, 4, 3),
            64: Configuration(64, 128, 32, 8, 3),
            128: Configuration(128, 128, 32, 8, 3),
        },
        "ieee": {
            16: Configuration(16, 128, 16, 4, 2),
            32: Configuration(32, 128, 16, 4, 2),
            64: Configuration(64, 64, 16, 4, 2),
        },
        "float64": {
            16: Configuration(16, 64, 16, 4, 2),
            32: Configuration(32, 64, 16, 4, 2),
        },
    },
    # Of channels-last tensors, by tensor descriptor: no registers for addresses, so larger blocks.
    "described_correlation": {
        "half": {
            64: Configuration(64, 128, 64, 4, 4),
            128: Configuration(128, 128, 64, 8, 4),
        },
        "tf32": {
            64: Configuration(64, 128, 32, 4, 4),
            128: Configuration(128, 128, 32, 8, 4),
        },
    },
    "weight_gradient": {
        "half": {
            16: Configuration(16, 64, 64, 4, 3),
            32: Configuration(32, 64, 64, 4, 3),
            64: Configuration(64, 64, 32, 4, 4),
            128: Configuration(128, 128, 32, 8, 4),
        },
        "tf32": {
            16: Configuration(16, 64, 32, 4, 3),
            32: Configuration(32, 64, 32, 4, 3),
            64: Configuration(64, 64, 32, 4, 3),
            128: Configuration(128, 64, 32, 8, 3),
        },
        "ieee": {
            16: Configuration(16, 32, 32, 4, 2),
            32: Configuration(32, 64, 32, 4, 2),
        },
        "float64": {
            16: Configuration(16, 32, 16, 4, 2),
            32: Configuration(32, 32, 16, 4, 2),
        },
    },
}


class Key(NamedTuple):
    """What a configuration is chosen by.

    ``kernel``: one of TABLE. ``kind`` of products: "half", "tf32", "ieee"
    (float32) or "float64". ``rows``: the largest number of rows that the configuration serves.
    """

    kernel: str
    kind: str
    rows: int

    @property
    def configuration(self) -> Configuration:
        return TABLE[self.kernel][self.kind][self.rows]


def kind_of(dtype: torch.dtype, fp32_precision: str) -> str:
    kinds = {torch.float32: fp32_precision, torch.float64: "float64"}
    return kinds.get(dtype, "half")


def key(kernel: str, kind: str, rows: int) -> Key:
    buckets = TABLE[kernel][kind]
    return Key(kernel, kind, next((most for most in buckets if rows <= most), max(buckets)))
