# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Fields of checkpoints: whatever is not what its field holds counts as damage, and automatic resume falls back."""

import pytest
import torch

from common.archive import DamagedFile
from tests.training.test_checkpoint import state
from training import checkpoint, schema

GOOD = dict(state(4), format=schema.FORMAT)
AVERAGED = {"ema": GOOD["model"], "ema_update": 4}
CHOSEN = {"fused_attention": True}


def changed(field, **values):
    return {field: dict(GOOD[field], **values)}


def test_every_field_that_is_saved_is_described():
    assert set(GOOD) | set(AVERAGED) | set(CHOSEN) == set(schema.FIELDS)
    assert schema.verified(GOOD, sealed=True) is GOOD
    schema.verified({**GOOD, **AVERAGED, **CHOSEN}, sealed=True)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"progress": 5}, "field progress holds 5"),
        (changed("progress", epoch=-5), "progress epoch is -5: 0 to"),
        (changed("progress", epoch=True), "progress epoch is True"),
        (changed("progress", update="4"), "progress update is '4'"),
        (changed("progress", step=5), "counts 5 updates of 4"),
        (changed("progress", best_top1=float("nan")), "best_top1 is nan"),
        (changed("progress", epochs=[{"loss": "x"}]), "a line without numbers"),
        (changed("progress", color="red"), "progress 'color' is unknown to format 4"),
        ({"config": ""}, "config does not hold a configuration"),
        ({"config": "SEED: !!python/name:os.system"}, "config does not hold a configuration"),
        ({"config": "A: &a [1]\nB: [*a, *a]"}, "aliases are not supported"),
        ({"config": None}, "config is None, not a text"),
        ({"model": None}, "model is None, not weights by name"),
        ({"model": {}}, "model is a dict, not weights by name"),
        ({"model": {"a": torch.zeros(2, dtype=torch.complex64)}}, "a of torch.complex64"),
        ({"optimizer": {}}, "optimizer has no param_groups"),
        (changed("optimizer", param_groups=[]), "optimizer has no param_groups"),
        (changed("optimizer", param_groups=[{"lr": -1.0, "params": [0]}]), "lr -1.0"),
        (changed("optimizer", state={7: {}}), "a state for 7"),
        (changed("optimizer", param_groups=[{"params": [0]}]), "a group with lr None"),
        (changed("optimizer", ipu_state=None), "no ipu_state by name"),
        (changed("optimizer", ipu_state={"Accl1___head.weight": 5}), "an ipu_state without tensors"),
        ({"rng_states": []}, "rng_states has 0 values"),
        ({"rng_states": ["a"]}, "rng_states has a state that is 'a'"),
        ({"rng_states": [[0.5]]}, "rng_states has a state of something but numbers"),
        ({"classes": [1]}, "classes is 1, not a text"),
        ({"rng_device": 1}, "rng_device is 1, not a text"),
        ({"training_images": 0}, "training_images is 0"),
        ({"later": 1}, "'later' is unknown to format 4"),
        ({"later": 1, "format": 5}, "its format is 5, this program reads 1 to 4 and does not know its fields 'later'"),
        ({"format": "two"}, "its format is 'two'"),
        ({"ema": {"a": torch.zeros(1)}, "ema_update": 1}, "ema has other names or shapes than model"),
        ({"ema": GOOD["model"]}, "ema goes with ema_update"),
        ({**AVERAGED, "format": 2}, "'ema' is unknown to format 2"),
        ({**AVERAGED, "ema": {k: v / 0 for k, v in GOOD["model"].items()}}, "ema.head.weight is not finite"),
        ({"fused_attention": 1}, "fused_attention is 1, not True or False"),
        ({**CHOSEN, "format": 3}, "'fused_attention' is unknown to format 3"),
        ({"model": {"a": torch.tensor([float("inf")])}}, "model.a is not finite"),
    ],
)
def test_wrong_value_is_named_with_its_field(change, said):
    with pytest.raises(DamagedFile) as caught:
        schema.verified(dict(GOOD, **change), sealed=True)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_checkpoint_with_a_wrong_field_gives_way_to_the_previous_one(tmp_path):
    checkpoint.save(tmp_path, state(1), is_best=False)
    checkpoint.save(tmp_path, state(2, rng_states="none"), is_best=False)
    path, found = checkpoint.find(tmp_path)
    assert (path.name, found["progress"]["update"]) == ("previous.pth", 1)


def test_random_state_of_another_kind_of_device_is_no_damage():
    for states in ([[1, 2]], [[2**63 + 1]], [torch.zeros(16, dtype=torch.uint8)], [(0,), (1,)]):
        assert schema.verified(dict(GOOD, rng_states=states), sealed=True)["rng_states"] is states
