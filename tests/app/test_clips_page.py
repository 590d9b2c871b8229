import numpy as np
import pytest
from PIL import Image

from sa2va_trl.app.clips import FRAMES, SEED, SIZE, generated_clip, read_clip
from sa2va_trl.app.page import FIRST_CLIP, PROMPTS
from sa2va_trl.data.angiography import generate_video
from sa2va_trl.errors import DatasetError


def frames(count):
    return [Image.fromarray(np.full((20, 30, 3), 40 * number, dtype=np.uint8)) for number in range(count)]


def test_a_picture_is_one_frame_without_a_number(tmp_path, image):
    image.save(tmp_path / "one.png")
    clip = read_clip(tmp_path / "one.png", max_frames=1)
    assert (clip.name, clip.file, clip.moving, clip.left_out, clip.start) == ("one", "one.png", False, 0, 0)
    assert len(clip.frames) == 1 and np.array_equal(clip.frames[0], image)
    assert clip.name_of(0) == "one"


def test_of_a_long_clip_the_first_frames_are_taken(tmp_path):
    first, *others = frames(5)
    first.save(tmp_path / "run.tif", save_all=True, append_images=others)
    clip = read_clip(tmp_path / "run.tif", max_frames=3)
    assert clip.moving and clip.left_out == 2 and clip.name_of(2) == "run_f00002"
    assert [np.asarray(frame).max() for frame in clip.frames] == [0, 40, 80]
    assert read_clip(tmp_path / "run.tif", max_frames=9).left_out == 0


def test_frames_of_other_sizes_are_shown_in_that_of_the_first(tmp_path):
    first, *others = frames(3)
    others[0] = others[0].resize((90, 10))
    first.save(tmp_path / "run.tif", save_all=True, append_images=others)
    clip = read_clip(tmp_path / "run.tif", max_frames=3)
    assert [frame.size for frame in clip.frames] == [(30, 20)] * 3
    assert [np.asarray(frame).max() for frame in clip.frames] == [0, 40, 80]


@pytest.mark.parametrize("name", ["torn.png", "text.txt", "torn.gif"])
def test_what_cannot_be_read_is_named_without_its_folder(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x89PNG no more")
    with pytest.raises(DatasetError, match=f"^{name} ") as error:
        read_clip(tmp_path / name, max_frames=3)
    assert str(tmp_path) not in str(error.value)
    with pytest.raises(FileNotFoundError):
        read_clip(tmp_path / "gone.png", max_frames=3)


def test_a_generated_clip_is_that_of_its_number_and_hospital():
    clip = generated_clip(hospital=2, number=3, size=64)
    video = generate_video(SEED, 3, 16, 64, "named", 2)
    assert clip.moving and clip.name == "h2_v0003" and clip.start == 8
    assert np.array_equal([np.asarray(frame)[..., 0] for frame in clip.frames], video.frames)
    with pytest.raises(ValueError, match="hospital"):
        generated_clip(hospital=3, number=0)
    with pytest.raises(ValueError, match="video"):
        generated_clip(hospital=1, number=-1)


def test_the_first_clip_shows_what_the_buttons_ask_for():
    clip = generate_video(SEED, FIRST_CLIP, FRAMES, SIZE, "named", 1)
    asked = {name: masks for name, masks in clip.structures.items() if any(name in text for text in PROMPTS.values())}
    assert set(asked) == {"blood vessel", "catheter", "diaphragm"}
    assert all(masks[FRAMES // 2].any() for masks in asked.values())
