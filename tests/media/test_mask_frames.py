"""Masks of several frames: what one mask of all of them, one below the other, would be."""

import numpy as np
import PIL.Image
import pytest

from sa2va_trl.media.mask_frames import PictureKind, judge_frames, pixels_of
from sa2va_trl.media.mask_objects import array_objects, mask_objects


FRAMES, HEIGHT, WIDTH = 4, 12, 16
PALETTE = (0, 0, 0, 200, 0, 0, 0, 200, 0, 255, 255, 255)
COLOURS = np.array([(0, 0, 0), (255, 0, 0), (0x55, 0xAA, 0xFF), (255, 255, 255)], dtype=np.uint8)


def ids():
    """Nothing in the first frame, object 1 alone in the second, 1 and 3 in the third, all in the last; a rim of 0."""
    found = np.zeros((FRAMES, HEIGHT, WIDTH), dtype=np.uint8)
    found[1:, 2:5, 2:6] = 1
    found[2:, 7:10, 2:9] = 3
    found[3, 2:6, 10:14] = 2
    return found


IDS = ids()
EDGES = np.where(IDS == 1, 255, np.where(IDS > 1, 90, 0)).astype(np.uint8)
DEEP = np.array([0, 900, 2000, 3000], dtype=np.uint16)[IDS]
BLURRED = (np.random.default_rng(0).integers(300, 3000, IDS.shape) * (IDS > 0)).astype(np.uint16)
ALPHA = np.stack([np.full_like(IDS, 200), (IDS > 0) * np.uint8(255)], axis=-1)
CASES = {
    "ids": (IDS, "L", {}),
    "0 and 255": ((IDS > 0) * np.uint8(255), "L", {}),
    "0 and 1, threshold": ((IDS > 0) * np.uint8(1), "L", {"threshold": 0.5}),
    "0 and 1, threshold above": ((IDS > 0) * np.uint8(1), "L", {"threshold": 128}),
    "one bit": (IDS > 0, "1", {}),
    "grey edges": (EDGES, "L", {}),
    "grey edges below 255": (np.minimum(EDGES, 200), "L", {}),
    "grey edges, threshold": (EDGES, "L", {"threshold": 128}),
    "grey that has names": (EDGES, "L", {"known": {"90", "255"}}),
    "lossy": (IDS, "L", {"lossy": True}),
    "lossy, threshold": (EDGES, "L", {"lossy": True, "threshold": 128}),
    "255 beside ids": (np.where(IDS == 2, 255, IDS).astype(np.uint8), "L", {}),
    "no background": (IDS + np.uint8(1), "L", {}),
    "palette": (IDS, "P", {"palette": PALETTE}),
    "palette of grey": (IDS, "P", {"palette": (0,) * 3 + (85,) * 3 + (170,) * 3 + (255,) * 3}),
    "palette, white first": ((IDS == 0).astype(np.uint8), "P", {"palette": (255,) * 3 + (0,) * 3}),
    "palette, index and colour disagree": ((IDS > 0).astype(np.uint8), "P", {"palette": (255,) * 3 + (0,) * 3}),
    "colours": (COLOURS[IDS], "RGB", {}),
    "one colour": (COLOURS[(IDS > 0) * 2], "RGB", {}),
    "colours, lossy": (COLOURS[IDS], "RGB", {"lossy": True}),
    "grey in three channels": (np.repeat(EDGES[..., None], 3, -1), "RGB", {}),
    "ids in three channels": (np.repeat(IDS[..., None], 3, -1), "RGB", {}),
    "alpha": (ALPHA, "LA", {}),
    "colours, black is transparent": (
        np.concatenate([COLOURS[IDS], (IDS > 0)[..., None] * np.uint8(255)], axis=-1),
        "RGBA",
        {},
    ),
    "opaque": (np.concatenate([COLOURS[IDS], np.full((*IDS.shape, 1), 255, np.uint8)], axis=-1), "RGBA", {}),
    "16 bit": (DEEP, "I;16", {}),
    "16 bit, blurred": (BLURRED, "I;16", {}),
    "16 bit, white": ((IDS > 0) * np.uint16(65535), "I;16", {}),
    "32 bit": (DEEP.astype(np.int32), "I", {}),
    "floating point": (IDS / np.float32(3), "F", {}),
    "floating point, threshold": (IDS / np.float32(3), "F", {"threshold": 0.5}),
    "array": (IDS.astype(np.int64), None, {}),
    "array, blurred": (BLURRED.astype(np.int32), None, {}),
    "array of bool": (IDS > 0, None, {}),
    "array of floats": (IDS / 3, None, {"threshold": 0.9}),
    "array of no numbers": (np.where(IDS > 1, np.nan, 0.5), None, {"threshold": 0.9}),
    "array of colours": (COLOURS[IDS], None, {}),
    "array below 0": (IDS.astype(np.int16) - 1, None, {}),
    "nothing": (IDS * 0, "L", {}),
}


@pytest.mark.parametrize("case", CASES)
def test_frames_are_judged_as_one_mask_of_all_of_them(case):
    frames, mode, options = CASES[case]
    palette, lossy = options.get("palette", ()), options.get("lossy", False)
    how = {name: options[name] for name in ("threshold", "known") if name in options}
    kind = None if mode is None else PictureKind(mode, palette, lossy=lossy)
    whole = frames.reshape(FRAMES * HEIGHT, *frames.shape[2:])
    try:
        if mode is None:
            expected = array_objects(whole, **how)
        else:
            picture = PIL.Image.fromarray(whole)
            if palette:
                picture.putpalette(list(palette))
            assert picture.mode == mode
            expected = mask_objects(picture, lossy=lossy, **how)
    except ValueError as error:
        with pytest.raises(ValueError) as caught:
            judge_frames(iter(frames), kind, **how)
        assert str(caught.value) == str(error)
        return
    found = judge_frames(iter(frames), kind, **how)
    assert tuple(found.pixels) == expected.names
    for number, frame in enumerate(frames):
        rows = slice(number * HEIGHT, (number + 1) * HEIGHT)
        there = [name for name in expected.names if expected.mask({name})[rows].any()]
        assert list(found.frames[number]) == there
        for name in there:
            np.testing.assert_array_equal(pixels_of(frame, found.pixels[name]), expected.mask({name})[rows])


def test_a_frame_is_not_judged_by_what_it_alone_holds():
    assert judge_frames(iter(IDS)).frames == [(), ("1",), ("1", "3"), ("1", "2", "3")]
    # Each of the first three frames could be ids.
    rising = np.stack([np.where(IDS[3] == 1, value, 0) for value in (10, 20, 30, 200)]).astype(np.uint8)
    with pytest.raises(ValueError, match="values 0, 10, 20, 30, 200; .*Grey edges of one object, or an id for each"):
        judge_frames(iter(rising))
    # A frame in which objects touch among others in which they do not.
    apart = np.repeat(DEEP[3:], 8, axis=0)
    apart[0] = 0
    apart[0, 2:8, 2], apart[0, 2:8, 3] = 900, 2000
    assert judge_frames(iter(apart)).frames == [("900", "2000"), *[("900", "2000", "3000")] * 7]
    with pytest.raises(ValueError, match="tiny or touch each other"):
        judge_frames(iter(apart[:1]))


@pytest.mark.parametrize("frame", [np.zeros((2, 2), np.complex64), np.zeros((2, 2, 3)), np.zeros(4)])
def test_what_is_no_mask(frame):
    with pytest.raises(ValueError, match="expected one number a pixel"):
        judge_frames([frame])


def test_no_frame_at_all():
    with pytest.raises(ValueError, match="holds no frame"):
        judge_frames([])
