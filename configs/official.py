# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Names from other trainers: keys of the official Swin repository, and flags of common training programs.

The official program writes its full configuration beside its checkpoints. Most of its keys exist here as well. Some
only configure its GPUs and are ignored; a few would change the result and are refused.
"""

from fnmatch import fnmatchcase
from typing import Any, Collection, Dict, Iterator, List, Tuple

from common.errors import Refusal
from configs.checks import CHOICES

# Keys that are ignored; * matches every key of a section.
NO_MEANING = (
    "AMP_ENABLE",
    "AMP_OPT_LEVEL",
    "ENABLE_AMP",
    "EVAL_MODE",
    "FUSED_LAYERNORM",
    "FUSED_WINDOW_PROCESS",
    "LOCAL_RANK",
    "PRINT_FREQ",
    "SAVE_FREQ",
    "THROUGHPUT_MODE",
    "DATA.MASK_PATCH_SIZE",
    "DATA.MASK_RATIO",
    "DATA.PIN_MEMORY",
    "MODEL.SIMMIM.*",
    "MODEL.SWIN_MLP.*",
    "MODEL.SWIN_MOE.*",
    "TEST.SEQUENTIAL",
    "TEST.SHUFFLE",
    "TRAIN.MOE.*",
)
# Keys that change the result, with the value at which they have no effect.
CHANGES_RESULT = {
    "TRAIN.START_EPOCH": (0, "a first epoch"),
}
MODEL_TYPES = {"swin_mlp": "Swin-MLP", "swin_moe": "Swin-MoE"}
SIMMIM = "simmim_pretrain"  # prefix of its model names

# Flags of timm (also with -), the official repository, torchvision's references, Hugging Face and Graphcore's examples,
# in lower case without leading dashes, and their equivalents here: a flag or a key.
FLAGS: Dict[str, str] = {
    "a": "--cfg",
    "aa": "AUG.AUTO_AUGMENT",
    "accumulate": "--ga",
    "amp-opt-level": "--precision mix, or 32.32 for O0",
    "arch": "--cfg",
    "aug-repeats": "AUG.REPEATS",
    "available-memory-proportion": "--amp",
    "b": "--batch-size",
    "base-lr": "TRAIN.BASE_LR",
    "batch": "--batch-size",
    "bf16": "--precision mix",
    "bce-loss": "TRAIN.LOSS.NAME",
    "bce-pos-weight": "TRAIN.LOSS.POSITIVE_WEIGHT",
    "bce-sum": "TRAIN.LOSS.SUM_CLASSES",
    "bce-target-thresh": "TRAIN.LOSS.TARGET_THRESHOLD",
    "blr": "TRAIN.BASE_LR",
    "clip-grad": "TRAIN.CLIP_GRAD",
    "clip-grad-norm": "TRAIN.CLIP_GRAD",
    "color-jitter": "AUG.COLOR_JITTER",
    "config": "--cfg",
    "config-file": "--cfg",
    "crop-pct": "TEST.CROP",
    "cutmix": "AUG.CUTMIX",
    "cutmix-minmax": "AUG.CUTMIX_MINMAX",
    "data": "--data-path",
    "data-dir": "--data-path",
    "dataloader-num-workers": "--num-workers",
    "decay-epochs": "TRAIN.LR_SCHEDULER.DECAY_EPOCHS",
    "decay-rate": "TRAIN.LR_SCHEDULER.DECAY_RATE",
    "device-iterations": "IPU.DEVICE_ITERATIONS",
    "disable-amp": "--precision 32.32",
    "drop": "MODEL.DROP_RATE",
    "drop-path": "MODEL.DROP_PATH_RATE",
    "drop-path-rate": "MODEL.DROP_PATH_RATE",
    "eval-batch-size": "TEST.BATCH_SIZE",
    "evaluate": "--eval",
    "executable-cache-dir": "IPU.EXECUTABLE_CACHE",
    "finetune": "--pretrained-model",
    "fp16": "--precision 16.16",
    "freeze": "TRAIN.FREEZE",
    "grad-accum-steps": "--ga",
    "grad-checkpointing": "--use-checkpoint",
    "gradient-accumulation": "--ga",
    "gradient-accumulation-steps": "--ga",
    "gradient-checkpointing": "--use-checkpoint",
    "half": "--precision 16.16",
    "hflip": "AUG.HFLIP",
    "image-size": "DATA.IMG_SIZE",
    "img-size": "DATA.IMG_SIZE",
    "imgsz": "DATA.IMG_SIZE",
    "initial-checkpoint": "--pretrained-model",
    "input-size": "DATA.IMG_SIZE",
    "interpolation": "DATA.INTERPOLATION",
    "j": "--num-workers",
    "label-smoothing": "MODEL.LABEL_SMOOTHING",
    "label-smoothing-factor": "MODEL.LABEL_SMOOTHING",
    "layer-decay": "TRAIN.LAYER_DECAY",
    "layers-per-ipu": "IPU.LAYERS_PER_IPU",
    "learning-rate": "TRAIN.BASE_LR",
    "log-interval": "LOG_INTERVAL",
    "logging-steps": "LOG_INTERVAL",
    "loss-scaling": "TRAIN.LOSS_SCALING",
    "lr": "TRAIN.BASE_LR",
    "lr-scheduler": "TRAIN.LR_SCHEDULER.NAME",
    "lr-scheduler-type": "TRAIN.LR_SCHEDULER.NAME",
    "lr-warmup-epochs": "TRAIN.WARMUP_EPOCHS",
    "max-steps": "--training-steps",
    "micro-batch-size": "--batch-size",
    "min-lr": "TRAIN.MIN_LR",
    "mixup": "AUG.MIXUP",
    "model": "--cfg",
    "model-ema": "TRAIN.EMA_DECAY",
    "model-ema-decay": "TRAIN.EMA_DECAY",
    "model-ema-warmup": "TRAIN.EMA_WARMUP",
    "model-name-or-path": "--pretrained-model",
    "momentum": "TRAIN.OPTIMIZER.MOMENTUM",
    "nb-classes": "--num-classes",
    "num-epochs": "--epochs",
    "num-train-epochs": "--epochs",
    "opt": "TRAIN.OPTIMIZER.NAME",
    "opt-betas": "TRAIN.OPTIMIZER.BETAS",
    "opt-eps": "TRAIN.OPTIMIZER.EPS",
    "optim": "TRAIN.OPTIMIZER.NAME",
    "optimizer": "TRAIN.OPTIMIZER.NAME",
    "output-dir": "--output",
    "per-device-train-batch-size": "--batch-size",
    "pipeline-splits": "IPU.LAYERS_PER_IPU",
    "print-freq": "LOG_INTERVAL",
    "project": "--output",
    "ra-reps": "AUG.REPEATS",
    "recompute-checkpoints": "IPU.RECOMPUTATION",
    "replication-factor": "--replicas",
    "report-to": "--wandb",
    "reprob": "AUG.REPROB",
    "resolution": "DATA.IMG_SIZE",
    "resume-from-checkpoint": "--resume",
    "run-name": "--tag",
    "sched": "TRAIN.LR_SCHEDULER.NAME",
    "smoothing": "MODEL.LABEL_SMOOTHING",
    "torch-compile": "--compile",
    "torchcompile": "--compile",
    "train-crop-size": "DATA.IMG_SIZE",
    "validation-batch-size": "TEST.BATCH_SIZE",
    "warmup-epochs": "TRAIN.WARMUP_EPOCHS",
    "warmup-lr": "TRAIN.WARMUP_LR",
    "wd": "TRAIN.WEIGHT_DECAY",
    "weight-decay": "TRAIN.WEIGHT_DECAY",
    "weights": "--pretrained-model",
    "workers": "--num-workers",
}
# Flags that configure GPUs, or features that this program does not have.
FLAGS_WITHOUT_MEANING = {
    "channels-last": "the layout of images in memory is the device's",
    "dist-backend": "processes are started by poprun or torchrun.sh",
    "dist-eval": "every process validates its share",
    "dist-url": "processes are started by poprun or torchrun.sh",
    "do-eval": "training validates; --eval does nothing else",
    "do-train": "this is what the program does",
    "fused-layernorm": "it picks a CUDA kernel of the official program",
    "fused-window-process": "it picks a CUDA kernel of the official program",
    "gpu-ids": "--device gpu takes the process's GPU; CUDA_VISIBLE_DEVICES chooses",
    "no-prefetcher": "loaders are chosen by DATA.LOADER",
    "nproc-per-node": "processes are started by PROCESSES=N ./torchrun.sh",
    "pin-mem": "memory is the loader's concern",
    "pin-memory": "memory is the loader's concern",
    "sync-bn": "the model has no batch normalisation",
}
NOTES = {"TRAIN.BASE_LR": "; learning rates are for a global batch of 512 and scale with it"}


def flat(values: Dict[Any, Any], prefix: str = "") -> Iterator[Tuple[str, Any]]:
    """Dotted keys and values of nested sections."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def has_no_meaning(key: str, known: Collection[str]) -> bool:
    """Whether a key of the official program is ignored here.

    Args:
        known: the keys of this program's configuration.
    """
    return key not in known and (key in CHANGES_RESULT or any(fnmatchcase(key, pattern) for pattern in NO_MEANING))


def without_meaning(values: Dict[Any, Any], known: Collection[str]) -> List[str]:
    """The keys among nested values that have no meaning here."""
    return [key for key, _ in flat(values) if has_no_meaning(key, known)]


def stripped(values: Dict[Any, Any], known: Collection[str], prefix: str = "") -> Dict[Any, Any]:
    """Nested values without the keys that have no meaning here."""
    kept = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            inner = stripped(value, known, f"{prefix}{key}.")
            if inner:
                kept[key] = inner
        elif not has_no_meaning(f"{prefix}{key}", known):
            kept[key] = value
    return kept


def check_supported(values: Dict[Any, Any], source: str) -> None:
    """Raises one `Refusal` for all settings that would change the result and are not supported."""
    found = dict(flat(values))
    kind, name = found.get("MODEL.TYPE"), str(found.get("MODEL.NAME", ""))
    problems = []
    if kind in MODEL_TYPES and kind not in CHOICES["MODEL.TYPE"]:
        problems.append(f"MODEL.TYPE {kind} ({MODEL_TYPES[kind]})")
    if name.startswith(SIMMIM):
        problems.append(f"MODEL.NAME {name} (SimMIM's training on masked images)")
    problems += [
        f"{key} {found[key]} ({words})"
        for key, (neutral, words) in CHANGES_RESULT.items()
        if key in found and found[key] != neutral
    ]
    if problems:
        types = ", ".join(CHOICES["MODEL.TYPE"])
        raise Refusal(f"{source}: {'; '.join(problems)}: not supported here, where MODEL.TYPE is {types}")


def known_flag(flag: str, ours: Collection[str]) -> str:
    """' (...)' with the equivalent of another program's flag; empty for unknown flags.

    Args:
        ours: the flags of this program.
    """
    name = flag.split("=")[0].lstrip("-").replace("_", "-")
    if f"--{name}" in ours:
        return f" (here it is --{name})"
    name = name.lower()
    if name in FLAGS_WITHOUT_MEANING:
        return f" (it has no meaning here: {FLAGS_WITHOUT_MEANING[name]})"
    target = FLAGS.get(name)
    if target is None:
        return ""
    if target.startswith("--"):
        return f" (here it is {target})"
    return f" (here it is --opts {target} VALUE{NOTES.get(target, '')})"
