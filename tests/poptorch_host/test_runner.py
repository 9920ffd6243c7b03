# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""`python -m poptorch_host`: a program sees the stand-in under PopTorch's names, and else a plain interpreter."""

import json
import os
import subprocess
import sys
from pathlib import Path

import poptorch_host
import pytest

from tests.backend import host_only

pytestmark = host_only("python -m poptorch_host")


ROOT = str(Path(poptorch_host.__file__).resolve().parents[1])


def run(arguments, folder, stand_in=True, flags=()):
    """Runs python with `arguments` in `folder`; the package is found through PYTHONPATH, as if it were installed."""
    front = [*flags, "-m", "poptorch_host"] if stand_in else flags
    environment = {**os.environ, "PYTHONPATH": ROOT, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": ""}
    return subprocess.run(
        [sys.executable, *front, *arguments],
        cwd=str(folder),
        env=environment,
        text=True,
        capture_output=True,
        timeout=120,
    )


@pytest.fixture
def program(tmp_path):
    def write(text, name="program.py"):
        path = tmp_path / name
        path.write_text(text)
        return str(path)

    return write


IMPORTS = """
import sys
import poptorch, poptorch.optim as optim, popdist, popdist.poptorch, popart
from poptorch.enums import OutputMode
from poptorch.options import Options
import poptorch.ops, poptorch.profiling
assert poptorch._impl.createPoptorchError is poptorch.createPoptorchError
from poptorch._impl import rewrapModelIfNecessary, unwrapModelIfNecessary
from importlib.metadata import version
assert version("poptorch") == poptorch.__version__  # which programs ask for before they use what is new
assert poptorch._logging.logger is poptorch.logger
assert issubclass(Options, poptorch._options_impl.OptionsDict)
from poptorch._poplar_executor import PoplarExecutor
assert PoplarExecutor is poptorch.PoplarExecutor is poptorch._poplar_executor.PoplarExecutor
from poptorch._utils import combine_batch_tensors_gen
import torch
batches = [[torch.zeros(1), torch.ones(2)], [torch.ones(1), torch.zeros(2)]]
assert [len(tensor) for tensor in combine_batch_tensors_gen(batches)] == [2, 4]
import poptorch.testing, poptorch.poptorch_core
import poptorch_host
assert poptorch is poptorch_host is sys.modules["poptorch"]
for part in ("optim", "enums", "options", "ops", "profiling", "testing", "poptorch_core"):
    module = sys.modules[f"poptorch.{part}"]
    assert module is getattr(poptorch, part) is sys.modules[f"poptorch_host.{part}"]
    assert module.__name__ == module.__spec__.name == f"poptorch_host.{part}"
assert optim is poptorch.optim and Options is poptorch.Options and OutputMode is poptorch.OutputMode
assert issubclass(popdist.poptorch.Options, poptorch.Options) and not popdist.isPopdistEnvSet()
assert int(popart.SyntheticDataMode.RandomNormal) == 2
try:
    import poptorch.no_such_part
except ModuleNotFoundError as error:
    print(error)
"""


def test_program_gets_the_stand_in_under_every_name(program, tmp_path):
    result = run([program(IMPORTS)], tmp_path)
    assert (result.stdout, result.stderr, result.returncode) == ("No module named 'poptorch.no_such_part'\n", "", 0)


PLAIN = """
import json, sys
import helper
record = [sys.argv, __name__, __file__, __spec__ and __spec__.name, sys.path[0], helper.__file__, sys.flags.optimize]
print(json.dumps(record + [sys.stdout.write_through, sys.modules["__main__"].__dict__ is globals()]))
if "fail" in sys.argv:
    raise ValueError("as asked")
sys.exit(7)
"""


@pytest.mark.parametrize(
    "flags, arguments",
    [(["-O"], ["program.py", "-m", "--x", "y z"]), (["-u"], ["program.py", "fail"]), ([], ["-m", "program", "a"])],
    ids=["script", "failing", "module"],
)
def test_program_sees_what_it_would_see_without_the_stand_in(program, tmp_path, flags, arguments):
    program(PLAIN)
    program("", "helper.py")
    plain = run(arguments, tmp_path, stand_in=False, flags=flags)
    result = run(arguments, tmp_path, flags=flags)
    assert (result.stdout, result.stderr, result.returncode) == (plain.stdout, plain.stderr, plain.returncode)
    assert plain.returncode == (1 if "fail" in arguments else 7) and plain.stdout.startswith("[[")


SURROUNDINGS = """
import os, sys
at_start = [sorted(sys.modules), list(sys.path), dict(os.environ)]
import json
print(json.dumps(at_start))
"""


def test_nothing_but_the_search_path_differs_when_the_program_starts(program, tmp_path):
    path = program(SURROUNDINGS)
    plain, ours = [json.loads(run([path], tmp_path, stand_in=stand_in).stdout) for stand_in in (False, True)]
    assert ours[0] == plain[0]
    [shim] = [entry for entry in ours[1] if entry not in plain[1]]
    assert shim == os.path.join(ROOT, "poptorch_host", "shim") and [e for e in ours[1] if e != shim] == plain[1]
    assert {name for name in {**ours[2], **plain[2]} if ours[2].get(name) != plain[2].get(name)} == {"PYTHONPATH"}


IMPORTING = """
import os, signal, sys, torch

def surroundings():
    handlers = [signal.getsignal(number) for number in signal.valid_signals()]
    return [list(sys.path), dict(os.environ), handlers, sys.excepthook, torch.get_num_threads(), torch.Tensor.__repr__]

before, modules, finders = surroundings(), set(sys.modules), list(sys.meta_path)
import poptorch, poptorch.optim, popdist.poptorch, popart
assert surroundings() == before
assert [finder for finder in sys.meta_path if finder not in finders] == sys.meta_path[:1]
print(*sorted({name.split(".")[0] for name in set(sys.modules) - modules if name.startswith("pop")}))
"""


def test_importing_poptorch_changes_nothing_else(program, tmp_path):
    result = run([program(IMPORTING)], tmp_path)
    assert (result.stdout, result.stderr) == ("popart popdist poptorch poptorch_host\n", "")


CHILDREN = """
import multiprocessing, subprocess, sys
import poptorch

def work(queue, options):
    import poptorch as again
    queue.put((again.__name__, isinstance(options, again.Options), options.device_iterations))

if __name__ == "__main__":
    for method in ("spawn", "forkserver"):
        context = multiprocessing.get_context(method)
        queue = context.Queue()
        child = context.Process(target=work, args=(queue, poptorch.Options().deviceIterations(5)))
        child.start()
        print(*queue.get())
        child.join()
    code = "import poptorch.optim, poptorch; print(poptorch.__name__)"
    print(subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE).stdout.decode().strip())
"""


def test_child_processes_get_the_stand_in_too(program, tmp_path):
    result = run([program(CHILDREN)], tmp_path)
    assert result.stdout.split("\n") == ["poptorch_host True 5"] * 2 + ["poptorch_host", ""], result.stderr


def test_folder_of_the_package_does_not_come_onto_the_path(program, tmp_path):
    text = """
import sys, poptorch
print(sys.path[1:2] == sys.path[-1:], [entry for entry in sys.path if entry.rstrip("/").endswith("shim")] != [])
print(poptorch.__file__)
"""
    command = [sys.executable, os.path.join(ROOT, "poptorch_host", "__main__.py"), program(text)]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    result = subprocess.run(command, cwd=str(tmp_path), env=environment, text=True, stdout=subprocess.PIPE, check=True)
    assert result.stdout.split("\n")[:2] == ["False True", poptorch_host.__file__]
    assert ROOT not in result.stdout.split("\n")[0]


@pytest.mark.parametrize("arguments, code", [([], 2), (["--help"], 0)])
def test_nothing_to_run_prints_the_usage(tmp_path, arguments, code):
    result = run(arguments, tmp_path)
    assert result.returncode == code and "PROGRAM.py" in result.stdout + result.stderr


@pytest.mark.parametrize("flag", ["-I", "-E"])
def test_flags_that_hide_the_stand_in_are_refused(tmp_path, program, flag):
    command = [sys.executable, flag, os.path.join(ROOT, "poptorch_host", "__main__.py"), program("")]
    result = subprocess.run(command, cwd=str(tmp_path), text=True, capture_output=True)
    assert result.returncode == 2 and "remove these flags" in result.stderr


def test_missing_program_fails_as_python_does(tmp_path):
    result = run(["no_such_program.py"], tmp_path)
    assert result.returncode == 2 and "no_such_program.py" in result.stderr


def test_name_given_by_hand_reaches_the_same_parts():
    text = """
import sys
import poptorch_host
sys.modules["poptorch"] = poptorch_host
import poptorch.optim
from poptorch.options import Options
import poptorch.poptorch_core, poptorch.testing
assert poptorch.optim is poptorch_host.optim and Options is poptorch_host.Options
assert poptorch.poptorch_core.Error is poptorch_host.Error
sys.modules["popdist"] = __import__("importlib").import_module("poptorch_host.popdist")
import popdist.poptorch
assert popdist.poptorch is sys.modules["poptorch_host.popdist.poptorch"]
"""
    subprocess.run([sys.executable, "-c", text], check=True, cwd=Path(__file__).resolve().parents[2])
