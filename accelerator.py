# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Selects the PopTorch implementation and the device; the only module that does.

With the Poplar SDK installed, PopTorch and popdist are the SDK's and the device is an IPU. Otherwise they are
`poptorch_host`, the same programming interface on ordinary PyTorch, and the device is a GPU or the CPU.
"""

import contextlib
import importlib
import importlib.metadata
import inspect
import math
import os
import platform
from types import ModuleType
from typing import Any, Callable, ContextManager, Iterator, List, NamedTuple, Optional

import torch

from common.cores import THREADS, THREADS_OF_OPENMP, binding_variable, model_threads, usable_cores
from common.errors import Refusal
from common.launch import DEVICES
from common.logs import logger
from common.memory import peak_memory as host_peak_memory
from utils import one_line

TF32_ERROR = 2.0**-10  # of `product_error`: factors rounded to 10 bits give 3e-4, to the 7 of bfloat16 3e-3


class Accelerator(NamedTuple):
    """An accelerator: `device` is 'ipu', 'gpu' or 'cpu'; the modules have the interfaces of PopTorch and popdist.

    popdist is None if PopTorch is installed without it, which allows one process only. If `blank`, programs are
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
        device: 'ipu', 'gpu', 'cpu', or 'auto': an IPU if the SDK is installed, else a GPU if PyTorch finds one.

    Raises:
        Refusal: for a device that is not available.
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
    """The accelerator in use; selects 'auto' if none was selected."""
    return _selected or select()


def poptorch() -> ModuleType:
    """The PopTorch in use."""
    return selected().poptorch


def is_ipu() -> bool:
    """Whether programs are compiled for IPUs: graphs may only contain operations that PopTorch supports."""
    return selected().device == "ipu"


def description() -> str:
    """The device and the versions that affect results, for the log."""
    device = "IPU, PopTorch" if is_ipu() else f"{selected().device.upper()}, poptorch_host"
    return (
        f"{device} {getattr(poptorch(), '__version__', '')}, PyTorch {torch.__version__}, "
        f"timm {importlib.metadata.version('timm')}, Python {platform.python_version()}"
    )


@contextlib.contextmanager
def without_values() -> Iterator[None]:
    """Compiles from shapes alone inside the context, within seconds for any model; programs cannot run.

    Has no effect on IPUs.
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
    """A context in which to build a model with new weights; they are not allocated if the accelerator is `blank`."""
    return torch.device("meta") if selected().blank else contextlib.nullcontext()


def summary(program: Any) -> List[str]:
    """A description of a compiled program, as lines; empty on IPUs, where PopTorch has none."""
    if is_ipu():
        return []
    return importlib.import_module("poptorch_host.reporting.summary").summary(program)


class Results(NamedTuple):
    """The results of a call of a program.

    `gradient_norm` is the global norm of the gradients of its last weight update before clipping; NaN if not computed,
    as on IPUs. `skipped` is the number of weight updates skipped because of non-finite gradients; an IPU skips none.
    """

    outputs: Any
    gradient_norm: float
    skipped: int


def start(program: Any, *inputs: torch.Tensor) -> Callable[[], Any]:
    """Starts a call of a program and returns a function that waits for its `Results`; asynchronous on GPUs only.

    The inputs must not be modified until then.
    """
    if not is_ipu():
        return program.launch(*inputs).wait
    results = Results(program(*inputs), math.nan, 0)
    return lambda: results


def answers_late() -> bool:
    """Whether the device runs asynchronously: start the next step before reading the results of this one."""
    return selected().device == "gpu"


def device_type() -> str:
    """The type of the torch.device on which a host computes: 'cuda' or 'cpu'."""
    return "cuda" if selected().device == "gpu" else "cpu"


def autocast_dtype(device: str) -> torch.dtype:
    """The dtype of torch.autocast on this type of device: bfloat16, or float16 on a GPU without it."""
    if device != "cuda":
        return torch.bfloat16
    known = inspect.signature(torch.cuda.is_bf16_supported).parameters  # counts emulation, since 2.4
    native = {"including_emulation": False} if "including_emulation" in known else {}
    return torch.bfloat16 if torch.cuda.is_bf16_supported(**native) else torch.float16


def keep_micro_batches_apart(model: torch.nn.Module) -> None:
    """Makes a host run the micro-batches of this model one at a time, as compiled functions require."""
    importlib.import_module("poptorch_host.host").keep_apart(model)


def scale_gradients(wanted: bool) -> None:
    """Sets whether training programs created from now on scale the loss as torch.amp.GradScaler does."""
    if not is_ipu():
        importlib.import_module("poptorch_host.host").configure(scale_gradients=wanted)


def scales_gradients() -> bool:
    """Whether they do: occasional updates are then skipped while the scale is adjusted."""
    return not is_ipu() and importlib.import_module("poptorch_host.host").scales_gradients()


def choose_threads() -> None:
    """Sets and logs the number of PyTorch threads of this process, unless OMP_NUM_THREADS has set it.

    On a CPU this is PyTorch's default, limited to the usable cores, minus one in 8, which is left to data workers: a
    thread without a core delays all others. With a GPU, a few are enough. Threads are not bound to cores, since data
    workers would inherit the core of the first one.
    """
    binding = binding_variable()
    if binding:
        logger.warning("%s binds all data workers to the core of PyTorch's first thread: unset it", binding)
        return
    asked = os.environ.get(THREADS, "").strip()
    if THREADS_OF_OPENMP.fullmatch(asked):
        logger.info("threads: %d, from %s", torch.get_num_threads(), THREADS)
        return
    if asked:
        logger.warning("%s=%s is not a positive number: OpenMP ignores it, and so does this run", THREADS, asked)
    cores = usable_cores()
    threads = model_threads(min(torch.get_num_threads(), cores), on_gpu=selected().device == "gpu")
    torch.set_num_threads(threads)
    others = ", the others for data workers" if threads < cores else ""
    logger.info("threads: %d of %d usable cores%s; %s overrides", threads, cores, others, THREADS)


def peak_memory() -> int:
    """The peak memory of this process so far, in bytes: of the GPU if it uses one, else of the host."""
    return torch.cuda.max_memory_allocated() if selected().device == "gpu" else host_peak_memory()


def pipelining() -> ModuleType:
    """The module that runs each pipeline stage in a separate process, on hosts.

    Raises:
        Refusal: on IPUs, and if PyTorch is too old.
    """
    if is_ipu():
        raise Refusal("HOST_PIPELINE=1 is for CPUs and GPUs: unset it, or use --device cpu")
    try:
        return importlib.import_module("poptorch_host.running.pipelining")
    except ModuleNotFoundError as error:
        raise Refusal(
            f"HOST_PIPELINE=1 needs torch.distributed.pipelining of PyTorch 2.5 or later, this is {torch.__version__}"
        ) from error


def _sdk() -> Optional[Accelerator]:
    """The modules of the SDK, or None if it is not installed.

    Raises:
        Refusal: if its poptorch is installed but cannot be imported.
    """
    try:
        module = _import_if_installed("poptorch")
    except (
        ImportError,
        AssertionError,
    ) as error:  # the SDK is not enabled, or torch is not the version it was built for
        raise Refusal(
            f"the poptorch package of this environment cannot be imported: {one_line(error)}; "
            "enable its Poplar SDK, or use --device cpu or gpu"
        ) from error
    if (
        module is None or module.__name__ != "poptorch"
    ):  # another name: poptorch_host itself, under `python -m poptorch_host`
        return None
    return Accelerator("ipu", module, _import_if_installed("popdist"))


def _import_if_installed(name: str) -> Optional[ModuleType]:
    """The module, or None if it is not installed; a broken module raises its own error."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        return None


def _host(device: str) -> Accelerator:
    """poptorch_host on the GPU of this process, or on the CPU."""
    host = importlib.import_module("poptorch_host.host")
    # This computes the gradient norm in every update. Training needs it anyway: to stop before a non-finite update
    # changes the weights, or to count it, and for metrics.csv.
    host.configure(skip_nonfinite=True)
    if device == "gpu" and not torch.cuda.is_available():
        raise Refusal("--device gpu needs CUDA: this PyTorch sees no GPU; use --device cpu")
    if device != "cpu" and torch.cuda.is_available():
        index = _local_rank(host) % torch.cuda.device_count()
        torch.cuda.set_device(index)  # also for operations that use the current device, such as pinning memory
        torch.backends.cudnn.allow_tf32 = False  # the default for convolutions is True
        host.configure(device=f"cuda:{index}")
        kind = "gpu"
    else:
        host.configure(device="cpu")
        _use_fast_matmul()
        importlib.import_module("poptorch_host.compiling.memory").keep_freed()
        kind = "cpu"
    return Accelerator(kind, importlib.import_module("poptorch_host"), importlib.import_module("poptorch_host.popdist"))


def _local_rank(host: ModuleType) -> int:
    try:
        return host.local_rank()
    except importlib.import_module("poptorch_host").Error as error:
        raise Refusal(f"the GPU of this process is unknown: {error.message}") from error


def _use_fast_matmul() -> None:
    """Sets PyTorch's float32 matmul precision to 'medium' if that is as accurate as 'highest' on this CPU.

    On some CPUs 'medium' selects a kernel that is nearly twice as fast and equally accurate; with matrix units such as
    AMX it rounds to bfloat16. The accuracy is therefore measured.
    """
    reference = product_error("highest", "cpu")
    if product_error("medium", "cpu") > 4 * reference:
        torch.set_float32_matmul_precision("highest")
    logger.debug("float32 products: %s", torch.get_float32_matmul_precision())


def product_error(precision: str, device: str) -> float:
    """Sets PyTorch's float32 matmul precision, and measures the maximum error of a product relative to its maximum."""
    torch.set_float32_matmul_precision(precision)
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(128, 512, generator=generator) for _ in range(2))
    exact = left.double() @ right.double().t()
    found = (left.to(device) @ right.to(device).t()).cpu()
    return ((found - exact).abs().max() / exact.abs().max()).item()


def use_tf32() -> None:
    """Enables TF32 for the float32 products of a GPU, if its accuracy is that of TF32; warns on other devices."""
    if selected().device != "gpu":
        logger.warning("MODEL.TF32 has no effect on this device (%s): TF32 is for GPUs", selected().device)
        return
    reference, error = product_error("highest", "cuda"), product_error("high", "cuda")
    if error > TF32_ERROR:
        torch.set_float32_matmul_precision("highest")
        logger.warning("MODEL.TF32: the error of products is %.1e, too large for TF32: float32 is used", error)
    else:
        torch.backends.cudnn.allow_tf32 = True
        logger.info("float32 products: TF32 if the GPU has it, error %.1e, without it %.1e", error, reference)
