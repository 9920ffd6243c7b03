# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Pickles of plain data, read by a stack machine that supports nothing else.

It understands the part of pickle's protocol 2 that torch.save needs for numbers, texts, lists, tuples, dictionaries and
what a table of constructors makes. It imports nothing, calls nothing else, and makes nothing larger than what the bytes
of the pickle say, so that an honest size bounds its memory and its time.
"""

import struct
from typing import Any, Callable, Dict, List, Mapping

MAX_OPERATIONS = 1_000_000
_LONGEST_NAME = 256


class BadPickle(ValueError):
    """The bytes are not a pickle of plain data; the message says why."""


class Constructor:
    """The meaning of a name in a pickle: a function of the arguments in the pickle."""

    def __init__(self, make: Callable[..., Any]) -> None:
        self.make = make


class Plain(Dict[Any, Any]):
    """A dictionary that was pickled as an OrderedDict; attributes that it had are left out."""


class Machine:
    """Runs a pickle.

    Args:
        data: the pickle.
        names: "module name" -> a Constructor or a value.
        persistent: makes the object of a persistent id.
    """

    def __init__(self, data: bytes, names: Mapping[str, Any], persistent: Callable[[Any], Any]) -> None:
        self._data = data
        self._names = names
        self._persistent = persistent
        self._at = 0
        self._stack: List[Any] = []
        self._marks: List[int] = []
        self._memo: Dict[int, Any] = {}

    def run(self) -> Any:
        """The object that was pickled.

        Raises:
            BadPickle: for a pickle that is damaged or holds more than plain data.
        """
        try:
            for _ in range(MAX_OPERATIONS):
                code = self._take(1)[0]
                if code == _STOP:
                    return self._stack.pop()
                operation = _OPERATIONS.get(code)
                if operation is None:
                    raise BadPickle(f"its pickle has the operation {code:#x}: only plain data are read")
                operation(self)
        except (IndexError, KeyError, struct.error, UnicodeDecodeError) as error:
            raise BadPickle("its pickle is damaged") from error
        raise BadPickle(f"its pickle has more than {MAX_OPERATIONS} operations")

    def _take(self, count: int) -> bytes:
        taken = self._data[self._at : self._at + count]
        if len(taken) != count:
            raise BadPickle("its pickle is cut off")
        self._at += count
        return taken

    def _number(self, kind: str) -> Any:
        return struct.unpack(kind, self._take(struct.calcsize(kind)))[0]

    def _line(self) -> str:
        end = self._data.find(b"\n", self._at, self._at + _LONGEST_NAME)
        if end < 0:
            raise BadPickle("its pickle is damaged")
        return self._take(end + 1 - self._at)[:-1].decode("ascii")

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _above_mark(self) -> List[Any]:
        mark = self._marks.pop()
        values = self._stack[mark:]
        del self._stack[mark:]
        return values

    def _tuple(self, count: int) -> None:
        if len(self._stack) < count:
            raise BadPickle("its pickle is damaged")
        values = tuple(self._stack[len(self._stack) - count :])
        del self._stack[len(self._stack) - count :]
        self._push(values)

    def _extend(self, values: List[Any]) -> None:
        if type(self._stack[-1]) is not list:
            raise BadPickle("its pickle appends to a value that is not a list")
        self._stack[-1].extend(values)

    def _update(self, values: List[Any]) -> None:
        target = self._stack[-1]
        if type(target) not in (dict, Plain):
            raise BadPickle("its pickle adds keys to a value that is not a dictionary")
        for key, value in zip(values[0::2], values[1::2]):
            if type(key) not in (str, int):  # hashing nested tuples can take exponential time
                raise BadPickle(f"its pickle has a key that is {type(key).__name__}: texts and numbers are read")
            target[key] = value

    def _global(self) -> None:
        name = f"{self._line()} {self._line()}"
        if name not in self._names:
            raise BadPickle(f"it holds {name.replace(' ', '.')}: only plain data are read")
        self._push(self._names[name])

    def _reduce(self) -> None:
        arguments, constructor = self._stack.pop(), self._stack.pop()
        if type(constructor) is not Constructor or type(arguments) is not tuple:
            raise BadPickle("its pickle calls a value that is not a constructor")
        try:
            self._push(constructor.make(*arguments))
        except TypeError as error:
            raise BadPickle("its pickle calls a constructor with invalid arguments") from error

    def _build(self) -> None:
        self._stack.pop()
        if type(self._stack[-1]) is not Plain:
            raise BadPickle("its pickle sets attributes of a value without attributes")

    def _remember(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    def _persist(self) -> None:
        self._push(self._persistent(self._stack.pop()))


_STOP = ord(".")
_OPERATIONS: Dict[int, Callable[[Machine], None]] = {
    0x80: lambda machine: _check_protocol(machine._number("<B")),
    ord("("): lambda machine: machine._marks.append(len(machine._stack)),
    ord("}"): lambda machine: machine._push({}),
    ord("]"): lambda machine: machine._push([]),
    ord(")"): lambda machine: machine._push(()),
    ord("t"): lambda machine: machine._push(tuple(machine._above_mark())),
    0x85: lambda machine: machine._tuple(1),
    0x86: lambda machine: machine._tuple(2),
    0x87: lambda machine: machine._tuple(3),
    ord("a"): lambda machine: machine._extend([machine._stack.pop()]),
    ord("e"): lambda machine: machine._extend(machine._above_mark()),
    ord("s"): lambda machine: machine._update([machine._stack.pop(-2), machine._stack.pop()]),
    ord("u"): lambda machine: machine._update(machine._above_mark()),
    ord("q"): lambda machine: machine._remember(machine._number("<B")),
    ord("r"): lambda machine: machine._remember(machine._number("<I")),
    ord("h"): lambda machine: machine._push(machine._memo[machine._number("<B")]),
    ord("j"): lambda machine: machine._push(machine._memo[machine._number("<I")]),
    ord("X"): lambda machine: machine._push(machine._take(machine._number("<I")).decode("utf-8", "surrogatepass")),
    ord("J"): lambda machine: machine._push(machine._number("<i")),
    ord("K"): lambda machine: machine._push(machine._number("<B")),
    ord("M"): lambda machine: machine._push(machine._number("<H")),
    0x8A: lambda machine: machine._push(int.from_bytes(machine._take(machine._number("<B")), "little", signed=True)),
    ord("G"): lambda machine: machine._push(machine._number(">d")),
    ord("N"): lambda machine: machine._push(None),
    0x88: lambda machine: machine._push(True),
    0x89: lambda machine: machine._push(False),
    ord("c"): lambda machine: machine._global(),
    ord("R"): lambda machine: machine._reduce(),
    ord("b"): lambda machine: machine._build(),
    ord("Q"): lambda machine: machine._persist(),
}


def _check_protocol(version: int) -> None:
    if version != 2:
        raise BadPickle(f"its pickle has protocol {version}: torch.save writes protocol 2")
