# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The choice of PopTorch, with packages of the SDK's names in its place: installed, broken, under poprun."""

import sys

import pytest
import torch

import accelerator
import train_swin
import validate
from common.errors import EXIT_USAGE, Refusal
from common.launch import Launch
from config import get_config
from models.build import build_pipeline
from options import training_options
from tests.data_sets import write_folders
from tests.poptorch_host.api import NAMES
from training import processes

POPDIST = """
def isPopdistEnvSet(): return True
def init(): pass
def getInstanceIndex(): return 1
def getNumInstances(): return 2
def getNumTotalReplicas(): return 8
def getNumLocalReplicas(): return 4
"""
POPDIST_OPTIONS = """
import poptorch
asked = []
class Options(poptorch.Options):
    def __init__(self, ipus_per_replica=None):
        super().__init__()
        super().replicationFactor(4)
        self.Distributed.configureProcessId(1, 2)
        asked.append(ipus_per_replica)
    def replicationFactor(self, factor):
        raise RuntimeError("Cannot call `replicationFactor` with popdist.poptorch.Options")
"""
HOROVOD = """
def init(): pass
"""


@pytest.fixture
def environment(tmp_path, monkeypatch):
    """Writes modules (path -> source) into a folder that is imported from, and forgets them and the choice again."""

    def write(sources):
        for path, source in sources.items():
            (tmp_path / path).parent.mkdir(exist_ok=True)
            (tmp_path / path).write_text(source)
        return tmp_path

    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(accelerator, "_selected", None)
    before = dict(sys.modules)
    for name in list(sys.modules):
        if name.split(".")[0] in ("poptorch", "popdist", "horovod"):
            monkeypatch.delitem(sys.modules, name)
    yield write
    for name in set(sys.modules) - set(before):
        if name.split(".")[0] in ("poptorch", "popdist", "horovod"):
            del sys.modules[name]


def test_installed_sdk_is_taken(environment):
    environment({"poptorch/__init__.py": ""})
    chosen = accelerator.select()
    assert (chosen.device, chosen.poptorch.__name__, chosen.popdist) == ("ipu", "poptorch", None)
    assert accelerator.select("cpu").poptorch.__name__ == "poptorch_host"


@pytest.mark.parametrize(
    "source, said",
    [
        ("raise ImportError('libpopart.so: cannot open shared object file')", "libpopart.so: cannot open"),
        ("assert False, 'built for torch 2.0.1,\\nnot this one'", "built for torch 2.0.1, not this one"),
        ("import a_package_that_is_not_there", "No module named 'a_package_that_is_not_there'"),
    ],
)
@pytest.mark.parametrize("device", ["auto", "ipu"])
def test_sdk_that_cannot_be_imported_is_refused_in_a_line(source, said, device, environment):
    environment({"poptorch/__init__.py": source})
    with pytest.raises(Refusal, match=f"{said}.*enable its Poplar SDK") as caught:
        accelerator.select(device)
    assert caught.value.code == EXIT_USAGE and "\n" not in str(caught.value)


def test_ipu_without_sdk_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "poptorch", None)
    monkeypatch.setattr(accelerator, "_selected", None)
    with pytest.raises(Refusal, match="needs the Poplar SDK"):
        accelerator.select("ipu")


def test_run_and_validation_find_all_that_they_use_in_poptorch(environment, tmp_path):
    """With a package that has the names of PopTorch's record and no other."""
    names = {name.split(".")[1] for name in NAMES if name.startswith("poptorch.")}
    environment({"poptorch/__init__.py": f"from poptorch_host import {', '.join(sorted(names))}"})
    images = write_folders(tmp_path / "images", {"train": {"a": 4, "b": 4}, "validation": {"a": 2, "b": 1}}, (16, 16))
    small = ["--device", "ipu", "--data-path", str(images), "--opts", "DATA.LOADER", "sync"]
    run = ["--cfg", "SWIN_DEMO", "--epochs", "1", "--batch-size", "1", "--ga", "4", "--output", str(tmp_path / "run")]
    model = ["MODEL.SWIN.EMBED_DIM", "8", "MODEL.SWIN.DEPTHS", "[1, 1]", "MODEL.SWIN.NUM_HEADS", "[1, 2]"]
    more = ["IPU.LAYERS_PER_IPU", "[1, 1]", "TRAIN.WARMUP_EPOCHS", "0", "MODEL.PRECISION", "16.16"]
    train_swin.main([*run, *small, *model, *more])
    assert accelerator.selected().poptorch.__name__ == "poptorch"
    validate.main(["--checkpoint", str(tmp_path / "run" / "last.pth"), *small])


def poprun(environment, **more):
    environment(
        {
            "poptorch/__init__.py": "from poptorch_host import *",
            "popdist/__init__.py": POPDIST,
            "popdist/poptorch.py": POPDIST_OPTIONS,
            **more,
        }
    )
    accelerator.select("ipu")


def test_poprun_tells_the_options_their_replicas_and_place(environment):
    poprun(environment)
    options = training_options(get_config("SWIN_TINY"), Launch(1, 2, 8, 4))
    assert sys.modules["popdist.poptorch"].asked == [4]
    assert (options.replication_factor, options.Distributed.processId, options.Distributed.numProcesses) == (4, 1, 2)


def test_poprun_tells_the_launch_its_replicas_and_place(environment):
    poprun(environment, **{"horovod/__init__.py": "", "horovod/torch.py": HOROVOD})
    with processes.joined(get_config("SWIN_TINY")) as launch:
        assert launch == Launch(1, 2, 8, 4)


def test_instances_without_horovod_are_refused_in_a_line(environment, monkeypatch):
    poprun(environment)
    monkeypatch.setitem(sys.modules, "horovod", None)
    with pytest.raises(Refusal, match="need the package horovod"), processes.joined(get_config("SWIN_TINY")):
        pass


@pytest.fixture
def float32_precision():
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("error, kept", [(4e-4, "high"), (3e-3, "highest")])
def test_tf32_is_kept_on_a_gpu_if_a_product_is_as_accurate_as_it_is(error, kept, monkeypatch, float32_precision):
    def product_error(precision: str, device: str) -> float:
        assert device == "cuda"
        torch.set_float32_matmul_precision(precision)
        return error if precision == "high" else 1e-7

    monkeypatch.setattr(accelerator, "_selected", accelerator.select("cpu")._replace(device="gpu"))
    monkeypatch.setattr(accelerator, "product_error", product_error)
    accelerator.use_tf32()
    assert torch.get_float32_matmul_precision() == kept


def test_tf32_of_a_configuration_has_no_effect_on_a_cpu_and_says_so(caplog, float32_precision):
    accelerator.select("cpu")
    before = torch.get_float32_matmul_precision()
    with caplog.at_level("WARNING"):
        build_pipeline(get_config("SWIN_DEMO", ["MODEL.TF32", "True"]), 3)
    assert "MODEL.TF32 has no effect on this device (cpu)" in caplog.text
    assert torch.get_float32_matmul_precision() == before


@pytest.mark.parametrize("bits, accepted", [(10, True), (7, False)])
def test_limit_of_tf32_lies_between_its_rounding_and_that_of_bfloat16(bits, accepted):
    torch.manual_seed(0)
    factors = torch.randn(2, 128, 512)
    fractions, exponents = torch.frexp(factors)
    rounded = torch.ldexp((fractions * 2 ** (bits + 1)).round() / 2 ** (bits + 1), exponents)
    exact = factors[0].double() @ factors[1].double().t()
    error = (rounded[0].double() @ rounded[1].double().t() - exact).abs().max() / exact.abs().max()
    assert (error.item() < accelerator.TF32_ERROR) is accepted
