"""Triton kernels of the convolution's three functions, of look-ups and of stacks.

Device code stands in ``*_kernels.py``, the launcher that prepares its arguments in the file of the
same name without the suffix. Everything here knows torch, Triton and the geometry, and nothing of
operators, autograd or layers. ``docs/triton.md`` explains the kernels one by one.
"""
