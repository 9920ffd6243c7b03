# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Files of torch.save, read as data only: nothing that they contain runs."""

import pickle
import zipfile
from pathlib import Path
from typing import Any, Iterator, Mapping, Optional, Tuple

import torch

from utils import reason


class DamagedFile(Exception):
    """The file is not what torch.save wrote, or not a checkpoint of ours; the message says why."""


def read_archive(path: Path) -> Any:
    """What torch.save wrote into `path`, on the CPU, as data only.

    The archive's checksums are verified first, since torch.load does not: it would take a flipped bit for a weight.
    Compressed members are refused, so that a small file cannot unpack into a large one, and so are formats from before
    PyTorch 1.6, whose weights-only loading could run code until PyTorch 2.6 (CVE-2025-32434).

    Raises:
        DamagedFile: when it cannot be read or its contents are not plain data.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                raise DamagedFile("its members are compressed, as torch.save never writes them")
            broken = archive.testzip()
        if broken is not None:
            raise DamagedFile(f"the checksum of its member {broken} is wrong")
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, zipfile.BadZipFile, pickle.UnpicklingError, RuntimeError, ValueError, KeyError) as error:
        raise DamagedFile(reason(error).split("\n")[0] or type(error).__name__) from error


def first_non_finite(tensors: Mapping[str, Any]) -> Optional[str]:
    """The name of the first tensor in nested containers that holds a NaN or an infinity, or None."""
    for name, tensor in tensors_of(tensors):
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            return name
    return None


def tensors_of(values: Any, name: str = "") -> Iterator[Tuple[str, torch.Tensor]]:
    """(dotted name, tensor) of all tensors in nested containers."""
    if isinstance(values, torch.Tensor):
        yield name, values
    elif isinstance(values, (dict, list, tuple)):
        for key, value in values.items() if isinstance(values, dict) else enumerate(values):
            yield from tensors_of(value, f"{name}.{key}" if name else str(key))
