# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Golden records: what a tiny pipelined Swin Transformer computes, to check a device or a release against.

    python -m tests.golden check --device ipu     compares this machine's device with the records of the repository
    python -m tests.golden record --folder DIR    makes records, on the host unless --device says otherwise

A record is a safetensors file for one precision: weights, images and targets; the logits of an evaluation, the loss
and the gradients of one weight update; and in its metadata the configuration and where the numbers come from. It is run
the way the application runs, through the poptorch in use, with two pipeline stages. A device does not hand out
gradients, so they are taken from the weights before and after a step of plain SGD: (before - after) / learning rate.

Exit code 0: everything agrees; 1: something does not; others as those of train_swin.py.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from yacs.config import CfgNode

import accelerator
from common.command_line import run_command
from common.errors import EXIT_DATA, EXIT_USAGE, Refusal
from common.launch import Launch
from config import get_config
from models.build import SwinClassifier, build_pipeline
from options import half_weights, inference_options, training_options
from training import checkpoint
from training.compiling import compile_program, errors_refused

RECORDS = Path(__file__).parent / "golden_records"
EXIT_DIFFERENT = 1
ALONE = Launch(0, 1, 1, 1)
MICRO_BATCHES = 4  # of a call; two stages need three to train and two to evaluate
LEARNING_RATE = 16.0  # so large that rounding the weights is small against the step that gives the gradients

# The configuration of the records: every layer there is, nothing random, two stages, bytes as input.
BASE = "SWIN_TINY"
SIZES = (
    "SEED",
    7,
    "DATA.IMG_SIZE",
    16,
    "DATA.BATCH_SIZE",
    2,
    "DATA.INPUT_DTYPE",
    "uint8",
    "MODEL.NUM_CLASSES",
    5,
    "MODEL.DROP_PATH_RATE",
    0.0,
    "MODEL.SWIN.PATCH_SIZE",
    2,
    "MODEL.SWIN.EMBED_DIM",
    8,
    "MODEL.SWIN.DEPTHS",
    [2, 2],
    "MODEL.SWIN.NUM_HEADS",
    [2, 4],
    "MODEL.SWIN.WINDOW_SIZE",
    4,
    "TRAIN.ACCUMULATION_STEPS",
    MICRO_BATCHES,
    "IPU.INFERENCE_DEVICE_ITERATIONS",
    MICRO_BATCHES,
    "IPU.LAYERS_PER_IPU",
    [2, 2],
    "IPU.REPLICAS",
    1,
    "IPU.STOCHASTIC_ROUNDING",
    False,
)
LOSS_SCALING = {"32.32": 1.0, "16.16": 128.0}

# Largest difference that passes, as a share of the tensor's largest value. float32: PyTorch 2.0.1 and 2.14 differ by
# 2e-6; devices approximate exponentials and sum in another order. (On GPUs, NVIDIA_TF32_OVERRIDE=0 keeps convolutions
# in float32.) Half: the same weights in float32 throughout give results that differ by 4e-3, and a device rounds
# elsewhere.
TOLERANCE = {"32.32": 1e-4, "16.16": 2e-2}
SMALLEST_SHARE = 1e-2  # a tensor counts as at least this share of the largest value of its kind

KINDS = ("logits", "loss", "gradients")
ORIGIN = ("device", "poptorch", "torch", "platform", "commit")


class Record(NamedTuple):
    """One file: the configuration and its origin, and the tensors by what they are for and their name."""

    name: str
    metadata: Dict[str, str]
    weights: Dict[str, Tensor]
    inputs: Dict[str, Tensor]  # images (N, C, H, W) uint8; targets (N,) or (N, classes)
    results: Dict[str, Dict[str, Tensor]]  # by kind: logits (N, classes), loss (), gradients like the weights

    @property
    def config(self) -> CfgNode:
        """What the record was made with; keys that it does not name are this version's."""
        return get_config(self.metadata["cfg"], json.loads(self.metadata["opts"]))


def record(folder: Path, force: bool) -> None:
    """Makes the records of every precision on the device in use.

    Raises:
        Refusal: where a record is already and `force` does not say to replace it.
    """
    paths = {precision: folder / f"swin_{precision}.safetensors" for precision in TOLERANCE}
    existing = [str(path) for path in paths.values() if path.exists()]
    if existing and not force:
        raise Refusal(
            f"{existing[0]} is there already: choose another --folder, or replace it with --force", EXIT_USAGE
        )
    folder.mkdir(parents=True, exist_ok=True)
    for precision, path in paths.items():
        made = new_record(precision)
        write(path, made._replace(results=run(made)))
        print(f"{path}: written")


def check(folder: Path) -> bool:
    """Runs every record of a folder on the device in use, prints a line for each kind of result, and returns whether
    all agree.

    Raises:
        Refusal: for a folder without records, and for a file that is none.
    """
    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise Refusal(f"{folder} has no golden records: name their folder by --folder", EXIT_DATA)
    agree = True
    for path in paths:
        expected = read(path)
        tolerance, actual = TOLERANCE[expected.config.MODEL.PRECISION], run(expected)
        print(f"{expected.name}: made with {describe(expected.metadata)}")
        for kind in KINDS:
            difference, where = largest_difference(actual[kind], expected.results[kind])
            passes = difference <= tolerance
            agree &= passes
            print(
                f"{expected.name} {kind}: largest difference {difference:.2e} of {tolerance:g} allowed, in {where}: "
                f"{'ok' if passes else 'DIFFERENT'}"
            )
    return agree


# Running.


def run(given: Record) -> Dict[str, Dict[str, Tensor]]:
    """Evaluates the record's images and trains one update on them. Refusal where the device does not."""
    with errors_refused("the device failed"):
        return {"logits": {"logits": _evaluate(given)}, **_train(given)}


def _evaluate(given: Record) -> Tensor:
    config, images = given.config, given.inputs["images"]
    model = _model(given, training=False).eval()
    validator = accelerator.poptorch().inferenceModel(model, inference_options(config, ALONE))
    compile_program(validator, "validation", [images])
    logits = validator(images)
    validator.destroy()
    return logits


def _train(given: Record) -> Dict[str, Dict[str, Tensor]]:
    config, inputs = given.config, (given.inputs["images"], given.inputs["targets"])
    poptorch = accelerator.poptorch()
    model = _model(given, training=True).train()
    optimizer = poptorch.optim.SGD(
        model.parameters(),
        lr=LEARNING_RATE,
        loss_scaling=config.TRAIN.LOSS_SCALING,
        accum_type=torch.float16 if half_weights(config) else torch.float32,
    )
    trainer = poptorch.trainingModel(model, training_options(config, ALONE), optimizer)
    compile_program(trainer, "training", inputs)
    _, loss = trainer(*inputs)  # the sum over the micro-batches, as the options ask for
    trainer.copyWeightsToHost()
    after = {name: weight.detach().clone() for name, weight in model.state_dict().items()}
    trainer.destroy()
    gradients = {
        name: ((before.double() - after[name].double()) / LEARNING_RATE).float()
        for name, before in given.weights.items()
    }
    return {"loss": {"loss": loss.float().mean() / MICRO_BATCHES}, "gradients": gradients}


def _model(given: Record, training: bool) -> SwinClassifier:
    model = build_pipeline(given.config, training=training)
    checkpoint.load_weights(model, given.weights, Path(given.name))
    return model


def largest_difference(actual: Dict[str, Tensor], expected: Dict[str, Tensor]) -> Tuple[float, str]:
    """The largest difference, as a share of the largest value of its tensor, and the name of that tensor.

    Infinite for a tensor that is missing, of another shape, or not finite.
    """
    floor = SMALLEST_SHARE * max(tensor.abs().max().item() for tensor in expected.values())
    differences = []
    for name, wanted in expected.items():
        found = actual.get(name)
        difference = float("inf")
        if found is not None and found.shape == wanted.shape and torch.isfinite(found).all():
            apart = (found.double() - wanted.double()).abs().max().item()
            difference = apart / max(wanted.abs().max().item(), floor)
        differences.append((difference, name))
    return max(differences)


# Files.


def new_record(precision: str) -> Record:
    """Weights, inputs and origin of a record, without results."""
    opts = [*SIZES, "MODEL.PRECISION", precision, "TRAIN.LOSS_SCALING", LOSS_SCALING[precision]]
    opts = [str(value) for value in opts]
    config = get_config(BASE, opts)
    generator = torch.Generator().manual_seed(config.SEED)
    weights = {name: _spread(weight, generator) for name, weight in build_pipeline(config).state_dict().items()}
    rows, classes = config.DATA.BATCH_SIZE * MICRO_BATCHES, config.MODEL.NUM_CLASSES
    images = torch.randint(
        256, (rows, 3, config.DATA.IMG_SIZE, config.DATA.IMG_SIZE), dtype=torch.uint8, generator=generator
    )
    targets = torch.randint(classes, (rows,), generator=generator)
    if half_weights(config):  # as mixup makes them; the other record has classes, and so its loss smooths labels
        targets = torch.softmax(2 * torch.randn(rows, classes, generator=generator), -1)
    return Record(
        f"swin_{precision}",
        {**provenance(), "cfg": BASE, "opts": json.dumps(opts), "seed": str(config.SEED)},
        weights,
        {"images": images, "targets": targets},
        {},
    )


def _spread(weight: Tensor, generator: torch.Generator) -> Tensor:
    """Random values of a trained model's size; those of norms around one."""
    around = 1.0 if weight.ndim == 1 and bool((weight == 1).all()) else 0.0
    return (around + 0.2 * torch.randn(weight.shape, generator=generator)).to(weight.dtype)


def provenance() -> Dict[str, str]:
    """Where numbers come from: device, platform and versions."""
    chosen = accelerator.selected()
    return {
        "device": chosen.device,
        "poptorch": f"{chosen.poptorch.__name__} {chosen.poptorch.__version__}",
        "torch": str(torch.__version__),
        "platform": f"{platform.system()} {platform.machine()}",
        "commit": _commit(),
    }


def _commit() -> str:
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=str(RECORDS.parent),
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):  # no git here, or no repository: a release that was unpacked
        return "unknown"
    return done.stdout.strip()


def describe(metadata: Dict[str, str]) -> str:
    """The origin of a record in one line."""
    return ", ".join(f"{key} {metadata[key]}" for key in ORIGIN)


def write(path: Path, made: Record) -> None:
    """Writes a record; a reader sees the old file or the new one."""
    tensors = {f"weights.{name}": tensor for name, tensor in made.weights.items()}
    tensors.update({f"inputs.{name}": tensor for name, tensor in made.inputs.items()})
    tensors.update({f"{kind}.{name}": tensor for kind in KINDS for name, tensor in made.results[kind].items()})
    temporary = path.with_suffix(".tmp")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, str(temporary), metadata=made.metadata)
    os.replace(temporary, path)


def read(path: Path) -> Record:
    """Reads a record, as data only. Refusal for a file that is none."""
    try:
        with safe_open(str(path), framework="pt") as stream:
            metadata = stream.metadata() or {}
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}
    except (OSError, SafetensorError) as error:
        raise Refusal(f"{path} cannot be read: {error}", EXIT_DATA) from error
    missing = {"cfg", "opts", *ORIGIN} - set(metadata)
    if missing:
        raise Refusal(f"{path} is no golden record: its metadata lacks {', '.join(sorted(missing))}", EXIT_DATA)

    def part(kind: str) -> Dict[str, Tensor]:
        return {name[len(kind) + 1 :]: tensor for name, tensor in tensors.items() if name.startswith(f"{kind}.")}

    return Record(path.stem, metadata, part("weights"), part("inputs"), {kind: part(kind) for kind in KINDS})


# The command line.


def parse(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """The command line: record or check."""
    parser = argparse.ArgumentParser(prog="python -m tests.golden", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name, device, text in (("record", "cpu", "make records"), ("check", "auto", "compare with records")):
        command = commands.add_parser(name, help=text)
        command.add_argument("--folder", type=Path, default=RECORDS, help="of the records (default: %(default)s)")
        command.add_argument("--device", choices=accelerator.DEVICES, default=device, help="default: %(default)s")
        if name == "record":
            command.add_argument("--force", action="store_true", help="replace records that are there")
    return parser.parse_args(argv)


def main(argv: Optional[List[str]] = None) -> None:
    """Entry of python -m tests.golden."""
    args = parse(argv)
    accelerator.select(args.device)
    if args.command == "record":
        record(args.folder, args.force)
    elif not check(args.folder):
        raise Refusal("the results of this device are not those of the records", EXIT_DIFFERENT)


if __name__ == "__main__":
    sys.exit(run_command(main))
