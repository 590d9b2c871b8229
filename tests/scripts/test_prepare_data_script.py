import base64
import csv
import io
import json
import re
import sys
import tempfile
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import PIL.Image
import pyarrow.parquet
import pytest
from annotated_folders import SQUARE
from PIL import ImageCms
from PIL.PngImagePlugin import PngInfo
from prepared import contents, pixels, shown, write_runs
from tasks import run_task

from sa2va_trl import cli
from sa2va_trl.data.loading import load_dataset_dict
from sa2va_trl.data.privacy import NameSearch, leaked, name_parts
from sa2va_trl.errors import DatasetError
from sa2va_trl.scripts import prepare_data


def prepare(tmp_path, *line, source="source", output="out"):
    given = ["--source", tmp_path / source, "--output_dir", tmp_path / output]
    run_task("prepare_data", *given, *(() if "keep" in line else ("--key_file", tmp_path / "key")), *line)
    return tmp_path / output


def report(output):
    return json.loads((output / "dataset_report.json").read_text())


def test_a_folder_becomes_a_data_set(tmp_path, capsys):
    write_runs(tmp_path / "source", patients=6)
    line = ["--splits", '{"train": 2, "test": 1}', "--patient_pattern", r"(P\d+)_", "--phrase", "Coronary Artery."]
    out = prepare(tmp_path, *line, "--names_table", tmp_path / "names.csv")
    data = load_dataset_dict(out)
    assert {split: len(rows) for split, rows in data.items()} == {"train": 16, "test": 8}
    found = report(out)
    assert found["split_by"] == "patient_id" and found["names"] == "pseudonyms"
    assert found["splits"]["test"]["patients"] == 2 and found["splits"]["train"]["phrases"] == {"coronary artery": 16}
    said = capsys.readouterr().out
    assert "test: 8 rows, 2 patients" in said and "split by patient_id" in said
    assert f"sa2va-trl inspect --dataset_name {out}" in said and str(tmp_path / "key") in said
    table = {row["sample_id"]: row for row in csv.DictReader((tmp_path / "names.csv").open())}
    for row in (row for rows in data.values() for row in rows):
        own = table[row["sample_id"]]
        assert own["patient_id"] == row["patient_id"] and re.fullmatch(r"patient-\w{12}", row["patient_id"])
        assert own["patient_id_at_source"] in own["image"]
        assert np.array_equal(np.asarray(row["image"]), np.asarray(PIL.Image.open(own["image"])))
    # The same key gives the same names in another data set, another key gives others.
    again = load_dataset_dict(prepare(tmp_path, *line[2:], output="again"))["train"]
    assert set(again["sample_id"]) == set(table)
    (tmp_path / "key").unlink()
    other = load_dataset_dict(prepare(tmp_path, *line[2:], output="other"))["train"]
    assert not set(other["sample_id"]) & set(table)


def test_names_that_look_like_frames_of_patients_are_warned_of(tmp_path, capsys):
    write_runs(tmp_path / "source")
    prepare(tmp_path)
    assert "WARNING: names look like frames of patients or clips" in capsys.readouterr().out
    prepare(tmp_path, "--patient_pattern", r"P\d+", output="other")
    assert "WARNING" not in capsys.readouterr().out


def test_splits_of_the_source_are_kept_and_checked(tmp_path):
    write_runs(tmp_path / "source" / "train", patients=2)
    write_runs(tmp_path / "source" / "test", patients=1)
    with pytest.raises(DatasetError, match="splits share 4 pictures"):
        prepare(tmp_path)
    assert not (tmp_path / "out").exists()
    out = prepare(tmp_path, "--splits", '{"train": 2, "test": 1}')  # which splits anew, equal ones together
    assert {split: own["rows"] for split, own in report(out)["splits"].items()} == {"train": 8, "test": 4}


def test_classes_templates_and_names_as_they_are(tmp_path):
    write_runs(tmp_path / "source", patients=1)
    out = prepare(
        tmp_path, "--names", "keep", "--phrase_templates", "the {phrase}", "a {phrase}", "--phrase", "vessel"
    )
    rows = load_dataset_dict(out)["train"]
    assert rows["sample_id"][:] == [f"P00_f{frame}" for frame in range(4)]
    assert rows["phrases"][:] == [["the vessel"], ["a vessel"]] * 2
    assert "have the names that they have at their source" in (out / "README.md").read_text()


def test_bad_pictures_leave_nothing(tmp_path):
    source = write_runs(tmp_path / "source", patients=1)
    for frame in (1, 2):
        (source / "image" / f"P00_f{frame}.jpg").write_bytes(b"nothing")
    with pytest.raises(DatasetError, match="2 of 4") as error:
        prepare(tmp_path)
    assert len(error.value.problems) == 2
    assert {path.name for path in tmp_path.iterdir()} <= {"source", "key"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["--splits", "[1]"], "splits must be shares by split"),
        (["--splits", '{"train": 0}'], "splits must have shares above 0"),
        (["--splits", '{"../x": 1}'], "names of splits are letters, digits and _"),
        (["--splits", "{"], "splits must be JSON"),
        (["--split_by", "patient_id"], "split_by and seed have no effect without splits"),
        (["--splits", '{"a": 1}', "--split_by", "patient"], "split_by must be one of auto, patient_id"),
        (["--output_format", "zip"], "output_format must be one of parquet, imagefolder"),
        (["--names", "none"], "names must be one of pseudonyms, keep"),
        (["--names", "keep", "--names_table", "x.csv"], "names_table has no effect with names=keep"),
        (["--names", "keep", "--push_to_hub", "me/data"], "push_to_hub needs names=pseudonyms"),
        (["--frame_sampler", "uniform"], "frame_sampler and frames_per_clip go together"),
        (["--frame_sampler", "uniform", "--frames_per_clip", 0], "frames_per_clip must be at least 1"),
        (["--frame_sampler", "uniform", "--frames_per_clip", 2], "there is no clip to choose frames of"),
        (["--num_proc", 0], "num_proc must be at least 1"),
        (["--instances", "both"], "instances must be join or separate"),
        (["--classes", "{}"], "classes must name one or more"),
        (["--phrase_templates", "a vessel"], "must hold {phrase}"),
        (["--format", "excel"], "format must be auto or one of"),
        (["--patient_pattern", "(P"], "is no regular expression"),
    ],
)
def test_bad_options_are_refused(tmp_path, line, message):
    write_runs(tmp_path / "source", patients=1)
    with pytest.raises(ValueError, match=re.escape(message)):
        prepare(tmp_path, *line)
    assert not (tmp_path / "out").exists()


def test_key_and_table_lie_outside_and_replace_nothing(tmp_path):
    source = write_runs(tmp_path / "source", patients=1)
    given = ["--source", source, "--output_dir", tmp_path / "out"]
    for place in (tmp_path / "out" / "key", source / "key"):
        with pytest.raises(ValueError, match="key_file=.* must lie outside of the data set and of its source"):
            run_task("prepare_data", *given, "--key_file", place)
        with pytest.raises(ValueError, match="names_table=.* must lie outside"):
            prepare(tmp_path, "--names_table", place)
        assert not place.exists()
    (tmp_path / "names.csv").write_text("mine")
    with pytest.raises(ValueError, match="names_table=.* is there already"):
        prepare(tmp_path, "--names_table", tmp_path / "names.csv")
    for output in (".", "source/out"):
        with pytest.raises(DatasetError, match="is there already|lies inside of the source"):
            prepare(tmp_path, output=output)
    assert (tmp_path / "names.csv").read_text() == "mine"


def test_clips_are_thinned_and_what_was_chosen_is_drawn(tmp_path, capsys):
    source, rows = write_runs(tmp_path / "source", patients=2, frames=6, names=("images", "masks")), []
    for file in sorted((source / "images").iterdir()):
        facts = {"video_id": f"run of {file.stem[:3]}", "frame_index": int(file.stem[-1]), "phrase": "vessel"}
        rows.append({"file_name": file.name, **facts})
    (source / "images" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    out = prepare(tmp_path, "--frame_sampler", "uniform", "--frames_per_clip", 3)
    data = load_dataset_dict(out)["train"]
    assert len(data) == 6 and report(out)["frames"] == {"sampler": "uniform", "of_each_clip": 3, "clips": 2}
    assert {path.stem for path in (out / "timelines").iterdir()} == set(data["video_id"])
    assert "uniform: 6 of 12 images, of 2 clips" in capsys.readouterr().out
    assert not any("run of" in name for name in contents(out))


# What no byte may hold, of people in files, folders, texts and metadata.
SECRETS = ["DOE^JOHN_1950", "Zhang^Weiming", "张伟明", "Kowalski^Ada", "Secret^Comment"]


def _planted(path, number, name):
    """A picture whose metadata name somebody."""
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = PIL.Image.Exif()
    exif[0x010E] = exif[0x013B] = name
    if path.suffix == ".jpg":
        shown(number).save(path, exif=exif, comment=name.encode("gb18030"), icc_profile=bytes(128) + name.encode())
        path.write_bytes(path.read_bytes() + name.encode("utf-16"))
    else:
        info = PngInfo()
        info.add_text("Patient", name, zip=True)
        info.add_itxt("Other", name)
        shown(number).save(path, pnginfo=info, exif=exif)


def _mask(path, name):
    path.parent.mkdir(parents=True, exist_ok=True)
    mask, info = np.zeros((32, 40), dtype=np.uint8), PngInfo()
    mask[3:9, 4:20] = 255
    info.add_itxt("Patient", name)
    PIL.Image.fromarray(mask).save(path, pnginfo=info)


def planted_mask_folder(folder):
    for number, name in enumerate(SECRETS):
        suffix = "png" if number % 2 else "jpg"
        _planted(folder / "image" / name / f"IM_{SECRETS[-number]}.{suffix}", number, name)
        _mask(folder / "mask" / name / f"IM_{SECRETS[-number]}.png", name)


def planted_sa2va_json(folder):
    entries = []
    for number, name in enumerate(SECRETS):
        _planted(folder / "images" / name / f"{name}.jpg", number, name)
        entries.append({"image": f"{name}/{name}.jpg", "mask": [[SQUARE]], "text": ["vessel"], "patient": name})
    (folder / "annotations.json").write_text(json.dumps(entries))


def planted_image_metadata(folder):
    rows = []
    for number, name in enumerate(SECRETS):
        _planted(folder / "images" / f"{name}.png", number, name)
        _mask(folder / "masks" / f"{name}.png", name)
        facts = {"patient_id": name, "video_id": f"run of {name}", "remark": name, "sample_id": name}
        rows.append(
            {"file_name": f"{name}.png", "mask_file_name": f"../masks/{name}.png", "phrase": "vessel", **facts}
        )
    (folder / "images" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))


# A format that keeps names elsewhere (DICOM's tags, a header of NIfTI) has a line here.
PLANTED = [planted_mask_folder, planted_sa2va_json, planted_image_metadata]


def traces(*roots):
    """Where names of the source stand below folders: in names of files, in bytes, in cells of tables."""
    names = name_parts(SECRETS)
    search, found = NameSearch(names, shortest=7), []
    for root in roots:
        for file in root.rglob("*"):
            found += [(str(file), name) for name in leaked(file.relative_to(root).as_posix(), names)]
            if file.is_file():
                found += [(str(file), name) for name in search(file.read_bytes())]
            if file.suffix == ".parquet":
                table = pyarrow.parquet.read_table(file)
                words = [name for name in table.column_names if name not in ("image", "masks")]
                found += [(str(file), name) for name in leaked(str(table.select(words).to_pylist()), names)]
                cells = table["image"].to_pylist() + [mask for own in table["masks"].to_pylist() for mask in own]
                for cell in cells:
                    found += [(str(file), name) for name in search(cell["bytes"]) | leaked(str(cell["path"]), names)]
    return found


class Hub:
    """Keeps what is pushed."""

    pushed = []

    def create_repo(self, name, repo_type, private, exist_ok):
        assert repo_type == "dataset" and private

    def upload_folder(self, repo_id, repo_type, folder_path, delete_patterns):
        # (Or rows of an earlier push would be read along.)
        names = [str(file.relative_to(folder_path)) for file in Path(folder_path).rglob("*") if file.is_file()]
        assert {name for name in names if not any(fnmatch(name, own) for own in delete_patterns)} == {
            "README.md",
            "dataset_report.json",
        }
        self.pushed.append((repo_id, repo_type, folder_path))


@pytest.mark.parametrize("output_format", ["parquet", "imagefolder"])
@pytest.mark.parametrize("plant", PLANTED)
def test_no_name_comes_out_of_a_source(tmp_path, monkeypatch, capfd, plant, output_format):
    source, work = tmp_path / "Sources of Kowalski^Ada", tmp_path / "work"
    work.mkdir()
    for place in ("home", "temp", "cache"):
        (work / place).mkdir()
    plant(source)
    assert {name for _, name in traces(source)} >= {secret.casefold() for secret in SECRETS if "1950" not in secret}
    monkeypatch.chdir(work)
    monkeypatch.setenv("HOME", str(work / "home"))
    monkeypatch.setattr(tempfile, "tempdir", str(work / "temp"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", work / "cache")
    monkeypatch.setattr(prepare_data, "HfApi", Hub)
    monkeypatch.setattr(Hub, "pushed", [])
    line = ["prepare_data", "--source", source, "--output_format", output_format, "--push_to_hub", "me/data"]
    monkeypatch.setattr(sys, "argv", ["sa2va-trl", *map(str, line)])
    cli.main()
    out = work / "outputs" / "data"
    assert Hub.pushed == [("me/data", "dataset", "outputs/data")]
    data = load_dataset_dict(out)["train"]  # by way of a cache
    assert len(data) == len(SECRETS) and len(list(data)) == len(SECRETS)
    assert set(data.column_names) <= {"image", "masks", "phrases", "sample_id", "patient_id", "video_id"}
    assert traces(work) == []
    assert (work / "home" / ".config" / "sa2va_trl" / "pseudonyms.key").is_file()
    assert not list(work.rglob("log.txt")) and not list((work / "temp").iterdir())
    if plant is planted_mask_folder:  # what another task says of it
        monkeypatch.setattr(sys, "argv", ["sa2va-trl", "inspect", "--dataset_name", str(out), "--num_pictures", "2"])
        cli.main()
        assert (work / "outputs" / "inspection" / "log.txt").is_file() and traces(work) == []


def test_what_is_written_does_not_depend_on_where(tmp_path):
    write_runs(tmp_path / "source", patients=1)
    assert contents(prepare(tmp_path)) == contents(prepare(tmp_path, output="elsewhere/else"))


def named_png(number):
    """Bytes of a PNG with a name in its text, compressed or not."""
    info, buffer = PngInfo(), io.BytesIO()
    info.add_text("PatientName", "SMITHSON^WILHELMINA", zip=bool(number % 2))
    shown(number).save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def in_labelme(folder):
    """Pictures inside the JSON."""
    folder.mkdir()
    shapes = [{"label": "vessel", "points": [[5, 3], [20, 3], [20, 9], [5, 9]], "shape_type": "polygon", "flags": {}}]
    for number in range(2):
        own = {"shapes": shapes, "imagePath": f"{number}.png", "imageHeight": 32, "imageWidth": 40}
        own["imageData"] = base64.b64encode(named_png(number)).decode()
        (folder / f"{number}.json").write_text(json.dumps({"version": "5.5.0", "flags": {}, **own}))


def in_pages(folder):
    """A TIFF of several pages with a colour profile."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes() + b"SMITHSON^WILHELMINA"
    first, *others = [shown(number).convert("RGB") for number in range(3)]
    first.save(folder / "images" / "run.tif", save_all=True, append_images=others, icc_profile=profile)
    mask = PIL.Image.new("L", (40, 32), 0)
    mask.paste(255, (5, 5, 20, 15))
    mask.save(folder / "masks" / "run.tif", save_all=True, append_images=[mask, mask])


@pytest.mark.parametrize("source", [in_labelme, in_pages])
@pytest.mark.parametrize("names", ["pseudonyms", "keep"])
def test_pictures_that_readers_hold_are_pixels_alone(tmp_path, source, names):
    source(tmp_path / "source")
    out = prepare(tmp_path, "--names", names)
    rows = pyarrow.parquet.read_table(out / "data" / "train-00000-of-00001.parquet").to_pylist()
    assert len(rows) == (2 if source is in_labelme else 3)
    for row in rows:
        data = row["image"]["bytes"]
        assert data[:4] == b"\x89PNG" and b"SMITHSON" not in data
        image = PIL.Image.open(io.BytesIO(data))
        image.load()
        assert not image.info and not image.text


def test_a_split_alone_stays_what_it_is(tmp_path):
    write_runs(tmp_path / "source" / "test")
    assert set(load_dataset_dict(prepare(tmp_path))) == {"test"}


def test_a_split_of_no_known_format_is_said(tmp_path):
    write_runs(tmp_path / "source" / "train")
    write_runs(tmp_path / "source" / "test", names=("Imgs", "mask"))
    with pytest.raises(DatasetError, match="test holds no known format, the other splits do"):
        prepare(tmp_path)


@pytest.mark.parametrize("output_format", ["parquet", "imagefolder"])
def test_what_was_prepared_is_split_anew_under_the_same_names(tmp_path, output_format):
    write_runs(tmp_path / "source", patients=4)
    line = ["--patient_pattern", r"(P\d+)_", "--output_format", output_format]
    first = prepare(tmp_path, *line)
    again = prepare(tmp_path, "--splits", '{"train": 3, "test": 1}', source="out", output="again")
    before, after = load_dataset_dict(first)["train"], load_dataset_dict(again)
    assert {split: len(rows) for split, rows in after.items()} == {"test": 4, "train": 12}
    assert report(again)["split_by"] == "patient_id"
    names = {row["sample_id"]: (row["patient_id"], pixels(row)) for row in before}
    assert {row["sample_id"]: (row["patient_id"], pixels(row)) for rows in after.values() for row in rows} == names
    with pytest.raises(ValueError, match="patient_pattern='P' has no effect: the source says who is in each"):
        prepare(tmp_path, "--patient_pattern", "P", source="out", output="never")
    # Names that were kept are made pseudonyms now: those that the source itself has.
    plain = prepare(tmp_path, *line, "--names", "keep", output="plain")
    own = load_dataset_dict(prepare(tmp_path, source=plain.name, output="hidden"))["train"]
    assert set(own["patient_id"]) == set(before["patient_id"])
