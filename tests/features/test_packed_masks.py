import copy
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, List
from PIL import Image as Pictures
from rows import every_kind

from sa2va_trl import SegCollator
from sa2va_trl.data import DatasetError
from sa2va_trl.data.augment import Augmentation
from sa2va_trl.errors import FeatureError
from sa2va_trl.features import packed_masks as module
from sa2va_trl.features.packed_masks import PackedMasks, draw_masks, mask_keys, mask_prints, pack_masks
from sa2va_trl.features.rows import NumberedRows, view_key


def packed(folder, collator, dataset):
    store = PackedMasks(folder, mask_prints(collator))
    pack_masks(store, collator, [(dataset, mask_keys(dataset))], progress=False)
    return store


def pictures(*masks, mode="L"):
    features = Features({"masks": List(Image(mode=mode))})
    return Dataset.from_list([{"masks": [Pictures.fromarray(mask) for mask in masks]}], features=features)


@pytest.mark.parametrize(
    "options",
    [
        {"with_skeletons": True, "mask_size": 21},
        {"augmentation": Augmentation(flip=0.5, rotation=20.0), "views": 3, "seed": 5},
    ],
    ids=["skeletons", "views"],
)
def test_packed_masks_are_those_that_are_drawn(tmp_path, tiny, options):
    dataset = every_kind()  # rows without an image and without masks, clips, several objects
    collator = SegCollator(tiny[1], **options)
    store = pickle.loads(pickle.dumps(packed(tmp_path, collator, dataset)))
    keys, rows = mask_keys(dataset), NumberedRows(dataset)
    for epoch in range(4):
        seen = replace(collator, epoch=epoch)
        found = store.read([view_key(key, seen, index) for index, key in enumerate(keys)])
        for index, own in enumerate(found):
            for name, one, other in zip(own._fields, own, draw_masks(seen, rows[index]), strict=True):
                assert torch.equal(one, other) and one.dtype == torch.uint8, name
    assert any(own.masks.any() for own in found) and any(len(own.skeletons) for own in found) == (
        "mask_size" in options
    )


def test_masks_are_drawn_once_and_told_apart(tmp_path, tiny, monkeypatch):
    drawn = []

    def counted(collator, row):
        drawn.append(row)
        return draw_masks(collator, row)

    monkeypatch.setattr(module, "draw_masks", counted)
    dataset, collator = every_kind(), SegCollator(tiny[1])
    first = packed(tmp_path, collator, dataset)
    count = len(set(mask_keys(dataset)))
    assert len(drawn) == count and packed(tmp_path, collator, dataset).folder == first.folder and len(drawn) == count
    # Another grid, other losses or other rules for pairs are other stores.
    for change in ({"mask_size": 9}, {"with_skeletons": True}, {"with_pairs": False}, {"allow_worse": False}):
        assert PackedMasks(tmp_path, mask_prints(replace(collator, **change))).folder != first.folder
    with pytest.raises(FeatureError, match="has no masks of the row with key 'other'"):
        first.read(["other"])


def test_keys_follow_the_masks_alone():
    one, other = np.zeros((6, 5), np.uint8), np.zeros((6, 5), np.uint8)
    other[2, 3] = 255
    keys = [mask_keys(pictures(*masks))[0] for masks in ([one], [other], [one, other], [other, one], [])]
    assert len(set(keys)) == len(keys)
    assert mask_keys(pictures(one, mode="1")) != mask_keys(pictures(one))
    rows = every_kind()
    renamed = rows.remove_columns("sample_id").add_column("sample_id", [str(row) for row in range(len(rows))])
    assert mask_keys(renamed) == mask_keys(rows)
    bare = rows.select_columns(["sample_id"])
    assert len(mask_keys(bare)) == len(bare) and len(set(mask_keys(bare))) == 1


def test_a_bad_mask_is_named_and_what_is_packed_stays(tmp_path, tiny):
    dataset = every_kind()
    grey = copy.deepcopy(dataset[0])
    grey["masks"] = [Pictures.new("L", grey["masks"][0].size, 9)]
    bad = Dataset.from_list([dataset[0], grey], features=dataset.features)
    collator = SegCollator(tiny[1])
    with pytest.raises(DatasetError, match="'still' cannot be used: mask 0 is not binary"):
        packed(tmp_path, collator, bad)
    # A store whose writer was killed, or that was damaged, is completed.
    store = packed(tmp_path, collator, dataset)
    (part,) = store.folder.glob("*.bin")
    part.write_bytes(part.read_bytes()[:-1])
    again = packed(tmp_path, collator, dataset)
    assert not again.missing(mask_keys(dataset))
