"""
The house: which room of the package may import which, and a picture of it drawn from the imports.

    python docs/house.py

writes `docs/house.svg`. `tests/test_house.py` reads the imports with the same functions and says when the picture is
another than the one that would be drawn.
"""

import ast
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean


ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "house.svg"
# From the ground up. A file may import from its own room and from the floors below.
FLOORS = (
    ("_moved", "batches", "errors", "mask_logits", "motion", "skeletons", "tokens"),
    ("files", "processes", "postprocessing", "media", "questions"),
    ("losses", "metrics"),
    ("model_card", "rewards"),
    ("models",),
    ("adapters", "data", "sampling"),
    ("features",),
    ("evaluation",),
    ("hub",),
    ("mining", "preferences"),
    ("app", "trainers"),
    ("scripts",),
    ("cli",),
    ("_registration",),
    ("__init__",),
)
GROUND = {"batches", "errors", "mask_logits", "motion", "skeletons", "tokens"}
GROUND |= {"files", "processes", "postprocessing", "questions"}
PURE = {"losses", "metrics", "rewards"}
# Of the floors below them, these import no more than this.
ONLY = {
    "losses": GROUND | {"media"},
    "metrics": GROUND | {"media"},
    "rewards": GROUND | {"media", "metrics"},  # a reward is a metric that training can climb
    "models": GROUND | {"media"},
}
HEIGHT = {room: height for height, floor in enumerate(FLOORS) for room in floor}


def files_of(root: Path) -> dict[str, Path]:
    """The modules of the package below a folder: dotted name, and file."""
    modules = {}
    for file in sorted((root / "sa2va_trl").rglob("*.py")):
        parts = file.relative_to(root).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return modules


def room_of(module: str) -> str:
    """The first name below the package; its face where a module is none of its files."""
    name = module.split(".")[1] if "." in module else "__init__"
    return name if name in HEIGHT else "__init__"


def runs(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a module that can run: without what is only there for types."""
    for node in ast.iter_child_nodes(tree):
        if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            yield node
            yield from runs(node)


def imports(root: Path) -> Iterator[tuple[str, int, str]]:
    """
    Every import of one module of the package by another, those within functions too: module, line, the other.
    (What is imported for types alone never runs.)
    """
    modules = files_of(root)
    for module, file in modules.items():
        package = module if file.name == "__init__.py" else module.rpartition(".")[0]
        for node in runs(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                above = ".".join(package.split(".")[: len(package.split(".")) + 1 - node.level]) if node.level else ""
                base = ".".join(filter(None, (above, node.module)))
                names = [f"{base}.{alias.name}" for alias in node.names]
            else:
                continue
            for name in names:
                if name.split(".")[0] != "sa2va_trl":
                    continue
                # A name that is no module is something in one.
                other = name if name in modules else name.rpartition(".")[0]
                if other != module:
                    yield module, node.lineno, other


def allowed(room: str, other: str) -> bool:
    """Whether files of a room may import from another room."""
    return HEIGHT[other] < HEIGHT[room] and other in ONLY.get(room, HEIGHT)


def cycle(edges: set[tuple[str, str]]) -> list[str]:
    """Some of these edges that lead round, as the nodes on the way; none if there is no such way."""
    ahead = {}
    for one, other in sorted(edges):
        ahead.setdefault(one, []).append(other)
    done, way = set(), []

    def visit(node: str) -> list[str]:
        if node in way:
            return [*way[way.index(node) :], node]
        if node in done:
            return []
        way.append(node)
        found = next(filter(None, map(visit, ahead.get(node, ()))), [])
        way.pop()
        done.add(node)
        return found

    return next(filter(None, map(visit, sorted(ahead))), [])


# The picture, in pixels: of a room, of the way of an arrow between rooms, between them, from floor to floor

BOX, LANE, GAP, HIGH, STEP = 138, 16, 20, 40, 66
STYLE = """
text { font-family: -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; text-anchor: middle; fill: #1c2530 }
.name { font-size: 14.5px; font-weight: 600 }
.note { font-size: 11.5px; fill: #55606e }
.page { fill: #ffffff }
.floor { fill: #f2f4f7 }
.room { stroke-width: 1.2; fill: #dbe7f6; stroke: #4c78a8 }
.ground { fill: #e7e4dc; stroke: #8c8468 }
.pure { fill: #dff0e1; stroke: #4f9a5b }
.way { stroke-width: 1.4; fill: none; stroke: #8a93a0 }
.head { fill: #8a93a0 }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 }
.note { fill: #a3adb9 }
.page { fill: #0d1117 }
.floor { fill: #161c25 }
.room { fill: #1d3350; stroke: #6ea0d8 }
.ground { fill: #38342a; stroke: #b0a682 }
.pure { fill: #1c3a25; stroke: #69b878 }
.way { stroke: #7f8a98 }
.head { fill: #7f8a98 }
}
"""


def needed_arrows(root: Path) -> list[tuple[str, str]]:
    """Of the rooms' imports those that do not follow from others."""
    rooms = {(room_of(one), room_of(other)) for one, _, other in imports(root)}
    below = {room: {other for one, other in rooms if one == room and other != room} for room in HEIGHT}

    def all_below(room: str) -> set[str]:
        return below[room].union(*map(all_below, below[room]))

    return [
        (room, other)
        for room in HEIGHT
        if not room.startswith("_")
        for other in sorted(below[room])
        if not other.startswith("_") and not any(other in all_below(between) for between in below[room])
    ]


def lay_out(floors: list[list], arrows: list[tuple[str, str]]) -> tuple[dict, list[list]]:
    """
    Where rooms stand on their floors, so that arrows are short and cross little: the middle of each, and the way of
    each arrow. What an arrow passes on a floor between is a place there as well, as narrow as a lane.
    """
    floors = [list(floor) for floor in floors]
    height = {room: index for index, floor in enumerate(floors) for room in floor}
    ways, near = [], {}
    for room, other in arrows:
        way = [room, *((room, other, floor) for floor in range(height[room] - 1, height[other], -1)), other]
        for place in way[1:-1]:
            floors[place[2]].append(place)
        for one, two in zip(way[:-1], way[1:], strict=True):
            near.setdefault(one, []).append(two)
            near.setdefault(two, []).append(one)
        ways.append(way)
    at = {place: float(BOX * index) for floor in floors for index, place in enumerate(floor)}
    for turn in range(60):
        for floor in floors if turn % 2 else floors[::-1]:
            wish = {place: fmean(at[other] for other in near.get(place, [place])) for place in floor}
            floor.sort(key=lambda place: (wish[place], str(place)))
            at.update(stand_apart(floor, wish))
    left = min(at[room] for room in height) - BOX / 2 - 2 * GAP
    return {place: x - left for place, x in at.items()}, ways


def stand_apart(floor: list, wish: dict) -> dict:
    """Positions for the places of a floor, in their order and apart, as near as can be to those they wish."""
    packed, end = [], 0
    for place in floor:
        width = (BOX if isinstance(place, str) else LANE) + GAP
        packed.append(end + width / 2)
        end += width
    # How far each is from where it were if all stood close must not fall from left to right (isotonic regression).
    groups = []
    for place, close in zip(floor, packed, strict=True):
        groups.append([wish[place] - close])
        while len(groups) > 1 and fmean(groups[-2]) > fmean(groups[-1]):
            groups[-2:] = [groups[-2] + groups[-1]]
    shifts = [fmean(group) for group in groups for _ in group]
    return {place: close + shift for place, close, shift in zip(floor, packed, shifts, strict=True)}


def draw(root: Path) -> str:
    """The picture, as SVG."""
    files = {}
    for module, file in files_of(root).items():
        files.setdefault(room_of(module), []).append(file)
    # (The face of the package and its old names are no rooms.)
    floors = [[room for room in floor if not room.startswith("_")] for floor in FLOORS]
    floors = [floor for floor in floors if floor]
    at, ways = lay_out(floors, needed_arrows(root))
    level = {index: GAP + STEP * (len(floors) - 1 - index) for index in range(len(floors))}
    top = {room: level[index] for index, floor in enumerate(floors) for room in floor}
    width, height = max(at.values()) + BOX / 2 + 2 * GAP, GAP + STEP * len(floors) + 24

    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height}" role="img">']
    lines += ["<title>The rooms of sa2va_trl and what they import</title>", f"<style>{STYLE}</style>"]
    lines += ['<rect class="page" width="100%" height="100%"/>']
    for y in level.values():
        lines.append(f'<rect class="floor" x="8" y="{y - 6}" width="{width - 16:.0f}" height="{HIGH + 12}" rx="6"/>')
    for way in ways:
        x, y = at[way[0]], top[way[0]] + HIGH
        path = f"M{x:.0f} {y}"
        for place in way[1:]:
            between = not isinstance(place, str)
            next_x, next_y = at[place], level[place[2]] if between else top[place] - 7
            path += f" C{x:.0f} {(y + next_y) / 2:.0f} {next_x:.0f} {(y + next_y) / 2:.0f} {next_x:.0f} {next_y}"
            x, y = next_x, next_y + HIGH * between
            path += f" V{y}" * between
        lines.append(f'<path class="way" d="{path}"/><path class="head" d="M{x:.0f} {y + 7} l-4 -8 h8 z"/>')
    for room, y in top.items():
        x, module = at[room], files[room] == [root / "sa2va_trl" / f"{room}.py"]
        kind = "ground" if room in GROUND else "pure" if room in PURE else "upper"
        lines.append(f'<rect class="room {kind}" x="{x - BOX / 2:.0f}" y="{y}" width="{BOX}" height="{HIGH}" rx="5"/>')
        name, at_y = (f"{room}.py", y + 25) if module else (f"{room}/", y + 18)
        lines.append(f'<text class="name" x="{x:.0f}" y="{at_y}">{name}</text>')
        if not module:
            lines.append(f'<text class="note" x="{x:.0f}" y="{y + 33}">{len(files[room])} files</text>')
    note = "An arrow: the upper room imports the lower one. What follows from other arrows is not drawn."
    lines.append(f'<text class="note" x="{width / 2:.0f}" y="{height - 12}">{note}</text>')
    return "\n".join([*lines, "</svg>", ""])


if __name__ == "__main__":
    PICTURE.write_text(draw(ROOT))
