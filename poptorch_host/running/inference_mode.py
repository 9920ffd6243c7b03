# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""A decorator for methods that create tensors which are used after the caller's torch.inference_mode()."""

import functools
from typing import Any, Callable

import torch


def outside_inference_mode(method: Callable[..., Any]) -> Callable[..., Any]:
    """Runs a method outside the caller's torch.inference_mode(), so that it creates no inference tensors."""

    @functools.wraps(method)
    def ordinary(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_inference_mode_enabled():
            return method(*args, **kwargs)
        with torch.inference_mode(False):
            return method(*args, **kwargs)

    return ordinary
