# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Opens regular files only, reads them once, and writes them atomically."""

import contextlib
import errno
import os
import shutil
import stat
import time
from pathlib import Path
from typing import Callable, Iterator, Optional, TypeVar, Union

from common import deadlines

Read = TypeVar("Read")
PathLike = Union[str, "os.PathLike[str]"]
TRANSIENT_ERRORS = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN)  # of network storage
READ_ATTEMPTS = 3


class NotRegular(OSError):
    """The path is a folder, pipe, device or socket."""

    def __init__(self) -> None:
        super().__init__(errno.EINVAL, "it is not a regular file")


class TooLarge(OSError):
    """The file is larger than its limit."""

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(errno.EFBIG, f"it has {size} bytes, more than {limit}")
        self.size = size


def user_cache() -> Optional[Path]:
    """This program's folder in the user's cache, as in the XDG specification; None for a user without a home."""
    candidates = (os.environ.get("XDG_CACHE_HOME", ""), os.path.expanduser("~/.cache"))
    return next((Path(base, "swin_ipu") for base in candidates if os.path.isabs(base)), None)


def open_regular(path: PathLike, flags: int = os.O_RDONLY) -> int:
    """Opens the regular file at `path` without blocking, and returns its descriptor.

    Args:
        path: an untrusted path.
        flags: as for os.open.

    Raises:
        NotRegular: for a folder, a pipe (which would block), a device or a socket.
        OSError: if it cannot be opened.
    """
    try:
        descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno in (errno.ENXIO, errno.EISDIR):  # a pipe without reader or a socket; a folder
            raise NotRegular() from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NotRegular()
    return descriptor


def read_regular(path: PathLike, limit: int) -> bytearray:
    """The contents of the regular file at `path`, read as a whole.

    Transient errors of network storage are retried a few times.

    Raises:
        NotRegular, TooLarge: before anything is read.
        OSError: if it cannot be read.
    """
    return retried(lambda: _read_once(path, limit))


def retried(read: Callable[[], Read]) -> Read:
    """Calls `read`, again a few times after transient errors of network storage.

    Raises:
        OSError: another error, or that of the last attempt.
    """
    for attempt in range(READ_ATTEMPTS - 1):
        try:
            return read()
        except OSError as error:
            if error.errno not in TRANSIENT_ERRORS:
                raise
            time.sleep(deadlines.RETRY * 2**attempt)
    return read()


def _read_once(path: PathLike, limit: int) -> bytearray:
    descriptor = open_regular(path)
    try:
        size = os.fstat(descriptor).st_size
        if size > limit:
            raise TooLarge(size, limit)
        contents = bytearray(size)
        filled, view = 0, memoryview(contents)
        while filled < size:
            count = os.readv(descriptor, [view[filled:]])
            if not count:
                raise OSError(errno.EIO, f"it ended after {filled} of {size} bytes while it was read")
            filled += count
        return contents
    finally:
        os.close(descriptor)


def write_atomically(path: Path, contents: Union[str, bytes]) -> None:
    """Writes bytes, or text as UTF-8, to the file at `path`; readers see either the old contents or the new."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(open_regular(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "wb") as stream:
            stream.write(contents.encode("utf-8") if isinstance(contents, str) else contents)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except OSError:
        if temporary.is_file():
            temporary.unlink()
        raise


@contextlib.contextmanager
def new_path(path: Path) -> Iterator[Path]:
    """A temporary path for a new file or folder, renamed to `path` if the context ends without an error.

    Raises:
        FileExistsError: if `path` exists, which is left unchanged.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, "it exists already")
        os.rename(temporary, path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        elif temporary.exists():
            temporary.unlink()
