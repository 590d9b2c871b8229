"""
Old names of modules, which scripts may import: what they hold is looked up where it lives now. Nothing in the package
uses them.
"""

import sys
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec


_PACKAGE = __name__.rpartition(".")[0]
MOVED = {
    "arguments": ("scripts.arguments", "scripts.loading", "scripts.training", "processes"),
    "data.corruptions": ("preferences.corruptions",),
    "data.features": (
        *("features.store", "features.rows", "features.encoding", "features.fingerprint"),
        *("processes", "errors"),
    ),
    "data.frames": ("models.frame_policy",),
    "data.media": ("media.clips", "media.suffixes"),
    "deltas": ("adapters.official_trainer",),
    "mask_pixels": ("media.masks",),
    "measurements": ("metrics",),
    "routing": ("evaluation.routing",),
    "trainers.base": ("trainers.base_trainer", "trainers.base_config", "trainers.mask_statistics"),
    "trainers.dpo": ("trainers.dpo_trainer", "trainers.dpo_config"),
    "trainers.hard_sample": ("trainers.hard_sample_trainer", "trainers.hard_sample_config"),
    "trainers.options": ("trainers.base_config",),
    "trainers.plan": ("trainers.epoch_plan",),
    "trainers.sft": ("trainers.sft_trainer", "trainers.sft_config"),
    "trainers.trainable": ("adapters.presets",),
}


class _Finder(MetaPathFinder, Loader):
    def find_spec(self, fullname, path=None, target=None):
        package, _, name = fullname.partition(".")
        return ModuleSpec(fullname, self) if package == _PACKAGE and name in MOVED else None

    def exec_module(self, module):
        homes = [import_module(f"{_PACKAGE}.{name}") for name in MOVED[module.__name__.partition(".")[2]]]

        def look_up(name: str):
            for home in homes:
                if name in vars(home):
                    return vars(home)[name]
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")

        module.__getattr__ = look_up


def install() -> None:
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
