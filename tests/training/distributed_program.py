# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Runs commands of the application one after the other in the processes of one torchrun, and notes what each saw.

    python -m torch.distributed.run --nproc_per_node 2 -m tests.training.distributed_program JOBS.json

JOBS.json: a list of {"name", "program": a key of PROGRAMS, "argv", "port", "pipeline": value of HOST_PIPELINE,
"signal": [process that gets SIGTERM, after this step], "signal_in_save": [the same, as the state after it is saved]}.
All processes of a job must end it alike: one that leaves early keeps its connections while this program runs. Process r
writes NAME.r.json beside it: exit code, standard output and error, a digest of each micro-batch it trained on, the
shapes of the tensors it sent for that, and, of a pipeline's stage, the names of the weights it trained.
"""

import contextlib
import hashlib
import io
import json
import os
import signal
import sys
import unittest.mock
from pathlib import Path

import torch

import predict
import train_swin
import validate
from common.command_line import run_command
from training import loop

PROGRAMS = {"train_swin": train_swin.main, "validate": validate.main, "predict": predict.main}


def run_job(job):
    """Runs a command in this process and returns what is noted of it."""
    output, errors = io.StringIO(), io.StringIO()
    noted = {"batches": [], "sent": [], "summed": [], "weights": []}
    begin, finish, save = loop.train_step, loop.finish_step, loop.save

    def noting_step(run, *args, **kwargs):
        with noting_traffic(noted):
            return begin(run, *args, **kwargs)

    def noting_end(run, progress, step, stop):
        with noting_traffic(noted):
            results = finish(run, progress, step, stop)
        if [run.launch.process, progress.update] == job.get("signal"):
            os.kill(os.getpid(), signal.SIGTERM)
        parts = zip(*(batch.split(run.config.DATA.BATCH_SIZE) for batch in (step.images, step.targets)))
        noted["batches"] += [digest(*pair) for pair in parts]
        noted["weights"] = list(run.trainer.parameters) if run.launch.stages > 1 else []
        return results

    def signalled_save(run, progress, saver, is_best):
        if [run.launch.process, progress.update] == job.get("signal_in_save"):
            os.kill(os.getpid(), signal.SIGTERM)
        save(run, progress, saver, is_best)

    loop.train_step, loop.finish_step, loop.save = noting_step, noting_end, signalled_save
    try:
        with one_thread(), contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            code = run_command(lambda: PROGRAMS[job["program"]](job["argv"]))
    finally:
        loop.train_step, loop.finish_step, loop.save = begin, finish, save
    return {"code": code, "output": output.getvalue(), "errors": errors.getvalue(), **noted}


@contextlib.contextmanager
def one_thread():
    """Inside, runs have one thread of PyTorch, as under torchrun: sums are rounded in another order by several."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with unittest.mock.patch.dict(os.environ, OMP_NUM_THREADS="1"):
            yield
    finally:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def noting_traffic(noted):
    """Inside, notes the shapes of the tensors that are sent to one process, or summed over several."""
    distributed = torch.distributed
    operation, reduce = distributed.P2POp, distributed.all_reduce

    class NotingOperation(operation):
        def __init__(self, op, tensor, *args, **kwargs):
            if op is distributed.isend:
                noted["sent"].append(list(tensor.shape))
            super().__init__(op, tensor, *args, **kwargs)

    def noting_reduce(tensor, *args, **kwargs):
        noted["summed"].append(list(tensor.shape))
        return reduce(tensor, *args, **kwargs)

    distributed.P2POp, distributed.all_reduce = NotingOperation, noting_reduce
    try:
        yield
    finally:
        distributed.P2POp, distributed.all_reduce = operation, reduce


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
        os.environ.update(
            TORCHELASTIC_USE_AGENT_STORE="False", MASTER_PORT=job["port"], HOST_PIPELINE=job.get("pipeline", "0")
        )
        noted = run_job(job)
        (path.parent / f"{job['name']}.{os.environ['RANK']}.json").write_text(json.dumps(noted))


if __name__ == "__main__":
    main()
