"""The house: imports run downwards, and what could be imported before still can, from the same place."""

import ast
from importlib import import_module
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parents[1]
# From the ground up. A file may import from its own room and from the floors below.
FLOORS = (
    ("errors", "mask_logits", "tokens"),
    ("files", "processes", "media"),
    ("losses", "metrics"),
    ("model_card", "rewards"),
    ("models",),
    ("adapters", "data", "sampling"),
    ("features",),
    ("evaluation",),
    ("hub",),
    ("mining", "preferences"),
    ("trainers",),
    ("scripts",),
    ("cli",),
    ("_moved", "_registration"),
    ("__init__",),
)
HEIGHT = {room: height for height, floor in enumerate(FLOORS) for room in floor}
OLD_NAMES = [line.split(": ") for line in (ROOT / "tests" / "old_names.txt").read_text().splitlines()]


def room_of(module: str) -> str:
    """The first name below the package; its face where a module is none of its files."""
    name = module.split(".")[1] if "." in module else "__init__"
    return name if name in HEIGHT else "__init__"


def imports(root: Path):
    """Every import of one room by another, those within functions too: file, line, room and the room imported from."""
    for file in sorted((root / "sa2va_trl").rglob("*.py")):
        place = file.relative_to(root)
        room = place.with_suffix("").parts[1]
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                base = ".".join(place.parts[: -node.level]) if node.level else ""
                module = ".".join(filter(None, (base, node.module)))
                names = [f"{module}.{alias.name}" for alias in node.names]
            else:
                continue
            for name in names:
                if name.split(".")[0] == "sa2va_trl" and room_of(name) != room:
                    yield place, node.lineno, room, room_of(name)


def test_every_import_runs_downwards():
    found = list(imports(ROOT))
    assert len(found) > 100
    wrong = [f"{place}:{line}: {room} imports {other}" for place, line, room, other in found if not down(room, other)]
    assert not wrong, "\n".join(wrong)


def down(room: str, other: str) -> bool:
    return HEIGHT[other] < HEIGHT[room]


def test_an_import_upwards_would_be_seen(tmp_path):
    (tmp_path / "sa2va_trl" / "models").mkdir(parents=True)
    code = "from ..errors import DatasetError\n\n\ndef f():\n    from ..data.columns import check_dataset\n"
    (tmp_path / "sa2va_trl" / "models" / "modeling.py").write_text(code)
    (_, first, *one), (_, second, *other) = imports(tmp_path)
    assert (first, second) == (1, 5) and down(*one) and not down(*other)


def test_every_file_has_a_floor():
    rooms = {file.relative_to(ROOT).with_suffix("").parts[1] for file in (ROOT / "sa2va_trl").rglob("*.py")}
    assert rooms == set(HEIGHT)


@pytest.mark.parametrize(("module", "names"), OLD_NAMES, ids=[module for module, _ in OLD_NAMES])
def test_old_names_are_importable_from_where_they_were(module, names):
    missing = [name for name in names.split() if not hasattr(import_module(module), name)]
    assert not missing


def test_an_old_module_gives_the_thing_itself():
    from sa2va_trl.data.features import FeatureStore
    from sa2va_trl.features.store import FeatureStore as present

    assert FeatureStore is present
    with pytest.raises(ImportError, match="no_such_name"):
        from sa2va_trl.data.features import no_such_name  # noqa: F401
