# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""C code is compiled once for each processor and version, into the user's cache, and loaded from nowhere else."""

import os
import shutil
from pathlib import Path
from typing import List

import pytest

from common import compiled

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A C file, with an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "answer.c"
    path.write_text("int answer(int of) { return of + 1; }\n")
    return path


def libraries(tmp_path: Path) -> List[Path]:
    return [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_functions_can_be_called(source):
    assert compiled.load([source], [], {"answer": "i"}).answer(41) == 42


def test_compiled_once_and_only_into_the_cache(source, tmp_path, monkeypatch):
    built = compiled.built([source], [])
    monkeypatch.setattr(compiled, "compile_with", None)
    assert compiled.built([source], []) == built and libraries(tmp_path) == [built]


def test_other_code_flags_or_processors_have_another_library(source, monkeypatch):
    monkeypatch.setattr(compiled, "compile_with", lambda command: Path(command[command.index("-o") + 1]).touch(0o600))
    found = [compiled.built([source], []), compiled.built([source], ["-lm"])]
    source.write_text("int answer(int of) { return of; }\n")
    found.append(compiled.built([source], []))
    monkeypatch.setattr(compiled, "processor", lambda: "another")
    found.append(compiled.built([source], []))
    assert len(set(found)) == 4


@pytest.mark.parametrize("mask", [0o000, 0o002, 0o077])
def test_compiled_code_is_private_whatever_the_umask(source, mask):
    before = os.umask(mask)
    try:
        library = compiled.built([source], [])
    finally:
        os.umask(before)
    assert library.stat().st_mode & 0o777 == 0o700


def test_code_that_others_can_write_is_compiled_again(source):
    library = compiled.built([source], [])
    library.write_bytes(b"replaced")
    library.chmod(0o777)
    assert compiled.load([source], [], {"answer": "i"}).answer(41) == 42
    assert library.stat().st_mode & 0o777 == 0o700


def test_code_of_another_user_that_cannot_be_replaced_is_not_loaded(source, monkeypatch):
    compiled.built([source], [])
    monkeypatch.setattr(os, "getuid", lambda: -1)
    with pytest.raises(RuntimeError, match="other users"):
        compiled.load([source], [], {})


def test_compiler_that_is_no_command_is_named(source, monkeypatch):
    monkeypatch.setenv("CC", "gcc '-O2")
    with pytest.raises(RuntimeError, match="CC=gcc '-O2 is not a command: No closing quotation"):
        compiled.load([source], [], {})


def test_what_the_compiler_says_is_told_and_nothing_is_left(source, tmp_path):
    source.write_text("int answer(\n")
    with pytest.raises(RuntimeError, match="cc: .*answer.c:1"):
        compiled.load([source], [], {})
    assert not libraries(tmp_path)


def test_without_a_home_nothing_is_compiled(source, monkeypatch):
    monkeypatch.setattr(compiled, "user_cache", lambda: None)
    with pytest.raises(RuntimeError, match="set XDG_CACHE_HOME"):
        compiled.load([source], [], {})
