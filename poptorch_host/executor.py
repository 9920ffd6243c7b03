# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Models as they run on a device: `trainingModel`, `inferenceModel` and the executor that they return."""

import contextlib
import os
import time
from typing import Any, Callable, Dict, List, Optional, Union

import torch

from . import host, torch_ops  # noqa: F401, torch_ops for what it does: torch.ops.poptorch is there
from . import optim as poptorch_optim
from ._logging import logger
from ._printing import module_repr
from .compiling import compile_hooks, program_file
from .compiling.compiler import Compiled, can_run, check_options, compile_model, pieces_of
from .enums import ConnectionType, OutputMode
from .errors import Error, check, createPoptorchError
from .inputs.arguments import Bound, ForwardParameters, InputContract
from .inputs.blank import BlankTensors
from .options import Options, PipelinedExecution
from .reporting.inspection import Inspection
from .reporting.summary import report_compilation
from .running.engine import Engine
from .running.inference_mode import outside_inference_mode
from .running.randomness import DeviceRandomness
from .updating.latch import OptimizerLatch
from .updating.reduce import process_group
from .updating.update import WeightUpdate
from .weights import wrapping
from .weights.device import DeviceWeights, ReplicaGrouping, untouched

_NOTHING = contextlib.nullcontext()


class PoplarExecutor(Inspection):
    """A model compiled for a device and run there. Made by `trainingModel` and `inferenceModel`.

    The first call, or `compile`, compiles the model for the shapes of its arguments; each call then runs
    device iterations x gradient accumulation x replicas micro-batches. Attributes that an executor does not have are
    the model's.

    Attributes:
        per_replica_params: how replicas share parameters, by name, where not all have the same.
        compiled: what was compiled (see `compiler.Compiled`); None before. Of this package, not of PopTorch.
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
        if options is not None and not isinstance(options, Options):
            raise createPoptorchError(f"Invalid type {type(options).__name__} of options: use poptorch.Options()")
        self._user_model = user_model or model
        self._training = training
        self._version = poptorch_version
        self._options = _own_options(options or Options(), training)
        self._latch: Optional[OptimizerLatch] = None
        if training:
            self._latch = OptimizerLatch(self._options)
            self._latch.set(optimizer)
        self._model = wrapping.plain_copy(model) if training else self._user_model
        if training:
            wrapping.wrap(self._user_model, self)
        self._forward_parameters = ForwardParameters(self._model.forward)
        self.per_replica_params: Dict[str, ReplicaGrouping] = {}
        self._forget_program()
        if options is not None:
            options._freeze()
        self._options._freeze()

    def _forget_program(self) -> None:
        self._can_run = can_run(self._options)
        self.compiled: Optional[Compiled] = None
        self._weights: Optional[DeviceWeights] = None
        self._update: Optional[WeightUpdate] = None
        self._engine: Optional[Engine] = None
        self._randomness: Optional[DeviceRandomness] = None
        self._attached = False
        self._device_is_newer = False
        self._trained_version = 0
        self._compilation_seconds = 0.0
        self._run_nanoseconds: Optional[int] = None

    # The model inside.

    @property
    def model(self) -> torch.nn.Module:
        """The user's model that is trained; for inference a copy of it, which shares all parts and weights."""
        return self._user_model

    @property
    def options(self) -> Options:
        """The executor's own copy of the options."""
        return self._options

    def __getattr__(self, attr: str) -> Any:
        if "_user_model" not in vars(self):  # an executor that is being made or unpickled
            raise AttributeError(attr)
        attribute = getattr(self._user_model, attr)
        if isinstance(attribute, torch.nn.Parameter):
            return wrapping.ParameterProxy(self, attr, attribute)
        return attribute

    def __repr__(self) -> str:
        return module_repr(self._user_model)

    def load_state_dict(self, state_dict: Dict[str, torch.Tensor], strict: bool = True):
        """Loads weights into the model, and from there into the device when attached.

        Returns:
            The missing and unexpected keys, as torch.nn.Module's method.
        """
        result = self._user_model.load_state_dict(state_dict, strict=strict)
        if self._attached:
            self.copyWeightsToDevice()
        return result

    def _group_replicas(self, name: str, grouping: ReplicaGrouping) -> None:
        if self.isCompiled():
            raise createPoptorchError(f"replicaGrouping of {name}: the model is compiled already; call it before")
        self.per_replica_params[name] = grouping

    # Weights.

    def copyWeightsToHostIfNeeded(self) -> bool:
        """Copies the weights to the host if training has changed them since; returns whether it did."""
        if not (self._training and self._attached and self._device_is_newer):
            return False
        logger.debug("Implicit copyWeightsToHost()")
        self.copyWeightsToHost()
        return True

    def copyWeightsToHost(self) -> None:
        """Copies parameters and buffers from the device to the user's model."""
        self._require_compiled("copyWeightsToHost")
        if not self._attached:
            return
        self._device_is_newer = False
        self._weights.download()
        if self._training:
            wrapping.note_new_host_weights(self._user_model)

    def copyWeightsToDevice(self) -> None:
        """Copies parameters and buffers from the user's model to the device. Newer ones there are lost."""
        self._require_compiled("copyWeightsToDevice")
        if self._attached:
            self._device_is_newer = False
            self._weights.upload()

    def copyNamedBuffersToDevice(self) -> None:
        """Copies the buffers of Options.updatableNamedBuffers from the user's model to the device."""
        self._require_compiled("copyNamedBuffersToDevice")
        names = self._updatable_buffers()
        if not names:
            raise createPoptorchError("copyNamedBuffersToDevice needs Options.updatableNamedBuffers")
        self._weights.upload_buffers(set(names))

    def _updatable_buffers(self) -> List[str]:
        return list(self._options._Popart.options.get("updatableNamedBuffers", []))

    def _fetch_trained_weights(self) -> None:
        """Brings an inference device up to date with a training of the same model."""
        wrapping.fetch_trained_weights(self._user_model)
        version = wrapping.host_version(self._user_model)
        if version != self._trained_version:
            self._trained_version = version
            self._weights.upload()

    def setOptimizer(self, optimizer: torch.optim.Optimizer):
        """Takes over the optimizer's hyper-parameters as they are now. Later changes need another call.

        Raises:
            AssertionError: for an unsupported class or a value of the wrong kind.
            ValueError: for amsgrad, or half accumulators after compilation.
            Error: for a changed constant after compilation, or an executor for inference.
        """
        if self._latch is None:
            raise createPoptorchError("setOptimizer: this executor does not train")
        if self._update is not None:
            self._update.latch(optimizer)
        else:
            self._latch.set(optimizer, compiled=self.isCompiled())

    # Compiling and running.

    @outside_inference_mode
    def compile(self, *args, **kwargs) -> None:
        """Compiles the model for arguments like these, without running it. No effect on a compiled model."""
        if self.isCompiled():
            logger.warning("Call to compile() ignored: the executable is already compiled; call destroy() first")
            return
        self._compile(self._forward_parameters.bind(args, kwargs))

    @outside_inference_mode
    def __call__(self, *args, **kwargs):
        """Runs the model; compiles it first, the first time.

        Args:
            args, kwargs: forward's. The first dimension of every tensor is that of a micro-batch times device
                iterations x groups of replicas x gradient accumulation.

        Returns:
            What forward returns, in the same containers, with tensors on the host that gather the micro-batches as the
            output mode says; int64 as int32, float64 as float32.

        Raises:
            Error: for arguments unlike those it was compiled for.
            AssertionError: with ConnectionType.Never, too many or unknown arguments, or a batch that cannot be cut.
        """
        check(
            self._can_run,
            "Trying to run a model on an offline device (ConnectionType.Never, or meta): use "
            "model.compile(inputs) instead of model(inputs)",
        )
        bound = self._forward_parameters.bind(args, kwargs)
        if self.compiled is None:
            self._compile(bound)
        else:
            bound = self.compiled.inputs.check(bound, self._forward_parameters.names)
        if not self._attached:
            self.attachToDevice()
        if self._training:
            self._update.upload()
        else:
            self._fetch_trained_weights()
        start = time.perf_counter_ns()
        with self._randomness if self.compiled.draws_random_numbers else _NOTHING:
            outputs = self._engine.run(bound)
        self._run_nanoseconds = time.perf_counter_ns() - start
        if self._training:
            self._update.mark_run()
            self._device_is_newer = True
        return outputs

    def _compile(self, bound: Bound) -> None:
        start = time.perf_counter()
        compile_hooks.run_before()
        try:
            if self._training and not wrapping.is_wrapped(self._user_model):
                wrapping.wrap(self._user_model, self)
            check_options(self._options)
            inputs = InputContract(bound, self._forward_parameters.names, pieces_of(self._options))
            wrapping.fetch_trained_weights(self._user_model)
            self._prepare_device()
            with self._randomness.rehearsing():
                compiled = compile_model(self._model, bound, inputs, self._weights, self._options, self._training)
            self._adopt(compiled)
        except Exception:  # whatever it was: a model that did not compile has no program, and says why
            self._forget_program()
            raise
        finally:
            compile_hooks.run_after()
        self._compilation_seconds = time.perf_counter() - start
        report_compilation(self)

    def _prepare_device(self) -> None:
        """Makes the device's weights and random numbers."""
        trained = set()
        if self._training:
            with untouched():
                trained = {
                    id(parameter)
                    for members in self._latch.latched.members
                    for parameter in members
                    if parameter.requires_grad
                }
        device, blank = host.device(), None
        if device.type == "meta":
            device, blank, self._can_run = torch.device("cpu"), BlankTensors(), False
        self._weights = DeviceWeights(self._model, device, trained, self.per_replica_params, self._options, blank)
        unknown = set(self._updatable_buffers()) - {name for name, _, _ in self._weights.buffers}
        if unknown:
            raise createPoptorchError(
                f"Options.updatableNamedBuffers: the model has no buffer {', '.join(sorted(unknown))}"
            )
        seed = self._options.random_seed if self._options.exists("random_seed") else None
        process = self._options.Distributed.processId
        self._randomness = DeviceRandomness(device, None if seed is None else seed + process)

    def _adopt(self, compiled: Compiled) -> None:
        """Makes `compiled` the program of this executor."""
        self.compiled = compiled
        self._trained_version = wrapping.host_version(self._user_model)
        self._weights.latch_training_flags(self._model, compiled.training_flags)
        if compiled.updated_buffers and self._options.replication_factor > 1:
            self._weights.keep_buffers_apart(set(compiled.updated_buffers))
        if not self._can_run:
            return
        if self._training:
            group = process_group(self._options, self._weights.device)
            if group is not None:
                self._weights.broadcast(group)
                self._weights.download()
            self._update = WeightUpdate(
                self._latch,
                self._weights.parameters,
                self._options,
                seed=self._randomness.seed,
                replica_groups=self._weights.replica_groups(),
            )
        self._engine = Engine(self._model, compiled, self._weights, self._options, self._update)
        self._attached = self._options.connection_type == ConnectionType.Always.value

    def destroy(self) -> None:
        """Ends the program, if there is one: fetches weights and optimizer state, and unwraps the model."""
        if not self.isCompiled():
            return
        if self._training:
            self.copyWeightsToHostIfNeeded()
            if self._update is not None:
                self._update.release()
            wrapping.unwrap(self._user_model, self)
        self._forget_program()

    # Devices.

    def isAttachedToDevice(self) -> bool:
        """Whether a device holds the program."""
        return self._attached

    def detachFromDevice(self) -> None:
        """Fetches weights, optimizer state and random state, and lets the device go."""
        self._require_compiled("detachFromDevice")
        if not self._attached:
            raise createPoptorchError("detachFromDevice: the model is not attached to a device")
        self.copyWeightsToHostIfNeeded()
        if self._update is not None:
            self._update.download()
        self._attached = False

    def attachToDevice(self) -> None:
        """Takes a device and brings weights and optimizer state to it."""
        self._require_compiled("attachToDevice")
        check(self._can_run, "Trying to attach to an offline device (ConnectionType.Never, or meta)")
        if self._attached:
            raise createPoptorchError("attachToDevice: the model is already attached to a device")
        self._attached = True
        self.copyWeightsToDevice()
        if self._update is not None:
            self._update.upload()

    @property
    def rng_state(self) -> List[int]:
        """The state of the device's random numbers: the seed, then words, two of stochastic rounding last. Settable."""
        self._require_compiled("rng_state")
        rounding = (self._randomness.seed, 0) if self._update is None else self._update.rounding_state
        return [*self._randomness.state, *rounding]

    @rng_state.setter
    def rng_state(self, state: List[int]) -> None:
        self._require_compiled("rng_state")
        self._randomness.state = state[:-2]
        if self._update is not None:
            self._update.rounding_state = tuple(state[-2:])

    # Files.

    def save(self, filename: str, export_model: bool = True, save_rng_state: bool = True):
        """Writes the compiled program.

        Args:
            filename: folders are made; in a folder that exists the file is called model.poptorch.
            export_model: also pickles the model with its weights, options and optimizer, for `poptorch.load`.
            save_rng_state: also the state of the device's random numbers.

        Raises:
            Error: without a program, or when an argument it was compiled for cannot be saved.
        """
        self._require_compiled("save")
        if self._weights.blank:
            raise createPoptorchError("save: a program compiled on the device meta has no values: compile it on cpu")
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
            if self._update is not None:
                self._update.download()
        program_file.write(filename, self._version, self.compiled, self.rng_state if save_rng_state else None, model)

    def compileAndExport(
        self, filename: str, *args: List["torch.Tensor"], export_model: bool = True, **kwargs: Dict[str, "torch.Tensor"]
    ):
        """Compiles the model for arguments like these and saves it (see `save`)."""
        if not self.isCompiled():
            self.compile(*args, **kwargs)
        self.save(filename, export_model)

    @outside_inference_mode
    def loadExecutable(self, filename: str) -> None:
        """Takes over a program that was saved. The weights are the model's; nothing but plain data is read.

        Raises:
            Error: for a file that is no program of this version, or one of another kind of model or batch.
        """
        loaded = program_file.read(filename, self._version)
        if loaded.compiled.training != self._training:
            raise createPoptorchError(
                f"{filename} is for {'training' if loaded.compiled.training else 'inference'}, not for this executor"
            )
        if loaded.compiled.inputs.pieces != pieces_of(self._options):
            raise createPoptorchError(
                f"{filename} takes {loaded.compiled.inputs.pieces} micro-batches a call, the "
                f"options of this executor say {pieces_of(self._options)}"
            )
        if self.isCompiled():
            logger.warning("loadExecutable: replaces the program that is there")
            self.destroy()
        if self._training and not wrapping.is_wrapped(self._user_model):
            wrapping.wrap(self._user_model, self)
        self._prepare_device()
        self._adopt(loaded.compiled)
        if loaded.rng_state is not None:
            self.rng_state = loaded.rng_state


def trainingModel(
    model: Union[torch.nn.Module, PoplarExecutor],
    options: Optional[Options] = None,
    optimizer: Optional[torch.optim.Optimizer] = None,
) -> PoplarExecutor:
    """Wraps a model for training: each call runs forward, backward and weight updates.

    Args:
        model: its forward computes a loss. Its class, and those of its parameters and buffers, change in place, so that
            reading a weight fetches the newest value.
        options: frozen from here on; None for the defaults.
        optimizer: over the model's parameters; None for poptorch.optim.SGD with lr 0.01.

    Raises:
        Error: for options of another type.
        RuntimeError: for a model that is wrapped for training already.
    """
    model = _unwrapped(model)
    if optimizer is None:
        with untouched():
            optimizer = poptorch_optim.SGD(model.parameters(), lr=0.01)
    return PoplarExecutor(model, options, training=True, poptorch_version=_version(), optimizer=optimizer)


def inferenceModel(model: Union[torch.nn.Module, PoplarExecutor], options: Optional[Options] = None) -> PoplarExecutor:
    """Wraps a model for inference.

    Args:
        model: stays as it is; one that is wrapped for training is welcome, and its newest weights are used. The
            executor has a copy: the same weights and parts, with a training flag and other plain attributes of its own.
        options: frozen from here on; None for the defaults.

    Raises:
        Error: for options of another type, or with gradient accumulation.
    """
    if isinstance(options, Options) and options.Training.gradient_accumulation != 1:
        hint = ""
        if isinstance(options._execution_strategy, PipelinedExecution):
            hint = ". A pipeline without training is filled by Options.deviceIterations"
        raise createPoptorchError(
            "You must set Options.Training.gradientAccumulation to 1 for inference, not "
            f"{options.Training.gradient_accumulation}{hint}"
        )
    return PoplarExecutor(wrapping.own_copy(_unwrapped(model)), options, training=False, poptorch_version=_version())


def load(filename: str, edit_opts_fn: Optional[Callable[[Options], None]] = None) -> PoplarExecutor:
    """Rebuilds an executor from a file that was saved with its model.

    The model is unpickled, which runs code of the file's choosing: load only files from people you trust. To run a
    program from elsewhere, build the model yourself and use `PoplarExecutor.loadExecutable`.

    Args:
        filename: as given to `save` or `compileAndExport`.
        edit_opts_fn: gets the options, not frozen, before the executor is made.

    Raises:
        AssertionError: for a file that is no program of this version, or has no model.
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


def _own_options(options: Options, training: bool) -> Options:
    """A copy with what depends on the kind of model decided."""
    own = options.clone()
    if own.defaultOutputMode():
        own.outputMode(OutputMode.Final if training else OutputMode.All)
    return own


def _unwrapped(model: Union[torch.nn.Module, PoplarExecutor]) -> torch.nn.Module:
    model = model.model if isinstance(model, PoplarExecutor) else model
    if not isinstance(model, torch.nn.Module):
        raise createPoptorchError(f"a model must be a torch.nn.Module, but is of type {type(model).__name__}")
    for name, part in model.named_modules():
        if isinstance(part, torch.jit.ScriptModule):
            raise createPoptorchError(
                f"{name or 'the model'} is compiled by torch.jit to a {type(part).__name__}: use "
                "the torch.nn.Module that it was made of"
            )
    return model


def _version() -> str:
    from . import __version__  # the package imports this module

    return __version__
