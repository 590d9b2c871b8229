import copy
import random

import numpy as np
import pytest
import torch
from collator_rows import GRID, MANY_ANSWERS, MANY_QUESTIONS, clip, colour, magnified, patterns, still, text_only
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rows import FEATURES
from torch.utils.data import DataLoader

from sa2va_trl.data.augment import Augmentation
from sa2va_trl.data.collator import SegCollator
from sa2va_trl.errors import DatasetError
from sa2va_trl.models.tiny import tiny_sa2va


END = "<|im_end|>"
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])  # ImageNet
MOVING = Augmentation(flip=0.5, vertical_flip=0.5, rotation=90, scale=0.3, shift=0.2)


def equal(first, second):
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(equal(first[name], second[name]) for name in first)
    return len(first) == len(second) and all(map(equal, first, second))


def supervised(processor, ids, labels):
    """The texts of the runs of tokens that have a label."""
    runs, previous = [], False
    for token, label in zip(ids.tolist(), labels.tolist(), strict=True):
        if label != -100:
            assert label == token
            if not previous:
                runs.append([])
            runs[-1].append(token)
        previous = label != -100
    return [processor.tokenizer.decode(run) for run in runs]


def row_texts(processor, batch):
    return [
        processor.tokenizer.decode(ids[mask.bool()])
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]


# Schema


@pytest.mark.parametrize("with_skeletons", [False, True])
def test_schema_of_a_mixed_batch(tiler, with_skeletons):
    messages = [
        {"role": "user", "content": "Find both."},
        {"role": "assistant", "content": "There: [SEG] and [SEG]."},
    ]
    told = {"image": colour(8), "masks": still(2, 8)["masks"], "messages": messages, "sample_id": "told"}
    rows = [still(2, 1), text_only(), clip(3, 2, 3), still(1, 7), told]
    counts, masks_of = [1, 0, 3, 1, 1], [2, 0, 6, 1, 2]
    batch = SegCollator(tiler, with_skeletons=with_skeletons)(rows)
    assert set(batch) == {
        "input_ids", "attention_mask", "labels", "pixel_values", "grounding_pixel_values", "image_counts",
        "original_masks", "masks", *(["skeletons"] if with_skeletons else []),
    }  # fmt: skip
    shape = batch["input_ids"].shape
    for name in ("input_ids", "attention_mask", "labels"):
        assert batch[name].dtype == torch.int64 and batch[name].shape == shape
    assert shape[0] == 5
    attention = batch["attention_mask"]
    assert set(attention.unique().tolist()) == {0, 1}
    assert (attention.diff(dim=1) <= 0).all() and attention[:, 0].all() and attention.sum(1).max() == shape[1]
    assert torch.equal(batch["input_ids"] == tiler.tokenizer.pad_token_id, attention == 0)
    assert (batch["labels"][attention == 0] == -100).all()
    # A clip has one tile a frame, these stills three tiles and a thumbnail.
    assert batch["pixel_values"].dtype == torch.float32 and batch["pixel_values"].shape[1:] == (3, 224, 224)
    placeholders = (batch["input_ids"] == tiler.image_token_id).sum(1)
    assert placeholders.sum() == tiler.image_seq_length * len(batch["pixel_values"])
    assert placeholders[1] == 0 and placeholders[2] == 3 * tiler.image_seq_length
    assert placeholders[0] == placeholders[3] == placeholders[4] == 4 * tiler.image_seq_length
    assert batch["grounding_pixel_values"].dtype == torch.float32
    assert batch["grounding_pixel_values"].shape == (6, 3, 128, 128)
    assert batch["image_counts"].dtype == torch.int64 and batch["image_counts"].tolist() == counts
    assert batch["masks"].dtype == torch.uint8 and batch["masks"].shape == (11, GRID, GRID)
    assert set(batch["masks"].unique().tolist()) == {0, 1}
    segs = (batch["input_ids"] == tiler.seg_token_id).sum(1)
    assert segs.tolist() == [2, 0, 2, 1, 2]
    assert (segs * batch["image_counts"]).tolist() == masks_of
    assert len(batch["original_masks"]) == 5
    for row, count, original in zip(rows, masks_of, batch["original_masks"], strict=True):
        assert original.dtype == torch.uint8 and len(original) == count
        for mask, tensor in zip(row.get("masks", []), original, strict=True):
            assert np.array_equal(np.asarray(mask) // 255, tensor.numpy())


def test_masks_keep_the_order_of_objects_row_by_row(tiler):
    rows = [still(2, 1), still(1, 2), clip(3, 2, 3), text_only(), still(3, 4)]
    expected = np.concatenate([patterns(2, 1), patterns(1, 2), patterns(6, 3), patterns(3, 4)])
    batch = SegCollator(tiler)(rows)
    assert np.array_equal(batch["masks"].numpy(), expected)


def test_images_keep_their_order_and_are_normalised_for_sam2(tiler):
    rows = [still(1, 1), clip(3, 2, 3), text_only(), still(2, 9)]
    batch = SegCollator(tiler)(rows)
    for number, tensor in zip([1, 3, 4, 5, 9], batch["grounding_pixel_values"], strict=True):
        expected = (np.array(colour(number).getpixel((0, 0))) / 255 - MEAN) / STD
        assert np.abs(tensor.numpy() - expected[:, None, None]).max() < 1e-5


def test_tiles_are_those_of_the_image_alone(tiler):
    pictures = [Image.fromarray(np.random.default_rng(n).integers(0, 256, (64, 192, 3), np.uint8)) for n in range(4)]
    film = {**clip(3, 1), "images": pictures[1:]}
    batch = SegCollator(tiler)([still(image=pictures[0]), film])
    alone = tiler.image_processor(images=pictures[:1], return_tensors="pt")["pixel_values"]
    frames = tiler.image_processor(images=pictures[1:], return_tensors="pt", crop_to_patches=False)["pixel_values"]
    assert len(alone) == 4 and len(frames) == 3
    assert torch.equal(batch["pixel_values"], torch.cat([alone, frames]))


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_qwen_grids_stay_with_their_images(family):
    processor = tiny_sa2va(image_size=128, max_patches=4, family=family)[1]
    shapes = [(192, 64), (64, 192), (64, 192), (100, 100)]
    pictures = [
        Image.fromarray(np.random.default_rng(n).integers(0, 256, (high, wide, 3), np.uint8))
        for n, (wide, high) in enumerate(shapes)
    ]
    messages = [{"role": "user", "content": "A?"}, {"role": "assistant", "content": "B."}]
    told = {"messages": messages, "sample_id": "told"}
    parts = ({"image": pictures[0]}, {"images": pictures[1:3]}, {"image": pictures[3]})
    first, film, last = ({**part, **told} for part in parts)
    batch = SegCollator(processor)([first, text_only(), film, last])
    expected = [
        processor.image_processor(images=group, return_tensors="pt", **({"size": processor.clip_size} if clip else {}))
        for group, clip in ((pictures[:1], False), (pictures[1:3], True), (pictures[3:], False))
    ]
    for name in ("pixel_values", "image_grid_thw"):
        assert torch.equal(batch[name], torch.cat([part[name] for part in expected])), name
    tokens = batch["image_grid_thw"].prod(1) // 4
    placeholders = (batch["input_ids"] == processor.image_token_id).sum(1)
    assert placeholders.tolist() == [tokens[0], 0, tokens[1] + tokens[2], tokens[3]]
    assert tokens[1:3].max() < tokens[[0, 3]].min()


def test_a_clip_counts_its_frames_and_is_object_major(tiler):
    row = clip(3, 2)
    batch = SegCollator(tiler)([row])
    assert batch["image_counts"].tolist() == [3]
    assert np.array_equal(batch["masks"].numpy().reshape(2, 3, GRID, GRID), patterns(6).reshape(2, 3, GRID, GRID))
    text = row_texts(tiler, batch)[0]
    assert text.count("[SEG]") == 2 and text.count("<img>") == 3
    assert text.index("artery 0") < text.index("artery 1")


def test_a_batch_of_text_has_no_pixels(tiler):
    batch = SegCollator(tiler, augmentation=MOVING, with_skeletons=True)([text_only("a"), text_only("b")])
    assert "pixel_values" not in batch
    assert batch["grounding_pixel_values"].shape == (0, 3, 128, 128)
    assert batch["image_counts"].tolist() == [0, 0]
    assert batch["masks"].shape == batch["skeletons"].shape == (0, GRID, GRID)
    assert [len(masks) for masks in batch["original_masks"]] == [0, 0]
    assert (
        row_texts(tiler, batch)
        == ["<|im_start|>user\nWhat is a stent?<|im_end|>\n<|im_start|>assistant\nA small tube.<|im_end|>"] * 2
    )


def test_the_model_takes_what_the_collator_makes(any_tiny):
    model, processor = any_tiny
    batch = SegCollator(processor)([still(2, 1), text_only(), clip(3, 2, 3), still(1, 4)])
    masks, originals = batch.pop("masks"), batch.pop("original_masks")
    with torch.no_grad():
        outputs = model(**batch)
    assert outputs.mask_logits.shape == masks.shape
    assert torch.bincount(outputs.row_index, minlength=4).tolist() == [len(masks) for masks in originals]
    assert torch.isfinite(outputs.loss)


# Objects


@settings(deadline=None, max_examples=10)
@given(order=st.permutations(range(4)))
def test_permuting_objects_permutes_masks(tiler, order):
    row = still(4, 5)
    mixed = {**row, "masks": [row["masks"][n] for n in order], "phrases": [row["phrases"][n] for n in order]}
    neighbour = still(1, 6)
    plain, permuted = (SegCollator(tiler, with_skeletons=True)([neighbour, entry]) for entry in (row, mixed))
    index = [0, *(1 + n for n in order)]
    assert torch.equal(permuted["masks"], plain["masks"][index])
    assert torch.equal(permuted["skeletons"], plain["skeletons"][index])
    assert torch.equal(permuted["original_masks"][1], plain["original_masks"][1][list(order)])
    text = row_texts(tiler, permuted)[1]
    places = [text.index(row["phrases"][n]) for n in order]
    assert places == sorted(places)


@pytest.mark.parametrize("augmentation", [None, MOVING])
def test_one_object_in_either_style_is_the_same(tiler, augmentation):
    row = still(1, 3)
    single = {
        "image": row["image"],
        "mask": row["masks"][0],
        "phrase": row["phrases"][0],
        "sample_id": row["sample_id"],
    }
    collator = SegCollator(tiler, augmentation=augmentation, questions=MANY_QUESTIONS, answers=MANY_ANSWERS)
    assert equal(collator([row]), collator([single]))


def test_rows_of_a_stored_dataset_are_the_same(tiler):
    rows = [still(2, 1), clip(3, 2, 3), text_only(), still(1, 4)]
    full = [{name: row.get(name) for name in FEATURES} for row in rows]
    dataset = Dataset.from_list(full, features=FEATURES)
    collator = SegCollator(tiler)
    assert equal(collator([dataset[index] for index in range(4)]), collator(rows))


def test_an_empty_mask_is_legal(tiler):
    row = still(2, 1)
    row["masks"][0] = Image.new("L", (192, 64))
    batch = SegCollator(tiler, augmentation=MOVING, with_skeletons=True)([row])
    assert not batch["masks"][0].any() and not batch["skeletons"][0].any() and not batch["original_masks"][0][0].any()
    assert batch["masks"][1].any() and batch["skeletons"][1].any()


def test_masks_of_0_and_1_are_those_of_0_and_255(tiler):
    row = still(2, 1)
    unit = {**row, "masks": [mask.point(lambda value: value // 255) for mask in row["masks"]]}
    assert equal(SegCollator(tiler)([row]), SegCollator(tiler)([unit]))


@pytest.mark.parametrize("mask_size", [16, 64, 128])
def test_mask_size(tiler, mask_size):
    coarse = patterns(2, 1)[:, :16, :16]
    masks = [Image.fromarray(255 * np.kron(mask, np.ones((4, 12), np.uint8))) for mask in coarse]
    batch = SegCollator(tiler, mask_size=mask_size, with_skeletons=True)([still(2, masks=masks)])
    expected = np.kron(coarse, np.ones((1, mask_size // 16, mask_size // 16), np.uint8))
    assert np.array_equal(batch["masks"].numpy(), expected)
    assert batch["skeletons"].shape == batch["masks"].shape
    assert batch["original_masks"][0].shape == (2, 64, 192)


def test_mask_size_must_be_positive(tiler):
    assert SegCollator(tiler).mask_size == GRID
    with pytest.raises(ValueError, match="mask_size must be positive, got 0"):
        SegCollator(tiler, mask_size=0)


def test_skeletons_lie_in_their_masks(tiler):
    bar = np.zeros((GRID, GRID), np.uint8)
    bar[8:23, 4:28] = 1
    batch = SegCollator(tiler, with_skeletons=True)([still(masks=[magnified(bar)]), clip(2, 1)])
    skeletons, masks = batch["skeletons"], batch["masks"]
    assert skeletons.dtype == torch.uint8 and skeletons.shape == masks.shape
    assert not (skeletons & (1 - masks)).any() and (skeletons.flatten(1).sum(1) > 0).all()
    # The middle of a thick bar is in its skeleton, its rim is not.
    assert skeletons[0, 15, 12:20].all() and not skeletons[0, 8, 12:20].any()
    assert skeletons[0].sum() < 0.6 * masks[0].sum()


# Text and labels


def test_the_whole_prompt(tiny):
    processor = tiny[1]
    batch = SegCollator(processor)([still(2)])
    image = "<img>" + 64 * "<IMG_CONTEXT>" + "</img>"
    assert row_texts(processor, batch) == [
        f"<|im_start|>user\n{image}\nPlease segment the vessel 0.<|im_end|>\n"
        "<|im_start|>assistant\nSure, [SEG].<|im_end|>\n"
        "<|im_start|>user\nPlease segment the vessel 1.<|im_end|>\n"
        "<|im_start|>assistant\nSure, [SEG].<|im_end|>"
    ]


def test_exactly_the_answers_are_learned(tiler):
    messages = [
        {"role": "system", "content": "You are brief."},
        {"role": "user", "content": "Where is <p>it</p>?"},
        {"role": "assistant", "content": "Here: <p> the left </p> [SEG] and [SEG]"},
        {"role": "user", "content": "Thank you"},
        {"role": "assistant", "content": "Not at all."},
    ]
    told = {"image": colour(1), "masks": still(2)["masks"], "messages": messages, "sample_id": "told"}
    rows = [still(3, 1), told, text_only(), clip(3, 2)]
    batch = SegCollator(tiler)(rows)
    answers = [
        ["Sure, [SEG]."] * 3,
        ["Here: <p> the left </p> [SEG] and [SEG]", "Not at all."],
        ["A small tube."],
        ["Sure, [SEG]."] * 2,
    ]
    for ids, labels, expected in zip(batch["input_ids"], batch["labels"], answers, strict=True):
        assert supervised(tiler, ids, labels) == [answer + END for answer in expected]


def test_typed_parts_of_messages_are_the_same_as_text(tiler):
    def told(content):
        messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "[SEG]"}]
        return {"image": colour(1), "masks": still()["masks"], "messages": messages, "sample_id": "told"}

    plain = SegCollator(tiler)([told("Find it.")])
    for content in ("<image>\nFind it.", [{"type": "image"}, {"type": "text", "text": "Find it."}]):
        assert equal(SegCollator(tiler)([told(content)]), plain)


@settings(deadline=None, max_examples=30)
@given(phrase=st.text(st.characters(codec="utf-8", exclude_characters="[<"), min_size=1, max_size=12))
def test_any_phrase_reaches_the_prompt_unchanged(tiler, phrase):
    if not phrase.strip():
        return
    batch = SegCollator(tiler)([still(phrases=[phrase])])
    assert row_texts(tiler, batch)[0].endswith(
        f"\nPlease segment the {phrase}.<|im_end|>\n<|im_start|>assistant\nSure, [SEG].<|im_end|>"
    )
    assert (batch["input_ids"] == tiler.seg_token_id).sum() == 1


# Templates


def many(tiler, **options):
    return SegCollator(tiler, questions=MANY_QUESTIONS, answers=MANY_ANSWERS, **options)


def numbered(count):
    return [still(2, 1, row_index=number, sample_id=f"id-{number}") for number in range(count)]


def drawn(processor, batch):
    """For each row, which question and answer each of its two objects got."""
    found = []
    for text in row_texts(processor, batch):
        exchanges = text.split("<|im_start|>user\n")[1:]
        assert len(exchanges) == 2
        row = []
        for number, exchange in enumerate(exchanges):
            question, answer = exchange.split(f"{END}\n<|im_start|>assistant\n")
            question = question.split("</img>\n")[-1]
            question = [entry.replace("{phrase}", f"vessel {number}") for entry in MANY_QUESTIONS].index(question)
            row.append((question, MANY_ANSWERS.index(answer.strip().removesuffix(END))))
        found.append(tuple(row))
    return found


def test_templates_are_drawn_from_those_given(tiler):
    found = drawn(tiler, many(tiler)(numbered(40)))
    pairs = {pair for row in found for pair in row}
    assert pairs == {(question, answer) for question in range(3) for answer in range(4)}
    assert any(first != second for first, second in found)  # one draw an object, not one a row


def test_templates_depend_on_seed_epoch_and_row_alone(tiler):
    rows = numbered(12)
    reference = drawn(tiler, many(tiler)(rows))
    assert drawn(tiler, many(tiler)(rows)) == reference
    assert drawn(tiler, many(tiler, seed=1)(rows)) != reference
    assert drawn(tiler, many(tiler, epoch=1)(rows)) != reference
    assert len(set(reference)) > 6  # rows differ
    collator = many(tiler)
    collator.epoch = 1
    collator(rows)
    later = drawn(tiler, collator(rows))
    assert later == drawn(tiler, many(tiler, epoch=1)(rows))
    collator.epoch = 0
    assert drawn(tiler, collator(rows)) == reference


def test_seed_and_epoch_are_not_interchangeable(tiler):
    rows = numbered(12)
    assert drawn(tiler, many(tiler, seed=1)(rows)) != drawn(tiler, many(tiler, epoch=1)(rows))


def test_row_index_decides_and_sample_id_stands_in(tiler):
    collator, rows = many(tiler), numbered(12)
    reference = drawn(tiler, collator(rows))
    renamed = [{**row, "sample_id": f"other-{number}"} for number, row in enumerate(rows)]
    assert drawn(tiler, collator(renamed)) == reference
    anonymous = [{**row, "row_index": None} for row in rows]
    named = drawn(tiler, collator(anonymous))
    assert named == drawn(tiler, collator([{key: row[key] for key in row if key != "row_index"} for row in rows]))
    assert len(set(named)) > 6
    assert named[::-1] == drawn(tiler, collator(anonymous[::-1]))


# Where randomness comes from


def global_state():
    return random.getstate(), repr(np.random.get_state()), torch.get_rng_state().tolist()


def test_the_global_random_state_is_neither_read_nor_changed(tiler):
    collator, rows, batches = many(tiler, augmentation=MOVING), [*numbered(3), clip(), text_only()], []
    for seed in (0, 1):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        before = global_state()
        batches.append(collator(rows))
        assert global_state() == before
    assert equal(*batches)


@settings(deadline=None, max_examples=8)
@given(order=st.permutations(range(5)))
def test_a_row_does_not_depend_on_its_place_in_the_batch(tiler, order):
    rows = numbered(5)
    collator = many(tiler, augmentation=MOVING)
    straight, mixed = collator(rows), collator([rows[number] for number in order])
    assert torch.equal(mixed["grounding_pixel_values"], straight["grounding_pixel_values"][list(order)])
    assert torch.equal(mixed["masks"].unflatten(0, (5, 2)), straight["masks"].unflatten(0, (5, 2))[list(order)])
    texts = row_texts(tiler, straight)
    assert row_texts(tiler, mixed) == [texts[number] for number in order]
    alone = collator([rows[2]])
    assert row_texts(tiler, alone) == [texts[2]]
    assert torch.equal(alone["masks"], straight["masks"][4:6])


def test_rows_are_left_as_they_were(tiler):
    rows = [still(2, 1), clip(3, 2), text_only()]
    before = copy.deepcopy(rows)
    many(tiler, augmentation=MOVING)(rows)
    assert before == rows  # Pillow compares pixels


# Augmentation


def test_augmentation_depends_on_seed_epoch_and_row_alone(tiler):
    rows = numbered(4)
    reference = SegCollator(tiler, augmentation=MOVING)(rows)
    assert equal(SegCollator(tiler, augmentation=MOVING)(rows), reference)
    for options in ({"seed": 1}, {"epoch": 1}):
        other = SegCollator(tiler, augmentation=MOVING, **options)(rows)
        assert (other["masks"] != reference["masks"]).flatten(1).any(1).all()
    # The rows hold the same masks; each is moved in its own way.
    assert len({mask.numpy().tobytes() for mask in reference["masks"][::2]}) == 4
    plain = SegCollator(tiler)(rows)
    assert len({mask.numpy().tobytes() for mask in plain["masks"][::2]}) == 1


def test_augmented_masks_stay_on_their_image(tiler):
    shape = np.zeros((GRID, GRID), np.uint8)
    shape[6:22, 5:14] = shape[15:22, 5:26] = 1
    mask = magnified(shape, 4, 6)
    row = still(masks=[mask], image=mask.convert("RGB"))
    collator = SegCollator(tiler, augmentation=MOVING, mask_size=128)
    moved = 0
    for epoch in range(10):
        collator.epoch = epoch
        batch = collator([row])
        grey = batch["grounding_pixel_values"][0, 0] * STD[0] + MEAN[0]
        seen = batch["masks"][0].bool()
        assert ((grey > 0.5) != seen).float().mean() < 0.02
        assert np.array_equal(batch["original_masks"][0].shape, (1, 128, 192))
        moved += bool((seen != torch.from_numpy(np.kron(shape, np.ones((4, 4)))).bool()).float().mean() > 0.05)
    assert moved >= 8


def test_a_clip_is_augmented_as_one(tiler):
    mask = magnified(patterns(1)[0])
    row = {**clip(3, 2), "images": [mask.convert("RGB")] * 3, "masks": [mask] * 6}
    batch = SegCollator(tiler, augmentation=Augmentation(rotation=45, gamma=1, contrast=0.5))([row])
    assert (batch["masks"] == batch["masks"][:1]).all() and not np.array_equal(
        batch["masks"][0].numpy(), patterns(1)[0]
    )
    assert (batch["grounding_pixel_values"] == batch["grounding_pixel_values"][:1]).all()


# Refusals


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"masks": still(1)["masks"]}, "fewer masks than phrases: 1 masks, 2 phrases"),
        ({"masks": still(3)["masks"]}, "more masks than phrases: 3 masks, 2 phrases"),
        ({"phrases": ["vessel", " "]}, "phrase 1 is missing or empty"),
        ({"phrases": ["vessel", "the [SEG]"]}, r"phrase 1 holds the reserved token \[SEG\]"),
        ({"image": None}, "has no image"),
        ({"mask": still()["masks"][0]}, "keep one"),
        ({"phrases": None, "messages": [{"role": "assistant", "content": "[SEG]"}]}, "malformed"),
        ({"phrases": None, "messages": text_only()["messages"]}, "more masks than"),
    ],
)
def test_malformed_rows_are_named(tiler, change, reason):
    with pytest.raises(DatasetError, match=f"'row-7'.*{reason}"):
        SegCollator(tiler)([still(2), {**still(2), "sample_id": "row-7", **change}])


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"phrases": ["<image> of", "a vessel"]}, id="phrase"),
        pytest.param({"phrases": ["vessel", "<IMG_CONTEXT>"]}, id="image token"),
        pytest.param(
            {
                "phrases": None,
                "masks": None,
                "image": None,
                "messages": [{"role": "user", "content": "<image>?"}, {"role": "assistant", "content": "No."}],
            },
            id="no image",
        ),
    ],
)
def test_rows_with_placeholders_in_their_text_are_named(tiler, change):
    with pytest.raises(DatasetError, match="'row-7'"):
        SegCollator(tiler)([{**still(2), "sample_id": "row-7", **change}])


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ([{"type": "image"}, {"type": "text", "text": "<image> Where?"}], "And?"),
        ("<image> Where?", [{"type": "image"}, {"type": "text", "text": "And?"}]),
        ([{"type": "video"}, {"type": "text", "text": "Where?"}], "And?"),
    ],
)
def test_parts_that_the_processor_refuses_are_refused_with_their_row(tiler, first, second):
    turns = [("user", first), ("assistant", "[SEG]"), ("user", second), ("assistant", "[SEG]")]
    row = still(2, phrases=None, messages=[{"role": role, "content": content} for role, content in turns])
    with pytest.raises(DatasetError, match="'still-0' cannot be used: messages is malformed"):
        SegCollator(tiler)([row])
    # The image has its place in any turn of the user, and nowhere else.
    for place, faulty in ((0, False), (2, False), (1, True)):
        turns = [("user", "Where?"), ("assistant", "[SEG]"), ("user", "And?"), ("assistant", "[SEG]")]
        turns[place] = (turns[place][0], [{"type": "image"}, {"type": "text", "text": turns[place][1]}])
        row["messages"] = [{"role": role, "content": content} for role, content in turns]
        if not faulty:
            SegCollator(tiler)([row])
            continue
        with pytest.raises(DatasetError, match=r"message 1 \(assistant\); it may stand in user turns alone"):
            SegCollator(tiler)([row])


# Every row is checked


def deep(size=(192, 64)):
    return Image.fromarray(np.full(size[::-1], 3000, np.uint16))


BAD_ROWS = [
    ({"image": deep()}, "image 0 has more than 8 bits a channel"),
    ({"masks": [Image.new("L", (64, 192), 255)]}, "mask 0 is 64 x 192, its image 192 x 64"),
    ({"masks": [Image.new("L", (192, 64), 7)]}, "mask 0 is not binary: values 7"),
    ({"masks": []}, "fewer masks than phrases"),
    ({"phrases": ["one", "other"]}, "fewer masks than phrases"),
    ({"image": np.zeros((64, 192, 3), np.float32)}, "image is an array of float32"),
    ({"chosen_mask": Image.new("L", (192, 64))}, "rejected_mask is missing"),
    ({name: Image.new("L", (192, 64)) for name in ("chosen_mask", "rejected_mask")}, "are equal"),
    (
        {"chosen_mask": Image.new("L", (192, 64)), "rejected_mask": Image.new("L", (64, 192), 255)},
        "rejected_mask is 64 x 192, its image 192 x 64",
    ),
]


@pytest.mark.parametrize(("changed", "reason"), BAD_ROWS)
def test_a_bad_row_is_named_among_good_ones(tiler, changed, reason):
    collator = SegCollator(tiler)
    collator([still(seed=0), still(seed=1)])
    with pytest.raises(DatasetError, match="'bad-2' cannot be used: ") as caught:
        collator([still(seed=0), still(seed=1), {**still(seed=2, name="bad"), **changed}])
    assert reason in str(caught.value)


def test_frames_of_a_clip_have_one_size(tiler):
    row = clip(3, 1)
    row["images"][2] = row["images"][2].resize((64, 64))
    with pytest.raises(DatasetError, match="'clip-0' cannot be used: frames of a clip differ in size"):
        SegCollator(tiler)([row])


@pytest.mark.parametrize("workers", [0, 2])
def test_data_workers_tell_which_row_is_bad(tiler, workers):
    rows = [still(seed=number) for number in range(4)]
    rows[3]["masks"] = [Image.new("L", (192, 64), 9)]
    loader = DataLoader(rows, batch_size=2, collate_fn=SegCollator(tiler), num_workers=workers)
    batches = iter(loader)
    assert len(next(batches)["masks"]) == 2
    with pytest.raises(DatasetError, match="'still-3' cannot be used: mask 0 is not binary: values 9"):
        next(batches)


def preferred(chosen, rejected, **columns):
    """A row whose own mask is full, with masks of which so many columns are full."""
    drawn = [np.arange(192) < width for width in (chosen, rejected)]
    masks = [Image.fromarray(np.broadcast_to(255 * row.astype(np.uint8), (64, 192)).copy()) for row in drawn]
    names = ("chosen_mask", "rejected_mask")
    full = Image.new("L", (192, 64), 255)
    return {**still(), "masks": [full], **dict(zip(names, masks, strict=True)), **columns}


def test_pairs_the_wrong_way_round_are_taken_only_where_they_are_allowed(tiler):
    strict = SegCollator(tiler, allow_worse=False)
    assert strict([preferred(192, 10)])["chosen_masks"].float().mean() == 1
    with pytest.raises(DatasetError, match="'still-0' .* worse than the rejected one .chosen 0.0[0-9]+, rejected 1"):
        strict([preferred(10, 192)])
    SegCollator(tiler)([preferred(10, 192)])
    # By the rewards that the pair was made for, where the row has them.
    strict([preferred(10, 192, chosen_reward=0.9, rejected_reward=0.1)])
    with pytest.raises(DatasetError, match="chosen 0.1000, rejected 0.9000"):
        strict([preferred(192, 10, chosen_reward=0.1, rejected_reward=0.9)])


def test_a_pair_is_asked_for_read_or_left_alone(tiler):
    with pytest.raises(DatasetError, match="'still-0' .* are missing"):
        SegCollator(tiler, with_pairs=True)([still(chosen_mask=None, rejected_mask=None)])
    assert "chosen_masks" not in SegCollator(tiler)([still(chosen_mask=None, rejected_mask=None)])
    assert "chosen_masks" not in SegCollator(tiler, with_pairs=False)([preferred(192, 10)])
    with pytest.raises(DatasetError, match="has 2 masks; pairs are of one object"):
        SegCollator(tiler)([preferred(192, 10, masks=still(2)["masks"], phrases=["a", "b"])])
    film = {**clip(3, 1), **{name: preferred(192, 10)[name] for name in ("chosen_mask", "rejected_mask")}}
    with pytest.raises(DatasetError, match="has 3 images; pairs are of one"):
        SegCollator(tiler)([film])
