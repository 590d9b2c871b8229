"""Files to weights and back: strictly, without pickles, and one tensor at a time."""

import copy
import difflib
import json
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from huggingface_hub import is_offline_mode, save_torch_state_dict, snapshot_download
from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id
from peft.utils import CONFIG_NAME as ADAPTER_CONFIG
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from ..errors import CheckpointError
from ..files import written_beside
from ..tokens import INTERNVL_IMAGE, QWEN_IMAGE
from .configuration import Sa2VAConfig
from .grounding import whole_weights
from .published import Part, is_published, native_config, published_config, published_parts
from .tokenization import load_tokenizer


INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json")
_SAM3 = re.compile(r"grounding_encoder\.(sam3\w*\.|\w+\.backbone\.)")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
# Files of a checkpoint besides its weights.
SMALL_FILES = ["*.json", "*.jinja", "*.txt", "*.model"]
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "revision", "token")
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}


@contextmanager
def folders_first(name_or_path: str | Path) -> Iterator[None]:
    """
    Context manager around whatever asks the Hub: where the name is no folder's and the Hub does not have it either,
    the error says so in this order, since a mistyped folder looks like a Hub id.

    Args:
        name_or_path (`str` or `Path`): as the user gave it.

    Raises:
        `CheckpointError`: in place of the Hub's errors, and at once for what cannot be a Hub id.
    """
    path = Path(name_or_path)
    if path.is_dir():
        yield
        return
    if path.exists():
        raise CheckpointError(f"{name_or_path} is a file: give the folder, or a Hub id (OWNER/NAME).")
    near = [entry.name for entry in path.parent.iterdir() if entry.is_dir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, sorted(near), n=1)
    meant = f"; did you mean {path.parent / near[0]}?" if near else ""
    message = f"There is no folder {str(name_or_path)!r} (looked for {path.absolute()}{meant})"
    try:
        validate_repo_id(str(name_or_path))
    except HFValidationError as error:
        raise CheckpointError(
            f"{message}, and no Hub id (OWNER/NAME) looks like that: it is neither a folder nor a Hub id."
        ) from error
    try:
        yield
    except OSError as error:
        if is_offline_mode():
            reason = "and the Hub's cache does not have it either. (HF_HUB_OFFLINE is set.)"
        elif isinstance(error, RepositoryNotFoundError) and not isinstance(error, GatedRepoError):
            reason = "and the Hub has no repository of that name that you may read."
        else:
            lines = [line for line in str(error).splitlines() if line.strip()]
            reason = f"and it could not be had from the Hub: {lines[0] if lines else type(error).__name__}"
        raise CheckpointError(f"{message}, {reason}") from error


def adapter_advice(adapter: str | Path, base: str | Path | None) -> str:
    """
    What to call where a model was asked for and an adapter was named.

    Args:
        adapter (`str` or `Path`): as the user named it.
        base (`str` or `Path`, *optional*): that it was trained on, where that is known.

    Returns:
        `str`: a sentence.
    """
    of, argument = (f"of {base}", repr(str(base))) if base else ("of a local model, whose path is not kept", "BASE")
    return (
        f"{adapter} holds an adapter {of}: sa2va_trl.adapters.load_adapter("
        f"Sa2VAForConditionalGeneration.from_pretrained({argument}), {str(adapter)!r}) loads it on its base model."
    )


def checkpoint_folder(
    name_or_path: str | Path, weights: bool = True, subfolder: str = "", **hub_options
) -> tuple[Path, str | None]:
    """
    The folder that holds a checkpoint, downloaded if it is on the Hub.

    Args:
        name_or_path (`str` or `Path`): a folder or a Hub id.
        weights (`bool`, *optional*, defaults to `True`): whether the weights are needed, or only what stands beside
            them.
        subfolder (`str`, *optional*): below it.
        hub_options: `revision`, `token`, `cache_dir`, `force_download` and `local_files_only` of `huggingface_hub`.

    Returns:
        The folder, and the commit where it came from the Hub.

    Raises:
        `CheckpointError`: neither a folder nor on the Hub, an adapter, or there is no `config.json`.
    """
    folder, commit = Path(name_or_path), None
    if not folder.is_dir():
        # Of this folder alone (`*` matches slashes too): repositories also hold checkpoints of the training.
        prefix = f"{subfolder.strip('/')}/" if subfolder else ""
        options = {"ignore_patterns": f"{prefix}*/*", **hub_options}
        small = [prefix + pattern for pattern in SMALL_FILES]
        with folders_first(name_or_path):
            folder = Path(snapshot_download(str(name_or_path), allow_patterns=small, **options))
            commit = folder.name
            if weights and (folder / subfolder / "config.json").is_file():
                check_supported(folder / subfolder)  # before gigabytes are on their way
                options |= {"allow_patterns": [*small, f"{prefix}*.safetensors"], "revision": commit}
                folder = Path(snapshot_download(str(name_or_path), **options))
    folder = folder / subfolder
    if not (folder / "config.json").is_file():
        if (folder / ADAPTER_CONFIG).is_file():
            base = read_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
            raise CheckpointError(adapter_advice(name_or_path, base))
        raise CheckpointError(f"{folder} holds no config.json, so it is not a checkpoint.")
    return folder, commit


def read_json(path: Path) -> dict:
    """
    Raises:
        `CheckpointError`: the file does not hold a JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} must hold a JSON object.")
    return content


def read_config(folder: Path) -> Sa2VAConfig:
    """
    The native config of a native or published checkpoint.

    Args:
        folder (`Path`): with `config.json` and, in the published layout, the tokenizer's files.

    Returns:
        `Sa2VAConfig`.

    Raises:
        `CheckpointError`: another kind of model, or a published one of an unknown family.
    """
    content = read_json(folder / "config.json")
    if not is_published(content):
        kind = content.get("model_type")
        if kind != Sa2VAConfig.model_type:
            raise CheckpointError(
                f"{folder}/config.json is of a model of type {kind!r}: neither a native {Sa2VAConfig.model_type!r} "
                "one nor one in the layout that Sa2VA publishes."
            )
        return Sa2VAConfig.from_dict(content)
    check_supported(folder)  # whatever is wrong with it is said first
    try:
        tokenizer = load_tokenizer(folder)
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    image_token = (INTERNVL_IMAGE if "llm_config" in content else QWEN_IMAGE)[1]
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in ("[SEG]", image_token)}
    missing = [token for token, index in ids.items() if index is None or index == tokenizer.unk_token_id]
    if missing:
        raise CheckpointError(f"{folder}: the tokenizer does not hold {', '.join(missing)}.")
    names = _weight_names(folder)
    has_head = any(name in names for name in ("language_model.lm_head.weight", "language_model.output.weight"))
    tied = (content.get("llm_config") or {}).get("tie_word_embeddings", False)
    return native_config(
        content,
        seg_token_id=ids["[SEG]"],
        image_token_id=ids[image_token],
        separate_tracking_decoder=any(".sam_mask_decoder_modified." in name for name in names),
        tied_head=bool(tied) and not has_head,
    )


def check_supported(folder: Path) -> None:
    """
    Args:
        folder (`Path`): with a `config.json`. Its weights need not be there, but what their names tell is looked at.

    Raises:
        `CheckpointError`: a published model of a family that is not known here, or with SAM 3.
    """
    content = read_json(folder / "config.json")
    if not is_published(content):
        return
    try:
        native_config(content, seg_token_id=0, image_token_id=0)
    except ValueError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    refuse_sam3(folder)


def weight_files(folder: Path) -> list[Path]:
    """
    The safetensors files of a checkpoint.

    Raises:
        `CheckpointError`: there are none, one that the index names is missing, or the weights are pickles.
    """
    if (folder / INDEX).is_file():
        shards = read_json(folder / INDEX).get("weight_map")
        if not isinstance(shards, dict) or any(Path(str(name)).name != name for name in shards.values()):
            raise CheckpointError(f"{folder / INDEX}: weight_map must say in which file beside it each tensor is.")
        names = sorted(set(shards.values()))
        if pickles := [name for name in names if name.endswith(PICKLES)]:
            raise CheckpointError(f"{folder / INDEX} names pickles, which are never loaded: {', '.join(pickles)}.")
        if absent := [name for name in names if not (folder / name).is_file()]:
            raise CheckpointError(f"{folder}: {INDEX} names files that are not there: {', '.join(absent)}.")
        if (folder / SINGLE).is_file() and SINGLE not in names:
            raise CheckpointError(f"{folder} holds both {SINGLE} and {INDEX}, which does not name it: remove one.")
        if names:
            return [folder / name for name in names]
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    pickles = sorted(file.name for file in folder.iterdir() if file.suffix in PICKLES)
    raise CheckpointError(
        f"{folder} holds no {SINGLE} and no {INDEX}."
        + (f" Its weights are pickles, which are never loaded: {', '.join(pickles)}." if pickles else "")
    )


def _weight_names(folder: Path) -> list[str]:
    if (folder / INDEX).is_file():
        shards = read_json(folder / INDEX).get("weight_map")
        return list(shards) if isinstance(shards, dict) else []
    names = []
    for file in weight_files(folder):
        with _open(file) as handle:
            names += handle.keys()
    return names


def refuse_sam3(folder: Path) -> None:
    """
    Refuse a published checkpoint with SAM 3 in place of SAM 2, whose config is like any Qwen3-VL one's. Its tensors'
    names tell, where there are weights to look at: SAM 3's `backbone` stands where SAM 2 has its `image_encoder`.

    Args:
        folder (`Path`): a published checkpoint, with or without its weights.

    Raises:
        `CheckpointError`: it is one.
    """
    try:
        names = _weight_names(folder)
    except CheckpointError:
        return  # none, or none that can be read: whoever needs them says so
    if name := next((name for name in names if _SAM3.match(name)), None):
        raise CheckpointError(
            f"{folder} draws its masks with SAM 3 (1008 pixels; it holds {name}), like Sa2VA-Qwen3-VL-4B-SAM3: only "
            "SAM 2 is supported, so take a checkpoint with SAM 2, such as Sa2VA-Qwen3-VL-4B."
        )


def stored_dtype(folder: Path) -> torch.dtype:
    """The dtype with the most bits among the stored tensors: no value is rounded in it."""
    dtypes = set()
    for file in weight_files(folder):
        with _open(file) as handle:
            dtypes |= {_DTYPES.get(handle.get_slice(name).get_dtype(), torch.float32) for name in handle.keys()}
    # (Half-precision formats of both kinds fit into float32 only.)
    return dtypes.pop() if len(dtypes) == 1 else max(dtypes | {torch.float32}, key=lambda dtype: dtype.itemsize)


def _open(file: Path):
    try:
        # Not memory-mapped: pages of the file would count as this process's memory.
        return safe_open(file, framework="pt", device="cpu", backend="pread")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is damaged or no safetensors file: {error}") from error


class _Stored:
    """A native tensor that is read when transformers' loader asks for it, already in the model's dtype."""

    def __init__(self, handle, part: Part, dtype: torch.dtype | None):
        self.handle, self.part, self.dtype = handle, part, dtype  # (no dtype: the stored one)

    def __getitem__(self, index) -> torch.Tensor:
        return self.part.take(self.handle.get_tensor(self.part.name)).to(dtype=self.dtype)

    def is_floating_point(self) -> bool:
        """Asked of what belongs to quantised layers: scales are numbers to the loader, packed weights are not."""
        return self.handle.get_slice(self.part.name).get_dtype() in _DTYPES


class Weights:
    """
    The weights of a checkpoint folder under native names: checked as a whole, read one by one.

    Args:
        folder (`Path`): a native or published checkpoint.
        config (`Sa2VAConfig`): of it.
        model (`nn.Module`): on the meta device; its `state_dict` is what the checkpoint must hold.
        quantised (`dict`, *optional*): shapes and types of what it holds of quantised layers, see
            [`~models.quantization.stored_tensors`].

    Raises:
        `CheckpointError`: naming every missing, unexpected, misshapen and doubled tensor and every one that holds
            no floating point numbers, or the file that cannot be read.
    """

    def __init__(self, folder: Path, config: Sa2VAConfig, model: nn.Module, quantised: dict | None = None):
        self.expected, self.quantised = model.state_dict(), quantised or {}
        tied = set(model.all_tied_weights_keys) if config.tie_word_embeddings else set()
        native = [name for name in self.expected if name not in tied]
        if is_published(read_json(folder / "config.json")):
            self.parts = published_parts(native, config)
        else:
            self.parts = {name: Part(name) for name in native}
        self.parts |= {name: Part(name) for name in self.quantised}
        self._open_files = ExitStack()
        self.handles, self.headers, self.twice = {}, {}, []
        for file in weight_files(folder):
            handle = self._open_files.enter_context(_open(file))
            for name in handle.keys():
                self.twice += [name] if name in self.handles else []
                header = handle.get_slice(name)
                self.handles[name], self.headers[name] = handle, (tuple(header.get_shape()), header.get_dtype())
        self._check(folder)

    def _check(self, folder: Path) -> None:
        wanted = {
            part.name: self.quantised[name][0] if name in self.quantised else part.shape(self.expected[name].shape)
            for name, part in self.parts.items()
        }
        faults = [f"missing: {name} {shape}" for name, shape in wanted.items() if name not in self.headers]
        faults += [f"unexpected: {name} {shape}" for name, (shape, _) in self.headers.items() if name not in wanted]
        faults += [
            f"misshapen: {name} has {self.headers[name][0]}, the model {shape}"
            for name, shape in wanted.items()
            if name in self.headers and shape is not None and self.headers[name][0] != shape
        ]
        faults += [f"in two files: {name}" for name in self.twice]
        # (Numbers of 8 bits mean nothing without the scales that belong to them.)
        faults += [
            f"of type {dtype}: {name}; weights are {', '.join(kinds)}"
            for name, (_, dtype) in self.headers.items()
            if dtype not in (kinds := [self.quantised[name][1]] if name in self.quantised else _DTYPES)
        ]
        if faults:
            raise CheckpointError(
                f"{folder} does not hold the weights that its config.json describes, and only them:\n  "
                + "\n  ".join(sorted(faults))
            )

    def state_dict(self, dtype: torch.dtype, keep: tuple[str, ...] = ()) -> dict:
        """
        What transformers' loader takes for a state dict: tensors that are read when their turn comes.

        Args:
            dtype (`torch.dtype`): that tensors are cast to while they are read.
            keep (`tuple[str, ...]`, *optional*): parts of names whose tensors are read as float32.

        Returns:
            `dict` by native name; quantised ones as they are stored. Under ZeRO-3, whose loader needs tensors, they
            are read at once on the first process and stay without values on the others.

        Raises:
            `CheckpointError`: quantised weights under ZeRO-3.
        """
        tensors = {
            name: _Stored(self.handles[part.name], part, torch.float32 if any(k in name for k in keep) else dtype)
            for name, part in self.parts.items()
        }
        tensors |= {name: _Stored(self.handles[name], self.parts[name], None) for name in self.quantised}
        if not is_deepspeed_zero3_enabled():
            return tensors
        if self.quantised:
            raise CheckpointError("ZeRO-3 shards weights, which quantised ones do not allow: take the plain model.")
        if torch.distributed.get_rank() == 0:
            return {name: tensor[...] for name, tensor in tensors.items()}
        return {name: self.expected[name].to(tensor.dtype) for name, tensor in tensors.items()}

    def close(self) -> None:
        """Close the files that are open."""
        self._open_files.close()


def save_published(model: nn.Module, folder: str | Path, max_shard_size: str | int = "5GB") -> None:
    """
    Save a model's weights and config in the layout that Sa2VA publishes, for tools that are made for it.

    Args:
        model (`Sa2VAForConditionalGeneration`): whole, not sharded and not quantised.
        folder (`str` or `Path`): where to; it appears only when everything is written.
        max_shard_size (`str` or `int`, *optional*, defaults to `"5GB"`): of one file.

    Raises:
        `CheckpointError`: something of the model has no place in the published layout.
    """
    state = model.state_dict()
    with whole_weights(), torch.device("meta"):
        whole = type(model)(copy.deepcopy(model.config)).state_dict()
    if foreign := sorted(name for name in state if name not in whole or state[name].shape != whole[name].shape):
        raise CheckpointError(
            "Only a whole, unquantised model without an adapter can be saved in the published layout, which has no "
            f"place for {', '.join(foreign[:3])}" + (f" and {len(foreign) - 3} more." if foreign[3:] else ".")
        )
    parts = published_parts(list(state), model.config)
    tensors = {}
    for name, part in parts.items():
        value = state[name]
        if part.is_whole:
            # A tied head is stored on its own: published heads are never tied.
            tensors[part.name] = value.clone() if part.name.endswith(("lm_head.weight", "output.weight")) else value
            continue
        if part.name not in tensors:
            tensors[part.name] = value.new_empty(part.shape(value.shape))
        part.put(tensors[part.name], value)
    with written_beside(folder) as temporary:
        save_torch_state_dict(tensors, temporary, max_shard_size=max_shard_size, safe_serialization=True)
        config = published_config(model.config, dtype=model.dtype)
        (temporary / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        earlier = weight_times(folder)
    remove_weights(folder, earlier)


def weight_times(folder: str | Path) -> dict[Path, int]:
    """The weight files of a folder, if it exists, and when each was written (in nanoseconds)."""
    files = Path(folder).iterdir() if Path(folder).is_dir() else ()
    return {file: file.stat().st_mtime_ns for file in files if _WEIGHTS.fullmatch(file.name)}


def remove_weights(folder: str | Path, earlier: dict[Path, int]) -> None:
    """
    Remove what a save into the same folder has left of an earlier one: a model in one file and the index of another
    must not lie side by side.

    Args:
        folder (`str` or `Path`): just saved to.
        earlier (`dict[Path, int]`): its weights before that, from [`weight_times`].
    """
    for file, time in weight_times(folder).items():
        if earlier.get(file) == time:
            file.unlink()
