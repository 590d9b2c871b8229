import logging
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, List, Value, load_dataset
from datasets import Image as ImageFeature
from encoded_rows import true_dice
from PIL import Image

from sa2va_trl.data import DatasetError, check_dataset, load_dataset_dict
from sa2va_trl.evaluation import predict_probabilities, stored_features
from sa2va_trl.preferences.dataset import build_preferences, check_preferences, one_object_a_row, save_preferences
from sa2va_trl.rewards import WeightedReward
from sa2va_trl.sampling import MaskSampler


# Pairs of a dataset


def build(rows, network, **options):
    return build_preferences(rows, *network, progress=False, **{"min_gap": 0, **options})


def array(mask):
    return (np.asarray(mask) > 0).astype(np.uint8)


def test_a_dataset_of_pairs(network, rows):
    pairs = build(rows, network)
    check_dataset(pairs)
    assert pairs.column_names == [
        *rows.column_names,
        *("chosen_mask", "rejected_mask", "chosen_reward", "rejected_reward", "pair_kind"),
    ]
    assert {name: pairs.features[name] for name in rows.features} == dict(rows.features)
    assert pairs.features["chosen_mask"] == pairs.features["rejected_mask"] == ImageFeature(mode="L")
    assert pairs["sample_id"] == rows["sample_id"]
    predictions = predict_probabilities(*network, rows, progress=False)
    for row, pair, (_, probabilities) in zip(rows, pairs, predictions, strict=True):
        assert pair["pair_kind"] == "ground_truth_vs_greedy"
        assert np.asarray(pair["image"]).tobytes() == np.asarray(row["image"]).tobytes()
        assert set(np.unique(pair["rejected_mask"])) <= {0, 255} and pair["rejected_mask"].mode == "L"
        assert np.array_equal(array(pair["chosen_mask"]), array(row["mask"]))
        assert np.array_equal(array(pair["rejected_mask"]), probabilities[0] > 0.5)
        assert pair["chosen_reward"] == 1
        assert pair["rejected_reward"] == true_dice(array(pair["rejected_mask"]), array(row["mask"]))


def test_all_combinations_are_made_and_named(network, rows):
    pairs = build(rows, network, chosen=["ground_truth", "stitched"], rejected=["greedy", "worst", "eroded"])
    check_dataset(pairs)  # among others: every sample_id once
    kinds = {
        f"{better}_vs_{worse}" for better in ("ground_truth", "stitched") for worse in ("greedy", "worst", "eroded")
    }
    assert set(pairs["pair_kind"]) == kinds and len(pairs) == 6 * len(rows)
    for pair in pairs:
        assert pair["sample_id"].endswith(f":{pair['pair_kind']}")
        assert pair["sample_id"].split(":")[0] == f"{pair['video_id']}_f{pair['frame_index']:03d}"
        assert pair["chosen_reward"] == true_dice(array(pair["chosen_mask"]), array(pair["mask"]))
        assert pair["rejected_reward"] == true_dice(array(pair["rejected_mask"]), array(pair["mask"]))


def test_batch_size_does_not_matter_and_seeds_do(network, rows):
    state = torch.get_rng_state(), np.random.get_state()[1].copy()
    options = {"chosen": ["ground_truth", "best"], "rejected": ["worst", "corrupted"], "allow_worse": True}
    sampler = MaskSampler(embedding_noise=0.5, tokens=False, thresholds=(0.497, 0.503))
    one, four = (build(rows, network, batch_size=size, sampler=sampler, **options) for size in (1, 4))
    assert one["sample_id"] == four["sample_id"]
    np.testing.assert_allclose(one["rejected_reward"], four["rejected_reward"], atol=0.01)
    other = build(rows, network, batch_size=4, sampler=sampler, seed=1, **options)
    for kind in ("ground_truth_vs_worst", "ground_truth_vs_corrupted"):
        masks = [
            [array(pair["rejected_mask"]).tobytes() for pair in pairs if pair["pair_kind"] == kind]
            for pairs in (four, other)
        ]
        assert masks[0] != masks[1]
    assert torch.equal(torch.get_rng_state(), state[0]) and np.array_equal(np.random.get_state()[1], state[1])


def test_a_larger_gap_keeps_fewer_pairs_and_the_message_counts_them(network, rows):
    spread = {"rejected": ["greedy", "broken_branch", "lost_branches", "dilated"]}
    for reward in ("dice", {"dice": 0.6, "cldice": 0.4}):
        everything = build(rows, network, reward=reward, **spread)
        gaps = np.array(everything["chosen_reward"]) - np.array(everything["rejected_reward"])
        for min_gap in (float(np.median(gaps)), float(gaps.max())):
            pairs = build(rows, network, reward=reward, min_gap=min_gap, **spread)
            assert len(pairs) == (gaps >= min_gap).sum() < len(everything) == 16
            assert set(pairs["sample_id"]) <= set(everything["sample_id"])
        with pytest.raises(DatasetError, match="None of 16 pairs") as error:
            build(rows, network, reward=reward, min_gap=1.01, **spread)
        table = {float(step): int(count) for step, count in re.findall(r"^  ([\d.]+) +(\d+)$", str(error.value), re.M)}
        assert table[0] == 16 and len(table) > 5 and len(set(table.values())) > 3
        assert table == {step: (gaps >= step).sum() for step in table}
    assert (
        build(rows, network, reward=WeightedReward({"dice": 1}))["rejected_reward"]
        == build(rows, network)["rejected_reward"]
    )


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_in_evaluation_mode_afterwards(tiny, rows, training):
    model, _ = tiny
    model.train(training)
    build(rows.select([0]), tiny)
    assert not any(module.training for module in model.modules())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_pairs_the_wrong_way_round_are_counted_and_left_out(network, rows, caplog):
    # The random model's best mask is far worse than a mask that is a little too wide.
    options = {"chosen": "best", "rejected": "dilated", "min_gap": 0.05}
    with caplog.at_level(logging.WARNING, logger="sa2va_trl"), pytest.raises(DatasetError, match="4 a chosen mask"):
        build(rows, network, **options)
    assert "4 of 4 pairs have a chosen mask that is worse" in caplog.text
    allowed = build(rows, network, allow_worse=True, **options)
    assert len(allowed) == 4
    assert all(pair["rejected_reward"] - pair["chosen_reward"] >= 0.05 for pair in allowed)


def test_equal_masks_are_no_pair(network, rows):
    blank = ImageFeature().encode_example(Image.new("L", (64, 64)))
    empty = rows.remove_columns("mask").add_column("mask", [blank] * 4, feature=ImageFeature(mode="L"))
    with pytest.raises(DatasetError, match="4 have two equal masks"):
        build(empty, network, rejected="dilated")


OBJECTS = Features(
    {
        "image": ImageFeature(),
        "images": List(ImageFeature()),
        "mask": ImageFeature(mode="L"),
        "masks": List(ImageFeature(mode="L")),
        "phrase": Value("string"),
        "phrases": List(Value("string")),
        "messages": List({"role": Value("string"), "content": Value("string")}),
        "sample_id": Value("string"),
    }
)


def stored(rows):
    return Dataset.from_list([{name: row.get(name) for name in OBJECTS} for row in rows], features=OBJECTS)


def square(start):
    mask = np.zeros((48, 56), dtype=np.uint8)
    mask[start : start + 20, start : start + 20] = 255
    return Image.fromarray(mask)


def dialogue(objects):
    turns = [("user", "Segment it."), ("assistant", "Sure, [SEG].")] * objects
    return [{"role": role, "content": content} for role, content in turns]


def test_pairs_from_stored_features_are_those_from_pixels(network, tmp_path):
    model, processor = network
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 56, 3), np.uint8))
    objects = {"masks": [square(0), square(9)], "phrases": ["a", "b"], "sample_id": "x"}
    rows = stored(
        [{"image": picture, **objects}, {"image": picture, "mask": square(5), "phrase": "c", "sample_id": "y"}]
    )
    split = one_object_a_row(rows)
    features = stored_features(model, processor, split, "on", tmp_path, progress=False)
    options = {"rejected": ["greedy", "worst"], "sampler": MaskSampler(tokens=False)}
    expected, found = build(rows, network, **options), build(rows, network, features=features, **options)
    assert found["sample_id"] == expected["sample_id"] and len(found) > len(split)
    for one, other in zip(expected, found, strict=True):
        assert np.array_equal(one["rejected_mask"], other["rejected_mask"])
        assert one["rejected_reward"] == other["rejected_reward"]
    with pytest.raises(ValueError, match="one_object_a_row"):
        build(rows, network, features=(features[0], features[1][:-1]))


def test_every_object_becomes_a_row_with_its_phrase(network):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 56, 3), np.uint8))
    dataset = stored(
        [
            {
                "image": picture,
                "masks": [square(0), square(9), square(20)],
                "phrases": ["a", "b", "c"],
                "sample_id": "x",
            },
            {
                "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hi"}],
                "sample_id": "t",
            },
            {"image": picture, "mask": square(5), "phrase": "d", "sample_id": "y"},
            {"image": picture, "masks": [square(7)], "phrases": ["e"], "sample_id": "z"},
            {"image": picture, "masks": [square(8)], "messages": dialogue(1), "sample_id": "m"},
        ]
    )
    split = one_object_a_row(dataset)
    assert split["sample_id"] == ["x#0", "x#1", "x#2", "y", "z", "m"]
    assert split.features == dataset.features
    pairs = build(dataset, network)
    check_dataset(pairs)
    assert pairs["sample_id"] == split["sample_id"]
    for row, start, phrase in zip(pairs, (0, 9, 20, 5, 7, 8), ("a", "b", "c", "d", "e", None), strict=True):
        assert np.array_equal(array(row["chosen_mask"]), array(square(start)))
        (mask,) = [row["mask"]] if row["mask"] is not None else row["masks"]
        assert np.array_equal(array(mask), array(square(start)))
        assert (row["phrase"] or (row["phrases"] or [None])[0]) == phrase
    # What was predicted is the mask of the row as it is now, and so of what a trainer will see.
    for pair, (_, probabilities) in zip(pairs, predict_probabilities(*network, split, progress=False), strict=True):
        assert np.array_equal(array(pair["rejected_mask"]), probabilities[0] > 0.5)


def test_rows_that_cannot_become_pairs_are_all_named(network):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 56, 3), np.uint8))
    good = {"image": picture, "mask": square(5), "phrase": "d", "sample_id": "good"}
    clip = {"images": [picture] * 2, "masks": [square(0)] * 2, "phrases": ["a"], "sample_id": "clip"}
    talk = {"image": picture, "masks": [square(0)] * 2, "messages": dialogue(2), "sample_id": "talk"}
    with pytest.raises(DatasetError, match="2 of 3 rows cannot become preference pairs") as error:
        build(stored([good, clip, talk]), network)
    assert [problem.sample_id for problem in error.value.problems] == ["clip", "talk"]
    text = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hi"}], "sample_id": "t"}
    with pytest.raises(DatasetError, match="no row with a mask"):
        build(stored([text]), network)


def test_bad_options_of_a_dataset_are_named(network, rows):
    for options, message in (
        ({"chosen": ["ground_truth", "truth"]}, "chosen: unknown truth"),
        ({"rejected": []}, "rejected needs at least one"),
        ({"rejected": ["greedy", "greedy"]}, "none twice, got greedy, greedy"),
        ({"min_gap": float("nan")}, "min_gap"),
        ({"sampler": MaskSampler()}, "sampler has no effect"),
    ):
        with pytest.raises(ValueError, match=message):
            build(rows, network, **options)


# Stored pairs


@pytest.mark.parametrize("split", ["train", "holdout"])
def test_written_pairs_are_opened_by_datasets(network, rows, tmp_path, split):
    # Images that are files: they must end up in the dataset, not as paths.
    files = []
    for number, row in enumerate(rows):
        files.append(str(tmp_path / f"{number}.png"))
        row["image"].save(files[-1])
    paths = rows.remove_columns("image").add_column("image", files).cast_column("image", ImageFeature())
    pairs = build(paths, network)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "pairs.png").write_bytes(b"not of the dataset")
    save_preferences(pairs, tmp_path / "out", split)
    decoded = list(pairs)
    for file in files:
        Path(file).unlink()
    for opened in (
        load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache")),
        load_dataset_dict(tmp_path / "out"),
    ):
        assert list(opened) == [split]
        loaded = opened[split]
        assert loaded.features == pairs.features and len(loaded) == len(rows)
        check_dataset(loaded)
        check_preferences(loaded)
        for name in ("chosen_reward", "rejected_reward", "pair_kind", "sample_id"):
            assert loaded[name] == pairs[name]
        for row, original, pair in zip(loaded, rows, decoded, strict=True):
            assert np.array_equal(row["image"], original["image"])
            assert np.array_equal(row["chosen_mask"], pair["chosen_mask"])
            assert np.array_equal(row["rejected_mask"], pair["rejected_mask"])


def test_folders_of_one_name_are_not_mixed_up(network, rows, tmp_path):
    pairs = build(rows, network)
    for number in range(2):
        save_preferences(pairs.select([number]), tmp_path / str(number) / "pairs")
    for number in range(2):
        folder = tmp_path / str(number) / "pairs"
        for opened in (load_dataset(str(folder), cache_dir=str(tmp_path / "cache")), load_dataset_dict(folder)):
            assert opened["train"]["sample_id"] == [rows["sample_id"][number]]
    save_preferences(pairs.select([2]), tmp_path / "0" / "pairs")
    assert load_dataset_dict(tmp_path / "0" / "pairs")["train"]["sample_id"] == [rows["sample_id"][2]]


def test_nothing_is_left_of_a_dataset_that_could_not_be_written(network, rows, tmp_path, monkeypatch):
    from sa2va_trl.preferences import dataset as preferences

    def full(table):
        raise OSError("No space left on device")

    pairs = build(rows, network)
    monkeypatch.setattr(preferences, "embed_table_storage", full)
    with pytest.raises(OSError, match="No space"):
        save_preferences(pairs, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def spoilt(pairs, column, value, row=2):
    values = [pair[column] for pair in pairs.with_format("arrow").select_columns([column])[:].to_pylist()]
    values[row] = ImageFeature().encode_example(value) if isinstance(value, Image.Image) else value
    return pairs.remove_columns(column).add_column(column, values, feature=pairs.features[column])


def test_bad_pairs_are_all_named(network, rows, caplog):
    pairs = build(rows, network)
    check_preferences(pairs)
    with pytest.raises(DatasetError, match="no image column `chosen_mask` and `rejected_mask`"):
        check_preferences(rows)
    for column, value, reason in (
        ("chosen_mask", Image.new("L", (32, 64)), "chosen_mask is 32 x 64, its image 64 x 64"),
        ("rejected_mask", Image.new("L", (64, 64), 7), "rejected_mask is not binary"),
        ("rejected_mask", None, "rejected_mask is missing"),
        ("rejected_mask", rows[2]["mask"], "chosen_mask and rejected_mask are equal"),
    ):
        with pytest.raises(DatasetError, match=f"(?s)1 of 4 pairs.*row 2.*{reason}"):
            check_preferences(spoilt(pairs, column, value))
    whole = pairs.with_format("arrow")[:].to_pylist()[2]["rejected_mask"]
    torn = spoilt(pairs, "rejected_mask", {"bytes": whole["bytes"][:50], "path": None})
    check_dataset(torn)  # looks at images and masks only
    with pytest.raises(DatasetError, match="(?s)1 of 4 pairs.*row 2.*rejected_mask is unreadable"):
        check_preferences(torn)
    turned = spoilt(pairs, "chosen_reward", 0.0, row=1)
    turned = spoilt(turned, "rejected_reward", 0.5, row=1)
    with pytest.raises(DatasetError, match="(?s)worse than the rejected one in 1 of 4 pairs.*row 1.*rejected 0.5000"):
        check_preferences(turned)
    with caplog.at_level(logging.WARNING, logger="sa2va_trl"):
        check_preferences(turned, allow_worse=True)
    assert "1 of 4 chosen masks are worse" in caplog.text
    # Without rewards, the masks themselves tell.
    names = {"chosen_mask": "rejected_mask", "rejected_mask": "chosen_mask"}
    bare = pairs.remove_columns(["chosen_reward", "rejected_reward"])
    check_preferences(bare)
    with pytest.raises(DatasetError, match="4 of 4 pairs"):
        check_preferences(bare.rename_columns(names))
    with pytest.raises(DatasetError, match="(?s)4 of 4 pairs.*0 masks"):
        check_preferences(bare.remove_columns("mask"))
