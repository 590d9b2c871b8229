import base64
import csv
import io
import json
import os
import re
import sys
import tempfile
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import pyarrow.parquet
import pytest
from PIL import ImageCms
from PIL.PngImagePlugin import PngInfo
from planted import PLANTED, SECRETS, dicom, mask_folder, nifti, pages, video
from prepared import contents, pixels, shown, write_runs
from tasks import run_task

from sa2va_trl import cli
from sa2va_trl.data.loading import load_dataset_dict
from sa2va_trl.data.privacy import NameSearch, leaked, name_parts
from sa2va_trl.data.readers.entries import FACTS
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
        (["--splits", '{"train": 0.8, "test": 0.3}'], "add up to 1.1."),
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


def test_text_in_clips_is_counted_and_warned_of(tmp_path, capsys):
    source = tmp_path / "source"
    for number, text in enumerate((None, "ROE^JANE 1950")):
        for frame in range(4):
            picture = shown(10 * number + frame, (160, 120)).point(lambda value: value * 2 // 3)
            if text:
                PIL.ImageDraw.Draw(picture).text((10, 90), text, fill=255, font=PIL.ImageFont.load_default(12))
            for kind, own in (("images", picture), ("masks", PIL.Image.new("L", (160, 120)))):
                file = source / kind / f"run{number}" / f"{frame}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                own.save(file)
    out = prepare(tmp_path)
    said = capsys.readouterr().out
    assert "WARNING: 0 pictures have text burned into them" in said and "4 are of clips in which bright text" in said
    assert "look at them with inspect" in said and "sa2va-trl inspect --dataset_name" in said
    data = load_dataset_dict(out)["train"]
    assert sorted(data["burned_in_text"]) == ["suspected"] * 4 + ["unknown"] * 4
    assert report(out)["splits"]["train"]["burned_in_text"] == {"suspected": 4, "unknown": 4}


class LostHub:
    """Fails, at first."""

    reached, pushes = False, 0

    def create_repo(self, *_, **__):
        if not self.reached:
            raise ConnectionError("the Hub is not there")

    def upload_folder(self, **given):
        LostHub.pushes += 1


def test_a_push_that_failed_goes_on_with_what_was_made(tmp_path, monkeypatch, capsys):
    source = write_runs(tmp_path / "source", patients=1)
    monkeypatch.setattr(prepare_data, "HfApi", LostHub)
    line = ["--push_to_hub", "me/data", "--names_table", tmp_path / "names.csv"]
    with pytest.raises(ConnectionError):
        prepare(tmp_path, *line)
    before, table = contents(tmp_path / "out"), (tmp_path / "names.csv").read_bytes()
    (tmp_path / "out" / "LICENSE").write_text("Yours.")  # what is put beside the rows is nobody else's business
    monkeypatch.setattr(LostHub, "reached", True)
    monkeypatch.setattr(prepare_data, "make", None)  # nothing is made again
    capsys.readouterr()
    prepare(tmp_path, *line)
    assert LostHub.pushes == 1 and "has been made before" in (said := capsys.readouterr().out)
    assert "train: 4 rows" in said and "pushed to me/data" in said
    assert contents(tmp_path / "out") == {**before, "LICENSE": b"Yours."}
    (tmp_path / "names.csv").unlink()
    prepare(tmp_path, *line, "--num_proc", 2)
    assert (tmp_path / "names.csv").read_bytes() == table
    (tmp_path / "names.csv").write_text("another")
    with pytest.raises(ValueError, match="names_table=.* is there already"):
        prepare(tmp_path, *line)
    with pytest.raises(DatasetError, match="made with other options"):
        prepare(tmp_path, "--phrase", "catheter")
    with pytest.raises(DatasetError, match="made with other options"):
        prepare(tmp_path, "--names", "keep")
    (source / "image" / "P00_f0.jpg").touch()
    with pytest.raises(DatasetError, match="of other data"):
        prepare(tmp_path)


@pytest.mark.parametrize(
    ("place", "content"),
    [
        ("notes.txt", b"Mr. Kowalski came twice"),
        ("README.md", "von Żółkiewska, 1950".encode()),
        ("P00_f0.txt", b""),
        ("pictures/page.html", "<b>KOWALSKI</b>".encode("utf-16")),
    ],
)
def test_nothing_is_pushed_with_a_name_beside_the_rows(tmp_path, monkeypatch, place, content):
    write_runs(
        tmp_path / "source", patients=1, names=("image/Kowalski^Ada/Żółkiewska", "mask/Kowalski^Ada/Żółkiewska")
    )
    monkeypatch.setattr(prepare_data, "HfApi", LostHub)
    monkeypatch.setattr(LostHub, "reached", True)
    monkeypatch.setattr(LostHub, "pushes", 0)
    out = prepare(tmp_path, "--push_to_hub", "me/data")
    assert LostHub.pushes == 1
    file = out / place
    file.parent.mkdir(exist_ok=True)
    file.write_bytes((file.read_bytes() if file.exists() else b"") + content)
    with pytest.raises(DatasetError, match="not pushed, names of the source") as error:
        prepare(tmp_path, "--push_to_hub", "me/data")
    assert [problem.file for problem in error.value.problems] == [str(file)] and LostHub.pushes == 1


@pytest.mark.parametrize("output_format", ["parquet", "imagefolder"])
def test_what_was_prepared_is_pushed_and_words_of_our_own_are_nobodys(tmp_path, monkeypatch, output_format):
    source = write_runs(tmp_path / "source", patients=2, names=("image", "mask"))
    for number, name in enumerate(("sample", "mean", "file", "time")):
        for file in [*source.glob(f"*/P00_f{number}.*")]:
            file.rename(file.with_stem(name))
    monkeypatch.setattr(prepare_data, "HfApi", LostHub)
    monkeypatch.setattr(LostHub, "reached", True)
    monkeypatch.setattr(LostHub, "pushes", 0)
    line = ["--output_format", output_format, "--push_to_hub", "me/data"]
    prepare(tmp_path, *line)
    prepare(tmp_path, *line, "--splits", '{"train": 3, "test": 1}', source="out", output="again")
    assert LostHub.pushes == 2
    (tmp_path / "out").rename(tmp_path / "Kowalski")  # the name of the folder is its user's
    line += ["--splits", '{"train": 3, "test": 1}']
    prepare(tmp_path, *line, source="Kowalski", output="third")
    (tmp_path / "third" / "note.txt").write_text("of Kowalski")
    with pytest.raises(DatasetError, match="note.txt: holds 'kowalski'"):
        prepare(tmp_path, *line, source="Kowalski", output="third")


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


# What a picture is made of: chunks of PNG, and markers of JPEG before its pixels. The heads of JFIF and Adobe say how
# colours are to be read.
CHUNKS = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}
MARKERS = {0xC0, 0xC1, 0xC2, 0xC4, 0xDA, 0xDB, 0xDD, 0xE0, 0xEE}


def parts_of(picture):
    """Kinds of chunks or segments of a picture, to its end and not beyond."""
    place, found = 8, []
    while picture[:4] == b"\x89PNG" and place < len(picture):
        found.append(picture[place + 4 : place + 8])
        place += 12 + int.from_bytes(picture[place : place + 4])
    place = 2
    while picture[:2] == b"\xff\xd8" and (not found or found[-1] != 0xDA):
        found.append(picture[place + 1])
        place += 2 + int.from_bytes(picture[place + 2 : place + 4])
    return found


def assert_bare(picture, search):
    """A picture is pixels and nothing else, which name nobody either."""
    kinds = parts_of(picture)
    assert set(kinds) <= CHUNKS and kinds[-1] == b"IEND" or set(kinds) <= MARKERS and picture[-2:] == b"\xff\xd9"
    image = PIL.Image.open(io.BytesIO(picture))
    assert not search(picture) and not search(image.tobytes())
    assert image.info.keys() <= {
        "jfif",
        "jfif_version",
        "jfif_unit",
        "jfif_density",
        "dpi",
        "adobe",
        "adobe_transform",
    }


def traces(*roots):
    """Where names of the source stand below folders: in names of files, in bytes, in cells of tables."""
    names = name_parts([*SECRETS, *(os.fsdecode(b"IM_" + own.encode("gb18030")) for own in SECRETS)])
    search, found = NameSearch(names, shortest=7), []
    for root in roots:
        for file in root.rglob("*"):
            place = file.relative_to(root).as_posix()
            found += [(place, name) for name in leaked(place, names) | search(os.fsencode(place))]
            if file.is_file():
                found += [(place, name) for name in search(file.read_bytes())]
            if file.suffix == ".parquet":
                table = pyarrow.parquet.read_table(file)
                words = [name for name in table.column_names if name not in ("image", "masks")]
                found += [(place, name) for name in leaked(str(table.select(words).to_pylist()), names)]
                cells = table["image"].to_pylist() + [mask for own in table["masks"].to_pylist() for mask in own]
                for cell in cells:
                    found += [(place, name) for name in leaked(str(cell["path"]), names)]
                    assert_bare(cell["bytes"], search)
    return found


class Hub:
    """Keeps what is pushed."""

    pushed = []

    def create_repo(self, name, repo_type, private, exist_ok):
        assert repo_type == "dataset" and private

    def upload_folder(self, repo_id, repo_type, folder_path, delete_patterns, ignore_patterns):
        names = [str(file.relative_to(folder_path)) for file in Path(folder_path).rglob("*") if file.is_file()]
        names = [name for name in names if name not in ignore_patterns]
        # (Or rows of an earlier push would be read along.)
        assert {name for name in names if not any(fnmatch(name, own) for own in delete_patterns)} == {
            "README.md",
            "dataset_report.json",
        }
        assert traces(Path(folder_path)) == []
        self.pushed.append((repo_id, repo_type, folder_path))


@pytest.mark.parametrize(
    ("plant", "output_format"), [*((own, "parquet") for own in PLANTED), (mask_folder, "imagefolder")]
)
def test_no_name_comes_out_of_a_source(tmp_path, monkeypatch, capfd, plant, output_format):
    source, work = tmp_path / "Sources of Kowalski^Ada", tmp_path / "work"
    work.mkdir()
    for place in ("home", "temp", "cache"):
        (work / place).mkdir()
    plant(source)
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
    frames = {dicom: 2, nifti: 2, pages: 2, video: 3}.get(plant, 1)
    assert len(data) == len(list(data)) == frames * len(SECRETS)
    assert all(np.asarray(mask).any() for masks in data["masks"] for mask in masks)
    assert set(data.column_names) <= {"image", "masks", "phrases", "sample_id", *FACTS}
    assert traces(work) == []
    for file in (*out.rglob("*.png"), *out.rglob("*.jpg")):
        assert_bare(file.read_bytes(), NameSearch(name_parts(SECRETS), shortest=7))
    assert (work / "home" / ".config" / "sa2va_trl" / "pseudonyms.key").is_file()
    assert not list(work.rglob("log.txt")) and not list((work / "temp").iterdir())
    if plant is mask_folder:  # what another task says of it
        monkeypatch.setattr(sys, "argv", ["sa2va-trl", "inspect", "--dataset_name", str(out), "--num_pictures", "2"])
        cli.main()
        assert (work / "outputs" / "inspection" / "log.txt").is_file() and traces(work) == []


@pytest.mark.parametrize("plant", PLANTED)
def test_names_are_in_the_bytes_of_what_is_planted(tmp_path, plant):
    plant(tmp_path)
    search = NameSearch(name_parts(SECRETS))
    found = set().union(*(search(file.read_bytes()) for file in tmp_path.rglob("*") if file.is_file()))
    assert found >= {name.casefold() for name in SECRETS}


def test_a_folder_with_a_name_that_is_no_utf_8_is_named_on_the_screen(tmp_path, monkeypatch, capfd):
    source = tmp_path / os.fsdecode(b"Gr\xfc\xdfe")
    write_runs(source, patients=1)
    (source / "image" / "P00_f0.jpg").rename(source / "image" / os.fsdecode(b"M\xfcller.jpg"))
    line = ["prepare_data", "--source", source, "--output_dir", tmp_path / "out", "--key_file", tmp_path / "key"]
    monkeypatch.setattr(sys, "argv", ["sa2va-trl", *map(str, line)])
    with pytest.raises(SystemExit):
        cli.main()
    assert r"M\xfcller.jpg" in capfd.readouterr().err and not (tmp_path / "out").exists()
    (source / "mask" / "P00_f0.png").rename(source / "mask" / os.fsdecode(b"M\xfcller.png"))
    monkeypatch.setattr(sys, "argv", ["sa2va-trl", *map(str, line)])
    cli.main()
    out = tmp_path / "out"
    assert len(load_dataset_dict(out)["train"]) == 4
    prepare(tmp_path, "--names", "keep", source=source.name, output="named")
    assert r"M\xfcller" in load_dataset_dict(tmp_path / "named")["train"]["sample_id"]


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
