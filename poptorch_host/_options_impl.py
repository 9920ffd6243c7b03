# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The base class of all options: a fixed set of typed values that can be frozen."""

import copy
import difflib
from typing import Any, Dict, Optional

from .errors import check


def check_not_frozen(is_frozen: bool, option: Optional[str]) -> None:
    """Raises AttributeError for options that are frozen."""
    if is_frozen:
        of = f" (option {option})" if option else ""
        raise AttributeError(
            f"Can't modify frozen Options{of}: change them before they are given to a model or a "
            "DataLoader, or change a clone()"
        )


class OptionsDict:
    """Options by name, which can be read and set as attributes too. A value keeps the type of the first one.

    Names that begin with an underscore are ordinary attributes. They must be set before this constructor is called.

    Args:
        default_values: the initial options and their values.
    """

    def __init__(self, **default_values: Any) -> None:
        self._is_frozen = False
        self._values = default_values

    def set(self, **kwargs: Any) -> None:
        """Sets existing options.

        Raises:
            AttributeError: if the options are frozen.
            AssertionError: for an unknown option, or a value of another type.
        """
        for option, value in kwargs.items():
            self.checkIsFrozen(option)
            expected = type(self(option))
            check(
                isinstance(value, expected),
                f"Unexpected type {type(value).__name__} for option {option}: expected {expected.__name__}",
            )
            self._values[option] = value

    def createOrSet(self, **kwargs: Any) -> None:
        """Sets options, adding those that do not exist."""
        for option, value in kwargs.items():
            self.checkIsFrozen(option)
            self._values.setdefault(option, value)
            self.set(**{option: value})

    def exists(self, option: str) -> bool:
        """Returns whether the option exists."""
        return option in self._values

    def deleteIfExists(self, option: str) -> None:
        """Removes an option if it exists, also from frozen options, as in PopTorch."""
        self._values.pop(option, None)

    def checkIsFrozen(self, option: Optional[str] = None) -> None:
        """Raises AttributeError if the options are frozen."""
        check_not_frozen(self._is_frozen, option)

    def update(self, other: Dict[str, Any]) -> Dict[str, Any]:
        """Adds the options to the dictionary `other`, and returns it.

        Raises:
            AssertionError: if `other` already has one of them.
        """
        both = sorted(set(other) & set(self._values))
        check(not both, f"Options set twice: {both}")
        other.update(self._values)
        return other

    def toDict(self) -> Dict[str, Any]:
        """Returns the options as a new dictionary."""
        return self.update({})

    def _freeze(self) -> None:
        """Freezes these options and all nested ones."""
        self._is_frozen = True
        for part in vars(self).values():
            if hasattr(part, "_freeze"):
                part._freeze()

    def __deepcopy__(self, memory: Dict[int, Any]) -> "OptionsDict":
        """Returns an independent copy that is not frozen."""
        copied = type(self).__new__(type(self))
        memory[id(self)] = copied
        vars(copied).update(copy.deepcopy(vars(self), memory))
        vars(copied)["_is_frozen"] = False
        return copied

    def __getstate__(self) -> Dict[str, Any]:
        return vars(self)

    def __setattr__(self, option: str, value: Any) -> None:
        if option.startswith("_"):
            if "_values" in vars(self) and option not in vars(self) and option != "__class__":
                raise AttributeError(f"Invalid private attribute {option}")
            super().__setattr__(option, value)
        elif isinstance(getattr(type(self), option, None), property):
            super().__setattr__(option, value)
        else:
            self.set(**{option: value})

    def __getattr__(self, option: str) -> Any:
        values = vars(self).get("_values", {})
        if option not in values:
            names = [name for name in (*dir(type(self)), *values) if not name.startswith("_")]
            meant = "".join(f" (did you mean {name}?)" for name in difflib.get_close_matches(option, names, n=1))
            raise AttributeError(f"Invalid attribute {option} of {type(self).__name__}{meant}")
        return values[option]

    def __call__(self, option: str) -> Any:
        """Returns the value of an option."""
        check(option in self._values, f"Invalid option {option}: use one of {sorted(self._values)}")
        return self._values[option]

    def __repr__(self) -> str:
        values = ", ".join(f"{option}={value!r}" for option, value in self._values.items())
        return f"{type(self).__name__}({values})"
