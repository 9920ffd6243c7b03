# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Compiling what PopTorch runs, and its errors as one line with an exit code."""

import contextlib
import time
from typing import Any, Iterator, Sequence

import torch

import accelerator
from common.errors import EXIT_RESOURCE, EXIT_USAGE, Refusal
from common.logs import logger
from utils import one_line

LONGEST_MESSAGE = 600  # characters of an error of the compiler, which may list every tile


@contextlib.contextmanager
def errors_refused(what: str, code: int = EXIT_RESOURCE) -> Iterator[None]:
    """While this context is open, errors of PopTorch and want of memory become refusals.

    Args:
        what: the beginning of the line, such as "the training program does not compile".
        code: the exit code; want of memory and faults of the device are EXIT_RESOURCE whatever it is.
    """
    try:
        yield
    except accelerator.poptorch().Error as error:
        raise Refusal(
            f"{what}: {_shortened(_message(error))}", EXIT_RESOURCE if _is_resource(error) else code
        ) from error
    except (MemoryError, RuntimeError) as error:
        if not _wants_memory(error):
            raise
        raise Refusal(
            f"{what}: {_shortened(str(error) or 'out of memory')}; lower --batch-size and raise --ga", EXIT_RESOURCE
        ) from error


def compile_program(program: Any, name: str, inputs: Sequence[torch.Tensor]) -> None:
    """Compiles a program for inputs like these; runs nothing.

    Args:
        program: from poptorch.trainingModel or inferenceModel.
        name: of the program, for the log and the refusal.
        inputs: a combined batch; only shapes and types matter.

    Raises:
        Refusal: for whatever PopTorch's compiler refuses.
    """
    start = time.monotonic()
    if not accelerator.selected().blank:
        inputs = [tensor.contiguous() for tensor in inputs]
    with errors_refused(f"the {name} program does not compile", EXIT_USAGE):
        program.compile(*inputs)
    logger.info("%s program: compiled in %.1f seconds", name, time.monotonic() - start)


def _message(error: Exception) -> str:
    """What PopTorch says, without the context that is in the text of an error; a bare one has nothing but its text."""
    return getattr(error, "message", str(error))


def _shortened(message: str) -> str:
    line = one_line(message)
    return line if len(line) <= LONGEST_MESSAGE else line[:LONGEST_MESSAGE] + " ..."


def _wants_memory(error: Exception) -> bool:
    """Whether Python, a GPU or PyTorch's allocator for CPUs, which has no exception of its own, had no memory left."""
    return isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)) or "DefaultCPUAllocator" in str(error)


def _is_resource(error: Exception) -> bool:
    """Whether a device failed or was too small, rather than the program being wrong."""
    poptorch = accelerator.poptorch()
    faults = (poptorch.RecoverableError, poptorch.UnrecoverableError)
    wants_memory = "memory" in getattr(error, "type", "") or "out of memory" in _message(error).lower()
    return isinstance(error, faults) or wants_memory
