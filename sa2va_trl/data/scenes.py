"""
Generated angiograms to be asked about: rows of questions and answers, of one structure, of several, of what is not
there, and rows of one structure each to evaluate with. See [`~data.structures`] for the masks.

Nothing here is clinical data, and no score on it says anything about patients: it is for tests, demos and debugging.
"""

import inspect
from collections.abc import Iterator
from typing import Any

import datasets
import numpy as np

from . import synthetic
from .angiography import SCENES, SyntheticVideo, check_hospital, check_integer, generate_video
from .prompts import ANSWERS, QUESTIONS, conversation, normalize_phrase
from .structures import LEFT, OPTIONAL, RIGHT, STRUCTURES, VESSEL
from .synthetic import FEATURES, check_runs, dataset_of, numbered_splits, png_cell, run_cells
from .wording import (
    HELD_OUT_PHRASES,
    ONE,
    PHRASES,
    PRESENCE,
    SEVERAL,
    SIDE_QUESTIONS,
    ask_caption,
    ask_one,
    ask_several,
    ask_whether,
    no_such,
    singular,
)


#: What rows of conversations are, and how often they come. In a frame of which some kinds cannot be asked (where
#: nothing is missing, say) the others share what would be theirs.
#: - "plain": "Please segment the X.", "Sure, [SEG].", every second time with the usual phrase;
#: - "one": one structure, in other forms of question and other words;
#: - "caption": one structure, which the answer names right behind its [SEG], so that the language model must know at
#:   the [SEG] what it stands for: where a small model learns words from nothing, its masks follow them only then;
#: - "several": two or three, at once or one after the other;
#: - "absent": what is not there, which the answer says without a [SEG]; every second time in the plain form;
#: - "mixed": one that is there and one that is not;
#: - "question": about the picture, answered in words.
SHARES = {"plain": 0.32, "one": 0.22, "caption": 0.0, "several": 0.15, "absent": 0.15, "mixed": 0.06, "question": 0.1}
#: A structure of fewer pixels than this share of the picture's (and than `LEAST_PIXELS`) in a frame, but of some, is
#: neither asked for nor said to be missing.
LEAST_SHARE, LEAST_PIXELS = 4e-4, 4
NAMED_FEATURES = datasets.Features(
    {
        "image": datasets.Image(),
        "masks": datasets.List(datasets.Image(mode="L")),
        "messages": datasets.List({"role": datasets.Value("string"), "content": datasets.Value("string")}),
        "kind": datasets.Value("string"),
        "structures": datasets.List(datasets.Value("string")),
        "absent": datasets.List(datasets.Value("string")),
        **{name: FEATURES[name] for name in ("sample_id", "video_id", "frame_index", "patient_id", "hard")},
    }
)
STRUCTURE_FEATURES = datasets.Features({**FEATURES, "structure": datasets.Value("string")})
#: Which words [`structure_dataset`] asks with.
WORDINGS = ("usual", "varied", "held_out")
# Of the seeds of a run's rows, where those of its pictures count from 0.
_ROWS, _PHRASES = 1000, 1001
# How often a structure is asked for, beside others that are there: what is in fewer pictures comes more often then.
_WEIGHTS = {VESSEL: 2.0, LEFT: 1.5, RIGHT: 1.5}
_ONE_AFTER_THE_OTHER, _ABOUT_SIDES = 0.25, 0.3


def least_pixels(size: int) -> int:
    """The fewest pixels of a structure that a frame of `size` x `size` pixels is asked for."""
    return max(LEAST_PIXELS, round(LEAST_SHARE * size**2))


def _present(masks: dict[str, np.ndarray], index: int) -> tuple[list[str], list[str]]:
    """What a frame shows enough of, and what it shows nothing of although it might."""
    count = {name: int(mask[index].sum()) for name, mask in masks.items()}
    there = [name for name, pixels in count.items() if pixels >= least_pixels(masks[VESSEL].shape[-1])]
    return there, [name for name in OPTIONAL if count[name] == 0]


class _Interview:
    """Questions about one frame, and their answers, drawn at random."""

    def __init__(self, rng: np.random.Generator, there: list[str], missing: list[str], runs_to: str | None):
        self.rng, self.there, self.missing, self.runs_to = rng, there, missing, runs_to

    def kinds(self) -> list[str]:
        """Those that the frame can be asked in."""
        possible = ["plain", "one", "caption"] if self.there else []
        possible += ["several"] if len(self.there) > 1 else []
        possible += ["absent"] if self.missing else []
        possible += ["mixed"] if self.there and self.missing else []
        return possible + (["question"] if self._doubtful() or self.runs_to else [])

    def __call__(self, kind: str) -> tuple[list[dict], list[str], list[str]]:
        """The conversation, the structures of its masks, and those that it says are not there."""
        return getattr(self, f"_{kind}")()

    def _doubtful(self) -> list[str]:
        return [name for name in OPTIONAL if name in (*self.there, *self.missing)]

    def _pick(self, values, count: int = 1) -> list:
        """Some of different values, by their weights."""
        weights = np.array([_WEIGHTS.get(value, 1.0) for value in values])
        return [values[i] for i in self.rng.choice(len(values), count, replace=False, p=weights / weights.sum())]

    def _phrase(self, structure: str, usual: float = 0.0) -> str:
        if self.rng.uniform() < usual:
            return PHRASES[structure][0]
        return PHRASES[structure][self.rng.integers(len(PHRASES[structure]))]

    def _plain(self):
        (structure,) = self._pick(self.there)
        return conversation([self._phrase(structure, usual=0.5)], QUESTIONS, ANSWERS), [structure], []

    def _one(self):
        (structure,) = self._pick(self.there)
        return _turn(*ask_one(int(self.rng.integers(1, len(ONE))), self._phrase(structure))), [structure], []

    def _caption(self):
        (structure,) = self._pick(self.there)
        return _turn(*ask_caption(self._phrase(structure))), [structure], []

    def _several(self):
        count = int(self.rng.integers(2, 1 + min(3, len(self.there))))
        structures = self._pick(self.there, count)
        phrases = [self._phrase(structure, usual=0.3) for structure in structures]
        if self.rng.uniform() < _ONE_AFTER_THE_OTHER:
            return conversation(phrases, QUESTIONS * count, ANSWERS * count), structures, []
        return _turn(*ask_several(int(self.rng.integers(len(SEVERAL))), phrases, [])), structures, []

    def _absent(self):
        (structure,) = self._pick(self.missing)
        plain = self.rng.uniform() < 0.5
        phrase = self._phrase(structure, usual=0.5)
        question, _ = ask_one(0 if plain else int(self.rng.integers(1, len(ONE))), phrase)
        return _turn(question, no_such(phrase)), [], [structure]

    def _mixed(self):
        structures = [*self._pick(self.there), *self._pick(self.missing)]
        if self.rng.uniform() < 0.5:
            structures.reverse()
        phrases = [self._phrase(structure, usual=0.3) for structure in structures]
        missing = [structure for structure in structures if structure in self.missing]
        gone = [phrase for phrase, structure in zip(phrases, structures, strict=True) if structure in missing]
        chat = _turn(*ask_several(int(self.rng.integers(len(SEVERAL))), phrases, gone))
        return chat, [structure for structure in structures if structure not in missing], missing

    def _question(self):
        doubtful = self._doubtful()
        if self.runs_to and (not doubtful or self.rng.uniform() < _ABOUT_SIDES):
            return _turn(SIDE_QUESTIONS[self.rng.integers(len(SIDE_QUESTIONS))], f"To the {self.runs_to}."), [], []
        (structure,) = self._pick(doubtful)
        words = singular(structure)
        phrase, form = words[self.rng.integers(len(words))], int(self.rng.integers(len(PRESENCE)))
        there = structure in self.there
        return _turn(*ask_whether(form, structure, phrase, there)), [], [] if there else [structure]


def _turn(question: str, answer: str) -> list[dict]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _checked_shares(shares: dict[str, float] | None) -> dict[str, float]:
    if shares is None:
        return SHARES
    if not isinstance(shares, dict) or not set(shares) <= set(SHARES):
        raise ValueError(f"`shares` must be numbers by {', '.join(SHARES)}, but is {shares!r}.")
    if any(isinstance(share, bool) or not share >= 0 for share in shares.values()) or not sum(shares.values()) > 0:
        raise ValueError(f"`shares` must not be negative, and one of them above 0, but is {shares!r}.")
    return shares


def _checked_structures(structures: list[str] | tuple[str, ...] | None) -> list[str] | tuple[str, ...]:
    if structures is None:
        return STRUCTURES
    if isinstance(structures, str) or not structures or not set(structures) <= set(STRUCTURES):
        raise ValueError(f"`structures` must be some of {', '.join(STRUCTURES)}, but is {structures!r}.")
    return structures


def _videos(
    num_videos: int, frames_per_video: int, size: int, seed: int, first_video: int, hospital: int
) -> Iterator[tuple[int, SyntheticVideo]]:
    for number in range(first_video, first_video + num_videos):
        yield number, generate_video(seed, number, frames_per_video, size, "named", hospital)


def named_dataset(
    num_videos: int = 24,
    frames_per_video: int = 16,
    size: int = 256,
    seed: int = 0,
    first_video: int = 0,
    hospital: int = 1,
    videos_per_patient: int = 2,
    rows_per_frame: int = 1,
    shares: dict[str, float] | None = None,
    structures: list[str] | tuple[str, ...] | None = None,
) -> datasets.Dataset:
    r"""
    Questions about generated runs, with answers and masks.

    Args:
        num_videos (`int`, *optional*, defaults to `24`):
            Number of runs, at least 1. More runs leave the earlier ones as they were.
        frames_per_video (`int`, *optional*, defaults to `16`):
            Frames of every run, at least 1.
        size (`int`, *optional*, defaults to `256`):
            Width and height in pixels, at least 32. At 64 pixels narrowings are too small to be asked for.
        seed (`int`, *optional*, defaults to `0`):
            Non-negative seed, of the questions too.
        first_video (`int`, *optional*, defaults to `0`):
            Number of the first run; a multiple of `videos_per_patient` starts with a new patient.
        hospital (`int`, *optional*, defaults to `1`):
            1 or 2, see [`~data.angiography.generate_video`].
        videos_per_patient (`int`, *optional*, defaults to `2`):
            Consecutive runs that share a `patient_id`.
        rows_per_frame (`int`, *optional*, defaults to `1`):
            Conversations about every frame; more leave the earlier ones as they were.
        shares (`dict[str, float]`, *optional*, defaults to `SHARES`):
            How often each kind of row comes, in parts of their sum; kinds that are not named do not come. A frame that
            cannot be asked in any of them has no row.
        structures (`list[str]`, *optional*, defaults to `STRUCTURES`):
            Which are asked for.

    Returns:
        `datasets.Dataset`: columns `image` (8-bit grey PNG), `masks` (PNG, 0 or 255, one a `[SEG]`), `messages`,
        `kind` (of `SHARES`), `structures` (of `STRUCTURES`, one a mask), `absent` (what the answer says is not there),
        `sample_id` (`"h1_v0003_f007_r0"`), `video_id` (`"h1_v0003"`), `frame_index`, `patient_id` (`"h1_p0001"`) and
        `hard`, held in memory.

    Raises:
        `ValueError`: If an argument is out of range; the message names it. Also where no frame has a row.

    Example:

        ```python
        >>> from sa2va_trl.data import named_dataset

        >>> rows = named_dataset(num_videos=2, frames_per_video=2, size=128, seed=5)
        >>> for row in rows.select_columns(["messages", "structures"]):
        ...     print(*[message["content"] for message in row["messages"]], row["structures"], sep="\n")
        I would like to see the narrowing.
        There is no narrowing.
        []
        Please mark the side branches and the narrowing in this image.
        Sure, <p> side branches </p> [SEG]. There is no narrowing.
        ['side branches']
        Where are the diaphragm, the vessel and the right main branch?
        They are <p> diaphragm </p> [SEG], <p> vessel </p> [SEG] and <p> right main branch </p> [SEG].
        ['diaphragm', 'blood vessel', 'right main branch']
        Segment the right branch.
        Sure, [SEG].
        ['right main branch']

        ```
    """
    check_runs(num_videos, frames_per_video, size, seed, first_video, videos_per_patient)
    check_hospital(hospital)
    check_integer("rows_per_frame", rows_per_frame, 1)
    shares, asked = _checked_shares(shares), _checked_structures(structures)
    rows = []
    for number, video in _videos(num_videos, frames_per_video, size, seed, first_video, hospital):
        masks = video.structures
        for index, position in np.ndindex(frames_per_video, rows_per_frame):
            stream = np.random.SeedSequence([int(seed), number, int(hospital)], spawn_key=(_ROWS, index, position))
            rng = np.random.default_rng(stream)
            there, missing = ([name for name in part if name in asked] for part in _present(masks, index))
            interview = _Interview(rng, there, missing, video.runs_to)
            kinds = [kind for kind in interview.kinds() if shares.get(kind, 0) > 0]
            if not kinds:
                continue
            weights = np.array([shares[kind] for kind in kinds], dtype=float)
            kind = kinds[rng.choice(len(kinds), p=weights / weights.sum())]
            messages, shown, absent = interview(kind)
            row = {
                "image": png_cell(video.frames[index]),
                "masks": [png_cell(masks[name][index] * np.uint8(255)) for name in shown],
                "messages": messages,
                "kind": kind,
                "structures": shown,
                "absent": absent,
                "sample_id": f"h{hospital}_v{number:04d}_f{index:03d}_r{position}",
                **run_cells(number, index, video.hard[index], videos_per_patient, f"h{hospital}_"),
            }
            rows.append(row)
    if not rows:
        raise ValueError(f"`shares` {shares!r} gives no row: none of these frames can be asked so.")
    return dataset_of(rows, NAMED_FEATURES)


def structure_dataset(
    num_videos: int = 24,
    frames_per_video: int = 16,
    size: int = 256,
    seed: int = 0,
    first_video: int = 0,
    hospital: int = 1,
    videos_per_patient: int = 2,
    structures: list[str] | tuple[str, ...] | None = None,
    wording: str = "usual",
) -> datasets.Dataset:
    """
    The runs of [`named_dataset`] with one row a frame and structure that it shows, to evaluate with, or to train on
    one structure.

    Args:
        num_videos, frames_per_video, size, seed, first_video, hospital, videos_per_patient:
            As in [`named_dataset`].
        structures (`list[str]`, *optional*, defaults to `STRUCTURES`):
            Which.
        wording (`str`, *optional*, defaults to `"usual"`):
            What they are called: by their usual phrase (`"usual"`), by any that conversations use (`"varied"`), or by
            one that those never use (`"held_out"`).

    Returns:
        `datasets.Dataset`: the columns of [`synthetic_dataset`] and `structure`; a `sample_id` is
        `"h1_v0003_f007_left_main_branch"`, `phrase` what the structure is called.

    Raises:
        `ValueError`: If an argument is out of range; the message names it. Also where no frame has a row.

    Example:

        ```python
        >>> from sa2va_trl.data import structure_dataset

        >>> rows = structure_dataset(1, 1, size=128, structures=["blood vessel", "main trunk"], wording="held_out")
        >>> list(zip(rows["sample_id"], rows["phrase"]))
        [('h1_v0000_f000_blood_vessel', 'tree of vessels'), ('h1_v0000_f000_main_trunk', 'trunk of the arteries')]

        ```
    """
    check_runs(num_videos, frames_per_video, size, seed, first_video, videos_per_patient)
    check_hospital(hospital)
    structures = _checked_structures(structures)
    if wording not in WORDINGS:
        raise ValueError(f"`wording` must be one of {', '.join(WORDINGS)}, but is {wording!r}.")
    rows = []
    for number, video in _videos(num_videos, frames_per_video, size, seed, first_video, hospital):
        masks = video.structures
        for index in range(frames_per_video):
            there, _ = _present(masks, index)
            image = png_cell(video.frames[index])
            for structure in (name for name in STRUCTURES if name in there and name in structures):
                place = STRUCTURES.index(structure)
                stream = np.random.SeedSequence([int(seed), number, int(hospital)], spawn_key=(_PHRASES, index, place))
                words = {"usual": PHRASES[structure][:1], "varied": PHRASES[structure]}
                words = words.get(wording, HELD_OUT_PHRASES[structure])
                row = {
                    "image": image,
                    "mask": png_cell(masks[structure][index] * np.uint8(255)),
                    "phrase": words[np.random.default_rng(stream).integers(len(words))],
                    "structure": structure,
                    "sample_id": f"h{hospital}_v{number:04d}_f{index:03d}_{structure.replace(' ', '_')}",
                    **run_cells(number, index, video.hard[index], videos_per_patient, f"h{hospital}_"),
                }
                rows.append(row)
    if not rows:
        raise ValueError(f"`structures` {list(structures)!r} gives no row: none of these frames shows any.")
    return dataset_of(rows, STRUCTURE_FEATURES)


#: What the rows of named scenes can be.
ROWS = {"conversations": named_dataset, "structures": structure_dataset}


def named_splits(
    train_videos: int = 24,
    validation_videos: int = 6,
    test_videos: int = 8,
    rows: str = "conversations",
    videos_per_patient: int = 2,
    **options: Any,
) -> datasets.DatasetDict:
    """
    Train, validation and test sets of named scenes that share no video and no patient. Runs are numbered as in
    [`synthetic_splits`], in the same way for both kinds of rows.

    Args:
        train_videos, validation_videos, test_videos, videos_per_patient (`int`, *optional*):
            As in [`synthetic_splits`].
        rows (`str`, *optional*, defaults to `"conversations"`):
            Those of [`named_dataset`] (`"conversations"`) or of [`structure_dataset`] (`"structures"`).
        options (*optional*):
            Arguments of that function: `frames_per_video`, `size`, `seed`, `hospital`, `rows_per_frame`, …

    Returns:
        `datasets.DatasetDict` with `train`, `validation` and `test`.

    Raises:
        `ValueError`: If an argument is unknown (with those that there are) or out of range; the message names it.

    Example:

        ```python
        >>> from sa2va_trl.data import named_splits

        >>> data = named_splits(2, 1, 1, rows="structures", structures=["blood vessel"], hospital=2, size=64)
        >>> {split: sorted(set(part["video_id"])) for split, part in data.items()}
        {'train': ['h2_v0004', 'h2_v0005'], 'validation': ['h2_v0002'], 'test': ['h2_v0000']}

        ```
    """
    if rows not in ROWS:
        raise ValueError(f"`rows` must be one of {', '.join(ROWS)}, but is {rows!r}.")
    known = [name for function in (named_splits, ROWS[rows]) for name in inspect.signature(function).parameters]
    numbered = ("num_videos", "first_video", "options")
    _check_names(options, [name for name in known if name not in numbered], f"scene 'named' with rows {rows!r}")

    def make(count: int, first_video: int) -> datasets.Dataset:
        own = {"num_videos": count, "first_video": first_video, "videos_per_patient": videos_per_patient}
        return ROWS[rows](**own, **options)

    return numbered_splits(make, train_videos, validation_videos, test_videos, videos_per_patient)


def generated_splits(scene: str = "plain", phrase: str | None = None, **options: Any) -> datasets.DatasetDict:
    """
    What `--dataset_name synthetic` is, with the options of the YAML key `synthetic`.

    Args:
        scene (`str`, *optional*, defaults to `"plain"`): of which runs: see [`~data.angiography.generate_video`].
        phrase (`str`, *optional*): what the vessels of plain runs are called; named scenes have phrases of their own.
        options (*optional*): arguments of [`synthetic_splits`] or of [`named_splits`].

    Returns:
        `datasets.DatasetDict` with `train`, `validation` and `test`.

    Raises:
        `ValueError`: If an argument is unknown (with those that there are), has no effect or is out of range.
    """
    if scene not in SCENES:
        raise ValueError(f"`scene` must be one of {', '.join(SCENES)}, but is {scene!r}.")
    if scene == "named":
        if phrase is not None:
            raise ValueError("phrase has no effect on scene 'named', whose structures have phrases of their own.")
        return named_splits(**options)
    if phrase is not None:
        options["phrase"] = normalize_phrase(phrase)
    _check_names(options, list(inspect.signature(synthetic.synthetic_splits).parameters), "scene 'plain'")
    return synthetic.synthetic_splits(**options)


def _check_names(options: dict[str, Any], known: list[str], what: str) -> None:
    if unknown := [name for name in options if name not in known]:
        raise ValueError(f"synthetic: {what} has no {', '.join(unknown)}; it has {', '.join(dict.fromkeys(known))}.")
