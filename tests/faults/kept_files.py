# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Files that outlive a run, damaged or hostile: shards, the list of a data set, weights of every format, results."""

import functools
import importlib.util
import io
import json
import os
import pickle
import random
import zlib
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

import numpy as np
import safetensors.torch
import torch

from common.errors import Refusal
from dataset import index_cache, pack
from dataset.decode import BadImage
from dataset.image_folder import open_split
from dataset.shards import MANIFEST, RECORD, ShardedImages
from models.pretrained import read_weights
from models.weight_origin import converted, metadata
from tests.data_sets import write_folders
from tests.faults.files import OTHER_KINDS, require_refused, require_within_limits
from tests.faults.runs import Place, require
from tests.training.test_checkpoint import state
from training import checkpoint

IMAGES = {"train": {"a": 5, "b": 4}, "validation": {"a": 2, "b": 2}}
WEIGHTS = {"patch_embed.proj.weight": (8, 3, 4, 4), "norm.weight": (16,), "norm.bias": (16,), "head.weight": (3, 16)}


def damage(path: Path, chance: random.Random) -> str:
    """Spoils a file in a way that is drawn, and returns which."""
    how = chance.choice(["flip", "flip", "cut", "zeros", "longer", *sorted(OTHER_KINDS)])
    data = bytearray(path.read_bytes())
    at = chance.randrange(len(data))
    if how in OTHER_KINDS:
        path.unlink()
        OTHER_KINDS[how](path)
        return how
    if how == "flip":
        data[at] ^= 1 << chance.randrange(8)
    elif how == "cut":
        del data[at:]
    elif how == "zeros":
        data[at:] = bytes(len(data) - at)
    else:
        data += bytes(chance.randrange(1, 1000))
    path.write_bytes(data)
    return f"{how} at {at} of {len(data)}"


def shards(place: Place, chance: random.Random) -> None:
    """A file of shards that is damaged, lies or is another's: told, or counted as an image that is none."""
    pack.pack(_made(place.folder / "out"), write_folders(place.folder / "in", IMAGES))
    root = place.folder / "out"
    whole = _contents(ShardedImages(root, "train"))
    if chance.random() < 0.3:
        what = _lie(root, chance)
    else:
        path = chance.choice(sorted(path for path in root.iterdir() if "validation" not in path.name))
        opened = ShardedImages(root, "train") if path.suffix == ".tar" and chance.random() < 0.5 else None
        what = f"{path.name}: {damage(path, chance)}"
        if opened is not None:  # before it was damaged
            _require_none_other(whole, lambda: opened, what)
    _require_none_other(whole, lambda: ShardedImages(root, "train"), what)


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _contents(images: ShardedImages) -> List[Tuple[Any, ...]]:
    """Class, path and bytes of every image; None for bytes that are none."""
    found: List[Tuple[Any, ...]] = []
    for index in range(len(images)):
        try:
            data = images.read(index)
        except BadImage:
            data = None
        found.append((images.classes[images.labels[index]], images.relative(index), data))
    return found


def _require_none_other(whole: List[Tuple[Any, ...]], images: Callable[[], ShardedImages], what: str) -> None:
    try:
        found = require_within_limits(lambda: _contents(images()))
    except Refusal as error:
        require("\n" not in str(error), f"{what}: it takes more than a line: {error}")
        return
    for one, other in zip(whole, found):
        require(one[:2] == other[:2] and other[2] in (one[2], None), f"{what}: {one[:2]} became {other[:2]}")
    require(len(whole) == len(found), f"{what}: {len(whole)} images became {len(found)}")


def _lie(root: Path, chance: random.Random) -> str:
    """An index that says something else, with the checksum of that."""
    records = np.fromfile(root / "train.index", RECORD)
    key, row = chance.choice(["offset", "name_end", "size", "shard"]), chance.randrange(len(records))
    value = chance.choice([0, 1, 2**31, 2**32 - 1, int(records[key][row]) + chance.choice([-1, 1, 512])])
    records[key][row] = value % 2**32 if key in ("size", "shard") else value
    records.tofile(root / "train.index")
    manifest = json.loads((root / MANIFEST).read_text())
    manifest["splits"]["train"]["index_crc"] = zlib.crc32(records.tobytes())
    (root / MANIFEST).write_text(json.dumps(manifest))
    return f"{key} of record {row} is {value}"


def data_list(place: Place, chance: random.Random) -> None:
    """A kept list of a data set that is damaged or no file: the folder is read again."""
    cache, root = place.folder / "cache", write_folders(place.folder / "in", IMAGES)
    fewest, settled = index_cache.FEWEST, index_cache.SETTLED
    index_cache.FEWEST, index_cache.SETTLED = 1, -(10**18)
    try:
        names = [open_split(root, True, cache=cache).relative(index) for index in range(9)]
        [path] = cache.iterdir()
        what = damage(path, chance)
        folder = require_within_limits(lambda: open_split(root, True, cache=cache))
        require([folder.relative(index) for index in range(len(folder))] == names, f"{what}: other images")
        require(folder.labels.tolist() == [0] * 5 + [1] * 4, f"{what}: other labels")
    finally:
        index_cache.FEWEST, index_cache.SETTLED = fewest, settled


def _tensors() -> Dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in WEIGHTS.items()}


def _as_onnx(path: Path) -> None:
    if importlib.util.find_spec("onnx") is None:
        return _as_safetensors(path)
    import onnx

    parts = [onnx.numpy_helper.from_array(tensor.numpy(), name) for name, tensor in _tensors().items()]
    model = onnx.helper.make_model(onnx.helper.make_graph([], "weights", [], [], parts))
    onnx.helper.set_model_props(model, metadata("MODEL:\n  NUM_CLASSES: 3\n", ["a", "b", "c"]))
    path.write_bytes(model.SerializeToString())


def _as_safetensors(path: Path) -> None:
    safetensors.torch.save_file(_tensors(), path, metadata("MODEL:\n  NUM_CLASSES: 3\n", ["a", "b", "c"]))


def _as_pickle(path: Path, zipped: bool) -> None:
    value = {"model": _tensors(), "config": "MODEL:\n  NUM_CLASSES: 3\n", "optimizer": {"state": {}}}
    torch.save(value, path, _use_new_zipfile_serialization=zipped)


FORMATS: Dict[str, Callable[[Path], None]] = {
    "zip": functools.partial(_as_pickle, zipped=True),
    "before zip": functools.partial(_as_pickle, zipped=False),
    "safetensors": _as_safetensors,
    "onnx": _as_onnx,
}


def weights(place: Place, chance: random.Random) -> None:
    """A damaged file of weights, of any format: a line, or its tensors; a zip file's are those that were saved."""
    kind = sorted(FORMATS)[int(place.folder.name) % len(FORMATS)]
    path = place.folder / "weights"
    FORMATS[kind](path)
    what = f"{kind}, {damage(path, chance)}"
    states_itself = functools.partial(checkpoint.load_own, path, converted)
    for read in (lambda: read_weights(path).entries, lambda: (states_itself() or {}).get("model", {})):
        try:
            found = require_within_limits(read, 64 << 10)
        except Refusal as error:
            require("\n" not in str(error), f"{what}: it takes more than a line: {error}")
            continue
        for name, tensor in _tensors().items() if kind == "zip" else ():
            require(name not in found or torch.equal(found[name], tensor), f"{what}: {name} has other values")
    require_refused(lambda: checkpoint.load(path), 64 << 10)


def _nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def _shared(depth: int) -> Any:
    """Lists that hold each other twice: 2**depth values in a file of a few bytes."""
    value: Any = []
    for _ in range(depth):
        value = [value, value]
    return value


def _with_optimizer(path: Path, optimizer: Any) -> None:
    torch.save({"model": _tensors(), "config": "SEED: 1\n", "optimizer": optimizer}, path)


def _many_views(path: Path) -> None:
    """Two thousand names for one storage of a megabyte."""
    torch.save({f"layers.{index}.weight": storage for storage in [torch.zeros(1 << 18)] for index in range(2000)}, path)


def _stated(path: Path, config: str, classes: str = "[]") -> None:
    safetensors.torch.save_file(_tensors(), path, {"config": config, "classes": classes})


HOSTILE: Dict[str, Callable[[Path], None]] = {
    "optimizer of shared lists": lambda path: _with_optimizer(path, _shared(60)),
    "few levels of shared lists": lambda path: _with_optimizer(path, [_shared(10)] * 2000),
    "nested optimizer": lambda path: _with_optimizer(path, _nested(300)),
    "many views": _many_views,
    "nested class names": lambda path: _stated(path, "SEED: 1\n", "[" * 100_000),
    "number of class names": lambda path: _stated(path, "SEED: 1\n", "9" * 6000),
    "configuration with tags": lambda path: _stated(path, "SEED: !!python/object/apply:os.system [exit]\n"),
    "configuration of a huge model": lambda path: _stated(path, "MODEL:\n  SWIN:\n    EMBED_DIM: 61440\n"),
    "predictions": lambda path: path.write_text("path,class_1,probability_1\na.jpg,b,0.5\n"),
    "lines of JSON": lambda path: path.write_text('{"path": "a.jpg", "predictions": []}\n'),
    "features": lambda path: path.write_bytes(_numbers()),
    "report": lambda path: path.write_text("<!DOCTYPE html><html></html>"),
    "pickled array": lambda path: path.write_bytes(pickle.dumps(np.zeros(3))),
    "nothing": lambda path: path.write_bytes(b""),
}


def _numbers() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.zeros((3, 4), np.float32))
    return stream.getvalue()


def foreign(place: Place, chance: random.Random) -> None:
    """A hostile file of weights, or a file of predict or validate, where weights are wanted: one line."""
    name = sorted(HOSTILE)[int(place.folder.name) % len(HOSTILE)]
    path = place.folder / "weights"
    HOSTILE[name](path)
    size = path.stat().st_size
    require_refused(lambda: checkpoint.load(path), size)
    require_refused(lambda: _validated(path), size)


def _validated(path: Path) -> Any:
    """As far as validate.py and predict.py read a file before they build its model."""
    from training.arguments import parse_validation
    from training.evaluation import configured_weights

    return configured_weights(parse_validation(["--checkpoint", str(path)]), path)


def average(place: Place, chance: random.Random) -> None:
    """Averaged weights that are missing, of other names, shapes, types or numbers: the checkpoint before is used."""
    good = state(2)
    checkpoint.save(place.folder, state(1), is_best=False)
    name = chance.choice(sorted(good["model"]))
    other = {
        "missing": None,
        "a number": 5,
        "no names": [good["model"][name]],
        "without one": {key: value for key, value in good["model"].items() if key != name},
        "one more": {**good["model"], "extra": torch.zeros(1)},
        "another shape": {**good["model"], name: torch.zeros(3)},
        "complex": {**good["model"], name: good["model"][name].to(torch.complex64)},
        "not finite": {**good["model"], name: good["model"][name] * float("inf")},
        "a text": {**good["model"], name: "x"},
    }
    case = chance.choice(sorted(other))
    update = chance.choice([2, 2, -1, "2", None]) if case == "missing" else 2
    values = {"ema_update": update} if case == "missing" else {"ema": other[case], "ema_update": update}
    checkpoint.save(place.folder, dict(good, **values), is_best=False)
    require_refused(lambda: checkpoint.load(place.folder / checkpoint.LAST))
    found = checkpoint.find(place.folder)
    require(found is not None and found[1]["progress"]["update"] == 1, f"{case}: the one before is not used")
    require(os.path.exists(place.folder / "last.pth.damaged-1"), f"{case}: the damaged one is gone")
