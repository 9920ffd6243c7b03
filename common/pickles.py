# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Reads pickles as data: the classes they name are never looked up, imported or called.

The instructions of a pickle are executed here, on lists, dicts and records of this module only. Any other object
becomes an `Inert`, which keeps the name of its class and its arguments. A tensor of torch.save becomes a
`StoredTensor`, which describes the location and layout of its values.
"""

import pickletools
from typing import IO, Any, Callable, Dict, Hashable, List, NamedTuple, Tuple, cast

MAX_PICKLE_BYTES = 64 << 20  # the pickle of a checkpoint with 2,000 tensors and their moments has less than one MiB
MAX_LINE_BYTES = 1024  # of a name, or a decimal number, which takes quadratic time to convert
# A checkpoint has about 220 instructions for a trained tensor with its moments and settings (Swin-L: 80,000 in all),
# and 22 for an epoch that was trained. Its size is 30 bytes or more for each of them, even if its tensors are small, so
# larger files may have more. In a hostile file, 300,000 take a second and 24 MB at the most.
MAX_INSTRUCTIONS = 300_000  # of a file below 5 MB
BYTES_PER_INSTRUCTION = 16
MOST_INSTRUCTIONS = 3_000_000  # of any file: over 10,000 trained tensors
KEYS = (str, int, float, bytes, type(None))  # of dicts; tuples could be nested until hashing them ends the process

# Storages of torch.save by class, and the dtypes of their values.
STORAGES = {
    "torch DoubleStorage": "float64",
    "torch FloatStorage": "float32",
    "torch HalfStorage": "float16",
    "torch BFloat16Storage": "bfloat16",
    "torch LongStorage": "int64",
    "torch IntStorage": "int32",
    "torch ShortStorage": "int16",
    "torch CharStorage": "int8",
    "torch ByteStorage": "uint8",
    "torch BoolStorage": "bool",
}
DICTS = ("collections OrderedDict", "collections defaultdict", "builtins dict", "__builtin__ dict")
TENSORS = ("torch Tensor", "torch._tensor Tensor", "torch.nn.parameter Parameter", "torch.nn.parameter Buffer")


class BadPickle(Exception):
    """The bytes are not a supported pickle; the message says why."""


class Global(NamedTuple):
    """A class or function named by a pickle, as 'module name'; it is never looked up."""

    name: str


class Inert:
    """A placeholder for an object of an unsupported class: the class and its arguments."""

    def __init__(self, name: str):
        self.name = name.replace(" ", ".")
        self.items: Dict[Hashable, Any] = {}
        self.state: Any = None


class Storage(NamedTuple):
    """Values of a tensor: `length` values of `dtype`, starting at value `first` of the archive member `key`."""

    key: str
    dtype: str
    length: int
    first: int = 0


class StoredTensor(NamedTuple):
    """A tensor as described by a pickle, unchecked."""

    storage: Storage
    offset: Any
    size: Any
    stride: Any


def read_pickle(stream: Any, size: int, note: Callable[[Storage], Any] = lambda storage: None) -> Any:
    """Reads the pickle at the stream's position; the stream is left at its end.

    Args:
        stream: has read, readline and tell.
        size: bytes of the whole file, which limits the number of instructions.
        note: called with every storage in the pickle.

    Raises:
        BadPickle: for anything but a well-formed pickle of bounded size.
    """
    machine, most = _Machine(note), max(MAX_INSTRUCTIONS, min(size // BYTES_PER_INSTRUCTION, MOST_INSTRUCTIONS))
    try:
        for count, (instruction, argument, _) in enumerate(pickletools.genops(cast(IO[bytes], _Bounded(stream)))):
            if count == most:
                raise BadPickle(f"it has more than {most} instructions")
            machine.step(instruction.name, argument)
        return machine.stack.pop()
    except BadPickle:
        raise
    except (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RecursionError, MemoryError) as error:
        raise BadPickle(f"it is not a valid pickle: {type(error).__name__}") from error


def described(value: Any) -> str:
    """The kind of a value of `read_pickle`, for messages."""
    if isinstance(value, Inert):
        return value.name
    return value.name.replace(" ", ".") if isinstance(value, Global) else type(value).__name__


class _Bounded:
    """A stream of which at most MAX_PICKLE_BYTES can be read."""

    def __init__(self, stream: Any):
        self._stream = stream
        self._left = MAX_PICKLE_BYTES
        self.tell = stream.tell

    def read(self, count: int) -> bytes:
        """As of a file."""
        return self._counted(self._stream.read(min(count, self._left + 1)))

    def readline(self) -> bytes:
        """As of a file."""
        return self._counted(self._stream.readline(min(MAX_LINE_BYTES, self._left + 1)))

    def _counted(self, data: bytes) -> bytes:
        self._left -= len(data)
        if self._left < 0:
            raise BadPickle(f"its pickle is larger than {MAX_PICKLE_BYTES >> 20} MiB")
        return data


class _Machine:
    """The stack machine of the pickle format."""

    def __init__(self, note: Callable[[Storage], Any]) -> None:
        self._note = note
        self.stack: List[Any] = []
        self._below: List[List[Any]] = []  # the stacks below the marks
        self._memo: Dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        """Executes one instruction."""
        if name in _PUSHED:
            self.stack.append(argument)
        elif name in _MADE:
            self.stack.append(_MADE[name]())
        elif name in _FOLDED:
            self._fold(*_FOLDED[name])
        elif name in _HANDLERS:
            _HANDLERS[name](self, argument)
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise BadPickle(f"it has the instruction {name}, which checkpoints do not use")

    def mark(self, _: Any) -> None:
        """Pushes a mark."""
        self._below.append(self.stack)
        self.stack = []

    def _since_mark(self) -> List[Any]:
        together, self.stack = self.stack, self._below.pop()
        return together

    def _fold(self, count: int, make: Callable[[List[Any]], Any]) -> None:
        """Makes one value of the last `count` values, or of those since the mark if negative."""
        if count < 0:
            parts = self._since_mark()
        else:
            parts = [self.stack.pop() for _ in range(count)][::-1]
        self.stack.append(make(parts))

    def append(self, _: Any) -> None:
        """Appends a value to a list."""
        self._extend([self.stack.pop()])

    def appends(self, _: Any) -> None:
        """Appends the values since the mark to a list."""
        self._extend(self._since_mark())

    def _extend(self, values: List[Any]) -> None:
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(values)

    def setitem(self, _: Any) -> None:
        """Adds a key and value to a dict."""
        value, key = self.stack.pop(), self.stack.pop()
        self._update([key, value])

    def setitems(self, _: Any) -> None:
        """Adds the keys and values since the mark to a dict."""
        self._update(self._since_mark())

    def _update(self, pairs: List[Any]) -> None:
        target = self.stack[-1]
        target = target.items if isinstance(target, Inert) else target
        if isinstance(target, dict):
            target.update(_dict(pairs))

    def put(self, index: int) -> None:
        """Memoizes the last value under a number."""
        self._memo[index] = self.stack[-1]

    def memoize(self, _: Any) -> None:
        """Memoizes the last value under the next number."""
        self._memo[len(self._memo)] = self.stack[-1]

    def get(self, index: int) -> None:
        """Pushes a memoized value."""
        self.stack.append(self._memo[index])

    def pop(self, _: Any) -> None:
        """Drops the last value, or the mark if there is no value above it."""
        if self.stack:
            self.stack.pop()
        else:
            self._since_mark()

    def pop_mark(self, _: Any) -> None:
        """Drops the values since the mark."""
        self._since_mark()

    def dup(self, _: Any) -> None:
        """Duplicates the last value."""
        self.stack.append(self.stack[-1])

    def name(self, argument: str) -> None:
        """Pushes a class or function."""
        self.stack.append(Global(argument))

    def stack_name(self, _: Any) -> None:
        """Pushes a class or function, whose module and name are on the stack."""
        name, module = self.stack.pop(), self.stack.pop()
        self.stack.append(Global(f"{module} {name}" if isinstance(module, str) and isinstance(name, str) else "?"))

    def instance(self, argument: str) -> None:
        """Creates an object of a named class, from the values since the mark."""
        self.stack.append(_made(Global(argument), tuple(self._since_mark())))

    def instance_of(self, _: Any) -> None:
        """Creates an object of the class that is the first value since the mark."""
        parts = self._since_mark()
        self.stack.append(_made(parts[0], tuple(parts[1:])))

    def call(self, _: Any) -> None:
        """Calls a function with a tuple of arguments, see `_made`."""
        arguments, function = self.stack.pop(), self.stack.pop()
        self.stack.append(_made(function, arguments))

    def call_with_names(self, _: Any) -> None:
        """Calls a function with keyword arguments, which no tensor needs."""
        del self.stack[-2:]
        self.stack.append(_made(self.stack.pop(), None))

    def build(self, _: Any) -> None:
        """Sets the state of an object; attributes of dicts are ignored."""
        state = self.stack.pop()
        if isinstance(self.stack[-1], Inert):
            self.stack[-1].state = state

    def persistent(self, argument: Any) -> None:
        """Pushes an object stored elsewhere in the file, named by a line of text."""
        self.stack.append(Inert("persistent"))

    def stack_persistent(self, _: Any) -> None:
        """Pushes an object stored elsewhere in the file: the storage of a tensor."""
        storage = _storage(self.stack.pop())
        if isinstance(storage, Storage):
            self._note(storage)
        self.stack.append(storage)


def _dict(pairs: List[Any]) -> Dict[Hashable, Any]:
    keys, values = pairs[::2], pairs[1::2]
    return {key: value for key, value in zip(keys, values) if isinstance(key, KEYS)}


_PUSHED = (
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING"),
    *("SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "UNICODE", "BINUNICODE"),
    *("SHORT_BINUNICODE", "BINUNICODE8"),
)
_MADE: Dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_SET": list,
}
_FOLDED: Dict[str, Tuple[int, Callable[[List[Any]], Any]]] = {
    "TUPLE1": (1, tuple),
    "TUPLE2": (2, tuple),
    "TUPLE3": (3, tuple),
    "TUPLE": (-1, tuple),
    "FROZENSET": (-1, tuple),
    "LIST": (-1, list),
    "DICT": (-1, _dict),
}
_HANDLERS: Dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": _Machine.mark,
    "APPEND": _Machine.append,
    "APPENDS": _Machine.appends,
    "ADDITEMS": _Machine.appends,
    "SETITEM": _Machine.setitem,
    "SETITEMS": _Machine.setitems,
    "PUT": _Machine.put,
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "MEMOIZE": _Machine.memoize,
    "GET": _Machine.get,
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
    "POP": _Machine.pop,
    "POP_MARK": _Machine.pop_mark,
    "DUP": _Machine.dup,
    "GLOBAL": _Machine.name,
    "STACK_GLOBAL": _Machine.stack_name,
    "INST": _Machine.instance,
    "OBJ": _Machine.instance_of,
    "NEWOBJ": _Machine.call,
    "NEWOBJ_EX": _Machine.call_with_names,
    "REDUCE": _Machine.call,
    "BUILD": _Machine.build,
    "PERSID": _Machine.persistent,
    "BINPERSID": _Machine.stack_persistent,
}


def _storage(identity: Any) -> Any:
    """The object with a persistent id of torch.save: ('storage', class, key, device, count[, view])."""
    if not isinstance(identity, tuple) or len(identity) not in (4, 5, 6) or not isinstance(identity[1], Global):
        return Inert("persistent")
    if len(identity) == 4:  # ('module', class, file, source), of whole saved models
        return identity[1]
    _, kind, key, _, count, *view = identity
    if kind.name not in STORAGES or not isinstance(key, str) or type(count) is not int or count < 0:
        return Inert(kind.name)
    first = 0
    if view and view[0] is not None:  # a part of the storage, in files older than PyTorch 1.6
        _, first, _ = view[0]
    return Storage(key, STORAGES[kind.name], count, first)


def _made(function: Any, arguments: Any) -> Any:
    """The value of a call in a pickle: a tensor, an empty dict, or a placeholder."""
    if not isinstance(function, Global):
        return Inert(described(function))
    if isinstance(arguments, tuple):
        if function.name in DICTS and not any(isinstance(part, (list, tuple)) for part in arguments):
            return {}
        if function.name == "torch._utils _rebuild_from_type_v2" and len(arguments) == 4:
            function, kind, arguments, _ = arguments
            if not isinstance(kind, Global) or kind.name not in TENSORS:
                return Inert(described(kind))
        if isinstance(function, Global) and isinstance(arguments, tuple) and arguments:
            if function.name in _REBUILT:
                return _REBUILT[function.name](arguments)
    return Inert(described(function))


def _tensor(arguments: Tuple[Any, ...]) -> Any:
    if len(arguments) < 4 or not isinstance(arguments[0], Storage):
        return Inert(f"tensor in {described(arguments[0])}")
    return StoredTensor(*arguments[:4])


def _parameter(arguments: Tuple[Any, ...]) -> Any:
    return arguments[0]


_REBUILT: Dict[str, Callable[[Tuple[Any, ...]], Any]] = {
    "torch._utils _rebuild_tensor": _tensor,
    "torch._utils _rebuild_tensor_v2": _tensor,
    "torch._utils _rebuild_parameter": _parameter,
    "torch._utils _rebuild_parameter_with_state": _parameter,
}
