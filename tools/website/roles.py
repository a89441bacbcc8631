"""Cross-references in docstrings, :class:`Conv1d`, as those of the site."""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:class|func|meth|mod|data):`([\w.]+)`")


class Roles(griffe.Extension):
    """Resolves the names of roles as Python would where the docstring stands."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = _ROLE.sub(lambda role: _link(obj, role[1]), obj.docstring.value)


def _link(obj: griffe.Object, name: str) -> str:
    if "." not in name:
        try:
            return f"[`{name}`][{obj.resolve(name)}]"
        except griffe.NameResolutionError:
            return f"`{name}`"
    return f"[`{name.rpartition('.')[2]}`][{name}]"
