# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Checks a configuration before anything is read or built: choices, ranges, lengths and contradictions."""

import math
from typing import Any, Dict, Tuple

from yacs.config import CfgNode

from common.errors import Refusal
from planning.geometry import architecture, configured_layers
from planning.placement import ipus_of, pipeline_stages

PRECISIONS = ("16.16", "16.32", "32.32", "mix")
PRECISION_ALIASES = {"half": "16.16", "float": "32.32"}
CLIPPING = ("adamw", "adam", "sgd")  # PopTorch optimizers that clip gradients

CHOICES = {
    "DATA.DATASET": ("imagenet", "imagenet22K", "generated"),
    "DATA.CACHE_MODE": ("no", "full", "part"),
    "DATA.LOADER": ("auto", "sync", "async", "rebatched"),
    "DATA.INPUT_DTYPE": ("float", "uint8"),
    "DATA.INTERPOLATION": ("bicubic", "bilinear", "nearest", "lanczos", "hamming", "random"),
    "DATA.BAD_IMAGES": ("skip", "fail"),
    "DATA.GENERATED": ("host", "device"),
    "MODEL.TYPE": ("swin", "swinv2"),
    "TRAIN.LOSS.NAME": ("cross_entropy", "bce"),
    "TRAIN.LR_SCHEDULER.NAME": ("cosine", "linear", "step", "multistep"),
    "TRAIN.OPTIMIZER.NAME": ("adamw", "adam", "sgd", "lamb", "rmsprop"),
    "AUG.REMODE": ("pixel", "rand", "const"),
    "AUG.MIXUP_MODE": ("batch", "pair", "elem"),
    "IPU.PARTIALS": ("float", "half"),
    "IPU.POPART.OUTER_FRAGMENT_FOR": ("memory", "cycles"),
}

# Minimum and maximum of a value, or of every element of a list.
ARCHITECTURE_BOUNDS = {
    "PATCH_SIZE": (1, 1 << 10),
    "IN_CHANS": (1, 1 << 10),
    "EMBED_DIM": (1, 1 << 16),
    "DEPTHS": (1, 1 << 10),
    "NUM_HEADS": (1, 1 << 10),
    "WINDOW_SIZE": (1, 1 << 10),
    "MLP_RATIO": (1e-3, 1e3),
    "QK_SCALE": (1e-9, 1e9),
    "PRETRAINED_WINDOW_SIZES": (0, 1 << 10),
}
ARCHITECTURES = ("MODEL.SWIN", "MODEL.SWINV2")
BOUNDS = {
    "SEED": (0, 2**31 - 1),
    "LOG_INTERVAL": (1, math.inf),
    "DATA.IMG_SIZE": (1, 1 << 14),
    "DATA.BATCH_SIZE": (1, 1 << 20),
    "DATA.NUM_WORKERS": (0, 1024),
    "DATA.MEAN": (0.0, 1.0),
    "DATA.STD": (1e-6, math.inf),
    "MODEL.NUM_CLASSES": (0, 1 << 24),
    "MODEL.PRETRAINED_IMG_SIZE": (0, 1 << 14),
    "MODEL.PRETRAINED_WINDOW_SIZE": (0, 1 << 10),
    "MODEL.DROP_RATE": (0.0, 0.999),
    "MODEL.ATTN_DROP_RATE": (0.0, 0.999),
    "MODEL.DROP_PATH_RATE": (0.0, 0.999),
    "MODEL.LABEL_SMOOTHING": (0.0, 0.999),
    "TRAIN.EPOCHS": (1, 1 << 24),
    "TRAIN.WARMUP_EPOCHS": (0, 1 << 24),
    "TRAIN.TRAINING_STEPS": (0, math.inf),
    "TRAIN.BASE_LR": (0.0, 1e3),
    "TRAIN.WARMUP_LR": (0.0, 1e3),
    "TRAIN.MIN_LR": (0.0, 1e3),
    "TRAIN.WEIGHT_DECAY": (0.0, 1e3),
    "TRAIN.LAYER_DECAY": (1e-6, 1.0),
    "TRAIN.CLIP_GRAD": (0.0, math.inf),
    "TRAIN.ACCUMULATION_STEPS": (1, 1 << 20),
    "TRAIN.CHECKPOINT_STEPS": (0, math.inf),
    "TRAIN.SKIP_NONFINITE": (0, 1 << 20),
    "TRAIN.KEEP": (0, 1 << 20),
    "TRAIN.MAX_FRUITLESS_RESTARTS": (0, 1 << 20),
    "TRAIN.EARLY_STOPPING": (0, 1 << 24),
    "TRAIN.EMA_DECAY": (0.0, 0.9999999999),
    "TRAIN.LOSS_SCALING": (1e-6, 2.0**30),
    "TRAIN.CLASS_WEIGHTS": (0.0, 1e6),
    "TRAIN.LOSS.TARGET_THRESHOLD": (0.0, 0.9999999),
    "TRAIN.LOSS.POSITIVE_WEIGHT": (1e-6, 1e6),
    "TRAIN.LR_SCHEDULER.DECAY_EPOCHS": (1, 1 << 24),
    "TRAIN.LR_SCHEDULER.DECAY_RATE": (1e-9, 1.0),
    "TRAIN.LR_SCHEDULER.MULTISTEPS": (0, 1 << 24),
    "TRAIN.LR_SCHEDULER.GAMMA": (1e-9, 1.0),
    "TRAIN.OPTIMIZER.EPS": (1e-30, 1.0),
    "TRAIN.OPTIMIZER.BETAS": (0.0, 0.9999999),
    "TRAIN.OPTIMIZER.MOMENTUM": (0.0, 0.9999999),
    "TRAIN.OPTIMIZER.ALPHA": (0.0, 0.9999999),
    "AUG.COLOR_JITTER": (0.0, 10.0),
    "AUG.REPROB": (0.0, 1.0),
    "AUG.RECOUNT": (1, 1 << 10),
    "AUG.MIXUP": (0.0, 1e3),
    "AUG.CUTMIX": (0.0, 1e3),
    "AUG.CUTMIX_MINMAX": (0.0, 1.0),
    "AUG.MIXUP_PROB": (0.0, 1.0),
    "AUG.MIXUP_SWITCH_PROB": (0.0, 1.0),
    "AUG.SCALE": (1e-6, 1.0),
    "AUG.RATIO": (1e-3, 1e3),
    "AUG.HFLIP": (0.0, 1.0),
    "AUG.REPEATS": (1, 1 << 10),
    "AUG.SHIFT": (0, 1 << 10),
    "TEST.BATCH_SIZE": (0, 1 << 20),
    "TEST.INTERVAL": (1, 1 << 24),
    "IPU.LAYERS_PER_IPU": (0.5, 1 << 10),
    "IPU.IPUS_PER_REPLICA": (0, 64),
    "IPU.MAPPING": (0, 63),
    "IPU.REPLICAS": (1, 1 << 12),
    "IPU.DEVICE_ITERATIONS": (1, 1 << 16),
    "IPU.INFERENCE_DEVICE_ITERATIONS": (0, 1 << 16),
    "IPU.AVAILABLE_MEMORY_PROPORTION": (1e-3, 1.0),
    "IPU.SHARDING_MIN_ELEMENTS": (1, 1 << 31),
    "IPU.POPART.PREFETCH_DEPTH": (1, 64),
    "IPU.POPART.OUTER_FRAGMENT_EXCLUDED": (0, 63),
}

SIZES = (  # one number, or height and width
    "DATA.IMG_SIZE",
    "MODEL.PRETRAINED_IMG_SIZE",
    "MODEL.PRETRAINED_WINDOW_SIZE",
    "MODEL.SWIN.WINDOW_SIZE",
    "MODEL.SWINV2.WINDOW_SIZE",
)
WHOLE = (
    *SIZES,
    *(f"{section}.{key}" for section in ARCHITECTURES for key in ("DEPTHS", "NUM_HEADS", "PRETRAINED_WINDOW_SIZES")),
    "TRAIN.LR_SCHEDULER.MULTISTEPS",
    "IPU.MAPPING",
    "IPU.POPART.OUTER_FRAGMENT_EXCLUDED",
)
LENGTHS = {
    "TRAIN.OPTIMIZER.BETAS": 2,
    "AUG.SCALE": 2,
    "AUG.RATIO": 2,
    "AUG.CUTMIX_MINMAX": 2,
}


def precision(name: str) -> str:
    """The canonical name of a precision: 16.16 for 'half', 32.32 for 'float'.

    Raises:
        Refusal: for an unknown name.
    """
    name = PRECISION_ALIASES.get(name, name)
    if name not in PRECISIONS:
        known = ", ".join(PRECISIONS + tuple(PRECISION_ALIASES))
        raise Refusal(f"MODEL.PRECISION {name} is unknown: use one of {known} (input.weights)")
    return name


def check(config: CfgNode) -> None:
    """Raises `Refusal` for values that are out of range or contradict each other."""
    _check_choices(config)
    _check_bounds(config)
    _check_lengths(config)
    _check_architecture(config)
    _check_schedule(config)
    _check_training(config)
    _check_loss(config)
    _check_pipeline(config)
    _check_ipu(config)


def check_files(config: CfgNode) -> None:
    """Raises `Refusal` for a configuration that cannot read image files; generated images have no such limits."""
    channels = architecture(config).IN_CHANS
    if channels != 3:
        raise Refusal(f"IN_CHANS {channels} of the model: image files have 3 channels")
    if config.DATA.DATASET == "imagenet22K" and config.DATA.ZIP_MODE:
        raise Refusal("DATA.ZIP_MODE is for imagenet: ImageNet-22k is read from the files named by its maps")


def lookup(config: CfgNode, key: str) -> Any:
    """The value of a dotted key."""
    node = config
    for part in key.split("."):
        node = node[part]
    return node


def _check_choices(config: CfgNode) -> None:
    for key, known in CHOICES.items():
        value = lookup(config, key)
        if value not in known:
            raise Refusal(f"{key} {value!r} is unknown: use one of {', '.join(known)}")


def _check_bounds(config: CfgNode) -> None:
    for key, (low, high) in {**BOUNDS, **_architecture_bounds(config)}.items():
        value = lookup(config, key)
        for number in value if isinstance(value, (list, tuple)) else [value]:
            if number is value and (number is None or isinstance(number, str)):  # such as 'auto'; not in a list
                continue
            if isinstance(number, bool) or not isinstance(number, (int, float)):
                raise Refusal(f"{key} holds {number!r}: expected numbers")
            if key in WHOLE and not isinstance(number, int):
                raise Refusal(f"{key} holds {number!r}: expected integers")
            if not (low <= number <= high and math.isfinite(number)):
                raise Refusal(f"{key} {number} is out of range: {low} to {high}")


def _architecture_bounds(config: CfgNode) -> Dict[str, Tuple[float, float]]:
    """Applies the bounds of both model sections, each of which has keys that the other lacks."""
    return {
        f"{section}.{key}": bounds
        for section in ARCHITECTURES
        for key, bounds in ARCHITECTURE_BOUNDS.items()
        if key in lookup(config, section)
    }


def _check_lengths(config: CfgNode) -> None:
    channels = architecture(config).IN_CHANS
    for key, length in {**LENGTHS, "DATA.MEAN": channels, "DATA.STD": channels}.items():
        value = lookup(config, key)
        if value is not None and len(value) != length:
            raise Refusal(f"{key} has {len(value)} values: expected {length}")
    for key in SIZES:
        value = lookup(config, key)
        if not isinstance(value, int) and len(value) != 2:
            raise Refusal(f"{key} {value}: expected one number, or height and width")


def _check_architecture(config: CfgNode) -> None:
    """Checks that the width of every layer is divisible by its heads, and that windows tile its feature map."""
    section = ARCHITECTURES[config.MODEL.TYPE == "swinv2"]
    if not architecture(config).DEPTHS:
        raise Refusal(f"{section}.DEPTHS is empty: expected a list of integers, one per layer")
    try:
        configured_layers(config)
    except ValueError as error:
        raise Refusal(f"{section} at DATA.IMG_SIZE {config.DATA.IMG_SIZE}: {error}") from error


def _check_schedule(config: CfgNode) -> None:
    train = config.TRAIN
    if train.WARMUP_EPOCHS >= train.EPOCHS:
        raise Refusal(
            f"TRAIN.WARMUP_EPOCHS {train.WARMUP_EPOCHS} must be below TRAIN.EPOCHS {train.EPOCHS}: "
            f"add --opts TRAIN.WARMUP_EPOCHS {max(train.EPOCHS // 10, 0)}"
        )
    steps = train.LR_SCHEDULER.MULTISTEPS
    if train.LR_SCHEDULER.NAME == "multistep" and (
        not steps or steps != sorted(steps) or steps[0] < train.WARMUP_EPOCHS
    ):
        raise Refusal(
            f"TRAIN.LR_SCHEDULER.MULTISTEPS {steps}: expected ascending epochs after the "
            f"warm-up's {train.WARMUP_EPOCHS}"
        )
    for key in ("AUG.CUTMIX_MINMAX", "AUG.SCALE", "AUG.RATIO"):
        limits = lookup(config, key)
        if limits is not None and limits[0] > limits[1]:
            raise Refusal(f"{key} {limits}: the minimum must come first")


def _check_training(config: CfgNode) -> None:
    """Checks the optimizer, averaged weights, sampling and frozen weights."""
    train, layers = config.TRAIN, len(architecture(config).DEPTHS)
    if train.OPTIMIZER.NAME not in CLIPPING and train.CLIP_GRAD:
        raise Refusal(
            f"TRAIN.CLIP_GRAD {train.CLIP_GRAD}: PopTorch's {train.OPTIMIZER.NAME} does not clip gradients: "
            f"add --opts TRAIN.CLIP_GRAD 0, or use one of {', '.join(CLIPPING)}"
        )
    if train.EMA_WARMUP and not train.EMA_DECAY:
        raise Refusal("TRAIN.EMA_WARMUP needs averaged weights: add --opts TRAIN.EMA_DECAY 0.9999, or leave it out")
    if config.DATA.BALANCED_SAMPLING and config.AUG.REPEATS > 1:
        raise Refusal("DATA.BALANCED_SAMPLING and AUG.REPEATS both repeat samples: use only one of them")
    if isinstance(train.FREEZE, int) and not 0 <= train.FREEZE <= layers:
        raise Refusal(f"TRAIN.FREEZE {train.FREEZE} is out of range: the model has {layers} layers")
    if isinstance(train.FREEZE, list) and not all(isinstance(pattern, str) and pattern for pattern in train.FREEZE):
        raise Refusal(f"TRAIN.FREEZE {train.FREEZE}: expected patterns of parameter names, or a number of layers")


def _check_loss(config: CfgNode) -> None:
    """Checks the settings of the loss and the class weights."""
    loss, weights, classes = config.TRAIN.LOSS, config.TRAIN.CLASS_WEIGHTS, config.MODEL.NUM_CLASSES
    for key, neutral in (("TARGET_THRESHOLD", None), ("SUM_CLASSES", False), ("POSITIVE_WEIGHT", None)):
        if loss.NAME != "bce" and loss[key] != neutral:
            raise Refusal(f"TRAIN.LOSS.{key} {loss[key]} is for bce: add --opts TRAIN.LOSS.NAME bce, or leave it out")
    if isinstance(weights, str) and weights not in ("", "balanced"):
        raise Refusal(f"TRAIN.CLASS_WEIGHTS {weights!r}: expected balanced, or a list of one number per class")
    if isinstance(weights, list) and not any(weights):
        raise Refusal(f"TRAIN.CLASS_WEIGHTS {weights}: all weights are 0")
    if isinstance(weights, list) and classes and len(weights) != classes:
        raise Refusal(f"TRAIN.CLASS_WEIGHTS has {len(weights)} numbers: the model has {classes} classes")


def _check_pipeline(config: CfgNode) -> None:
    """Checks that the stages cover all blocks, and that gradient accumulation fills the pipeline (at least 2F-1)."""
    try:
        stages = pipeline_stages(config)
    except ValueError as error:
        raise Refusal(str(error)) from error
    fewest = 2 * len(stages) - 1
    if config.TRAIN.ACCUMULATION_STEPS < fewest:
        raise Refusal(
            f"TRAIN.ACCUMULATION_STEPS {config.TRAIN.ACCUMULATION_STEPS} is too small for {len(stages)} "
            f"pipeline stages: at least {fewest} (2F-1) are needed; raise --ga or use fewer stages in "
            "IPU.LAYERS_PER_IPU"
        )


def _check_ipu(config: CfgNode) -> None:
    """Checks lists with one value per IPU, the names of patterns, and IPU.PARTIALS."""
    ipu, ipus = config.IPU, ipus_of(pipeline_stages(config))
    proportions = ipu.AVAILABLE_MEMORY_PROPORTION
    if isinstance(proportions, list) and len(proportions) != ipus:
        raise Refusal(
            f"IPU.AVAILABLE_MEMORY_PROPORTION has {len(proportions)} values: give one, or one for each of the {ipus} "
            "IPUs of a replica"
        )
    for pattern in ipu.POPART.PATTERNS:
        if not (isinstance(pattern, str) and pattern[pattern.startswith("-") :].isidentifier()):
            raise Refusal(f"IPU.POPART.PATTERNS holds {pattern!r}: expected names of patterns, -NAME for off")
    if ipu.PARTIALS == "half" and not config.MODEL.PRECISION.startswith("16."):
        raise Refusal(
            f"IPU.PARTIALS half applies to half products, which MODEL.PRECISION {config.MODEL.PRECISION} does "
            "not have: use --precision 16.16 or 16.32, or IPU.PARTIALS float"
        )
