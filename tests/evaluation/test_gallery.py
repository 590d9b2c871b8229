import io

import numpy as np
import pytest
from PIL import Image
from samples_to_report import rows_with_probabilities

from sa2va_trl.evaluation.gallery import KeptExtremes, make_picture, read_changed, read_kept, save_picture


def read(data):
    return np.asarray(Image.open(io.BytesIO(data)))


def row_of(target, size=None):
    height, width = target.shape
    image = Image.new("RGB", (width, height), (10, 20, 30))
    return {"sample_id": "a", "image": image, "mask": Image.fromarray(255 * target.astype(np.uint8)), "phrase": "x"}


def test_maps_hold_both_runs_and_the_target_to_a_255th():
    rng = np.random.default_rng(0)
    target = rng.random((20, 30)) < 0.5
    first, second = rng.random((2, 1, 20, 30), dtype=np.float32)
    picture = make_picture(row_of(target), [first, second], {"dice": 0.5})
    maps = read(picture.maps)
    assert maps.shape == (20, 30, 3) and picture.size == (30, 20) and picture.runs == 2 and not picture.is_binary
    assert np.abs(maps[..., 0] / 255 - first[0]).max() <= 0.5 / 255 + 1e-6
    assert np.abs(maps[..., 2] / 255 - second[0]).max() <= 0.5 / 255 + 1e-6
    np.testing.assert_array_equal(maps[..., 1], 255 * target)
    assert read(picture.image).shape == (20, 30, 3)
    alone = make_picture(row_of(target), [first], {})
    np.testing.assert_array_equal(read(alone.maps)[..., 0], read(alone.maps)[..., 2])


def test_objects_are_one_mask_and_binary_predictions_are_known():
    target = np.zeros((8, 8), dtype=bool)
    target[:4] = True
    image = Image.new("L", (8, 8), 100)
    masks = [Image.fromarray(255 * mask.astype(np.uint8)) for mask in (target, ~target)]
    row = {"sample_id": "a", "image": image, "masks": masks, "phrases": ["x", "y"]}
    picture = make_picture(row, [np.stack([target, target]).astype(np.float32)], {})
    assert (read(picture.maps)[..., 1] == 255).all() and picture.is_binary
    np.testing.assert_array_equal(read(picture.maps)[..., 0], 255 * target)
    assert read(picture.image).ndim == 2  # grey


def test_of_a_clip_the_worst_frame_is_shown():
    target = np.zeros((3, 8, 8), dtype=bool)
    target[:, 2:6] = True
    masks = [Image.fromarray(255 * mask.astype(np.uint8)) for mask in target]
    images = [Image.new("L", (8, 8), value) for value in (0, 100, 200)]
    row = {"sample_id": "a", "images": images, "masks": masks, "phrases": ["x"]}
    predicted = target.astype(np.float32)
    predicted[1] = 0
    picture = make_picture(row, [predicted], {"dice": 0.7})
    assert picture.facts == {"dice": 0.7, "frame": "2 of 3"}
    assert read(picture.image).mean() == pytest.approx(100, abs=2) and not read(picture.maps)[..., 0].any()


def test_large_pictures_are_reduced_and_say_so():
    target = np.zeros((400, 1536), dtype=bool)
    target[:, :768] = True
    picture = make_picture(row_of(target), [target[None].astype(np.float32)], {})
    assert picture.size == (768, 200) and picture.facts["shown"] == "reduced from 1536 x 400"
    assert read(picture.maps).shape == (200, 768, 3) and (read(picture.maps)[:, :384, 1] == 255).all()


@pytest.mark.parametrize("count", [0, 2, 5, 40])
def test_the_worst_and_the_best_are_kept(count):
    kept, scores = KeptExtremes(count), {}
    rng = np.random.default_rng(0)
    for row, probabilities in rows_with_probabilities():
        scores[row["sample_id"]] = rng.integers(0, 8) / 8  # some are equal: the earlier is kept
        kept(row, probabilities, {"dice": scores[row["sample_id"]]})
    order = sorted(scores, key=scores.get)
    worst = [picture.name for picture in kept.worst]
    assert worst == order[:count]
    best = sorted(scores, key=lambda name: -scores[name])[:count]
    assert [picture.name for picture in kept.best] == [name for name in best if name not in worst]


def test_a_sample_of_two_evaluations_is_read_together(tmp_path):
    rng = np.random.default_rng(0)
    target = rng.random((20, 30)) < 0.5
    chances = rng.random((2, 1, 20, 30), dtype=np.float32)
    folders = (tmp_path / "a", tmp_path / "b")
    for folder, own in zip(folders, chances, strict=True):
        folder.mkdir()
        save_picture(folder, make_picture(row_of(target), [own], {}))
    assert read_changed(folders, "a", {"x": 1.0}) == make_picture(row_of(target), list(chances), {"x": 1.0})
    assert read_kept(folders[0], "a", {"x": 1.0}) == make_picture(row_of(target), [chances[0]], {"x": 1.0})
    assert read_kept(folders[0], "b", {}) is None
    assert read_changed(folders, "b", {}) is None
    save_picture(folders[1], make_picture(row_of(~target), [chances[1]], {}))
    assert read_changed(folders, "a", {}) is None
