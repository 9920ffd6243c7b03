# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Settings of the host that stands in for a device. PopTorch has nothing like them, so no option of it changes.

The environment gives the defaults, read at each use: POPTORCH_HOST_DEVICE names the PyTorch device that models run on
("cpu" unless set; on "meta" they are only compiled), POPTORCH_HOST_FOLD how many micro-batches one forward and backward
may cover: "auto" (unless set), or a number; 0 and 1 mean one by one. POPTORCH_HOST_TIMEOUT is how many seconds a
process waits for the others of its run, PyTorch's default unless set. POPTORCH_HOST_IPUS is how many IPUs programs are
told of that ask whether there is one, none unless set. POPTORCH_HOST_OPERATIONS names a Python file whose functions
stand for custom operations; `custom_ops` says how.
"""

import datetime
import os
from typing import Optional, Union

import torch

from .errors import createPoptorchError

AUTO = "auto"

_settings = {"device": None, "fold": None, "timeout": None, "ipus": None}


def configure(
    device: Optional[Union[str, torch.device]] = None,
    fold: Optional[Union[int, bool, str]] = None,
    timeout: Optional[float] = None,
    ipus: Optional[int] = None,
) -> None:
    """Sets where and how models run from their next compilation on. What is not given stays as it is.

    Args:
        device: a PyTorch device such as "cpu" or "cuda:1"; on "meta" models compile without values and do not run.
        fold: how many micro-batches are computed together where that changes nothing but rounding: "auto" or True for
            as many as fit and pay, a number for at most so many, 0 or False for one by one.
        timeout: how many seconds a process waits for another that does not answer, from when they meet on.
        ipus: how many IPUs `ipuHardwareIsAvailable` finds. Programs that end or skip parts without one go on with it.

    Raises:
        Error: for a device that this PyTorch does not know, another kind of `fold`, a timeout that is no time, and a
            negative number of IPUs.
    """
    if device is not None:
        _settings["device"] = _parse_device(device)
    if fold is not None:
        _settings["fold"] = _parse_fold(fold)
    if timeout is not None:
        _settings["timeout"] = _parse_timeout(timeout)
    if ipus is not None:
        _settings["ipus"] = _parse_ipus(ipus)


def device() -> torch.device:
    """The PyTorch device that models run on. Of several GPUs without a number, the one of this process's LOCAL_RANK."""
    chosen = _settings["device"] or _parse_device(os.environ.get("POPTORCH_HOST_DEVICE") or "cpu")
    if chosen.type == "cuda" and chosen.index is None:
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return chosen


def fold_limit() -> Optional[int]:
    """The most micro-batches that may be computed together; None where the host chooses."""
    chosen = _settings["fold"]
    if chosen is None:
        chosen = _parse_fold(os.environ.get("POPTORCH_HOST_FOLD") or AUTO)
    return None if chosen == AUTO else chosen


def timeout() -> Optional[datetime.timedelta]:
    """How long processes wait for each other; None for PyTorch's default."""
    given = os.environ.get("POPTORCH_HOST_TIMEOUT")
    return _settings["timeout"] or (_parse_timeout(given) if given else None)


def ipus() -> int:
    """How many IPUs a program is told of."""
    chosen = _settings["ipus"]
    return _parse_ipus(os.environ.get("POPTORCH_HOST_IPUS") or 0) if chosen is None else chosen


def operations_file() -> Optional[str]:
    """The Python file with the functions that stand for custom operations; None where there is none."""
    return os.environ.get("POPTORCH_HOST_OPERATIONS") or None


def total_memory(of: torch.device) -> int:
    """The bytes of memory that `of` has in all, used or not: the same in every run on the same machine."""
    if of.type == "cuda":
        return torch.cuda.get_device_properties(of).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _parse_device(name: Union[str, torch.device]) -> torch.device:
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise createPoptorchError(f"device {name!r} is unknown to PyTorch: use cpu, cuda or cuda:N") from error


def _parse_fold(value: Union[int, bool, str]) -> Union[int, str]:
    if value is True or value == AUTO:
        return AUTO
    try:
        count = int(value)
    except ValueError:
        count = -1
    if count < 0:
        raise createPoptorchError(f"fold is {value!r}: use 'auto', or a number of micro-batches from 0 on")
    return max(count, 1)


def _parse_ipus(value: Union[int, str]) -> int:
    try:
        count = int(value)
    except ValueError:
        count = -1
    if count < 0:
        raise createPoptorchError(f"ipus is {value!r}: use a number from 0 on")
    return count


def _parse_timeout(value: Union[str, float]) -> datetime.timedelta:
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = 0.0
    if not 0 < seconds <= 1e6:
        raise createPoptorchError(f"timeout is {value!r}: use a number of seconds above 0")
    return datetime.timedelta(seconds=seconds)
