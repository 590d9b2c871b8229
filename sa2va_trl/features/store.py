"""
Stores of what is made of every row once, kept on disk and read in its place: frozen features, and packed masks.

A store is a folder for each fingerprint (of everything that it depends on but the row). Each process that
computes appends to a pair of files of its own: raw bytes, and one JSON line a row with its key, place, shapes and
checksum. A row counts from the moment its line is complete, so a killed run leaves nothing half-written and is taken
up where it ended.
"""

import json
import logging
import math
import os
import shutil
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from datasets import Dataset
from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from ..errors import FeatureError
from ..files import whole_file, write_json
from ..models.outputs import SegFeatures, pair_masks
from ..processes import everywhere, process_rank, raise_first
from .fingerprint import flat_bytes, json_digest


logger = logging.getLogger(__name__)

# Hidden, or `datasets.load_dataset` would take the files for data.
FOLDER = ".sa2va_features"


def features_folder(dataset: Dataset) -> Path:
    """Beside the files of the data set, or else in the cache of the `datasets` library."""
    for file in dataset.cache_files:
        folder = Path(file["filename"]).parent
        if os.access(folder, os.W_OK):
            return folder / FOLDER
    return Path(datasets.config.HF_DATASETS_CACHE) / FOLDER


@dataclass(frozen=True)
class Record:
    """
    Where what is stored of a row is.

    Args:
        key (`str`): of the row.
        part (`str`): name of the files, without ending.
        offset, size (`int`): of the bytes.
        crc (`int`): CRC-32 of key, shapes and bytes.
        tensors (`tuple`): type and shape of each tensor, in the order of the bytes.
    """

    key: str
    part: str
    offset: int
    size: int
    crc: int
    tensors: tuple[tuple[str, tuple[int, ...]], ...]


class RowStore:
    """
    Tensors of rows on disk. Reading is by memory map, so that processes and data workers share the system's page
    cache.

    Args:
        root (`str` or `Path`): folder of all stores.
        prints (`dict`): of all that they depend on but the row, which JSON can hold.
    """

    # In messages.
    what = "features"

    def __init__(self, root: str | os.PathLike, prints: dict):
        self.root, self.prints = Path(root), prints
        self.folder = self.root / json_digest(prints)[:16]
        self.records: dict[str, Record] = {}
        self._sound: set[Record] = set()
        self._maps: dict[str, np.ndarray] = {}

    def change(self, prints: dict) -> None:
        """Go over to another fingerprint, in place: collators hold on to their store."""
        self.__init__(self.root, prints)

    def free(self) -> int:
        """Bytes that can be written where the features go; 0 where nothing can."""
        folder = self.folder.absolute()
        while not folder.exists():
            folder = folder.parent
        return shutil.disk_usage(folder).free if os.access(folder, os.W_OK) else 0

    def __getstate__(self):
        return {**self.__dict__, "_maps": {}}  # a data worker maps the files itself

    def open(self) -> "FeatureStore":
        """
        Look at what is there, and compare every checksum: each process does its share, and all have to call it
        together. Rows whose bytes are damaged or missing do not count.
        """
        found = everywhere(self._scan() if process_rank() == 0 else None)[0]
        new = [record for record in found if record not in self._sound]
        shares = everywhere(None)
        good = {record for record in new[process_rank() :: len(shares)] if self._is_sound(record)}
        self._sound = (self._sound & set(found)).union(*everywhere(good))
        self.records = {record.key: record for record in found if record in self._sound}
        return self

    def _scan(self) -> list[Record]:
        return [record for file in sorted(self.folder.glob("*.jsonl")) for record in _records(file) if record]

    def _map(self, part: str) -> np.ndarray:
        if part not in self._maps:
            file = self.folder / f"{part}.bin"
            empty = file.stat().st_size == 0
            # (As a plain array: a slice of a `memmap` costs more than copying a small row.)
            self._maps[part] = np.zeros(0, np.uint8) if empty else np.asarray(np.memmap(file, np.uint8, mode="r"))
        return self._maps[part]

    def _is_sound(self, record: Record) -> bool:
        try:
            if (self.folder / f"{record.part}.bin").stat().st_size > len(self._maps.get(record.part, ())):
                self._maps.pop(record.part, None)  # it has grown
            stored = self.stored(record)
        except OSError:
            return False
        return len(stored) == record.size and zlib.crc32(stored, _crc_of(record.key, record.tensors)) == record.crc

    def find(self, keys: list[str]) -> list[Record]:
        """
        Args:
            keys (`list[str]`): of rows.

        Returns:
            `list[Record]`: where they are, in their order.

        Raises:
            `FeatureError`: a row is not there.
        """
        try:
            return [self.records[key] for key in keys]
        except KeyError as error:
            raise FeatureError(f"{self.folder} has no {self.what} of the row with key {error}.") from None

    def stored(self, record: Record) -> np.ndarray:
        """The bytes of a row, uint8, which nothing may be written to."""
        return self._map(record.part)[record.offset : record.offset + record.size]

    def by_row(self, made: Any) -> Iterator[list[torch.Tensor]]:
        """What `encode` has made of some rows, as tensors on the CPU for each."""
        raise NotImplementedError

    def missing(self, keys: Iterable[str]) -> list[str]:
        """
        Args:
            keys (`Iterable[str]`): of rows.

        Returns:
            `list[str]`: those that are not there, each once, in their order.
        """
        return [key for key in dict.fromkeys(keys) if key not in self.records]

    @contextmanager
    def _locked(self):
        # The system lets go of the lock when its process ends, however it ends.
        self.folder.mkdir(parents=True, exist_ok=True)
        lock, told = FileLock(self.folder / "lock"), False
        while True:
            taken = True
            if process_rank() == 0:
                try:
                    lock.acquire(timeout=5)
                except Timeout:
                    taken = False
                    if not told:
                        logger.warning(
                            "Another process is computing the %s in %s: waiting for it.", self.what, self.folder
                        )
                        told = True
            if everywhere(taken)[0]:
                break
        try:
            yield
        finally:
            if process_rank() == 0:
                lock.release()

    def build(
        self,
        rows: dict[str, tuple[Dataset, int]],
        encode: Callable[[list[dict]], Any],
        batch_size: int,
        need: Callable[[list[str]], int] | None = None,
        progress: bool = True,
    ) -> int:
        """
        Compute what is missing. All processes have to call it together; each does its share. If another job is at it,
        wait for it and take what it has made.

        Args:
            rows (`dict[str, tuple[Dataset, int]]`): for each key a data set and the number of a row of it.
            encode (`Callable`):
                Takes rows and returns what is to be stored of them; of features, these, and for each row its `[SEG]`s
                and its images.
            batch_size (`int`): rows in one call of `encode`.
            need (`Callable`, *optional*): bytes that what is stored of some keys will take.
            progress (`bool`, *optional*, defaults to `True`): show a bar.

        Returns:
            `int`: rows that were computed, by all processes.

        Raises:
            `FeatureError`: no room left, or the folder cannot be written to, or is not shared by all processes. What
            was computed so far stays and counts.
        """
        self.open()
        if not self.missing(rows):
            return 0
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            failure = None
        except OSError as error:
            failure = FeatureError(
                f"{self.what.capitalize()} cannot be written to {self.folder}: {error.strerror}. Set cache_dir."
            )
        raise_first(failure)
        with self._locked():
            self.open()
            missing = self.missing(rows)
            if process_rank() == 0:
                self._drop_unsound()
                failure = self._no_room(need(missing)) if need is not None else None
            raise_first(failure)
            if missing:
                self._write(rows, missing, encode, batch_size, need, progress)
        self.open()
        absent = self.missing(rows)
        raise_first(
            FeatureError(f"{self.folder} lacks {len(absent)} rows that were just written. Is it shared by all nodes?")
            if absent
            else None
        )
        return len(missing)

    def _write(self, rows, missing, encode, batch_size, need, progress) -> None:
        rank, world = process_rank(), len(everywhere(None))
        own, failure, written = missing[rank::world], None, set()
        if rank == 0 and not (self.folder / "fingerprint.json").exists():
            write_json(self.folder / "fingerprint.json", self.prints)
        with _Part(self.folder) as part:
            # As many calls on every process, the last ones for form's sake: ZeRO-3 gathers weights together.
            steps = range(0, len(missing[0::world]), batch_size)
            for start in tqdm(steps, desc=self.what, disable=not progress or rank != 0):
                keys = own[start : start + batch_size]
                try:
                    used = keys or missing[:1]
                    made = encode([rows[key][0][rows[key][1]] for key in used])
                    for key, tensors in zip(keys, self.by_row(made), strict=False):
                        part.append(key, tensors)
                        written.add(key)
                except OSError as error:
                    left = need([key for key in missing if key not in written]) if need is not None else None
                    failure = self._no_room(left, error)
                except Exception as error:  # the other processes have to hear of it
                    failure = error
                raise_first(failure)

    def _no_room(self, need: int | None, error: OSError | None = None) -> FeatureError | None:
        free = self.free()
        if error is None and (need is None or need <= free):
            return None
        wanted = "" if need is None else f"{need:,} bytes are needed and "
        reason = "" if error is None else f" ({error.strerror or error})"
        return FeatureError(
            f"No {self.what} can be written to {self.folder}{reason}: {wanted}{free:,} bytes are free. Free some, set "
            "cache_dir to another disk, or train with cache_features=off. What is written so far stays usable."
        )

    def _drop_unsound(self) -> None:
        """Forget rows that cannot be used. Called by one process, under the lock."""
        for file in self.folder.glob("*.jsonl"):
            lines = file.read_text(errors="replace").splitlines()
            keep = [line for line, record in zip(lines, _records(file), strict=True) if record in self._sound]
            if len(keep) == len(lines) and keep:
                continue
            if keep:
                with whole_file(file) as temporary:
                    temporary.write_text("".join(f"{line}\n" for line in keep))
            else:
                file.unlink()
                file.with_suffix(".bin").unlink(missing_ok=True)


class FeatureStore(RowStore):
    """
    Frozen features: what `encode` makes of every row.

    Args:
        root (`str` or `Path`): folder of all stores.
        prints (`dict`): from [`fingerprint`].
    """

    def read(self, keys: list[str]) -> tuple[SegFeatures, torch.LongTensor]:
        """
        Features of a batch, as `encode` would make them of these rows.

        Args:
            keys (`list[str]`): of the rows, in their order.

        Returns:
            `SegFeatures` on the CPU, in the types that they were computed in (the coarse level of the pyramid in
            float32, whatever the model computes in), and the images of each row, shape `(batch,)`, int64.

        Raises:
            `FeatureError`: a row is not there.
        """
        records = self.find(keys)
        parts = [self.stored(record) for record in records]
        starts, levels = [0] * len(records), []
        for level in range(4):
            kinds = [record.tensors[level] for record in records]
            # Rows without an image have nothing in a level but its shape.
            kind, shape = next((entry for entry in kinds if entry[1][0]), kinds[0])
            joined = torch.empty((sum(entry[1][0] for entry in kinds), *shape[1:]), dtype=getattr(torch, kind))
            target, end = flat_bytes(joined), 0
            for row, (_, own) in enumerate(kinds):
                size = joined.element_size() * math.prod(own)
                target[end : end + size] = parts[row][starts[row] : starts[row] + size]
                starts[row] += size
                end += size
            levels.append(joined)
        segs = torch.tensor([record.tensors[0][1][0] for record in records])
        images = torch.tensor([record.tensors[1][1][0] for record in records])
        seg_index, image_index, row_index = pair_masks(torch.arange(len(keys)).repeat_interleave(segs), images)
        return SegFeatures(levels[0], seg_index, image_index, row_index, tuple(levels[1:])), images

    def by_row(self, made: tuple[SegFeatures, list[int], list[int]]) -> Iterator[list[torch.Tensor]]:
        """`seg_states` and pyramid of each row."""
        features, segs, images = made
        first_seg = first_image = 0
        for seg_count, image_count in zip(segs, images, strict=True):
            states = features.seg_states[first_seg : first_seg + seg_count]
            levels = [level[first_image : first_image + image_count] for level in features.pyramid]
            yield [tensor.detach().cpu() for tensor in (states, *levels)]
            first_seg, first_image = first_seg + seg_count, first_image + image_count


def _records(file: Path) -> list[Record | None]:
    """Of each line; `None` for one that was cut off when its writer was killed, or damaged."""
    records = []
    for line in file.read_text(errors="replace").splitlines():
        try:
            entry = json.loads(line)
            tensors = tuple((kind, tuple(shape)) for kind, shape in entry["tensors"])
            place = (int(entry[name]) for name in ("offset", "size", "crc"))
            records.append(Record(str(entry["key"]), file.stem, *place, tensors))
        except (ValueError, KeyError, TypeError):
            records.append(None)
    return records


class _Part:
    """The files that one process appends to: they are made with the first row."""

    def __init__(self, folder: Path):
        self.path, self.end, self.files = folder / f"part-{uuid.uuid4().hex[:12]}", 0, None

    def __enter__(self) -> "_Part":
        return self

    def __exit__(self, *exception) -> None:
        if self.files is not None:
            for file in self.files:
                file.close()

    def append(self, key: str, tensors: list[torch.Tensor]) -> None:
        if self.files is None:
            self.files = [open(self.path.with_suffix(end), "ab", buffering=0) for end in (".bin", ".jsonl")]
        data, lines = self.files
        kinds = [[str(tensor.dtype).removeprefix("torch."), list(tensor.shape)] for tensor in tensors]
        start, line_start, crc = self.end, lines.tell(), _crc_of(key, kinds)
        try:
            for tensor in tensors:
                stored = flat_bytes(tensor)
                crc = zlib.crc32(stored, crc)
                self.end += _write_all(data, stored)
            entry = {"key": key, "offset": start, "size": self.end - start, "crc": crc, "tensors": kinds}
            _write_all(lines, (json.dumps(entry) + "\n").encode())
        except OSError:
            # Room for whoever shares the disk, and no half a row before the next one.
            data.truncate(start)
            lines.truncate(line_start)
            self.end = start
            raise


def _crc_of(key: str, tensors) -> int:
    # The checksum is of the bytes and of what they mean: a damaged line must not pass either.
    return zlib.crc32(json.dumps([key, tensors]).encode())


def _write_all(file, content) -> int:
    left = memoryview(content)
    while len(left):
        left = left[file.write(left) :]
    return len(content)
