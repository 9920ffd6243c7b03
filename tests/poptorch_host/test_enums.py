# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Enumerations: names, kinds and values, as recorded in data/poptorch-api.json, and those of popart."""

import ast
import enum
import pickle

import pytest

from tests.backend import needs_core, popart, poptorch
from tests.poptorch_host.api import NAMES

MEMBERS = {name: ast.literal_eval(entry["value"]) for name, entry in NAMES.items() if entry["kind"] == "enum member"}
ENUMS = {name: entry["bases"] for name, entry in NAMES.items() if entry["kind"] == "enum"}


@pytest.mark.parametrize("name", sorted(ENUMS))
def test_enumeration_has_exactly_the_recorded_members(name):
    kind = getattr(poptorch, name.split(".")[1])
    assert kind is getattr(poptorch.enums, kind.__name__)
    assert {base.__name__ for base in kind.__mro__} >= {base.split(".")[1] for base in ENUMS[name]}
    recorded = {key.split(".")[2]: value for key, value in MEMBERS.items() if key.startswith(name + ".")}
    assert {member.name: member.value for member in kind} == recorded


def test_enumerations_of_popart_are_taken_by_int():
    assert int(popart.SyntheticDataMode.RandomNormal) == 2 and int(popart.RecomputationType.Pipeline) == 3
    assert int(popart.RecomputationType.NoRecompute) == 0 and int(popart.SubgraphCopyingStrategy.JustInTime) == 1


@needs_core("its popart has a few of the enumerations only")
def test_enumerations_of_popart_count_from_0_and_are_copied_as_they_are():
    assert pickle.loads(pickle.dumps(popart.DotCheck.Final)) is popart.DotCheck.Final
    kinds = [value for value in vars(popart).values() if isinstance(value, enum.EnumMeta) and len(value)]
    assert len(kinds) > 15 and all([int(member) for member in kind] == list(range(len(kind))) for kind in kinds)
