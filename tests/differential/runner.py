# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Runs programs on the back end of this process: `python -m tests.differential.runner < programs.json > outcomes.json`.

An outcome is {"values": numbers by name} or {"error": kind of the exception, "at": the step}. Kinds are those that a
program can tell apart by `except`.
"""

import contextlib
import json
import sys
from typing import Any, Callable, Dict, List

import torch

from tests.backend import poptorch
from tests.differential.programs import Program

KINDS = (poptorch.Error, AssertionError, AttributeError, TypeError, ValueError, IndexError, KeyError)
FEATURES = 3


class Network(torch.nn.Module):
    """A linear layer with one of several losses; takes its input in a container."""

    def __init__(self, loss: str) -> None:
        super().__init__()
        self.fc, self.loss = torch.nn.Linear(FEATURES, FEATURES), loss

    def forward(self, x: Any, target: Any = None) -> Any:
        x = _opened(x)
        output = self.fc(x.to(self.fc.weight.dtype))
        if target is None:
            return {"output": output, "best": output.argmax(-1), "input": x + 1}
        if self.loss == "none":
            return output
        if self.loss.startswith("identity_loss"):
            return output, poptorch.identity_loss((output - target) ** 2, self.loss.split()[1])
        return output, getattr(torch.nn.functional, self.loss)(output, target)


def _opened(x: Any) -> torch.Tensor:
    if isinstance(x, dict):
        return x["x"]
    return x if torch.is_tensor(x) else x[0]


def _contained(x: torch.Tensor, container: str) -> Any:
    return {"tuple": (x,), "list": [x], "dict": {"x": x}}.get(container, x)


def _call(executor: Callable, x: torch.Tensor, container: str, *more: torch.Tensor) -> Any:
    if container == "keyword":
        return executor(x=x, **dict(zip(["target"], more)))
    return executor(_contained(x, container), *more)


def _options(program: Program) -> Any:
    settings = program["options"]
    options = poptorch.Options().deviceIterations(settings["deviceIterations"])
    options.replicationFactor(settings["replicationFactor"]).showCompilationProgressBar(False)
    if "outputMode" in settings:
        options.outputMode(getattr(poptorch.OutputMode, settings["outputMode"]), settings["period"])
    if "accumulation" in program:
        options.Training.gradientAccumulation(program["accumulation"])
    return options


def _optimizer(settings: Dict[str, Any], parameters: Any) -> Any:
    arguments = {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}
    return getattr(poptorch.optim, arguments.pop("name"))(parameters, **arguments)


def _batches(program: Program) -> List[torch.Tensor]:
    settings = program["options"]
    parts = settings["deviceIterations"] * settings["replicationFactor"] * program.get("accumulation", 1)
    rows = parts * program["rows"] + program["extra_rows"]
    generator = torch.Generator().manual_seed(program["seed"])
    kinds = [program["dtype"], program["second_dtype"] or program["dtype"], program["dtype"]]
    return [
        (4 * torch.rand(rows, FEATURES, generator=generator)).to(getattr(torch, kind)) for kind in (*kinds, "float32")
    ]


def _network(program: Program) -> Network:
    torch.manual_seed(program["seed"])
    return Network(program.get("loss", ""))


def run_training(program: Program, note: Callable[[str, Any], None]) -> None:
    """Three steps, with another rate after two where the program says so."""
    model, options = _network(program), _options(program)
    options.Training.accumulationAndReplicationReductionType(getattr(poptorch.ReductionType, program["reduction"]))
    grouped = [{"params": model.fc.weight, "lr": 0.03}] if program["grouped"] == "weight" else model.parameters()
    optimizer = _optimizer(program["optimizer"], grouped)
    executor = poptorch.trainingModel(model, options, optimizer)
    *steps, target = _batches(program)
    for number, x in enumerate(steps):
        if number == 2 and program["rate_after"]:
            optimizer.param_groups[0]["lr"] = program["rate_after"]
            executor.setOptimizer(optimizer)
        note(f"step {number}", _call(executor, x, program["container"], target))
    note("weights", list(model.state_dict().values()))


def run_inference(program: Program, note: Callable[[str, Any], None]) -> None:
    """Two calls."""
    executor = poptorch.inferenceModel(_network(program), _options(program))
    for number, x in enumerate(_batches(program)[:2]):
        note(f"call {number}", _call(executor, x, program["container"]))


class Samples(torch.utils.data.Dataset):
    """Counts, in a container."""

    def __init__(self, count: int, container: str) -> None:
        self.count, self.container = count, container

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        return _contained(torch.tensor([float(index)]), self.container)


def run_loading(program: Program, note: Callable[[str, Any], None]) -> None:
    """Two epochs."""
    options = _options(program)
    if program["random_seed"] is not None:
        options.randomSeed(program["random_seed"])
    options.Distributed.configureProcessId(program["processes"] - 1, program["processes"])
    arguments = {name: program[name] for name in ("batch_size", "shuffle", "drop_last")}
    loader = poptorch.DataLoader(options, Samples(program["samples"], program["container"]), **arguments)
    note("length", len(loader))
    torch.manual_seed(program["seed"])
    for epoch in range(2):
        note(f"epoch {epoch}", list(loader))


def _plain(value: Any) -> Any:
    """Tensors as {"dtype", "shape", "data"}, containers by their kind."""
    if torch.is_tensor(value):
        data = value.detach().double().flatten().tolist()
        return {"dtype": str(value.dtype), "shape": list(value.shape), "data": data}
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [type(value).__name__, *(_plain(item) for item in value)]
    return value


def outcome(program: Program) -> Dict[str, Any]:
    """What a program does here: everything up to the first error."""
    values: Dict[str, Any] = {}
    run = {"training": run_training, "inference": run_inference, "loading": run_loading}[program["kind"]]
    try:
        run(program, lambda name, value: values.update({name: _plain(value)}))
    except Exception as error:  # whatever it is, it is the result
        kind = next((kind.__name__ for kind in KINDS if isinstance(error, kind)), type(error).__name__)
        return {"values": values, "error": kind, "text": str(error)[:300]}
    return {"values": values, "error": None, "text": ""}


if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):
        outcomes = [outcome(program) for program in json.load(sys.stdin)]
    json.dump(outcomes, sys.stdout)
