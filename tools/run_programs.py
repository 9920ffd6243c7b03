# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Runs PopTorch programs of other repositories under poptorch_host and writes their results as a Markdown table.

programs.yml beside this file lists the programs, their commands at small sizes, and the packages they need. Each
program runs in a copy of its folder with a time limit; the checkouts are not modified.

    python tools/run_programs.py --requirements ENVIRONMENT | pip install -r /dev/stdin
    python tools/run_programs.py --checkout examples=FOLDER --checkout poptorch=FOLDER --work FOLDER
        [--python ENVIRONMENT=PYTHON] [--only REGEX] [--table FILE.md]

Results are kept in results.json of the folder --work, with a log per program; programs that were run before with
the same --work stay in the table.
"""

import argparse
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, TextIO

import yaml

HOST = Path(__file__).resolve().parent.parent / "poptorch_host"
LISTING = Path(__file__).resolve().with_name("programs.yml")
DATA = Path(__file__).resolve().with_name("program_data")

_POLL_SECONDS = 0.5
RUNS, REFUSED, STOPS, LATE = "runs", "refused", "stops", "too slow"
_MEANINGS = {
    RUNS: "run",
    REFUSED: "need native device code and are refused with a message",
    STOPS: "stop",
    LATE: "exceed their time limit",
}
_HEAD = """# PopTorch programs that were written elsewhere

Made by `python tools/run_programs.py` of the repository; do not edit. Each command ran as
`python -m poptorch_host COMMAND` in a copy of its folder of a checkout, with generated data; `tools/programs.yml` has
the data, the packages and the checkouts. Variables in front of a command are set for it: with `program_site` on
PYTHONPATH, torchvision expects the sums of the generated CIFAR-10, and urllib reads downloads from a folder. A program
that would run for long was ended after its first steps; what was compiled only says so.
"""


class Program(NamedTuple):
    """An entry of `programs.yml`, which documents the fields."""

    name: str
    folder: str
    command: str
    within: str = "."
    environment: str = "main"
    data: List[str] = []
    before: List[str] = []
    variables: Dict[str, str] = {}
    limit: int = 300
    until: str = ""
    edits: str = "none"
    refusal: str = ""
    note: str = ""


class Listing(NamedTuple):
    environments: Dict[str, List[str]]
    programs: List[Program]
    left_out: Dict[str, str]  # folders with no program to run, and why


class Result(NamedTuple):
    outcome: str
    seconds: float
    line: str  # the error message, empty if the program ran


def read_listing(path: Path = LISTING) -> Listing:
    """Reads the list.

    Raises:
        TypeError: an entry has an unknown field.
        ValueError: two programs have the same name, or an environment is not defined.
    """
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    programs = [Program(**entry) for entry in content["programs"]]
    names = [program.name for program in programs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{path.name} names a program twice: {', '.join(twice)}")
    unknown = sorted({program.environment for program in programs} - set(content["environments"]))
    if unknown:
        raise ValueError(f"{path.name} has no environment {', '.join(unknown)}")
    return Listing(content["environments"], programs, content.get("left_out", {}))


def run(program: Program, checkouts: Dict[str, Path], python: str, work: Path) -> Result:
    """Runs a program and its preparation commands in a new copy of its folder; output goes to a log beside the copy."""
    checkout, _, inside = program.folder.partition("/")
    folder = work / re.sub(r"\W+", "-", program.name)
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(checkouts[checkout] / inside, folder, symlinks=True)
    environment = environment_of(program, folder)
    calls = [[str(DATA), *shlex.split(filled(arguments, checkouts))] for arguments in program.data]
    calls += [shlex.split(command) for command in [*program.before, program.command]]
    log = folder.with_suffix(".log")
    started = time.monotonic()
    with log.open("w") as output:
        for words in calls:
            until = program.until if words is calls[-1] else ""
            code = call([python, str(HOST), *words], folder / program.within, environment, output, program.limit, until)
            if code != 0:
                break
    return judge(program, code, time.monotonic() - started, log.read_text(errors="replace"))


def environment_of(program: Program, folder: Path) -> Dict[str, str]:
    """Returns the environment variables of a run: those of this process, offline switches, and the program's own."""
    offline = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE")
    quiet = {"WANDB_MODE": "disabled", **dict.fromkeys(offline, "1")}
    own = {key: filled(value, {"tools": DATA.parent}) for key, value in program.variables.items()}
    return {**os.environ, **quiet, "HOME": str(folder), "PYTHONUNBUFFERED": "1", **own}


def filled(text: str, folders: Dict[str, Path]) -> str:
    """Replaces {name} by the path of each given folder; other braces are kept."""
    for name, folder in folders.items():
        text = text.replace(f"{{{name}}}", str(folder))
    return text


def call(
    argv: List[str], folder: Path, environment: Dict[str, str], output: TextIO, limit: int, until: str
) -> Optional[int]:
    """Returns the exit status of a command: 0 if its output matched `until`, None if it exceeded `limit` seconds."""
    settings = dict(stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True)
    child = subprocess.Popen(argv, cwd=folder, env=environment, **settings)
    deadline = time.monotonic() + limit
    try:
        while time.monotonic() < deadline:
            try:
                return child.wait(_POLL_SECONDS)
            except subprocess.TimeoutExpired:
                if until and re.search(until, Path(output.name).read_text(errors="replace")):
                    return 0
        return None
    finally:
        end_group(child)


def end_group(child: "subprocess.Popen[bytes]") -> None:
    """Kills the process group of a program, including workers that it left behind."""
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # no process is left
    child.wait()


def judge(program: Program, code: Optional[int], seconds: float, text: str) -> Result:
    """Classifies a run; a failure that matches `program.refusal` counts as refused, any other as stopped."""
    if code == 0:
        return Result(RUNS, seconds, "")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if code is None:
        return Result(LATE, seconds, f"still running after {program.limit} s")
    refusals = [line for line in lines if program.refusal and re.search(program.refusal, line)]
    if refusals:
        return Result(REFUSED, seconds, refusals[-1])
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Exit)\b", line)]
    return Result(STOPS, seconds, (errors or lines or [f"exit status {code}"])[-1])


def table(listing: Listing, results: Dict[str, Result]) -> str:
    """Returns the Markdown page with the table of all programs that have a result."""
    known = [program for program in listing.programs if program.name in results]
    outcomes = [results[program.name].outcome for program in known]
    counts = [f"{outcomes.count(outcome)} {meaning}" for outcome, meaning in _MEANINGS.items()]
    page = [_HEAD, f"Of {len(known)} programs {', '.join(counts)}.", ""]
    page += ["| program | folder | command | packages | generated | edits | result |", "|---|---|---|---|---|---|---|"]
    page += [row(program, results[program.name]) for program in known]
    page += ["", "Not in the table:", ""] + [f"- `{folder}`: {why}" for folder, why in listing.left_out.items()]
    waiting = [program.name for program in listing.programs if program.name not in results]
    if waiting:
        page += ["", f"Not run yet: {'; '.join(waiting)}."]
    return "\n".join(page) + "\n"


def row(program: Program, result: Result) -> str:
    """Returns the table row of a program."""
    variables = [f"{key}={value}" for key, value in program.variables.items()]
    command = cell(" ".join([*variables, program.command]), 1000)
    result_text = ". ".join(filter(None, [result.outcome, cell(result.line, 200), program.note]))
    made = ", ".join(dict.fromkeys(arguments.split()[0] for arguments in program.data))
    cells = [program.name, f"`{program.folder}`", f"`{command}`", program.environment, made, program.edits, result_text]
    return f"| {' | '.join(cells)} |"


def cell(text: str, length: int) -> str:
    """Shortens text to fit a table cell and strips the folders of absolute paths."""
    text = re.sub(r"(?<![\w:/])/(?:[\w.+-]+/)+", "", " ".join(text.split())).replace("|", "\\|")
    return text if len(text) <= length else text[: length - 4] + " ..."


def parse(argv: Optional[List[str]] = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    pair = lambda text: text.split("=", 1)  # noqa: E731
    parser.add_argument("--requirements", metavar="ENVIRONMENT", help="print the packages of an environment and exit")
    parser.add_argument("--checkout", type=pair, action="append", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--python", type=pair, action="append", default=[], metavar="ENVIRONMENT=PYTHON")
    parser.add_argument("--only", default="", metavar="REGEX", help="run the programs whose name or folder matches")
    parser.add_argument("--work", type=Path, metavar="FOLDER", help="folder for copies, logs and results")
    parser.add_argument("--table", type=Path, metavar="FILE", help="write the table here (default: print it)")
    args = parser.parse_args(argv)
    if args.work is None and args.requirements is None:
        parser.error("--work is missing: name a folder for the programs' copies and logs")
    return args


def main(argv: Optional[List[str]] = None) -> None:
    args = parse(argv)
    listing = read_listing()
    if args.requirements:
        print("\n".join(listing.environments[args.requirements]))
        return
    checkouts = {name: Path(folder).resolve() for name, folder in args.checkout}
    pythons = dict(args.python)
    work = args.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    kept = work / "results.json"
    results = {name: Result(*value) for name, value in json.loads(kept.read_text()).items()} if kept.exists() else {}
    for program in listing.programs:
        if program.folder.split("/")[0] in checkouts and re.search(args.only, f"{program.name} {program.folder}"):
            result = run(program, checkouts, pythons.get(program.environment, sys.executable), work)
            results[program.name] = result
            kept.write_text(json.dumps(results, indent=1))
            print(f"{program.name}: {result.outcome} ({result.seconds:.0f} s) {cell(result.line, 300)}", flush=True)
    text = table(listing, results)
    if args.table:
        args.table.write_text(text, encoding="utf-8")
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
