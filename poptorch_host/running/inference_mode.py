# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Methods whose results outlive a caller's torch.inference_mode()."""

import functools
from typing import Any, Callable

import torch


def outside_inference_mode(method: Callable) -> Callable:
    """The method, in an ordinary mode: what it makes on the device outlives the caller's torch.inference_mode()."""

    @functools.wraps(method)
    def ordinary(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_inference_mode_enabled():
            return method(*args, **kwargs)
        with torch.inference_mode(False):
            return method(*args, **kwargs)

    return ordinary
