from importlib.util import find_spec

import pytest


def pytest_collection_modifyitems(items):
    # At its first import DeepSpeed says on standard output what it runs on: not in the middle of an example.
    if find_spec("deepspeed") and any(isinstance(item, pytest.DoctestItem) for item in items):
        import deepspeed  # noqa: F401
