# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Runs commands of the application one after the other in the processes of one torchrun, and notes what each saw.

    python -m torch.distributed.run --nproc_per_node 2 -m tests.distributed_program JOBS.json

JOBS.json: a list of {"name", "program": "train_swin" | "validate", "argv", "port", "environment"}. Process r of a job
writes NAME.r.json beside it: exit code, standard output and error, and a digest of each micro-batch it trained on.
"""
import contextlib
import hashlib
import io
import json
import os
import sys
from pathlib import Path

import train_swin
import validate
from utils import run_command

PROGRAMS = {"train_swin": train_swin.main, "validate": validate.main}


def run_job(job):
    """Runs a command in this process and returns what is noted of it."""
    output, errors, batches = io.StringIO(), io.StringIO(), []
    step = train_swin.train_step

    def noting_step(run, progress, images, targets, stop):
        loss = step(run, progress, images, targets, stop)
        micro_batch = run.config.DATA.BATCH_SIZE
        batches.extend(digest(*pair) for pair in zip(images.split(micro_batch), targets.split(micro_batch)))
        return loss

    train_swin.train_step = noting_step
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            code = run_command(lambda: PROGRAMS[job["program"]](job["argv"]))
    finally:
        train_swin.train_step = step
    return {"code": code, "output": output.getvalue(), "errors": errors.getvalue(), "batches": batches}


def digest(*tensors):
    """A fingerprint of the tensors' bits."""
    state = hashlib.sha256()
    for tensor in tensors:
        state.update(tensor.contiguous().numpy().tobytes())
    return state.hexdigest()


def main():
    """Every job in a process group of its own."""
    path = Path(sys.argv[1])
    for job in json.loads(path.read_text()):
        # torchrun's own store keeps what the processes told each other in the jobs before
        os.environ.update(job.get("environment", {}), TORCHELASTIC_USE_AGENT_STORE="False", MASTER_PORT=job["port"])
        noted = run_job(job)
        (path.parent / f"{job['name']}.{os.environ['RANK']}.json").write_text(json.dumps(noted))


if __name__ == "__main__":
    main()
