# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The one module that decides which PopTorch is used, and on which device.

With the Poplar SDK installed, PopTorch and popdist are the SDK's and the device is an IPU. Everywhere else they are
`poptorch_host`, the same programming interface on ordinary PyTorch, and the device is a GPU or the CPU.
"""

import contextlib
import importlib
import importlib.metadata
import os
import platform
from types import ModuleType
from typing import Any, ContextManager, Iterator, List, NamedTuple, Optional

import torch

from common.errors import Refusal
from common.launch import DEVICES
from common.logs import logger
from utils import one_line


class Accelerator(NamedTuple):
    """The choice: `device` is 'ipu', 'gpu' or 'cpu'; the modules have PopTorch's and popdist's interface.

    popdist is None where PopTorch is installed without it: such a machine runs one process. Where `blank`, programs are
    compiled from shapes alone and cannot run.
    """

    device: str
    poptorch: ModuleType
    popdist: Optional[ModuleType]
    blank: bool = False


_selected: Optional[Accelerator] = None


def select(device: str = "auto") -> Accelerator:
    """Chooses the accelerator of this process.

    Args:
        device: 'ipu', 'gpu', 'cpu', or 'auto': an IPU where the SDK is installed, else a GPU where PyTorch sees one.

    Raises:
        Refusal: for a device that is not to be had here.
    """
    global _selected
    if device not in DEVICES:
        raise Refusal(f"--device {device} is unknown: use one of {', '.join(DEVICES)}")
    sdk = _sdk() if device in ("auto", "ipu") else None
    if sdk is not None:
        _selected = sdk
    elif device == "ipu":
        raise Refusal(
            "--device ipu needs the Poplar SDK: its poptorch package cannot be imported in this environment; "
            "enable the SDK, or use --device cpu or gpu"
        )
    else:
        _selected = _host(device)
    return _selected


def selected() -> Accelerator:
    """The accelerator in use; 'auto' where nobody has chosen."""
    return _selected or select()


def poptorch() -> ModuleType:
    """The PopTorch in use."""
    return selected().poptorch


def is_ipu() -> bool:
    """Whether programs are compiled for IPUs, so that a graph may contain only what PopTorch supports."""
    return selected().device == "ipu"


def description() -> str:
    """The device and what runs on it, for a log that should say all that a result depends on."""
    device = "IPU, PopTorch" if is_ipu() else f"{selected().device.upper()}, poptorch_host"
    return (
        f"{device} {getattr(poptorch(), '__version__', '')}, PyTorch {torch.__version__}, "
        f"timm {importlib.metadata.version('timm')}, Python {platform.python_version()}"
    )


@contextlib.contextmanager
def without_values() -> Iterator[None]:
    """While this context is open, a host compiles models of any size in seconds, from shapes alone; they cannot run.

    On IPUs it changes nothing.
    """
    global _selected
    chosen = selected()
    if is_ipu():
        yield
        return
    host = importlib.import_module("poptorch_host.host")
    device = host.device()
    host.configure(device="meta")
    _selected = chosen._replace(blank=True)
    try:
        yield
    finally:
        host.configure(device=device)
        _selected = chosen


def new_weights() -> ContextManager[Any]:
    """A context in which to build a model whose weights are not read from anywhere."""
    return torch.device("meta") if selected().blank else contextlib.nullcontext()


def summary(program: Any) -> List[str]:
    """What was compiled, in lines for people; nothing on IPUs, where PopTorch does not tell."""
    if is_ipu():
        return []
    return importlib.import_module("poptorch_host.reporting.summary").summary(program)


def pipelining() -> ModuleType:
    """What runs the stages of a pipeline in processes of their own, which is a matter of hosts.

    Raises:
        Refusal: on IPUs, and with a PyTorch that cannot do it.
    """
    if is_ipu():
        raise Refusal(
            "HOST_PIPELINE=1 is for CPUs and GPUs, IPUs run the pipeline as it is: unset it, or use --device cpu"
        )
    try:
        return importlib.import_module("poptorch_host.running.pipelining")
    except ModuleNotFoundError as error:
        raise Refusal(
            "HOST_PIPELINE=1 needs torch.distributed.pipelining, which PyTorch has from 2.5 on and not in "
            f"{torch.__version__}"
        ) from error


def _sdk() -> Optional[Accelerator]:
    """The SDK's modules, or None where it is not installed.

    Raises:
        Refusal: where its poptorch is installed and does not work here, rather than training on something else.
    """
    try:
        module = _import_if_installed("poptorch")
    except (ImportError, AssertionError) as error:  # libraries that are not enabled; another torch than its own
        raise Refusal(
            f"the poptorch package of this environment cannot be imported: {one_line(error)}; "
            "enable the Poplar SDK that it is of, or use --device cpu or gpu"
        ) from error
    if module is None or module.__name__ != "poptorch":  # another name: the stand-in, run as `python -m poptorch_host`
        return None
    return Accelerator("ipu", module, _import_if_installed("popdist"))


def _import_if_installed(name: str) -> Optional[ModuleType]:
    """The module, or None where it is not installed; one that is installed and broken raises its own error."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        return None


def _host(device: str) -> Accelerator:
    """poptorch_host on a GPU of this process's own, or on the CPU."""
    host = importlib.import_module("poptorch_host.host")
    if device == "gpu" and not torch.cuda.is_available():
        raise Refusal("--device gpu needs CUDA: this PyTorch sees no GPU; use --device cpu")
    if device != "cpu" and torch.cuda.is_available():
        host.configure(device=f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}")
        kind = "gpu"
    else:
        host.configure(device="cpu")
        _use_fast_matmul()
        kind = "cpu"
    return Accelerator(kind, importlib.import_module("poptorch_host"), importlib.import_module("poptorch_host.popdist"))


def _use_fast_matmul() -> None:
    """Lets float32 products use the reduced-precision kernels of the CPU library where they are as exact.

    On CPUs whose float32 path is a vendor library tuned for another make, PyTorch's 'medium' precision is nearly twice
    as fast and loses nothing; with matrix units such as AMX it would round to bfloat16. So it is measured, not assumed.
    """
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(128, 512, generator=generator) for _ in range(2))
    exact = left.double() @ right.double().t()

    def worst_error(precision: str) -> float:
        torch.set_float32_matmul_precision(precision)
        return (left @ right.t() - exact).abs().max().item()

    reference = worst_error("highest")
    if worst_error("medium") > 4 * reference:
        torch.set_float32_matmul_precision("highest")
    logger.debug("float32 products: %s", torch.get_float32_matmul_precision())
