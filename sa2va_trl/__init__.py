"""Post-train Sa2VA on your own masks with the Hugging Face stack."""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

from . import _moved, _registration


if TYPE_CHECKING:
    from .data import SegCollator
    from .models import (
        GroundingEncoder,
        Sa2VAConfig,
        Sa2VAForConditionalGeneration,
        Sa2VAGroundingConfig,
        Sa2VAOutput,
        Sa2VAProcessor,
        SegFeatures,
        Segmentation,
        tiny_sa2va,
    )
    from .preferences.dataset import build_preferences
    from .sampling import MaskSampler
    from .trainers import (
        HardSampleConfig,
        HardSampleTrainer,
        SegDPOConfig,
        SegDPOTrainer,
        SegGRPOConfig,
        SegGRPOTrainer,
        SegSFTConfig,
        SegSFTTrainer,
    )


__version__ = "0.1.0"

__all__ = [
    "GroundingEncoder",
    "HardSampleConfig",
    "HardSampleTrainer",
    "MaskSampler",
    "Sa2VAConfig",
    "Sa2VAForConditionalGeneration",
    "Sa2VAGroundingConfig",
    "Sa2VAOutput",
    "Sa2VAProcessor",
    "SegCollator",
    "SegDPOConfig",
    "SegDPOTrainer",
    "SegFeatures",
    "SegGRPOConfig",
    "SegGRPOTrainer",
    "SegSFTConfig",
    "SegSFTTrainer",
    "Segmentation",
    "build_preferences",
    "tiny_sa2va",
]

# Where they are: nothing of them is imported before it is asked for, so that the command line can answer at once.
_HOMES = {
    "data": ("SegCollator",),
    "models": (
        *("GroundingEncoder", "Sa2VAConfig", "Sa2VAForConditionalGeneration", "Sa2VAGroundingConfig", "Sa2VAOutput"),
        *("Sa2VAProcessor", "SegFeatures", "Segmentation", "tiny_sa2va"),
    ),
    "preferences.dataset": ("build_preferences",),
    "sampling": ("MaskSampler",),
    "trainers": (
        *("HardSampleConfig", "HardSampleTrainer", "SegDPOConfig", "SegDPOTrainer", "SegGRPOConfig", "SegGRPOTrainer"),
        *("SegSFTConfig", "SegSFTTrainer"),
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    if name in _HOME_OF:
        value = getattr(import_module(f".{_HOME_OF[name]}", __name__), name)
    elif not name.startswith("_") and find_spec(f"{__name__}.{name}") is not None:
        value = import_module(f".{name}", __name__)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


_moved.install()
_registration.register()
