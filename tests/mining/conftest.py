import pytest

from sa2va_trl.data import synthetic_dataset
from sa2va_trl.mining.scoring import score_dataset


@pytest.fixture(scope="module")
def rows():
    return synthetic_dataset(3, 12, 64)


@pytest.fixture(scope="module")
def scores(network, rows):
    return score_dataset(*network, rows, batch_size=5, progress=False)
