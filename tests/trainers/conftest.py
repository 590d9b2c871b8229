import logging

import pytest


@pytest.fixture
def log(caplog, monkeypatch):
    """What the library says from INFO on, whatever a script has made of its logger in this process before."""
    logger = logging.getLogger("sa2va_trl")
    monkeypatch.setattr(logger, "propagate", True)
    caplog.set_level(logging.INFO, logger.name)
    return caplog
