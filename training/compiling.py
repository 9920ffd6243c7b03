# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Compilation with PopTorch; errors become one line with an exit code."""

import contextlib
import time
from typing import Any, Iterator, Sequence

import torch

import accelerator
from common.errors import EXIT_RESOURCE, EXIT_USAGE, Refusal
from common.logs import logger
from common.memory import is_shortage
from common.progress_bar import elapsed_time
from utils import one_line

LONGEST_MESSAGE = 600  # characters of an error of the compiler, which may list every tile


@contextlib.contextmanager
def errors_refused(what: str, code: int = EXIT_RESOURCE) -> Iterator[None]:
    """Converts PopTorch errors and exhausted host resources inside the context to `Refusal`.

    Args:
        what: start of the message, such as "the training program does not compile".
        code: the exit code; exhausted resources and device faults always use EXIT_RESOURCE.
    """
    try:
        yield
    except accelerator.poptorch().Error as error:
        raise Refusal(
            f"{what}: {_shortened(_message(error))}", EXIT_RESOURCE if _is_resource(error) else code
        ) from error
    except (MemoryError, RuntimeError, OSError) as error:
        if not (is_shortage(error) or isinstance(error, torch.cuda.OutOfMemoryError)):
            raise
        raise Refusal(
            f"{what}: out of memory, threads or file descriptors ({_shortened(str(error) or 'out of memory')}): "
            "lower --batch-size and raise --ga, or use fewer --num-workers",
            EXIT_RESOURCE,
        ) from error


def compile_program(program: Any, name: str, inputs: Sequence[torch.Tensor]) -> None:
    """Compiles a program for inputs of the given shapes and types, without running it.

    Args:
        program: from poptorch.trainingModel or inferenceModel.
        name: of the program, for the log and errors.
        inputs: a combined batch, of which only shapes and types are used.

    Raises:
        Refusal: for errors of PopTorch's compiler.
    """
    start = time.monotonic()
    if not accelerator.selected().blank:
        inputs = [tensor.contiguous() for tensor in inputs]
    # PopTorch shows its own progress bar on IPUs.
    shown = contextlib.nullcontext() if accelerator.is_ipu() else elapsed_time(f"compiling the {name} program")
    with errors_refused(f"the {name} program does not compile", EXIT_USAGE), shown:
        program.compile(*inputs)
    logger.info("%s program: compiled in %.1f seconds", name, time.monotonic() - start)


def _message(error: Exception) -> str:
    """The message of a PopTorch error, without its context."""
    return getattr(error, "message", str(error))


def _shortened(message: str) -> str:
    line = one_line(message)
    return line if len(line) <= LONGEST_MESSAGE else line[:LONGEST_MESSAGE] + " ..."


def _is_resource(error: Exception) -> bool:
    """Whether a device failed or ran out of memory, as opposed to an invalid program."""
    poptorch = accelerator.poptorch()
    faults = (poptorch.RecoverableError, poptorch.UnrecoverableError)
    out_of_memory = "memory" in getattr(error, "type", "") or "out of memory" in _message(error).lower()
    return isinstance(error, faults) or out_of_memory
