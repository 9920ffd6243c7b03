# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Programs as data, and random ones: JSON values that say what a run is made of."""

import random
from typing import Any, Dict, List

Program = Dict[str, Any]

CONTAINERS = ["tensor", "tuple", "list", "dict", "keyword"]
OPTIMIZERS: List[Dict[str, Any]] = [
    {"name": "SGD", "lr": 0.1},
    {"name": "SGD", "lr": 0.1, "momentum": 0.9, "dampening": 0.25, "weight_decay": 0.1},
    {"name": "SGD", "lr": 0.1, "momentum": 0.9, "use_combined_accum": True},
    {"name": "SGD", "lr": 0.1, "loss_scaling": 8.0},
    {"name": "Adam", "lr": 0.05, "weight_decay": 0.1},
    {"name": "Adam", "lr": 0.05, "max_grad_norm": 0.25},
    {"name": "AdamW", "lr": 0.05, "betas": [0.8, 0.9], "eps": 1e-5},
    {"name": "AdamW", "lr": 0.05, "loss_scaling": 4.0},
    {"name": "RMSprop", "lr": 0.05},
    {"name": "RMSprop", "lr": 0.05, "momentum": 0.5, "centered": True},
    {"name": "LAMB", "lr": 0.05, "max_weight_norm": 0.5},
]


def random_program(seed: int) -> Program:
    """The program of a seed: training, inference or loading; some are wrong on purpose."""
    draw = random.Random(seed)
    return draw.choice([_training, _training, _inference, _loading])(draw, seed)


def _options(draw: random.Random) -> Program:
    return {
        "deviceIterations": draw.choice([1, 1, 2, 3]),
        "replicationFactor": draw.choice([1, 1, 2, 3]),
        "outputMode": draw.choice(["Default", "All", "Final", "Sum", "EveryN"]),
        "period": draw.choice([None, 1]),  # a longer one is the native core's to refuse
    }


def _training(draw: random.Random, seed: int) -> Program:
    program: Program = {
        "kind": "training",
        "seed": seed,
        "options": _options(draw),
        "accumulation": draw.choice([1, 2, 3]),
        "reduction": draw.choice(["Mean", "Sum"]),
        "optimizer": draw.choice(OPTIMIZERS),
        "loss": draw.choice(["mse_loss", "l1_loss", "identity_loss mean", "identity_loss sum", "none"]),
        "rows": draw.choice([1, 2, 3]),
        "extra_rows": draw.choice([0] * 5 + [1]),  # a batch that cannot be divided
        "dtype": draw.choice(["float32", "float32", "float64"]),
        "second_dtype": draw.choice([None, None, None, "float16", "int32"]),  # a later batch unlike the compiled one
        "rate_after": draw.choice([None, 0.02]),
        "container": draw.choice(CONTAINERS),
        "grouped": draw.choice(["all", "all", "all", "weight"]),  # a bias in no group has the defaults
    }
    if program["loss"] == "l1_loss" and program["optimizer"]["name"] != "SGD":
        # A bias has a mean of signs as its gradient. Where they cancel, it is 0 or a rounding error, by the order of
        # the sum: PopTorch's default eps of 1e-8 makes the latter a whole update.
        program["optimizer"] = {**program["optimizer"], "eps": 1e-3}
    return program


def _inference(draw: random.Random, seed: int) -> Program:
    return {
        "kind": "inference",
        "seed": seed,
        "options": _options(draw),
        "rows": draw.choice([1, 2]),
        "extra_rows": draw.choice([0] * 5 + [1]),
        "dtype": draw.choice(["float32", "float64", "int32", "int64"]),
        "second_dtype": draw.choice([None, None, "float16"]),
        "container": draw.choice(CONTAINERS),
    }


def _loading(draw: random.Random, seed: int) -> Program:
    return {
        "kind": "loading",
        "seed": seed,
        "options": {"deviceIterations": draw.choice([1, 2]), "replicationFactor": draw.choice([1, 2])},
        "accumulation": draw.choice([1, 2]),
        "samples": draw.choice([0, 5, 8, 17]),
        "batch_size": draw.choice([1, 1, 2, 3, None]),
        "shuffle": draw.choice([False, True]),
        "drop_last": draw.choice([False, True]),
        "processes": draw.choice([1, 1, 2]),
        "random_seed": draw.choice([None, 5]),
        "container": draw.choice(["tensor", "tuple", "dict"]),
    }
