"""A data set that is whole: brought to its place, known again by the command that made it, searched for names."""

import hashlib
import hmac
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from ..errors import BadRow, DatasetError
from ..files import whole_file, write_json
from .preparing import Item, Plan
from .privacy import leaked, name_parts, names_below
from .readers.entries import FACTS
from .readers.folders import file_states, walk
from .readers.prepared import REPORT, has_pseudonyms, read_object
from .selections import SELECTION, read_selection
from .writing import PIECES, given_words, source_names


#: Where rows are and what belongs to them: nothing older of these may stay on the Hub.
WRITTEN = ["data/*", "*/images/*", "*/masks/*", "*/metadata.jsonl", "timelines/*"]
#: By what a run knows a data set that an earlier one has made. It is not pushed.
MADE = ".made.json"
# Words of our own in names of files and the report: a folder at the source may be called so, too.
_OWN = f"""data parquet readme dataset report dataset_report json metadata jsonl timelines rows patients videos area
without_object mean_area split_by seed names frames sampler of_each_clip clips suspected unknown uniform contrast
cardiac diverse near_duplicates file_name masks_file_names huggingface features {" ".join(FACTS)}"""


def state_of(source: Path, options: Mapping[str, Any], key: bytes | None) -> str:
    """
    A digest of what a data set is made of: the options, and the source's files by their names, sizes and times.

    Args:
        source (`Path`): the folder.
        options (`Mapping`): those that rows depend on.
        key (`bytes` or `None`): of the pseudonyms, without which nobody can find by trying what the digest is of.

    Returns:
        `str`.
    """
    digest = hmac.new(key or b"", json.dumps(options, sort_keys=True).encode(), hashlib.sha256)
    for line in file_states(source):
        digest.update(line)
    return digest.hexdigest()


def _files(folder: Path) -> str:
    """A digest of rows, pictures and report, by names and sizes; a user may put more beside them."""
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        place = file.relative_to(folder).as_posix()
        if file.is_file() and any(fnmatch(place, own) for own in (*WRITTEN, REPORT)):
            digest.update(f"{place} {file.stat().st_size}\n".encode(errors="surrogatepass"))
    return digest.hexdigest()


def put_in_place(part: Path, output: Path, report: Mapping[str, Any], card: str, state: str | None = None) -> None:
    """
    Report and card beside the rows, and all of it to its place.

    Args:
        part (`Path`): from [`~data.writing.write_rows`].
        output (`Path`): the place.
        report (`Mapping`): for `dataset_report.json`.
        card (`str`): for `README.md`.
        state (`str`, *optional*): from [`state_of`], by which [`made_before`] knows it.
    """
    pieces = part / PIECES
    if pieces.is_dir():
        of: dict[str, list[Path]] = {}
        for piece in sorted(pieces.iterdir()):
            of.setdefault(piece.name.partition("-")[0], []).append(piece)
        for split, own in of.items():
            with whole_file(part / split / "metadata.jsonl") as temporary, temporary.open("wb") as stream:
                for piece in own:
                    stream.write(piece.read_bytes())
        shutil.rmtree(pieces)
    write_json(part / REPORT, report)
    with whole_file(part / "README.md") as file:
        file.write_text(card)
    if state is not None:
        write_json(part / MADE, {"of": state, "files": _files(part)})
    if output.is_dir():  # empty, see `check_output`
        output.rmdir()
    part.rename(output)


def check_output(output: Path, source: Path) -> None:
    """
    Raises:
        `DatasetError`: something is there that this task has not made, or it lies inside of the source.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())) and not (output / MADE).is_file():
        raise DatasetError(f"{output} is there already: name another folder, or remove it")
    if source.is_dir() and output.resolve().is_relative_to(source.resolve()):
        raise DatasetError(f"{output} lies inside of the source {source}: name a folder beside it")


def made_before(output: Path, state: str) -> dict[str, Any] | None:
    """
    Args:
        output (`Path`): the place of a data set, see [`check_output`].
        state (`str`): from [`state_of`].

    Returns:
        `dict`: its report, where the same has been made before; `None` where nothing is there.

    Raises:
        `DatasetError`: something else is there, or it has been changed.
    """
    if not (output / MADE).is_file():
        return None
    made = read_object(output / MADE)
    if made.get("of") != state:
        raise DatasetError(
            f"{output} is there already, made with other options, of other data or by another key: name another "
            "folder, or remove it"
        )
    report = read_object(output / REPORT)
    if made.get("files") != _files(output) or not report:
        raise DatasetError(f"{output} has been changed since it was made: remove it to make it again")
    return report


def names_nobody(name_or_path: str | Path) -> bool:
    """
    Whether rows of a data set name nobody, as far as one knows: of a folder, because `prepare_data` has made it.

    Args:
        name_or_path (`str` or `Path`): as [`~data.load_dataset_dict`] takes it.

    Returns:
        `bool`: of what is no folder `True`: it is generated, or on the Hub already.
    """
    folder = Path(name_or_path)
    if not folder.is_dir():
        return True
    if (folder / SELECTION).is_file():  # rows of another data set
        return names_nobody(read_selection(folder)[0])
    return has_pseudonyms(folder)


def _named_files(source: Path) -> set[str]:
    """Names of a folder's files and of folders in it, but for what this task has made with pseudonyms."""
    files = walk(source)[0]
    made = [file.parent for file in files if file.name == REPORT and names_nobody(file.parent)]
    own = [file for file in files if not any(file.is_relative_to(place) for place in made)]
    return {name for file in own for name in file.relative_to(source).parts}


def refuse_to_push(output: Path, report: Mapping[str, Any], items: Sequence[Item], source: Path, plan: Plan) -> None:
    """
    Search everything that a folder holds for the names of its source: rows once more, and what was put beside them.

    Args:
        output (`Path`): the folder.
        report (`Mapping`): of it, whose phrases [`~data.writing.refuse_names`] has seen.
        items (`list[Item]`): all that the source holds.
        source (`Path`): its folder.
        plan ([`~data.preparing.Plan`]): what the user has said of names and phrases.

    Raises:
        `DatasetError`: with each file that holds one.
    """
    names = source_names(items, source, plan) | name_parts(_named_files(source), plan.harmless_names)
    phrases = [phrase for own in report["splits"].values() for phrase in own["phrases"]]
    names -= leaked(" | ".join([*given_words(plan), *plan.shares, *phrases]), names)
    written = re.compile(
        rf"({'|'.join(map(re.escape, report['splits']))})-\d{{5}}-of-\d{{5}}(\.parquet)?", re.IGNORECASE
    )
    own = re.findall(r"\w+", _OWN + dataset_card(["train"], True))
    own += [part for word in own for part in word.split("_")]
    names -= name_parts([REPORT, "README.md", "metadata.jsonl", *own])
    names = {name for name in names if not written.fullmatch(name)}
    bad = [
        BadRow(None, None, str(output / place), f"holds {', '.join(map(repr, sorted(found)))}")
        for place, found in names_below(output, names).items()
    ]
    if bad:
        raise DatasetError(
            "not pushed, names of the source are in what would be; take them out, or say that they are nobody's "
            "(--harmless_names):",
            bad,
        )


def dataset_card(splits: Sequence[str], has_pseudonyms: bool, output_format: str = "parquet") -> str:
    """What `datasets.load_dataset` and a reader want to know of the folder."""
    lines = ["---", "configs:", "- config_name: default", "  data_files:"]
    for split in splits:
        place = f"data/{split}-*" if output_format == "parquet" else f"{split}/**"
        lines += [f"  - split: {split}", f"    path: {place}"]
    names = (
        "Patients, videos and images have keyed pseudonyms; the key is not part of this data set."
        if has_pseudonyms
        else "Patients, videos and images have the names that they have at their source."
    )
    columns = "Columns: `image`, `masks` (0 and 255, one for each of `phrases`), `phrases`, `sample_id`, and what else"
    text = f"{columns} `dataset_report.json` names.\n{names}\n"
    return "\n".join([*lines, "---", "", "# Images with masks and what they show", "", text])
