# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Compiled programs in files.

A file is a ZIP archive of up to three members. `program.pt` is plain data, read by PyTorch's loader that makes nothing
but tensors and containers. `model.pkl`, there when the model was exported, is a pickle, since a model is code: reading
it runs what its writer wanted. So `poptorch.load` is for files from people you trust, while `loadExecutable` only reads
plain data and is safe with any file.
"""

import io
import json
import os
import pickle
import zipfile
from typing import Any, Dict, List, NamedTuple, Optional

import torch

from ..errors import createPoptorchError
from ..inputs.arguments import InputContract
from .compiler import Compiled, Loss
from .tracing import StageRecord

FORMAT = "poptorch_host program"
DEFAULT_NAME = "model.poptorch"
_HEADER, _PROGRAM, _MODEL = "header.json", "program.pt", "model.pkl"


class ProgramFile(NamedTuple):
    """What a file holds.

    Attributes:
        compiled: the program.
        rng_state: of the device, if it was saved.
        has_model: whether the model, its options and its optimizer are in it too.
    """

    compiled: Compiled
    rng_state: Optional[List[int]]
    has_model: bool


def write(
    filename: str, version: str, compiled: Compiled, rng_state: Optional[List[int]], model: Optional[Any]
) -> None:
    """Writes a program, atomically; `model` is pickled beside it unless None.

    Raises:
        Error: when the program was compiled for an argument that is not plain data, or the model cannot be pickled.
    """
    program = _to_bytes({"compiled": _to_plain(compiled), "rng_state": rng_state})
    try:
        _read_plain(program)
    except (pickle.UnpicklingError, RuntimeError) as error:
        raise createPoptorchError(
            "The model was compiled for an argument that is neither a tensor nor plain data, so "
            f"the program cannot be saved: {error}"
        ) from error
    try:
        pickled = None if model is None else _to_bytes(model)
    except (pickle.PicklingError, AttributeError, TypeError) as error:  # as of a class that a function defines
        raise createPoptorchError(
            f"The model cannot be saved: {error}. Use export_model=False to save the program alone"
        ) from error
    header = {"format": FORMAT, "version": version, "model": model is not None}
    temporary = f"{filename}.{os.getpid()}.part"
    with zipfile.ZipFile(temporary, "w") as archive:
        archive.writestr(_HEADER, json.dumps(header))
        archive.writestr(_PROGRAM, program)
        if pickled is not None:
            archive.writestr(_MODEL, pickled)
    os.replace(temporary, filename)


def read(filename: str, version: str) -> ProgramFile:
    """Reads a program, without its model.

    Raises:
        Error: for a file that is no program, is damaged, or was written by another version.
    """
    try:
        with zipfile.ZipFile(filename) as archive:
            header = json.loads(archive.read(_HEADER))
            plain = _read_plain(archive.read(_PROGRAM))
    except (OSError, KeyError, ValueError, RuntimeError, zipfile.BadZipFile, pickle.UnpicklingError) as error:
        raise createPoptorchError(f"{filename} is not a valid PopTorch file of {FORMAT}: {error}") from error
    if header.get("format") != FORMAT or header.get("version") != version:
        raise createPoptorchError(
            f"{filename} was exported by version {header.get('version')} of "
            f"{header.get('format')}, this is version {version} of {FORMAT}: export it again"
        )
    return ProgramFile(_from_plain(plain["compiled"]), plain["rng_state"], header["model"])


def read_model(filename: str) -> Any:
    """Unpickles the model, its options and its optimizer: for files from people you trust."""
    with zipfile.ZipFile(filename) as archive:
        return torch.load(io.BytesIO(archive.read(_MODEL)), map_location="cpu", **_trusting())


def importPoptorchMetadataFromFile(import_filename, /) -> bytes:
    """The bytes of the model, its options and its optimizer in a file, not unpickled; none without them.

    Raises:
        Error: for a file that is no program.
    """
    try:
        with zipfile.ZipFile(import_filename) as archive:
            return archive.read(_MODEL) if _MODEL in archive.namelist() else b""
    except (OSError, zipfile.BadZipFile) as error:
        raise createPoptorchError(f"{import_filename} is not a valid PopTorch file of {FORMAT}: {error}") from error


def _trusting() -> Dict[str, bool]:
    """The argument by which newer versions of PyTorch are told to unpickle; a model is code."""
    return {"weights_only": False}


def _to_bytes(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _read_plain(data: bytes) -> Any:
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _to_plain(compiled: Compiled) -> Dict[str, Any]:
    plain = compiled._replace(outputs=None)._asdict()
    plain["inputs"] = compiled.inputs.__getstate__()
    plain["stages"] = [tuple(stage) for stage in compiled.stages]
    plain["loss"] = None if compiled.loss is None else tuple(compiled.loss)
    return dict(plain)


def _from_plain(plain: Dict[str, Any]) -> Compiled:
    inputs = InputContract.__new__(InputContract)
    inputs.__setstate__(plain["inputs"])
    return Compiled(
        **{
            **plain,
            "inputs": inputs,
            "stages": tuple(StageRecord(*stage) for stage in plain["stages"]),
            "loss": None if plain["loss"] is None else Loss(*plain["loss"]),
        }
    )
