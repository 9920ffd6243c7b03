# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Runs PopTorch's own tests on poptorch_host and writes a table of what passes.

    python tools/poptorch_tests.py CHECKOUT --output FOLDER [--table FILE.md] [FILE_test.py ...]

CHECKOUT is a clone of https://github.com/graphcore/poptorch, which is not modified: its tests are copied to FOLDER and
run there file by file, with results as JUnit XML. Files that have a result in FOLDER are not run again, so that an
interrupted run continues. The tests need pytest, pytest-timeout, parameterized, expecttest, requests and transformers.
`poptorch_tests.yaml` lists the tests that cannot run without a device, with reasons.
"""

import argparse
import collections
import fnmatch
import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional

import yaml

ROOT = Path(__file__).resolve().parents[1]
RULES = Path(__file__).resolve().with_suffix(".yaml")
TEST_SECONDS = 120  # time limit of a test; compiling a network on a busy machine takes half of it
REPEATS = 10  # of a test that races in itself
WRITTEN_FOR = "2.0"  # PyTorch
REQUIRED_SHARE = 0.97  # of the tests that a host can pass


class Result(NamedTuple):
    """The outcome of a test: 'passed', 'failed' or 'skipped', with its message."""

    file: str
    name: str
    outcome: str
    message: str

    @property
    def id(self) -> str:
        """The id that pytest gives it."""
        return f"{self.file}.py::{self.name}"


class Releases(NamedTuple):
    """What an interpreter runs the tests with."""

    python: str
    torch: str

    @classmethod
    def of(cls, python: str) -> "Releases":
        """Asks an interpreter."""
        program = "import sys, torch; print('%d.%d' % sys.version_info[:2], torch.__version__.split('+')[0])"
        return cls(*subprocess.check_output([python, "-c", program], text=True).split())

    def are_newer(self) -> bool:
        """Whether they are newer than those the tests were written for."""
        return [int(part) for part in self.torch.split(".")[:2]] > [int(part) for part in WRITTEN_FOR.split(".")]


def main() -> int:
    """Runs the files without a result and writes the table of all results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", type=Path, help="a clone of graphcore/poptorch")
    parser.add_argument("files", nargs="*", help="names of test files (default: all)")
    parser.add_argument("--output", type=Path, required=True, help="folder for the copied tests and the results")
    parser.add_argument("--table", type=Path, help="Markdown file to write (default: standard output)")
    parser.add_argument("--python", default=sys.executable, help="interpreter with torch and the packages of the tests")
    options = parser.parse_intermixed_args()  # files may follow the flags
    rules = yaml.safe_load(RULES.read_text(encoding="utf-8"))
    tests = options.output / "tests"
    if not tests.exists():
        shutil.copytree(str(options.checkout / "tests"), str(tests))
    every = sorted(path.name for path in tests.glob("*test*.py") if path.name not in rules["files"])
    for file in options.files or every:
        report = options.output / f"{Path(file).stem}.xml"
        if not report.exists():
            run(file, tests, report, options.python)
    results = [result for report in sorted(options.output.glob("*.xml")) for result in read(report)]
    table = Table(results, rules, Releases.of(options.python))
    text = table.text([file for file in every if not (options.output / f"{Path(file).stem}.xml").exists()])
    if options.table:
        options.table.write_text(text, encoding="utf-8")
    else:
        print(text)
    return 0 if table.holds() else 1


def run(file: str, tests: Path, report: Path, python: str) -> None:
    """Runs a test file in a separate process."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(RULES.parent)])}
    environment["POPTORCH_HOST_IPUS"] = "64"  # most tests that are marked as needing IPUs need none
    environment["PATH"] = os.pathsep.join([str(Path(python).parent), os.environ.get("PATH", "")])  # for `python3`
    command = [python, "-m", "poptorch_host", "-m", "pytest", file, "-q", "-W", "ignore", "-p", "no:cacheprovider"]
    command += ["-p", Path(__file__).stem, "--timeout", str(TEST_SECONDS), f"--junitxml={report.resolve()}"]
    log = report.with_suffix(".log")
    with log.open("w", encoding="utf-8") as output:
        code = subprocess.run(command, cwd=str(tests), env=environment, stdout=output, stderr=output).returncode
    if code not in (0, 1, 5):  # passed, failed, no tests
        print(f"{file}: pytest ended with {code}: see {log}", file=sys.stderr)


def pytest_runtest_protocol(item: Any, nextitem: Any) -> Optional[bool]:
    """pytest hook: repeats a test that races in itself, up to REPEATS times, until it passes."""
    from _pytest.runner import runtestprotocol

    races = yaml.safe_load(RULES.read_text(encoding="utf-8"))["races"]
    if not any(fnmatch.fnmatchcase(item.nodeid, pattern) for patterns in races.values() for pattern in patterns):
        return None
    for _ in range(REPEATS):
        reports = runtestprotocol(item, nextitem=nextitem, log=False)
        if not any(report.failed for report in reports):
            break
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    return True


def read(report: Path) -> Iterator[Result]:
    """Yields the results in a JUnit XML file."""
    for case in ElementTree.parse(str(report)).iter("testcase"):
        outcome, message = "passed", ""
        for kind, name in (("failure", "failed"), ("error", "failed"), ("skipped", "skipped")):
            found = case.find(kind)
            if found is not None:
                outcome, message = name, found.get("message", "").splitlines()[0] if found.get("message") else ""
        yield Result(report.stem, case.get("name", ""), outcome, message)


class Table:
    """Summarises the results.

    Args:
        results: of all tests.
        rules: from poptorch_tests.yaml.
        releases: what the tests ran with.
    """

    def __init__(self, results: List[Result], rules: Dict[str, Any], releases: Releases) -> None:
        self._rules, self._releases = rules, releases
        self._outdated: List[Result] = []
        self._outside: Dict[str, List[Result]] = collections.defaultdict(list)
        self._judged: List[Result] = []
        self._skipped: Dict[str, int] = collections.Counter()
        for result in results:
            reason = self._reason(result, "outside")
            if result.outcome == "skipped":
                self._skipped[result.message] += 1
            elif reason is not None:
                self._outside[reason].append(result)
            elif releases.are_newer() and result.outcome == "failed" and self._reason(result, "newer"):
                self._outdated.append(result)
            else:
                self._judged.append(result)
        self._must = [result for result in self._judged if result.file in rules["must"]]

    def _reason(self, result: Result, section: str) -> Optional[str]:
        for reason, patterns in self._rules[section].items():
            if any(fnmatch.fnmatchcase(result.id, pattern) for pattern in patterns):
                return str(reason)
        return None

    def holds(self) -> bool:
        """Whether all required tests pass, and REQUIRED_SHARE of those that a host can pass."""
        return _passed(self._must) == len(self._must) and _passed(self._judged) >= REQUIRED_SHARE * len(self._judged)

    def text(self, missing: List[str]) -> str:
        """Returns the page in Markdown; `missing` are the files that were not run."""
        lines = [
            "# PopTorch's own tests on poptorch_host",
            "",
            f"Written by `tools/{Path(__file__).name}` from the results of a run with PyTorch {self._releases.torch}, "
            f"Python {self._releases.python}. `tools/{RULES.name}` has the rules.",
            "",
            f"- What a host must pass (PopTorch's own interface): {_share(self._must)}",
            f"- What a host can pass (these and all operations): {_share(self._judged)}",
            f"- Skipped by the tests themselves: {sum(self._skipped.values())}",
            f"- What a host cannot show: {sum(map(len, self._outside.values()))}, of which "
            f"{sum(map(_passed, self._outside.values()))} pass all the same",
            f"- Fail because these releases are newer than the tests: {len(self._outdated)}",
            f"- Files that have not been run: {', '.join(missing) or 'none'}",
            "",
            "| file | passed | failed |",
            "|---|---|---|",
        ]
        for file in sorted({result.file for result in self._judged}):
            own = [result for result in self._judged if result.file == file]
            lines.append(
                f"| {file}{' (must)' if own[0] in self._must else ''} | {_passed(own)} | {len(own) - _passed(own)} |"
            )
        lines += ["", "## Failed", ""]
        for result in self._judged:
            if result.outcome == "failed":
                reason = self._reason(result, "known") or _plain(result.message)
                lines.append(f"- `{result.id}`: {reason}")
        if self._outdated:
            lines += ["", f"## Failed, written for PyTorch {WRITTEN_FOR}", ""]
            lines += [f"- `{result.id}`: {self._reason(result, 'newer')}" for result in self._outdated]
        lines += ["", f"## Repeated until they pass, at most {REPEATS} times", ""]
        for reason, patterns in self._rules["races"].items():
            lines += [f"- `{pattern}`: {reason}" for pattern in patterns]
        lines += ["", "## What a host cannot show", ""]
        for reason, found in sorted(self._outside.items(), key=lambda item: -len(item[1])):
            names = sorted({f"{result.file}::{result.name.split('[')[0]}" for result in found})
            lines.append(f"- {reason} ({len(found)}): {', '.join(names)}")
        for file, reason in self._rules["files"].items():
            lines.append(f"- {file}, whole: {reason}")
        return "\n".join(lines) + "\n"


def _passed(results: List[Result]) -> int:
    return sum(result.outcome == "passed" for result in results)


def _share(results: List[Result]) -> str:
    count = len(results)
    return f"{_passed(results)} of {count} ({100 * _passed(results) / max(count, 1):.1f} %)"


def _plain(message: str) -> str:
    return message.replace("|", "/").replace("`", "'")[:160]


if __name__ == "__main__":
    sys.exit(main())
