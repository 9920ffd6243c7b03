# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""SUPPORTED.md says what the code says, and what it calls refused is refused."""

import pytest
import torch
from poptorch_host import supported

from tests.backend import host_only, poptorch

from ..api import find

pytestmark = host_only("its table of what is supported")


TABLES = {
    supported.RECORDED: supported._RECORDED,
    supported.REFUSED: supported._REFUSED,
    supported.IMPLEMENTED: supported._REMARKS,
}


# A call of every refused name.
REFUSED_CALLS = {
    "poptorch.accessAttributes": lambda: poptorch.accessAttributes("0"),
    "poptorch.getIpuTensorId": lambda: poptorch.getIpuTensorId(torch.ones(1)),
}


def test_file_is_what_the_code_gives():
    written = (supported.PACKAGE / "SUPPORTED.md").read_text(encoding="utf-8")
    assert written == supported.render(), "run python -m poptorch_host.supported"


def test_file_has_every_public_name_once():
    text = supported.render()
    for owner, members in supported._by_owner(supported.recorded_names()).items():
        section = text.split(f"## {owner}\n")[1].split("\n## ")[0]
        assert [section.count(f"`{name[len(owner) + 1 :]}`") for name in members] == [1] * len(members)


@pytest.mark.parametrize("name", sorted({name for table in TABLES.values() for name in table}))
def test_table_entry_is_a_public_name_in_one_table(name):
    assert name in supported.recorded_names() and find(name) is not None
    assert sum(name in table for table in TABLES.values()) == 1


def test_refused_names_are_all_tried_below():
    assert set(REFUSED_CALLS) == {
        name for name in supported.recorded_names() if supported.support_of(name).kind == supported.REFUSED
    }


@pytest.mark.parametrize("name", sorted(REFUSED_CALLS))
def test_refused_name_raises_an_error_that_names_it(name):
    with pytest.raises(poptorch.Error, match=name.rpartition(".")[2]):
        REFUSED_CALLS[name]()


@pytest.mark.parametrize(
    "name, kind",
    [
        ("poptorch.Options.logDir", supported.RECORDED),
        ("poptorch.options._PopartOptions.set", supported.RECORDED),
        ("poptorch.Options.deviceIterations", supported.IMPLEMENTED),
        ("poptorch.trainingModel", supported.IMPLEMENTED),
        ("wrapped model.destroy", supported.IMPLEMENTED),
        ("poptorch.getIpuTensorId", supported.REFUSED),
    ],
)
def test_member_is_supported_as_its_owner_unless_it_says_otherwise(name, kind):
    assert supported.support_of(name).kind == kind
