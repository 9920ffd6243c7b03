# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Compiled models: `trainingModel`, `inferenceModel`, `load`, and the executor that they return."""

import os
import time
from typing import Any, Callable, Dict, List, NoReturn, Optional, Tuple, Union

import torch

from . import optim as poptorch_optim
from . import torch_ops  # noqa: F401 (imported for its effect: it defines torch.ops.poptorch)
from ._logging import logger
from ._printing import module_repr
from .compiling import compile_hooks, program_file
from .compiling.compiler import Compiled, can_run, check_options, compile_model, pieces_of
from .enums import ConnectionType
from .errors import Error, check, createPoptorchError
from .inputs.arguments import Bound, ForwardParameters, InputContract
from .options import Options, own_options
from .reporting.inspection import Inspection
from .reporting.summary import report_compilation
from .running.inference_mode import outside_inference_mode
from .running.pending import Pending
from .running.program import Device, Program, updatable_buffers
from .updating.latch import OptimizerLatch
from .weights import wrapping
from .weights.device import ReplicaGrouping, untouched


class PoplarExecutor(Inspection):
    """Compiles a model for a device and runs it there. Created by `trainingModel` and `inferenceModel`.

    The first call, or `compile`, compiles the model for the shapes of its arguments. Each call then runs device
    iterations x gradient accumulation x replicas micro-batches. Other attributes are looked up in the model.

    Attributes:
        per_replica_params: by name, the parameters that differ between replicas, and how replicas share them.
        host_weights_version: how often the weights were copied to the host.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        options: Optional[Options],
        training: bool,
        poptorch_version: str,
        optimizer: Optional[torch.optim.Optimizer] = None,
        user_model: Optional[torch.nn.Module] = None,
    ) -> None:
        self._user_model = user_model or model
        self._training = training
        self._version = poptorch_version
        self._options = own_options(options, training)
        self._latch: Optional[OptimizerLatch] = None
        if training:
            if optimizer is None:
                raise createPoptorchError("a training model needs an optimizer: use poptorch.trainingModel")
            self._latch = OptimizerLatch(self._options)
            self._latch.set(optimizer)
        self._model = wrapping.plain_copy(model) if training else wrapping.unwrapped_view(self._user_model)
        if training:
            wrapping.wrap(self._user_model, self)
        self._forward_parameters = ForwardParameters(self._model.forward)
        self.per_replica_params: Dict[str, ReplicaGrouping] = {}
        self.host_weights_version = 0
        self._forget_program()
        self._options._freeze()

    def _forget_program(self) -> None:
        self._can_run = can_run(self._options)
        self._kept_rng_state: Optional[List[int]] = None
        self._program = None
        self._attached = False
        self._device_is_newer = False
        self._trained_version = 0
        self._compilation_seconds = 0.0

    # The user's model.

    @property
    def model(self) -> torch.nn.Module:
        """The user's model; for inference, a copy of it that shares its modules and weights."""
        return self._user_model

    def __getattr__(self, attr: str) -> Any:
        if "_user_model" not in vars(self):  # while the executor is constructed
            raise AttributeError(attr)
        attribute = getattr(self._user_model, attr)
        if isinstance(attribute, torch.nn.Parameter):
            return wrapping.ParameterProxy(self, attr, attribute)
        return attribute

    def __repr__(self) -> str:
        return module_repr(self._user_model)

    def _refuse_copies(self, *_: Any) -> NoReturn:
        raise TypeError("an executor cannot be copied or pickled: copy its model, or save() and poptorch.load() it")

    __copy__ = __deepcopy__ = __setstate__ = _refuse_copies

    def __reduce_ex__(self, protocol: Any) -> Any:
        if self._training or self.isCompiled():
            self._refuse_copies()
        return super().__reduce_ex__(protocol)  # PopTorch writes such an executor, and cannot read it

    def load_state_dict(self, state_dict: Dict[str, torch.Tensor], strict: bool = True) -> Any:
        """Loads weights into the model, and copies them to the device if attached.

        Returns:
            The missing and unexpected keys, like torch.nn.Module.load_state_dict.
        """
        result = self._user_model.load_state_dict(state_dict, strict=strict)
        if self._attached:
            self.copyWeightsToDevice()
        return result

    def _group_replicas(self, name: str, grouping: ReplicaGrouping) -> None:
        if self.isCompiled():
            raise createPoptorchError(f"replicaGrouping of {name}: call it before the model is compiled")
        self.per_replica_params[name] = grouping

    # Weights.

    def copyWeightsToHostIfNeeded(self) -> bool:
        """Copies the weights to the host if training has changed them since the last copy. Returns whether it did."""
        if not (self._training and self._attached and self._device_is_newer):
            return False
        logger.debug("Implicit copyWeightsToHost()")
        self.copyWeightsToHost()
        return True

    def copyWeightsToHost(self) -> None:
        """Copies parameters and buffers from the device to the user's model."""
        program = self._require_program("copyWeightsToHost")
        if not self._attached:
            return
        self._device_is_newer = False
        program.weights.download()
        self.host_weights_version += 1

    def copyWeightsToDevice(self) -> None:
        """Copies parameters and buffers from the user's model to the device, overwriting those on the device."""
        program = self._require_program("copyWeightsToDevice")
        if self._attached:
            self._device_is_newer = False
            program.weights.upload()

    def copyNamedBuffersToDevice(self) -> None:
        """Copies the buffers of Options.updatableNamedBuffers from the user's model to the device."""
        program = self._require_program("copyNamedBuffersToDevice")
        names = updatable_buffers(self._options)
        if not names:
            raise createPoptorchError("copyNamedBuffersToDevice needs Options.updatableNamedBuffers")
        program.weights.upload_buffers(set(names))

    def _fetch_trained_weights(self, program: Program) -> None:
        """Copies weights to an inference device if the same model has been trained since."""
        version = wrapping.trained_version(self._user_model)
        if version != self._trained_version:
            self._trained_version = version
            program.weights.upload()

    def setOptimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Copies the optimizer's current hyper-parameters. Later changes take effect at the next call of this method.

        Raises:
            AssertionError: for an unsupported optimizer class, or a value of the wrong type.
            ValueError: for amsgrad, or half accumulators after compilation.
            Error: if a constant changes after compilation, or the executor is for inference.
        """
        if self._latch is None:
            raise createPoptorchError("setOptimizer: this executor does not train")
        if self._program is not None and self._program.update is not None:
            self._program.update.latch(optimizer)
        else:
            self._latch.set(optimizer, compiled=self.isCompiled())

    # Compiling and running.

    @outside_inference_mode
    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compiles the model for the given arguments without running it. Has no effect on a compiled model."""
        bound = self._forward_parameters.bind(args, kwargs)
        if self.isCompiled():
            logger.warning("Call to compile() ignored: the executable is already compiled; call destroy() first")
        else:
            self._compile(bound)

    @outside_inference_mode
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the model. The first call compiles it.

        Args:
            args, kwargs: the arguments of forward. The first dimension of each tensor is the micro-batch size times
                device iterations x groups of replicas x gradient accumulation.

        Returns:
            The outputs of forward in the same containers: new tensors on the host with the outputs of the micro-batches
            that the output mode selects; int64 is converted to int32, float64 to float32.

        Raises:
            Error: for arguments that differ from those the model was compiled for.
            AssertionError: with ConnectionType.Never, for too many or unknown arguments, or for a batch size that is
                not a multiple of the number of micro-batches.
        """
        program, outputs = self._start(args, kwargs)
        return program.finished(outputs) if program.is_late else outputs

    @outside_inference_mode
    def launch(self, *args: Any, **kwargs: Any) -> Pending:
        """Starts a call of the model without waiting for its results, which a GPU computes meanwhile; not in PopTorch.

        The arguments must not be written to until the results were waited for. On the host they are there at once.

        Args:
            args, kwargs: as of a call.
        """
        skipped = self.skipped_updates
        program, outputs = self._start(args, kwargs)
        return program.pending(outputs, skipped)

    def _start(self, args: Any, kwargs: Any) -> Tuple[Program, Any]:
        check(
            self._can_run,
            "Trying to run a model on an offline device (ConnectionType.Never, or meta): use "
            "model.compile(inputs) instead of model(inputs)",
        )
        bound = self._forward_parameters.bind(args, kwargs)
        program = self._program
        if program is None:
            program = self._compile(bound)
        bound = program.compiled.inputs.check(bound, self._forward_parameters.names)
        if not self._attached:
            self.attachToDevice()
        if program.update is None:
            self._fetch_trained_weights(program)
            return program, program.run(bound)
        program.update.upload()
        outputs = program.run(bound)
        program.update.mark_run()
        self._device_is_newer = True
        return program, outputs

    def _compile(self, bound: Bound) -> Program:
        start = time.perf_counter()
        try:
            if self._training and not wrapping.is_wrapped(self._user_model):
                wrapping.wrap(self._user_model, self)
            inputs = InputContract(bound, self._forward_parameters.names, pieces_of(self._options))
            wrapping.fetch_trained_weights(self._user_model)
            with compile_hooks.around():
                check_options(self._options)
                device = self._make_device()
                with device.randomness.rehearsing():
                    compiled = compile_model(self._model, bound, inputs, device.weights, self._options, self._training)
            program = self._adopt(compiled, device)
            self._attached = self._can_run
        except Exception:  # of any kind: a model that failed to compile must not keep part of a program
            self._forget_program()
            raise
        self._compilation_seconds = time.perf_counter() - start
        report_compilation(self)
        return program

    def _make_device(self) -> Device:
        device = Device(self._model, self._options, self._latch, self.per_replica_params)
        self._can_run = self._can_run and device.has_values
        return device

    def _adopt(self, compiled: Compiled, device: Device) -> Program:
        """Makes `compiled` the program of this executor."""
        self._program = Program(self._model, compiled, device, self._options, self._latch, self._can_run)
        return self._program

    def destroy(self) -> None:
        """Removes the compiled program after copying weights and optimizer state to the host. Unwraps the model."""
        if self._program is None:
            return
        if self._training:
            self.copyWeightsToHostIfNeeded()
            if self._program.update is not None:
                self._program.update.release()
            wrapping.unwrap(self._user_model, self)
        self._forget_program()

    # Devices.

    def isAttachedToDevice(self) -> bool:
        """Returns whether the program is on a device."""
        return self._attached

    def detachFromDevice(self) -> None:
        """Copies weights, optimizer state and random state to the host and releases the device."""
        program = self._require_program("detachFromDevice")
        if not self._attached:
            raise createPoptorchError("detachFromDevice: the model is not attached to a device")
        self.copyWeightsToHostIfNeeded()
        if program.update is not None:
            program.update.download()
        self._kept_rng_state = program.rng_state
        self._attached = False
        logger.debug("Detached from device")

    def attachToDevice(self) -> None:
        """Attaches to a device and copies weights, optimizer state and random state to it."""
        program = self._require_program("attachToDevice")
        check(self._can_run, "Trying to attach to an offline device (ConnectionType.Never, or meta)")
        if self._attached:
            raise createPoptorchError("attachToDevice: the model is already attached to a device")
        self._attached = True
        self.copyWeightsToDevice()
        if program.update is not None:
            program.update.upload(attaching=True)
        if self._kept_rng_state is not None:
            self.rng_state = self._kept_rng_state

    @property
    def rng_state(self) -> List[int]:
        """The state of the device's random number generator as a list of ints, the seed first."""
        return self._require_program("rng_state").rng_state

    @rng_state.setter
    def rng_state(self, state: List[int]) -> None:
        self._require_program("rng_state").rng_state = state
        self._kept_rng_state = None  # of the time before it was detached

    # Files.

    def save(self, filename: str, export_model: bool = True, save_rng_state: bool = True) -> None:
        """Saves the compiled program to a file.

        Args:
            filename: the file, whose folders are created; or an existing folder, for a file model.poptorch in it.
            export_model: whether to also pickle the model with its weights, options and optimizer, for `poptorch.load`.
            save_rng_state: whether to save the state of the random number generator.

        Raises:
            Error: if there is no program, or an argument it was compiled for cannot be saved.
        """
        program = self._require_program("save")
        if program.weights.blank:
            raise createPoptorchError("save: a program compiled on device meta has no values; compile it on cpu")
        os.makedirs(os.path.dirname(filename) or ".", exist_ok=True)
        if os.path.isdir(filename):
            filename = os.path.join(filename, program_file.DEFAULT_NAME)
            logger.warning("save(): %s is a directory, saving model to %s", os.path.dirname(filename), filename)
        self.copyWeightsToHostIfNeeded()
        model = None
        if export_model:
            model = {
                "model": self._user_model,
                "options": self._options,
                "training": self._training,
                "optimizer": self._latch.optimizer if self._latch else None,
                "per_replica_params": self.per_replica_params,
            }
            if program.update is not None and self._can_run:
                program.update.download()
        state = program.rng_state if save_rng_state and self._can_run else None  # offline there is no device to read
        program_file.write(filename, self._version, program.compiled, state, model)

    def compileAndExport(
        self, filename: str, *args: torch.Tensor, export_model: bool = True, **kwargs: torch.Tensor
    ) -> None:
        """Compiles the model for the given arguments and saves the program; see `save`."""
        self.compile(*args, **kwargs)
        self.save(filename, export_model)

    @outside_inference_mode
    def loadExecutable(self, filename: str) -> None:
        """Loads a saved program. Reads plain data only; the weights are those of the model.

        Raises:
            Error: for a file that is not a program of this version, or whose program does not fit this executor.
        """
        loaded = program_file.read(filename, self._version)
        if loaded.compiled.training != self._training:
            raise createPoptorchError(
                f"{filename} is a program for {'training' if loaded.compiled.training else 'inference'}, "
                f"this executor is for {'training' if self._training else 'inference'}"
            )
        if loaded.compiled.inputs.pieces != pieces_of(self._options):
            raise createPoptorchError(
                f"{filename} takes {loaded.compiled.inputs.pieces} micro-batches a call, the "
                f"options of this executor say {pieces_of(self._options)}"
            )
        if self.isCompiled():
            logger.warning("loadExecutable replaces the compiled program")
            self.destroy()
        if self._training and not wrapping.is_wrapped(self._user_model):
            wrapping.wrap(self._user_model, self)
        program = self._adopt(loaded.compiled, self._make_device())
        self._attached = self._can_run and self._options.connection_type == ConnectionType.Always.value
        logger.debug("Writing weights from host to IPU memory.")
        if loaded.rng_state is not None:
            program.rng_state = loaded.rng_state


def trainingModel(
    model: Union[torch.nn.Module, PoplarExecutor],
    options: Optional[Options] = None,
    optimizer: Optional[torch.optim.Optimizer] = None,
) -> PoplarExecutor:
    """Creates an executor that trains a model. Each call runs forward passes, backward passes and weight updates.

    Args:
        model: the model, whose forward computes a loss. Its class and those of its parameters and buffers are replaced
            in place, so that reading a weight returns the current value.
        options: the options, which are frozen; None for the defaults.
        optimizer: the optimizer of the model's parameters; None for poptorch.optim.SGD with lr 0.01.

    Raises:
        Error: for options of another type.
        RuntimeError: if the model is already wrapped for training.
    """
    model = _unwrapped(model)
    if optimizer is None:
        with untouched():
            optimizer = poptorch_optim.SGD(model.parameters(), lr=0.01)
    return PoplarExecutor(model, options, training=True, poptorch_version=_version(), optimizer=optimizer)


def inferenceModel(model: Union[torch.nn.Module, PoplarExecutor], options: Optional[Options] = None) -> PoplarExecutor:
    """Creates an executor that runs a model for inference.

    Args:
        model: the model, which is not modified. If it is in training, its current weights are used. The executor has a
            copy with the same weights and submodules, but with its own training flag and other plain attributes.
        options: the options, which are frozen; None for the defaults.

    Raises:
        Error: for options of another type, or with gradient accumulation.
    """
    model = wrapping.shallow_copy(_unwrapped(model))
    return PoplarExecutor(model, options, training=False, poptorch_version=_version())


def load(filename: str, edit_opts_fn: Optional[Callable[[Options], None]] = None) -> PoplarExecutor:
    """Loads an executor from a file that was saved with its model.

    .. warning:: The model is unpickled, which can execute arbitrary code. Only load files from sources you trust. To
        run a program from another source, build the model yourself and use `PoplarExecutor.loadExecutable`.

    Args:
        filename: as given to `save` or `compileAndExport`.
        edit_opts_fn: called with the options, which it may change, before the executor is created.

    Raises:
        AssertionError: for a file that is not a program of this version, or does not contain a model.
    """
    try:
        loaded = program_file.read(filename, _version())
    except Error as error:
        raise AssertionError(error.message) from error
    check(
        loaded.has_model,
        f"{filename} has no model: it was exported with export_model=False; build the model and use loadExecutable",
    )
    saved = program_file.read_model(filename)
    options = saved["options"].clone()
    options.deleteIfExists("ipu_version")
    if options.connection_type == ConnectionType.Never.value:
        options.connectionType(ConnectionType.Always)
    if edit_opts_fn is not None:
        edit_opts_fn(options)
    executor = PoplarExecutor(saved["model"], options, saved["training"], _version(), saved["optimizer"])
    executor.per_replica_params.update(saved.get("per_replica_params", {}))
    executor.loadExecutable(filename)
    return executor


def _unwrapped(model: Union[torch.nn.Module, PoplarExecutor]) -> torch.nn.Module:
    model = model.model if isinstance(model, PoplarExecutor) else model
    if not isinstance(model, torch.nn.Module):
        raise createPoptorchError(f"a model must be a torch.nn.Module, but is of type {type(model).__name__}")
    for name, part in model.named_modules():
        what = f"{name or 'the model'} is a {type(part).__name__}"
        by_dynamo = type(part).__module__.startswith("torch._dynamo")
        if by_dynamo or isinstance(part, torch.jit.ScriptModule):
            by = "torch.compile" if by_dynamo else "torch.jit"
            raise createPoptorchError(f"{what} compiled by {by}: use the torch.nn.Module that it was compiled from")
        if any(torch.nn.parameter.is_lazy(parameter) for parameter in part.parameters(recurse=False)):
            raise createPoptorchError(f"{what} whose weights have no shapes yet: call the model once on the host")
    return model


def _version() -> str:
    from . import __version__  # the package imports this module

    return __version__
