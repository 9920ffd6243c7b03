# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Export of weights: reads any supported file and writes the format of another program."""

import importlib.util
import inspect
import io
import warnings
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Tuple

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
from .export_names import contiguous, write_safetensors
from .hub_folders import write_hugging_face, write_timm
from .pretrained import Wanted, Weights, check_exists, load_found, weights_in
from .swin_transformer import SwinTransformer
from .weight_files import BadFile, opened
from .weight_origin import Origin, metadata, origin_of

OF_A_RUN = ("OUTPUT", "TAG", "DATA.DATA_PATH", "MODEL.PRETRAINED", "MODEL.RESUME")  # paths, which are not exported


class Leaving(NamedTuple):
    """A model to export, in evaluation mode and float32; `weights` keep the precision of their file."""

    config: CfgNode
    classes: List[str]  # names; [] if the file has none
    model: SwinTransformer
    weights: Dict[str, Tensor]
    optimizer: Optional[Dict[str, Any]]


def read(path: Path, cfg: Optional[str], optimizer: bool = False, averaged: bool = False) -> Leaving:
    """The model of a file.

    Args:
        path: any file that `models.pretrained` reads.
        cfg: its configuration; None: the one in the file.
        optimizer: whether to also export the optimizer state.
        averaged: whether to use the averaged weights (EMA).

    Raises:
        Refusal: for weights that cannot be used, and if the configuration or the optimizer's state is missing.
    """
    check_exists(path)
    origin, config, found = _read_once(path, cfg, averaged)
    if optimizer and origin.optimizer is None:
        raise Refusal(f"--optimizer: {path} has no known optimizer state: leave the flag out", EXIT_DATA)
    head = found.entries.get("head.weight")
    full = config.clone()
    full.defrost()
    full.MODEL.PRECISION = "32.32"  # exact for half-precision weights as well
    full.TEST.FLIP = False  # other programs get the plain model
    model = MODELS[config.MODEL.TYPE](full, len(head) if isinstance(head, Tensor) else 0).eval()
    load_found(model, found, path, new_head=False)
    state = origin.optimizer if optimizer else None
    return Leaving(config, origin.classes, model, _in_precision(model, found.entries), state)


def _read_once(path: Path, cfg: Optional[str], averaged: bool) -> Tuple[Origin, CfgNode, Weights]:
    """The origin, configuration and weights of a file, read in one go, since the file may be replaced meanwhile."""
    try:
        with opened(path) as contents:
            origin = origin_of(contents)
            if cfg is None and origin.config is None:
                raise Refusal(f"{path} has no configuration: pass one with --cfg")
            config = _without_run(get_config(cfg, saved=origin.config if cfg is None else None))
            return origin, config, weights_in(contents, Wanted.of(config)._replace(averaged=averaged))
    except BadFile as error:
        raise Refusal(f"weights {path} cannot be used: {error}", EXIT_DATA) from error


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
    """The weights of a model, each in the precision of its file."""
    weights = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    dtypes = {name: value.dtype for name, value in entries.items() if isinstance(value, Tensor)}
    return {name: tensor.to(dtypes.get(name, tensor.dtype)) for name, tensor in weights.items()}


def _microsoft(leaving: Leaving, path: Path) -> None:
    contents: Dict[str, Any] = {"model": contiguous(leaving.weights)}
    if leaving.optimizer is not None:
        contents["optimizer"] = leaving.optimizer
    stream = io.BytesIO()  # torch.save does not raise OSError if the disk is full
    torch.save(contents, stream)
    path.write_bytes(stream.getbuffer())


def _safetensors(leaving: Leaving, path: Path) -> None:
    write_safetensors(path, leaving.weights, metadata(leaving.config.dump(), leaving.classes))


def _timm(leaving: Leaving, path: Path) -> None:
    write_timm(path, leaving.config, leaving.classes, leaving.weights)


def _hugging_face(leaving: Leaving, path: Path) -> None:
    write_hugging_face(path, leaving.config, leaving.classes, leaving.weights)


def _onnx(leaving: Leaving, path: Path) -> None:
    """A float32 graph from normalised `images` (batch, C, H, W) to `logits` (batch, classes), for any batch size.

    Its initializers are the weights by their official names; constants are not folded, since runtimes do so on loading.
    """
    images = torch.zeros(2, leaving.model.patch_embed.proj.in_channels, *image_size(leaving.config))
    names: Dict[str, Any] = {"input_names": ["images"], "output_names": ["logits"]}
    torch_exports = "optimize" in inspect.signature(torch.onnx.export).parameters  # since PyTorch 2.6
    packages = ("onnx", "onnxscript") if torch_exports else ("onnx",)
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise Refusal(f"--to onnx needs {' and '.join(missing)}: pip install {' '.join(missing)}")
    import onnx  # optional

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter about itself
        if torch_exports:
            names.update(opset_version=18, dynamo=True, optimize=False, verbose=False)
            names.update(dynamic_shapes={"images": {0: torch.export.Dim("batch")}})
            _save_program(torch.onnx.export(leaving.model, (images,), **names), path)
        else:
            names.update(opset_version=17, dynamic_axes={"images": {0: "batch"}, "logits": {0: "batch"}})
            torch.onnx.export(leaving.model, (images,), str(path), do_constant_folding=False, **names)
    graph = onnx.load(str(path))
    onnx.helper.set_model_props(graph, metadata(leaving.config.dump(), leaving.classes))
    onnx.save(graph, str(path))


def _save_program(program: Any, path: Path) -> None:
    """Saves an exported program without CastLike of constants, which onnxruntime warns about: it has no kernel."""
    from onnxscript import optimizer  # optional

    optimizer.fold_constants(program.model, should_fold=lambda node: node.op_type == "CastLike")
    optimizer.remove_unused_nodes(program.model)
    program.save(str(path), external_data=False)


WRITERS: Dict[str, Callable[[Leaving, Path], None]] = {
    "microsoft": _microsoft,
    "timm": _timm,
    "huggingface": _hugging_face,
    "safetensors": _safetensors,
    "onnx": _onnx,
}
