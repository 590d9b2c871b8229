"""docs/migration.md, followed from top to bottom on a small checkpoint: the official calls, and those beside them."""

import json

import numpy as np
import pytest
from house import ROOT
from official_scripts import without_a_gpu, write_published, written
from pages import blocks, commands, task_of, text_of
from prepared import shown
from tasks import run_task
from transformers import AutoModel, AutoTokenizer


PAGE = text_of(ROOT / "docs" / "migration.md")
FIRST, PROCESSOR, *CALLS = blocks(PAGE, "python")
# Below each heading, what the model is made to write: by the official call, and by the one in its place.
ANSWERS = {
    "An image": (["Sure, [SEG]."], ["Sure, [SEG]."]),
    "A clip": (["Sure, [SEG]."], ["Sure, [SEG]."]),
    "Several objects": (["Sure, [SEG] and [SEG]."], ["Sure, [SEG] and [SEG]."]),
    "A caption with masks": (["A <p> vessel </p> [SEG] and a <p> catheter </p> [SEG]."],) * 2,
    "A dialogue": (["It is [SEG]."], ["An angiogram.", "It is [SEG]."]),
    "Regions": (["A <p> vessel </p> [SEG]."],) * 2,
}


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A folder with the files of the page."""
    folder = tmp_path_factory.mktemp("desk")
    write_published(folder / "ByteDance" / "Sa2VA-4B")
    (folder / "clip").mkdir()
    for number in range(6):
        shown(number).save(folder / "clip" / f"{number}.png")
    shown(0).save(folder / "frame.png")
    regions = np.zeros((2, 32, 40), dtype=bool)
    regions[0, 4:20, 5:25], regions[1, 15:28, 22:36] = True, True
    np.save(folder / "regions.npy", regions)
    return folder


@pytest.fixture(scope="module")
def names(desk):
    """What the page has defined before its calls."""
    names = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(desk)
        without_a_gpu(patch)
        assert FIRST.count("bfloat16") == 1
        exec(FIRST.replace("bfloat16", "float32"), names)  # to the bit, whatever is read together
        exec(PROCESSOR, names)
    assert names["result"]["prediction"].endswith("<|im_end|>")
    return names


def test_every_call_has_its_answers():
    headings = [line.removeprefix("### ") for line in PAGE.splitlines() if line.startswith("### ")]
    assert headings == list(ANSWERS) and len(CALLS) == 2 * len(ANSWERS)


@pytest.mark.parametrize("number", range(len(ANSWERS)), ids=list(ANSWERS))
def test_a_call_and_the_one_in_its_place_say_the_same(desk, names, number, monkeypatch):
    monkeypatch.chdir(desk)
    names, masks = dict(names), []
    for code, answers in zip(CALLS[2 * number :], list(ANSWERS.values())[number], strict=False):
        with monkeypatch.context() as patch:
            asked = written(patch, names["model"], names["tokenizer"], *answers)
            exec(code, names)
            assert len(asked) == len(answers)
        masks.append([names.get(name) for name in ("mask", "masks", "first", "last")])
        if isinstance(names["answer"], dict):
            official = names["answer"]
    ours = names["answer"]
    assert official["prediction"] == ours.text + "<|im_end|>"
    drawn = np.array(official["prediction_masks"]).reshape(ours.masks.shape)
    assert np.array_equal(drawn, ours.masks)
    for one, other in zip(*masks, strict=True):
        if isinstance(other, list):
            assert [phrase for phrase, _ in other] == ["vessel", "catheter"]
            other = [mask for _, mask in other]
        assert (one is None) == (other is None)
        assert one is None or np.array_equal(np.squeeze(one), np.squeeze(np.stack(other)))


def test_fine_tuning_from_the_same_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_published(tmp_path / "ByteDance" / "Sa2VA-InternVL3-8B")
    (tmp_path / "my_data" / "images").mkdir(parents=True)
    entries = []
    for number in range(6):
        shown(number).save(tmp_path / "my_data" / "images" / f"{number}.png")
        entries.append({"image": f"{number}.png", "mask": [[[5, 4, 20, 4, 20, 10, 5, 10]]], "text": ["vessel"]})
    (tmp_path / "my_data" / "annotations.json").write_text(json.dumps(entries))

    steps = [task_of(words) for words in commands(PAGE)]
    steps = [step for step in steps if step is not None and "--output_dir" in step[1]]
    assert [task for task, _ in steps] == ["prepare_data", "sft", "merge", "convert"]
    short = {"max_steps": 1, "use_cpu": True, "eval_strategy": "no", "eval_on_start": False, "save_strategy": "no"}
    short |= {"load_best_model_at_end": False, "per_device_train_batch_size": 1}
    more = {
        "prepare_data": ["--key_file", tmp_path / "key"],
        "sft": [word for name, value in short.items() for word in (f"--{name}", str(value).lower())],
    }
    for task, words in steps:
        words = ["tiny/sft" if word == "sa2va_internvl3_8b/sft" else word for word in words]
        run_task(task, *words, *more.get(task, []))
    model = AutoModel.from_pretrained("outputs/published", trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained("outputs/published", trust_remote_code=True)
    result = model.predict_forward(image=shown(0), text="<image>Please segment the vessel.", tokenizer=tokenizer)
    assert result["prediction"].endswith("<|im_end|>")
