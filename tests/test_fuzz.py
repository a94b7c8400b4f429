"""Damaged files: the crashers that were found once, and a few new ones each time."""

import itertools

import fuzz_readers
import pytest
import smoke  # noqa: F401 - the project's root goes onto the path

READERS = fuzz_readers.readers()
CRASHERS = sorted(fuzz_readers.CRASHERS.glob("*"))


@pytest.mark.parametrize("path", CRASHERS, ids=lambda path: path.name)
def test_earlier_crasher_is_refused_in_one_line(path):
    name = path.name.rpartition("-")[0].replace("_", " ")
    assert fuzz_readers.check(READERS[name], path.read_bytes()) is None


@pytest.mark.parametrize("name", READERS)
def test_valid_input_is_read(name):
    for data in READERS[name].seeds:
        assert fuzz_readers.check(READERS[name], data) is None


@pytest.mark.parametrize("name", READERS)
def test_damaged_input_is_refused_in_one_line(name):
    """More by hand: `python -m tests.fuzz_readers`."""
    reader = READERS[name]
    for data in itertools.islice(fuzz_readers.inputs(name, reader, 0), 40):
        assert fuzz_readers.check(reader, data) is None
