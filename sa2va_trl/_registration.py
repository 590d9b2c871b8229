"""
The Auto classes of transformers know this package's models as soon as both are imported, in whichever order, and
importing the package alone loads neither transformers nor torch.

(A thread that imports transformers while another imports this package's models for the first time may not see them
registered yet: import `sa2va_trl.models` before threads start.)
"""

import sys
import threading
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType


_MODELS = f"{__name__.rpartition('.')[0]}.models"  # importing it registers them


class _Loader(Loader):
    """Loads transformers as its own loader does, and then the models."""

    def __init__(self, loader: Loader):
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__.loader = module.__loader__ = self.loader
        self.loader.exec_module(module)
        import_module(_MODELS)


class _Finder(MetaPathFinder):
    """Finds transformers where the other finders do, and lets the models follow it."""

    registers = _MODELS

    def __init__(self):
        self.asking = threading.local()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "transformers" or getattr(self.asking, "others", False):
            return None
        self.asking.others = True
        try:
            spec = find_spec(fullname)
        finally:
            self.asking.others = False
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


def register() -> None:
    """Now if transformers is imported already, else as soon as it is."""
    if "transformers" in sys.modules:
        import_module(_MODELS)
        return
    # One of an earlier import of this package would do the same again.
    sys.meta_path[:] = [finder for finder in sys.meta_path if getattr(finder, "registers", None) != _MODELS]
    sys.meta_path.insert(0, _Finder())
