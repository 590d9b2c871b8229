import pytest

from sa2va_trl.scripts.exporting import class_of_prompt, foreign_files, record


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("Please segment the catheter.", "catheter"),
        ("Can you find the LAD?", "LAD"),
        ("Where  is it?", "Where is it?"),
        ("Please segment the .", "Please segment the ."),
    ],
)
def test_a_prompt_names_its_objects(prompt, name):
    assert class_of_prompt(prompt, "Can you find the {phrase}?") == name


def test_files_of_others_and_changed_ones_are_known(tmp_path):
    assert foreign_files(tmp_path, None) == []
    (tmp_path / "export" / "images").mkdir(parents=True)
    (tmp_path / "export" / "images" / "a.png").write_text("a")
    (tmp_path / "export" / "a.json").write_text("{}")
    recorded = record(tmp_path, "coco")
    assert foreign_files(tmp_path, recorded) == []
    assert foreign_files(tmp_path, ["export"]) == ["export/a.json", "export/images/a.png"]
    (tmp_path / "export" / "a.json").write_text("{} ")
    (tmp_path / "export" / "link").symlink_to(tmp_path / "export" / "nowhere")
    assert foreign_files(tmp_path, recorded) == ["export/a.json (changed since)", "export/link"]


def test_an_export_that_is_no_folder_is_of_somebody_else(tmp_path):
    (tmp_path / "export").touch()
    assert foreign_files(tmp_path, record(tmp_path, "coco")) == ["export"]
