import json
import zipfile

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from referring_sets import write_mevis, write_ref_youtube_vos, write_refcoco
from tasks import run_task

from sa2va_trl.data.loading import load_dataset_dict
from sa2va_trl.errors import DatasetError
from sa2va_trl.evaluation.submission import write_masks


TINY = ("--grounding_image_size", 64, "--num_frames", 1, "--report", "false", "--num_overlays", 0)


def test_masks_of_another_tool_are_scored_as_mevis_does(tmp_path):
    folder, output = write_mevis(tmp_path / "mevis"), tmp_path / "out"
    rows = load_dataset_dict(folder)["valid_u"]
    for row in rows:
        truth = np.stack([np.asarray(mask) > 0 for mask in row["masks"]])
        write_masks(tmp_path / "masks", row, truth if row["video_id"] == "v0" else np.zeros_like(truth))
    line = ["--protocol", "rvos", "--predictions_dir", tmp_path / "masks", "--dataset_name", folder]
    line += ["--dataset_split", "valid_u", "--num_overlays", 2]
    run_task("evaluate", *line, "--output_dir", output)
    metrics = json.loads((output / "metrics.json").read_text())
    samples = pd.read_parquet(output / "per_sample.parquet").set_index("sample_id")
    # Of the second video only the moving box, which is not in the last of four frames, is rightly not there.
    expected = dict(zip(rows["sample_id"], [1, 1, 1, 0.25, 0, 0], strict=True))
    assert samples["j_and_f"].to_dict() == expected and set(samples["exp_id"]) == set("012")
    assert metrics["j_and_f"]["mean"] == pytest.approx(3.25 / 6) and metrics["by_video"]["j"]["n"] == 2
    assert len(list((output / "overlays").glob("j_and_f_*.png"))) == 2
    page = (output / "report.html").read_text()
    assert "j_and_f" in page and page.count('class="picture"') == 6


def test_a_model_is_scored_and_leaves_what_a_server_takes(tmp_path, capsys):
    line = ["--protocol", "rvos", "--submission", "ref_youtube_vos", "--dataset_split", "validation", *TINY]
    folder = write_ref_youtube_vos(tmp_path / "rvos", ("v0",))
    run_task("evaluate", *line, "--dataset_name", folder, "--output_dir", tmp_path / "a")
    metrics = json.loads((tmp_path / "a" / "metrics.json").read_text())
    assert metrics["j_and_f"]["n"] == 4 and not list((tmp_path / "a").glob(".*"))
    capsys.readouterr()
    # Without masks there is the archive alone, and it is the same.
    bare = write_ref_youtube_vos(tmp_path / "bare", ("v0",), masks=False)
    run_task("evaluate", *line, "--dataset_name", bare, "--output_dir", tmp_path / "b")
    assert sorted(file.name for file in (tmp_path / "b").iterdir()) == ["submission.zip"]
    assert "4 expressions of validation, without masks" in capsys.readouterr().out
    one, other = (zipfile.ZipFile(tmp_path / name / "submission.zip") for name in "ab")
    assert len(one.namelist()) == 16 and one.namelist() == other.namelist()
    assert all(one.read(name) == other.read(name) for name in one.namelist())


def test_ciou_and_giou_of_masks_of_another_tool(tmp_path):
    folder, output = write_refcoco(tmp_path / "set", "grefs(unc).json", none=True), tmp_path / "out"
    (tmp_path / "masks").mkdir()
    for row in load_dataset_dict(folder)["testA"]:
        mask = np.asarray(row["masks"][0]).copy()
        mask[:, mask.shape[1] // 2 :] = 0
        Image.fromarray(mask).save(tmp_path / "masks" / f"{row['sample_id']}.png")
    line = ["--protocol", "refcoco", "--predictions_dir", tmp_path / "masks", "--dataset_name", folder]
    output.mkdir()
    (output / "submission.zip").touch()  # of an earlier call, of other masks
    run_task("evaluate", *line, "--dataset_split", "testA", "--output_dir", output)
    metrics = json.loads((output / "metrics.json").read_text())
    samples = pd.read_parquet(output / "per_sample.parquet")
    assert set(samples["picture"]) == {samples["sample_id"][0]} and not (output / "submission.zip").exists()
    assert list(metrics) == ["ciou", "giou", "n_acc", "t_acc"] and metrics["n_acc"]["mean"] == 1
    assert metrics["ciou"]["mean"] == pytest.approx(samples["intersection"].sum() / samples["union"].sum())
    assert metrics["giou"]["mean"] == pytest.approx(samples["iou"].mean())
    assert "ciou" in (output / "report.html").read_text()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (["--protocol", "vos"], "protocol must be rvos or refcoco, got 'vos'"),
        (["--frame_policy", "first"], "frame_policy has no effect without protocol=rvos"),
        (["--protocol", "refcoco", "--submission", "mevis"], "submission has no effect without protocol=rvos"),
        (["--protocol", "rvos", "--submission", "true"], "submission must be mevis or ref_youtube_vos, got 'true'"),
        (["--protocol", "rvos", "--frame_policy", "last"], "frame_policy must be one of uniform, first, starts"),
        (["--protocol", "rvos", "--num_frames", "0"], "num_frames must be an integer of at least 1"),
        (["--protocol", "rvos", "--tracking", "none"], "tracking must be one of soft, mask_prompt"),
        (["--protocol", "rvos", "--metrics", "all"], "metrics has no effect with protocol=rvos"),
        (["--protocol", "rvos", "--question", "Segment {phrase}."], "question has no effect with protocol=rvos"),
        (["--protocol", "rvos", "--batch_size", "2"], "batch_size has no effect with protocol=rvos"),
        (["--protocol", "refcoco", "--tta", "vflip"], "tta has no effect with protocol=refcoco"),
        (["--protocol", "refcoco", "--cache_features", "on"], "cache_features has no effect"),
        (["--protocol", "rvos", "--predictions_dir", ".", "--tracking", "soft"], "tracking has no meaning with pred"),
    ],
)
def test_options_that_have_no_effect_are_refused(line, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        run_task("evaluate", *line, "--output_dir", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_split_that_cannot_be_scored_is_refused(tmp_path):
    folder = write_mevis(tmp_path / "mevis", masks=False, split="valid")
    line = ["--dataset_name", folder, "--dataset_split", "validation", "--output_dir", tmp_path / "out"]
    with pytest.raises(ValueError, match="has no masks.*or --submission mevis or ref_youtube_vos"):
        run_task("evaluate", "--protocol", "rvos", *line)
    with pytest.raises(DatasetError, match="is not one image"):
        run_task("evaluate", "--protocol", "refcoco", *line)
    images = write_refcoco(tmp_path / "set")
    with pytest.raises(DatasetError, match="is no clip"):
        run_task("evaluate", "--protocol", "rvos", *line, "--dataset_name", images)
