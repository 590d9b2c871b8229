import pytest
from datasets import Dataset
from datasets import Image as ImageFeature
from feature_stores import ANSWER, QUESTION, built
from region_rows import rows_with_regions
from rows import chat, every_kind, make, mask, noise

from sa2va_trl.features.packed_masks import mask_keys
from sa2va_trl.features.rows import KEY, NumberedRows, feature_bytes, row_keys, row_sizes


def test_numbered_rows_are_those_of_the_data_set():
    dataset = every_kind().select([4, 0, 2])
    rows = NumberedRows(dataset, keys=["a", "b", "c"])
    assert len(rows) == 3
    assert [(row["sample_id"], row["row_index"], row[KEY]) for row in rows.__getitems__([2, 0, 2])] == [
        ("clip", 2, "c"),
        ("empty", 0, "a"),
        ("clip", 2, "c"),
    ]
    assert KEY not in NumberedRows(dataset)[1] and NumberedRows(dataset)[1]["row_index"] == 1


def test_bytes_are_known_beforehand(tmp_path, tiny):
    dataset = every_kind()
    store, keys, _ = built(tmp_path, *tiny, dataset)
    for key, (images, segs) in zip(keys, row_sizes(dataset), strict=True):
        assert store.records[key].size == feature_bytes(tiny[0].config, images, segs, 4)
    assert sum(file.stat().st_size for file in store.folder.glob("*.bin")) == sum(
        record.size for record in store.records.values()
    )


def test_a_key_is_of_images_and_text_alone():
    base = {"image": noise(0), "masks": [mask(0)], "phrases": ["vessel"], "sample_id": "a"}
    twin = {**base, "masks": [mask(1)], "sample_id": "b"}
    others = [
        {**base, "image": noise(1)},
        {**base, "phrases": ["artery"]},
        {**base, "images": [noise(0), noise(1)], "image": None, "masks": [mask(0), mask(0)]},
        {**base, "images": [noise(1), noise(0)], "image": None, "masks": [mask(0), mask(0)]},
        {**base, "phrases": [], "messages": chat("It is [SEG].")},
        {**base, "phrases": [], "messages": chat("Here: [SEG].")},
    ]
    keys = row_keys(make([base, twin, *others]), QUESTION, ANSWER)
    assert keys[0] == keys[1]
    assert len(set(keys)) == len(keys) - 1
    assert row_keys(make([base]), "Where is the {phrase}?", ANSWER) != keys[:1]
    assert row_keys(make([base]), QUESTION, "It is [SEG].") != keys[:1]


@pytest.mark.parametrize("form", ["boxes", "masks"])
def test_a_key_is_of_regions_too(form):
    """Which their order is part of; without any it is what it was before there were regions."""
    rows = rows_with_regions(form)
    two, one = rows[0]["regions"], rows[1]["regions"]
    features = rows.features
    chosen = [two, two[::-1], two[:1], one, [], None]
    same = Dataset.from_list([{**rows[0], "regions": own} for own in chosen], features=features)
    keys, packed = row_keys(same, QUESTION, ANSWER), mask_keys(same)
    assert len(set(keys)) == len(set(packed)) == len(keys) - 1 and keys[-1] == keys[-2]
    bare = same.remove_columns("regions")
    assert set(row_keys(bare, QUESTION, ANSWER)) == {keys[-1]} and set(mask_keys(bare)) == {packed[-1]}


def test_a_key_follows_the_content_of_a_file(tmp_path):
    file = tmp_path / "image.png"
    noise(0).save(file)
    dataset = make([{"masks": [mask(0)], "phrases": ["vessel"], "sample_id": "a"}]).remove_columns("image")
    dataset = dataset.add_column("image", [str(file)]).cast_column("image", ImageFeature())
    first = row_keys(dataset, QUESTION, ANSWER)
    noise(1).save(file)
    assert row_keys(dataset, QUESTION, ANSWER) != first
