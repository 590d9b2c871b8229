"""
Frozen features: what `encode` makes of every row, computed once, kept on disk and read in its place.

A store is a folder for each fingerprint (of everything that `encode` depends on but the row). Each process that
computes appends to a pair of files of its own: raw bytes, and one JSON line a row with its key, place, shapes and
checksum. A row counts from the moment its line is complete, so a killed run leaves nothing half-written and is taken
up where it ended.
"""

import hashlib
import json
import os
import shutil
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import datasets
import numpy as np
import torch
from accelerate.utils import extract_model_from_parallel
from datasets import Dataset
from filelock import FileLock, Timeout
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from tqdm.auto import tqdm

from ..losses import tubed_skeleton
from ..models.modeling import SegFeatures, pair_masks
from ..models.processing import SEG_TOKEN
from .collator import TARGETS, SegCollator, _stack, check_fit, conversation, stack_pairs
from .columns import DatasetError, _layout, iter_undecoded, normalize_row, plain_rows, read_masks


# Of the files and of how rows are told apart: raise it when either changes.
FORMAT = 1
# Column of a data set whose rows may be read from a store.
KEY = "features_key"
# Hidden, or `datasets.load_dataset` would take the files for data.
FOLDER = ".sa2va_features"
BEFORE_THE_CUT = ("vlm.model.", "grounding_encoder.sam2_model.image_encoder.")
MODES = ("auto", "on", "off")


class FeatureError(RuntimeError):
    """Features cannot be written or read. The message says what to do; nothing is left corrupt."""


# What features depend on


def before_the_cut(model: nn.Module, parts: tuple[str, ...] = BEFORE_THE_CUT) -> Iterator[tuple[str, nn.Parameter]]:
    """
    The parameters that `encode` uses, adapters' and trained copies' among them.

    Args:
        model (`Sa2VAForConditionalGeneration` or a `PeftModel` around one): not changed.
        parts (`tuple[str, ...]`, *optional*): beginnings of names, in place of those that `encode` uses.

    Yields:
        Names (without PEFT's prefix) and parameters.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    for name, parameter in base.named_parameters():
        if name.startswith(parts):
            yield name, parameter


def random_before_the_cut(model: nn.Module) -> list[str]:
    """Names of the dropout layers that `encode` would go through in training, hence with another result each time."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    return [
        name
        for name, module in base.named_modules()
        if name.startswith(BEFORE_THE_CUT) and isinstance(module, nn.Dropout) and module.p > 0
    ]


def weights_digest(model: nn.Module, dtype: torch.dtype | None = None, parts: tuple[str, ...] = BEFORE_THE_CUT) -> str:
    """
    SHA-256 over every byte of every weight before the cut. (Not over a sample, as in [`~hub.base_fingerprint`], which
    is meant for telling models apart: a short training could hide from it.) LoRA's scales and switches are in it too.

    Under ZeRO-3 all processes have to call it together.

    Args:
        model (`Sa2VAForConditionalGeneration` or a `PeftModel` around one): not changed.
        dtype (`torch.dtype`, *optional*): what DeepSpeed will cast the weights to.
        parts (`tuple[str, ...]`, *optional*): beginnings of names; `("",)` for every weight.

    Returns:
        `str`: hexadecimal.
    """

    def digest(tensors: list[torch.Tensor]) -> bytes:
        found = hashlib.sha256()
        for tensor in tensors:
            found.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
            found.update(_bytes(tensor))
        return found.digest()

    base = model.get_base_model() if isinstance(model, PeftModel) else model
    whole = hashlib.sha256()
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # hashing lets go of the interpreter's lock
        pending = []
        for name, parameter in before_the_cut(model, parts):
            if hasattr(parameter, "ds_id"):
                import deepspeed

                gathered = deepspeed.zero.GatheredParameters([parameter])
            else:
                gathered = nullcontext()
            with gathered, torch.no_grad():
                values = parameter.detach()
                if dtype is not None and values.is_floating_point():
                    values = values.to(dtype)
                # A gathered weight is let go of at the end of the block.
                values = values.clone() if hasattr(parameter, "ds_id") else values
                # What bitsandbytes scales its integers with.
                state = getattr(parameter, "quant_state", None)
                scales = [] if state is None else [part for part in state.as_dict().values()]
                scales.append(getattr(parameter, "SCB", None))
                tensors = [values, *(part.detach() for part in scales if isinstance(part, torch.Tensor))]
                pending.append((name, pool.submit(digest, [tensor.cpu() for tensor in tensors])))
            if len(pending) > 64:
                name, first = pending.pop(0)
                whole.update(name.encode() + first.result())
        for name, rest in pending:
            whole.update(name.encode() + rest.result())
    for name, module in base.named_modules():
        if name.startswith(parts) and isinstance(module, BaseTunerLayer):
            state = (name, module.active_adapters, module.disable_adapters, module.merged_adapters)
            whole.update(repr((*state, getattr(module, "scaling", None))).encode())
    return whole.hexdigest()


def fingerprint(
    model: nn.Module,
    processor,
    dtype: torch.dtype | None = None,
    autocast: str | None = None,
    parts: tuple[str, ...] = BEFORE_THE_CUT,
) -> dict:
    """
    Everything but the row that features depend on: weights before the cut, sizes, the state that is taken, processor,
    numbers' format and the packages that compute.

    Args:
        model (`Sa2VAForConditionalGeneration` or a `PeftModel` around one): not changed.
        processor (`Sa2VAProcessor`): of the model.
        dtype (`torch.dtype`, *optional*): what DeepSpeed will cast the weights to.
        autocast (`str`, *optional*): the type that mixed precision computes in.
        parts (`tuple[str, ...]`, *optional*): see [`weights_digest`].

    Returns:
        `dict` of strings and numbers, which JSON can hold.
    """
    config = (model.get_base_model() if isinstance(model, PeftModel) else model).config
    tokenizer = processor.tokenizer
    text = {"class": type(tokenizer).__name__, "vocabulary": sorted(tokenizer.get_vocab().items())}
    if getattr(tokenizer, "is_fast", False):
        # Padding and truncation are what the last call asked for.
        text["backend"] = {
            name: part
            for name, part in json.loads(tokenizer.backend_tokenizer.to_str()).items()
            if name not in ("padding", "truncation")
        }
    settings = {
        "image_processor": processor.image_processor.to_dict(),
        "tokenizer": text,
        **{
            name: getattr(processor, name)
            for name in ("grounding_image_size", "image_seq_length", "prompt_template", "clip_size")
        },
    }
    # (Added only where they are not what they always were before: older stores stay good.)
    if processor.is_official:
        settings["official"] = processor.official_opening
    state = [] if config.seg_state == "normed" else [config.seg_state]
    parts_of_config = [_sizes(part.to_dict()) for part in (config.vlm_config, config.grounding_config)]
    return {
        "format": FORMAT,
        "weights": weights_digest(model, dtype, parts),
        "config": _json_digest([*parts_of_config, *state]),
        "processor": _json_digest(settings),
        "dtype": str(dtype or next(before_the_cut(model))[1].dtype),
        "autocast": autocast,
        **{name: version(name) for name in ("torch", "transformers", "sam2", "pillow")},
    }


def _sizes(content: dict) -> dict:
    """A config without what says where it came from, and without what Trainer changes when it starts."""
    drop = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache")
    drop += ("bos_token_id", "eos_token_id", "pad_token_id")
    return {
        name: _sizes(value) if isinstance(value, dict) else value
        for name, value in content.items()
        if name not in drop
    }


def _json_digest(content) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def row_keys(dataset: Dataset, question: str, answer: str) -> list[str]:
    """
    What tells rows apart, from what is stored: nothing is decoded. Rows with the same images and the same text have
    one key; their masks and identifiers play no part.

    Args:
        dataset (`datasets.Dataset`): checked rows.
        question, answer (`str`): templates for rows with phrases.

    Returns:
        `list[str]`: one a row.
    """
    keys = []
    for rows in iter_undecoded(dataset):
        for row in rows:
            layout, found = _layout(row), hashlib.sha256()
            for image in layout.images:
                stored = image["bytes"] if image["bytes"] is not None else Path(image["path"]).read_bytes()
                found.update(hashlib.sha256(stored).digest())
            chat = layout.messages
            if chat is None:
                number = len(layout.phrases)
                chat = conversation(layout.phrases, [question] * number, [answer] * number)
            found.update(json.dumps(chat, sort_keys=True).encode())
            keys.append(found.hexdigest()[:32])
    return keys


class NumberedRows(torch.utils.data.Dataset):
    """
    The rows of a data set with their numbers, as the data loader gets them. (As a column of the data set, the numbers
    would have `datasets` write all rows of a selection anew.)

    Args:
        rows (`datasets.Dataset`): not changed.
        keys (`list[str]`, *optional*): from [`row_keys`], one a row, where features stand in for images.

    Returns:
        `dict`: the row, its `row_index` and, with `keys`, its `KEY`.
    """

    def __init__(self, rows: Dataset, keys: list[str] | None = None):
        self.rows, self.keys = rows, keys

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> dict:
        return self.__getitems__([number])[0]

    def __getitems__(self, numbers: list[int]) -> list[dict]:
        rows = self.rows.__getitems__(list(numbers))
        if len(rows) != len(numbers):
            raise DatasetError(
                f"The transform of a dataset has to keep all rows; of {len(numbers)} it made {len(rows)}."
            )
        rows = [{**row, "row_index": number} for number, row in zip(numbers, rows, strict=True)]
        if self.keys is not None:
            for row in rows:
                row[KEY] = self.keys[row["row_index"]]
        return rows


@dataclass
class View:
    """
    One augmented view of a data set: what features of it are computed from.

    Args:
        dataset (`NumberedRows`): of the data set.
        collator (`SegCollator`): of training, with `views`.
        number (`int`): of the view.
    """

    dataset: NumberedRows
    collator: SegCollator
    number: int

    def __post_init__(self):
        self.collator = replace(self.collator, epoch=self.number)

    def __getitem__(self, index: int) -> dict:
        row = self.dataset[index]
        images, _ = self.collator.augment(row, normalize_row(row)["images"], [])
        # (Masks play no part in features.)
        return {**row, **({"image": images[0]} if row.get("image") is not None else {"images": images})}


def view_key(key: str, collator: SegCollator, row_index: int) -> str:
    """
    What tells the views of rows apart, in place of the row's own key.

    Args:
        key (`str`): from [`row_keys`].
        collator (`SegCollator`): of training; its `view` counts.
        row_index (`int`): number of the row, which its view is drawn from.

    Returns:
        `str`; the row's own key where nothing is augmented.
    """
    if collator.augmentation is None:
        return key
    content = [key, repr(collator.augmentation), collator.seed, collator.view, int(row_index)]
    return _json_digest(content)[:32]


def row_sizes(dataset: Dataset) -> list[tuple[int, int]]:
    """Images and `[SEG]`s of every row."""
    sizes = []
    for rows in iter_undecoded(dataset):
        for row in rows:
            layout = _layout(row)
            segs = len(layout.phrases) if layout.messages is None else str(layout.messages).count(SEG_TOKEN)
            sizes.append((len(layout.images), segs))
    return sizes


def feature_bytes(config, images: int, segs: int, itemsize: int) -> int:
    """
    Bytes that the features of one row take.

    Args:
        config (`Sa2VAConfig`): of the model.
        images, segs (`int`): images and `[SEG]`s of the row.
        itemsize (`int`): bytes of a number in the type that is computed in.

    Returns:
        `int`: exact, but for a few bytes of the line that describes them.
    """
    side = config.grounding_config.image_size
    fine, middle, coarse = ((side // stride) ** 2 for stride in (4, 8, 16))
    # The neck adds the coarse level up in float32, whatever it computes in.
    pyramid = config.grounding_config.hidden_dim * (itemsize * (fine + middle) + 4 * coarse)
    return images * pyramid + segs * config.text_config.hidden_size * itemsize


def features_folder(dataset: Dataset) -> Path:
    """Beside the files of the data set, or else in the cache of the `datasets` library."""
    for file in dataset.cache_files:
        folder = Path(file["filename"]).parent
        if os.access(folder, os.W_OK):
            return folder / FOLDER
    return Path(datasets.config.HF_DATASETS_CACHE) / FOLDER


# Files


def _bytes(tensor: torch.Tensor) -> np.ndarray:
    """The bytes of a tensor on the CPU, flat; a view where it is contiguous."""
    return tensor.contiguous().flatten().view(torch.uint8).numpy()


def everywhere(value) -> list:
    """The values of all processes, in their order."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [value]
    values = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def raise_first(failure: Exception | None) -> None:
    """
    Raise on all processes what went wrong on any. All have to call it together.

    Raises:
        `Exception`: the process's own failure.
        `FeatureError`: another process has failed.
    """
    failures = [entry for entry in everywhere(None if failure is None else repr(failure)) if entry]
    if failure is not None:
        raise failure
    if failures:
        raise FeatureError(f"Another process failed: {failures[0]}")


def _rank() -> int:
    ready = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_rank() if ready else 0


@dataclass(frozen=True)
class Record:
    """
    Where a row's features are.

    Args:
        key (`str`): of the row.
        part (`str`): name of the files, without ending.
        offset, size (`int`): of the bytes.
        crc (`int`): CRC-32 of key, shapes and bytes.
        tensors (`tuple`): type and shape of `seg_states` and of the three levels of the pyramid.
    """

    key: str
    part: str
    offset: int
    size: int
    crc: int
    tensors: tuple[tuple[str, tuple[int, ...]], ...]


class FeatureStore:
    """
    Features on disk. Reading is by memory map, so that processes and data workers share the system's page cache.

    Args:
        root (`str` or `Path`): folder of all stores.
        prints (`dict`): from [`fingerprint`].
    """

    def __init__(self, root: str | os.PathLike, prints: dict):
        self.root, self.prints = Path(root), prints
        self.folder = self.root / _json_digest(prints)[:16]
        self.records: dict[str, Record] = {}
        self._sound: set[Record] = set()
        self._maps: dict[str, np.ndarray] = {}

    def change(self, prints: dict) -> None:
        """Go over to another fingerprint, in place: collators hold on to their store."""
        self.__init__(self.root, prints)

    def free(self) -> int:
        """Bytes that can be written where the features go."""
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
        found = everywhere(self._scan() if _rank() == 0 else None)[0]
        new = [record for record in found if record not in self._sound]
        shares = everywhere(None)
        good = {record for record in new[_rank() :: len(shares)] if self._is_sound(record)}
        self._sound = (self._sound & set(found)).union(*everywhere(good))
        self.records = {record.key: record for record in found if record in self._sound}
        return self

    def _scan(self) -> list[Record]:
        return [record for file in sorted(self.folder.glob("*.jsonl")) for record in _records(file) if record]

    def _map(self, part: str) -> np.ndarray:
        if part not in self._maps:
            file = self.folder / f"{part}.bin"
            empty = file.stat().st_size == 0
            self._maps[part] = np.zeros(0, np.uint8) if empty else np.memmap(file, np.uint8, mode="r")
        return self._maps[part]

    def _is_sound(self, record: Record) -> bool:
        try:
            if (self.folder / f"{record.part}.bin").stat().st_size > len(self._maps.get(record.part, ())):
                self._maps.pop(record.part, None)  # it has grown
            stored = self._map(record.part)[record.offset : record.offset + record.size]
        except OSError:
            return False
        return len(stored) == record.size and zlib.crc32(stored, _crc_of(record.key, record.tensors)) == record.crc

    def read(self, keys: list[str]) -> tuple[SegFeatures, torch.LongTensor]:
        """
        Features of a batch, as `encode` would make them of these rows.

        Args:
            keys (`list[str]`): of the rows, in their order.

        Returns:
            `SegFeatures` and the images of each row, shape `(batch,)`.

        Raises:
            `FeatureError`: a row is not there.
        """
        try:
            records = [self.records[key] for key in keys]
        except KeyError as error:
            raise FeatureError(f"{self.folder} has no features of the row with key {error}.") from None
        starts, levels = [record.offset for record in records], []
        for level in range(4):
            kinds = [record.tensors[level] for record in records]
            # Rows without an image have nothing in a level but its shape.
            kind, shape = next((entry for entry in kinds if entry[1][0]), kinds[0])
            joined = torch.empty((sum(entry[1][0] for entry in kinds), *shape[1:]), dtype=getattr(torch, kind))
            target, end = _bytes(joined), 0
            for row, (record, (_, own)) in enumerate(zip(records, kinds, strict=True)):
                size = joined.element_size() * int(np.prod(own))
                target[end : end + size] = self._map(record.part)[starts[row] : starts[row] + size]
                starts[row] += size
                end += size
            levels.append(joined)
        segs = torch.tensor([record.tensors[0][1][0] for record in records])
        images = torch.tensor([record.tensors[1][1][0] for record in records])
        seg_index, image_index, row_index = pair_masks(torch.arange(len(keys)).repeat_interleave(segs), images)
        return SegFeatures(levels[0], seg_index, image_index, row_index, tuple(levels[1:])), images

    def missing(self, keys) -> list[str]:
        """Those of `keys` that are not there, each once."""
        return [key for key in dict.fromkeys(keys) if key not in self.records]

    @contextmanager
    def _locked(self):
        # The system lets go of the lock when its process ends, however it ends.
        self.folder.mkdir(parents=True, exist_ok=True)
        lock, told = FileLock(self.folder / "lock"), False
        while True:
            taken = True
            if _rank() == 0:
                try:
                    lock.acquire(timeout=5)
                except Timeout:
                    taken = False
                    if not told:
                        print(f"Another process is computing the features in {self.folder}: waiting for it.")
                        told = True
            if everywhere(taken)[0]:
                break
        try:
            yield
        finally:
            if _rank() == 0:
                lock.release()

    def build(
        self,
        rows: dict[str, tuple[Dataset, int]],
        encode: Callable[[list[dict]], tuple[SegFeatures, list[int], list[int]]],
        batch_size: int,
        need: Callable[[list[str]], int] | None = None,
        progress: bool = True,
    ) -> int:
        """
        Compute what is missing. All processes have to call it together; each does its share. If another job is at it,
        wait for it and take what it has made.

        Args:
            rows (`dict[str, tuple[Dataset, int]]`): for each key a data set and the number of a row of it.
            encode (`Callable`): takes rows; returns their features, and for each row its `[SEG]`s and its images.
            batch_size (`int`): rows in one call of `encode`.
            need (`Callable`, *optional*): bytes that the features of some keys will take.
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
            failure = FeatureError(f"Features cannot be written to {self.folder}: {error.strerror}. Set cache_dir.")
        raise_first(failure)
        with self._locked():
            self.open()
            missing = self.missing(rows)
            if _rank() == 0:
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
        rank, world = _rank(), len(everywhere(None))
        own, failure, written = missing[rank::world], None, set()
        if rank == 0 and not (self.folder / "fingerprint.json").exists():
            temporary = self.folder / ".fingerprint.json.tmp"
            temporary.write_text(json.dumps(self.prints, indent=2) + "\n")
            temporary.replace(self.folder / "fingerprint.json")
        with _Part(self.folder) as part:
            # As many calls on every process, the last ones for form's sake: ZeRO-3 gathers weights together.
            steps = range(0, len(missing[0::world]), batch_size)
            for start in tqdm(steps, desc="features", disable=not progress or rank != 0):
                keys = own[start : start + batch_size]
                try:
                    used = keys or missing[:1]
                    features, segs, images = encode([rows[key][0][rows[key][1]] for key in used])
                    for key, tensors in zip(keys, _by_row(features, segs, images), strict=False):
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
            f"No features can be written to {self.folder}{reason}: {wanted}{free:,} bytes are free. Free some, set "
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
                temporary = file.with_suffix(".tmp")
                temporary.write_text("".join(f"{line}\n" for line in keep))
                temporary.replace(file)
            else:
                file.unlink()
                file.with_suffix(".bin").unlink(missing_ok=True)


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
                stored = _bytes(tensor)
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


def _by_row(features: SegFeatures, segs: list[int], images: list[int]) -> Iterator[list[torch.Tensor]]:
    """`seg_states` and pyramid of each row, on the CPU."""
    first_seg = first_image = 0
    for seg_count, image_count in zip(segs, images, strict=True):
        states = features.seg_states[first_seg : first_seg + seg_count]
        levels = [level[first_image : first_image + image_count] for level in features.pyramid]
        yield [tensor.detach().cpu() for tensor in (states, *levels)]
        first_seg, first_image = first_seg + seg_count, first_image + image_count


# Use


def to_model(model: nn.Module, batch: dict) -> dict:
    """What a model takes of a collator's batch, on its device and in its type."""
    return {
        name: value.to(model.device)
        if name == "features"
        else value.to(model.device, model.dtype if value.is_floating_point() else None)
        for name, value in batch.items()
        if name not in TARGETS
    }


def max_positions(model: nn.Module) -> int:
    """The most tokens of a row that a model, or a `PeftModel` around one, has positions for."""
    return model.config.text_config.max_position_embeddings


class RowEncoder:
    """
    Rows of a data set with their features, from the pixels or from a store.

    Args:
        model (`Sa2VAForConditionalGeneration`, or whatever wraps it): in the mode that it is to encode in.
        processor (`Sa2VAProcessor`): of the model.
        dataset (`datasets.Dataset`): rows as in [`~data.columns.check_dataset`].
        features (*optional*): a store and the key of each row, from [`~evaluation.stored_features`].
    """

    def __init__(
        self, model: nn.Module, processor, dataset: Dataset, features: tuple[FeatureStore, list[str]] | None = None
    ):
        self.model, self.bare, self.dataset = model, extract_model_from_parallel(model), plain_rows(dataset)
        self.collator, self.keys = SegCollator(processor, max_length=max_positions(self.bare), with_pairs=False), None
        if features is not None:
            store, self.keys = features
            self.collator = FeatureCollator(self.collator, store)
        elif isinstance(dataset, Dataset):
            check_fit(self.dataset, self.collator, name="dataset")

    @torch.no_grad()
    def __call__(self, numbers: Iterable[int]) -> tuple[list[dict], list[torch.Tensor], SegFeatures]:
        """
        Args:
            numbers (`Iterable[int]`): of the rows of one batch.

        Returns:
            The decoded rows, for each its masks of shape `(masks, H, W)`, and their features.
        """
        numbers = [int(number) for number in numbers]
        rows = [self.dataset[number] for number in numbers]
        if self.keys is None:
            batch = self.collator(rows)
            encoded = self.model(**to_model(self.bare, batch), encode_only=True).features
        else:
            batch = self.collator([{**row, KEY: self.keys[number]} for row, number in zip(rows, numbers, strict=True)])
            encoded = batch["features"].to(self.bare.device)
        return rows, batch["original_masks"], encoded


def encoder(model: nn.Module, collator: SegCollator, prepare: Callable[[dict], dict]):
    """
    What [`FeatureStore.build`] takes as `encode`.

    Args:
        model (`nn.Module`): a Sa2VA model, or whatever wraps it (PEFT, DDP, DeepSpeed).
        collator (`SegCollator`): without augmentation.
        prepare (`Callable`): brings a batch to the model's device and type.

    Returns:
        `Callable`: from rows to features, and each row's `[SEG]`s and images.
    """

    # Rows of preferences and others may meet here, and never in training.
    collator = replace(collator, with_pairs=False)

    @torch.no_grad()
    def encode(rows: list[dict]) -> tuple[SegFeatures, list[int], list[int]]:
        batch = collator(rows)
        segs = (batch["input_ids"] == collator.processor.seg_token_id).sum(1).tolist()
        images = batch["image_counts"].tolist()
        inputs = prepare({name: value for name, value in batch.items() if name not in TARGETS})
        mode = {module: module.training for module in model.modules()}
        model.eval()
        try:
            return model(**inputs, encode_only=True).features, segs, images
        finally:
            for module, training in mode.items():
                module.training = training

    return encode


@dataclass
class FeatureCollator:
    """
    Rows that have a key in a store to one batch without pixels and text; other rows as `collator` does.

    Args:
        collator (`SegCollator`): says how masks are drawn.
        store (`FeatureStore`): with the rows' features.

    Returns:
        `dict` with `image_counts`, `features` ([`~models.modeling.SegFeatures`]), `masks`, `original_masks` and, if
        asked for, `skeletons`, see [`~data.collator.SegCollator`]. The order is that of the rows.
    """

    collator: SegCollator
    store: FeatureStore

    def __call__(self, rows: list[dict]) -> dict:
        if any(row.get(KEY) is None for row in rows):
            return self.collator(rows)
        keys = [view_key(row[KEY], self.collator, row.get("row_index", 0)) for row in rows]
        features, image_counts = self.store.read(keys)
        masks, pairs = [], []
        for row in rows:
            own = read_masks(row)
            pair = self.collator.pair(row, own)
            _, changed = self.collator.augment(row, [], [*own, *pair])
            masks.append(changed[: len(own)])
            pairs.append(changed[len(own) :])
        batch = {
            # First, because Trainer takes the batch's size from the first tensor.
            "image_counts": image_counts,
            "features": features,
            "original_masks": [_stack(group, size=None) for group in masks],
            "masks": _stack([mask for group in masks for mask in group], size=self.collator.mask_size),
            **stack_pairs(pairs, self.collator.mask_size),
        }
        if self.collator.with_skeletons:
            batch["skeletons"] = tubed_skeleton(batch["masks"])
        return batch
