# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Export of weights: reads any supported file and writes the format of another program."""

import importlib.util
import inspect
import json
import warnings
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Tuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor
from yacs.config import CfgNode

from common.errors import EXIT_DATA, EXIT_RESOURCE, Refusal
from common.files import new_path
from config import defaults, get_config
from planning.geometry import image_size
from utils import reason

from .build import MODELS
from .export_limits import check_fits
from .export_names import contiguous
from .hub_folders import write_hugging_face, write_timm
from .pretrained import Wanted, check_exists, load_pretrained, read_weights
from .swin_transformer import SwinTransformer
from .weight_files import BadFile, opened, weights_at

OF_A_RUN = ("OUTPUT", "TAG", "DATA.DATA_PATH", "MODEL.PRETRAINED", "MODEL.RESUME")  # paths, which stay behind


class Leaving(NamedTuple):
    """A model to export, in evaluation mode and float32; `weights` have the precision of their file."""

    config: CfgNode
    classes: List[str]  # names; [] if the file has none
    model: SwinTransformer
    weights: Dict[str, Tensor]
    optimizer: Optional[Dict[str, Any]]


def read(path: Path, cfg: Optional[str], optimizer: bool = False) -> Leaving:
    """The model of a file.

    Args:
        path: anything that `models.pretrained` reads.
        cfg: its configuration; None: the one in the file.
        optimizer: whether to export the optimizer's state, too.

    Raises:
        Refusal: for weights that cannot be used, and if the configuration or the optimizer's state is missing.
    """
    check_exists(path)
    text, classes, state = _told(path)
    if cfg is None and text is None:
        raise Refusal(f"{path} has no configuration: pass one by --cfg")
    if optimizer and state is None:
        raise Refusal(f"--optimizer: {path} has no state of an optimizer that is known here: leave it out", EXIT_DATA)
    config = _without_run(get_config(cfg, saved=text if cfg is None else None))
    entries = read_weights(path, Wanted.of(config)).entries
    head = entries.get("head.weight")
    full = config.clone()
    full.defrost()
    full.MODEL.PRECISION = "32.32"  # exact for weights in half precision, too
    model = MODELS[config.MODEL.TYPE](full, len(head) if isinstance(head, Tensor) else 0).eval()
    load_pretrained(model, path, new_head=False, wanted=Wanted.of(config))
    return Leaving(config, classes, model, _in_precision(model, entries), state if optimizer else None)


def write(leaving: Leaving, target: str, path: Path) -> None:
    """Writes a model in the format `target` to `path`, which must not exist.

    Raises:
        Refusal: for a model that the format cannot hold, and for an error of the system.
    """
    check_fits(target, leaving.config, leaving.model.num_classes)
    try:
        with new_path(path) as temporary:
            WRITERS[target](leaving, temporary)
    except OSError as error:
        raise Refusal(f"{path} cannot be written: {reason(error)}", EXIT_RESOURCE) from error


def _told(path: Path) -> Tuple[Optional[str], List[str], Optional[Dict[str, Any]]]:
    """Configuration text, class names and optimizer state in a file of ours."""
    try:
        with opened(path) as contents:
            if contents.kind == "safetensors":
                with safetensors.safe_open(str(weights_at(path)), "pt") as stream:
                    metadata = dict(stream.metadata() or {})
                return metadata.get("config"), _names(metadata.get("classes")), None
            values = contents.values if isinstance(contents.values, Mapping) else {}
            state = values.get("optimizer") if isinstance(values.get("config"), str) else None
            text = values.get("config") if isinstance(values.get("config"), str) else None
            classes = _all_text(values.get("classes")) if text is not None else []
            return text, classes, None if state is None else _materialised(state, contents.tensor)
    except BadFile as error:
        raise Refusal(f"weights {path} cannot be used: {error}", EXIT_DATA) from error


def _names(text: Optional[str]) -> List[str]:
    """Names of classes in the metadata of a file; [] if it has none."""
    try:
        return _all_text(json.loads(text or "[]"))
    except ValueError:
        return []


def _all_text(names: Any) -> List[str]:
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else []


def _materialised(value: Any, tensor: Callable[[str, Any], Tensor], name: str = "optimizer") -> Any:
    """Plain containers with tensors where the file has them."""
    if type(value) is dict:
        return {key: _materialised(item, tensor, f"{name}.{key}") for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_materialised(item, tensor, name) for item in value)
    return value if value is None or type(value) in (bool, int, float, str) else tensor(name, value)


def _without_run(config: CfgNode) -> CfgNode:
    """The configuration without the paths of a run."""
    config, plain = config.clone(), defaults()
    config.defrost()
    for key in OF_A_RUN:
        section, _, name = key.rpartition(".")
        there, default = (tree[section] if section else tree for tree in (config, plain))
        there[name] = default[name]
    config.freeze()
    return config


def _in_precision(model: SwinTransformer, entries: Mapping[str, Any]) -> Dict[str, Tensor]:
    """The weights of a model, each in the precision that it has in a file."""
    weights = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    dtypes = {name: value.dtype for name, value in entries.items() if isinstance(value, Tensor)}
    return {name: tensor.to(dtypes.get(name, tensor.dtype)) for name, tensor in weights.items()}


def _microsoft(leaving: Leaving, path: Path) -> None:
    contents: Dict[str, Any] = {"model": contiguous(leaving.weights)}
    if leaving.optimizer is not None:
        contents["optimizer"] = leaving.optimizer
    torch.save(contents, path)


def _safetensors(leaving: Leaving, path: Path) -> None:
    metadata = {"format": "pt", "config": leaving.config.dump(), "classes": json.dumps(leaving.classes)}
    safetensors.torch.save_file(contiguous(leaving.weights), str(path), metadata=metadata)


def _timm(leaving: Leaving, path: Path) -> None:
    write_timm(path, leaving.config, leaving.classes, leaving.weights)


def _hugging_face(leaving: Leaving, path: Path) -> None:
    write_hugging_face(path, leaving.config, leaving.classes, leaving.weights)


def _onnx(leaving: Leaving, path: Path) -> None:
    """A graph of float32 from normalised `images` (batch, C, H, W) to `logits` (batch, classes), for any batch."""
    images = torch.zeros(2, leaving.model.patch_embed.proj.in_channels, *image_size(leaving.config))
    names: Dict[str, Any] = {"input_names": ["images"], "output_names": ["logits"]}
    if "dynamic_shapes" in inspect.signature(torch.onnx.export).parameters:  # since PyTorch 2.5
        packages: Tuple[str, ...] = ("onnx", "onnxscript")
        shapes = {"images": {0: torch.export.Dim("batch")}}
        names.update(opset_version=18, dynamo=True, external_data=False, verbose=False, dynamic_shapes=shapes)
    else:
        packages = ("onnx",)
        names.update(opset_version=17, dynamic_axes={"images": {0: "batch"}, "logits": {0: "batch"}})
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise Refusal(f"--to onnx needs {' and '.join(missing)}: pip install {' '.join(missing)}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own parts
        torch.onnx.export(leaving.model, (images,), str(path), **names)


WRITERS: Dict[str, Callable[[Leaving, Path], None]] = {
    "microsoft": _microsoft,
    "timm": _timm,
    "huggingface": _hugging_face,
    "safetensors": _safetensors,
    "onnx": _onnx,
}
