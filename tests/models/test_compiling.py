# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""--compile: the same numbers, through poptorch_host too, one line of what it took, and one where nothing compiles.

Graphs are captured and run without code being generated for them, which takes a compiler and half a minute.
"""

import copy
import functools
import importlib

import pytest
import torch

import accelerator
import train_swin
from common.errors import Refusal
from config import get_config
from models import compiling
from models.build import MODELS, build_pipeline

pytest_plugins = ["tests.digits"]
SMALL = [
    *("MODEL.SWIN.EMBED_DIM", "8", "MODEL.SWIN.DEPTHS", "[1, 1]", "MODEL.SWIN.NUM_HEADS", "[1, 2]"),
    *("IPU.LAYERS_PER_IPU", "[1, 1]", "TRAIN.ACCUMULATION_STEPS", "4", "MODEL.DROP_PATH_RATE", "0.0"),
]
HAS_IT = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= compiling.OLDEST
compiles = pytest.mark.skipif(not HAS_IT, reason="this PyTorch is too old")


@pytest.fixture
def quick(monkeypatch):
    """Captures graphs and runs them as they are."""
    testing = importlib.import_module("torch._dynamo.testing")
    accelerator.select("cpu")
    torch._dynamo.reset()
    counted = testing.CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=counted))
    return counted


@compiles
def test_trained_and_evaluated_weights_are_those_of_the_plain_model_in_one_graph_each(quick, caplog):
    """Two stages with hooks for PopTorch, which cut no graph, and four micro-batches, which could be folded."""
    poptorch, seen = accelerator.poptorch(), {}
    images, labels = torch.randn(8, 3, 16, 16), torch.arange(8)
    for name in ("plain", "compiled"):
        torch.manual_seed(0)
        config = get_config("SWIN_DEMO", [*SMALL, "TRAIN.COMPILE", str(name == "compiled")])
        model = build_pipeline(config, 10)
        options = poptorch.Options()
        options.Training.gradientAccumulation(4)
        optimizer = poptorch.optim.AdamW(model.parameters(), lr=0.01)
        trainer = poptorch.trainingModel(model.train(), options, optimizer)
        quick.frame_count = 0
        with caplog.at_level("INFO"):
            losses = [trainer(images, labels)[1].item() for _ in range(3)]
            validator = poptorch.inferenceModel(model.eval(), poptorch.Options().deviceIterations(2))
            logits = validator(images)
        seen[name] = (torch.tensor(losses), logits)
    for plain, compiled in zip(seen["plain"], seen["compiled"]):
        torch.testing.assert_close(compiled, plain, rtol=1e-5, atol=1e-5)
    assert quick.frame_count == 2
    assert caplog.text.count("torch.compile: the first training step took") == 1
    assert caplog.text.count("torch.compile: the first evaluation took") == 1


@compiles
def test_copied_model_compiles_for_itself(quick):
    model = build_pipeline(get_config("SWIN_DEMO", [*SMALL, "TRAIN.COMPILE", "True"]), 10).eval()
    copied, images = copy.deepcopy(model), torch.randn(2, 3, 16, 16)
    assert copied.compiled is not model.compiled
    with torch.no_grad():
        torch.testing.assert_close(copied(images), model(images))


@compiles
def test_compiler_that_fails_is_refused_in_a_line(monkeypatch, tmp_path):
    def fails(function):
        raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found\nin config.cpp.cxx")

    monkeypatch.setattr(torch, "compile", fails)
    with pytest.raises(Refusal, match="No working C.. compiler found.*apt install g.*leave --compile out") as caught:
        train_swin.main(
            ["--cfg", "SWIN_DEMO", "--device", "cpu", "--synthetic", "--compile", "--output", str(tmp_path)]
        )
    assert "\n" not in str(caught.value)


def test_old_pytorch_and_ipus_are_refused(monkeypatch):
    accelerator.select("cpu")
    monkeypatch.setattr(torch, "__version__", "2.0.1+cpu")
    with pytest.raises(Refusal, match="TRAIN.COMPILE needs PyTorch 2.5 or later, this is 2.0.1"):
        compiling.check_compiler()
    monkeypatch.setattr(accelerator, "_selected", accelerator.selected()._replace(device="ipu"))
    with pytest.raises(Refusal, match="PopTorch compiles for IPUs anyway"):
        compiling.check_compiler()


def test_model_that_is_exported_or_diagnosed_compiles_nothing():
    """Who builds it wants its modules, and the checkpoint of a compiled run says TRAIN.COMPILE."""
    config = get_config("SWIN_DEMO", [*SMALL, "TRAIN.COMPILE", "True"])
    assert MODELS["swin"](config, 10).compiled is None
