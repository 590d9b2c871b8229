"""Training and evaluation in folds. The steps run in this process, where a real run starts a new one for each."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import fields
from difflib import get_close_matches

import pandas as pd
import pytest
import yaml
from datasets import DatasetDict, concatenate_datasets
from PIL import Image
from tasks import run_task

from sa2va_trl.data import load_dataset_dict
from sa2va_trl.errors import DatasetError
from sa2va_trl.evaluation import aggregate
from sa2va_trl.scripts.configurations import TRAININGS, read_trainings
from sa2va_trl.scripts.cross_validate import CrossValidateArguments, run_ensembles
from sa2va_trl.scripts.folds import with_masks
from sa2va_trl.scripts.reporting import KEPT_AT, SAMPLES
from sa2va_trl.scripts.steps import StepError
from sa2va_trl.trainers import SegSFTTrainer


SYNTHETIC = {"train_videos": 6, "validation_videos": 2, "test_videos": 2, "frames_per_video": 1, "size": 64}
A = {
    "model_name_or_path": "tiny",
    "grounding_image_size": 128,
    "synthetic": SYNTHETIC,
    "trainable": "head",
    "learning_rate": 1e-3,
    "num_points": 0,
    "gradient_checkpointing": False,
    "use_cpu": True,
    "bf16": False,
    "report_to": "none",
    "disable_tqdm": True,
    "per_device_train_batch_size": 2,
    "logging_steps": 1,
    "max_steps": 2,
    "eval_strategy": "steps",
    "eval_steps": 1,
    "save_strategy": "steps",
    "save_steps": 1,
}
B = {**A, "trainable": "full", "learning_rate": 1e-4, "eval_strategy": "no", "save_strategy": "no"}
FOLDS = ("fold0", "fold1")


class Runner:
    """Stands in for `subprocess`: runs a task here, or fails in the one that it is told to."""

    def __init__(self):
        self.lines, self.fail_at = [], None

    def run(self, line, check, **kwargs):
        assert check and line[:3] == [sys.executable, "-m", "sa2va_trl.cli"]
        if len(self.lines) == self.fail_at:
            raise subprocess.CalledProcessError(1, line)
        self.lines.append(line[3:])
        try:
            run_task(*line[3:])
        except ConnectionAbortedError as error:  # killed on the way
            raise subprocess.CalledProcessError(1, line) from error

    @property
    def names(self):
        """Task and folder of each step that ran."""
        return [(line[0], line[line.index("--output_dir") + 1].partition("out/")[2]) for line in self.lines]


@pytest.fixture
def steps(monkeypatch):
    runner = Runner()
    monkeypatch.setattr(subprocess, "run", runner.run)
    return runner


def configs(folder, **yamls):
    """YAMLs by their names, on the line."""
    for name, options in yamls.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(options))
    return ["--configs", *(folder / f"{name}.yaml" for name in yamls)]


def cross_validate(folder, *line):
    run_task("cross_validate", "--folds", "2", "--output_dir", folder / "out", *line)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Two configurations in two folds: the folder, the steps, and what is needed to run it again."""
    folder, runner = tmp_path_factory.mktemp("two"), Runner()
    line = configs(folder, A=A, B=B)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess, "run", runner.run)
        cross_validate(folder, *line)
    return folder, runner.names, line


def test_every_row_is_scored_once_by_a_model_that_has_not_seen_its_patient(two):
    folder, names, _ = two
    output = folder / "out"
    assert names == [
        (task, f"{fold}/{name}{place}")
        for fold in FOLDS
        for name in "AB"
        for task, place in (("sft", ""), ("evaluate", "/evaluation"))
    ]
    pool = {
        row["sample_id"]: row for split in ("train", "validation") for row in load_dataset_dict(output / "data")[split]
    }
    tables = {}
    for name in "AB":
        tables[name] = table = pd.read_parquet(output / "evaluation" / name / "per_sample.parquet")
        assert sorted(table["sample_id"]) == sorted(pool) and len(table) == 8
        assert json.loads((output / "evaluation" / name / "metrics.json").read_text()) == aggregate(table)
    for fold in FOLDS:
        data = load_dataset_dict(output / fold / "data")
        patients = {split: set(rows["patient_id"]) for split, rows in data.items()}
        assert list(patients) == ["train", "validation", "test"] and all(patients.values())
        assert sum(map(len, patients.values())) == len(set.union(*patients.values())) == 4
        for table in tables.values():
            assert set(table["patient_id"][table["fold"] == fold]) == patients["test"]
        # What was trained is what was evaluated.
        for name in "AB":
            own = pd.read_parquet(output / fold / name / "evaluation" / "per_sample.parquet")
            pd.testing.assert_frame_equal(
                own, tables[name][tables[name]["fold"] == fold].drop(columns="fold").reset_index(drop=True)
            )
    assert not (output / "fold0" / "data" / "test").exists()  # rows are there once


def test_configurations_are_compared_by_patient_and_fold(two):
    output = two[0] / "out"
    comparison = json.loads((output / "comparison.json").read_text())
    tables = {name: pd.read_parquet(output / "evaluation" / name / "per_sample.parquet") for name in "AB"}
    (difference,) = comparison["differences"]
    assert (difference["before"], difference["after"], difference["clusters"]) == ("A", "B", 4)
    assert comparison["clusters"] == "patients" and "share most of their training rows" in comparison["notes"][-1]
    by_fold = json.loads((output / "by_fold.json").read_text())
    assert [entry["fold"] for entry in by_fold] == [*FOLDS, "all"]
    assert [(entry["train"], entry["validation"], entry["test"]) for entry in by_fold] == [
        (2, 2, 4),
        (2, 2, 4),
        (None, None, 8),
    ]
    for entry in by_fold:
        for name, table in tables.items():
            rows = table if entry["fold"] == "all" else table[table["fold"] == entry["fold"]]
            assert entry[name] == pytest.approx(rows["dice"].mean())
    assert by_fold[-1]["B − A"] == pytest.approx(difference["mean"]) != 0


def test_the_page_has_folds_pictures_and_curves(two):
    page = (two[0] / "out" / "report.html").read_text()
    for title in ("Verdict", "Folds", "Pairs", "Distribution", "Patients", "Gallery", "Samples", "Training"):
        assert f">{title}</h2>" in page, title
    assert "8 images of 4 patients (train and validation) in 2 folds by patient_id" in page
    assert page.count('class="picture"') >= 8 and page.count('class="stack"') == 2 * page.count('class="picture"')
    assert all(f"{fold}, {name}: losses" in page for fold in FOLDS for name in "AB")
    assert not re.search(r'src="(?!data:)', page)


def test_what_is_done_is_not_done_again(two, steps, capsys):
    folder, _, line = two
    before = (folder / "out" / "comparison.json").read_text()
    cross_validate(folder, *line)
    assert steps.lines == [] and (folder / "out" / "comparison.json").read_text() == before
    said = capsys.readouterr().out
    assert said.count("done before") == 8 and "train the model to keep: sa2va-trl sft --config" in said
    # The same folder does not take anything else.
    for more in (["--seed", "1"], ["--folds", "3"], ["--splits", "train", "validation", "test"]):
        with pytest.raises(ValueError, match="was begun with other data or folds"):
            cross_validate(folder, *line, *more)
    with pytest.raises(ValueError, match="fold0/A was made with other options"):
        cross_validate(folder, *line, "--max_steps", "3")
    with pytest.raises(ValueError, match="fold0/A/evaluation was made with other options"):
        cross_validate(folder, *line, "--evaluation", '{"threshold": 0.4}')


def test_killed_and_taken_up_equals_uninterrupted(two, tmp_path, steps, monkeypatch, capsys):
    expected = pd.read_parquet(two[0] / "out" / "evaluation" / "A" / "per_sample.parquet")
    line, training_step = configs(tmp_path, A=A), SegSFTTrainer.training_step

    def killed(self, *args, **options):
        if "fold1" in self.args.output_dir and self.state.global_step == 1:
            raise ConnectionAbortedError
        return training_step(self, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(SegSFTTrainer, "training_step", killed)
        with pytest.raises(StepError, match="fold1/A"):
            cross_validate(tmp_path, *line)
    assert (tmp_path / "out" / "fold1" / "A" / "checkpoint-1").is_dir()
    assert not (tmp_path / "out" / "evaluation").exists()
    ran = len(steps.lines)
    cross_validate(tmp_path, *line)
    assert [(task, place) for task, place in steps.names[ran:]] == [
        ("sft", "fold1/A"),
        ("evaluate", "fold1/A/evaluation"),
    ]
    assert " --resume_from_checkpoint latest" in " ".join(steps.lines[ran])
    found = pd.read_parquet(tmp_path / "out" / "evaluation" / "A" / "per_sample.parquet")
    assert expected["dice"].min() > 0.1 and expected["dice"].nunique() == 8  # so that other figures would be seen
    pd.testing.assert_frame_equal(found, expected, rtol=1e-6)
    # One configuration alone: no comparison, and a page of its own.
    assert not (tmp_path / "out" / "comparison.json").exists()
    page = (tmp_path / "out" / "report.html").read_text()
    assert ">Result</h2>" in page and ">Folds</h2>" in page and "share most of their training rows" in page
    assert "dice " in capsys.readouterr().out


def test_one_fold_alone(two, steps, tmp_path, capsys):
    cross_validate(tmp_path, *configs(tmp_path, B=B), "--only_fold", "1")
    assert steps.names == [("sft", "fold1/B"), ("evaluate", "fold1/B/evaluation")]
    assert "fold1 of 2 trained and evaluated" in capsys.readouterr().out
    own, same = (
        pd.read_parquet(folder / "out" / "fold1" / "B" / "evaluation" / "per_sample.parquet")
        for folder in (tmp_path, two[0])
    )
    # (Without a validation, more rows are learned from.)
    assert own["sample_id"].tolist() == same["sample_id"].tolist()
    assert list(load_dataset_dict(tmp_path / "out" / "fold1" / "data")) == ["train", "test"]
    assert not (tmp_path / "out" / "evaluation").exists()


def test_config_names_the_training_and_its_options_go_on(tmp_path, steps):
    (tmp_path / "A.yaml").write_text(yaml.safe_dump(A))
    steps.fail_at = 0
    for given in (["--config", str(tmp_path / "A.yaml")], [f"--config={tmp_path / 'A.yaml'}"]):
        with pytest.raises(StepError, match="fold0/A"):
            cross_validate(tmp_path, *given, "--max-steps", "7", "--seed", "3")
    step = json.loads((tmp_path / "out" / "steps" / "fold0-A.json").read_text())["line"]
    options = dict(zip(step[1::2], step[2::2], strict=True))
    assert step[0] == "sft" and options["--max_steps"] == "7" and options["--seed"] == "3"
    assert options["--config"] == str(tmp_path / "A.yaml")
    assert options["--dataset_name"] == str(tmp_path / "out" / "fold0" / "data")
    assert (options["--dataset_train_split"], options["--dataset_eval_split"]) == ("train", "validation")


def test_videos_are_divided_where_patients_are_not_known(tmp_path, steps, capsys):
    data = load_dataset_dict("synthetic", **SYNTHETIC).remove_columns("patient_id")
    data.save_to_disk(tmp_path / "data")
    steps.fail_at = 0
    with pytest.raises(StepError):
        cross_validate(tmp_path, *configs(tmp_path, A=A), "--dataset_name", tmp_path / "data")
    said = capsys.readouterr().out
    assert "8 images of 8 videos" in said and "Patients are not known, so that videos are divided" in said
    assert not (tmp_path / "out" / "data").exists()  # the data stay where they are


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (["--folds", "1"], "folds must be 2 or more, got 1"),
        (["--task", "merge"], "task must be one of sft, dpo, hard_sample, got 'merge'"),
        (["--only_fold", "2"], "only_fold must be one of 0 to 1, got 2"),
        (["--validation_share", "1"], "validation_share must lie between 0 and 1"),
        (["--num_pictures", "-1"], "num_pictures must not be negative"),
        (["--evaluation", '{"dataset_split": "test"}'], "evaluation: dataset_split cannot be set there"),
        (["--evaluation", '{"protocol": "rvos"}'], "evaluation: protocol cannot be set there"),
        (["--evaluation", '{"num_frames": 2}'], "evaluation: num_frames has no effect without protocol=rvos"),
        (["--evaluation", '["all"]'], "evaluation must be names with values"),
        (["--evaluation", "all"], "evaluation must be JSON, got 'all'"),
        (["--evaluation", '{"metrix": "all"}'], "evaluation: .* has no option metrix, did you mean metrics?"),
        (["--evaluation", '{"threshold": 2}'], "evaluation: threshold must lie between 0 and 1, got 2"),
        (["--evaluation", '{"tta": ["turn"]}'], "evaluation: .*turn"),
        (["--evaluation", '{"tta": ["vflip"], "cache_features": "on"}'], "evaluation: .* no effect with tta"),
        (["--evaluation", '{"route_by": "spread"}'], "evaluation: route_by has no effect without router_model"),
        (
            ["--evaluation", '{"postprocessing": {"majority_frames": 3}}'],
            "smooths clips, and the dataset has rows of one",
        ),
        (["--metric", "dise"], "metric='dise' is none of dice"),
        (["--metric", "hd95"], "metric='hd95' is none of .*of all"),
        (["--eval_strategy", "no", "--validation_share", "0.2"], "validation_share has no effect"),
        (["--splits", "none"], "splits='none'.*no such split"),
        (["--fold", "2"], "there is no option --fold, did you mean --folds?"),
        (["--folds", "5"], "4 groups in 'patient_id' are too few for 5 folds"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_work_is_said_before_anything_runs(tmp_path, steps, line, reason):
    with pytest.raises((ValueError, DatasetError), match=reason):
        cross_validate(tmp_path, *configs(tmp_path, A=A), *line)
    assert steps.lines == [] and not list(tmp_path.glob("out/fold*"))


def test_no_option_of_a_training_is_taken_for_a_mistake():
    own = [entry.name for entry in fields(CrossValidateArguments)]
    for task in TRAININGS.values():
        theirs = {action.dest for action in task.make_parser()._actions} - set(own)
        assert len(theirs) > 50 and not [name for name in theirs if get_close_matches(name, own, cutoff=0.85)]


def test_a_fold_learns_from_pairs_of_its_own_patients(tmp_path, steps):
    data = load_dataset_dict("synthetic", **SYNTHETIC)
    data.save_to_disk(tmp_path / "data")
    DatasetDict(train=concatenate_datasets([data["train"], data["validation"]])).save_to_disk(tmp_path / "pairs")
    own = {"dataset_name": str(tmp_path / "data"), "synthetic": None, "preferences": str(tmp_path / "pairs")}
    steps.fail_at = 0
    with pytest.raises(StepError, match="fold0/dpo"):
        cross_validate(tmp_path, *configs(tmp_path, dpo={**A, **own}))
    step = json.loads((tmp_path / "out" / "steps" / "fold0-dpo.json").read_text())["line"]
    folder = step[step.index("--preferences") + 1]
    assert folder == str(tmp_path / "out" / "fold0" / "pairs" / "dpo")
    pairs, fold = load_dataset_dict(folder)["train"], load_dataset_dict(tmp_path / "out" / "fold0" / "data")
    assert sorted(pairs["sample_id"]) == sorted(fold["train"]["sample_id"])


def test_one_process_starts_it(monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="Start cross_validate in one process.*launcher"):
        cross_validate(tmp_path, *configs(tmp_path, A=A))


def test_the_folds_models_are_evaluated_alone_and_together_on_the_test_split(two, steps):
    folder, _, line = two
    with pytest.raises(ValueError, match="ensemble: .*need a test split that is in no fold"):
        cross_validate(folder, *line, "--ensemble", "true", "--splits", "train", "test")
    cross_validate(folder, *line, "--ensemble", "true")
    assert steps.names == [
        ("evaluate", place)
        for name in "AB"
        for place in (f"fold0/{name}/test", f"fold1/{name}/test", f"ensemble/{name}")
    ]
    output = folder / "out"
    found = json.loads((output / "ensemble.json").read_text())
    assert list(found["runs"]) == ["A, one fold", "A, ensemble", "B, one fold", "B, ensemble"]
    test = load_dataset_dict(output / "data")["test"]["sample_id"][:]
    for name in "AB":
        tables = [
            pd.read_parquet(output / place / "per_sample.parquet")
            for place in (f"fold0/{name}/test", f"fold1/{name}/test", f"ensemble/{name}")
        ]
        assert all(sorted(table["sample_id"]) == sorted(test) for table in tables)
        assert found["runs"][f"{name}, one fold"]["mean"] == pytest.approx(
            (tables[0]["dice"].mean() + tables[1]["dice"].mean()) / 2
        )
        assert found["runs"][f"{name}, ensemble"]["mean"] == pytest.approx(tables[2]["dice"].mean())
    assert ">Ensemble</h2>" in (output / "report.html").read_text()


def test_values_that_evaluate_cannot_read_are_said_as_it_says_them(tmp_path, steps, capsys):
    with pytest.raises(SystemExit):
        cross_validate(tmp_path, *configs(tmp_path, A=A), "--evaluation", '{"workers": "many"}')
    assert "argument --workers: invalid int value: 'many'" in capsys.readouterr().err
    assert steps.lines == []


def test_options_of_every_evaluation_are_those_of_evaluate():
    given = {
        "metrics": "all",
        "threshold": 0.4,
        "quantization": "4bit",
        "postprocessing": {"min_size": 5},
        "workers": 1,
    }
    for own in (given, json.dumps(given)):
        assert CrossValidateArguments(evaluation=own, metric="hd95").evaluation == given


def test_an_ensemble_is_evaluated_without_frozen_features(tmp_path):
    ran, args = {}, CrossValidateArguments(folds=2, output_dir=str(tmp_path), ensemble=True)

    def run(name, task, options):
        ran[name] = options
        (tmp_path / name).mkdir(parents=True)
        table = pd.DataFrame({"sample_id": ["a", "b"], "dice": [0.5, 0.7]})
        table.to_parquet(tmp_path / name / "per_sample.parquet")
        return tmp_path / name

    trainings = read_trainings([str(configs(tmp_path, A=A)[1])], None, None, {}, str(tmp_path))
    scored = {"cache_features": "on", "cache_dir": "cache", "batch_size": 2}
    run_ensembles(run, args, trainings, {}, scored)
    assert {name: own["cache_features"] for name, own in ran.items() if "cache_features" in own} == {
        "fold0/A/test": "on",
        "fold1/A/test": "on",
    }
    assert "cache_dir" not in ran["ensemble/A"] and ran["ensemble/A"]["batch_size"] == 2


def test_what_has_changed_is_refused_although_it_is_called_the_same(tmp_path, steps):
    data = load_dataset_dict("synthetic", **SYNTHETIC)
    data.save_to_disk(tmp_path / "data")
    steps.fail_at, line = 0, [*configs(tmp_path, A=A), "--dataset_name", tmp_path / "data"]
    for _ in range(2):
        with pytest.raises(StepError):
            cross_validate(tmp_path, *line)
    shutil.rmtree(tmp_path / "data")
    for split in data:
        data[split] = data[split].map(lambda row: {"mask": row["mask"].transpose(Image.Transpose.ROTATE_180)})
    data.save_to_disk(tmp_path / "data")
    with pytest.raises(ValueError, match="data changed since .*out was begun"):
        cross_validate(tmp_path, *line)


def test_the_page_says_that_pictures_are_not_post_processed(two, steps):
    folder, _, line = two
    page, sentence = folder / "out" / "report.html", "masks as they are before post-processing"
    assert sentence not in page.read_text()
    file = folder / "out" / "fold1" / "A" / "evaluation" / SAMPLES / KEPT_AT  # one of them is enough
    before = file.read_text()
    file.write_text(json.dumps({**json.loads(before), "postprocessing": {"min_size": 5}}))
    cross_validate(folder, *line)
    file.write_text(before)
    assert steps.lines == [] and sentence in page.read_text() and page.read_text().count('class="picture"') >= 8


def test_rows_without_masks_are_in_no_result(tmp_path, steps):
    scene = {"scene": "named", "rows": "conversations", "rows_per_frame": 2, "frames_per_video": 1, "size": 64}
    scene |= {"train_videos": 2, "validation_videos": 1, "test_videos": 1, "videos_per_patient": 1}
    data = load_dataset_dict("synthetic", **scene)
    pool = concatenate_datasets([data["train"], data["validation"]])
    masked = set(with_masks(pool))
    assert 0 < len(masked) < len(pool)
    cross_validate(tmp_path, *configs(tmp_path, A={**B, "trainable": "head", "synthetic": scene, "max_steps": 1}))
    table = pd.read_parquet(tmp_path / "out" / "evaluation" / "A" / "per_sample.parquet")
    assert sorted(table["sample_id"]) == sorted(masked)
