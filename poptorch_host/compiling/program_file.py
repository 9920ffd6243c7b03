# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Saves compiled programs to files and loads them.

A file is a ZIP archive. `program.pt` is plain data, which torch.load reads with weights_only. `model.pkl`, if the model
was exported, is a pickle, and loading it can execute arbitrary code: `poptorch.load` is for files from trusted sources,
while `loadExecutable` reads plain data only and is safe for any file.
"""

import contextlib
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
    """The content of a file.

    Attributes:
        compiled: the program.
        rng_state: the state of the random number generator; None if it was not saved.
        has_model: whether the file contains the model, its options and its optimizer.
    """

    compiled: Compiled
    rng_state: Optional[List[int]]
    has_model: bool


def write(
    filename: str, version: str, compiled: Compiled, rng_state: Optional[List[int]], model: Optional[Any]
) -> None:
    """Writes a program and, unless None, a model to a file, atomically.

    Raises:
        Error: if the program was compiled for an argument that is not plain data, or the model cannot be pickled.
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
    except (pickle.PicklingError, AttributeError, TypeError) as error:  # for example, a class defined in a function
        raise createPoptorchError(
            f"The model cannot be saved: {error}. Use export_model=False to save only the program"
        ) from error
    header = {"format": FORMAT, "version": version, "model": model is not None}
    temporary = f"{filename}.{os.getpid()}.part"
    try:
        with zipfile.ZipFile(temporary, "w") as archive:
            archive.writestr(_HEADER, json.dumps(header))
            archive.writestr(_PROGRAM, program)
            if pickled is not None:
                archive.writestr(_MODEL, pickled)
        os.replace(temporary, filename)
    finally:
        with contextlib.suppress(FileNotFoundError):  # it is there only after an error, such as a full disk
            os.remove(temporary)


def read(filename: str, version: str) -> ProgramFile:
    """Reads a program without its model.

    Raises:
        Error: for a file that is not a program, is damaged, or was written by another version.
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
    """Unpickles the model, its options and its optimizer. Only for files from trusted sources."""
    with zipfile.ZipFile(filename) as archive:
        return torch.load(io.BytesIO(archive.read(_MODEL)), map_location="cpu", **_trusting())


def importPoptorchMetadataFromFile(import_filename: str, /) -> bytes:
    """Returns the pickled model, options and optimizer in a file as bytes, which are empty if there is no model.

    Raises:
        Error: for a file that is not a program.
    """
    try:
        with zipfile.ZipFile(import_filename) as archive:
            return archive.read(_MODEL) if _MODEL in archive.namelist() else b""
    except (OSError, zipfile.BadZipFile) as error:
        raise createPoptorchError(f"{import_filename} is not a valid PopTorch file of {FORMAT}: {error}") from error


def _trusting() -> Dict[str, bool]:
    """Returns the argument for torch.load to unpickle arbitrary objects."""
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
