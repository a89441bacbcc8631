"""Names of kernels as their sources have them, from the names that linkers and ptxas print."""

from __future__ import annotations

import ctypes
import re

DTYPES = {
    "float": "float32",
    "double": "float64",
    "bfloat16": "bfloat16",
    "float16": "float16",
}


def demangle(symbol: str) -> str:
    """By the C++ library itself, which is wherever its compiler is; no other program is needed."""
    function = ctypes.CDLL("libstdc++.so.6").__cxa_demangle
    function.restype = ctypes.c_void_p
    status = ctypes.c_int()
    text = function(symbol.encode(), None, None, ctypes.byref(status))
    if status.value != 0:
        return symbol
    name = ctypes.cast(text, ctypes.c_char_p).value or b""
    free = ctypes.CDLL(None).free
    free.argtypes = [ctypes.c_void_p]
    free(text)
    return name.decode()


def readable(demangled: str) -> str:
    """Without our namespaces, the return type and the parameters: ``kernel<float, 128>``."""
    name = re.sub(r"\(anonymous namespace\)::|convlm::|cuda::", "", demangled)
    depth = 0
    for at, character in enumerate(name):
        depth += (character == "<") - (character == ">")
        if character == "(" and depth == 0:
            name = name[:at]
            break
    return name.removeprefix("void ")


def without_dtype(name: str) -> tuple[str, str]:
    """``kernel<float, 128>`` as ``kernel<128>`` and ``float32``; "" where it has no dtype."""
    kernel, _, arguments = name.partition("<")
    first, _, others = arguments.removesuffix(">").partition(", ")
    if first not in DTYPES:
        return name, ""
    return (f"{kernel}<{others}>" if others else kernel), DTYPES[first]
