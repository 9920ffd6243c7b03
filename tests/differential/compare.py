# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Outcomes of programs side by side, and the record of those of PopTorch's own front end.

`python -m tests.differential.compare`, in an environment with the SDK's poptorch, writes the record again.
"""

import argparse
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List

from tests import BACKEND_VARIABLE
from tests.differential.programs import Program, random_program

ROOT = Path(__file__).resolve().parents[2]
RECORD = Path(__file__).with_name("record.json")
RECORDED = range(64)
TOLERANCE = 1e-4


def outcomes_on(backend: str, programs: List[Program]) -> List[Dict[str, Any]]:
    """Runs programs in a process of their own: the two packages do not share one."""
    result = subprocess.run(
        [sys.executable, "-m", "tests.differential.runner"],
        input=json.dumps(programs),
        stdout=subprocess.PIPE,
        check=True,
        cwd=ROOT,
        env={**os.environ, BACKEND_VARIABLE: backend},
        text=True,
    )
    return json.loads(result.stdout)


def same(one: Any, other: Any) -> bool:
    """Whether two outcomes have the same kinds, shapes and containers, and the same numbers to TOLERANCE."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one if key != "text")
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=TOLERANCE, abs_tol=TOLERANCE) or (math.isnan(one) and math.isnan(other))
    return one == other


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items() if key != "text"}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return round(value, 6) if isinstance(value, float) else value


def write_record() -> None:
    """Writes what the programs of the seeds RECORDED do on the SDK's poptorch of this environment."""
    import poptorch
    import torch

    stub = getattr(poptorch.poptorch_core, "__harness_stub__", False)
    made_by = {
        "poptorch": poptorch.__version__,
        "torch": torch.__version__,
        "native core": "a stub on PyTorch" if stub else "the SDK's",
    }
    outcomes = outcomes_on("sdk", [random_program(seed) for seed in RECORDED])
    lines = ",\n".join(json.dumps(_rounded(outcome), separators=(",", ":")) for outcome in outcomes)
    RECORD.write_text(f'{{"made by": {json.dumps(made_by)},\n"outcomes": [\n{lines}\n]}}\n', encoding="utf-8")


if __name__ == "__main__":
    argparse.ArgumentParser(
        prog="python -m tests.differential.compare",
        description="Writes record.json again, in an environment with the SDK's poptorch.",
    ).parse_args()
    write_record()
