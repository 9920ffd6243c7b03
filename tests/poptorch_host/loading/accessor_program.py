# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""A program that ends in the middle of asynchronous loading: `python -m ... STRATEGY raise|wait|stuck`."""

import itertools
import sys
import time

from tests.backend import poptorch
from tests.poptorch_host.loading.sample_sets import ProcessIds, Stuck


def main(strategy: str, end: str) -> None:
    """Prints the ids of the processes that load; then raises, or waits to be stopped, with the loader stuck or not."""
    loader = poptorch.DataLoader(
        poptorch.Options(),
        Stuck() if end == "stuck" else ProcessIds(),
        num_workers=1,
        mode=poptorch.DataLoaderMode.Async,
        async_options={"sharing_strategy": poptorch.SharingStrategy[strategy]},
    )
    workers = {int(batch[0, 0]) for batch in itertools.islice(loader, 3)}
    print(loader._accessor._process._process.pid, *workers, flush=True)
    if end == "raise":
        raise ValueError("enough")
    time.sleep(60)


if __name__ == "__main__":
    main(*sys.argv[1:])
