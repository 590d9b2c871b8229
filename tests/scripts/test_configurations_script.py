"""The configurations that a cross-validation trains."""

import os

import pytest
import yaml

from sa2va_trl.scripts.arguments import DataArguments, ModelArguments, SplitArguments
from sa2va_trl.scripts.configurations import cautions, names_of, of_trained, read_line, read_trainings


BASE = {"model_name_or_path": "tiny", "use_cpu": True, "bf16": False, "report_to": "none"}


@pytest.fixture
def read(tmp_path):
    """Reads YAMLs of these options, with what a line adds."""

    def read(*configs, names=None, task=None, files=("A.yaml", "B.yaml"), **given):
        paths = [tmp_path / file for file in files[: len(configs)]]
        for path, options in zip(paths, configs, strict=True):
            path.parent.mkdir(exist_ok=True)
            path.write_text(yaml.safe_dump({**BASE, **options}))
        return read_trainings([str(path) for path in paths], names, task, given, str(tmp_path / "out"))

    return read


def test_options_of_another_task():
    assert read_line([]) == {}
    line = ["--max-steps", "20", "--splits", "a", "b", "--bf16", "--x=1=2", "--x", "-3"]
    assert read_line(line) == {"max_steps": "20", "splits": ["a", "b"], "bf16": [], "x": "-3"}
    with pytest.raises(ValueError, match="'B.yaml' is no option. Several YAMLs are given as --configs A B"):
        read_line(["B.yaml", "--x", "1"])


def test_names_are_those_of_the_files(tmp_path):
    files = [tmp_path / name for name in ("tiny/sft.yaml", "tiny/dpo.yaml", "other/sft.yaml")]
    assert names_of(files[:2], None) == ["sft", "dpo"]
    assert names_of(files, None) == ["tiny-sft", "tiny-dpo", "other-sft"]
    assert names_of(files, ["a", "b", "c"]) == ["a", "b", "c"]
    with pytest.raises(ValueError, match="2 names for 3 configs"):
        names_of(files, ["a", "b"])
    with pytest.raises(ValueError, match="a name of its own"):
        names_of(files[:2], ["a", "a"])
    for name in ("data", "pairs", "a/b", "..", ""):
        with pytest.raises(ValueError, match="cannot be the name of a config's folder"):
            names_of(files[:1], [name])


def test_what_is_said_is_what_the_training_task_reads(read):
    before = dict(os.environ)
    sft, dpo = read({"max_steps": 3}, {"max_steps": 4, "preferences": "owner/pairs"}, files=("x.yaml", "dpo.yaml"))
    assert dict(os.environ) == before
    assert [(own.name, own.task, own.preferences) for own in (sft, dpo)] == [
        ("x", "sft", None),
        ("dpo", "dpo", "owner/pairs"),
    ]
    assert sft.part(DataArguments).dataset_name == "synthetic"
    assert sft.part(SplitArguments).dataset_eval_split == "validation"
    assert sft.part(ModelArguments).model_name_or_path == "tiny"
    (one,) = read({}, task="hard_sample", dataset_name="owner/data", eval_strategy="epoch")
    assert one.task == "hard_sample" and one.part(DataArguments).dataset_name == "owner/data" and one.chooses
    assert not read({"eval_strategy": "no"})[0].chooses


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"seed": 1}, "seed cannot be set there, cross_validate decides it"),
        ({"resume_from_checkpoint": "latest"}, "resume_from_checkpoint cannot be set"),
        ({"push_to_hub": True}, "push_to_hub cannot be set"),
        ({"adapter": "owner/adapter"}, "adapter cannot be set.*sa2va-trl merge"),
        ({"beta": 1.0}, "A.yaml: there is no option beta"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_folds_decide_is_refused(read, options, reason):
    with pytest.raises(ValueError, match=reason):
        read(options)


def test_scores_of_one_model_do_not_fit_the_folds(read, tmp_path):
    (tmp_path / "scores.parquet").write_bytes(b"")
    with pytest.raises(ValueError, match="scores cannot be set for cross_validate: each fold scores the rows"):
        read({"scores": str(tmp_path / "scores.parquet")}, task="hard_sample")


@pytest.mark.parametrize("option", ["max_stepz", "max_step"])
def test_options_that_the_training_task_lacks_are_refused(read, capsys, option):
    with pytest.raises(SystemExit):
        read({}, **{option: "3"})
    assert f"sa2va-trl sft: error: there is no option --{option}, did you mean --max_steps?" in capsys.readouterr().err


def test_configurations_have_the_same_data(read):
    with pytest.raises(ValueError, match="A and B name different data .*owner/one.*owner/two"):
        read({"dataset_name": "owner/one"}, {"dataset_name": "owner/two"})
    with pytest.raises(ValueError, match="A and B name different splits"):
        read({}, {"dataset_eval_split": "other"})
    assert len(read({"dataset_name": "owner/one"}, {}, dataset_name="owner/two")) == 2


def test_none_and_twice(read):
    with pytest.raises(ValueError, match="Say what to train: --config"):
        read()
    with pytest.raises(ValueError, match="names a YAML twice"):
        read({}, {}, files=("A.yaml", "A.yaml"))
    with pytest.raises(FileNotFoundError, match="did you mean tiny/sft"):
        read_trainings(["tiny/sff"], None, None, {}, "out")


def test_what_loads_a_trained_model(read, tmp_path):
    (training,) = read({"grounding_image_size": 128, "dtype": "bfloat16", "prompt_style": "official"})
    folder = tmp_path / "fold0"
    folder.mkdir()
    whole = {"dtype": "bfloat16", "attn_implementation": "sdpa", "prompt_style": "official"}
    assert of_trained(training, folder) == {"model_name_or_path": str(folder), **whole}
    (folder / "adapter_config.json").touch()
    loaded = of_trained(training, folder)
    assert loaded["model_name_or_path"] == "tiny" and loaded["adapter"] == str(folder)
    assert loaded["grounding_image_size"] == 128 and loaded["dtype"] == "bfloat16"


def test_a_model_that_was_itself_trained_is_said(read, tmp_path):
    model = tmp_path / "model" / "merged"
    model.mkdir(parents=True)
    trainings = read({"model_name_or_path": str(model)}, {})
    assert cautions(trainings) == []
    (model.parent / "trainer_state.json").touch()
    (said,) = cautions(trainings)
    assert said.startswith(f"A starts from {model}, which was itself trained: if on rows that are held out here")
