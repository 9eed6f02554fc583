"""What a step that refuses its data is given, and what is said of it."""

import logging

import pytest

from infra.errors import DatasetCorrupted
from tasks.retrying import once_repaired


def test_data_that_is_refused_is_repaired_once_and_a_line_says_so(caplog: pytest.LogCaptureFixture) -> None:
    damaged = [True]

    def step() -> str:
        if damaged[0]:
            raise DatasetCorrupted("the data set has changed")
        return "trained"

    with caplog.at_level(logging.WARNING):
        assert once_repaired(step, lambda: damaged.__setitem__(0, False)) == "trained"
        assert "is damaged: it is sent again" in caplog.text
        damaged[0] = True
        with pytest.raises(DatasetCorrupted):
            once_repaired(step, lambda: None)


def test_data_that_is_taken_is_not_touched(caplog: pytest.LogCaptureFixture) -> None:
    def repair() -> None:
        raise AssertionError("nothing was damaged")

    assert once_repaired(lambda: "trained", repair) == "trained"
    assert not caplog.text
