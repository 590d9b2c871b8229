import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from samples import TARGET, answers, as_image, box, noise, sample, stored

from sa2va_trl.evaluation.evaluator import evaluate
from sa2va_trl.evaluation.overlays import (
    COLOURS,
    KeptMasks,
    by_frame,
    draw_beside,
    draw_samples,
    overlay,
    save_overlays,
)
from sa2va_trl.files import file_name


def canvas(width=9, height=7, value=100):
    return Image.new("RGB", (width, height), (value, value, value))


def halves(image):
    pixels = np.asarray(image).astype(int)
    width = pixels.shape[1] // 2
    return pixels[:, :width], pixels[:, width:]


def painted(kind, value=100):
    """The colour of a pixel of a grey canvas."""
    return np.full(3, value) if kind == "plain" else 0.35 * value + 0.65 * np.array(COLOURS[kind])


@settings(deadline=None, max_examples=50)
@given(prediction=arrays(bool, (7, 9)), target=arrays(bool, (7, 9)))
def test_every_pixel_has_the_colour_of_what_it_is(prediction, target):
    before, after = halves(overlay(canvas(), prediction, target))
    assert (before == 100).all()
    kinds = {(True, True): "tp", (True, False): "fp", (False, True): "fn", (False, False): "plain"}
    expected = [
        [painted(kinds[pair]) for pair in zip(*rows, strict=True)] for rows in zip(prediction, target, strict=True)
    ]
    assert np.abs(after - expected).max() <= 0.51


def test_colours_are_a_blend_with_the_image():
    mask = np.zeros((7, 9), bool)
    mask[2, 3] = True
    for value in (0, 100, 255):
        pixel = halves(overlay(canvas(value=value), mask))[1][2, 3]
        assert pixel == pytest.approx(painted("tp", value), abs=0.51)
    # What lies below still shows.
    dark, light = (halves(overlay(canvas(value=value), mask))[1][2, 3] for value in (0, 255))
    assert (light - dark > 50).all()


@given(prediction=arrays(bool, (7, 9)))
@settings(deadline=None, max_examples=20)
def test_without_a_target_everything_is_found(prediction):
    image = overlay(canvas(), prediction)
    assert image == overlay(canvas(), prediction, prediction)
    expected = np.where(prediction[..., None], painted("tp"), painted("plain"))
    assert np.abs(halves(image)[1] - expected).max() <= 0.51


def test_colours_differ_in_brightness_or_blue_too():
    """Red-green blindness leaves brightness and blue."""
    seen = np.array([(0.3 * r + 0.59 * g + 0.11 * b, b) for r, g, b in COLOURS.values()])
    for first in range(3):
        for second in range(first):
            assert np.abs(seen[first] - seen[second]).max() > 30


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "1", "P"])
def test_any_mode_and_shape_becomes_rgb_beside_itself(mode):
    noise = np.random.default_rng(0).integers(0, 256, (5, 11, 3), np.uint8)
    image = Image.fromarray(noise).convert(mode)
    untouched = image.copy()
    result = overlay(image, np.zeros((5, 11), bool), np.zeros((5, 11), bool))
    assert result.mode == "RGB" and result.size == (22, 5)
    before, after = halves(result)
    assert np.array_equal(before, np.asarray(image.convert("RGB"))) and np.array_equal(before, after)
    overlay(image, np.ones((5, 11), bool))
    assert image == untouched


# File names


@settings(deadline=None, max_examples=300)
@given(name=st.text(max_size=40))
@example("../../etc/passwd")
@example("a/b\\c:d")
@example("..")
@example("")
@example("~/x $(rm) `y` *?|<>\"';&")
@example("new\nline\0nul")
def test_file_names_stay_in_their_folder(name):
    result = file_name(name)
    assert result and not set(result) & set("/\\:*?\"'<>|&;$`~ \n\r\t\0")
    assert result not in (".", "..") and not result.startswith(".")
    assert os.path.basename(result) == result
    folder = Path("/some/folder")
    assert (folder / f"{result}.png").parent == folder
    assert file_name(result) == result


@pytest.mark.parametrize("name", ["frame-001.v2", "Ärztin_7", "0"])
def test_names_without_anything_odd_are_kept(name):
    assert file_name(name) == name


def test_numbers_are_names_too():
    assert file_name(17) == "17"


def test_a_name_does_not_look_like_an_option():
    assert not file_name("-rf").startswith("-")


def test_long_names_can_be_written(tmp_path):
    (tmp_path / f"{file_name('film' * 100)}.png").write_bytes(b"")


def test_overlays_are_saved_under_their_names(tmp_path):
    folder = tmp_path / "new" / "overlays"
    pictures = [("a", canvas(value=1)), ("pat 1/film:2", canvas(value=2)), ("../out", canvas(value=3))]
    save_overlays(pictures, folder)
    assert {path.name for path in folder.iterdir()} == {f"{file_name(name)}.png" for name, _ in pictures}
    assert [path.name for path in tmp_path.rglob("*.png") if path.parent != folder] == []
    for name, image in pictures:
        assert Image.open(folder / f"{file_name(name)}.png").convert("RGB") == image
    save_overlays(pictures, folder)  # again, over what is there


def test_no_overlay_overwrites_another(tmp_path):
    save_overlays([("a/b", canvas(value=1)), ("a_b", canvas(value=2))], tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_all_objects_of_a_frame_are_one_mask():
    one, other = box((4, 6), (0, 2), (0, 2)), box((4, 6), (2, 4), (3, 6))
    none = np.zeros((4, 6), bool)
    assert np.array_equal(by_frame(np.stack([one, other]), {"image": None}), (one | other)[None])
    clip = {"images": [None, None]}  # two objects on two frames, frame by frame of each
    assert np.array_equal(by_frame(np.stack([one, none, none, other]), clip), np.stack([one, other]))


def test_samples_are_drawn_from_the_bits_that_were_kept():
    other = box((12, 20), (0, 3), (0, 20))
    clip = {"images": [noise(20, 12, seed) for seed in range(2)], "masks": [as_image(TARGET)] * 2}
    dataset = stored([sample("a/1", TARGET), {**clip, "phrases": ["vessel"], "sample_id": "film"}])
    kept = KeptMasks(0.6)
    predictions = [0.7 * other[None], np.stack([TARGET, 0.5 * TARGET])]
    _, samples = evaluate(dataset, answers(dataset, *predictions), on_row=kept)
    pictures = dict(draw_samples(dataset, samples, kept))
    still, film = pictures.values()
    assert list(pictures)[0].startswith(f"dice_{samples['dice'][0]:.3f}_a_1-") and len(pictures) == 2
    assert np.array_equal(still, overlay(dataset[0]["image"], other, TARGET))
    first, second = np.split(np.asarray(film), 2)
    assert np.array_equal(first, overlay(dataset[1]["images"][0], TARGET, TARGET))
    assert np.array_equal(second, overlay(dataset[1]["images"][1], np.zeros_like(TARGET), TARGET))


def test_models_are_drawn_beside_each_other():
    dataset = stored([sample("a", TARGET), sample("b", TARGET, ~TARGET)])
    predictions = [
        [TARGET[None], np.stack([TARGET, ~TARGET])],
        [0.4 * TARGET[None], np.stack([TARGET, 0 * TARGET])],
    ]
    drawn = draw_beside(answers(dataset, *own) for own in predictions)
    assert list(drawn) == ["a", "b"] and all(picture.size == (60, 12) for picture in drawn.values())
    image = dataset[0]["image"]
    for number, found in enumerate((TARGET, np.zeros_like(TARGET))):
        expected = np.asarray(overlay(image, found, TARGET))
        part = np.asarray(drawn["a"])[:, 20 * (number + 1) : 20 * (number + 2)]
        assert np.array_equal(part, expected[:, 20:])
        assert np.array_equal(np.asarray(drawn["a"])[:, :20], expected[:, :20])
