# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""How the C library keeps the memory of tensors that were freed."""

import contextlib
import ctypes
from typing import Iterator

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # parameters of mallopt in malloc.h
_SEPARATE_BYTES = 2**18
_LARGEST_MMAP_BYTES = 2**25  # that glibc takes; it rises to it itself, when large tensors are freed


def keep_freed() -> None:
    """Has the C library keep the memory that a call frees for the next one, where it is glibc.

    It would return most of it to the system, which clears every page again that the next call touches. Blocks of more
    than 32 MiB, the most that glibc takes, are still returned.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(_MMAP_THRESHOLD, _LARGEST_MMAP_BYTES)
        library.mallopt(_TRIM_THRESHOLD, -1)


@contextlib.contextmanager
def returned_at_once() -> Iterator[None]:
    """A context manager in which the memory of each tensor returns to the system when the tensor is freed.

    Otherwise what stays, such as the nodes of autograd's graph, comes to lie between tensors, where their memory then
    is too little for the next, so that a compilation takes several times the memory of the tensors alive. Afterwards
    what a call frees is kept, see `keep_freed`. Has an effect with glibc only.
    """
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt") or not hasattr(library, "malloc_trim"):
        yield
        return
    library.malloc_trim(0)
    library.mallopt(_MMAP_THRESHOLD, _SEPARATE_BYTES)
    try:
        yield
    finally:
        keep_freed()
