# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Folders for Hugging Face's `from_pretrained` and timm's `create_model`: weights, architecture, preprocessing.

Configuration files are as read by transformers 5 and timm 1; weights are named as in published files.
"""

import json
from pathlib import Path
from typing import Any, Dict, List, Sequence, cast

import timm
from timm.data import ImageNetInfo
from yacs.config import CfgNode

from planning.geometry import (
    IMAGENET_CLASSES,
    architecture,
    configured_layers,
    crop_share,
    evaluation_interpolation,
    image_size,
    pair,
)

from .export_limits import stated_window
from .export_names import Weights, to_hugging_face, to_timm, write_safetensors
from .weight_files import IN_FOLDER
from .weight_origin import metadata

RESAMPLING = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}  # Pillow's values
TIMM_NAMES = {"swin": "swin_tiny_patch4_window7_224", "swinv2": "swinv2_tiny_window8_256"}  # if it has no better one
MODEL_CLASSES = {"swin": "SwinForImageClassification", "swinv2": "Swinv2ForImageClassification"}


def write_timm(folder: Path, config: CfgNode, classes: Sequence[str], weights: Weights) -> None:
    """A folder for `timm.create_model("local-dir:FOLDER", pretrained=True)`, as on the hub for `hf-hub:`."""
    number = len(weights["head.bias"]) if "head.bias" in weights else 0
    names = class_names(classes, number)
    size, swin = image_size(config), architecture(config)
    arguments = dict(_architecture(config), window_size=stated_window("timm", config))
    arguments["img_size"] = list(size)
    share = crop_share(config)
    preprocessing: Dict[str, Any] = {
        "input_size": [swin.IN_CHANS, *size],
        "fixed_input_size": True,
        "interpolation": evaluation_interpolation(config),
        "crop_pct": share,
        "crop_mode": "center" if share < 1.0 else "squash",
        "mean": list(config.DATA.MEAN),
        "std": list(config.DATA.STD),
        "num_classes": number,
        "pool_size": list(configured_layers(config)[-1].grid),
        "first_conv": "patch_embed.proj",
        "classifier": "head.fc",
        "label_names": names,
    }
    words = _words()
    if all(name in words for name in names):
        preprocessing["label_descriptions"] = {name: words[name] for name in names}
    contents = {
        "architecture": _timm_name(config),
        "num_classes": number,
        "num_features": configured_layers(config)[-1].channels,
        "global_pool": "avg",
        "model_args": arguments,
        "pretrained_cfg": preprocessing,
    }
    _write(folder, {"config.json": contents}, to_timm(weights), metadata(config.dump(), list(classes)))


def write_hugging_face(folder: Path, config: CfgNode, classes: Sequence[str], weights: Weights) -> None:
    """A folder for `AutoModelForImageClassification.from_pretrained` and `AutoImageProcessor.from_pretrained`."""
    kind, swin = config.MODEL.TYPE, architecture(config)
    words = _words()
    names = [words.get(name, name) for name in class_names(classes, len(weights["head.bias"]))]
    contents = {
        "architectures": [MODEL_CLASSES[kind]],
        "model_type": kind,
        **_architecture(config),
        "num_channels": swin.IN_CHANS,
        "image_size": config.DATA.IMG_SIZE,
        "window_size": stated_window("huggingface", config),
        "use_absolute_embeddings": swin.APE,
        "drop_path_rate": config.MODEL.DROP_PATH_RATE,
        "hidden_dropout_prob": config.MODEL.DROP_RATE,
        "attention_probs_dropout_prob": config.MODEL.ATTN_DROP_RATE,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
        "encoder_stride": 2 ** (len(swin.DEPTHS) - 1) * max(pair(swin.PATCH_SIZE)),
        "torch_dtype": str(weights["head.bias"].dtype)[len("torch.") :],
        "id2label": {str(label): name for label, name in enumerate(names)},
        "label2id": {name: label for label, name in reversed(list(enumerate(names)))},
    }
    files = {"config.json": contents, "preprocessor_config.json": _processor(config)}
    _write(folder, files, to_hugging_face(weights, kind), metadata(config.dump(), list(classes)))


def class_names(names: Sequence[str], number: int) -> List[str]:
    """The names of a head's classes: known names, ImageNet's synsets for 1,000 classes, or numbers."""
    if len(names) == number:
        return list(names)
    return list(_words()) if number == IMAGENET_CLASSES else [str(label) for label in range(number)]


def _words() -> Dict[str, str]:
    """The descriptions of ImageNet's synsets, in label order."""
    return cast(Dict[str, str], ImageNetInfo("imagenet-1k").label_descriptions(as_dict=True))


def _timm_name(config: CfgNode) -> str:
    """timm's name of the model; arguments set sizes that differ."""
    known = timm.list_models(f"{config.MODEL.TYPE}_*")
    name = config.MODEL.NAME.replace("_patch4", "") if config.MODEL.TYPE == "swinv2" else config.MODEL.NAME
    return name if name in known and "_cr_" not in name else TIMM_NAMES[config.MODEL.TYPE]


def _architecture(config: CfgNode) -> Dict[str, Any]:
    """The settings that both programs give the same names."""
    swin = architecture(config)
    values = {
        "patch_size": swin.PATCH_SIZE,
        "embed_dim": swin.EMBED_DIM,
        "depths": list(swin.DEPTHS),
        "num_heads": list(swin.NUM_HEADS),
        "mlp_ratio": swin.MLP_RATIO,
        "qkv_bias": swin.QKV_BIAS,
    }
    if config.MODEL.TYPE == "swinv2":
        values["pretrained_window_sizes"] = list(swin.PRETRAINED_WINDOW_SIZES) or [0] * len(swin.DEPTHS)
    return values


def _processor(config: CfgNode) -> Dict[str, Any]:
    """Our evaluation transform: the shorter side resized and the centre cropped, or the whole image resized."""
    height, width = image_size(config)
    share = crop_share(config)
    common = {
        "do_resize": True,
        "resample": RESAMPLING[evaluation_interpolation(config)],
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(config.DATA.MEAN),
        "image_std": list(config.DATA.STD),
    }
    if share == 1.0:
        return dict(common, image_processor_type="ViTImageProcessor", size={"height": height, "width": width})
    return dict(
        common,
        image_processor_type="CLIPImageProcessor",
        size={"shortest_edge": int(height / share)},
        do_center_crop=True,
        crop_size={"height": height, "width": width},
        do_convert_rgb=True,
    )


def _write(folder: Path, files: Dict[str, Any], weights: Weights, stated: Dict[str, str]) -> None:
    """Writes the folder; `stated` is for `weight_origin.origin_of` and ignored by other programs."""
    folder.mkdir()
    for name, contents in files.items():
        (folder / name).write_text(json.dumps(contents, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    write_safetensors(folder / IN_FOLDER, weights, stated)
