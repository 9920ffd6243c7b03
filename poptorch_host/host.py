# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Settings of the host, which PopTorch does not have.

Defaults come from the environment, which is read at each use: POPTORCH_HOST_DEVICE is the PyTorch device that models
run on (default "cpu"; on "meta" they are only compiled); POPTORCH_HOST_FOLD is the number of micro-batches that one
forward and backward pass may process (default "auto"; 0 and 1 process them one at a time); POPTORCH_HOST_TIMEOUT is the
number of seconds that a process waits for the other processes (default: PyTorch's); POPTORCH_HOST_IPUS is the number of
IPUs to report to programs that query it (default 0); POPTORCH_HOST_OPERATIONS is a Python file that implements custom
operations (see `custom_ops`).
"""

import datetime
import os
from pathlib import Path
from typing import Iterator, Optional, Union

import torch

from ._environment import number_in
from .errors import createPoptorchError

AUTO = "auto"
_MEMORY_LIMITS = (  # of a container, in bytes, in version 2 and 1 of control groups
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
_APART = "_micro_batches_apart"  # an attribute of modules, which their copies have, too


class _Settings:
    """The arguments of `configure`; None for the environment's defaults."""

    device: Optional[torch.device] = None
    fold: Optional[Union[int, str]] = None
    timeout: Optional[datetime.timedelta] = None
    ipus: Optional[int] = None
    skip_nonfinite: bool = False
    scale_gradients: bool = False


_settings = _Settings()


def configure(
    device: Optional[Union[str, torch.device]] = None,
    fold: Optional[Union[int, bool, str]] = None,
    timeout: Optional[float] = None,
    ipus: Optional[int] = None,
    skip_nonfinite: Optional[bool] = None,
    scale_gradients: Optional[bool] = None,
) -> None:
    """Sets where and how models run, from their next compilation on. Settings that are not given keep their values.

    Args:
        device: a PyTorch device such as "cpu" or "cuda:1"; on "meta", models are compiled without values and cannot
            run.
        fold: the number of micro-batches to compute together where only rounding changes: "auto" or True for as many as
            fit and pay off, a number for an upper limit, 0 or False for one at a time.
        timeout: the number of seconds that a process waits for another one that does not respond.
        ipus: the number of IPUs that `ipuHardwareIsAvailable` reports, for programs that need IPUs to continue.
        skip_nonfinite: whether to skip weight updates with gradients that are not finite, in all processes alike. A
            device applies them.
        scale_gradients: whether to scale loss gradients by torch.amp.GradScaler, for models that run in float16 under
            autocast with weights in float32. Its scale is part of the optimizer's state.

    Raises:
        Error: for a device that PyTorch does not know, an invalid `fold` or `timeout`, or a negative number of IPUs.
    """
    if device is not None:
        _settings.device = _parse_device(device)
    if fold is not None:
        _settings.fold = _parse_fold(fold)
    if timeout is not None:
        _settings.timeout = _parse_timeout(timeout)
    if skip_nonfinite is not None:
        _settings.skip_nonfinite = skip_nonfinite
    if scale_gradients is not None:
        _settings.scale_gradients = scale_gradients
    if ipus is not None:
        _settings.ipus = _parse_count("ipus", ipus)


def device() -> torch.device:
    """Returns the PyTorch device that models run on. "cuda" is the GPU with the index LOCAL_RANK."""
    chosen = _settings.device or _parse_device(os.environ.get("POPTORCH_HOST_DEVICE") or "cpu")
    if chosen.type == "cuda" and chosen.index is None:
        return torch.device("cuda", local_rank())
    return chosen


def local_rank() -> int:
    """Returns LOCAL_RANK, the index of this process among those of its machine, which torchrun sets (default 0).

    Raises:
        Error: if it is no number.
    """
    return number_in("LOCAL_RANK", 0)


def skips_nonfinite() -> bool:
    """Returns whether weight updates with gradients that are not finite are skipped."""
    return _settings.skip_nonfinite


def scales_gradients() -> bool:
    """Returns whether loss gradients are scaled by torch.amp.GradScaler."""
    return _settings.scale_gradients


def fold_limit() -> Optional[int]:
    """Returns the largest number of micro-batches to compute together; None for automatic choice."""
    chosen = _settings.fold
    if chosen is None:
        chosen = _parse_fold(os.environ.get("POPTORCH_HOST_FOLD") or AUTO)
    return None if isinstance(chosen, str) else chosen


def keep_apart(module: torch.nn.Module) -> None:
    """Has programs of which `module` is a part compute micro-batches one at a time, from their next compilation on.

    For modules that may not run under `torch.func.vmap`, or lose by it, such as functions of torch.compile.
    """
    setattr(module, _APART, True)


def is_kept_apart(model: torch.nn.Module) -> bool:
    """Returns whether `keep_apart` was called for `model` or one of its parts."""
    return any(getattr(module, _APART, False) for module in model.modules())


def timeout() -> Optional[datetime.timedelta]:
    """Returns how long processes wait for each other; None for PyTorch's default."""
    given = os.environ.get("POPTORCH_HOST_TIMEOUT")
    return _settings.timeout or (_parse_timeout(given) if given else None)


def ipus() -> int:
    """Returns the number of IPUs to report to programs."""
    chosen = _settings.ipus
    return _parse_count("ipus", os.environ.get("POPTORCH_HOST_IPUS") or 0) if chosen is None else chosen


def operations_file() -> Optional[str]:
    """Returns the Python file with the implementations of custom operations; None if there is none."""
    return os.environ.get("POPTORCH_HOST_OPERATIONS") or None


def total_memory(of: torch.device) -> int:
    """Returns the size of the memory of device `of` in bytes, used or not, so that it is the same in every run.

    That of the host is limited by its container.
    """
    if of.type == "cuda":
        return torch.cuda.get_device_properties(of).total_memory
    return min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *_limits_of_container()])


def _limits_of_container() -> Iterator[int]:
    for path in _MEMORY_LIMITS:
        try:
            yield int(path.read_text(encoding="ascii"))
        except (OSError, ValueError):  # there is no such limit, or it is "max"
            continue


def _parse_device(name: Union[str, torch.device]) -> torch.device:
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise createPoptorchError(f"device {name!r} is unknown to PyTorch: use cpu, cuda or cuda:N") from error


def _parse_fold(value: Union[int, bool, str]) -> Union[int, str]:
    if value is True or value == AUTO:
        return AUTO
    return max(_parse_count("fold", value, "'auto' or a number of micro-batches"), 1)


def _parse_count(name: str, value: Union[int, str], expected: str = "a number") -> int:
    try:
        count = int(value)
    except ValueError:
        count = -1
    if count < 0:
        raise createPoptorchError(f"{name} is {value!r}: use {expected}, 0 or more")
    return count


def _parse_timeout(value: Union[str, float]) -> datetime.timedelta:
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = 0.0
    if not 0 < seconds <= 1e6:
        raise createPoptorchError(f"timeout is {value!r}: use a positive number of seconds")
    return datetime.timedelta(seconds=seconds)
