# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""A line in shared memory with which a process that reads data reports why it fails.

PopTorch's process that reads ahead prints the error of a data set; the error raised in the main process does not
include it.
"""

import torch

LONGEST = 4096  # bytes


class FailureNote:
    """A text of at most LONGEST bytes, shared by all processes that the note is sent to; initially empty."""

    def __init__(self) -> None:
        self._bytes = torch.zeros(LONGEST, dtype=torch.uint8).share_memory_()

    def write(self, text: str) -> None:
        """Replaces the text."""
        data = text.encode()[:LONGEST].ljust(LONGEST, b"\0")
        self._bytes.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))

    def read(self) -> str:
        """Returns the text."""
        return bytes(self._bytes.numpy()).rstrip(b"\0").decode(errors="ignore")
