# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The flags of the command lines: each sets a configuration key or selects what the command does."""

import argparse
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

from yacs.config import CfgNode

import config as configuration
from common.command_line import CommandLine
from common.errors import Refusal
from common.launch import DEVICES
from common.logs import logger
from common.results import check_free
from configs.official import flat, known_flag
from dataset.image_folder import check_named
from planning.geometry import configured_classes

PREDICTION_FORMATS = ("text", "csv", "jsonl")
TRAINING = ("train",)
EVALUATION = ("train", "validate")
ANY = ("train", "validate", "predict")


class KeyFlag(NamedTuple):
    """A flag that sets a configuration key. `kind` is the type of its value; a bool flag takes no value."""

    names: Tuple[str, ...]
    key: str
    kind: type
    metavar: str  # what --help shows for the value
    help: str
    commands: Tuple[str, ...] = TRAINING


KEY_FLAGS = (
    KeyFlag(("--data-path",), "DATA.DATA_PATH", str, "FOLDER", "folder of the data set", EVALUATION),
    KeyFlag(
        ("--output", "--checkpoint-output-dir"),
        "OUTPUT",
        str,
        "FOLDER",
        "output folder for checkpoints, log and metrics",
    ),
    KeyFlag(("--tag",), "TAG", str, "NAME", "subfolder of --output for this run"),
    KeyFlag(("--pretrained-model", "--pretrained"), "MODEL.PRETRAINED", str, "FILE", "weights to start from"),
    KeyFlag(("--use-ema",), "MODEL.PRETRAINED_EMA", bool, "", "use the averaged weights (EMA) of a file", ANY),
    KeyFlag(("--num-classes",), "MODEL.NUM_CLASSES", int, "N", "classes of the head; 0: as many as the data has", ANY),
    KeyFlag(("--resume",), "MODEL.RESUME", str, "FILE", "checkpoint to resume from"),
    KeyFlag(("--batch-size",), "DATA.BATCH_SIZE", int, "N", "micro-batch size", ANY),
    KeyFlag(
        ("--ga", "--accumulation-steps"),
        "TRAIN.ACCUMULATION_STEPS",
        int,
        "N",
        "micro-batches per weight update (gradient accumulation)",
    ),
    KeyFlag(("--replicas",), "IPU.REPLICAS", int, "N", "data-parallel replicas over all processes", ANY),
    KeyFlag(("--num-workers",), "DATA.NUM_WORKERS", int, "N", "data loading workers", ANY),
    KeyFlag(
        ("--precision",),
        "MODEL.PRECISION",
        str,
        "INPUT.WEIGHTS",
        "16.16 (half), 16.32, 32.32 (float), or mix (autocast, hosts only)",
        ANY,
    ),
    KeyFlag(
        ("--amp",),
        "IPU.AVAILABLE_MEMORY_PROPORTION",
        float,
        "SHARE",
        "available memory proportion: share of tile memory for temporaries",
        ANY,
    ),
    KeyFlag(("--rts",), "IPU.REPLICATED_TENSOR_SHARDING", bool, "", "shard optimizer state over replicas"),
    KeyFlag(
        ("--use-checkpoint",),
        "TRAIN.USE_CHECKPOINT",
        bool,
        "",
        "recompute blocks in the backward pass to save memory (hosts only)",
    ),
    KeyFlag(
        ("--compile",),
        "TRAIN.COMPILE",
        bool,
        "",
        "run the model under torch.compile (hosts only)",
        EVALUATION,
    ),
    KeyFlag(("--epochs",), "TRAIN.EPOCHS", int, "N", "epochs to train"),
    KeyFlag(("--training-steps",), "TRAIN.TRAINING_STEPS", int, "N", "maximum number of weight updates"),
    KeyFlag(("--zip",), "DATA.ZIP_MODE", bool, "", "read train.zip and validation.zip instead of folders", EVALUATION),
    KeyFlag(("--cache-mode",), "DATA.CACHE_MODE", str, "MODE", "caching in zip mode: no, full, part", EVALUATION),
    KeyFlag(("--seed",), "SEED", int, "N", "random seed", EVALUATION),
    KeyFlag(("--tensorboard",), "TENSORBOARD", bool, "", "also log to TensorBoard, in the output folder"),
    KeyFlag(("--wandb",), "WANDB", bool, "", "also log to Weights & Biases"),
)


# Keys and values as for --opts: settings of the training run that do not apply when its checkpoint is evaluated.
OF_THE_RUN = ("OUTPUT", "", "TAG", "", "TRAIN.COMPILE", "False", "MODEL.PRETRAINED_EMA", "False")


def parse_training(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """The command line of train_swin.py."""
    parser = _common_parser("train", "Trains or fine-tunes a Swin Transformer.")
    parser.add_argument("--compile-only", action="store_true", help="compile and check everything without training")
    parser.add_argument("--eval", action="store_true", help="validate the weights of --resume or --pretrained-model")
    parser.add_argument("--throughput", action="store_true", help="measure inference throughput on generated images")
    parser.add_argument(
        "--dry-run", action="store_true", help="print configuration, model, schedule and data, train two steps and stop"
    )
    parser.add_argument("--schedule-output", metavar="FILE.png", help="dry run that plots the learning-rate schedule")
    parser.add_argument("--plan", action="store_true", help="print what each IPU would run and store")
    parser.add_argument("--plan-output", metavar="FILE.png", help="print the plan and plot it")
    args = parser.parse(argv)
    if args.cfg is None:
        raise Refusal(f"--cfg is required: one of {', '.join(configuration.named_configs())}, or a YAML file")
    _check_one_command(args)
    _check_source(args)
    if args.throughput or (args.compile_only and getattr(args, "DATA.DATA_PATH") is None):
        args.synthetic = args.synthetic or "host"  # both need only the shape of the data
    return args


def parse_validation(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """The command line of validate.py."""
    parser = _common_parser("validate", "Validates a checkpoint.")
    parser.add_argument("--checkpoint", required=True, metavar="FILE", help="checkpoint or weights to validate")
    parser.add_argument(
        "--per-class",
        nargs="?",
        const="",
        metavar="FILE.csv",
        help="log the accuracy of each class, and write it to FILE.csv if given, with top-5 and precision",
    )
    parser.add_argument(
        "--confusion-matrix", metavar="FILE.csv", help="write the non-zero cells of the confusion matrix"
    )
    parser.add_argument("--predictions", metavar="FILE.csv", help="write the top five classes of each image")
    args = parser.parse(argv)
    _check_source(args)
    _check_free([args.per_class, args.confusion_matrix, args.predictions])
    _check_configuration(args)
    return args


def parse_prediction(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """The command line of predict.py."""
    parser = _common_parser("predict", "Predicts the classes of images.")
    parser.add_argument("--checkpoint", required=True, metavar="FILE", help="checkpoint or weights to predict with")
    parser.add_argument("--top", type=int, default=5, metavar="N", help="number of classes per image (default: 5)")
    parser.set_defaults(synthetic=None)
    parser.add_argument(
        "--format",
        choices=PREDICTION_FORMATS,
        help="text, csv, or jsonl (JSON lines); default: from the extension of --output, else text",
    )
    parser.add_argument("--output", metavar="FILE", help="write the predictions to a new file, not to standard output")
    parser.add_argument("--features", metavar="FILE.npy", help="write the pooled features, and their paths to FILE.csv")
    parser.add_argument("--attention", metavar="DIR", help="write each image with its attention map overlaid")
    parser.add_argument(
        "images", nargs="+", metavar="IMAGE", help="image files, folders, quoted patterns; -: paths from standard input"
    )
    args = parser.parse(argv)
    if args.top < 1:
        raise Refusal(f"--top {args.top}: must be at least 1")
    _check_prediction_files(args)
    _check_configuration(args)
    return args


def _check_one_command(args: argparse.Namespace) -> None:
    """Raises `Refusal` if several of the flags that select a command are given.

    --plan-output implies --plan, and --schedule-output implies --dry-run.
    """
    commands = {
        "--compile-only": args.compile_only,
        "--eval": args.eval,
        "--throughput": args.throughput,
        "--plan": args.plan or args.plan_output is not None,
        "--dry-run": args.dry_run or args.schedule_output is not None,
    }
    given = [flag for flag, is_given in commands.items() if is_given]
    if len(given) > 1:
        raise Refusal(f"{' and '.join(given)}: give only one of them")


def _check_source(args: argparse.Namespace) -> None:
    """Raises `Refusal` for mutually exclusive flags."""
    if args.synthetic and getattr(args, "DATA.DATA_PATH") is not None:
        raise Refusal("--data-path and --synthetic: give only one of them")


def _check_prediction_files(args: argparse.Namespace) -> None:
    """Fills in the format, and raises `Refusal` for files that cannot be created."""
    ending = Path(args.output or "").suffix[1:]
    args.format = args.format or (ending if ending in PREDICTION_FORMATS else PREDICTION_FORMATS[0])
    if args.features and not args.features.endswith(".npy"):
        raise Refusal(f"--features {args.features}: the name must end in .npy")
    paths = args.features and str(Path(args.features).with_suffix(".csv"))
    folder = args.attention
    is_empty = folder and Path(folder).is_dir() and not any(Path(folder).iterdir())
    _check_free([args.output, args.features, paths, None if is_empty else folder])


def _check_free(files: Sequence[Optional[str]]) -> None:
    """Raises `Refusal` for result files that cannot be created; None and '' are skipped."""
    given = [Path(file) for file in files if file]
    for file in given:
        if given.count(file) > 1:
            raise Refusal(f"{file}: given for two results: give each its own file")
        check_free(file)


def _check_configuration(args: argparse.Namespace) -> None:
    """Raises `Refusal` if --cfg is given and invalid, before the checkpoint is read."""
    if args.cfg is not None:
        build_config(args)


def overrides(args: argparse.Namespace) -> List[Tuple[str, Any]]:
    """The (key, value) pairs of the flags given."""
    given = [(flag.key, getattr(args, flag.key, None)) for flag in KEY_FLAGS]
    return [(key, value) for key, value in given if value is not None]


def build_config(args: argparse.Namespace, saved: Optional[str] = None, classes: int = 0) -> CfgNode:
    """The frozen configuration of a command line, on top of a checkpoint's configuration `saved` if given.

    Settings that only concerned the run that saved the checkpoint (OF_THE_RUN) are reset. Generated images have as many
    classes as the configured data set, or `classes` if the checkpoint says how many.
    """
    opts = args.opts if saved is None else [*OF_THE_RUN, *args.opts]
    given = overrides(args)
    config = configuration.get_config(args.cfg, opts, given, saved)
    if getattr(args, "DATA.CACHE_MODE", None) is not None and not config.DATA.ZIP_MODE:
        raise Refusal("--cache-mode applies to zip files only: add --zip, or leave it out")
    if not args.synthetic:
        return config
    generated = [
        ("DATA.DATASET", "generated"),
        ("DATA.GENERATED", args.synthetic),
        ("MODEL.NUM_CLASSES", config.MODEL.NUM_CLASSES or classes or configured_classes(config)),
    ]
    return configuration.get_config(args.cfg, opts, given + generated, saved)


def check_complete(args: argparse.Namespace, config: CfgNode) -> None:
    """Raises `Refusal` for a command of train_swin.py without its output folder or data.

    A run limited by TRAIN.TRAINING_STEPS, such as a benchmark, may omit OUTPUT.
    """
    others = (args.throughput, args.eval, args.compile_only, args.dry_run, args.schedule_output is not None)
    if not any(others) and not config.OUTPUT and (config.TAG or not config.TRAIN.TRAINING_STEPS):
        raise Refusal("--output is required: the folder for checkpoints, log and metrics")
    if config.DATA.DATASET != "generated":
        check_named(config.DATA.DATA_PATH)


def origins(args: argparse.Namespace) -> Dict[str, str]:
    """What set each key of train_swin.py's configuration: default, a named configuration or file, --opts or a flag."""
    flags = {flag.key: flag.names[0] for flag in KEY_FLAGS}
    found = configuration.origins(args.cfg, args.opts, overrides(args))
    named = {key: flags[key] if source == "flag" else source for key, source in found.items()}
    if args.synthetic:
        assumed = ["MODEL.NUM_CLASSES"] if named["MODEL.NUM_CLASSES"] == "default" else []
        named.update(dict.fromkeys(["DATA.DATASET", "DATA.GENERATED", *assumed], "--synthetic"))
    return named


def log_configuration(args: argparse.Namespace, config: CfgNode) -> None:
    """Logs how the configuration differs from that of --cfg, in one line; also calls `log_keys_without_meaning`."""
    named, ours = (dict(flat(tree)) for tree in (configuration.get_config(args.cfg), config))
    changes = [f"{key} {value if value != '' else repr(value)}" for key, value in ours.items() if value != named[key]]
    logger.info("configuration: %s%s", args.cfg, f" with {', '.join(changes)}" if changes else "")
    log_keys_without_meaning(args)


def log_keys_without_meaning(args: argparse.Namespace) -> None:
    """Logs the keys of an official configuration that have no meaning here, in one line."""
    keys = configuration.keys_without_meaning(args.cfg)
    if keys:
        logger.info("%s: without meaning here: %s", args.cfg, ", ".join(keys))


def _common_parser(command: str, description: str) -> CommandLine:
    parser = CommandLine(description=description, allow_abbrev=False, elsewhere=known_flag)
    parser.add_argument("--cfg", metavar="NAME", help="name in configs/configs.yaml, or a YAML file")
    parser.add_argument("--opts", nargs="+", action="extend", default=[], metavar="KEY VALUE", help="keys to set")
    parser.add_argument("--device", choices=DEVICES, default="auto", help="auto: IPU with the SDK, else GPU, else CPU")
    if command in EVALUATION:
        parser.add_argument(
            "--synthetic",
            nargs="?",
            const="host",
            choices=("host", "device"),
            help="use random images, generated on the host (default) or the device",
        )
    # torch.distributed.launch passes it to every process; it is read from the environment instead.
    parser.add_argument("--local-rank", "--local_rank", type=int, help=argparse.SUPPRESS)
    for flag in KEY_FLAGS:
        if command not in flag.commands:
            continue
        how = (
            {"action": "store_true", "default": None}
            if flag.kind is bool
            else {"type": flag.kind, "metavar": flag.metavar}
        )
        parser.add_argument(*flag.names, dest=flag.key, help=f"{flag.help} ({flag.key})", **how)
    return parser
