# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Exceptions and the log."""

import logging
import pickle

import pytest

from tests.backend import needs_core, poptorch, raises


@pytest.fixture
def level():
    before = poptorch.logger.level
    yield
    poptorch.logger.setLevel(before)


def test_errors_form_one_family_known_by_the_core_too():
    assert issubclass(poptorch.Error, Exception)
    assert issubclass(poptorch.RecoverableError, poptorch.Error)
    assert issubclass(poptorch.UnrecoverableError, poptorch.Error)
    for name in ("Error", "RecoverableError", "UnrecoverableError"):
        assert getattr(poptorch.poptorch_core, name) is getattr(poptorch, name)


@needs_core("it raises them")
@pytest.mark.parametrize(
    "name, kind, origin",
    [
        ("Popart", "Error", "popart_exception"),
        ("PoplarUnrecoverable", "UnrecoverableError", "poplar_unrecoverable_runtime_error"),
        ("PoplarRecoverableFullReset", "RecoverableError", "poplar_recoverable_runtime_error"),
    ],
)
def test_errors_of_every_kind_can_be_had_on_demand(name, kind, origin):
    core = poptorch.poptorch_core
    with pytest.raises(poptorch.Error, match="throwTestError::topLevel") as caught:
        core._throwTestError(core.TestErrorType.__members__[name])
    error = caught.value
    assert type(error) is getattr(poptorch, kind) and error.type == origin
    assert "throwTestError::bottomLevel" in error.location and "throwTestError" not in error.message
    assert getattr(error, "recovery_action", "FULL_RESET") == "FULL_RESET"


def test_built_error_has_text_message_type_and_location():
    error = poptorch.createPoptorchError("it broke")
    assert type(error) is poptorch.Error and str(error) == "'poptorch_py_error': it broke"
    assert (error.message, error.type, error.location) == ("it broke", "poptorch_py_error", "")
    assert pickle.loads(pickle.dumps(error)).message == "it broke"


@needs_core("exceptions are made by it")
def test_recoverable_error_names_an_action():
    assert hasattr(poptorch.RecoverableError("x"), "recovery_action") and poptorch.Error("x").message == "x"


@pytest.mark.parametrize(
    "name, number, expected",
    [
        ("TRACE", 0, logging.DEBUG),
        ("DEBUG", 1, logging.DEBUG),
        ("INFO", 2, logging.INFO),
        ("WARN", 3, logging.WARNING),
        ("ERR", 4, logging.ERROR),
    ],
)
def test_log_level_is_set_by_name_and_by_number(level, name, number, expected):
    for value in (name, number):
        poptorch.logger.setLevel(logging.NOTSET)
        poptorch.setLogLevel(value)
        assert poptorch.logger.level == expected
    assert poptorch.logger.name == "poptorch::python"


def test_log_level_off_leaves_critical_lines(level):
    for value in ("OFF", 6):
        poptorch.setLogLevel(value)
        assert poptorch.logger.level == logging.CRITICAL


@pytest.mark.parametrize(
    "value, message",
    [
        (5, "Invalid log level integer"),
        (7, "Invalid log level integer"),
        ("LOUD", "Unknown log level"),
        ("debug", "Unknown log level"),
    ],
)
def test_unknown_log_level_is_refused(value, message):
    with raises(ValueError, match=message):
        poptorch.setLogLevel(value)


def test_log_lines_go_to_the_standard_error_of_the_moment(capsys, level, caplog):
    poptorch.setLogLevel("WARN")
    poptorch.logger.info("unheard")
    poptorch.logger.warning("heard")
    printed = capsys.readouterr()
    assert printed.out == "" and "unheard" not in printed.err
    assert "[poptorch::python] [warning] heard" in printed.err
    assert [record.levelname.upper() for record in caplog.records] == ["WARNING"]
