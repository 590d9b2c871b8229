import io
import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sa2va_trl.data import (
    SegCollator,
    check_dataset,
    load_dataset_dict,
    named_dataset,
    named_splits,
    structure_dataset,
)
from sa2va_trl.data.angiography import generate_video
from sa2va_trl.data.prompts import ANSWERS, QUESTIONS, conversation
from sa2va_trl.data.scenes import (
    NAMED_FEATURES,
    SHARES,
    STRUCTURE_FEATURES,
    _Interview,
    _present,
    least_pixels,
)
from sa2va_trl.data.structures import OPTIONAL, STRUCTURES
from sa2va_trl.data.synthetic import synthetic_dataset
from sa2va_trl.data.wording import HELD_OUT_PHRASES, HELD_OUT_QUESTIONS, ONE, PHRASES, is_plural
from sa2va_trl.models import Sa2VAProcessor


def answers(row):
    return " ".join(message["content"] for message in row["messages"] if message["role"] == "assistant")


def questions(row):
    return " ".join(message["content"] for message in row["messages"] if message["role"] == "user")


def structure_of(phrase):
    (found,) = [name for name, phrases in PHRASES.items() if phrase in phrases]
    return found


@pytest.fixture(scope="module")
def rows():
    """Of both hospitals, with what they were made of."""
    found = []
    for hospital in (1, 2):
        videos = [generate_video(8, number, 3, 128, "named", hospital) for number in range(4)]
        data = named_dataset(4, 3, size=128, seed=8, hospital=hospital, rows_per_frame=4)
        found += [(row, videos[int(row["video_id"][-4:])]) for row in data]
    return found


def interviews(there, missing, count=2500, seed=0, runs_to=None):
    """Conversations about a frame: kind, messages, structures, absent."""
    for number in range(count):
        interview = _Interview(np.random.default_rng([seed, number]), list(there), list(missing), runs_to)
        for kind in interview.kinds():
            yield kind, *interview(kind)


def test_rows_have_one_seg_a_mask_and_name_what_the_masks_show(rows):
    for row, video in rows:
        masks = [np.asarray(mask) for mask in row["masks"]]
        assert answers(row).count("[SEG]") == len(masks) == len(row["structures"])
        np.testing.assert_array_equal(np.asarray(row["image"]), video.frames[row["frame_index"]])
        for structure, mask in zip(row["structures"], masks, strict=True):
            np.testing.assert_array_equal(mask, video.structures[structure][row["frame_index"]] * 255)
            assert (mask > 0).sum() >= least_pixels(128)
        for structure in row["absent"]:
            assert not video.structures[structure][row["frame_index"]].any()
        assert row["hard"] == video.hard[row["frame_index"]]
    assert {row["kind"] for row, _ in rows} == {kind for kind, share in SHARES.items() if share}


def test_a_caption_names_its_structure_right_behind_its_seg():
    data = named_dataset(4, 4, size=128, seed=2, shares={"caption": 1}, structures=["blood vessel", "diaphragm"])
    assert len(data) == 16 and set(data["kind"]) == {"caption"}
    assert {structure for row in data["structures"] for structure in row} == {"blood vessel", "diaphragm"}
    for row in data:
        (structure,), answer = row["structures"], answers(row)
        phrase = answer.removeprefix("[SEG] ").removesuffix(".")
        assert phrase in PHRASES[structure] and questions(row) == f"Segment and name the {phrase}."


def test_rows_of_some_structures_ask_for_no_other():
    data = named_dataset(4, 4, size=128, seed=2, structures=["catheter", "diaphragm"])
    assert {name for row in (*data["structures"], *data["absent"]) for name in row} == {"catheter", "diaphragm"}


def test_tagged_phrases_are_of_the_structure_of_their_mask(rows):
    tagged = 0
    for row, _ in rows:
        phrases = [
            phrase
            for message in row["messages"]
            if message["role"] == "assistant"
            for phrase in Sa2VAProcessor.phrases(None, message["content"])
        ]
        for phrase, structure in zip(phrases, row["structures"], strict=True):
            if phrase is not None:
                assert phrase in PHRASES[structure]
                assert f"the {phrase}" in questions(row)
                tagged += 1
    assert tagged > 10


def test_the_kinds_are_what_they_say(rows):
    for row, _ in rows:
        kind, answer, masks = row["kind"], answers(row), len(row["masks"])
        if kind == "plain":
            phrases = [phrase for phrase in PHRASES[row["structures"][0]] if f"the {phrase}." in questions(row)]
            assert row["messages"] == conversation(phrases, QUESTIONS, ANSWERS)
        assert (masks, len(row["absent"])) in {
            "plain": [(1, 0)],
            "one": [(1, 0)],
            "several": [(2, 0), (3, 0)],
            "absent": [(0, 1)],
            "mixed": [(1, 1)],
            "question": [(0, 0), (0, 1)],
        }[kind]
        if kind == "several":
            assert len(set(row["structures"])) == masks
        if kind in ("absent", "mixed"):
            (structure,) = row["absent"]
            assert any(f"There is no {phrase}." in answer for phrase in PHRASES[structure])
        if kind == "question":
            assert answer.startswith(("Yes", "No", "To the left.", "To the right."))
            assert answer.startswith("No") == bool(row["absent"])


def test_what_is_not_there_is_refused_in_the_usual_words_too():
    said = Counter()
    for kind, messages, structures, _ in interviews(["blood vessel"], OPTIONAL, 300):
        if kind == "absent":
            assert not structures and "[SEG]" not in messages[1]["content"]
            said[messages[0]["content"]] += 1
    for structure in OPTIONAL:
        assert said[f"Please segment the {structure}."] > 10


def test_every_word_is_used_and_none_that_is_held_out():
    asked, forms, kinds = Counter(), Counter(), Counter()
    for kind, messages, _, _ in interviews(STRUCTURES, [], runs_to="left"):
        if kind == "one":
            question = messages[0]["content"]
            phrase = max((p for p in itertools.chain(*PHRASES.values()) if p in question), key=len)
            asked[phrase] += 1
            forms[question.replace(phrase, "{phrase}").replace(" are ", " {is} ").replace(" is ", " {is} ")] += 1
        kinds[kind] += 1
    assert set(asked) == {phrase for phrases in PHRASES.values() for phrase in phrases}
    assert set(forms) == {question for question, _ in ONE[1:]}
    assert set(kinds) == set(SHARES) - {"absent", "mixed"}


def test_held_out_words_are_others_and_no_phrase_means_two_things():
    known = [phrase for phrases in PHRASES.values() for phrase in phrases]
    held_out = [phrase for phrases in HELD_OUT_PHRASES.values() for phrase in phrases]
    assert len({*known, *held_out}) == len(known) + len(held_out)
    assert list(PHRASES) == list(HELD_OUT_PHRASES) == list(STRUCTURES)
    assert [phrases[0] for phrases in PHRASES.values()] == list(STRUCTURES)
    assert not {*HELD_OUT_QUESTIONS} & {question for question, _ in ONE}
    assert ONE[0] == (QUESTIONS[0], ANSWERS[0])
    assert {phrase for phrase in known if is_plural(phrase)} == {
        phrase for phrase in known if phrase.split(" of ")[0].endswith(("s", "es")) and not phrase.endswith("stenosis")
    }


def test_questions_and_answers_agree_in_number():
    for _, messages, _, _ in interviews(set(STRUCTURES) - set(OPTIONAL), OPTIONAL, 400, runs_to="right"):
        for message in messages:
            text = message["content"]
            for phrase in itertools.chain(*PHRASES.values()):
                wrong = ("is", "It is") if is_plural(phrase) else ("are", "They are")
                assert f"Where {wrong[0]} the {phrase}?" not in text
                assert text != f"{wrong[1]} <p> {phrase} </p> [SEG]."
                assert f"There {wrong[0]} no {phrase}" not in text


def test_a_structure_of_a_few_pixels_is_neither_asked_for_nor_said_to_be_missing():
    masks = {name: np.zeros((1, 64, 64), dtype=np.uint8) for name in STRUCTURES}
    masks["blood vessel"][:] = 1
    masks["catheter"][0, 0, : least_pixels(64) - 1] = 1
    masks["diaphragm"][0, 0, : least_pixels(64)] = 1
    assert _present(masks, 0) == (["blood vessel", "diaphragm"], ["narrowing"])
    for _, messages, _, _ in interviews(*_present(masks, 0), count=100):
        assert not any("catheter" in message["content"] for message in messages)
    assert [least_pixels(size) for size in (32, 256, 512)] == [4, 26, 105]


def test_the_shares_hold_where_every_kind_can_be_asked():
    data = named_dataset(6, 2, size=64, seed=1, rows_per_frame=30, shares={"plain": 3, "several": 1})
    assert len(data) == 360
    assert abs(Counter(data["kind"])["several"] / 360 - 0.25) < 0.08


def test_a_frame_that_cannot_be_asked_has_no_row():
    options = {"num_videos": 4, "frames_per_video": 2, "size": 64, "seed": 2}
    data = named_dataset(shares={"absent": 1}, **options)
    lacking = [
        f"h1_v{number:04d}_f{index:03d}_r0"
        for number in range(4)
        for index in range(2)
        if _present(generate_video(2, number, 2, 64, "named").structures, index)[1]
    ]
    assert data["sample_id"] == lacking and set(data["kind"]) == {"absent"}
    assert not any(data["masks"])


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 2**40), hospital=st.sampled_from([1, 2]), first=st.integers(0, 50), more=st.integers(1, 2))
def test_rows_depend_on_the_seed_alone_and_pass_the_checks(seed, hospital, first, more):
    options = {"frames_per_video": 2, "size": 48, "seed": seed, "hospital": hospital}
    some = named_dataset(1, first_video=first, **options)
    again = named_dataset(1 + more, first_video=first, rows_per_frame=1, **options)
    wide = named_dataset(1, first_video=first, rows_per_frame=1 + more, **options)
    for other in (again, wide):
        shared = {row["sample_id"]: row for row in other.to_list()}
        assert all(shared[row["sample_id"]] == row for row in some.to_list())
    assert some.features == NAMED_FEATURES
    check_dataset(wide)


def test_rows_for_evaluation():
    data = structure_dataset(2, 2, size=96, seed=3, hospital=2)
    check_dataset(data)
    assert data.features == STRUCTURE_FEATURES and set(synthetic_dataset(1, 1, 32).column_names) < set(
        data.column_names
    )
    expected = []
    for number in range(2):
        video = generate_video(3, number, 2, 96, "named", 2)
        for index in range(2):
            for name, masks in video.structures.items():
                if masks[index].sum() >= least_pixels(96):
                    expected.append((f"h2_v{number:04d}_f{index:03d}_{name.replace(' ', '_')}", name, masks[index]))
    assert data["sample_id"] == [identifier for identifier, _, _ in expected]
    for row, (_, name, mask) in zip(data, expected, strict=True):
        assert row["phrase"] == row["structure"] == name
        np.testing.assert_array_equal(np.asarray(row["mask"]), mask * 255)


@pytest.mark.parametrize(("wording", "words"), [("varied", PHRASES), ("held_out", HELD_OUT_PHRASES)])
def test_rows_for_evaluation_in_other_words(wording, words):
    options = {"num_videos": 2, "frames_per_video": 4, "size": 64, "structures": ["side branches", "blood vessel"]}
    data, usual = structure_dataset(wording=wording, **options), structure_dataset(**options)
    assert data["sample_id"] == usual["sample_id"] and set(data["structure"]) == set(options["structures"])
    assert all(phrase in words[name] for phrase, name in zip(data["phrase"], data["structure"], strict=True))
    assert len(set(data["phrase"])) > 3


def test_a_batch_of_every_kind_has_one_seg_a_mask(tiler, rows):
    batch_rows = [next(row for row, _ in rows if row["kind"] == kind) for kind, share in SHARES.items() if share]
    batch = SegCollator(tiler)(batch_rows)
    counts = [len(row["masks"]) for row in batch_rows]
    seg = tiler.tokenizer.convert_tokens_to_ids("[SEG]")
    assert (batch["input_ids"] == seg).sum(dim=1).tolist() == counts and 0 in counts
    assert len(batch["masks"]) == sum(counts)
    # A batch without a mask is one, too.
    assert len(SegCollator(tiler)([row for row in batch_rows if not row["masks"]])["masks"]) == 0


@pytest.mark.parametrize("kind", ["conversations", "structures"])
def test_splits_share_no_patient_and_a_larger_training_set_leaves_the_others(kind):
    options = {"validation_videos": 1, "test_videos": 3, "frames_per_video": 1, "size": 48, "rows": kind}
    small, large = named_splits(train_videos=1, **options), named_splits(train_videos=3, **options)
    for column in ("video_id", "patient_id", "sample_id"):
        values = [set(split[column]) for split in large.values()]
        assert len(set.union(*values)) == sum(map(len, values))
    for split in ("validation", "test"):
        assert small[split].to_list() == large[split].to_list()
    assert large["train"].to_list()[: len(small["train"])] == small["train"].to_list()


def test_both_kinds_of_rows_have_the_same_videos_in_a_split():
    options = {"train_videos": 2, "validation_videos": 1, "test_videos": 1, "frames_per_video": 1, "size": 48}
    talk, plain = (named_splits(rows=kind, **options) for kind in ("conversations", "structures"))
    for split in talk:
        assert set(talk[split]["video_id"]) == set(plain[split]["video_id"])


def test_named_scenes_are_loaded_by_the_options_of_synthetic():
    options = {"train_videos": 1, "validation_videos": 1, "test_videos": 1, "frames_per_video": 1, "size": 48}
    data = load_dataset_dict("synthetic", scene="named", hospital=2, seed=4, **options)
    assert data["train"].to_list() == named_splits(hospital=2, seed=4, **options)["train"].to_list()
    assert Image.open(io.BytesIO(data["test"].data.column("image")[0]["bytes"].as_py())).size == (48, 48)
    plain = load_dataset_dict("synthetic", scene="plain", **options)
    assert plain["train"].to_list() == load_dataset_dict("synthetic", **options)["train"].to_list()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scene": "odd"}, "`scene` must be one of plain, named"),
        ({"videos": 3}, "scene 'plain' has no videos; it has train_videos"),
        ({"hospital": 2}, "scene 'plain' has no hospital"),
        ({"scene": "named", "videos": 3}, "rows 'conversations' has no videos; it has .*hospital"),
        ({"scene": "named", "num_videos": 3}, "has no num_videos"),
        ({"scene": "named", "structures": ["cat"]}, "`structures` must be some of blood vessel"),
        ({"scene": "named", "rows": "structures", "shares": {"one": 1}}, "rows 'structures' has no shares"),
        ({"scene": "named", "rows": "all"}, "`rows` must be one of conversations, structures"),
        ({"scene": "named", "hospital": 3}, "`hospital` must be one of 1, 2"),
        ({"scene": "named", "size": 31}, "`size` must be"),
        ({"scene": "named", "seed": -1}, "`seed` must be"),
        ({"scene": "named", "frames_per_video": 0}, "`frames_per_video` must be"),
        ({"scene": "named", "rows_per_frame": 0}, "`rows_per_frame` must be"),
        ({"scene": "named", "test_videos": 0}, "`test_videos` must be"),
        ({"scene": "named", "videos_per_patient": 0}, "`videos_per_patient` must be"),
        ({"scene": "named", "shares": {"two": 1}}, "`shares` must be numbers by plain"),
        ({"scene": "named", "shares": {"one": 0}}, "`shares` must not be negative"),
        ({"scene": "named", "shares": {"one": float("nan")}}, "`shares` must not be negative"),
        ({"scene": "named", "rows": "structures", "structures": ["cat"]}, "`structures` must be some of blood vessel"),
        ({"scene": "named", "rows": "structures", "structures": "catheter"}, "`structures` must be some of"),
        ({"scene": "named", "rows": "structures", "wording": "odd"}, "`wording` must be one of usual"),
        ({"scene": "named", "phrase": "artery"}, "phrase has no effect"),
    ],
)
def test_options_that_there_are_not_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        load_dataset_dict("synthetic", **options)


def test_no_row_at_all_is_said():
    options = {"num_videos": 1, "frames_per_video": 1, "size": 32}
    seed = next(s for s in range(40) if not generate_video(s, 0, 1, 32, "named").structures["catheter"].any())
    with pytest.raises(ValueError, match="gives no row"):
        structure_dataset(structures=["catheter"], seed=seed, **options)
    seed = next(s for s in range(200) if not _present(generate_video(s, 0, 1, 64, "named").structures, 0)[1])
    with pytest.raises(ValueError, match="gives no row"):
        named_dataset(1, 1, 64, seed=seed, shares={"absent": 1})
