# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""torch.ops.poptorch: the operations that programs call by the names under which PopTorch registers them."""

import poptorch_host as poptorch
import pytest
import torch

from .models import Classifier, accumulating, classifier_batch, trained
from .recorder import recording

names = torch.ops.poptorch


class Scoped(Classifier):
    """Names its layers as programs do, from hooks, and computes its activation in float32."""

    def __init__(self):
        super().__init__()
        for name, part in self.named_modules():
            part.register_forward_pre_hook(lambda *_, name=name: names.push_name_scope(name))
            part.register_forward_hook(lambda *_: names.pop_name_scope())

    def forward(self, x, *labels):
        return super().forward(names.internal_cast(names.internal_cast(x, "FLOAT16"), "FLOAT"), *labels)


def test_a_model_that_names_its_parts_and_casts_inside_trains():
    x, labels = classifier_batch(4)
    executor = trained(Scoped(), accumulating(2))
    losses = [executor(x, labels)[1].mean().item() for _ in range(4)]
    assert losses[-1] < losses[0]


def test_scopes_and_casts_are_told_to_the_compiler():
    with recording() as events:
        names.push_name_scope("attention")
        cast = names.internal_cast(torch.tensor([1 + 2**-12]), "FLOAT16")
        names.pop_name_scope()
        with pytest.raises(poptorch.Error, match="'HALF'"):
            names.internal_cast(cast, "HALF")
    assert [event[0] for event in events] == ["name_scope", "name_scope_end"]
    assert cast.dtype == torch.half and cast.item() == 1


def test_casts_outside_a_compiled_model_keep_halves_in_float32():
    assert names.internal_cast(torch.ones(1).half(), "FLOAT16").dtype == torch.float32
    assert names.internal_cast(torch.ones(1), "INT8").dtype == torch.float32


def test_operations_do_what_the_public_functions_do():
    x = torch.tensor([[1.0, 3.0]])
    with recording() as events:
        assert names.identity_loss(x, 1).item() == 2 and names.recomputation_checkpoint(self=x) is x
        for hint in (
            names.nop(x),
            names.set_available_memory(x, 0.5),
            names.set_matmul_serialization(x, "input_channels", 2, True),
            names.ipu_print_tensor(x, "x", 0, 1000, 3, 80, 4, 1, ", ", "(", ")"),
            names.set_overlap_for_input(x, poptorch.OverlapMode.NoOverlap.value),
            names.dynamic_slice(x, 0, torch.tensor([0]), 1, 1),
        ):
            assert torch.equal(hint, x)
    assert {"loss", "checkpoint", "set_overlap_for_input", "dynamic_slice"} <= {event[0] for event in events}
    assert names.nearest_batch_list(torch.zeros(1, 1), torch.ones(2, 1), [0], [0, 0]).tolist() in ([0], [0, 0])


@pytest.mark.parametrize("name, whole", [("start_for_loop", "for_loop"), ("custom_operation", "custom_op")])
def test_halves_of_operations_are_refused_with_the_whole(name, whole):
    with pytest.raises(poptorch.Error, match=rf"{name} alone .* poptorch\.{whole}"):
        getattr(names, name)(torch.ones(1))
