# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The schema of a checkpoint: its fields by format version, with the types and ranges of their values.

All values of a file are checked here before they are used. Any failure counts as damage, and automatic resuming uses an
older checkpoint. Random states are specific to a device, so only their type is checked: a checkpoint of another kind of
device is valid, even if its random state is of no use here.
"""

import math
from typing import Any, Callable, Dict, Mapping, NamedTuple

import torch

from common.archive import DamagedFile, first_non_finite
from common.errors import Refusal
from config import parse

# 1: without a digest, counts of skipped updates and the device of random states; 2: without averaged weights;
# 3: without the choice of attention
FORMAT = 4
NEVER = FORMAT + 1  # of a field that may be missing
FINITE = ("model", "optimizer", "ema")  # fields whose numbers are all finite
MAX_TEXT = 1 << 20
MAX_COUNT = 1 << 40  # of updates, images and the like
MAX_PROCESSES = 1 << 16
EXACT = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


class Wrong(ValueError):
    """A value is invalid for its field; the message says why."""


class Field(NamedTuple):
    """A field: `check` raises Wrong for bad values; formats from `since` on may have it, from `needed` on must."""

    check: Callable[[Any], None]
    since: int = 1
    needed: int = 1


def verified(state: Any, sealed: bool) -> Dict[str, Any]:
    """The verified contents of a checkpoint.

    Args:
        state: contents of the file.
        sealed: whether the file has a digest.

    Raises:
        DamagedFile: naming the first missing, unknown or invalid field, or a format that is too new.
    """
    if not looks_own(state):
        raise DamagedFile("it is not a checkpoint of this program; use --pretrained-model for other weights")
    version = state["format"]
    if type(version) is not int or not 1 <= version <= FORMAT:
        unknown = ", ".join(repr(name) for name in state if name not in FIELDS)
        raise DamagedFile(
            f"its format is {_shown(version)}, this program reads 1 to {FORMAT}"
            + (f" and does not know its fields {unknown}" if unknown else "")
        )
    if version > 1 and not sealed:
        raise DamagedFile("its digest is missing: it was changed or truncated after it was written")
    try:
        _check_fields(state, FIELDS, version)
        _check_average(state)
        _check_progress(state["progress"], version)
    except Wrong as error:
        raise DamagedFile(f"its field {error}") from error
    broken = first_non_finite({name: state[name] for name in FINITE if name in state})
    if broken is not None:
        raise DamagedFile(f"its {broken} is not finite")
    return state


def looks_own(state: Any) -> bool:
    """Whether a file has the fields of a checkpoint of this program; values are not checked."""
    return isinstance(state, dict) and all(name in state for name, field in FIELDS.items() if field.needed == 1)


def _check_fields(values: Dict[str, Any], fields: Mapping[str, Field], version: int) -> None:
    for name in values:
        _require(name in fields and fields[name].since <= version, f"{name!r} is unknown to format {version}")
    for name, field in fields.items():
        if name not in values:
            _require(field.needed > version, f"{name} is missing")
            continue
        try:
            field.check(values[name])
        except Wrong as error:
            raise Wrong(f"{name} {error}") from error


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Wrong(otherwise)


def _shown(value: Any) -> str:
    if value is None or type(value) in (bool, int, float, str):
        text = repr(value) if type(value) is not int or abs(value) < 10**30 else "a huge number"
        return text if len(text) <= 60 else f"{text[:60]}..."
    return f"a {type(value).__name__}"


def _whole(low: int, high: int) -> Callable[[Any], None]:
    def check(value: Any) -> None:
        _require(type(value) is int and low <= value <= high, f"is {_shown(value)}: {low} to {high} are possible")

    return check


def _number(low: float, high: float) -> Callable[[Any], None]:
    def check(value: Any) -> None:
        good = type(value) in (int, float) and low <= value <= high
        _require(good, f"is {_shown(value)}: {low} to {high} are possible")

    return check


def _switch(value: Any) -> None:
    _require(type(value) is bool, f"is {_shown(value)}, not True or False")


def _any_number(value: Any) -> None:
    _require(type(value) in (int, float), f"is {_shown(value)}, not a number")


def _text(value: Any) -> None:
    _require(type(value) is str, f"is {_shown(value)}, not a text")
    _require(len(value) <= MAX_TEXT, f"has {len(value)} characters")


def _list_of(check: Callable[[Any], None], low: int, high: int) -> Callable[[Any], None]:
    def check_all(values: Any) -> None:
        _require(type(values) in (list, tuple), f"is {_shown(values)}, not a list")
        _require(low <= len(values) <= high, f"has {len(values)} values: {low} to {high} are possible")
        for value in values:
            check(value)

    return check_all


def _row(value: Any) -> None:
    """A row of metrics."""
    _require(type(value) is dict and bool(value), f"has a line that is {_shown(value)}")
    for name, number in value.items():
        _require(type(name) is str and (number is None or type(number) in (int, float)), "has a line without numbers")


def _tensors(value: Any) -> None:
    _require(type(value) is dict and bool(value), f"is {_shown(value)}, not weights by name")
    for name, tensor in value.items():
        _require(type(name) is str and isinstance(tensor, torch.Tensor), f"holds {_shown(tensor)}, not weights by name")
        _require(tensor.dtype in FLOATS + EXACT, f"holds {name} of {tensor.dtype}")


def _optimizer(value: Any) -> None:
    """As torch.optim: groups, and state by parameter index. PopTorch adds tensors by name."""
    _require(type(value) is dict, f"is {_shown(value)}, not a state")
    groups, state = value.get("param_groups"), value.get("state")
    _require(type(groups) is list and bool(groups), "has no param_groups")
    _require(type(state) is dict, "has no state")
    known = 0
    for group in groups:
        _require(type(group) is dict and type(group.get("params")) is list, "has a group without params")
        known += len(group["params"])
        for name, default in (("lr", None), ("weight_decay", 0.0)):
            rate = group.get(name, default)
            rate = rate.item() if isinstance(rate, torch.Tensor) and rate.numel() == 1 else rate
            good = type(rate) in (int, float) and 0 <= rate < math.inf
            _require(good, f"has a group with {name} {_shown(rate)}")
    for index in state:
        _require(type(index) is int and 0 <= index < known, f"has a state for {_shown(index)}, which no group has")
    for name in ("ipu_state", "ipu_param"):
        part = value.get(name)
        _require(type(part) is dict and all(type(key) is str for key in part), f"has no {name} by name")
        _require(all(isinstance(item, torch.Tensor) for item in part.values()), f"has an {name} without tensors")


def _random_state(value: Any) -> None:
    """The random state of one process: integers or an integer tensor."""
    if isinstance(value, torch.Tensor):
        _require(value.dtype in EXACT and value.dim() == 1, f"has a state of {value.dtype}")
        return
    _require(type(value) in (list, tuple) and bool(value), f"has a state that is {_shown(value)}")
    _require(all(type(word) is int and abs(word) < 2**64 for word in value), "has a state of something but numbers")


def _config(value: Any) -> None:
    _text(value)
    try:
        parse(value, "it")
    except Refusal as error:
        raise Wrong(f"does not hold a configuration: {error}") from error


def _fields(value: Any) -> None:
    _require(type(value) is dict, f"holds {_shown(value)}, not fields with names")


def _check_average(state: Dict[str, Any]) -> None:
    """Averaged weights have the names and shapes of the weights."""
    _require(("ema" in state) == ("ema_update" in state), "ema goes with ema_update")
    shapes = [{name: tensor.shape for name, tensor in state[key].items()} for key in ("ema", "model") if key in state]
    _require(shapes[0] == shapes[-1], "ema has other names or shapes than model")


def _check_progress(value: Dict[str, Any], version: int) -> None:
    try:
        _check_fields(value, PROGRESS, version)
    except Wrong as error:
        raise Wrong(f"progress {error}") from error
    _require(
        value["step"] <= value["update"], f"progress counts {value['step']} updates of {value['update']} in one epoch"
    )
    _require(len(value["epochs"]) <= value["epoch"], "progress has more lines of metrics than epochs")


PROGRESS = {
    "epoch": Field(_whole(0, 1 << 24)),
    "step": Field(_whole(0, MAX_COUNT)),
    "update": Field(_whole(0, MAX_COUNT)),
    "loss_sum": Field(_any_number),
    "best_top1": Field(_number(-1.0, 100.0)),
    "epochs": Field(_list_of(_row, 0, 1 << 24)),
    "skipped": Field(_whole(0, MAX_COUNT), since=2, needed=2),
    "skipped_in_epoch": Field(_whole(0, MAX_COUNT), since=2, needed=2),
    "skipped_in_row": Field(_whole(0, MAX_COUNT), since=2, needed=2),
}

FIELDS = {
    "format": Field(_whole(1, FORMAT)),
    "model": Field(_tensors),
    "optimizer": Field(_optimizer),
    "ema": Field(_tensors, since=3, needed=NEVER),  # averaged weights, and the last update averaged
    "ema_update": Field(_whole(0, MAX_COUNT), since=3, needed=NEVER),
    "fused_attention": Field(_switch, since=4, needed=NEVER),  # of a GPU, if there was a choice
    "rng_states": Field(_list_of(_random_state, 1, MAX_PROCESSES)),
    "rng_device": Field(_text, since=2, needed=2),
    "progress": Field(_fields),
    "config": Field(_config),
    "classes": Field(_list_of(_text, 1, 1 << 24)),
    "training_images": Field(_whole(1, MAX_COUNT), needed=2),
}
