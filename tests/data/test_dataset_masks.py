"""Masks of rows, from the file to the batch. (What a mask says is tested in media/test_masks.py.)"""

import io
import json
import struct

import numpy as np
import PIL.Image
import pytest
from annotated_folders import SQUARE
from datasets import Dataset, Features, Image, List, Value, load_from_disk
from hypothesis import given, settings
from hypothesis import strategies as st
from mask_pictures import (
    ACCEPTED,
    ACCEPTED_NAMES,
    FORMATS,
    GREY,
    HEIGHT,
    NAMES,
    RED,
    RIGHT,
    TABLE,
    WIDTH,
    alpha_mask,
    expected,
    halves,
    picture,
    png,
    png_of_16_bits,
    prepared,
    saved,
)

from sa2va_trl.data.checks import check_dataset
from sa2va_trl.data.collator import SegCollator
from sa2va_trl.data.columns import FEATURES
from sa2va_trl.data.layout import normalize_row
from sa2va_trl.data.loading import load_dataset_dict
from sa2va_trl.data.masks import decode_mask, judge_mask, polygons_to_mask
from sa2va_trl.data.readers.mask_folder import read_mask_folder
from sa2va_trl.errors import DatasetError
from sa2va_trl.media.pictures import open_image, page_count
from sa2va_trl.models.tiny import tiny_sa2va
from sa2va_trl.preferences.dataset import check_preferences


@pytest.fixture(scope="module")
def collator():
    return SegCollator(tiny_sa2va(image_size=128)[1])


def learnt(collator, row):
    """What the collator makes of a row's one mask, at its own size."""
    return collator([row])["original_masks"][0][0].numpy() * 255


# A form that cannot hold a picture in its mode is no case.
FILES = [
    pytest.param(form, data, reading, id=f"{form}-{name}")
    for name, (mode, values, reading) in zip(NAMES, TABLE, strict=True)
    for form in FORMATS
    if (data := saved(halves(mode, values), form))
]


@pytest.mark.parametrize(("form", "data", "reading"), FILES)
def test_stored(form, data, reading, tmp_path):
    for folder in ("image", "mask"):
        (tmp_path / folder).mkdir()
    GREY.save(tmp_path / "image" / "a.png")
    (tmp_path / "mask" / f"a.{form[:4].lower().replace('tiff', 'tif')}").write_bytes(data)
    row = {"image": GREY, "masks": [{"bytes": data, "path": None}], "phrases": ["vessel"], "sample_id": "a"}
    stored = Dataset.from_list([row], features=Features({**FEATURES, "masks": List(Image())}))
    if isinstance(reading, str):
        for read in (
            lambda: decode_mask(row["masks"][0]),
            lambda: check_dataset(stored),
            lambda: normalize_row(stored[0]),
        ):
            with pytest.raises(DatasetError) as caught:
                read()
            assert reading in str(caught.value)
    else:
        check_dataset(stored)
        folder = read_mask_folder(tmp_path)
        check_dataset(folder)
        for mask in (decode_mask(row["masks"][0]), normalize_row(stored[0])["masks"][0], folder[0]["masks"][0]):
            assert np.array_equal(np.asarray(mask), expected(reading))


@pytest.mark.parametrize(("mode", "values", "reading"), ACCEPTED, ids=ACCEPTED_NAMES)
def test_the_collator_learns_it(mode, values, reading, collator):
    row = {"image": GREY, "mask": halves(mode, values), "phrase": "vessel", "sample_id": "s"}
    assert np.array_equal(learnt(collator, row), expected(reading))
    other = PIL.Image.new("L", (WIDTH, HEIGHT), 0 if any(reading) else 255)  # the masks of a pair are not equal
    batch = collator([{**row, "chosen_mask": row["mask"], "rejected_mask": other}])
    assert batch["chosen_masks"].bool().any() == any(reading) != batch["rejected_masks"].bool().any()


def test_big_endian_tiff():
    """Pillow reads it as `I;16B`, and writes none."""
    pixels = np.zeros((HEIGHT, WIDTH), dtype=">u2")
    tags = [(256, 3, WIDTH), (257, 3, HEIGHT), (258, 3, 16), (259, 3, 1), (262, 3, 1), (273, 4, 200), (277, 3, 1)]
    tags += [(278, 3, HEIGHT), (279, 4, pixels.nbytes)]
    entries = b"".join(
        struct.pack(">HHIHH", tag, kind, 1, value, 0) if kind == 3 else struct.pack(">HHII", tag, kind, 1, value)
        for tag, kind, value in tags
    )
    header = b"MM\0*" + struct.pack(">IH", 8, len(tags)) + entries + struct.pack(">I", 0)
    for value, accepted in ((1, True), (65535, True), (256, False)):
        pixels[:, 6:] = value
        source = {"bytes": header.ljust(200, b"\0") + pixels.tobytes(), "path": None}
        assert open_image(source).mode == "I;16B"
        if accepted:
            assert np.array_equal(np.asarray(decode_mask(source)), expected(RIGHT))
        else:
            with pytest.raises(DatasetError, match="mode I;16B, values 0, 256"):
                decode_mask(source)


@pytest.mark.parametrize(("colour_type", "channels"), [(2, 3), (4, 2), (6, 4)])
@pytest.mark.parametrize("value", [1, 255, 300, 65535])
def test_channels_of_16_bits_are_refused(colour_type, channels, value):
    """Pillow decodes their upper halves alone: ids below 256 would all be 0."""
    with pytest.raises(DatasetError, match="16 bits in each of several channels"):
        decode_mask(png_of_16_bits(colour_type, channels, value))


def test_a_pnm_of_16_bits():
    right = np.zeros((HEIGHT, WIDTH), dtype=">u2")
    right[:, 6:] = 1
    grey = {"bytes": b"P5\n12 8\n65535\n" + right.tobytes(), "path": None}
    assert np.array_equal(np.asarray(decode_mask(grey)), expected(RIGHT))
    colours = {"bytes": b"P6\n12 8\n65535\n" + np.stack([right] * 3, axis=-1).tobytes(), "path": None}
    with pytest.raises(DatasetError, match="16 bits"):
        decode_mask(colours)


RAW = st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I", "F", "CMYK"])


LEVELS = st.lists(st.sampled_from([0, 1, 2, 127, 254, 255]), min_size=1, max_size=3)


@settings(max_examples=150, deadline=None)
@given(RAW, LEVELS, st.integers(0, 2**32 - 1), st.sampled_from([None, "L", "RGB"]))
def test_what_the_check_accepts_is_what_the_collator_gets(mode, levels, seed, declared):
    """Whatever lies in a set's bytes, and whatever its feature converts to: refused, or learnt as it was judged."""
    bands = len(PIL.Image.new(mode, (1, 1)).getbands())
    pixels = np.random.default_rng(seed).choice(levels, (4, 5, bands))
    if mode == "P":
        colours = np.random.default_rng(seed).choice([0, 255, 128], (256, 3))
        pixels = np.concatenate([pixels, colours[pixels[..., 0]]], axis=-1)
    made = picture(mode, pixels if pixels.shape[-1] > 1 else pixels[..., 0].clip(0, 1 if mode == "1" else None))
    data = saved(made, "TIFF")
    if data is None:
        return
    grey = PIL.Image.new("L", made.size, 9)
    stored = Dataset.from_list(
        [{"image": grey, "masks": [{"bytes": data, "path": None}], "phrases": ["a"], "sample_id": "a"}],
        features=Features({**FEATURES, "masks": List(Image(mode=declared))}),
    )
    try:
        check_dataset(stored)
    except DatasetError:
        return
    judged = decode_mask({"bytes": data, "path": None})
    assert normalize_row(stored[0])["masks"][0].tobytes() == judged.tobytes()


@pytest.mark.parametrize("column", ["mask", "masks"])
def test_a_conversion_that_hides_alpha_is_refused(column):
    shown = Image(mode="L") if column == "mask" else List(Image(mode="L"))
    with pytest.raises(DatasetError, match=r"mask 0 would be read wrongly: its column is Image\(mode='L'\)") as caught:
        check_dataset(prepared(alpha_mask(), column, shown))
    assert "cast the column" in str(caught.value) and "datasets.Image()" in str(caught.value)
    raw = Image() if column == "mask" else List(Image())
    stored = prepared(alpha_mask(), column, raw)
    check_dataset(stored)
    assert np.array_equal(np.asarray(normalize_row(stored[0])["masks"][0]), expected(RIGHT))


@pytest.mark.parametrize("column", ["mask", "masks"])
@pytest.mark.parametrize("how", ["save_to_disk", "parquet", "metadata"])
def test_a_prepared_dataset_keeps_alpha_to_the_collator(tmp_path, column, how, collator):
    stored = prepared(alpha_mask(), column, Image() if column == "mask" else List(Image()))
    if how == "save_to_disk":
        stored.save_to_disk(tmp_path / "d")
    elif how == "parquet":
        (tmp_path / "d").mkdir()
        stored.to_parquet(tmp_path / "d" / "train.parquet")
    else:
        (tmp_path / "d" / "train").mkdir(parents=True)
        GREY.save(tmp_path / "d" / "train" / "a.png")
        alpha_mask().save(tmp_path / "d" / "train" / "a_mask.png")
        row = {"file_name": "a.png", "mask_file_name": "a_mask.png", "phrase": "vessel"}
        if column == "masks":
            row = {"image_file_name": "a.png", "masks_file_names": ["a_mask.png"], "phrases": ["vessel"]}
        (tmp_path / "d" / "train" / "metadata.jsonl").write_text(json.dumps(row))
    dataset = load_dataset_dict(tmp_path / "d")["train"]
    check_dataset(dataset)
    assert np.array_equal(learnt(collator, dataset[0]), expected(RIGHT))


def test_loading_masks_writes_no_copy_of_them(tmp_path):
    prepared(halves("L", (0, 255)), "masks", List(Image())).save_to_disk(tmp_path / "d")
    before = sorted(path.name for path in (tmp_path / "d").rglob("*"))
    files = load_dataset_dict(tmp_path / "d")["train"].cache_files
    assert files == load_from_disk(str(tmp_path / "d")).cache_files
    assert sorted(path.name for path in (tmp_path / "d").rglob("*")) == before


def test_pairs_are_judged_likewise():
    left, right = (halves("RGBA", values) for values in (((*RED, 255), (*RED, 0)), ((*RED, 0), (*RED, 255))))
    rows = [
        {"image": GREY, "mask": png(right), "chosen_mask": png(right), "rejected_mask": png(left), "sample_id": "a"}
    ]
    raw = {"image": Image(), "mask": Image(), "chosen_mask": Image(), "rejected_mask": Image()}
    check_preferences(Dataset.from_list(rows, features=Features({**raw, "sample_id": Value("string")})))
    features = Features({**raw, "chosen_mask": Image(mode="L"), "sample_id": Value("string")})
    with pytest.raises(DatasetError, match="chosen_mask would be read wrongly"):
        check_preferences(Dataset.from_list(rows, features=features))


def test_a_decoded_mask_of_several_pages_is_refused(tmp_path):
    pages = [PIL.Image.new("L", (WIDTH, HEIGHT), 255 * (number % 2)) for number in range(3)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    with PIL.Image.open(tmp_path / "a.tif") as opened:
        opened.load()
        with pytest.raises(DatasetError, match="holds 3 pictures"):
            judge_mask(opened)
    with PIL.Image.open(tmp_path / "a.tif") as file:
        assert page_count(file) == 3


def test_turned_upright(tmp_path):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    PIL.Image.fromarray(expected(RIGHT)).save(tmp_path / "a.png", exif=exif)
    read = np.asarray(decode_mask(tmp_path / "a.png", (HEIGHT, WIDTH)))
    assert np.array_equal(read, np.rot90(expected(RIGHT), -1))


def test_a_decoded_mask_lies_as_its_image():
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    files = [io.BytesIO(), io.BytesIO()]
    for file, made in zip(files, (GREY.convert("RGB"), PIL.Image.fromarray(expected(RIGHT))), strict=True):
        made.save(file, format="PNG", exif=exif)
    image, mask = map(PIL.Image.open, files)
    found = normalize_row({"image": image, "mask": mask, "phrase": "a", "sample_id": "a"})
    assert found["images"][0].size == found["masks"][0].size == (WIDTH, HEIGHT)
    assert np.array_equal(np.asarray(found["masks"][0]), expected(RIGHT))
    stored = normalize_row(
        {
            "image": {"bytes": files[0].getvalue(), "path": None},
            "mask": files[1].getvalue(),
            "phrase": "a",
            "sample_id": "a",
        }
    )
    assert found["masks"][0].size == stored["masks"][0].size[::-1], "as files, both are turned"


def test_examples_of_other_programs(shared):
    """Every small odd file is read right or refused by name."""
    folder = shared / "data" / "formats"
    truth = json.loads((folder / "truth.json").read_text())
    shapes = {name: np.array([[cell == "#" for cell in row] for row in truth[name]]) for name in ("mask", "second")}
    read = {}
    for name, wanted in truth["files"].items():
        if not name.startswith("masks/"):
            continue
        try:
            mask = np.asarray(decode_mask(folder / name)) > 0
        except DatasetError:
            read[name] = False
        else:
            assert wanted["objects"] == ["mask"] and np.array_equal(mask, shapes["mask"]), name
            read[name] = True
    refused = {name.removeprefix("masks/") for name, right in read.items() if not right}
    assert refused == {
        "palette_two_objects.png",
        "colours.png",
        "instances_16_bit.png",
        "float.tif",
        "antialiased.png",
        "array.npy",
    }


def test_a_tiff_in_which_white_is_zero(tmp_path):
    """Pillow inverts 8 bits, and leaves 16 as they are."""
    pixels = np.zeros((HEIGHT, WIDTH), dtype=np.uint16)
    pixels[:, 6:] = 65535
    PIL.Image.fromarray(pixels).save(tmp_path / "deep.tif", tiffinfo={262: 0})
    with pytest.raises(DatasetError, match="white is zero"):
        decode_mask(tmp_path / "deep.tif")


def test_a_plain_bitmap(tmp_path):
    (tmp_path / "a.pbm").write_text("P1\n4 1\n0 1 1 0\n")
    assert np.array_equal(np.asarray(decode_mask(tmp_path / "a.pbm")), [[255, 0, 0, 255]])


POLYGON = st.lists(st.tuples(st.integers(-2, 50), st.integers(-2, 34)), min_size=3, max_size=7).map(
    # off the grid: no pixel's centre lies on a corner, where inside and outside are a matter of taste
    lambda points: [value / 4 + 0.03 for point in points for value in point]
)


class TestPolygons:
    def test_pixel_convention(self):
        mask = polygons_to_mask([SQUARE], (WIDTH, HEIGHT))
        expected = np.zeros((HEIGHT, WIDTH), dtype=bool)
        expected[1:4, 2:6] = True
        assert mask.dtype == bool and np.array_equal(mask, expected)

    def test_whole_image_and_tolerance(self):
        assert polygons_to_mask([[0, 0, WIDTH, 0, WIDTH, HEIGHT, 0, HEIGHT]], (WIDTH, HEIGHT)).all()
        assert polygons_to_mask(
            [[-1, -1, WIDTH + 1, -1, WIDTH + 1, HEIGHT + 1, -1, HEIGHT + 1]], (WIDTH, HEIGHT)
        ).all()

    def test_area_of_a_disc(self):
        angles = np.linspace(0, 2 * np.pi, 200, endpoint=False)
        disc = np.stack([64 + 40 * np.cos(angles), 50 + 40 * np.sin(angles)], axis=1)
        mask = polygons_to_mask([disc.ravel().tolist()], (128, 100))
        assert mask.sum() == pytest.approx(np.pi * 1600, rel=0.005)
        rows, columns = np.nonzero(mask)
        assert columns.mean() + 0.5 == pytest.approx(64, abs=0.05)  # not shifted by half a pixel
        assert rows.mean() + 0.5 == pytest.approx(50, abs=0.05)

    @settings(max_examples=60, deadline=None)
    @given(POLYGON)
    def test_even_odd_rule_of_an_independent_ray_caster(self, polygon):
        mask = polygons_to_mask([polygon], (WIDTH, HEIGHT))
        x, y = np.array(polygon[0::2]), np.array(polygon[1::2])
        following_x, following_y = np.roll(x, -1), np.roll(y, -1)
        for row in range(HEIGHT):
            for column in range(WIDTH):
                px, py = column + 0.5, row + 0.5
                crosses = (y > py) != (following_y > py)
                with np.errstate(divide="ignore", invalid="ignore"):
                    at = x + (py - y) / (following_y - y) * (following_x - x)
                distance = np.abs(at[crosses] - px)
                if len(distance) and distance.min() < 1e-9:
                    continue  # on an edge
                assert mask[row, column] == (np.count_nonzero(crosses & (at > px)) % 2 == 1)

    @settings(max_examples=60, deadline=None)
    @given(st.lists(POLYGON, max_size=4), st.randoms(use_true_random=False))
    def test_joined_by_or(self, polygons, random):
        joined = polygons_to_mask(polygons, (WIDTH, HEIGHT))
        separate = [polygons_to_mask([polygon], (WIDTH, HEIGHT)) for polygon in polygons]
        assert np.array_equal(joined, np.any([np.zeros((HEIGHT, WIDTH), bool), *separate], axis=0))
        shuffled = list(polygons)
        random.shuffle(shuffled)
        assert np.array_equal(joined, polygons_to_mask(shuffled, (WIDTH, HEIGHT)))
        assert np.array_equal(joined, polygons_to_mask(polygons + shuffled, (WIDTH, HEIGHT)))
