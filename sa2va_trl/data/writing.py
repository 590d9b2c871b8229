"""A data set on disk: rows under pseudonyms, in parts that a run which was killed keeps, at their place when whole."""

import csv
import hashlib
import io
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from datasets import Dataset, Features

from ..errors import BadRow, DatasetError
from ..files import file_name, name_bytes, printable, whole_file
from ..media.pictures import decode_image, quiet_pillow
from .masks import encode_mask
from .near_duplicates import pixel_digest
from .preparing import BURNED_IN, Item, Look, Plan, drawn, without_entries
from .privacy import NameSearch, Pseudonyms, clean_picture, name_parts
from .prompts import normalize_phrase
from .readers.entries import Entry, Source, entry_image, features_of, worded
from .readers.folders import SPLITS, sample_ids
from .workers import Workers


#: What a data set may be written as: Parquet files with pictures in them, or folders of pictures with metadata.
OUTPUT_FORMATS = ("parquet", "imagefolder")
# Of a file, which a process has in memory: rows, and pixels of their images.
_ROWS, _PIXELS = 200, 64_000_000
PIECES = "pieces"  # of the metadata of an imagefolder
_PEOPLE = ("patient_id", "video_id")


class Job(NamedTuple):
    """
    A row that is to be written.

    Args:
        item ([`~data.preparing.Item`]): what it is made of.
        names (`dict`): its `sample_id` and facts.
        number (`int`): its own, for the template.
        digests (`tuple[str, str]`): that its picture and its masks had when they were looked at.
    """

    item: Item
    names: dict[str, Any]
    number: int
    digests: tuple[str, str]


def named(items: Sequence[Item], key: bytes | None) -> list[dict[str, Any]]:
    """
    Names and facts as they go into rows.

    Args:
        items (`list[Item]`): of all rows.
        key (`bytes` or `None`): of the pseudonyms; `None` keeps names as they are.

    Returns:
        `list[dict]`: of each item `sample_id` and facts.
    """
    if key is None:
        return [
            {name: printable(value) if isinstance(value, str) else value for name, value in own.items()}
            for own in (
                {"sample_id": name, **item.entry.facts} for name, item in zip(_plain_ids(items), items, strict=True)
            )
        ]
    keyed, found, taken = Pseudonyms(key), [], set()
    for item in items:
        facts, give = dict(item.entry.facts), _kept if item.entry.is_pseudonymous else keyed
        for kind in ("patient", "video"):
            if facts.get(f"{kind}_id"):
                facts[f"{kind}_id"] = give(kind, str(facts[f"{kind}_id"]))
        if item.entry.frame is None:
            sample_id = give("image", item.entry.name)
        else:
            sample_id = f"{facts.get('video_id') or give('video', item.entry.name)}_f{item.entry.frame:05d}"
        if sample_id in taken:  # another split has a file of this name, or one picture is listed twice
            sample_id = give("image", f"{item.entry.name}\0{item.entry.frame}\0{item.split}\0{item.number}")
        taken.add(sample_id)
        found.append({"sample_id": sample_id, **facts})
    return found


def _kept(kind: str, name: str) -> str:
    """A name that is a pseudonym already. It stays, so that it is one and the same in all data sets of one key."""
    return PurePosixPath(name).stem if kind == "image" else name


def _plain_ids(items: Sequence[Item]) -> list[str]:
    """As `load_dataset_dict` has them: each source its own, with the split in front where two share one."""
    of: dict[int, list[int]] = {}
    for row, item in enumerate(items):
        of.setdefault(item.source, []).append(row)
    ids = [""] * len(items)
    for rows in of.values():
        for row, name in zip(rows, sample_ids([items[row].entry.name for row in rows]), strict=True):
            ids[row] = name
    if len(set(ids)) < len(ids):
        ids = [f"{item.split}_{name}" for item, name in zip(items, ids, strict=True)]
    return ids


def _shared_names(items: Iterable[Item], source: Path) -> set[str]:
    """Names that many rows share: of the source's folder, the folders in it, and people; of nobody's no more."""
    found = {source.resolve().name}
    for item in items:
        if item.entry.is_pseudonymous:
            continue
        facts, file = item.entry.facts, item.entry.image
        found.update(PurePosixPath(item.entry.name).parts[:-1])
        found.update(file.relative_to(source).parts[:-1] if file.is_relative_to(source) else ())
        found.update(str(facts[name]) for name in _PEOPLE if facts.get(name))
        found.update(item.entry.people)
    return found


def _own_names(entry: Entry) -> tuple[str, ...]:
    return () if entry.is_pseudonymous else (PurePosixPath(entry.name).name, entry.image.name)


def source_names(items: Sequence[Item], source: Path, plan: Plan) -> set[str]:
    """
    What must not come out of a source, see [`~data.privacy.name_parts`].

    Args:
        items (`list[Item]`): all that it holds.
        source (`Path`): its folder.
        plan ([`~data.preparing.Plan`]): which names are nobody's.

    Returns:
        `set[str]`.
    """
    own = {name for item in items for name in _own_names(item.entry)}
    return name_parts(own | _shared_names(items, source), plan.harmless_names)


def given_words(plan: Plan) -> list[str]:
    """What a user has said that rows are to say, whoever's name that may be: phrases, classes, templates."""
    reading = plan.reading
    given = [reading.phrase_of(None), *(reading.classes or ()), *reading.templates]
    return [*given, *reading.classes.values()] if isinstance(reading.classes, Mapping) else given


def refuse_names(
    items: Sequence[Item], looks: Sequence[Look], splits: Iterable[str], source: Path, plan: Plan
) -> None:
    """
    Check that no name at the source stands in what rows say in words, before any is written. What the user has put
    there may: phrases that were given, classes that were asked for.

    Args:
        items, looks (`list`): from [`~data.preparing.look_at`].
        splits (`Iterable[str]`): names of the splits.
        source (`Path`): the folder.
        plan ([`~data.preparing.Plan`]): how.

    Raises:
        `DatasetError`: one does; with each such phrase and the name in it.
    """
    texts = {phrase for look in looks for phrase in look.phrases} - set(map(normalize_phrase, given_words(plan)))
    texts |= set(splits) - set(plan.shares) - set(SPLITS.values())
    texts |= {
        value
        for item in items
        for name, value in item.entry.facts.items()
        if isinstance(value, str) and name not in _PEOPLE and value not in BURNED_IN
    }
    search = NameSearch(source_names(items, source, plan), shortest=4)
    bad = [
        BadRow(None, None, repr(text), f"holds {', '.join(map(repr, sorted(found)))}, a name of the source")
        for text in sorted(texts)
        if (found := search.in_text(text))
    ]
    if bad:
        raise DatasetError(
            "names of the source would be written; give other phrases (--phrase, --classes), or say that they are "
            "nobody's (--harmless_names):",
            bad,
        )


def _rows(jobs: Sequence[Job], shared: frozenset[str], sources: Sequence[Source], plan: Plan) -> Iterator[dict]:
    """
    Rows with their pictures and masks as bytes.

    Raises:
        `DatasetError`: with the name of the image.
    """
    search = None
    if plan.key is not None:
        own = {name for job in jobs for name in _own_names(job.item.entry)}
        search = NameSearch(name_parts(own | shared, plan.harmless_names))
    with quiet_pillow():
        for job in jobs:
            entry = job.item.entry
            try:
                stored, size = entry_image(entry, plan.reading)
                # (Frames that a reader has decoded itself are pixels alone; files are not, wherever they lie.)
                is_file = stored["bytes"] is None or entry.embedded is not None
                picture = clean_picture(stored) if is_file else stored["bytes"]
                found, digest = drawn(entry, sources[job.item.source], plan.reading, size)
                written = pixel_digest(decode_image({"bytes": picture, "path": None}))
                if (written, digest) != job.digests:
                    raise DatasetError("has changed since it was looked at, a moment ago: start again")
                if search is not None and (names := search(picture)):
                    raise DatasetError(
                        f"holds {', '.join(map(repr, sorted(names)))}, a name of the source, in its bytes"
                    )
            except DatasetError as error:
                raise DatasetError(f"{entry.name}: {error}") from error
            name = file_name(job.names["sample_id"])
            yield {
                "image": {"bytes": picture, "path": f"{name}.{_suffix(picture)}"},
                "masks": [encode_mask(mask) for mask in found["masks"]],
                "phrases": worded(found["phrases"], job.number, plan.reading),
                **job.names,
            }


def _suffix(picture: bytes) -> str:
    return "jpg" if picture[:2] == b"\xff\xd8" else "png"


def _write_parquet(rows: Iterable[dict], place: Path, features: Features) -> None:
    columns: dict[str, list] = {name: [] for name in features}
    for row in rows:
        for name, values in columns.items():
            values.append(row.get(name))
    with whole_file(place) as temporary:
        Dataset.from_dict(columns, features=features).to_parquet(str(temporary))


def _write_folder(rows: Iterable[dict], place: Path, features: Features) -> None:
    """Pictures into `SPLIT/images` and `SPLIT/masks`, and what is said of them into a piece of the metadata."""
    split, lines = place.parents[1] / place.stem.partition("-")[0], []
    for row in rows:
        image, masks = row.pop("image"), row.pop("masks")
        name = file_name(row["sample_id"])
        picture = f"images/{name}.{_suffix(image['bytes'])}"
        own = [f"masks/{name}_{number}.png" for number in range(len(masks))]
        for relative, data in zip((picture, *own), (image, *masks), strict=True):
            with whole_file(split / relative) as temporary:
                temporary.write_bytes(data["bytes"])
        facts = {column: row.get(column) for column in features if column not in ("image", "masks")}
        lines.append(json.dumps({"file_name": picture, "masks_file_names": own, **facts}, ensure_ascii=False))
    with whole_file(place) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _write(
    jobs: Sequence[Job],
    place: Path,
    shared: frozenset[str],
    sources: Sequence[Source],
    plan: Plan,
    features: Features,
) -> int:
    """One file of rows."""
    write = _write_parquet if plan.output_format == "parquet" else _write_folder
    write(_rows(jobs, shared, sources, plan), place, features)
    return len(jobs)


def fingerprint(items: Sequence[Item], looks: Sequence[Look], splits: Sequence[str], plan: Plan) -> str:
    """What decides the bytes that are written: the plan, and what was seen of each picture."""
    digest = hashlib.sha256()
    told = {**asdict(plan), "key": plan.key and hashlib.sha256(plan.key).hexdigest(), "files": (_ROWS, _PIXELS)}
    digest.update(json.dumps(told, default=str).encode())
    for item, look, split in zip(items, looks, splits, strict=True):
        own = item.entry.name, item.entry.frame, split, sorted(item.entry.facts.items()), look
        digest.update(repr(own).encode(errors="surrogatepass"))
    return digest.hexdigest()[:16]


def _parts(rows: Sequence[int], looks: Sequence[Look]) -> list[list[int]]:
    """Rows of each file."""
    parts, pixels = [[]], 0
    for row in rows:
        width, height = looks[row].size
        if parts[-1] and (len(parts[-1]) >= _ROWS or pixels + width * height > _PIXELS):
            parts.append([])
            pixels = 0
        parts[-1].append(row)
        pixels += width * height
    return parts


def write_rows(
    items: Sequence[Item],
    looks: Sequence[Look],
    splits: Sequence[str],
    sources: Sequence[Source],
    source: Path,
    plan: Plan,
    output: Path,
    workers: Workers,
    progress: Callable[[int], None] = lambda rows: None,
) -> Path:
    """
    Write all rows beside their place, in files. Those that an earlier run of the same has finished are kept; what one
    with other options, or of other data, has begun is removed.

    Args:
        items, looks (`list`): from [`~data.preparing.look_at`].
        splits (`list[str]`): of each item.
        sources (`list[Source]`): that the items are of.
        source (`Path`): the folder that these are of.
        plan ([`~data.preparing.Plan`]): how.
        output (`Path`): the place.
        workers ([`~data.workers.Workers`]): who does it.
        progress (`Callable`, *optional*): called with numbers of rows that are done.

    Returns:
        `Path`: the folder, which [`put_in_place`] brings to its place.

    Raises:
        `DatasetError`: a picture has changed, or holds a name of the source.
    """
    beside = f".{output.name}."
    # (Processes of a run that was killed may still write what they have in hand: a folder is of one job alone.)
    part = output.parent / f"{beside}{fingerprint(items, looks, splits, plan)}.part"
    if output.parent.is_dir():
        for other in output.parent.iterdir():
            if other != part and re.fullmatch(rf"{re.escape(beside)}[0-9a-f]+\.part", other.name):
                shutil.rmtree(other, ignore_errors=True)
    for half in part.rglob(".*.tmp"):
        half.unlink(missing_ok=True)
    features, names = features_of(item.entry for item in items), named(items, plan.key)
    shared = frozenset(_shared_names(items, source))
    of: dict[str, list[int]] = {}
    for row, split in enumerate(splits):
        of.setdefault(split, []).append(row)
    jobs = []
    for split, rows in sorted(of.items()):
        parts = _parts(rows, looks)
        for number, own in enumerate(parts):
            name = f"{split}-{number:05d}-of-{len(parts):05d}"
            place = part / "data" / f"{name}.parquet"
            if plan.output_format == "imagefolder":
                place = part / PIECES / f"{name}.jsonl"
            if place.is_file():
                progress(len(own))
            else:
                jobs.append((own, place))
    write = partial(_write, shared=shared, sources=without_entries(sources), plan=plan, features=features)
    work = (
        ([Job(items[row], names[row], row, (looks[row].digest, looks[row].masks_digest)) for row in own], place)
        for own, place in jobs
    )
    for rows in workers.map(write, work):
        progress(rows)
    return part


def names_table(items: Sequence[Item], key: bytes | None) -> bytes:
    """
    A table by which its owner finds a row's source again: pseudonyms, and the names that they stand for.

    Args:
        items (`list[Item]`), key (`bytes` or `None`): as in [`named`].

    Returns:
        `bytes`: of a CSV file in UTF-8, but for names of files that are none, which are there byte for byte: read it
        with `open(file, errors="surrogateescape")`.
    """
    stream = io.StringIO()
    table = csv.writer(stream)
    table.writerow(["sample_id", *_PEOPLE, "image", "frame", *(f"{name}_at_source" for name in _PEOPLE)])
    for item, own in zip(items, named(items, key), strict=True):
        facts = item.entry.facts
        source = item.entry.image, item.entry.frame, *(facts.get(name) for name in _PEOPLE)
        table.writerow([own["sample_id"], *(own.get(name) for name in _PEOPLE), *source])
    return name_bytes(stream.getvalue())


def write_names(file: Path, table: bytes) -> None:
    """
    Args:
        file (`Path`): readable by its owner alone. It does not belong into the data set.
        table (`bytes`): from [`names_table`].
    """
    with whole_file(file) as temporary:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as stream:
            stream.write(table)
