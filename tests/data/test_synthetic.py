import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sa2va_trl.data.angiography import generate_video
from sa2va_trl.data.synthetic import FEATURES, synthetic_dataset, synthetic_splits


def image_bytes(dataset, column):
    return [cell["bytes"].as_py() for cell in dataset.data.column(column)]


def test_dataset_rows():
    dataset = synthetic_dataset(num_videos=3, frames_per_video=2, size=48, seed=5, phrase="coronary artery")
    assert dataset.features == FEATURES
    assert len(dataset) == 6
    assert dataset["sample_id"] == [f"v{v:04d}_f{f:03d}" for v in range(3) for f in range(2)]
    assert dataset["video_id"] == ["v0000"] * 2 + ["v0001"] * 2 + ["v0002"] * 2
    assert dataset["patient_id"] == ["p0000"] * 4 + ["p0001"] * 2
    assert dataset["frame_index"] == [0, 1] * 3
    assert set(dataset["phrase"]) == {"coronary artery"}
    video = generate_video(5, 1, 2, 48)
    row = dataset[3]
    np.testing.assert_array_equal(np.asarray(row["image"]), video.frames[1])
    np.testing.assert_array_equal(np.asarray(row["mask"]), video.masks[1] * 255)
    assert row["image"].mode == row["mask"].mode == "L"
    assert row["hard"] == video.hard[1]


def test_dataset_is_repeatable_and_a_video_ignores_the_others():
    size = {"frames_per_video": 2, "size": 40}
    few, many = synthetic_dataset(2, **size), synthetic_dataset(4, **size)
    again, later = synthetic_dataset(4, **size), synthetic_dataset(2, first_video=2, **size)
    for column in ("image", "mask"):
        cells = image_bytes(many, column)
        assert cells == image_bytes(again, column)
        assert cells[:4] == image_bytes(few, column)
        assert cells[4:] == image_bytes(later, column)
        assert len(set(cells)) == len(cells)
    assert later["patient_id"] == many["patient_id"][4:]
    assert Image.open(io.BytesIO(image_bytes(many, "image")[0])).format == "PNG"


@settings(max_examples=8, deadline=None)
@given(
    train=st.integers(1, 4), validation=st.integers(1, 3), test=st.integers(1, 3), videos_per_patient=st.integers(1, 3)
)
def test_splits_share_no_video_and_no_patient(train, validation, test, videos_per_patient):
    splits = synthetic_splits(
        train, validation, test, frames_per_video=1, size=32, videos_per_patient=videos_per_patient
    )
    assert list(splits) == ["train", "validation", "test"]
    assert {name: len(split) for name, split in splits.items()} == {
        "train": train,
        "validation": validation,
        "test": test,
    }
    for column in ("video_id", "patient_id", "sample_id"):
        values = [set(split[column]) for split in splits.values()]
        assert len(set.union(*values)) == sum(map(len, values))


def test_a_larger_training_set_leaves_the_other_splits_alone():
    small = synthetic_splits(1, 1, 2, frames_per_video=1, size=32)
    large = synthetic_splits(3, 1, 2, frames_per_video=1, size=32)
    for name in ("validation", "test"):
        assert image_bytes(small[name], "image") == image_bytes(large[name], "image")
    assert image_bytes(small["train"], "image") == image_bytes(large["train"], "image")[:1]


@pytest.mark.parametrize(
    ("function", "arguments", "name"),
    [
        (generate_video, {"seed": -1, "video": 0}, "seed"),
        (generate_video, {"seed": 0, "video": -1}, "video"),
        (generate_video, {"seed": 0, "video": 0, "num_frames": 0}, "num_frames"),
        (generate_video, {"seed": 0, "video": 0, "size": 31}, "size"),
        (generate_video, {"seed": 0, "video": 0, "size": 64.0}, "size"),
        (generate_video, {"seed": 0, "video": True}, "video"),
        (synthetic_dataset, {"num_videos": 0}, "num_videos"),
        (synthetic_dataset, {"frames_per_video": 0}, "frames_per_video"),
        (synthetic_dataset, {"size": 16}, "size"),
        (synthetic_dataset, {"seed": -3}, "seed"),
        (synthetic_dataset, {"first_video": -1}, "first_video"),
        (synthetic_dataset, {"videos_per_patient": 0}, "videos_per_patient"),
        (synthetic_dataset, {"phrase": "  "}, "phrase"),
        (synthetic_splits, {"train_videos": 0}, "train_videos"),
        (synthetic_splits, {"validation_videos": 0}, "validation_videos"),
        (synthetic_splits, {"test_videos": -2}, "test_videos"),
        (synthetic_splits, {"videos_per_patient": 0}, "videos_per_patient"),
    ],
)
def test_bad_arguments_are_named(function, arguments, name):
    with pytest.raises(ValueError, match=f"`{name}` must be"):
        function(**arguments)
