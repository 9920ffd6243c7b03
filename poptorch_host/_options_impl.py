# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""What every object that holds options has in common: a fixed set of typed values that can be frozen."""

import copy
from typing import Any, Dict, Optional

from .errors import check


class OptionsDict:
    """Options by name, each of the type of its first value, readable and writable as attributes too.

    Names that begin with an underscore are ordinary attributes: the ones made before this constructor ran, no others.

    Args:
        default_values: the options that exist from the start.
    """

    def __init__(self, **default_values: Any) -> None:
        self._is_frozen = False
        self._values = default_values

    def set(self, **kwargs: Any) -> None:
        """Gives existing options new values.

        Raises:
            AttributeError: when frozen.
            AssertionError: for a name that is no option, or a value of another type than the present one.
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
        """Like `set`, and adds the options that do not exist yet."""
        for option, value in kwargs.items():
            self.checkIsFrozen(option)
            self._values.setdefault(option, value)
            self.set(**{option: value})

    def exists(self, option: str) -> bool:
        """Whether there is an option of this name now."""
        return option in self._values

    def deleteIfExists(self, option: str) -> None:
        """Removes an option, if it is there. Works on frozen options too, as PopTorch's does."""
        self._values.pop(option, None)

    def checkIsFrozen(self, option: Optional[str] = None) -> None:
        """Raises AttributeError when these options may not change any more."""
        if self._is_frozen:
            of = f" (option {option})" if option else ""
            raise AttributeError(
                f"Can't modify frozen Options{of}: change them before they are given to a model or a "
                "DataLoader, or change a clone()"
            )

    def update(self, other: Dict[str, Any]) -> Dict[str, Any]:
        """Adds the options to the dictionary `other` and returns it.

        Raises:
            AssertionError: when `other` has one of them already.
        """
        both = sorted(set(other) & set(self._values))
        check(not both, f"Options set twice: {both}")
        other.update(self._values)
        return other

    def toDict(self) -> Dict[str, Any]:
        """The options as a new dictionary."""
        return self.update({})

    def _freeze(self) -> None:
        """Forbids all further changes, in everything these options contain as well."""
        self._is_frozen = True
        for part in vars(self).values():
            if hasattr(part, "_freeze"):
                part._freeze()

    def __deepcopy__(self, memory: Dict[int, Any]) -> "OptionsDict":
        """An independent copy, not frozen, whatever the original is."""
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
            raise AttributeError(f"Invalid attribute {option} of {type(self).__name__}")
        return values[option]

    def __call__(self, option: str) -> Any:
        """The value of an option."""
        check(option in self._values, f"Invalid option {option}: use one of {sorted(self._values)}")
        return self._values[option]

    def __repr__(self) -> str:
        values = ", ".join(f"{option}={value!r}" for option, value in self._values.items())
        return f"{type(self).__name__}({values})"
