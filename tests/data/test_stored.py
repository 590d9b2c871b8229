import numpy as np
import PIL.Image
import pytest
from datasets import Dataset, Features, Image, IterableDataset, List, concatenate_datasets
from mask_pictures import BLACK, GREY, RIGHT, WHITE, alpha_mask, expected, halves, png_of_16_bits, prepared
from mask_pictures import png as png_of
from stored_rows import CLIP, SINGLE, make

from sa2va_trl.data.checks import check_dataset
from sa2va_trl.data.columns import FEATURES
from sa2va_trl.data.layout import normalize_row
from sa2va_trl.data.stored import plain_rows
from sa2va_trl.errors import DatasetError


class TestPlainRows:
    @pytest.mark.parametrize("kind", ["torch", "numpy", "arrow", "pandas"])
    def test_formats_are_reset_and_rows_are_what_they_were(self, kind):
        dataset = make(FEATURES, {}, {})
        plain = plain_rows(dataset.with_format(kind, columns=["image"]))
        assert plain.format["type"] is None
        assert plain[1]["sample_id"] == "s1" and isinstance(plain[1]["image"], PIL.Image.Image)
        check_dataset(dataset.with_format(kind))

    def test_a_format_of_some_columns_is_reset(self):
        dataset = make(FEATURES, {}, {}).with_format(columns=["image"])
        assert set(plain_rows(dataset)[0]) == set(FEATURES)
        everything = make(FEATURES, {})
        assert plain_rows(everything) is everything

    def test_a_transform_stays(self):
        dataset = make(SINGLE, {}).with_transform(lambda batch: {**batch, "phrase": ["other"]})
        assert plain_rows(dataset) is dataset

    def test_undecoded_columns_are_decoded_row_by_row(self):
        dataset = make(CLIP, {})
        lazy = dataset.cast(
            Features({**CLIP, "images": List(Image(decode=False)), "masks": List(Image(mode="L", decode=False))})
        )
        assert isinstance(lazy[0]["images"][0], dict)
        check_dataset(lazy)
        one, other = (normalize_row(plain_rows(rows)[0]) for rows in (dataset, lazy))
        for name in ("images", "masks"):
            for a, b in zip(one[name], other[name], strict=True):
                assert np.array_equal(a, b)

    def test_a_stream_with_a_format(self):
        stream = make(SINGLE, {}).to_iterable_dataset()
        for kind in ("torch", "numpy", "arrow"):
            (row,) = plain_rows(stream.with_format(kind))
            assert normalize_row(row)["images"][0].size == (8, 6)

    def test_a_stream_of_unknown_features(self):
        def rows():
            yield {"image": PIL.Image.new("RGB", (8, 6)), "mask": np.eye(6, 8), "phrase": "a", "sample_id": "x"}

        (row,) = plain_rows(IterableDataset.from_generator(rows))
        with pytest.raises(DatasetError, match="'x' cannot be used: mask 0 is an array of float64"):
            normalize_row(row)


STEPS = {
    "map": lambda stream, features: stream.map(lambda row: {"patient_id": "p"}),
    "map, features": lambda stream, features: stream.map(lambda row: {"sample_id": "b"}, features=features),
    "filter": lambda stream, features: stream.filter(lambda row: True),
    "filter, shuffle": lambda stream, features: stream.filter(lambda row: True).shuffle(seed=0, buffer_size=2),
    "to array": lambda stream, features: stream.map(lambda row: {"mask": np.array(row["mask"])}),
    "decoded in threads": lambda stream, features: stream.decode(num_threads=2).map(lambda row: {"sample_id": "b"}),
    "two streams": lambda stream, features: concatenate_datasets([stream.filter(lambda row: True), stream]),
}


@pytest.mark.parametrize("step", STEPS)
def test_the_steps_of_a_stream_hide_nothing(step):
    """`map` and `filter` decode a row before it is asked for as it is stored."""

    def through(made, feature):
        stored = prepared(made, "mask", feature)
        stream = plain_rows(STEPS[step](stored.to_iterable_dataset(), stored.features))
        return [np.asarray(normalize_row(row)["masks"][0]) for row in stream][0]

    with pytest.raises(DatasetError, match=r"would be read wrongly: its column is Image\(mode='L'\).*before `map`"):
        through(alpha_mask(), Image(mode="L"))
    if step != "to array":  # of four channels, which the function is to reduce
        assert np.array_equal(through(alpha_mask(), Image()), expected(RIGHT))
    assert np.array_equal(through(halves("L", (0, 255)), Image(mode="L")), expected(RIGHT)), "what is written here"
    assert np.array_equal(through(halves("RGB", (BLACK, WHITE)), Image(mode="L")), expected(RIGHT)), "nothing is lost"


@pytest.mark.parametrize(
    ("rename", "reason"),
    [
        (lambda stream: stream.rename_column("label", "mask"), "a mask of the stream would be read wrongly"),
        (
            lambda stream: stream.map(lambda row: {"mask": row["label"]}, remove_columns="label"),
            "sample_id 'a' cannot be used: mask 0 would be read wrongly",
        ),
    ],
)
def test_a_mask_that_a_step_renames(rename, reason):
    def renamed(made, feature):
        stored = prepared(made, "mask", feature).rename_column("mask", "label")
        (row,) = plain_rows(rename(stored.to_iterable_dataset()))
        return np.asarray(normalize_row(row)["masks"][0])

    with pytest.raises(DatasetError, match=reason):
        renamed(alpha_mask(), Image(mode="L"))
    assert np.array_equal(renamed(alpha_mask(), Image()), expected(RIGHT))
    assert np.array_equal(renamed(halves("L", (0, 255)), Image(mode="L")), expected(RIGHT))


def test_16_bits_that_a_step_has_decoded_are_refused():
    stored = prepared(halves("L", (0, 255)), "mask", Image())
    row = {"image": png_of(GREY), "mask": png_of_16_bits(2, 3, 1), "phrase": "a"}
    stored = Dataset.from_list([{**row, "sample_id": "a"}], features=stored.features)
    with pytest.raises(DatasetError, match="has 16 bits in each of several channels"):
        list(plain_rows(stored.to_iterable_dataset().filter(lambda row: True)))
