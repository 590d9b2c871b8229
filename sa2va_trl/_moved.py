"""
Old names, which scripts may import: what they stand for is looked up where it lives now. Nothing in the package uses
them.
"""

import sys
from collections.abc import Callable
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from typing import Any


_PACKAGE = __name__.rpartition(".")[0]
MOVED = {
    "arguments": ("scripts.arguments", "scripts.loading", "scripts.training", "processes"),
    "data.corruptions": ("preferences.corruptions",),
    "data.features": (
        *("features.store", "features.rows", "features.encoding", "features.fingerprint", "features.decision"),
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
# Names that have changed since, by the old module.
RENAMED = {
    "data.features": {"FORMAT": "FEATURES_FORMAT"},
    "trainers.base": {"COLUMNS": "ROW_COLUMNS"},
    "trainers.dpo": {"REFUSED": "DPO_REFUSED"},
    "trainers.plan": {"COLUMNS": "SCORE_COLUMNS"},
    "trainers.sft": {"REFUSED": "SFT_REFUSED"},
}


class _Finder(MetaPathFinder, Loader):
    def find_spec(self, fullname, path=None, target=None):
        package, _, name = fullname.partition(".")
        return ModuleSpec(fullname, self) if package == _PACKAGE and name in MOVED else None

    def exec_module(self, module):
        old = module.__name__.partition(".")[2]
        homes, renamed = [import_module(f"{_PACKAGE}.{name}") for name in MOVED[old]], RENAMED.get(old, {})

        def look_up(name: str):
            for home in homes:
                present = renamed.get(name, name)
                if present in vars(home):
                    return vars(home)[present]
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")

        module.__getattr__ = look_up
        names = {present for home in homes for present in vars(home) if not present.startswith("_")} | set(renamed)
        module.__all__ = sorted(names)


def looked_up(module: str, homes: dict[str, str]) -> Callable[[str], Any]:
    """
    What finds names that could be imported from a module that is still there, and which its own imports would lead
    round to.

    Args:
        module (`str`): its name.
        homes (`dict[str, str]`): where each of the names lives now, without the package.

    Returns:
        `Callable`: the module's `__getattr__`.
    """

    def look_up(name: str) -> Any:
        if name in homes:
            return getattr(import_module(f"{_PACKAGE}.{homes[name]}"), name)
        raise AttributeError(f"module {module!r} has no attribute {name!r}")

    return look_up


def install() -> None:
    """Let the old names of modules be found, from now on."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
