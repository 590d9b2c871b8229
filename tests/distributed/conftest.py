import launch
import pytest
from datasets import DatasetDict, Features, List, Value, load_from_disk
from datasets import Image as ImageFeature

from sa2va_trl.data import synthetic_dataset


def pytest_runtest_teardown(item, nextitem):
    if nextitem is None or nextitem.path.parent != item.path.parent:
        launches = (launch.ONE, launch.DDP, launch.ZERO3)
        for launcher in launches:
            launcher.dismiss()
        for launcher in launches:
            launcher.stop()


@pytest.fixture(scope="session")
def mixed(tmp_path_factory):
    """Rows with a mask and rows of text only, so that ranks meet batches of different kinds."""
    features = Features(
        {
            "image": ImageFeature(),
            "masks": List(ImageFeature(mode="L")),
            "phrases": List(Value("string")),
            "messages": List({"role": Value("string"), "content": Value("string")}),
            "sample_id": Value("string"),
        }
    )

    def split(first_video, text_rows):
        source = synthetic_dataset(num_videos=1, frames_per_video=8, size=64, first_video=first_video)

        def convert(row, index):
            if index in text_rows:
                chat = [
                    {"role": "user", "content": "Which side?"},
                    {"role": "assistant", "content": "Left " * (1 + index)},
                ]
                return {"image": None, "masks": [], "phrases": [], "messages": chat}
            return {"image": row["image"], "masks": [row["mask"]], "phrases": [row["phrase"]], "messages": None}

        drop = [name for name in source.column_names if name != "sample_id"]
        return source.map(convert, with_indices=True, remove_columns=drop, features=features)

    folder = tmp_path_factory.mktemp("mixed")
    DatasetDict(train=split(0, {0, 3, 5}), validation=split(2, {1})).save_to_disk(folder / "data")
    return str(folder / "data")


@pytest.fixture(scope="session")
def mixed_regions(mixed, tmp_path_factory):
    """The same rows, some of which have regions: what InternVL alone is trained with."""
    boxes = List(List(Value("float32")))

    def with_regions(row, index):
        regions = [[0, 0, 40, 64], [8, 8, 60, 40]][: index % 3]
        return {"regions": regions if row["image"] is not None else None}

    data = load_from_disk(mixed)
    for split, rows in data.items():
        features = Features({**rows.features, "regions": boxes})
        data[split] = rows.map(with_regions, with_indices=True, features=features)
    folder = tmp_path_factory.mktemp("mixed_regions")
    data.save_to_disk(folder / "data")
    return str(folder / "data")
