# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""A program that is stopped in the middle of asynchronous loading: `python -m ... STRATEGY WORKERS END`."""
import sys
import time

import poptorch_host as poptorch

from tests.poptorch_host.sample_sets import ProcessIds


def main(strategy: str, workers: int, end: str) -> None:
    """Prints the ids of the processes that load, and ends as it is told."""
    loader = poptorch.DataLoader(poptorch.Options(), ProcessIds(), num_workers=workers,
                                 mode=poptorch.DataLoaderMode.Async,
                                 async_options={"sharing_strategy": poptorch.SharingStrategy[strategy]})
    processes = {loader._accessor._process._process.pid}
    for batch in loader:
        processes.add(int(batch[0, 0]))
    next(iter(loader))
    print(*processes, flush=True)
    if end == "wait":
        time.sleep(60)
    if end == "raise":
        raise ValueError("enough")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
