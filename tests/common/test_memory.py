# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""How much memory may be used: the least of what the machine has and what a container allows."""

import pytest

from common import memory

UNLIMITED = 9223372036854771712  # what version 1 says without a limit
PREFIXES = {1: "memory/memory.", 2: "memory."}
NAMES = {1: ("limit_in_bytes", "usage_in_bytes", "total_inactive_file"), 2: ("max", "current", "inactive_file")}


@pytest.fixture
def container(tmp_path, monkeypatch):
    """Writes the files of a container's memory controller; the machine has 10,000 bytes."""
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    monkeypatch.setattr(memory, "_free_of_machine", lambda: 10_000)
    (tmp_path / "memory").mkdir()

    def write(version, limit, usage, cached):
        names = NAMES[version]
        texts = (f"{limit}\n", f"{usage}\n", f"anon 7\n{names[2]} {cached}\n")
        for name, text in zip((*names[:2], "stat"), texts):
            (tmp_path / (PREFIXES[version] + name)).write_text(text)

    return write


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    "limit, usage, cached, available",
    [(5_000, 1_000, 0, 4_000), (5_000, 5_000, 3_000, 3_000), (5_000, 5_100, 0, 0), (50_000, 1_000, 0, 10_000)],
)
def test_limit_of_a_container_limits_the_memory_and_cached_files_count_as_free(
    container, version, limit, usage, cached, available
):
    container(version, limit, usage, cached)
    assert memory.available_memory() == available


@pytest.mark.parametrize("version, limit", [(1, UNLIMITED), (2, "max"), (2, "nonsense")])
def test_container_without_a_limit_has_the_memory_of_the_machine(container, version, limit):
    container(version, limit, 1_000, 0)
    assert memory.available_memory() == 10_000


def test_system_that_reports_only_one_of_them_is_believed(container, monkeypatch):
    assert memory.available_memory() == 10_000
    monkeypatch.setattr(memory, "_free_of_machine", lambda: None)
    assert memory.available_memory() is None
    container(2, 5_000, 1_000, 0)
    assert memory.available_memory() == 4_000
