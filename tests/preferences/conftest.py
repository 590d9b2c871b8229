import pytest
from encoded_rows import encode

from sa2va_trl.data import synthetic_dataset


@pytest.fixture(scope="module")
def rows():
    return synthetic_dataset(2, 2, 64)


@pytest.fixture(scope="module")
def encoded(network, rows):
    return encode(*network, rows)
