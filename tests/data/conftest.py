import pytest

from sa2va_trl.models.tiny import tiny_sa2va


@pytest.fixture(scope="module")
def tiler():
    """A processor that cuts wide images into tiles."""
    return tiny_sa2va(image_size=128, max_patches=4)[1]
