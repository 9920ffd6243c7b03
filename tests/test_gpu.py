# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""What is chosen and done on a GPU, with functions of torch.cuda replaced, since none is at hand."""

import contextlib
import copy

import poptorch_host as poptorch
import pytest
import torch
from poptorch_host import host
from poptorch_host.running.link import Link
from poptorch_host.running.pending import Pending
from poptorch_host.updating import reduce, update
from poptorch_host.updating.latch import OptimizerLatch

import accelerator
from common.errors import Refusal
from config import get_config
from models.build import MODELS, build_pipeline


@pytest.fixture
def gpus(monkeypatch):
    """A machine with four GPUs; the list has what is asked of PyTorch."""
    asked = []
    monkeypatch.setattr(accelerator, "_selected", None)
    monkeypatch.setattr(host._settings, "device", None)
    monkeypatch.setattr(host._settings, "scale_gradients", False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: asked.append(f"set_device {device}"))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    return asked


def test_each_process_takes_the_gpu_of_its_local_rank_with_float32_convolutions(gpus, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "5")
    assert accelerator.select("auto").device == "gpu" and accelerator.answers_late()
    assert host.device() == torch.device("cuda:1") and gpus == ["set_device 1"]
    assert torch.backends.cudnn.allow_tf32 is False


@pytest.mark.parametrize("value", ["abc", "", "-1", "1.5"])
def test_local_rank_without_a_number_is_refused_in_one_line(value, gpus, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", value)
    with pytest.raises(Refusal, match=f"LOCAL_RANK is {value!r}, but must be a number.*unset it"):
        accelerator.select("auto")


@pytest.mark.parametrize("precision, scaled", [("mix", True), ("32.32", False)])
def test_gpu_without_bfloat16_of_its_own_has_float16_with_scaled_gradients(precision, scaled, gpus, monkeypatch):
    accelerator.select("gpu")
    assert accelerator.autocast_dtype("cuda") == torch.float16 and accelerator.autocast_dtype("cpu") == torch.bfloat16
    monkeypatch.setattr("models.build.fused_is_faster", lambda *_: False)
    build_pipeline(get_config("SWIN_DEMO", ["MODEL.PRECISION", precision]))
    assert host.scales_gradients() is accelerator.scales_gradients() is scaled
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    build_pipeline(get_config("SWIN_DEMO", ["MODEL.PRECISION", precision]))
    assert not host.scales_gradients()


def test_loader_of_a_gpu_pins_its_batches_unless_told_otherwise(gpus):
    accelerator.select("gpu")
    data = torch.utils.data.TensorDataset(torch.zeros(4, 2))
    assert poptorch.DataLoader(poptorch.Options(), data).pin_memory
    assert not poptorch.DataLoader(poptorch.Options(), data, pin_memory=False).pin_memory
    accelerator.select("cpu")
    assert not poptorch.DataLoader(poptorch.Options(), data).pin_memory


def test_processes_of_gpus_sum_by_nccl_and_exchange_host_tensors_by_gloo(gpus, monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", "29500")
    monkeypatch.setattr(reduce.dist, "is_initialized", lambda: False)
    monkeypatch.setattr(reduce.dist, "get_world_size", lambda: 2)
    begun = []
    monkeypatch.setattr(reduce.dist, "init_process_group", lambda backend, **_: begun.append(backend))
    options = poptorch.Options()
    options.Distributed.configureProcessId(1, 2)
    for device in ("cuda:1", "cpu"):
        reduce.process_group(options, torch.device(device))
    assert begun == ["cpu:gloo,cuda:nccl", "gloo"] and gpus == ["set_device cuda:1"]


class Stream:
    """A stream whose name and orders are noted."""

    def __init__(self, name, noted):
        self.name, self.noted = name, noted

    def wait_stream(self, other):
        self.noted.append(f"{self.name} waits for {other.name}")


@pytest.fixture
def link(monkeypatch):
    """A link to a device of which the streams are noted, and the notes."""
    noted, empty = [], torch.empty
    compute = Stream("compute", noted)

    @contextlib.contextmanager
    def on(stream):
        noted.append(f"{stream.name} begins")
        yield
        noted.append(f"{stream.name} ends")

    class Event:
        def __init__(self, blocking):
            assert blocking

        def record(self, stream):
            noted.append(f"mark on {stream.name}")

        def synchronize(self):
            noted.append("wait for mark")

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream("copies", noted))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: compute)
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, stream: noted.append(f"kept for {stream.name}"))

    def pinned(*args, pin_memory=False, **kwargs):
        noted.extend(["pinned"] * pin_memory)
        return empty(*args, **kwargs)

    monkeypatch.setattr(torch, "empty", pinned)
    return Link(torch.device("cpu")), noted


def test_inputs_move_on_a_stream_of_their_own_which_the_computation_waits_for(link):
    link, noted = link
    assert link.send(torch.tensor([1.5], dtype=torch.float64)).dtype == torch.float32
    assert noted == ["copies begins", "copies ends", "compute waits for copies", "kept for compute"]


def test_outputs_go_to_pinned_memory_and_are_waited_for_once(link):
    link, noted = link
    outputs = link.fetch(torch.tensor([3], dtype=torch.int64))
    pending = Pending(outputs, link, None, 0)
    assert noted == ["pinned", "mark on compute"]
    assert pending.wait().outputs.dtype == torch.int32 and noted[-1] == "wait for mark"


@pytest.fixture
def fake_gpu():
    """Inside, tensors of a GPU have no values: reading one, or computing with one of the host, is an error."""
    mode = pytest.importorskip("torch._subclasses.fake_tensor").FakeTensorMode()
    with mode:
        try:
            torch.zeros(1, device="cuda") + torch.zeros(1, device="cuda")
        except (RuntimeError, AssertionError) as error:
            pytest.skip(f"this PyTorch fakes no GPU: {error}")
        with pytest.raises(Exception, match="_local_scalar_dense"):
            torch.zeros(1, device="cuda").item()
    return mode


def on_fake_gpu(module):
    """The module with tensors of the GPU, to be called inside the mode."""
    for part in module.modules():
        for tensors, kind in ((part._parameters, torch.nn.Parameter), (part._buffers, torch.Tensor.detach)):
            for name, tensor in tensors.items():
                if tensor is not None:
                    tensors[name] = kind(torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda"))
    return module


@pytest.mark.parametrize("precision, scaled", [("32.32", False), ("mix", False), ("mix", True)])
@pytest.mark.filterwarnings("ignore:.*CUDA is not available")
def test_forward_pass_and_update_read_nothing_and_mix_no_devices(precision, scaled, fake_gpu, monkeypatch):
    """From bytes to new weights, with clipping and updates that may be left out; the backward pass needs a GPU."""
    monkeypatch.setattr(host._settings, "skip_nonfinite", True)
    monkeypatch.setattr(host._settings, "scale_gradients", scaled)
    monkeypatch.setattr(update, "_without_modes", contextlib.nullcontext)  # which would end the mode for the update
    accelerator.select("cpu")
    model = MODELS["swin"](get_config("SWIN_DEMO", ["MODEL.PRECISION", precision]), 10).train()
    latch = OptimizerLatch(poptorch.Options())
    latch.set(poptorch.optim.AdamW(model.parameters(), lr=1e-3, max_grad_norm=5.0))
    device = copy.deepcopy(model)
    with fake_gpu:
        weights = dict(on_fake_gpu(device).named_parameters())
        pairs = [(name, parameter, weights[name]) for name, parameter in model.named_parameters()]
        updates = update.WeightUpdate(latch, pairs, poptorch.Options())
        assert updates.is_late
        pixels = torch.empty(4, 3, 16, 16, dtype=torch.uint8, device="cuda")
        for _ in range(2):
            updates.before_backward(1)
            _, loss = device(pixels, torch.empty(4, dtype=torch.int64, device="cuda"))
            assert updates.scaled(torch.full_like(loss.detach(), updates.root_gradient())).is_cuda
            for weight in weights.values():
                weight.grad = torch.empty_like(weight)
            updates.accumulate(1)
            updates.apply()
        assert updates.take_findings().shape == (2,)
