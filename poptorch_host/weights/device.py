# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The copies of weights on the device, and how they are installed in the model for a call.

The user's module has the tensors of the host. A compiled program has copies of its own, which replace those in the
module while a call runs. So a missing copy between host and device has the same consequences as on a device.
"""

import contextlib
from typing import Any, ContextManager, Dict, Iterator, List, NamedTuple, Optional, Set, Tuple

import torch

from .._logging import logger
from ..enums import CommGroupType, VariableRetrievalMode
from ..errors import Error, check, createPoptorchError
from ..inputs.arguments import DEVICE_DTYPES
from ..inputs.blank import BlankTensors
from ..options import Options
from .plain_attributes import PlainAttributes

_ABSENT = object()
untouched = torch._C.DisableTorchFunctionSubclass  # in this context, reading a host tensor does not synchronise it


class ReplicaGrouping(NamedTuple):
    """The groups of replicas that share the value of a parameter.

    The host tensor has an additional first dimension of groups, unless there is a single group.
    """

    kind: CommGroupType
    size: int
    retrieval: VariableRetrievalMode

    def groups(self, replicas: int) -> int:
        """Returns the number of groups among `replicas` replicas."""
        if self.kind == CommGroupType.All:
            return 1
        return replicas // self._size()

    def group_of(self, replica: int, replicas: int) -> int:
        """Returns the group of a replica."""
        groups = self.groups(replicas)
        return replica % groups if self.kind == CommGroupType.Orthogonal else replica // (replicas // groups)

    def check(self, name: str, shape: torch.Size, replicas: int) -> None:
        """Raises Error if `replicas` cannot be divided into groups, or the host tensor does not have a row for each."""
        if self.kind != CommGroupType.All and (self._size() < 1 or replicas % self._size()):
            raise createPoptorchError(
                f"replicaGrouping of {name}: {replicas} replicas do not divide into groups of {self.size}"
            )
        groups = self.groups(replicas)
        if groups > 1 and (not shape or shape[0] not in (groups, replicas)):
            raise createPoptorchError(
                f"replicaGrouping of {name}: its first dimension must be the number of groups, "
                f"{groups}, but its shape is {list(shape)}"
            )

    def _size(self) -> int:
        return 1 if self.kind == CommGroupType.NoGrouping else self.size


class _Slot(NamedTuple):
    """An attribute of a module that holds a parameter or buffer."""

    holder: Dict[str, Optional[torch.Tensor]]
    key: str
    device: torch.Tensor
    name: str


class _Installed:
    """See `DeviceWeights.installed`. A class, since it is faster than a generator and every call enters it."""

    def __init__(self, places: List[Tuple[Dict[str, Any], str, Any]], flags: List[Tuple[Dict[str, Any], bool]]) -> None:
        self._places = places
        self._flags = flags
        self._saved: List[Any] = []
        self._changed: List[Tuple[Dict[str, Any], bool]] = []

    def __enter__(self) -> None:
        self._saved = [holder.get(key, _ABSENT) for holder, key, _ in self._places]
        self._changed = [
            (attributes, attributes["training"])
            for attributes, flag in self._flags
            if attributes["training"] is not flag
        ]
        for holder, key, compiled in self._places:
            holder[key] = compiled
        if self._changed:
            for attributes, flag in self._flags:
                attributes["training"] = flag

    def __exit__(self, *exception: object) -> None:
        for (holder, key, _), host in zip(self._places, self._saved):
            if host is _ABSENT:
                holder.pop(key, None)
            else:
                holder[key] = host
        for attributes, flag in self._changed:
            attributes["training"] = flag


class DeviceWeights:
    """The copies of a module's parameters and buffers on the device.

    Args:
        module: the module whose tensors to copy.
        device: the PyTorch device of the copies.
        trained: the ids of the parameters that an optimizer updates; the others get no gradient.
        groupings: the groupings of parameters that differ between replicas, by name.
        options: the executor's options.
        blank: creates the copies for compilation without values; None for copies with values.

    Attributes:
        parameters, buffers: (name, tensor on the host, tensor on the device) of each parameter and buffer.
        plain_attributes: the other attributes of modules that forward changes.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        device: torch.device,
        trained: Set[int],
        groupings: Dict[str, ReplicaGrouping],
        options: Options,
        blank: Optional[BlankTensors] = None,
    ) -> None:
        self.device = device
        self.blank = blank
        self._options = options
        self._by_host: Dict[int, torch.Tensor] = {}
        with untouched():
            self.parameters = [
                (name, host, self._copy(host, id(host) in trained, groupings.get(name), name))
                for name, host in module.named_parameters()
            ]
            self.buffers = [(name, host, self._copy(host, None, None, name)) for name, host in module.named_buffers()]
            self._slots = list(self._find_slots(module))
        self._module = module
        self._parts = [(part._modules, key, child) for part in module.modules() for key, child in part._modules.items()]
        self._norm_statistics = {
            f"{path}.{key}" if path else key
            for path, part in module.named_modules()
            if isinstance(part, torch.nn.modules.batchnorm._NormBase)
            for key in part._buffers
        }
        self._training_flags = [(vars(part), part.training) for part in module.modules()]
        self._groupings = {
            id(self._by_host[id(host)]): groupings[name] for name, host, _ in self.parameters if name in groupings
        }
        self._rows: Dict[int, torch.Tensor] = {}  # of per-replica parameters, those of the replica that was selected
        self.replica_buffers: List[Dict[int, torch.Tensor]] = []
        self.plain_attributes = PlainAttributes(module)

    def _copy(
        self, host: torch.Tensor, trained: Optional[bool], grouping: Optional[ReplicaGrouping], name: str
    ) -> torch.Tensor:
        if id(host) not in self._by_host:
            if grouping is not None:
                grouping.check(name, host.shape, self._options.replication_factor)
            value = self._rows_per_group(host.detach(), grouping)
            dtype = DEVICE_DTYPES.get(host.dtype, host.dtype)
            copied = self.blank.like(value, dtype) if self.blank else value.to(self.device, dtype, copy=True)
            if trained is not None:
                copied = torch.nn.Parameter(copied, requires_grad=trained)
            self._by_host[id(host)] = copied
        return self._by_host[id(host)]

    def _rows_per_group(self, value: torch.Tensor, grouping: Optional[ReplicaGrouping]) -> torch.Tensor:
        """Returns one row for each group of a host tensor that may have one for each replica."""
        replicas = self._options.replication_factor
        if grouping is None or grouping.groups(replicas) in (1, value.shape[0]):
            return value
        groups = grouping.groups(replicas)
        first = [next(r for r in range(replicas) if grouping.group_of(r, replicas) == group) for group in range(groups)]
        return value[first]

    def _find_slots(self, module: torch.nn.Module) -> Iterator[_Slot]:
        for path, part in module.named_modules():
            for holder in (part._parameters, part._buffers):
                for key, host in holder.items():
                    if host is not None:
                        yield _Slot(holder, key, self._by_host[id(host)], f"{path}.{key}" if path else key)

    # Copies between host and device.

    def upload(self) -> None:
        """Copies all tensors from the host to the device."""
        logger.debug("Writing weights from host to IPU memory.")
        with untouched(), torch.no_grad():
            for name, _, device in self.parameters + self.buffers:
                host = self._on_host(name, device)
                device.copy_(self._rows_per_group(host, self._groupings.get(id(device))))
            for own in self.replica_buffers[1:]:
                for shared, copied in zip(self.replica_buffers[0].values(), own.values()):
                    copied.copy_(shared)

    def upload_buffers(self, names: Set[str]) -> None:
        """Copies the named buffers to the device."""
        with untouched(), torch.no_grad():
            for name, _, device in self.buffers:
                if name in names:
                    for own in self.replica_buffers or [{}]:
                        own.get(id(device), device).copy_(self._on_host(name, device))

    def download(self) -> None:
        """Copies all tensors to the host, except integer buffers, which are constants of the program."""
        logger.debug("Writing weights from IPU to host.")
        with untouched(), torch.no_grad():
            for name, _, device in self.parameters + self.buffers:
                if not device.is_floating_point():
                    continue
                try:
                    self._download_one(self._on_host(name, device), device)
                except Error as error:
                    logger.warning("A tensor of the device cannot be copied to the host: %s", error.message)

    def _on_host(self, name: str, device: torch.Tensor) -> torch.Tensor:
        """Returns the current tensor of the user's module under a name.

        Raises:
            Error: if there is none, or its shape has changed since compilation.
        """
        host = _tensor_at(self._module, name)
        shapes = [list(tensor.shape) for tensor in (device, host) if tensor is not None]
        grouped = id(device) in self._groupings
        if host is None or (shapes[0][grouped:] != shapes[1][grouped:]):
            now = "was removed" if host is None else f"was replaced by one of shape {shapes[1]}"
            raise createPoptorchError(
                f"{_kind(device)} {name} of shape {shapes[0]} {now} after the model was "
                "compiled: call destroy() to compile it again"
            )
        return host

    def _download_one(self, host: torch.Tensor, device: torch.Tensor) -> None:
        grouping = self._groupings.get(id(device))
        if grouping is not None and grouping.retrieval == VariableRetrievalMode.AllReplicas:
            replicas = self._options.replication_factor
            if grouping.groups(replicas) > 1:
                rows = [grouping.group_of(replica, replicas) for replica in range(replicas)]
                host.data = device.detach()[rows].to(host.device, host.dtype)
                return
        host.copy_(device)

    # The model during a call.

    def keep_buffers_apart(self, updated: Set[str]) -> None:
        """Creates a copy for each replica of the buffers that forward updates."""
        originals = {id(device): device for name, _, device in self.buffers if name in updated}
        replicas = self._options.replication_factor
        self.replica_buffers = [originals] + [
            {key: value.clone() for key, value in originals.items()} for _ in range(replicas - 1)
        ]

    def latch_training_flags(self, module: torch.nn.Module, flags: Dict[str, bool]) -> None:
        """Sets the `training` flags with which the modules in `module` run, whatever their own flags are."""
        self._training_flags = [(vars(part), flags[name]) for name, part in module.named_modules() if name in flags]

    def broadcast(self, group: "torch.distributed.ProcessGroup") -> None:
        """Copies the weights of the first process to all processes."""
        for _, tensor in self.named_tensors():
            torch.distributed.broadcast(tensor.detach(), 0, group=group)

    def is_norm_statistic(self, name: str) -> bool:
        """Returns whether a buffer belongs to a batch norm, which updates it without an in-place operation."""
        return name in self._norm_statistics

    def has_values_per_replica(self) -> bool:
        """Returns whether a parameter or buffer differs between replicas."""
        return len(self.replica_buffers) > 1 or bool(self._groupings)

    def replica_groups(self) -> Dict[str, int]:
        """How many groups of replicas have values of their own, of each parameter that is not shared by all."""
        replicas = self._options.replication_factor
        counts = {
            name: self._groupings[id(device)].groups(replicas)
            for name, _, device in self.parameters
            if id(device) in self._groupings
        }
        return {name: count for name, count in counts.items() if count > 1}

    def installed(self) -> "_Installed":
        """Returns a context manager that installs the tensors, training flags and submodules that were compiled.

        So a program runs as it was compiled, whatever the user has replaced in the module since.
        """
        tensors = [(slot.holder, slot.key, slot.device) for slot in self._slots]
        return _Installed(tensors + self._parts, self._training_flags)

    def tracing(self) -> ContextManager[Any]:
        """Returns a context manager for tracing with these tensors, with or without values."""
        return self.blank.mode if self.blank else contextlib.nullcontext()

    def select_replica(self, replica: int) -> None:
        """Installs the parameters and buffers of a replica that differ between replicas."""
        replicas = self._options.replication_factor
        own = self.replica_buffers[replica] if self.replica_buffers else {}
        for holder, key, device, _ in self._slots:
            if id(device) in own:
                holder[key] = own[id(device)]
            elif id(device) in self._groupings:
                holder[key] = self._rows[id(device)] = self._of_group(device, replica, replicas)

    def _of_group(self, device: torch.Tensor, replica: int, replicas: int) -> torch.Tensor:
        """Returns a replica's row of a grouped parameter.

        Its gradient is summed over the group. A mean is over all replicas, as for any other parameter.
        """
        grouping = self._groupings[id(device)]
        return device if grouping.groups(replicas) == 1 else device[grouping.group_of(replica, replicas)]

    def states(self, updated: Set[str]) -> List[torch.Tensor]:
        """Returns the buffers among `updated` that forward itself updates, of all replicas."""
        updated = {name for name in updated if not self.is_norm_statistic(name)}
        shared = [device for name, _, device in self.buffers if name in updated]
        return shared + [own[id(device)] for own in self.replica_buffers[1:] for device in shared]

    def restore_constants(self, originals: List[Tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Restores integer buffers, which are constants of the program, after forward has changed them."""
        for device, original in originals:
            device.copy_(original)

    def check_slots(self) -> None:
        """Checks that forward has not reassigned or deleted parameters or buffers. Call while they are installed.

        Raises:
            Error: for the first one. Batch norms may reassign num_batches_tracked.
        """
        for holder, key, device, name in self._slots:
            if key not in holder:
                raise createPoptorchError(
                    f"{_kind(device)} {name} is removed from the model when calling the forward "
                    "method. This is not supported."
                )
            if holder[key] is not self._rows.get(id(device), device) and key != "num_batches_tracked":
                raise createPoptorchError(
                    f"{_kind(device)} {name} is reassigned within the model when calling the forward method. This is "
                    f"not supported. Consider using self.{name}.copy_(src), which updates it in place."
                )

    def storages(self) -> Set[int]:
        """Returns the addresses of the storages of all tensors on the device."""
        own = [tensor for copies in self.replica_buffers for tensor in copies.values()]
        return {tensor.untyped_storage().data_ptr() for tensor in [t for _, t in self.named_tensors()] + own}

    def named_tensors(self) -> List[Tuple[str, torch.Tensor]]:
        """Returns the name and the tensor on the device of every parameter and buffer."""
        return [(name, device) for name, _, device in self.parameters + self.buffers]


def _tensor_at(module: torch.nn.Module, name: str) -> Optional[torch.Tensor]:
    """Returns the parameter or buffer with a name in named_parameters() or named_buffers(); None if there is none."""
    *path, key = name.split(".")
    holder: Optional[torch.nn.Module] = module
    for part in path:
        holder = None if holder is None else holder._modules.get(part)
    if holder is None:
        return None
    found = holder._parameters.get(key)
    return holder._buffers.get(key) if found is None else found


def _kind(device: torch.Tensor) -> str:
    return "Parameter" if isinstance(device, torch.nn.Parameter) else "Buffer"


def parse_grouping(kind: CommGroupType, size: int, retrieval: VariableRetrievalMode) -> ReplicaGrouping:
    """Returns a grouping. Raises AssertionError for arguments of other types."""
    check(isinstance(kind, CommGroupType), f"expected a poptorch.CommGroupType, not {kind!r}")
    check(isinstance(size, int) and size >= 0, f"expected a number of replicas, not {size!r}")
    check(isinstance(retrieval, VariableRetrievalMode), f"expected a poptorch.VariableRetrievalMode, not {retrieval!r}")
    return ReplicaGrouping(kind, size, retrieval)
