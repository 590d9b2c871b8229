import json
import logging
import re
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from segmentations import write_run, write_series
from tasks import run_task

from sa2va_trl import Sa2VAForConditionalGeneration, tiny_sa2va
from sa2va_trl.data import DatasetError
from sa2va_trl.data.angiography import generate_video
from sa2va_trl.data.export.folder import WRITERS
from sa2va_trl.data.loading import load_dataset_dict
from sa2va_trl.data.readers.coco import find_coco
from sa2va_trl.data.readers.entries import Reading
from sa2va_trl.data.readers.labelme import find_labelme
from sa2va_trl.evaluation.overlays import object_names
from sa2va_trl.files import file_name
from sa2va_trl.media.clips import Picture
from sa2va_trl.models import processing
from sa2va_trl.scripts import loading
from sa2va_trl.scripts import predict as predict_module
from sa2va_trl.scripts.arguments import ModelArguments, RouterArguments
from sa2va_trl.scripts.predict import PHRASES, RUN, default_prompts, make_parser


PROMPTS = [f"Please segment the {phrase}." for phrase in PHRASES]


FOLDERS = ("masks", "probabilities", "overlays")


@pytest.fixture
def predict(tmp_path):
    """Run the recipe on the tiny model; what it says of the pictures."""

    def call(source, *options, answer="Sure, [SEG].", output=tmp_path / "output"):
        common = ("--model_name_or_path", "tiny-random", "--grounding_image_size", 64, "--answer", answer)
        run_task("predict", *common, "--input", source, "--output_dir", output, *options)
        return json.loads((output / "predictions.json").read_text())["predictions"]

    return call


@pytest.fixture
def segment(monkeypatch):
    """Replace `segment` by what a test makes of its arguments and the true one."""
    true = Sa2VAForConditionalGeneration.segment

    def replace(function):
        monkeypatch.setattr(
            Sa2VAForConditionalGeneration,
            "segment",
            lambda self, **given: function(lambda: true(self, **given), given),
        )

    return replace


def picture(value=100):
    return Image.fromarray(np.random.default_rng(value).integers(0, 256, (48, 64, 3), dtype=np.uint8))


def tree(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if not path.is_dir()
    }


def check_files(output, entries):
    """The folders hold what the entries say, no more and no less, and no two entries share a file."""
    listed = [
        found[key] for entry in entries for found in entry["objects"] for key in ("mask", "probabilities", "overlay")
    ]
    assert len(set(listed)) == len(listed)
    assert sorted(listed) == sorted(
        f"{folder}/{path.name}" for folder in FOLDERS for path in (output / folder).iterdir()
    )
    assert sorted(path.name for path in output.iterdir()) == sorted([*FOLDERS, "predictions.json"])


# ---------------------------------------------------------------------------------------------------------------------
# What is read
# ---------------------------------------------------------------------------------------------------------------------


def save_run(folder, suffix, pages):
    path = folder / f"run.{suffix}"
    options = {"lossless": True} if suffix == "webp" else {}
    pages[0].save(path, save_all=True, append_images=pages[1:], **options)
    return path


def test_what_is_compiled_is_sam2_and_the_cache_is_as_asked(predict, segment, monkeypatch, tmp_path):
    compiled, caches = [], []
    monkeypatch.setattr(loading, "compile_sam2", lambda sam2: compiled.append(type(sam2).__name__))
    segment(lambda true, given: (caches.append(given.get("cache_implementation")), true())[1])
    picture().save(tmp_path / "a.png")
    predict(tmp_path / "a.png", "--torch_compile", "true")
    assert compiled == ["SAM2Base"] and caches == [None]
    common = ("--model_name_or_path", "tiny-random", "--grounding_image_size", 64, "--max_new_tokens", 2)
    common += ("--input", tmp_path / "a.png", "--output_dir", tmp_path / "written")
    run_task("predict", *common, "--cache_implementation", "static")
    assert len(compiled) == 1 and caches == [None, "static"]


@pytest.mark.parametrize("suffix", ["tif", "png", "webp", "gif"])
@pytest.mark.parametrize("per_frame", [False, True])
def test_a_file_of_several_pages_is_a_video(predict, segment, tmp_path, suffix, per_frame):
    path = save_run(tmp_path, suffix, [picture(value) for value in range(3)])
    calls = []

    def watched(true, given):
        calls.append(len(given["video"]) if "video" in given else 1)
        assert given.get("num_frames") == (None if per_frame else 2)
        return true()

    segment(watched)
    entries = predict(path, *(("--per_frame", "true") if per_frame else ("--num_frames", 2)))
    assert calls == ([1, 1, 1] if per_frame else [3])
    assert [(entry["name"], entry["file"], entry["frame"]) for entry in entries] == [
        (f"run_f0000{index}", path.name, index) for index in range(3)
    ]
    assert [entry["objects"][0]["mask"] for entry in entries] == [f"masks/run_f0000{index}.png" for index in range(3)]
    check_files(tmp_path / "output", entries)


@pytest.mark.parametrize("options", [("--per_frame", "true"), ("--num_frames", 2)])
def test_options_of_a_video_are_refused_for_one_page(predict, tmp_path, options):
    path = save_run(tmp_path, "tif", [picture()])
    with pytest.raises(ValueError, match="is for a video"):
        predict(path, *options)


def test_a_folder_is_read_in_whole_or_what_is_not_is_named(predict, tmp_path, monkeypatch, caplog, capsys):
    folder = tmp_path / "input"
    (folder / "deeper").mkdir(parents=True)
    save_run(folder, "tif", [picture(0), picture(1)])
    picture(2).save(folder / "still.jfif", format="JPEG")
    for name in ("scan.dcm", "film.mp4", "._still.png", "Thumbs.db"):
        (folder / name).touch()
    # (A task keeps the package's log to itself.)
    monkeypatch.setattr(logging.getLogger("sa2va_trl"), "handlers", [caplog.handler])
    entries = predict(folder)
    assert [entry["name"] for entry in entries] == ["run_f00000", "run_f00001", "still"]
    assert ["frame" in entry for entry in entries] == [True, True, False]
    (message,) = [record.getMessage() for record in caplog.records if record.name.startswith("sa2va_trl.media")]
    assert message.endswith("by its own path: deeper/, film.mp4, scan.dcm")
    content = json.loads((tmp_path / "output" / "predictions.json").read_text())
    assert content["left_out"] == ["deeper/", "film.mp4", "scan.dcm"]
    assert "3 images, 3 masks" in capsys.readouterr().out


@pytest.mark.parametrize("per_frame", [False, True])
def test_a_damaged_clip_is_refused_before_the_model_is_loaded(predict, tmp_path, monkeypatch, per_frame):
    path = save_run(tmp_path, "tif", [picture(value) for value in range(3)])
    path.write_bytes(path.read_bytes()[:-100])
    monkeypatch.setattr("sa2va_trl.scripts.predict.load_model", lambda arguments: pytest.fail("the model is loaded"))
    with pytest.raises(DatasetError, match=r"run\.tif cannot be read: page 2 is unreadable or truncated"):
        predict(path, *(("--per_frame", "true") if per_frame else ()))
    assert [file.name for file in tmp_path.iterdir()] == ["run.tif"]


# ---------------------------------------------------------------------------------------------------------------------
# What is left of an earlier call
# ---------------------------------------------------------------------------------------------------------------------


def test_a_second_call_leaves_nothing_of_the_first(predict, tmp_path, capsys):
    picture().save(tmp_path / "a.png")
    entries = predict(tmp_path / "a.png", answer="[SEG] [SEG]")
    assert [found["mask"] for found in entries[0]["objects"]] == ["masks/a.object0.png", "masks/a.object1.png"]
    check_files(tmp_path / "output", entries)
    for folder in FOLDERS:
        (tmp_path / "output" / folder / ".DS_Store").touch()  # a system's, not the user's
    assert predict(tmp_path / "a.png")[0]["objects"][0]["mask"] == "masks/a.png"
    entries = predict(tmp_path / "a.png", answer="nothing there")
    assert entries[0]["objects"] == []
    check_files(tmp_path / "output", entries)
    printed = capsys.readouterr()
    assert "1 images, 2 masks" in printed.out and "1 images, 0 masks" in printed.out


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, ValueError])
def test_a_call_that_ends_in_its_middle_leaves_the_old_result_whole(predict, segment, tmp_path, error):
    folder = tmp_path / "input"
    folder.mkdir()
    for index in range(3):
        picture(index).save(folder / f"{index}.png")
    calls = []

    def failing(true, given):
        calls.append(given)
        if len(calls) == 2:
            raise error("no more")
        return true()

    segment(failing)
    with pytest.raises(error, match=None if error is KeyboardInterrupt else r"1\.png: no more"):
        predict(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["input"]
    predict(folder)
    before = tree(tmp_path / "output")
    calls.clear()
    with pytest.raises(error):
        predict(folder, "--threshold", 0.3)
    assert tree(tmp_path / "output") == before


@pytest.mark.parametrize("foreign", ["masks/mine.png", "probabilities/deep/a.npy", "overlays/a.txt", "masks/.gitkeep"])
@pytest.mark.parametrize("earlier", [False, True])
def test_what_predict_has_not_written_is_not_replaced(predict, tmp_path, monkeypatch, foreign, earlier):
    picture().save(tmp_path / "a.png")
    if earlier:
        predict(tmp_path / "a.png", output=tmp_path)
    (tmp_path / foreign).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / foreign).write_text("mine")
    before = tree(tmp_path)
    monkeypatch.setattr("sa2va_trl.scripts.predict.load_model", lambda arguments: pytest.fail("the model is loaded"))
    with pytest.raises(ValueError, match="Give another output_dir") as error:
        predict(tmp_path / "a.png", output=tmp_path)
    named = "/".join(foreign.split("/")[:2])
    assert f"lists, and would be replaced: {named}. " in str(error.value)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("content", ["{", "[]", '{"predictions": 3}', '{"images": []}', '{"predictions": ["a"]}'])
def test_another_program_s_json_is_not_replaced(predict, tmp_path, content):
    (tmp_path / "predictions.json").write_text(content)
    picture().save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"would be replaced: predictions\.json"):
        predict(tmp_path / "a.png", output=tmp_path)


def test_other_places_that_are_no_folders_of_results_are_refused(predict, tmp_path):
    picture().save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"output_dir=.*a\.png' is a file"):
        predict(tmp_path / "a.png", output=tmp_path / "a.png")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "masks").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="would be replaced: masks. "):
        predict(tmp_path / "a.png", output=tmp_path)


def test_results_of_an_earlier_version_are_its_own(predict, tmp_path):
    """Whose JSON holds the masks alone."""
    picture().save(tmp_path / "a.png")
    predict(tmp_path / "a.png", answer="[SEG] [SEG]")
    file = tmp_path / "output" / "predictions.json"
    content = json.loads(file.read_text())
    for found in content["predictions"][0]["objects"]:
        del found["probabilities"], found["overlay"]
    file.write_text(json.dumps(content))
    check_files(tmp_path / "output", predict(tmp_path / "a.png"))


# ---------------------------------------------------------------------------------------------------------------------
# Names
# ---------------------------------------------------------------------------------------------------------------------


def test_two_inputs_never_share_an_output(predict, segment, tmp_path):
    folder = tmp_path / "input"
    folder.mkdir()
    names = ["a b.png", "a_b.png", "x.png", "x.jpg", "x.png.bmp", "a.png", "a.object1.png", "b.png", "b.object0.png"]
    sizes = {}
    for number, name in enumerate(names):
        sizes[name] = (40 + number, 30)
        picture().resize(sizes[name]).save(folder / name)
    entries = predict(folder, answer="[SEG] [SEG]")
    assert sorted(entry["file"] for entry in entries) == sorted(names)
    assert len({entry["name"] for entry in entries}) == len(names)
    check_files(tmp_path / "output", entries)
    for entry in entries:
        for found in entry["objects"]:
            assert Image.open(tmp_path / "output" / found["mask"]).size == sizes[entry["file"]]
    # Where only some pictures have several objects, names that were told apart by it could meet.
    calls = []

    def alternating(true, given):
        calls.append(given)
        given["answer"] = "[SEG]" * (1 + len(calls) % 2)
        return true()

    segment(alternating)
    entries = predict(folder, output=tmp_path / "other")
    assert {len(entry["objects"]) for entry in entries} == {1, 2}
    check_files(tmp_path / "other", entries)


CHECKSUM = file_name("a b").removeprefix("a_b")
PARTS = st.sampled_from(["a", "b", ".object0", ".object1", " ", "_", "ä", CHECKSUM, "/", "(1)", "x" * 210])
PICTURES = st.dictionaries(st.lists(PARTS, min_size=1, max_size=4).map("".join), st.integers(0, 3), max_size=12)


@given(PICTURES)
def test_names_of_masks_are_unique_and_stable(pictures):
    def names():
        taken = set()
        return [object_names(name, objects, taken) for name, objects in pictures.items()]

    found = names()
    every = [name for group in found for name in group]
    assert len(set(every)) == len(every) == sum(pictures.values())
    assert [len(group) for group in found] == list(pictures.values())
    assert all(re.fullmatch(r"[\w.\-]+", name) and len(name.encode()) < 250 for name in every)
    assert names() == found
    plain = [
        [file_name(name)] if objects == 1 else [f"{file_name(name)}.object{index}" for index in range(objects)]
        for name, objects in pictures.items()
    ]
    if len({name for group in plain for name in group}) == len(every):
        assert found == plain


@pytest.mark.parametrize("kind", ["image", "folder", "video", "video, frame by frame"])
def test_predict_writes_masks_probabilities_and_json(monkeypatch, tmp_path, trained, kind):
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 255, (48, 64, 3), dtype=np.uint8) for _ in range(3)]
    source = tmp_path / "input"
    if kind == "folder":
        source.mkdir()
        for index, frame in enumerate(frames):
            Image.fromarray(frame).save(source / f"frame {index}.png")
    elif kind == "image":
        source = source.with_suffix(".png")
        Image.fromarray(frames[0]).save(source)
        frames = frames[:1]
    else:
        av = pytest.importorskip("av")
        source = source.with_suffix(".mp4")
        with av.open(str(source), "w") as container:
            stream = container.add_stream("mpeg4", rate=5)
            stream.width, stream.height = 64, 48
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
    output = tmp_path / "output"
    whole = {"image": [], "folder": [], "video": [3], "video, frame by frame": []}[kind]
    clips = watch_segment(monkeypatch)
    run_task(
        "predict",
        *("--model_name_or_path", trained, "--input", source, "--output_dir", output),
        *("--answer", "Sure, [SEG].", "--threshold", 0.25),
        *(("--per_frame", "true") if kind == "video, frame by frame" else ()),
    )
    assert clips == whole
    written = json.loads((output / "predictions.json").read_text())["predictions"]
    assert len(written) == len(frames)
    for entry in written:
        (found,) = entry["objects"]
        mask = np.asarray(Image.open(output / found["mask"]))
        stem = Path(found["mask"]).stem
        probabilities = np.load(output / "probabilities" / f"{stem}.npy")
        assert mask.shape == probabilities.shape == (48, 64)
        assert np.array_equal(mask > 0, probabilities > 0.25)
        assert (output / "overlays" / f"{stem}.png").exists()


def watch_segment(monkeypatch):
    """The lengths of the clips that are segmented."""
    segment, clips = Sa2VAForConditionalGeneration.segment, []

    def watched(self, **arguments):
        result = segment(self, **arguments)
        if "video" in arguments:
            clips.append(result.low_res_logits.shape[1])
        return result

    monkeypatch.setattr(Sa2VAForConditionalGeneration, "segment", watched)
    return clips


@pytest.mark.parametrize("answer", ["Sure, [SEG].", None])
def test_results_do_not_depend_on_the_batch(segment, tmp_path, answer):
    (tmp_path / "input").mkdir()
    # (Qwen sees the wide ones with four times as many tokens.)
    for number, size in enumerate([(64, 48), (300, 40), (60, 50), (50, 60), (310, 44)]):
        picture(number).resize(size).save(tmp_path / "input" / f"{number}.png")
    passes, found = [], []
    segment(lambda true, given: (passes[-1].append([image.width > 100 for image in given["images"]]), true())[1])
    line = ("--model_name_or_path", "tiny-qwen3_vl", "--grounding_image_size", 64, "--input", tmp_path / "input")
    line += ("--prompt", *PROMPTS[:2], *(("--answer", answer) if answer else ("--max_new_tokens", 4)))
    for size in ("1", "3", "auto"):
        passes.append([])
        run_task("predict", *line, "--output_dir", tmp_path / size, "--batch_size", size)
        found.append(json.loads((tmp_path / size / "predictions.json").read_text())["predictions"])
    assert sorted(passes[0]) == [[False]] * 6 + [[True]] * 4
    assert passes[1] == [[True] * 3, [True], [False] * 3, [False] * 3]
    assert passes[2] == [[True] * 4, [False] * 4, [False] * 2]
    for size, entries in zip(("3", "auto"), found[1:], strict=True):
        assert len(entries) == 10 and any(entry["objects"] for entry in entries) == (answer is not None)
        for one, other in zip(found[0], entries, strict=True):
            scores = [[item.pop("predicted_iou") for item in deepcopy(entry["objects"])] for entry in (one, other)]
            assert scores[0] == pytest.approx(scores[1], abs=1e-5)
            assert {**one, "objects": len(scores[0])} == {**other, "objects": len(scores[1])}
            for name in ("phrase", "mask", "probabilities", "overlay"):
                assert [item[name] for item in one["objects"]] == [item[name] for item in other["objects"]]
            for item in one["objects"]:
                maps = [np.load(tmp_path / name / item["probabilities"]) for name in ("1", size)]
                assert np.abs(maps[0] - maps[1]).max() < 1e-5
                masks = [(tmp_path / name / item["mask"]).read_bytes() for name in ("1", size)]
                assert masks[0] == masks[1]


def test_an_error_in_a_batch_is_of_one_picture_and_where_memory_runs_out_fewer_go(predict, segment, tmp_path):
    (tmp_path / "input").mkdir()
    for number in range(4):
        picture(number).save(tmp_path / "input" / f"{number}.png")
    bad, passes = np.asarray(picture(2)), []

    def failing(true, given):
        if any(np.array_equal(np.asarray(image), bad) for image in given["images"]):
            raise RuntimeError("no more")
        return true()

    def short(true, given):
        passes.append(len(given["images"]))
        if passes[-1] > 2:
            raise torch.OutOfMemoryError("out of memory")
        return true()

    segment(failing)
    with pytest.raises(RuntimeError, match=r"input/2\.png: no more"):
        predict(tmp_path / "input", "--batch_size", 4)
    segment(short)
    assert len(predict(tmp_path / "input", "--batch_size", 4)) == 4 and passes == [4, 2, 2]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (("--batch_size", 0), "batch_size must be a whole number of at least 1, or auto; got '0'"),
        (("--batch_size", 2, "--tta", "vflip"), "tta average one picture after the other: leave out batch_size"),
        (("--batch_size", 2, "--router_model", "tiny", "--route_threshold", 0.5), "A router sends one picture"),
    ],
)
def test_batches_that_cannot_be_are_refused(predict, tmp_path, line, message):
    picture().save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=message):
        predict(tmp_path / "a.png", *line)


def test_a_clip_is_one_request(predict, tmp_path):
    with pytest.raises(ValueError, match="batch_size has no effect on a video that is tracked as a whole"):
        predict(save_run(tmp_path, "tif", [picture(0), picture(1)]), "--batch_size", 2)


def test_what_is_in_memory_together_is_few_pictures_of_few_pixels(monkeypatch):
    monkeypatch.setattr(predict_module, "WINDOW_PIXELS", 1000)
    sizes = (30, 30, 30, 30, 2000, 1)
    pictures = [Picture(str(size), Path("a"), None, Image.new("RGB", (size, 10))) for size in sizes]
    asked = [(picture, prompt) for picture in pictures for prompt in "ab"]
    found = list(predict_module.windows(asked, 5))
    assert [entry for window in found for entry in window] == asked
    assert [[int(picture.name) for picture, _ in window] for window in found] == [
        [30] * 5,
        [30] * 3,
        [2000] * 2,
        [1] * 2,
    ]


def test_bad_pictures_of_a_folder_are_reported_together(tmp_path, trained):
    folder = tmp_path / "input"
    folder.mkdir()
    Image.new("L", (64, 64)).save(folder / "good.png")
    (folder / "torn.png").write_bytes((folder / "good.png").read_bytes()[:40])
    Image.fromarray(np.full((64, 64), 40000, dtype=np.uint16)).save(folder / "deep.png")
    with pytest.raises(DatasetError, match="2 of 3") as error:
        run_task("predict", "--model_name_or_path", trained, "--input", folder, "--output_dir", tmp_path / "o")
    assert "torn.png" in str(error.value) and "deep.png" in str(error.value)
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("style", ["training", "official"])
def test_predict_asks_in_the_style_that_is_given(monkeypatch, tmp_path, style):
    picture = tmp_path / "one.png"
    Image.effect_noise((100, 60), 80).convert("RGB").save(picture)
    seen = []
    original = processing.size_of_first_step
    monkeypatch.setattr(processing, "size_of_first_step", lambda *size: seen.append(size) or original(*size))
    common = ["--input", picture, "--output_dir", tmp_path / "out", "--model_name_or_path", "tiny-qwen3_vl"]
    run_task("predict", *common, "--prompt_style", style, "--answer", "Sure, [SEG].")
    assert bool(seen) == (style == "official")


# Without an input, and with several prompts


def test_without_options_the_model_of_the_package_is_asked_for_three_things_on_a_generated_angiogram():
    args, model_args, router_args, averaging = make_parser().parse_args_and_config([])
    assert (args.input, args.is_synthetic, args.is_video) == ("synthetic", True, False)
    assert args.prompt is None and len(PROMPTS) == 3
    assert model_args == ModelArguments("tiny") and router_args == RouterArguments() and not averaging.is_on
    model = tiny_sa2va(image_size=64)[0]
    assert default_prompts(model, is_synthetic=True) == PROMPTS
    assert default_prompts(model, is_synthetic=False) == PROMPTS[:1]
    model.config.default_question = "Show me the {phrase|catheter=tube}."
    own = [f"Show me the {phrase}." for phrase in ("blood vessel", "tube", "diaphragm")]
    assert default_prompts(model, is_synthetic=True) == own


def test_a_generated_angiogram_is_segmented_frame_by_frame(predict, segment, tmp_path, capsys):
    asked = []

    def watched(true, given):
        asked.extend((np.asarray(image), text) for image, text in zip(given["images"], given["text"], strict=True))
        return true()

    segment(watched)
    entries, frames = predict("synthetic"), generate_video(**RUN).frames
    assert len(asked) == len(entries) == 3 * len(frames) == 24
    for number, ((image, text), entry) in enumerate(zip(asked, entries, strict=True)):
        frame, prompt = divmod(number, 3)
        assert text == entry["prompt"] == PROMPTS[prompt]
        assert np.array_equal(image, np.repeat(frames[frame][..., None], 3, axis=-1))
        name = f"synthetic_f0000{frame}"
        assert (entry["name"], entry["file"], entry["frame"]) == (name, "synthetic", frame)
        (found,) = entry["objects"]
        assert found["mask"] == f"masks/{name}.prompt{prompt}.png"
    content = json.loads((tmp_path / "output" / "predictions.json").read_text())
    assert content["prompt"] == PROMPTS and content.keys() == {"prompt", "predictions"}
    check_files(tmp_path / "output", entries)
    assert "8 frames, 24 masks" in capsys.readouterr().out


def test_files_of_several_prompts_and_objects_are_told_apart_and_replaced(predict, tmp_path):
    path, prompts = tmp_path / "one.png", ["Both?", "Where is it?"]
    picture().save(path)
    entries = predict(path, "--prompt", *prompts, answer="[SEG] and [SEG]")
    assert [entry["prompt"] for entry in entries] == prompts
    assert [[found["mask"] for found in entry["objects"]] for entry in entries] == [
        [f"masks/one.prompt{number}.object{kind}.png" for kind in (0, 1)] for number in (0, 1)
    ]
    check_files(tmp_path / "output", entries)
    # One prompt is of no entry alone, and leaves nothing of the earlier files.
    (entry,) = predict(path, "--prompt", prompts[0])
    assert "prompt" not in entry and entry["objects"][0]["mask"] == "masks/one.png"
    assert json.loads((tmp_path / "output" / "predictions.json").read_text())["prompt"] == prompts[0]
    check_files(tmp_path / "output", [entry])


def test_a_video_is_tracked_once_a_prompt(predict, segment, tmp_path):
    path, prompts = save_run(tmp_path, "tif", [picture(value) for value in range(3)]), ["Vessel?", "Catheter?"]
    asked = []

    def watched(true, given):
        asked.append((len(given["video"]), given["text"]))
        return true()

    segment(watched)
    entries = predict(path, "--prompt", *prompts)
    assert asked == [(3, prompt) for prompt in prompts]
    assert [(entry["frame"], entry["prompt"]) for entry in entries] == [
        (frame, prompt) for frame in range(3) for prompt in prompts
    ]
    check_files(tmp_path / "output", entries)


def test_prompts_of_a_yaml_may_be_one_text_and_must_differ(tmp_path):
    def prompts(value):
        file = tmp_path / "options.yaml"
        file.write_text(yaml.safe_dump({"input": "x.png", "prompt": value}))
        return make_parser().parse_args_and_config(["--config", str(file)])[0].prompt

    assert prompts("Where is it?") == ["Where is it?"] and prompts(["a", "b"]) == ["a", "b"]
    for value in ([], ["a", "b", "a"]):
        with pytest.raises(ValueError, match="prompt must be a text, or several different ones"):
            prompts(value)


# With a second model


PICTURES = [np.random.default_rng(seed).integers(0, 255, (48, 64, 3), dtype=np.uint8) for seed in range(3)]


def predict_folder(tmp_path, name, *options):
    source = tmp_path / "input"
    source.mkdir(exist_ok=True)
    for index, picture in enumerate(PICTURES):
        Image.fromarray(picture).save(source / f"{index}.png")
    common = ("--input", source, "--output_dir", tmp_path / name, "--answer", "Sure, [SEG].")
    run_task("predict", *common, "--model_name_or_path", "tiny-random", "--grounding_image_size", 64, *options)
    entries = json.loads((tmp_path / name / "predictions.json").read_text())["predictions"]
    return entries, [np.load(file) for file in sorted((tmp_path / name / "probabilities").glob("*.npy"))]


def test_predict_routes(monkeypatch, tmp_path, second, capsys):
    entries, first = predict_folder(tmp_path, "first")
    assert all("routed" not in entry for entry in entries)
    _, other = predict_folder(tmp_path, "second", "--model_name_or_path", second)
    scores = [entry["objects"][0]["predicted_iou"] for entry in entries]
    middle = float(np.sort(scores)[:2].mean())
    options = ("--router_model", second, "--route_threshold", middle)
    entries, found = predict_folder(tmp_path, "routed", *options)
    assert [entry["routed"] for entry in entries] == [score < middle for score in scores]
    assert [entry["predicted_iou"] for entry in entries] == pytest.approx(scores)
    for entry, maps, one, two in zip(entries, found, first, other, strict=True):
        np.testing.assert_array_equal(maps, two if entry["routed"] else one)
        assert np.abs(one - two).max() > 0.01
    assert "1 of 3 images went to the second model" in capsys.readouterr().out


# Averages


def test_predict_averages_over_images_and_models(predict, tmp_path, second):
    path = tmp_path / "picture.png"
    picture().save(path)
    maps = {}
    for name, options in {
        "first": (),
        "second": ("--model_name_or_path", second),
        "both": ("--ensemble", second),
        "itself": ("--ensemble", "tiny-random"),
        "gamma": ("--tta", "gamma0.8"),
        "everything": ("--tta", "gamma0.8,scale1.25", "vflip", "--ensemble", second),
    }.items():
        output = tmp_path / name
        entries = predict(path, *options, output=output)
        check_files(output, entries)
        maps[name] = np.load(output / entries[0]["objects"][0]["probabilities"])
        mask = np.asarray(Image.open(output / entries[0]["objects"][0]["mask"])) > 0
        assert maps[name].dtype == np.float32 and np.array_equal(mask, maps[name] > 0.5)
    np.testing.assert_allclose(maps["both"], (maps["first"] + maps["second"]) / 2, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(maps["itself"], maps["first"])
    assert all(np.abs(maps[name] - maps["first"]).max() > 1e-4 for name in ("both", "gamma", "everything"))


def test_a_video_is_averaged_frame_by_frame(predict, tmp_path, second):
    path = save_run(tmp_path, "tif", [picture(0), picture(1)])
    for options in (("--tta", "vflip"), ("--ensemble", second)):
        with pytest.raises(ValueError, match="a video is tracked as a whole: add per_frame"):
            predict(path, *options)
    assert len(predict(path, "--tta", "vflip", "--per_frame", "true")) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--tta", "flip"), "tta has no view 'flip', only hflip"),
        (("--tta", "hflip", "--prompt", "Segment the left artery."), "leave hflip out of --tta"),
        (("--tta", "vflip", "--router_model", "tiny", "--route_threshold", 0.5), "tta cannot be used with a router"),
        (("--ensemble", "tiny", "--router_model", "tiny", "--route_threshold", 0.5), "ensemble cannot be used with a"),
    ],
)
def test_averages_that_cannot_be_are_refused(predict, tmp_path, options, message):
    path = tmp_path / "picture.png"
    picture().save(path)
    with pytest.raises(ValueError, match=message):
        predict(path, *options)
    assert not (tmp_path / "output" / "predictions.json").exists()


# Regions


def test_the_regions_of_an_image_are_those_of_segment(predict, segment, tmp_path):
    path = tmp_path / "picture.png"
    picture().save(path)
    seen = []
    segment(lambda true, given: seen.append(given["regions"]) or true())
    options = ("--regions", "0,0,32,48", "10.5,10,60,40", "--prompt", "Please segment region1.")
    (entry,) = predict(path, *options)
    assert seen == [[[[0, 0, 32, 48], [10.5, 10, 60, 40]]]] and len(entry["objects"]) == 1
    assert json.loads((tmp_path / "output" / "predictions.json").read_text())["regions"] == seen[0][0]
    # Several prompts of the one image may be a batch, and share them.
    assert len(predict(path, *options, "What is region2?", "--batch_size", 2)) == 2
    assert len(seen[-1]) == 2 and seen[-1][0] == seen[-1][1] == seen[0][0]


@pytest.mark.parametrize("regions", ["0,0,32,48", ["0,0,32,48"], [[0, 0, 32, 48]]])
def test_regions_are_written_as_it_suits_a_yaml(regions, tmp_path):
    picture().save(tmp_path / "picture.png")
    args = predict_module.PredictArguments(input=str(tmp_path / "picture.png"), regions=regions)
    assert args.boxes == [[0, 0, 32, 48]]
    for wrong in ([0, 0, 32, 48], [None], [{"x": 1}]):
        with pytest.raises(ValueError, match="regions must be boxes x0,y0,x1,y1"):
            predict_module.PredictArguments(input=args.input, regions=wrong)


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("picture.png", ("0,0,32",), "regions must be boxes x0,y0,x1,y1"),
        ("picture.png", ("a,b,c,d",), "regions must be boxes x0,y0,x1,y1"),
        ("picture.png", ("0,0,99,48",), "picture.png: region1 is the box .* inside its image of 64 x 48"),
        ("picture.png", ("0,0,32,48", "--tta", "hflip"), "regions have no effect on changed images: leave tta out"),
        ("", ("0,0,32,48",), "regions are of one image; input .* is none"),
        ("synthetic", ("0,0,32,48",), "regions are of one image; input .* is none"),
    ],
)
def test_regions_that_cannot_be_are_refused(predict, tmp_path, monkeypatch, source, options, message):
    monkeypatch.setattr(
        predict_module, "load_model", lambda arguments: pytest.fail("the model is loaded")
    )  # before one is loaded
    picture().save(tmp_path / "picture.png")
    with pytest.raises(ValueError, match=message):
        predict(source if source == "synthetic" else tmp_path / source, "--regions", *options)
    assert not (tmp_path / "output").exists()


# ---------------------------------------------------------------------------------------------------------------------
# Back to the annotation tool
# ---------------------------------------------------------------------------------------------------------------------


def check_export(output, entries, find, folder, label):
    """The export is read to the masks that were written."""
    source = find(output / "export", Reading())["train"]
    assert not source.problems
    read = {entry.image.relative_to(output / "export").as_posix(): entry for entry in source.entries}
    pictures = list(dict.fromkeys(entry["name"] for entry in entries))
    assert [*read] == [f"{folder}{name}.png" for name in pictures]
    drawn = 0
    for (file, entry), name in zip(read.items(), pictures, strict=True):
        masks = [
            np.asarray(Image.open(output / found["mask"])) > 0
            for one in entries
            if one["name"] == name
            for found in one["objects"]
        ]
        masks = [mask for mask in masks if mask.any()]
        assert [one.draw(Image.open(output / "export" / file).size).tolist() for one in entry.objects] == [
            mask.tolist() for mask in masks
        ]
        assert {one.label for one in entry.objects} <= label
        drawn += len(masks)
    assert drawn


def test_images_and_frames_go_back_to_the_annotation_tool(predict, tmp_path, capsys):
    folder, output = tmp_path / "input", tmp_path / "output"
    folder.mkdir()
    for value in range(2):
        picture(value).save(folder / f"DOE^JOHN {value}.png")
    options = ("--export", "coco", "--prompt", *PROMPTS[:2], "--threshold", 0.45)
    entries = predict(folder, *options)
    check_export(output, entries, find_coco, "images/", {"blood vessel", "catheter"})
    for file in folder.iterdir():
        assert (output / "export" / "images" / file.name).read_bytes() == file.read_bytes()
    assert f"annotation tool: {output / 'export'}" in capsys.readouterr().out

    # A clip in another format takes its place.
    path = save_run(tmp_path, "tif", [picture(value) for value in range(3)])
    options = ("--export", "labelme", "--export_classes", "LAD", "--threshold", 0.45)
    entries = predict(path, "--prompt", PROMPTS[0], *options)
    check_export(output, entries, find_labelme, "", {"LAD"})
    assert {file.name for file in (output / "export").iterdir()} == {
        f"run_f0000{number}.{suffix}" for number in range(3) for suffix in ("png", "json")
    }

    # What an annotator has changed is not replaced, nor what somebody has put there.
    with open(output / "export" / "run_f00001.json", "a") as file:
        file.write("\n")
    (output / "export" / "notes.txt").touch()
    before = tree(output)
    with pytest.raises(ValueError, match=r": export/notes.txt, export/run_f00001.json \(changed since\)\. Give"):
        predict(path)
    assert tree(output) == before

    (output / "export" / "notes.txt").unlink()
    (output / "export" / "run_f00001.json").unlink()
    predict(path)
    assert not (output / "export").exists()


def test_dicom_goes_back_as_segmentations(predict, tmp_path, capsys):
    """A run as a whole, and a folder of it with a series; prepared again, the masks are those that were written."""
    folder, output = tmp_path / "input", tmp_path / "output"
    folder.mkdir()
    write_run(folder / "IM0001", frames=2)
    write_series(folder, ["a.dcm", "b.dcm"])
    options = ("--export", "dicom_seg", "--threshold", 0.45, "--prompt", PROMPTS[0])
    for source, count in ((folder / "IM0001", 2), (folder, 4)):
        entries = predict(source, *options)
        seen = [file.name for file in sorted((output / "export" / "segmentations").iterdir())]
        assert seen == ["IM0001.dcm", "a.dcm"][: 1 + (count == 4)]
        capsys.readouterr()
        prepared = tmp_path / f"prepared{count}"
        run_task(
            *("prepare_data", "--source", output / "export", "--output_dir", prepared),
            *("--key_file", tmp_path / "key", "--names_table", tmp_path / f"names{count}.csv"),
        )
        written = b"".join(file.read_bytes() for file in prepared.rglob("*") if file.is_file())
        assert not any(name in written for name in (b"ROE-17", b"IM0001", b"1.2.826"))
        rows = load_dataset_dict(str(prepared))["train"]
        assert len(rows) == len(entries) == count
        masks = [np.asarray(Image.open(output / entry["objects"][0]["mask"])) > 0 for entry in entries]
        assert {np.asarray(mask).astype(bool).tobytes() for row in rows for mask in row["masks"]} == {
            mask.tobytes() for mask in masks
        }
        assert any(mask.any() for mask in masks) and set(sum(rows["phrases"], [])) == {"blood vessel"}


def test_what_is_no_dicom_is_refused_before_a_model_is_loaded(predict, tmp_path, monkeypatch):
    def never(*args):
        raise AssertionError("loaded")

    monkeypatch.setattr("sa2va_trl.scripts.predict.load_model", never)
    for source in (save_run(tmp_path, "tif", [picture()]), "synthetic", tmp_path):
        with pytest.raises(
            DatasetError, match=r"1 of 1 files cannot be exported as dicom_seg:\n.*is no (DICOM )?file"
        ):
            predict(source, "--export", "dicom_seg")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--export", "csv"), f"export must be one of {', '.join(WRITERS)}; got 'csv'"),
        (("--export_classes", "vessel"), "export_classes has no effect without export"),
        (("--export", "coco", "--export_classes", "a", "b", "--prompt", "x"), "one a prompt: got 2 for 1"),
        (("--export", "coco", "--export_classes", " "), "no name of a class"),
    ],
)
def test_exports_that_cannot_be_are_refused(predict, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        predict(save_run(tmp_path, "tif", [picture()]), *options)
