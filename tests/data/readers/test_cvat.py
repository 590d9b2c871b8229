import pickle

import numpy as np
import pytest
from annotated_folders import HEIGHT, SQUARE, WIDTH, write_image
from annotation_formats import (
    OTHER,
    OTHER_MASK,
    SQUARE_MASK,
    cvat,
    cvat_image,
    cvat_mask,
    cvat_polygon,
    read,
    same,
    write,
)
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays

from sa2va_trl.data.loading import load_dataset_dict
from sa2va_trl.data.readers.cvat import find_cvat, is_cvat
from sa2va_trl.data.readers.entries import Reading, objects_of
from sa2va_trl.errors import DatasetError


NONE = np.zeros((HEIGHT, WIDTH), dtype=bool)
BOX = '<box label="vessel" xtl="1" ytl="1" xbr="3" ybr="3" z_order="0"/>'


def faults(folder):
    with pytest.raises(DatasetError) as caught:
        read(find_cvat, folder)
    return str(caught.value)


def test_a_data_set(tmp_path, caplog):
    text = cvat(
        cvat_image(cvat_polygon("vessel", SQUARE), cvat_mask("catheter", OTHER_MASK), BOX, '<tag label="blurred"/>'),
        cvat_image(name="sub/b.png", number=1),
        cvat_image(BOX, '<polyline label="vessel" points="1,1;2,2"/>', name="c.png", number=2),
        cvat_image('<tag label="blurred"/>', name="d.png", number=3),
    )
    write(tmp_path, "annotations.xml", text, images=[f"images/{name}.png" for name in ("a", "sub/b", "c", "d", "e")])
    assert is_cvat(tmp_path)
    found = read(find_cvat, tmp_path)["train"]
    assert [*found] == ["a", "b", "d"]
    assert same(found["a"], {"vessel": SQUARE_MASK, "catheter": OTHER_MASK})
    assert same(found["b"], {"vessel": NONE, "catheter": NONE}) and same(found["d"], found["b"])
    assert "of what no mask is known: 2 x <box>, 2 x <tag>, 1 x <polyline>" in caplog.text
    assert "no object has a mask: c.png" in caplog.text and "images/e.png" in caplog.text


@settings(max_examples=20, deadline=None)
@given(mask=arrays(bool, (HEIGHT, WIDTH)).filter(np.any))
def test_masks_are_row_major_in_their_box(tmp_path_factory, mask):
    folder = tmp_path_factory.mktemp("cvat")
    write(folder, "annotations.xml", cvat(cvat_image(cvat_mask("vessel", mask))))
    assert same(read(find_cvat, folder)["train"]["a"], {"vessel": mask})


def test_a_group_is_one_object(tmp_path):
    shapes = [
        cvat_polygon("vessel", SQUARE, 'group_id="3"'),
        cvat_polygon("vessel", OTHER, 'group_id="3"'),
        cvat_polygon("vessel", OTHER, 'group_id="0"'),
        cvat_polygon("catheter", OTHER, 'group_id="3"'),
    ]
    write(tmp_path, "annotations.xml", cvat(cvat_image(*shapes)))
    entry = pickle.loads(pickle.dumps(find_cvat(tmp_path, Reading())["train"].entries[0]))
    row = objects_of(entry, (), Reading(instances="separate"), (WIDTH, HEIGHT))
    assert row["phrases"] == ["vessel", "vessel", "catheter"]
    assert (row["masks"][0] == SQUARE_MASK | OTHER_MASK).all() and (row["masks"][1] == OTHER_MASK).all()


def test_subsets_are_splits(tmp_path):
    text = cvat(
        cvat_image(cvat_polygon("vessel", SQUARE), extra='subset="Train" task_id="1"'),
        cvat_image(cvat_polygon("vessel", OTHER), extra='subset="Validation" task_id="2"'),
    )
    write(tmp_path, "annotations.xml", text, images=("images/Train/a.png", "images/Validation/a.png"))
    found = load_dataset_dict(tmp_path)
    assert (np.asarray(found["train"][0]["masks"][0]) > 0).sum() == 12
    assert ((np.asarray(found["validation"][0]["masks"][0]) > 0) == OTHER_MASK).all()


def test_a_folder_a_split(tmp_path):
    for split, polygon in (("train", SQUARE), ("test", OTHER)):
        text = cvat(cvat_image(cvat_polygon("vessel", polygon)))
        write(tmp_path / split, "annotations.xml", text, images=("images/a.png",))
    found = read(find_cvat, tmp_path)
    assert same(found["train"]["a"], {"vessel": SQUARE_MASK}) and same(found["test"]["a"], {"vessel": OTHER_MASK})


MASK = '<mask label="vessel" rle="{}" left="{}" top="{}" width="{}" height="{}"/>'


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ('<polygon label="vessel" points="1,1;2,2"/>', "<polygon> 0: polygon 0 has 2 point"),
        ('<polygon label="vessel" points="1,1;2;3,3"/>', "`points` must be x,y;x,y;…"),
        ('<polygon label="vessel" points="1,1;2,b;3,3"/>', "`points` must be x,y;x,y;…"),
        ('<polygon label="vessel" points="1,1;2,inf;3,3"/>', "not finite"),
        ('<polygon label="vessel" points="1,1;30,2;3,3"/>', "leaves the image: x from 1 to 30"),
        ('<polygon label="vessel"/>', "`points` must be"),
        ('<polygon points="1,1;2,2;3,1"/>', "`label` must be a text"),
        (MASK.format("1, 3", 0, 0, 2, 3), "RLE has 4 pixels, 2 x 3 are 6"),
        (MASK.format("1, 5", 11, 0, 2, 3), "leaves the image of 12 x 8"),
        (MASK.format("1, 5", -1, 0, 2, 3), "leaves the image of 12 x 8"),
        (MASK.format("0", 1, 1, 0, 0), "leaves the image of 12 x 8"),
        (MASK.format("1, x", 1, 1, 2, 3), "`rle` must be whole numbers"),
        (MASK.format("1, " + "9" * 30, 1, 1, 2, 3), "`rle` must be whole numbers"),
        (MASK.format("1, 5", 1, 1, 2, ""), "`height` must be a whole number"),
        (MASK.format("1, 4", 1, 1, 10**9, 10**9), "leaves the image"),
    ],
)
def test_shapes_that_cannot_be_used(tmp_path, shape, reason):
    write(tmp_path, "annotations.xml", cvat(cvat_image(shape)))
    found = faults(tmp_path)
    assert reason in found and "a.png" in found


BOMB = '<?xml version="1.0"?>\n<!DOCTYPE annotations [<!ENTITY a "aaaaaaaaaa">{}]>\n<annotations>&l29;</annotations>'


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (BOMB.format("".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 9}">' for n in range(1, 30))), "a document type"),
        ('<!DOCTYPE annotations SYSTEM "file:///etc/passwd"><annotations/>', "declares a document type"),
        ("<annotations><image>", "invalid XML"),
        ('<?xml version="1.0" encoding="none"?><annotations/>', "invalid XML"),
        ("<annotations></annotations>", "holds no <image>"),
        ('<annotations><track id="0"/></annotations>', "holds tracks of a video: export it as 'CVAT for images 1.1'"),
        ("<other><annotations/></other>", "expected CVAT's <annotations>, found <other>"),
        (cvat(cvat_image(name="none.png")), "none.png: image: file is missing"),
        (cvat(cvat_image(name="../a.png")), "leaves the dataset folder"),
        (cvat(cvat_image()).replace('width="12"', 'width="x"'), "`width` must be a whole number"),
        (cvat(cvat_image()).replace('width="12"', 'width="24"'), "annotations are made for 24 x 8"),
        (cvat(cvat_image(name="none.png", extra=f'subset="{"x" * 5000}"')), "none.png: image: file is missing"),
        (cvat(cvat_image(), cvat_image(number=1)), "is the same file as 'a.png'"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, text, reason):
    write(tmp_path, "annotations.xml", text)
    assert reason in faults(tmp_path)


def test_other_xml_is_not_taken(tmp_path):
    write_image(tmp_path / "a.png")
    (tmp_path / "a.xml").write_text("<annotation><filename>a.png</filename></annotation>")
    assert not is_cvat(tmp_path)
