import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sa2va_trl.evaluation.views import PLAIN, Corner, Gamma, Surround, check_sides, parse_views


NAMES = ["hflip", "vflip", "scale0.25", "scale0.75", "scale1.25", "scale1.7", "scale2", "gamma0.8", "gamma1.25"]
sizes = st.tuples(st.integers(1, 41), st.integers(1, 41))


def grey(size, seed=0):
    """Every grey value may be there, in an order without symmetry."""
    return np.random.default_rng(seed).integers(0, 256, size, np.uint8)


def of(name):
    return parse_views(name)[0]


def there_and_back(view, values):
    """What a view gives back of maps that are the changed picture itself."""
    back = [
        change.inverse(np.asarray(change.forward(Image.fromarray(values)), dtype=np.float32)[None], values.shape)
        for change in view.changes
    ]
    return sum(back)[0]


@pytest.mark.parametrize("name", [name for name in NAMES if "gamma" not in name])
@settings(deadline=None, max_examples=40)
@given(size=sizes, seed=st.integers(0, 3))
def test_the_way_back_undoes_the_way_there(name, size, seed):
    values = grey(size, seed)
    assert np.array_equal(there_and_back(of(name), values), values)


@settings(deadline=None, max_examples=40)
@given(size=sizes, thousandths=st.integers(250, 2000).filter(lambda number: number != 1000))
def test_any_scale_is_undone(size, thousandths):
    values = grey(size)
    assert np.array_equal(there_and_back(of(f"scale{thousandths / 1000}"), values), values)


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=20)
@given(size=sizes, count=st.integers(1, 3))
def test_maps_come_back_at_the_size_of_the_picture_and_shares_add_up_to_one(name, size, count):
    view, picture = of(name), Image.fromarray(grey(size))
    total = np.zeros((count, *size))
    for change in view.changes:
        changed = change.forward(picture)
        back = change.inverse(np.ones((count, *changed.size[::-1]), np.float32), size)
        assert back.shape == (count, *size) and back.dtype == np.float32
        total += back
    assert (total == 1).all()


def test_flips_turn_the_sides_that_their_names_say():
    picture = Image.fromarray(np.array([[1, 2], [3, 4]], np.uint8))
    shown = {name: np.asarray(of(name).changes[0].forward(picture)).tolist() for name in ("hflip", "vflip")}
    assert shown == {"hflip": [[2, 1], [4, 3]], "vflip": [[3, 4], [1, 2]]}


@pytest.mark.parametrize("size", [(40, 60), (41, 63)])
def test_a_scale_below_one_shows_the_picture_smaller_in_black(size):
    values = grey(size) // 2 + 100
    changed = np.asarray(Surround(0.8).forward(Image.fromarray(values)))
    assert changed.shape == tuple(np.ceil(np.array(size) / 0.8).astype(int))
    assert (changed > 0).sum() == values.size
    rows, columns = np.nonzero(changed)
    border = [rows.min(), changed.shape[0] - 1 - rows.max(), columns.min(), changed.shape[1] - 1 - columns.max()]
    assert max(border) - min(border) <= max(size) // 8 and min(border) >= 5  # in the middle


def test_a_scale_above_one_shows_the_four_corners():
    values = grey((40, 60))
    picture, view = Image.fromarray(values), of("scale1.25")
    shown = [np.asarray(change.forward(picture)) for change in view.changes]
    for found, rows, columns in zip(shown, (0, 0, 8, 8), (0, 12, 0, 12), strict=True):
        assert np.array_equal(found, values[rows : rows + 32, columns : columns + 48])
    # In the middle all four have a share of a quarter, at the rim two of a half, in the corner the one.
    back = Corner(1.25, right=False, bottom=False).inverse(np.ones((32, 48)), (40, 60))
    assert (back[20, 30], back[20, 3], back[3, 3], back[39, 59]) == (0.25, 0.5, 1, 0)


def test_gamma_changes_grey_values_alone_and_leaves_masks_and_maps():
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    for exponent, compare in ((0.8, np.greater_equal), (1.25, np.less_equal)):
        changed = np.asarray(Gamma(exponent).forward(ramp))[0].astype(int)
        assert changed[0] == 0 and changed[255] == 255 and (np.diff(changed) >= 0).all()
        assert compare(changed, np.arange(256)).all() and changed[128] != 128
        assert changed[64] == round(255 * (64 / 255) ** exponent)
    maps = np.random.default_rng(0).random((2, 3, 4))
    assert np.array_equal(Gamma(0.8).inverse(maps, (3, 4)), maps)
    colour = Image.fromarray(grey((5, 7, 3)))
    by_channel = [np.asarray(Gamma(2.0).forward(channel)) for channel in colour.split()]
    assert np.array_equal(np.asarray(Gamma(2.0).forward(colour)), np.stack(by_channel, -1))


@pytest.mark.parametrize("name", NAMES)
def test_images_and_masks_of_a_row_are_changed_alike(name):
    mask = Image.fromarray(np.where(grey((12, 20)) > 127, 255, 0).astype(np.uint8))
    images = [Image.fromarray(grey((12, 20, 3), seed)) for seed in range(2)] + [mask.convert("P")]
    for change in of(name).changes:
        shown, masks = change(images, [mask])
        assert [image.mode for image in shown] == ["RGB"] * 3 and masks[0].mode == "L"
        assert {image.size for image in [*shown, *masks]} == {masks[0].size}
        assert set(np.unique(np.asarray(masks[0]))) <= {0, 255}
        # The third image is the mask itself, whose two grey values no gamma changes.
        assert np.array_equal(np.asarray(shown[2])[..., 0], np.asarray(masks[0]))


def test_the_plain_view_changes_nothing():
    values = grey((5, 7))
    assert len(PLAIN.changes) == 1 and np.array_equal(there_and_back(PLAIN, values), values)


# Names


def test_names_may_be_a_list_or_stand_between_commas():
    expected = [of(name) for name in ("hflip", "scale0.75", "gamma.8")]
    assert parse_views("hflip, scale0.75,gamma.8") == parse_views(["hflip,scale0.75", "gamma.8"]) == expected
    assert [view.name for view in expected] == ["hflip", "scale0.75", "gamma.8"] and parse_views([]) == []


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("flip", r"no view 'flip', only hflip, vflip, scale with a number .* gamma with"),
        ("hflip,", "no view ''"),
        ("scale", "no view 'scale'"),
        ("scale-1", "no view 'scale-1'"),
        ("gamma1e3", "no view 'gamma1e3'"),
        ("scale1.0", "scale takes a number from 0.25 to 2 other than 1"),
        ("scale2.01", "scale takes a number from 0.25 to 2"),
        ("scale0", "scale takes a number from 0.25 to 2"),
        ("gamma0", "gamma takes a number from 0.1 to 10"),
        (["hflip", "gamma0.8", "hflip"], "names hflip twice"),
        ("gamma0.8,gamma.80", "names gamma.80 twice"),
    ],
)
def test_what_is_no_view_is_refused(names, message):
    with pytest.raises(ValueError, match=message):
        parse_views(names)


# Sides


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("Please segment the left coronary artery.", "left"),
        ("RIGHT main branch", "RIGHT"),
        ("the leftmost vessel", "leftmost"),
        ("left_main", "left"),
        ("right-hand side", "right"),
        ("左冠状动脉", "左"),
        ("请分割右冠状动脉。", "右"),
    ],
)
def test_a_horizontal_flip_is_refused_where_a_side_is_named(text, word):
    with pytest.raises(ValueError, match=f"tta hflip mirrors the image.*says '{word}'.*leave hflip out of --tta"):
        check_sides(["vessel", text], parse_views("gamma0.8,hflip"))
    check_sides(["vessel", text], parse_views("vflip,scale0.75,scale1.25,gamma0.8"))


@pytest.mark.parametrize("text", ["the bright vessel", "copyright", "cleft", "blood vessel", "upper branch", "血管"])
def test_words_that_name_no_side_are_taken(text):
    check_sides([text], parse_views("hflip"))


@pytest.mark.parametrize("text", ["upper branch", "the Inferior wall", "lower_third", "上方的血管", "下段"])
def test_a_vertical_flip_is_refused_where_up_or_down_is_named(text):
    with pytest.raises(ValueError, match="tta vflip mirrors the image"):
        check_sides([text], parse_views("vflip"))


@pytest.mark.parametrize("text", ["stopped flow", "left branch", "以下血管", "follower"])
def test_words_that_name_no_height_are_taken(text):
    check_sides([text], parse_views("vflip"))
