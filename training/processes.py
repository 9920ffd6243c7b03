# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The processes of a run: one, or several started by poprun (IPUs) or torchrun (CPUs and GPUs)."""

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

_LOST = re.compile(r"gloo|nccl|connection (closed|reset)", re.IGNORECASE)  # errors of a collective that a process left
# Keys of the store shared by the processes: the first refusal, the number of refusals, whether a process knows of one,
# and whether a process that lost another one is alive.
_REFUSAL, _REFUSALS, _KNOWN, _ALIVE = "refusal", "refusals", "known/{}", "alive/{}"
_IDENTITY = "identity/{}"  # host, process id and start time, to end a process that hangs
_TORCHRUN = "TORCHELASTIC_RUN_ID"  # environment variable that torchrun sets for its processes
_ATTEMPT = "TORCHELASTIC_RESTART_COUNT"  # another one: the store outlives processes that torchrun restarts
_REFUSAL_WAIT = datetime.timedelta(seconds=deadlines.LAST_WORD)


@contextlib.contextmanager
def joined(config: CfgNode, stages: int = 1) -> Iterator[Launch]:
    """Joins the process group of the run, if there is one, and leaves it at the end of the context.

    Under poprun, poprun sets the number of replicas; otherwise IPU.REPLICAS are divided evenly among processes.

    Args:
        stages: number of processes per model.

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
    """The store through which the processes of this attempt exchange messages."""
    prefix = f"swin/{os.environ.get(_ATTEMPT, '0')}"
    return distributed_c10d.PrefixStore(prefix, distributed_c10d._get_default_store())


def _keep_group() -> None:
    """Keeps the group of a finished run until the process exits: its destructor occasionally hangs in torch 2.0.

    After a refusal the group is destroyed all the same, since the other processes wait for that.
    """
    if torch.__version__.startswith("2.0.") and torch.distributed.is_initialized():
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(distributed_c10d._get_default_group()))


def _leave(launch: Launch) -> None:
    """Leaves the group; after a refusal, the leader waits until all processes know of it, as it may host the store."""
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
    """Raises a `Refusal` of one process inside the context in all processes, with the same message and exit code.

    A process that leaves breaks the collectives of the others, which then read its refusal from the store.

    Raises:
        Refusal: that of the first process to leave, or with EXIT_RESOURCE if that left without one.
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
    except RuntimeError as error:  # the process hosting the store is gone: the others know that the run is over
        logger.debug("the other processes cannot be notified of the refusal: %s", error)


def heed(launch: Launch) -> None:
    """Raises the refusal of a process that has left, if any; to be called during long work without collectives.

    After LAST_WORD seconds, the process that left and its refusal would be gone.
    """
    if launch.processes == 1 or not torch.distributed.is_initialized():
        return
    left = 0
    with contextlib.suppress(RuntimeError):  # the store is gone: the next collective fails and reports it
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
            f"{_silent(store, launch)} of the run exited or hangs: see its messages; run the same command to resume",
            EXIT_RESOURCE,
        )


def _silent(store: distributed_c10d.Store, launch: Launch) -> str:
    """A description of the processes that did not report themselves alive."""
    try:
        silent = [str(process) for process in range(launch.processes) if not store.add(_ALIVE.format(process), 0)]
        for process in silent:
            _end_stopped(*json.loads(store.get(_IDENTITY.format(process))))
    except RuntimeError:  # the store is gone with the process that hosted it
        silent = []
    return f"process {' and '.join(silent)}" if silent else "another process"


def _end_stopped(host: str, pid: int, started: str) -> None:
    """Kills a stopped (SIGSTOP) process of this machine: it cannot exit itself, and its launcher would wait for it."""
    if host != socket.gethostname() or system_processes.start_time(pid) != started:
        return
    if system_processes.state(pid) in system_processes.STOPPED:
        logger.warning("process %d (pid) is stopped: killing it", pid)
        os.kill(pid, signal.SIGKILL)


def _join(config: CfgNode, stages: int) -> Launch:
    chosen = accelerator.selected()
    popdist = chosen.popdist
    if popdist is None or not popdist.isPopdistEnvSet():
        _check_stages(1, stages)
        return Launch(0, 1, config.IPU.REPLICAS, config.IPU.REPLICAS)
    try:
        # Restore default handlers: PyTorch waits here for the other processes, up to half an hour, and Python handlers
        # only run after it returns.
        with stop_signals_go_to(signal.SIG_DFL):
            if _TORCHRUN in os.environ:  # a killed torchrun cannot end its processes, which would go on training
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
    """Broadcasts the leader's `value` to every process."""
    if launch.processes == 1:
        return value
    if accelerator.is_ipu():
        return _horovod().broadcast_object(value, root_rank=0)
    box = [value]
    torch.distributed.broadcast_object_list(box, src=0)
    return box[0]


def gather(value: Any, launch: Launch) -> List[Any]:
    """Gathers the `value` of every process in every process, in rank order."""
    if launch.processes == 1:
        return [value]
    if accelerator.is_ipu():
        return _horovod().allgather_object(value)
    values = [None] * launch.processes
    torch.distributed.all_gather_object(values, value)
    return values


def _horovod() -> ModuleType:
    """Horovod, shipped with the SDK for communication between instances."""
    try:
        return importlib.import_module("horovod.torch")
    except ModuleNotFoundError as error:
        raise Refusal(
            f"several instances under poprun need the package {error.name}: install the SDK's horovod wheel, "
            "or start one instance"
        ) from error
