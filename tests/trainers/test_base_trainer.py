"""Whatever rows a trainer is given, and however: they are checked in time, read in any format, and never copied."""

import copy
import functools
import os
import sys
import tempfile
from collections import Counter

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset, Features, IterableDataset, List, Value
from datasets import Image as ImageFeature
from PIL import Image
from PIL.ImageFile import ImageFile

from sa2va_trl import (
    HardSampleConfig,
    HardSampleTrainer,
    SegDPOConfig,
    SegDPOTrainer,
    SegSFTConfig,
    SegSFTTrainer,
    build_preferences,
    tiny_sa2va,
)
from sa2va_trl.data import DatasetError, checks
from sa2va_trl.evaluation import predict_probabilities
from sa2va_trl.evaluation.predictions import stored_features
from sa2va_trl.mining.scoring import score_dataset
from sa2va_trl.scripts import evaluate
from sa2va_trl.trainers import base_trainer as base


SIZE = (64, 48)
FEATURES = Features(
    {
        "image": ImageFeature(),
        "masks": List(ImageFeature()),
        "phrases": List(Value("string")),
        "sample_id": Value("string"),
        "chosen_mask": ImageFeature(),
        "rejected_mask": ImageFeature(),
    }
)
TRAINERS = {
    "sft": (SegSFTTrainer, SegSFTConfig),
    "dpo": (SegDPOTrainer, SegDPOConfig),
    "hard": (HardSampleTrainer, HardSampleConfig),
}


def half(top=True):
    mask = np.zeros(SIZE[::-1], np.uint8)
    mask[: SIZE[1] // 2 if top else 8] = 255
    return Image.fromarray(mask)


def row(number, prefix="row", **changed):
    seed = number + (0 if prefix == "row" else 1000)  # other rows have other pictures
    picture = np.random.default_rng(seed).integers(0, 256, (*SIZE[::-1], 3), np.uint8)
    return {
        "image": Image.fromarray(picture),
        "masks": [half()],
        "phrases": ["vessel"],
        "sample_id": f"{prefix}-{number}",
        "chosen_mask": half(),
        "rejected_mask": half(top=False),
        **changed,
    }


def make(*changes, prefix="row"):
    rows = [row(number, prefix, **changed) for number, changed in enumerate(changes)]
    return Dataset.from_list(rows, features=FEATURES)


def new(count, prefix):
    """Rows that no other test has, for what was checked once is known for as long as the process runs."""
    pictures = [np.random.default_rng().integers(0, 256, (*SIZE[::-1], 3), np.uint8) for _ in range(count)]
    return make(*({"image": Image.fromarray(picture)} for picture in pictures), prefix=prefix)


GREY = Image.fromarray(np.linspace(1, 254, 600).reshape(30, 20).astype(np.uint8))
DEEP = Image.fromarray(np.full(SIZE[::-1], 3000, np.uint16))
# One a trainer's constructor refuses for each of the kinds.
BAD = [
    ({"image": DEEP}, "image 0 has more than 8 bits a channel"),
    ({"masks": [GREY]}, "mask 0 is 20 x 30, its image 64 x 48"),
    ({"masks": [Image.new("L", SIZE, 9)]}, "mask 0 is not binary"),
    ({"phrases": ["one", "other"]}, "fewer masks than phrases"),
]
BAD_PAIRS = [
    ({"chosen_mask": Image.new("L", SIZE, 9)}, "chosen_mask is not binary"),
    ({"rejected_mask": Image.new("L", (20, 30))}, "rejected_mask is 20 x 30, its image 64 x 48"),
    ({"rejected_mask": half()}, "chosen_mask and rejected_mask are equal"),
    ({"rejected_mask": None}, "rejected_mask is missing"),
    ({"chosen_mask": half(top=False), "rejected_mask": half()}, "the chosen mask is worse than the rejected one"),
]


@functools.cache
def original(family):
    return tiny_sa2va(image_size=64, family=family)


def tiny(family="internvl"):
    model, processor = original(family)
    return copy.deepcopy(model), processor


def trainer(folder, data, kind="sft", eval_dataset=None, family="internvl", **options):
    model, processor = tiny(family)
    cls, config = TRAINERS[kind]
    args = config(
        str(folder / "out"),
        **{
            "trainable": "head",
            "max_steps": 2,
            "per_device_train_batch_size": 2,
            "per_device_eval_batch_size": 2,
            "use_cpu": True,
            "report_to": "none",
            "disable_tqdm": True,
            "save_strategy": "no",
            "logging_steps": 1,
            "gradient_checkpointing": False,
            "cache_features": "off",
            **options,
        },
    )
    given = {"model": model, "args": args, "train_dataset": data, "eval_dataset": eval_dataset}
    if kind == "hard":
        names = data.with_format(None)["sample_id"][:]
        given["scores"] = pd.DataFrame({"sample_id": names, "dice": np.resize([0.5, 0.9], len(names))})
    return cls(processing_class=processor, **given)


def streams(data):
    """The same rows, in each of the guises in which no constructor can check them."""

    def rows():
        yield from data

    return {
        "stream": data.to_iterable_dataset(),
        "stream of unknown features": IterableDataset.from_generator(rows),
        "mapped stream": data.to_iterable_dataset().map(lambda example: example),
        "stream with a format": data.to_iterable_dataset().with_format("numpy"),
    }


GUISES = list(streams(make({})))


# Streams and transforms


# (What is bad does not depend on how a stream is made, and the other way round.)
@pytest.mark.parametrize(
    ("guise", "changed", "reason"), [*((GUISES[0], *bad) for bad in BAD), *((guise, *BAD[0]) for guise in GUISES[1:])]
)
def test_a_bad_row_of_a_stream_ends_training_with_its_name(tmp_path, guise, changed, reason):
    run = trainer(tmp_path, streams(make({}, {}, changed, {}))[guise])
    with pytest.raises(DatasetError, match="'row-2' cannot be used: ") as caught:
        run.train()
    assert reason in str(caught.value) and run.state.global_step <= 1


@pytest.mark.parametrize("guise", GUISES)
def test_streams_of_good_rows_train_alike(tmp_path, guise):
    data = make({}, {}, {}, {})
    runs = [
        trainer(tmp_path, rows, train_sampling_strategy="sequential", num_points=0)
        for rows in (data, streams(data)[guise])
    ]
    losses = [[entry["loss"] for entry in run.state.log_history if "loss" in entry] for run in runs if run.train()]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6) and len(losses[0]) == 2


@pytest.mark.parametrize(("changed", "reason", "workers"), [*((*bad, 0) for bad in BAD), (*BAD[0], 2)])
def test_what_a_transform_makes_is_checked(tmp_path, changed, reason, workers):
    def transform(batch):
        names = [name for name in batch if name in changed]
        return {**batch, **{name: [changed[name]] * len(batch[name]) for name in names}}

    run = trainer(tmp_path, make({}, {}).with_transform(transform), dataloader_num_workers=workers)
    with pytest.raises(DatasetError, match="'row-[01]' cannot be used: ") as caught:
        run.train()
    assert reason in str(caught.value) and run.state.global_step == 0


def test_a_transform_is_kept_with_all_columns_and_runs_for_every_row(tmp_path):
    data, seen = make({}, {}), []
    data = data.add_column("kind", ["first", "second"])

    def transform(batch):
        seen.extend(batch["kind"])
        return batch

    run = trainer(tmp_path, data.with_transform(transform))
    seen.clear()
    run.train()
    assert seen.count("first") == seen.count("second") >= 2


@pytest.mark.parametrize(
    ("guise", "changed", "reason"),
    [*((GUISES[0], *bad) for bad in [*BAD_PAIRS, BAD[0]]), *((guise, *BAD_PAIRS[0]) for guise in GUISES[1:])],
)
def test_pairs_of_a_stream_are_checked(tmp_path, guise, changed, reason):
    run = trainer(tmp_path, streams(make({}, {}, changed, {}))[guise], "dpo")
    with pytest.raises(DatasetError, match="'row-2' cannot be used: ") as caught:
        run.train()
    assert reason in str(caught.value) and run.state.global_step <= 1


def test_pairs_of_a_stream_train_and_worse_ones_where_they_are_allowed(tmp_path):
    data = make({}, {}, {"chosen_mask": half(top=False), "rejected_mask": half()}, {})
    run = trainer(tmp_path, data.to_iterable_dataset(), "dpo", allow_worse=True)
    run.train()
    assert run.state.global_step == 2


def test_a_stream_without_pairs_is_no_preference(tmp_path):
    bare = make({}, {}).remove_columns(["chosen_mask", "rejected_mask"]).to_iterable_dataset()
    with pytest.raises(DatasetError, match="no chosen_mask and rejected_mask"):
        trainer(tmp_path, bare, "dpo")
    with pytest.raises(DatasetError, match="'row-0' cannot be used: .* are missing"):
        trainer(tmp_path, bare.map(lambda example: example), "dpo").train()


def test_a_transform_may_make_rows_fit_or_not(tmp_path):
    small = row(0)

    def transform(batch):
        names = {name: [small[name]] * len(values) for name, values in batch.items() if name in ("image", "masks")}
        return {**batch, **names}

    run = trainer(tmp_path, make(STRIP, {}).with_transform(transform), family="qwen3_vl")
    run.train()
    strips = {name: 2 * [STRIP[name]] for name in ("image", "masks")}
    run = trainer(tmp_path, make({}, {}).with_transform(lambda batch: {**batch, **strips}), family="qwen3_vl")
    with pytest.raises(DatasetError, match="'row-[01]' cannot be used: an image of 1300 x 6 pixels"):
        run.train()
    run = trainer(tmp_path, make({}, {}).with_transform(lambda batch: {name: batch[name][:1] for name in batch}))
    with pytest.raises(DatasetError, match="has to keep all rows; of 2 it made 1"):
        run.train()


# Rows for evaluate and predict


@pytest.mark.parametrize("kind", TRAINERS)
@pytest.mark.parametrize(("changed", "reason"), BAD)
def test_rows_that_come_later_are_checked_all_at_once(tmp_path, kind, changed, reason, monkeypatch):
    run = trainer(tmp_path, make({}, {}), kind)
    monkeypatch.setattr(run, "evaluation_loop", lambda *args, **kwargs: pytest.fail("rows were evaluated"))
    bad, good = make(changed, {}, changed, prefix="later"), make({}, prefix="good")
    for call in (run.evaluate, run.predict, lambda rows: run.evaluate({"bad": rows})):
        with pytest.raises(DatasetError, match="2 of 3 rows cannot be used") as caught:
            call(bad)
        assert reason in str(caught.value)
        assert [problem.sample_id for problem in caught.value.problems] == ["later-0", "later-2"]
    with pytest.raises(DatasetError, match=r"eval_dataset\[bad\]"):
        run.evaluate({"good": good, "bad": bad})
    with pytest.raises(TypeError, match="predict takes one set"):
        run.predict({"good": good})


@pytest.mark.parametrize(("changed", "reason"), BAD_PAIRS)
def test_pairs_that_come_later_are_checked(tmp_path, changed, reason):
    run = trainer(tmp_path, make({}, {}), "dpo")
    for call in (run.evaluate, run.predict):
        with pytest.raises(DatasetError, match=reason.removeprefix("the ")):
            call(make({}, changed, prefix="later"))


@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_a_stream_that_comes_later_is_checked_as_it_comes(tmp_path, kind):
    run = trainer(tmp_path, make({}, {}), kind)
    for changed, reason in BAD:
        with pytest.raises(DatasetError, match="'later-1' cannot be used: ") as caught:
            run.evaluate(make({}, changed, prefix="later").to_iterable_dataset())
        assert reason in str(caught.value)


def test_gradients_of_all_that_trains_are_clipped(tmp_path, monkeypatch):
    run, norms = trainer(tmp_path, make({}, {}), max_grad_norm=1e-3), []
    clip = run._clip_grad_norm

    def norm_of(model):
        gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
        return torch.stack([gradient.norm() for gradient in gradients]).norm().item()

    def watched(model):
        whole = norm_of(model)
        told = clip(model)
        norms.append((whole, told.item(), norm_of(model)))
        return told

    monkeypatch.setattr(run, "_clip_grad_norm", watched)
    run.train()
    assert len(norms) == 2 and norms[0][0] > 1e-2
    for whole, told, left in norms:
        assert told == pytest.approx(whole, rel=1e-5) and left == pytest.approx(1e-3, rel=1e-3)


def test_the_training_set_may_be_evaluated(tmp_path):
    data = make({}, {})
    run = trainer(tmp_path, data)
    dices = run.predict(data).predictions[:, 0]
    assert len(dices) == 2 and dices.mean() > 0
    assert run.evaluate(data)["eval_dice"] == pytest.approx(dices.mean(), abs=1e-6)


def test_what_is_known_is_not_checked_again(tmp_path, monkeypatch):
    fitting, decoded = [], []
    check_fit, read_pictures = base.check_fit, checks.read_pictures
    monkeypatch.setattr(base, "check_fit", lambda *args: fitting.append(args) or check_fit(*args))
    monkeypatch.setattr(
        checks, "read_pictures", lambda *args, **kw: decoded.append(args) or read_pictures(*args, **kw)
    )
    train, one, two = (new(2 + number, prefix) for number, prefix in enumerate(("train", "one", "two")))
    two = two.with_format("numpy")
    run = trainer(
        tmp_path, train, eval_dataset={"one": one, "two": two}, eval_strategy="steps", eval_steps=1, dataset_repeats=2
    )
    assert len(decoded) == 2 + 3 + 4 and len(fitting) == 3
    run.train()
    for call in (run.evaluate, lambda: run.evaluate({"one": one}), lambda: run.evaluate(two)):
        call()
    run.predict(run.train_dataset)
    run.predict(train)
    assert len(decoded) == 9 and len(fitting) == 3
    for _ in range(2):
        run.evaluate(one.map(lambda example: example))  # the same rows in another set
    assert len(decoded) == 9 and len(fitting) == 4
    run.evaluate(new(2, "later"))
    assert len(decoded) == 11 and len(fitting) == 5


# How often a row is decoded


@pytest.fixture
def decodes(monkeypatch):
    """Counts the pictures that Pillow decodes, by kind; asked for, it starts anew."""
    found, load = Counter(), ImageFile.load

    def counted(self):
        if self.tile:
            found["image" if self.mode == "RGB" else "mask"] += 1
        return load(self)

    def since():
        counts = found["image"], found["mask"]
        found.clear()
        return counts

    monkeypatch.setattr(ImageFile, "load", counted)
    return since


SINGLE = Features({name: FEATURES[name] for name in FEATURES if name not in ("masks", "phrases")})
SINGLE |= {"mask": ImageFeature(), "phrase": Value("string")}


def plain(count, prefix, pairs=False):
    """As `new`, with a mask alone: of a list of them, `datasets` decodes the first twice."""
    rows = [{**row, "mask": half(), "phrase": "vessel"} for row in new(count, prefix)]
    names = [name for name in SINGLE if pairs or name not in ("chosen_mask", "rejected_mask")]
    rows = [{name: row[name] for name in names} for row in rows]
    return Dataset.from_list(rows, features=Features({name: SINGLE[name] for name in names}))


def test_a_trainer_decodes_a_row_once_to_check_it_and_once_to_use_it(tmp_path, decodes):
    train, held = plain(4, "train"), plain(3, "held")
    decodes()
    run = trainer(tmp_path, train, eval_dataset=held)
    assert decodes() == (7 + 1, 7 + 1)  # TRL looks at the first row
    run.evaluate()
    assert decodes() == (3, 3)
    run.evaluate(held)
    assert decodes() == (3, 3)
    again = trainer(tmp_path, train.shuffle(seed=1).select(range(3)), eval_dataset=held)
    assert decodes() == (1, 1)
    again.evaluate(train)
    assert decodes() == (4, 4)


def test_pairs_are_decoded_once_to_check_them(tmp_path, decodes):
    train = plain(4, "train", pairs=True)
    decodes()
    run = trainer(tmp_path, train, "dpo")
    # (The mask once more, to tell which mask of the pair is nearer to it.)
    assert decodes() == (4 + 1, 4 * (1 + 3) + 3)
    run.evaluate(train)
    assert decodes() == (4, 4 * 3)


@pytest.mark.parametrize("cache", ["off", "on"])
def test_the_evaluate_command_decodes_a_row_once_to_check_it_and_once_to_use_it(tmp_path, decodes, monkeypatch, cache):
    plain(5, "row").save_to_disk(tmp_path / "data")
    options = {"model_name_or_path": "tiny-random", "dataset_name": tmp_path / "data", "dataset_split": "train"}
    options |= {"output_dir": tmp_path / "out", "num_overlays": 0, "cache_features": cache}
    monkeypatch.setattr(
        sys, "argv", ["evaluate", *(part for name, value in options.items() for part in (f"--{name}", str(value)))]
    )
    decodes()
    evaluate.main()
    # Features are computed from the pixels first, and scores are of the masks.
    assert decodes() == ((10, 10) if cache == "off" else (15, 15))


# Formats


def as_stored(data):
    features = Features({**FEATURES, "image": ImageFeature(decode=False), "masks": List(ImageFeature(decode=False))})
    return data.cast(features)


# (What a format is does not depend on the trainer.)
@pytest.mark.parametrize(
    ("kind", "form"),
    [
        *(("sft", form) for form in ("torch", "arrow", "decode=False")),
        ("dpo", "torch"),
        ("hard", "torch"),
    ],
)
def test_formats_change_nothing(tmp_path, kind, form):
    data, held_out = make({}, {}, {}, {}), make({}, prefix="held")

    def shown(rows):
        return as_stored(rows) if form == "decode=False" else rows.with_format(form)

    found = []
    for change in (lambda rows: rows, shown):
        run = trainer(tmp_path, change(data), kind, eval_dataset=change(held_out))
        run.train()
        logged = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
        assert len(logged) == 2
        later = change(make({}, {}, prefix="later"))
        found.append([*logged, run.evaluate()["eval_dice"], run.evaluate(later)["eval_loss"]])
        found[-1] += run.predict(later).predictions[:, 0].tolist()
    assert found[0] == pytest.approx(found[1], abs=1e-6)


@pytest.mark.parametrize("form", ["torch", "arrow", "decode=False"])
def test_formats_change_nothing_outside_of_trainers(tmp_path, form):
    model, processor = tiny()
    data = make({}, {}, {}).remove_columns(["chosen_mask", "rejected_mask"])

    def results(rows, folder):
        scores = score_dataset(model, processor, rows, progress=False)
        pairs = build_preferences(rows, model, processor, min_gap=0.0, allow_worse=True, progress=False)
        store, keys = stored_features(model, processor, rows, "on", folder, progress=False)
        maps = [
            values.tobytes()
            for features in (None, (store, keys))
            for _, values in predict_probabilities(model, processor, rows, progress=False, features=features)
        ]
        return scores.to_dict(), pairs["sample_id"][:], pairs[0]["chosen_reward"], keys, maps

    if form == "decode=False":
        names = {name: FEATURES[name] for name in data.features}
        shown = data.cast(
            Features({**names, "image": ImageFeature(decode=False), "masks": List(ImageFeature(decode=False))})
        )
    else:
        shown = data.with_format(form)
    np.testing.assert_equal(results(data, tmp_path / "one"), results(shown, tmp_path / "other"))


# Rows that do not fit the model


STRIP = {"image": Image.new("RGB", (1300, 6)), "masks": [Image.new("L", (1300, 6), 255)]}
STRIP |= {"chosen_mask": Image.new("L", (1300, 6), 255), "rejected_mask": Image.new("L", (1300, 6))}


@pytest.mark.parametrize("kind", TRAINERS)
@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_strips_are_named_before_training(tmp_path, kind, family):
    good = make({}, {}, prefix="good")
    bad = make(STRIP, {}, STRIP, {})
    with pytest.raises(DatasetError, match=r"train_dataset: 2 of 4 rows do not fit the model:\n  row 0.*\n  row 2"):
        trainer(tmp_path, bad, kind, family=family)
    with pytest.raises(DatasetError, match=r"eval_dataset\[x\]: 2 of 4 rows do not fit"):
        trainer(tmp_path, good, kind, family=family, eval_dataset={"x": bad})
    run = trainer(tmp_path, good, kind, family=family)
    for call, name in ((run.evaluate, "eval_dataset"), (run.predict, "test_dataset")):
        with pytest.raises(DatasetError, match=f"{name}: 2 of 4 rows do not fit the model"):
            call(bad)
    with pytest.raises(DatasetError, match="'row-0' cannot be used: an image of 1300 x 6 pixels"):
        run.evaluate(bad.to_iterable_dataset())


@pytest.mark.parametrize("family", ["internvl", "qwen3_vl"])
def test_rows_longer_than_the_positions_are_named_before_training(tmp_path, family):
    long = {"phrases": ["vessel " * 4096]}
    with pytest.raises(
        DatasetError, match=r"1 of 2 rows do not fit .*\n.*'row-1': needs [0-9,]+ tokens, the model has"
    ):
        trainer(tmp_path, make({}, long), family=family)
    run = trainer(tmp_path, make({}, {}), family=family)
    with pytest.raises(DatasetError, match="'row-1' cannot be used: needs "):
        run.evaluate(make({}, long).to_iterable_dataset())


def test_scoring_names_what_does_not_fit(tmp_path):
    model, processor = tiny("qwen3_vl")
    with pytest.raises(DatasetError, match="dataset: 1 of 2 rows do not fit the model"):
        score_dataset(model, processor, make({}, STRIP), progress=False)


# Copies


def written(folders):
    files = [os.path.join(path, name) for folder in folders for path, _, names in os.walk(folder) for name in names]
    return sum(os.path.getsize(file) for file in files)


@pytest.fixture
def disk(tmp_path, monkeypatch):
    """A saved data set of some size, and all the places that something could be written to."""
    folders = [tmp_path / name for name in ("saved", "cache", "temporary")]
    for folder in folders[1:]:
        folder.mkdir()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folders[1])
    monkeypatch.setattr(tempfile, "tempdir", str(folders[2]))
    noise = np.random.default_rng(0).integers(0, 256, (12, 256, 256, 3), np.uint8)
    small = Image.new("L", (256, 256))
    masks = {"masks": [Image.new("L", (256, 256), 255)], "chosen_mask": Image.new("L", (256, 256), 255)}
    rows = [{"image": Image.fromarray(picture), "rejected_mask": small, **masks} for picture in noise]
    data = make(*rows).add_column("patient_id", [str(number // 2) for number in range(12)])
    data.save_to_disk(folders[0])
    return Dataset.load_from_disk(str(folders[0])), folders


SELECTIONS = {
    "whole": lambda data: data,
    "select": lambda data: data.select([7, 1, 4, 9, 0, 2]),
    "train_test_split": lambda data: data.train_test_split(0.5, seed=1)["train"],
    "format": lambda data: data.select([3, 1]).with_format("numpy"),
}


# (What a selection is does not depend on the trainer, and what a trainer does with one not on how it was made.)
@pytest.mark.parametrize(
    ("kind", "selection"),
    [*(("sft", name) for name in SELECTIONS), *((kind, "select") for kind in TRAINERS if kind != "sft")],
)
def test_no_trainer_writes_a_copy(tmp_path, disk, kind, selection):
    data, folders = disk
    rows = SELECTIONS[selection](data)
    before, size = written(folders), rows.data.nbytes
    assert before > 2_000_000 and size > 2_000_000
    options = {} if kind == "hard" else {"dataset_repeats": 3}
    cached = {"cache_features": "on", "cache_dir": str(tmp_path / "features"), "num_points": 0, "max_steps": 1}
    if kind == "sft":
        cached["lm_weight"] = 0.0
    for features in ({"max_steps": 1}, cached):
        run = trainer(tmp_path, rows, kind, eval_dataset=make({}, prefix="held"), **options, **features)
        assert (run.features is not None) == (features is cached)
        run.train()
        run.evaluate(rows)
        assert written(folders) - before < 100_000


def test_a_set_of_text_alone_is_not_copied_either(tmp_path, disk):
    _, folders = disk
    messages = [
        {"role": "user", "content": "What is it?"},
        {"role": "assistant", "content": 20 * "A long text. "},
    ]
    rows = [{"messages": messages, "masks": [], "sample_id": str(number)} for number in range(1000)]
    features = Features(
        {
            "messages": List({"role": Value("string"), "content": Value("string")}),
            "masks": List(ImageFeature()),
            "sample_id": Value("string"),
        }
    )
    Dataset.from_list(rows, features=features).save_to_disk(tmp_path / "saved" / "text")
    data = Dataset.load_from_disk(str(tmp_path / "saved" / "text"))
    before = written(folders)
    for part in (data, data.select(range(999, 0, -2))):
        assert part.data.nbytes > 250_000
        run = trainer(tmp_path, part, trainable="stage1", lora_r=4, dataset_repeats=2, max_steps=1)
        run.train()
        run.evaluate(part.select([2, 0]))
        assert written(folders) - before < 50_000


def test_repeats_of_a_selection_are_its_rows_in_order(tmp_path, disk):
    data, _ = disk
    run = trainer(tmp_path, data.select([5, 2, 9]), dataset_repeats=2)
    rows = run.get_train_dataloader().dataset
    assert [row["sample_id"] for row in rows] == ["row-5", "row-2", "row-9"] * 2
    assert [row["row_index"] for row in rows] == list(range(6))


def test_pictures_that_look_like_those_of_the_training_set_are_refused_unless_accepted():
    picture = np.asarray(row(0)["image"])
    train, alike = make({}), make({"image": Image.fromarray(picture // 2)}, prefix="other")
    with pytest.raises(DatasetError, match=r"look alike .*row 0 of train_dataset \(row-0\) looks like row 0 of held"):
        SegSFTTrainer.check_splits(train, {"held": alike})
    SegSFTTrainer.check_splits(train, {"held": alike}, accept_alike=True)
    with pytest.raises(DatasetError, match="1 images are in several of them"):
        SegSFTTrainer.check_splits(train, make({"image": row(0)["image"]}, prefix="other"), accept_alike=True)
