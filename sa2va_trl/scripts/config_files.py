"""The YAML files that come with the package, and the names that they go by."""

from difflib import get_close_matches
from pathlib import Path


PACKAGE = Path(__file__).parents[1]
CONFIGS = PACKAGE / "configs"


def config_names() -> list[str]:
    """What `--config` takes without a file of one's own: `"tiny/sft"`, ..."""
    return [file.relative_to(CONFIGS).with_suffix("").as_posix() for file in sorted(CONFIGS.glob("*/*.yaml"))]


def config_file(name: str | Path) -> Path:
    """
    The YAML that is meant.

    Args:
        name (`str` or `Path`):
            A file, or else the name of one that comes with the package, with or without `.yaml`. (`recipes/configs/`
            in front of it is where such a file stands in a clone.)

    Returns:
        `Path`, of a file that is there.

    Raises:
        `FileNotFoundError`: neither; the message has the nearest name, or all.
    """
    path = Path(name)
    if path.exists() and not path.is_dir():
        return path
    known = path.as_posix().removeprefix("recipes/configs/").removesuffix(".yaml")
    if known not in config_names():
        nearest = get_close_matches(known, config_names(), n=1, cutoff=0.85)
        hint = f"did you mean {nearest[0]}?" if nearest else f"these are {', '.join(config_names())}."
        raise FileNotFoundError(f"config={str(name)!r} is no file, and none that comes with the package: {hint}")
    return CONFIGS / f"{known}.yaml"


def step_config_file(name: str | Path) -> Path:
    """
    As [`config_file`], for a step of another task, whose YAML names files from the folder in which `configs/` stands
    (or, in a clone, from `recipes/`).

    Raises:
        `FileNotFoundError`: there is no such file.
    """
    for root in (PACKAGE, PACKAGE.parent / "recipes"):
        if (root / name).is_file():
            return root / name
    return config_file(name)


def shortest_name(file: Path) -> str:
    """What to give `--config` for a file: its short name, if that names it, or its path."""
    resolved, configs = file.resolve(), CONFIGS.resolve()
    if resolved.is_relative_to(configs):
        name = resolved.relative_to(configs).with_suffix("").as_posix()
        if name in config_names() and config_file(name).resolve() == resolved:
            return name
    return str(file)
