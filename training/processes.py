# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The processes of one run: started alone, by poprun on IPUs, or by torchrun on CPUs and GPUs."""

import contextlib
import ctypes
import datetime
import importlib
import json
import re
import signal
from types import ModuleType
from typing import Any, Iterator, List

import torch
from torch.distributed import distributed_c10d
from yacs.config import CfgNode

import accelerator
from common.errors import EXIT_RESOURCE, Refusal
from common.launch import Launch
from common.logs import logger
from common.signals import stop_signals_go_to
from utils import one_line

_LOST = re.compile(r"gloo|nccl|connection (closed|reset)", re.IGNORECASE)  # a collective that another process left
# Keys of the store that the processes share: the first refusal, how many there are, that a process knows of one, and
# that it has lost another one.
_REFUSAL, _REFUSALS, _KNOWN, _ALIVE = "swin/refusal", "swin/refusals", "swin/known/{}", "swin/alive/{}"
_REFUSAL_WAIT = datetime.timedelta(seconds=3)


@contextlib.contextmanager
def joined(config: CfgNode, stages: int = 1) -> Iterator[Launch]:
    """Joins the other processes of the run, if there are any, and leaves them when the context closes.

    Under poprun the replicas are poprun's; otherwise IPU.REPLICAS are shared out evenly.

    Args:
        stages: how many processes share a model.

    Raises:
        Refusal: when the replicas cannot be shared out evenly.
    """
    launch = _join(config, stages)
    try:
        with ending_together(launch):
            yield launch
        _keep_group()
    finally:
        _leave(launch)


def _keep_group() -> None:
    """Lets the group of a finished run live as long as the process: with torch 2.0 its destructor hangs now and then.

    A group that is given up by a refusal is closed all the same, since the others wait for that.
    """
    if torch.__version__.startswith("2.0.") and torch.distributed.is_initialized():
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(distributed_c10d._get_default_group()))


def _leave(launch: Launch) -> None:
    """Leaves the other processes; after a refusal the leader, who may hold the store, waits until they know of it."""
    if not torch.distributed.is_initialized():
        return
    store = distributed_c10d._get_default_store()
    torch.distributed.destroy_process_group()
    try:
        if launch.is_leader and store.add(_REFUSALS, 0):
            store.wait([_KNOWN.format(process) for process in range(launch.processes)], _REFUSAL_WAIT)
    except RuntimeError as error:
        logger.debug("not every process can be told of the refusal: %s", error)


@contextlib.contextmanager
def ending_together(launch: Launch) -> Iterator[None]:
    """While this context is open, the refusal of one process becomes that of all: same line, same exit code.

    A process that has left breaks the collectives of the others, which then look for what it has left word of.

    Raises:
        Refusal: the first process's; or EXIT_RESOURCE, where a process ended without one.
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
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun's, to all when one has left; the cause is told first
        raise _find_word(launch) from error


def _leave_word(refusal: Refusal, launch: Launch) -> None:
    store = distributed_c10d._get_default_store()
    try:
        if store.add(_REFUSALS, 1) == 1:
            store.set(_REFUSAL, json.dumps([str(refusal), refusal.code]))
        store.set(_KNOWN.format(launch.process), "")
    except RuntimeError as error:  # whoever kept the store is gone: the others know already that the run is over
        logger.debug("the other processes cannot be told of the refusal: %s", error)


def _find_word(launch: Launch) -> Refusal:
    store = distributed_c10d._get_default_store()
    try:
        store.add(_ALIVE.format(launch.process), 1)
        store.wait([_REFUSAL], _REFUSAL_WAIT)
        refusal = Refusal(*json.loads(store.get(_REFUSAL)))
        store.set(_KNOWN.format(launch.process), "")
        return refusal
    except RuntimeError:  # no word within the time: it was killed, hangs, or failed with a traceback of its own
        return Refusal(
            f"{_silent(store, launch)} of the run ended or hangs: look for its own messages; the same command resumes",
            EXIT_RESOURCE,
        )


def _silent(store: distributed_c10d.Store, launch: Launch) -> str:
    """The processes that have not told that they are alive, in words."""
    try:
        silent = [str(process) for process in range(launch.processes) if not store.add(_ALIVE.format(process), 0)]
    except RuntimeError:  # the store is gone with the process that kept it
        silent = []
    return f"process {' and '.join(silent)}" if silent else "another process"


def _join(config: CfgNode, stages: int) -> Launch:
    chosen = accelerator.selected()
    popdist = chosen.popdist
    if popdist is None or not popdist.isPopdistEnvSet():
        _check_stages(1, stages)
        return Launch(0, 1, config.IPU.REPLICAS, config.IPU.REPLICAS)
    try:
        # A request to stop ends the process at once: it waits for the others inside PyTorch, for half an hour where
        # they do not come, and no handler of Python's would run before that is over.
        with stop_signals_go_to(signal.SIG_DFL):
            popdist.init()
    except (chosen.poptorch.Error, RuntimeError, ValueError) as error:
        raise Refusal(f"the processes of the run do not find each other: {one_line(error)}") from error
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
        whose = f"{instances} processes" if stages == 1 else f"{instances} pipelines of {stages} processes"
        raise Refusal(
            f"IPU.REPLICAS {config.IPU.REPLICAS} cannot be shared by {whose}: "
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
    """The elementwise sum of `values` over all processes, in every process."""
    if launch.processes == 1:
        return values
    if accelerator.is_ipu():
        horovod = _horovod()
        return horovod.allreduce(values, op=horovod.Sum)
    torch.distributed.all_reduce(values)
    return values


def share(value: Any, launch: Launch) -> Any:
    """The leader's `value`, in every process."""
    if launch.processes == 1:
        return value
    if accelerator.is_ipu():
        return _horovod().broadcast_object(value, root_rank=0)
    box = [value]
    torch.distributed.broadcast_object_list(box, src=0)
    return box[0]


def gather(value: Any, launch: Launch) -> List[Any]:
    """Every process's `value` in the order of processes, in every process."""
    if launch.processes == 1:
        return [value]
    if accelerator.is_ipu():
        return _horovod().allgather_object(value)
    values = [None] * launch.processes
    torch.distributed.all_gather_object(values, value)
    return values


def _horovod() -> ModuleType:
    """Horovod, which the SDK brings for what hosts of several instances tell each other."""
    try:
        return importlib.import_module("horovod.torch")
    except ModuleNotFoundError as error:
        raise Refusal(
            f"several instances under poprun need the package {error.name}: install the SDK's horovod wheel, "
            "or start one instance"
        ) from error
