"""The house: imports run downwards, and what could be imported before still can, from the same place."""

from importlib import import_module

import pytest
from house import FLOORS, HEIGHT, PICTURE, ROOT, allowed, cycle, draw, files_of, imports, lay_out, room_of


OLD_NAMES = [line.split(": ") for line in (ROOT / "tests" / "old_names.txt").read_text().splitlines()]


def write(root, modules):
    """A package below a folder: the code of its modules by their names."""
    for name, code in modules.items():
        file = (root / "sa2va_trl" / name).with_suffix(".py")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(code)


def wrong_ways(root):
    """Imports of a room from one that it may not import, by line."""
    lines = []
    for module, line, other in imports(root):
        rooms = room_of(module), room_of(other)
        if rooms[0] != rooms[1] and not allowed(*rooms):
            lines.append(f"{module}:{line}: {rooms[0]} imports {rooms[1]}")
    return lines


def test_every_import_runs_downwards():
    between_rooms = [1 for module, _, other in imports(ROOT) if room_of(module) != room_of(other)]
    assert len(between_rooms) > 100
    wrong = wrong_ways(ROOT)
    assert not wrong, "\n".join(wrong)


def test_an_import_upwards_would_be_seen(tmp_path):
    code = "from ..errors import DatasetError\n\n\ndef f():\n    from ..data.columns import check_dataset\n"
    write(tmp_path, {"models/modeling": code, "data/columns": "", "errors": ""})
    assert wrong_ways(tmp_path) == ["sa2va_trl.models.modeling:5: models imports data"]


@pytest.mark.parametrize(
    ("room", "other", "may"),
    [
        ("models", "data", False),
        ("models", "losses", False),
        ("models", "media", True),
        ("losses", "tokens", True),
        ("rewards", "metrics", True),
        ("rewards", "losses", False),
        ("metrics", "losses", False),
        ("trainers", "losses", True),
    ],
)
def test_pure_functions_and_the_network_know_only_the_ground(room, other, may):
    assert allowed(room, other) == may


def test_no_modules_of_a_room_import_each_other_in_a_circle():
    rooms = {}
    for module, _, other in imports(ROOT):
        if room_of(module) == room_of(other):
            rooms.setdefault(room_of(module), set()).add((module, other))
    assert len(rooms) > 8
    found = {room: " -> ".join(cycle(edges)) for room, edges in rooms.items() if cycle(edges)}
    assert not found


def test_a_circle_would_be_seen(tmp_path):
    package = {"data/__init__": "from .a import A", "data/a": "from . import b"}
    package |= {"data/b": "def f():\n    from .c import C", "data/c": "import sa2va_trl.data.a"}
    write(tmp_path, package)
    edges = {(module, other) for module, _, other in imports(tmp_path)}
    assert len(edges) == 4
    a, b, c = (f"sa2va_trl.data.{name}" for name in "abc")
    assert cycle(edges) == [a, b, c, a] and not cycle(edges - {(b, c)})


def test_every_file_has_a_floor():
    rooms = {(module.split(".") + ["__init__"])[1] for module in files_of(ROOT)}
    assert rooms == set(HEIGHT)


def test_the_picture_shows_the_house_as_it_is():
    assert PICTURE.read_text() == draw(ROOT), "imports or files have changed: draw it with `python docs/house.py`"


def test_rooms_of_a_floor_do_not_overlap_and_arrows_go_round_them():
    floors = [["a", "b"], ["c"], ["d", "e", "f"]]
    at, ways = lay_out(floors, [("d", "c"), ("e", "a"), ("f", "a"), ("c", "b")])
    assert [len(way) for way in ways] == [2, 3, 3, 2]
    passing = [way[1] for way in ways if len(way) == 3]
    for floor in (*floors[::2], ["c", *passing]):
        places = sorted(at[place] for place in floor)
        assert all(right - left >= 36 for left, right in zip(places[:-1], places[1:], strict=True))
    assert len(FLOORS) > 10


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
