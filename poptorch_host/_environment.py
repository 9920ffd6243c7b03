# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Numbers in variables of the environment, such as a launcher sets for each process."""

import os

from .errors import createPoptorchError


def number_in(variable: str, default: int) -> int:
    """Returns the number that an environment variable holds, or `default` if it is not set.

    Raises:
        Error: if it holds anything but a whole number, 0 or more.
    """
    text = os.environ.get(variable)
    if text is None:
        return default
    try:
        number = int(text)
    except ValueError:
        number = -1
    if number < 0:
        raise createPoptorchError(
            f"environment variable {variable} is {text!r}, but must be a number, 0 or more: correct or unset it"
        )
    return number
