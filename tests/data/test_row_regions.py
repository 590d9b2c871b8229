"""Rows with regions: read, checked, collated and augmented."""

import json

import numpy as np
import pytest
from datasets import Dataset, Features, List, Value
from PIL import Image
from region_rows import chat, described, rows_with_regions
from rows import noise

from sa2va_trl import SegCollator, tiny_sa2va
from sa2va_trl.data import check_dataset, load_dataset_dict
from sa2va_trl.data.augment import Augmentation
from sa2va_trl.data.fit import check_fit
from sa2va_trl.data.layout import normalize_row
from sa2va_trl.data.row_regions import read_region, region_cells
from sa2va_trl.errors import DatasetError
from sa2va_trl.evaluation.views import Flip


@pytest.fixture(scope="module")
def tiler():
    return tiny_sa2va(image_size=128, max_patches=4)[1]


def make(*rows, regions=None):
    return Dataset.from_list(list(rows), features=rows_with_regions(regions).features)


@pytest.mark.parametrize("form", ["masks", "boxes"])
def test_rows_with_regions_pass_and_are_one_whatever_the_form(form, tiler):
    """Which describe, or segment; beside rows without."""
    rows = rows_with_regions(form)
    check_dataset(rows)
    largest = check_fit(rows, SegCollator(tiler))
    batch = SegCollator(tiler)(list(rows))
    assert batch["input_ids"].shape[1] == largest.tokens
    assert batch["region_counts"].sum() == len(batch["region_masks"]) == 4
    expected = SegCollator(tiler)(list(rows_with_regions("boxes")))
    assert all((batch[name] == expected[name]).all() for name in ("input_ids", "region_masks", "region_counts"))
    # Undecoded rows, as a stream has them, are read the same.
    raw = rows.with_format("arrow")[:].to_pylist()
    assert all((SegCollator(tiler)(raw)[name] == batch[name]).all() for name in ("input_ids", "region_masks"))


def test_a_batch_holds_what_its_rows_hold_alone(tiler):
    rows = list(rows_with_regions())
    batch = SegCollator(tiler)(rows)
    alone = [SegCollator(tiler)([row]) for row in rows]
    assert ["region_masks" in own for own in alone] == [bool(row["regions"]) for row in rows]
    with_regions = [own for own in alone if "region_masks" in own]
    assert np.array_equal(batch["region_masks"], np.concatenate([own["region_masks"] for own in with_regions]))
    # The regions of a row are of its last tile.
    ends = np.cumsum([len(own.get("pixel_values", ())) for own in alone])
    counts = np.zeros(ends[-1], int)
    for row, end in zip(rows, ends, strict=True):
        if row["image"] is not None:
            counts[end - 1] = len(row["regions"] or [])
    assert batch["region_counts"].tolist() == counts.tolist()
    for own, ids, mask in zip(alone, batch["input_ids"], batch["attention_mask"], strict=True):
        assert ids[mask.bool()].tolist() == own["input_ids"][0].tolist()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"regions": [[0, 0, 10, 10], [0, 0, 49, 40]]}, "region2 is the box .* inside its image of 48 x 40"),
        ({"regions": [[0, 0, 10]]}, "region1 is not a box of four numbers"),
        ({"regions": [[30, 0, 10, 20]]}, "region1 is the box .* must be in order"),
        ({"regions": [[1.6, 0, 2.4, 40]]}, "region1 is empty"),
        ({"regions": [None]}, "region1 is missing"),
        ({"image": None}, "has no image"),
        ({"image": None, "images": [noise(0), noise(1)]}, "regions and 2 images: regions are of a single one"),
        ({"messages": chat("No. <vp>")}, "reserved token <vp>"),
    ],
)
def test_bad_regions_are_named_all_at_once(changes, reason, tiler):
    row = {**described(), **changes}
    bad = [{**row, "sample_id": name} for name in ("one", "two")]
    with pytest.raises(DatasetError, match=reason) as found:
        check_dataset(make(*bad, regions="boxes"))
    assert [problem.sample_id for problem in found.value.problems] == ["one", "two"]
    # And where no check has come before.
    with pytest.raises(DatasetError, match=f"'one' cannot be used: .*{reason}"):
        SegCollator(tiler)([bad[0]])


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        (Image.new("L", (40, 48), 255), "region1 is 40 x 48, its image 48 x 40"),
        (Image.new("L", (48, 40)), "region1 is empty"),
        (Image.new("L", (48, 40), 9), "region1 is not binary"),
    ],
)
def test_masks_of_regions_are_judged_as_masks(mask, reason, tiler):
    row = {**described(), "regions": [mask]}
    with pytest.raises(DatasetError, match=reason):
        check_dataset(make(row, regions="masks"))
    with pytest.raises(DatasetError, match=reason):
        normalize_row(row)


def test_regions_of_fewer_than_four_cells_are_refused_by_name(tiler):
    """Cells of 6 x 5 pixels."""
    rows = [
        {**described(), "sample_id": "good", "regions": [[0, 0, 12, 10]]},
        {**described(), "sample_id": "small", "regions": [[0, 0, 12, 10], [0, 0, 18, 5]]},
        {**described(), "sample_id": "tiny", "regions": [[1, 1, 3, 3]]},
    ]
    for row in rows:
        row["messages"] = chat("Something.")
    data = make(*rows, regions="boxes")
    check_dataset(data)  # which knows of no model
    with pytest.raises(DatasetError, match="2 of 3 rows do not fit") as found:
        check_fit(data, SegCollator(tiler))
    small, tiny = found.value.problems
    assert small.sample_id == "small" and "region2 has 3 of the 8 x 8 cells" in small.reason
    assert tiny.sample_id == "tiny" and "region1 holds no cell" in tiny.reason
    with pytest.raises(DatasetError, match="'small' cannot be used: region2 has 3"):
        SegCollator(tiler)(list(data))


def test_rows_with_regions_do_not_fit_qwen():
    _, processor = tiny_sa2va(image_size=128, family="qwen3_vl")
    rows = rows_with_regions()
    with pytest.raises(DatasetError, match="3 of 5 rows do not fit the model:(.|\n)*Regions are InternVL's"):
        check_fit(rows, SegCollator(processor))


@pytest.mark.parametrize("feature", [Value("string"), List(Value("int64")), List(List(Value("string")))])
def test_a_column_of_another_type_is_refused(feature):
    empty = None if isinstance(feature, Value) else []
    features = Features({**rows_with_regions("boxes").features, "regions": feature})
    with pytest.raises(DatasetError, match="column `regions` is .* neither a list of images"):
        check_dataset(Dataset.from_list([{**described(), "regions": empty}], features=features))


def test_regions_move_with_their_image(tiler):
    """A region that is the row's mask stays the row's mask."""
    augmentation = Augmentation(flip=0.5, vertical_flip=0.5, rotation=30, scale=0.2, shift=0.1)
    (row,) = [row for row in rows_with_regions("masks") if row["sample_id"] == "drawn"]
    moved = 0
    for epoch in range(6):
        collator = SegCollator(tiler, augmentation=augmentation, epoch=epoch)
        batch = collator([row])
        shown = Image.fromarray(255 * batch["original_masks"][0][0].numpy())
        assert np.array_equal(batch["region_masks"][0], tiler.region_cells([shown], shown.size)[0])
        moved += shown.tobytes() != row["regions"][0].tobytes()
    assert moved == 6


def test_a_row_whose_regions_move_out_of_sight_is_shown_as_it_is(tiler):
    row = {**described(), "regions": [[0, 0, 12, 10]], "phrases": ["it"], "masks": [Image.new("L", (48, 40), 255)]}
    row["messages"] = None
    plain, kept, left = SegCollator(tiler)([row]), 0, 0
    for epoch in range(8):
        batch = SegCollator(tiler, augmentation=Augmentation(shift=0.5), epoch=epoch)([row])
        assert batch["region_masks"].sum() >= 4
        is_plain = bool((batch["grounding_pixel_values"] == plain["grounding_pixel_values"]).all())
        assert is_plain == bool((batch["masks"] == plain["masks"]).all())  # the two of them together
        kept, left = kept + (not is_plain), left + is_plain
    assert kept and left


def test_a_view_of_evaluation_changes_regions_too(tiler):
    row = {**described(), "regions": [[0, 0, 24, 40]]}
    row["messages"] = chat("The left half.")
    batch = SegCollator(tiler, augmentation=Flip(-1))([row])
    assert batch["region_masks"][0].all(0).tolist() == [False] * 4 + [True] * 4


def test_what_is_read_of_a_region():
    assert np.array(read_region([0, 0, 2, 1], (3, 2))).tolist() == [[255, 255, 0], [0, 0, 0]]
    assert read_region(np.ones((2, 3), bool), (3, 2)).tobytes() == bytes([255] * 6)
    assert region_cells(None, []) == []


def test_a_folder_with_regions_trains_as_it_is(tmp_path, tiler):
    """Saved, or in the columns of `imagefolder`'s metadata."""
    rows_with_regions("boxes").select([0, 1]).save_to_disk(tmp_path / "saved")
    rows = load_dataset_dict(tmp_path / "saved")["train"]
    assert rows[1]["regions"] == rows_with_regions("boxes")[1]["regions"]
    (tmp_path / "images" / "images").mkdir(parents=True)
    noise(0).save(tmp_path / "images" / "images" / "a.png")
    line = {"file_name": "images/a.png", "regions": [[0, 0, 24, 40]], "sample_id": "a", "messages": chat("Left.")}
    (tmp_path / "images" / "metadata.jsonl").write_text(json.dumps(line))
    (row,) = load_dataset_dict(tmp_path / "images")["train"]
    assert row["regions"] == [[0, 0, 24, 40]]
    assert SegCollator(tiler)([row])["region_masks"].sum() == 32
