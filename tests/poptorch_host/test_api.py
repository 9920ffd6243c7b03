# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Every recorded public name is there, of its kind and with its signature; importing has no side effects."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.backend import STUB_CORE, host_only, needs_core, poptorch, raises

from .api import NAMES, RECORD, find

ATTRIBUTES = {name: entry for name, entry in NAMES.items() if entry["kind"].startswith("instance attribute")}
OTHERS = sorted(set(NAMES) - set(ATTRIBUTES))


def parameters(entry):
    return [(p["name"], p["kind"], p["has_default"]) for p in entry["params"]]


def actual_parameters(function):
    return [(p.name, p.kind.name, p.default is not p.empty) for p in inspect.signature(function).parameters.values()]


def defaults(entry):
    return {p["name"]: p["default"] for p in entry["params"] if p["has_default"]}


def underlying(name):
    """The function behind a name: of a static method and a property as well."""
    value = find(name)  # first of all: names of the package are there once they were looked up
    owner, _, member = name.rpartition(".")
    found = inspect.getattr_static(find(owner), member)
    if isinstance(found, property):
        return found.fget
    return found.__func__ if isinstance(found, staticmethod) else value


@pytest.mark.parametrize("name", OTHERS)
def test_recorded_name_has_its_kind(name):
    entry, found = NAMES[name], find(name)
    if entry["kind"] in ("class", "enum"):
        assert inspect.isclass(found)
    elif entry["kind"] == "property":
        owner, _, member = name.rpartition(".")
        assert isinstance(inspect.getattr_static(find(owner), member), property)
    elif entry["kind"] not in ("enum member", "variable"):
        assert callable(found)
    if entry["kind"] == "staticmethod":
        assert isinstance(inspect.getattr_static(find(name.rpartition(".")[0]), name.rpartition(".")[2]), staticmethod)
    if entry["kind"] == "abstractmethod":
        assert found.__isabstractmethod__


@pytest.mark.parametrize("name", [name for name in OTHERS if "params" in NAMES[name]])
def test_recorded_callable_has_its_signature(name):
    function, entry = underlying(name), NAMES[name]
    if STUB_CORE and "C++" in entry.get("source", ""):
        pytest.skip("needs PopTorch's native core: it has the function")
    assert actual_parameters(function) == parameters(entry)
    for parameter, text in defaults(entry).items():
        actual = inspect.signature(function).parameters[parameter].default
        expected = eval(text, {**vars(poptorch.enums), "torch": torch})  # noqa: S307 (the text is our own record)
        assert actual == expected and type(actual) is type(expected)


@pytest.mark.parametrize("name", [name for name in OTHERS if NAMES[name]["kind"] == "property"])
def test_recorded_property_is_writable_only_where_recorded(name):
    owner, _, member = name.rpartition(".")
    assert (inspect.getattr_static(find(owner), member).fset is not None) == NAMES[name].get("writable", False)


def base_class(name, text):
    """The class that the record calls `text` among the bases of `name`."""
    module = name.rpartition(".")[0]
    for path in (f"{module}.{text}", f"poptorch.options.{text}", text):
        try:
            return find(path) if path.startswith("poptorch") else eval(text, {"torch": torch})  # noqa: S307
        except (AttributeError, NameError, ImportError):
            continue
    raise AssertionError(f"{name} is recorded with the base {text}, which is nowhere")


@pytest.mark.parametrize("name", [name for name in OTHERS if NAMES[name]["kind"] == "class"])
def test_recorded_class_has_its_bases(name):
    for text in NAMES[name]["bases"]:
        if text in ("Exception", "abc.ABC"):
            assert issubclass(find(name), Exception if text == "Exception" else __import__("abc").ABC)
        elif text == "_options_impl.OptionsDict":
            assert {base.__name__ for base in find(name).__mro__} >= {"OptionsDict"}
        else:
            assert issubclass(find(name), base_class(name, text))


@pytest.mark.parametrize("name", [name for name in OTHERS if "attributes" in NAMES[name]])
def test_recorded_exception_has_its_attributes(name):
    assert all(hasattr(find(name)("text"), attribute) for attribute in NAMES[name]["attributes"])


def test_option_keys_are_the_recorded_ones():
    declared = RECORD["option_keys"]["declared_with_default"]
    options = poptorch.Options()
    objects = {"Options": options, "_TrainingOptions": options.Training, "_DistributedOptions": options.Distributed}
    for kind, keys in declared.items():
        expected = {key: eval(text, {"enums": poptorch.enums}) for key, text in keys.items()}  # noqa: S307
        assert objects[kind]._values == expected


def test_option_keys_made_by_setters_are_the_recorded_ones():
    arguments = {"modelName": "n", "setAvailableMemoryProportion": {"IPU0": 1}, "useOfflineIpuTarget": 2}
    for kind, setters in RECORD["option_keys"]["created_by_setter"].items():
        for setter, keys in setters.items():
            owner = {
                "Options": poptorch.Options(),
                "TensorLocationSettings": poptorch.TensorLocationSettings(),
                "_TensorLocationOptions": poptorch.Options().TensorLocations,
            }[kind]
            location = kind == "_TensorLocationOptions" and setter.startswith("set")
            ordinary = 64 if kind == "_TensorLocationOptions" or setter.startswith("min") else True
            getattr(owner, setter)(poptorch.TensorLocationSettings() if location else arguments.get(setter, ordinary))
            assert all(owner.exists(key) for key in keys)


def test_wrapped_model_has_the_recorded_members():
    model = torch.nn.Linear(1, 1)
    executor = poptorch.trainingModel(model)
    for member, entry in RECORD["wrapped_user_model_members"].items():
        assert actual_parameters(inspect.getattr_static(type(model), member)) == parameters(entry)
    assert executor.per_replica_params == {}


@needs_core("the SDK's popdist")
@pytest.mark.parametrize("name", sorted(RECORD["popdist_observed"]))
def test_recorded_name_of_popdist_has_its_signature(name):
    entry, found = RECORD["popdist_observed"][name], find(name)
    if entry["kind"] == "class":
        assert issubclass(found, find(entry["bases"][0]))
        found, entry = (
            found.__init__,
            {
                "params": [
                    {"name": "self", "kind": "POSITIONAL_OR_KEYWORD", "has_default": False},
                    *entry["init_params"],
                ]
            },
        )
    assert actual_parameters(found) == parameters(entry)


def test_recorded_attributes_of_optimizers_are_set():
    parameter = [torch.nn.Parameter(torch.ones(1))]
    kinds = ("SGD", "Adam", "AdamW", "RMSprop", "LAMB")
    made = {kind: getattr(poptorch.optim, kind)(parameter, lr=0.1) for kind in kinds}
    for name in ATTRIBUTES:
        kind, attribute = name.split(".")[-2:]
        if name.startswith("poptorch.optim."):
            assert hasattr(made.get(kind, made["SGD"]), attribute), name


def test_recorded_attributes_of_loaders_are_set():
    options, data = poptorch.Options(), torch.utils.data.TensorDataset(torch.arange(8))
    sampler = torch.utils.data.BatchSampler(torch.utils.data.SequentialSampler(data), 2, True)
    assert poptorch.DataLoader(options, data, batch_sampler=sampler).batch_sampler_drop_last is True
    rebatched = poptorch.DataLoaderMode.AsyncRebatched
    loader = poptorch.DataLoader(options, data, batch_size=2, mode=rebatched, drop_last=False)
    assert loader.rebatched_drop_last is False
    loader.terminate()
    accessor = poptorch.AsynchronousDataAccessor(data, rebatched_size=None)
    assert accessor.rebatched_size is None
    accessor.terminate()


@host_only("its modules")
def test_every_public_name_of_the_package_is_recorded():
    recorded = {name.split(".")[1] for name in NAMES}
    modules = {"enums", "ops", "optim", "options", "poptorch_core", "profiling"}
    assert set(poptorch.__all__) - modules - {"logger"} <= recorded
    assert all(getattr(poptorch, name) is not None for name in poptorch.__all__)


@host_only("its modules")
def test_version_is_poptorchs_with_a_mark_of_the_host():
    assert poptorch.__version__.startswith("3.4.0") and "host" in poptorch.__version__


def test_unknown_name_is_an_attribute_error():
    with raises(AttributeError, match="no_such_name"):
        getattr(poptorch, "no_such_name")  # noqa: B009 (not a constant of the package)


def run(code):
    return subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE).stdout.decode()


@host_only("what PopTorch does when it is imported is not ours")
def test_importing_the_package_loads_nothing_and_its_parts_change_nothing():
    printed = run("""
import sys, os
import poptorch_host
assert "torch" not in sys.modules
import torch, threading
environment, hook, path, text = dict(os.environ), sys.excepthook, list(sys.path), str(torch.ones(1))
methods, threads, seed = dict(vars(torch.Tensor)), torch.get_num_threads(), torch.initial_seed()
for name in poptorch_host.__all__:
    getattr(poptorch_host, name)
import poptorch_host.popdist.poptorch, poptorch_host.popart, poptorch_host.testing
assert (environment, hook, path, text) == (dict(os.environ), sys.excepthook, sys.path, str(torch.ones(1)))
assert methods == dict(vars(torch.Tensor)) and (threads, seed) == (torch.get_num_threads(), torch.initial_seed())
assert threading.active_count() == 1 and not torch.distributed.is_initialized()
""")
    assert printed == ""


def imported_packages(path):
    """The packages that a source file imports, relative imports left out."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.split(".")[0]


@host_only("its modules")
@pytest.mark.skipif(sys.version_info < (3, 10), reason="older versions do not list the standard library")
def test_package_imports_nothing_beside_torch_and_the_standard_library():
    allowed = {*sys.stdlib_module_names, "torch", "numpy", "torch_geometric", "poptorch_host"}
    files = sorted(Path(poptorch.__file__).parent.rglob("*.py"))
    assert len(files) > 40
    assert {path.name: set(imported_packages(path)) - allowed for path in files} == {path.name: set() for path in files}
