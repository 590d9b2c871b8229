"""
The Auto classes of transformers know this package's models as soon as both are imported, in whichever order, and
importing the package alone loads neither transformers nor torch.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


_MODELS = f"{__name__.rpartition('.')[0]}.models"  # importing it registers them


class _Finder(MetaPathFinder):
    """Finds transformers where the other finders do, and lets the models follow it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "transformers":
            return None
        found = (
            finder.find_spec(fullname, path, target) for finder in sys.meta_path if not isinstance(finder, _Finder)
        )
        spec = next(filter(None, found), None)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module: ModuleType) -> None:
                execute(module)
                import_module(_MODELS)

            spec.loader.exec_module = execute_and_register
        return spec


def register() -> None:
    """Now if transformers is imported already, else as soon as it is."""
    if "transformers" in sys.modules:
        import_module(_MODELS)
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
