# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The processes of a run: a single one, or several started by poprun on IPUs or torchrun on CPUs and GPUs."""

import contextlib
import ctypes
import datetime
import importlib
import json
import os
import re
import signal
import socket
from types import ModuleType
from typing import Any, Iterator, List

import torch
from torch.distributed import distributed_c10d
from yacs.config import CfgNode

import accelerator
from common import deadlines, system_processes
from common.errors import EXIT_RESOURCE, Refusal
from common.launch import Launch
from common.logs import logger
from common.signals import stop_signals_go_to
from utils import one_line

_LOST = re.compile(r"gloo|nccl|connection (closed|reset)", re.IGNORECASE)  # a collective that another process left
# Keys of the store that the processes share: the first refusal, how many there are, that a process knows of one, and
# that it has lost another one.
_REFUSAL, _REFUSALS, _KNOWN, _ALIVE = "refusal", "refusals", "known/{}", "alive/{}"
_IDENTITY = "identity/{}"  # host, process id and start time, so that one that hangs can be ended
_TORCHRUN = "TORCHELASTIC_RUN_ID"  # a variable that torchrun sets in the environment of its processes
_ATTEMPT = "TORCHELASTIC_RESTART_COUNT"  # another: the store outlives the processes that it starts again
_REFUSAL_WAIT = datetime.timedelta(seconds=deadlines.LAST_WORD)


@contextlib.contextmanager
def joined(config: CfgNode, stages: int = 1) -> Iterator[Launch]:
    """Joins the process group of the run, if there is one, and leaves it at the end of the context.

    Under poprun the number of replicas is poprun's; otherwise IPU.REPLICAS are divided evenly among processes.

    Args:
        stages: number of processes that share a model.

    Raises:
        Refusal: if the replicas cannot be divided evenly.
    """
    launch = _join(config, stages)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        identity = [socket.gethostname(), os.getpid(), system_processes.start_time(os.getpid())]
        _store().set(_IDENTITY.format(launch.process), json.dumps(identity))
    try:
        with ending_together(launch):
            yield launch
        _keep_group()
    finally:
        _leave(launch)


def _store() -> distributed_c10d.Store:
    """The store that the processes of this start of the run share, with what they have to say."""
    prefix = f"swin/{os.environ.get(_ATTEMPT, '0')}"
    return distributed_c10d.PrefixStore(prefix, distributed_c10d._get_default_store())


def _keep_group() -> None:
    """Keeps the group of a finished run until the process ends: its destructor hangs occasionally in torch 2.0.

    After a refusal the group is destroyed nevertheless, since the other processes wait for that.
    """
    if torch.__version__.startswith("2.0.") and torch.distributed.is_initialized():
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(distributed_c10d._get_default_group()))


def _leave(launch: Launch) -> None:
    """Leaves the group; after a refusal the leader, which may host the store, waits until all processes know of it."""
    if not torch.distributed.is_initialized():
        return
    store = _store()
    torch.distributed.destroy_process_group()
    try:
        if launch.is_leader and store.add(_REFUSALS, 0):
            store.wait([_KNOWN.format(process) for process in range(launch.processes)], _REFUSAL_WAIT)
    except RuntimeError as error:
        logger.debug("not every process was notified of the refusal: %s", error)


@contextlib.contextmanager
def ending_together(launch: Launch) -> Iterator[None]:
    """Inside the context, a refusal of one process is raised in all of them, with the same line and exit code.

    A process that leaves breaks the collectives of the others, which then read its refusal from the store.

    Raises:
        Refusal: that of the first process that left, or EXIT_RESOURCE if it left none.
    """
    if launch.processes == 1 or not torch.distributed.is_initialized():
        yield
        return
    try:
        yield
    except Refusal as refusal:
        _leave_word(refusal, launch)
        raise
    except RuntimeError as error:
        if _LOST.search(str(error)) is None:
            raise
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun sends it when a process exits; report the cause first
        raise _find_word(launch) from error


def _leave_word(refusal: Refusal, launch: Launch) -> None:
    store = _store()
    try:
        if store.add(_REFUSALS, 1) == 1:
            store.set(_REFUSAL, json.dumps([str(refusal), refusal.code]))
        store.set(_KNOWN.format(launch.process), "")
    except RuntimeError as error:  # the process that hosts the store is gone: the others know that the run is over
        logger.debug("the other processes cannot be notified of the refusal: %s", error)


def heed(launch: Launch) -> None:
    """Raises the refusal of a process that has left, if there is one: for work in which the others do not answer.

    A process that meets them only after LAST_WORD would find neither them nor their word.
    """
    if launch.processes == 1 or not torch.distributed.is_initialized():
        return
    left = 0
    with contextlib.suppress(RuntimeError):  # the store is gone: the next exchange with the others tells that
        left = _store().add(_REFUSALS, 0)
    if left:
        raise _find_word(launch)


def _find_word(launch: Launch) -> Refusal:
    store = _store()
    try:
        store.add(_ALIVE.format(launch.process), 1)
        store.wait([_REFUSAL], _REFUSAL_WAIT)
        refusal = Refusal(*json.loads(store.get(_REFUSAL)))
        store.set(_KNOWN.format(launch.process), "")
        return refusal
    except RuntimeError:  # no refusal in time: the process was killed, hangs, or failed with a traceback
        return Refusal(
            f"{_silent(store, launch)} of the run ended or hangs: see its own messages; the same command resumes",
            EXIT_RESOURCE,
        )


def _silent(store: distributed_c10d.Store, launch: Launch) -> str:
    """A description of the processes that did not report to be alive."""
    try:
        silent = [str(process) for process in range(launch.processes) if not store.add(_ALIVE.format(process), 0)]
        for process in silent:
            _end_stopped(*json.loads(store.get(_IDENTITY.format(process))))
    except RuntimeError:  # the store is gone with the process that kept it
        silent = []
    return f"process {' and '.join(silent)}" if silent else "another process"


def _end_stopped(host: str, pid: int, started: str) -> None:
    """Ends a process of this machine that was stopped: it cannot end itself, and its launcher would wait for it."""
    if host != socket.gethostname() or system_processes.start_time(pid) != started:
        return
    if system_processes.state(pid) in system_processes.STOPPED:
        logger.warning("process id %d is stopped, and is ended", pid)
        os.kill(pid, signal.SIGKILL)


def _join(config: CfgNode, stages: int) -> Launch:
    chosen = accelerator.selected()
    popdist = chosen.popdist
    if popdist is None or not popdist.isPopdistEnvSet():
        _check_stages(1, stages)
        return Launch(0, 1, config.IPU.REPLICAS, config.IPU.REPLICAS)
    try:
        # Restore default handlers: PyTorch waits here for the other processes, up to half an hour, and Python's
        # handlers do not run before it returns.
        with stop_signals_go_to(signal.SIG_DFL):
            if _TORCHRUN in os.environ:  # killed itself, it cannot end its processes, which would train on unwatched
                system_processes.end_with_parent()
            popdist.init()
    except (chosen.poptorch.Error, RuntimeError, ValueError) as error:
        raise Refusal(f"the processes of the run cannot connect: {one_line(error)}") from error
    process, processes = popdist.getInstanceIndex(), popdist.getNumInstances()
    if chosen.device == "ipu":
        if processes > 1:
            _horovod().init()
        replicas = popdist.getNumTotalReplicas()
        if replicas != config.IPU.REPLICAS:
            logger.warning(
                "poprun started %d replicas, not IPU.REPLICAS %d: the global batch is %s times the recipe's",
                replicas,
                config.IPU.REPLICAS,
                replicas / config.IPU.REPLICAS,
            )
        return Launch(process, processes, replicas, popdist.getNumLocalReplicas())
    _check_stages(processes, stages)
    instances = processes // stages
    if config.IPU.REPLICAS % instances:
        groups = f"{instances} processes" if stages == 1 else f"{instances} pipelines of {stages} processes"
        raise Refusal(
            f"IPU.REPLICAS {config.IPU.REPLICAS} cannot be divided among {groups}: "
            f"pass --replicas {instances} or a multiple of it"
        )
    return Launch(process, processes, config.IPU.REPLICAS, config.IPU.REPLICAS // instances, stages)


def _check_stages(processes: int, stages: int) -> None:
    if processes % stages:
        raise Refusal(
            f"HOST_PIPELINE=1: {processes} {'process' if processes == 1 else 'processes'} cannot run the "
            f"{stages} stages of IPU.LAYERS_PER_IPU: start {stages} or a multiple with torchrun.sh"
        )


def sum_over_processes(values: torch.Tensor, launch: Launch) -> torch.Tensor:
    """The elementwise sum of `values` over all processes."""
    if launch.processes == 1:
        return values
    if accelerator.is_ipu():
        horovod = _horovod()
        return horovod.allreduce(values, op=horovod.Sum)
    torch.distributed.all_reduce(values)
    return values


def share(value: Any, launch: Launch) -> Any:
    """Broadcasts the `value` of the leader to every process."""
    if launch.processes == 1:
        return value
    if accelerator.is_ipu():
        return _horovod().broadcast_object(value, root_rank=0)
    box = [value]
    torch.distributed.broadcast_object_list(box, src=0)
    return box[0]


def gather(value: Any, launch: Launch) -> List[Any]:
    """Gathers the `value` of every process in every process, in the order of ranks."""
    if launch.processes == 1:
        return [value]
    if accelerator.is_ipu():
        return _horovod().allgather_object(value)
    values = [None] * launch.processes
    torch.distributed.all_gather_object(values, value)
    return values


def _horovod() -> ModuleType:
    """Horovod, which the SDK ships for communication between instances."""
    try:
        return importlib.import_module("horovod.torch")
    except ModuleNotFoundError as error:
        raise Refusal(
            f"several instances under poprun need the package {error.name}: install the SDK's horovod wheel, "
            "or start one instance"
        ) from error
