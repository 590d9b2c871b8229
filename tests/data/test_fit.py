import pytest
from collator_rows import MANY_ANSWERS, MANY_QUESTIONS, clip, colour, still, text_only
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image
from rows import FEATURES

from sa2va_trl.data.collator import SegCollator
from sa2va_trl.data.fit import check_fit
from sa2va_trl.data.prompts import conversation
from sa2va_trl.errors import DatasetError
from sa2va_trl.models.tiny import tiny_sa2va


def saved(rows):
    features = Features({**FEATURES, "phrase": Value("string")})
    return Dataset.from_list([{name: row.get(name) for name in features} for row in rows], features=features)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_a_strip_is_named_before_and_while_training(family):
    collator = SegCollator(tiny_sa2va(image_size=128, family=family)[1])
    strip = still(name="strip", image=colour(0, (1300, 6)), masks=[Image.new("L", (1300, 6), 255)])
    with pytest.raises(
        DatasetError, match=r"1 of 3 rows do not fit the model:\n  row 1, sample_id 'strip-0': an image"
    ):
        check_fit(saved([still(seed=1), strip, still(seed=2)]), collator)
    with pytest.raises(DatasetError, match="'strip-0' cannot be used: an image of 1300 x 6 pixels"):
        collator([still(seed=1), strip])


def test_internvl_takes_a_strip(tiler):
    strip = still(name="strip", image=colour(0, (1300, 6)), masks=[Image.new("L", (1300, 6), 255)])
    check_fit(saved([strip]), SegCollator(tiler))


@pytest.mark.parametrize("family", ["internvl", "qwen2_5_vl", "qwen3_vl"])
def test_the_length_of_a_row_is_that_of_its_tokens(family):
    processor = tiny_sa2va(image_size=128, max_patches=4, family=family)[1]
    rows = [still(), still(2, 1), clip(3, 2), text_only(), still(1, 3, image=colour(3, (40, 60)))]
    rows[4]["masks"] = [Image.new("L", (40, 60))]
    for row in rows:
        batch = SegCollator(processor)([row])
        length = batch["input_ids"].shape[1]
        check_fit(saved([row]), SegCollator(processor, max_length=length))
        SegCollator(processor, max_length=length)([row])
        with pytest.raises(DatasetError, match=f"needs {length:,} tokens, the model has {length - 1:,} positions"):
            check_fit(saved([row]), SegCollator(processor, max_length=length - 1))
        with pytest.raises(DatasetError, match=f"'{row['sample_id']}' cannot be used: needs {length:,} tokens"):
            SegCollator(processor, max_length=length - 1)([row])


def test_the_longest_templates_count(tiler):
    options = {"questions": MANY_QUESTIONS, "answers": MANY_ANSWERS}
    row = still(2)
    longest = max(
        SegCollator(tiler, questions=[question], answers=[answer])([row])["input_ids"].shape[1]
        for question in MANY_QUESTIONS
        for answer in MANY_ANSWERS
    )
    check_fit(saved([row]), SegCollator(tiler, max_length=longest, **options))
    with pytest.raises(DatasetError, match=f"needs {longest:,} tokens"):
        check_fit(saved([row]), SegCollator(tiler, max_length=longest - 1, **options))


def test_a_turned_picture_counts_as_it_is_seen(tmp_path):
    # At these sides the number of tiles depends on which is the width.
    processor = tiny_sa2va(image_size=128, max_patches=12)[1]
    sides = next(
        (563 + step, 1957)
        for step in range(200)
        if processor.num_image_tokens((563 + step, 1957)) != processor.num_image_tokens((1957, 563 + step))
    )
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.new("RGB", sides).save(tmp_path / "a.jpg", exif=exif)
    row = {**still(), "image": str(tmp_path / "a.jpg"), "masks": [Image.new("L", sides[::-1])]}
    features = Features({**FEATURES, "image": ImageFeature()})
    dataset = Dataset.from_list([{name: row.get(name) for name in features}], features=features)
    length = SegCollator(processor)([dataset[0]])["input_ids"].shape[1]
    check_fit(dataset, SegCollator(processor, max_length=length))
    with pytest.raises(DatasetError, match=f"needs {length:,} tokens"):
        check_fit(dataset, SegCollator(processor, max_length=length - 1))


def test_each_object_may_draw_its_own_longest_question(tiler):
    """Which question is the longest depends on the phrase: the bound is over all that may be drawn."""
    questions = ["{phrase} {phrase}", "{phrase} " + "and so on " * 6]
    row = still(2)
    row["phrases"] = ["a", "a long and winding vessel " * 6]
    options = {"questions": questions, "answers": MANY_ANSWERS}
    length, lengths = tiler.encode_chat, []
    for first in questions:
        for second in questions:
            for answers in [(one, other) for one in MANY_ANSWERS for other in MANY_ANSWERS]:
                chat = conversation(row["phrases"], [first, second], list(answers))
                lengths.append(len(length(chat, tiler.tiles([row["image"]], clip=False)[1])[0]))
    check_fit(saved([row]), SegCollator(tiler, max_length=max(lengths), **options))
    with pytest.raises(DatasetError, match=f"needs {max(lengths):,} tokens"):
        check_fit(saved([row]), SegCollator(tiler, max_length=max(lengths) - 1, **options))


def test_templates_are_not_multiplied(tiler, monkeypatch):
    calls, encode = [], type(tiler).encode_chat
    monkeypatch.setattr(type(tiler), "encode_chat", lambda self, *args: calls.append(1) or encode(self, *args))
    rows = [{**still(seed=number), "phrases": [f"vessel {number}"]} for number in range(5)]
    check_fit(saved(rows), SegCollator(tiler, questions=MANY_QUESTIONS, answers=MANY_ANSWERS))
    assert len(calls) <= len(MANY_ANSWERS) + len(rows) * (len(MANY_QUESTIONS) + 1)


def test_what_the_processor_refuses_names_the_row(tiler, monkeypatch):
    def refuse(self, *args):
        raise ValueError("no such text")

    monkeypatch.setattr(type(tiler), "encode_chat", refuse)
    with pytest.raises(DatasetError, match="row 0, sample_id 'still-0': no such text"):
        check_fit(saved([still()]), SegCollator(tiler))
    with pytest.raises(DatasetError, match="'still-0' cannot be used: no such text"):
        SegCollator(tiler)([still()])


def test_a_text_is_tokenised_once(tiler, monkeypatch):
    calls, encode = [], type(tiler).encode_chat
    monkeypatch.setattr(type(tiler), "encode_chat", lambda self, *args: calls.append(1) or encode(self, *args))
    check_fit(saved([{**still(seed=number), "phrases": ["vessel"]} for number in range(5)]), SegCollator(tiler))
    assert len(calls) == 1
