# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""A line in shared memory by which a process that reads data tells why it fails.

PopTorch's process that reads ahead prints the error of a data set, and the one in the main process does not say it.
"""

import torch

LONGEST = 4096  # bytes


class FailureNote:
    """A text of at most LONGEST bytes, which all processes share that the note is sent to; empty at first."""

    def __init__(self) -> None:
        self._bytes = torch.zeros(LONGEST, dtype=torch.uint8).share_memory_()

    def write(self, text: str) -> None:
        """Replaces the text."""
        data = text.encode()[:LONGEST].ljust(LONGEST, b"\0")
        self._bytes.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))

    def read(self) -> str:
        """Returns the text."""
        return bytes(self._bytes.numpy()).rstrip(b"\0").decode(errors="ignore")
