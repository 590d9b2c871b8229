"""Small data sets in the formats of annotation tools, and ways to damage them."""

import base64
import copy
import io
import itertools
import json

import numpy as np
import PIL.Image
from annotated_folders import HEIGHT, SQUARE, WIDTH, write_image

from sa2va_trl.data.readers.entries import Reading, rows_of


SIZE = (WIDTH, HEIGHT)
OTHER = [7, 4, 11, 4, 11, 7, 7, 7]  # columns 7-10, rows 4-6


def box_mask(polygon):
    """The mask of a polygon that is a box with whole coordinates."""
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[min(polygon[1::2]) : max(polygon[1::2]), min(polygon[::2]) : max(polygon[::2])] = True
    return mask


SQUARE_MASK, OTHER_MASK = box_mask(SQUARE), box_mask(OTHER)


def runs(flat):
    """Lengths of runs, the first of False."""
    found = [(bool(value), len([*group])) for value, group in itertools.groupby(flat)]
    return [0] * bool(found and found[0][0]) + [count for _, count in found]


def brush_rle(mask):
    """What Label Studio writes of a brush: runs and single values of RGBA, packed into bits."""
    values = np.repeat(mask.ravel() * 255, 4)
    bits = f"{values.size:032b}{7:05b}" + "".join(f"{size - 1:04b}" for size in (3, 4, 8, 16))
    for number, (value, group) in enumerate(itertools.groupby(values)):
        group = [*group]
        for start in range(0, len(group), 256):
            part = group[start : start + 256]
            if number % 3 == 2 and len(part) <= 16:  # some not as a run
                bits += f"001{len(part) - 1:04b}" + "".join(f"{one:08b}" for one in part)
            else:
                bits += f"110{len(part) - 1:08b}{value:08b}"
    bits += "0" * (-len(bits) % 8)
    return [int(bits[at : at + 8], 2) for at in range(0, len(bits), 8)]


def png(array):
    """A picture in base64."""
    buffer = io.BytesIO()
    PIL.Image.fromarray(array).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def coco(*annotations, images=("a.png",), **changes):
    """COCO's JSON: `annotations` are (image, category, segmentation), both counted from 1 and 10."""
    return {
        "images": [
            {"id": number, "file_name": name, "width": WIDTH, "height": HEIGHT}
            for number, name in enumerate(images, start=1)
        ],
        "annotations": [
            {"id": number, "image_id": image, "category_id": category, "segmentation": segmentation, "iscrowd": 0}
            for number, (image, category, segmentation) in enumerate(annotations)
        ],
        "categories": [{"id": 10, "name": "Vessel"}, {"id": 70, "name": "catheter"}],
        **changes,
    }


def labelme(*shapes, name="a.png", **changes):
    """LabelMe's JSON: `shapes` are (label, points) of polygons, or dictionaries."""
    shapes = [
        one
        if isinstance(one, dict)
        else {"label": one[0], "points": pairs(one[1]), "group_id": None, "shape_type": "polygon", "flags": {}}
        for one in shapes
    ]
    size = {"imageHeight": HEIGHT, "imageWidth": WIDTH}
    return {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": name, "imageData": None, **size, **changes}


def pairs(flat):
    return [[x, y] for x, y in zip(flat[::2], flat[1::2], strict=True)]


def region(label, polygon=None, mask=None, **changes):
    """A region of Label Studio."""
    if mask is None:
        kind = "polygonlabels"
        points = [[100 * x / WIDTH, 100 * y / HEIGHT] for x, y in pairs(polygon)]
        value = {"points": points, "closed": True, "polygonlabels": [label]}
    else:
        kind, value = "brushlabels", {"format": "rle", "rle": brush_rle(mask), "brushlabels": [label]}
    size = {"original_width": WIDTH, "original_height": HEIGHT, "image_rotation": 0}
    return {"id": "r", "type": kind, "from_name": "label", "to_name": "image", **size, "value": value, **changes}


def task(*regions, image="/data/local-files/?d=a.png", number=1, **changes):
    """A task of Label Studio."""
    annotations = [{"id": 1, "result": [*regions], "was_cancelled": False}]
    return {"id": number, "annotations": annotations, "data": {"image": image}, **changes}


def points(flat):
    return ";".join(f"{x:.2f},{y:.2f}" for x, y in pairs(flat))


def cvat_image(*shapes, name="a.png", number=0, extra=""):
    """An image of CVAT's XML with the text of its shapes."""
    return (
        f'<image id="{number}" name="{name}" width="{WIDTH}" height="{HEIGHT}" {extra}>' + "".join(shapes) + "</image>"
    )


def cvat_polygon(label, polygon, extra=""):
    return f'<polygon label="{label}" source="manual" occluded="0" points="{points(polygon)}" z_order="0" {extra}/>'


def cvat_mask(label, mask):
    """As CVAT writes it: in its tight box, along the rows."""
    rows, columns = mask.nonzero()
    top, left, bottom, right = rows.min(), columns.min(), rows.max() + 1, columns.max() + 1
    rle = ", ".join(map(str, runs(mask[top:bottom, left:right].ravel())))
    box = f'left="{left}" top="{top}" width="{right - left}" height="{bottom - top}"'
    return f'<mask label="{label}" source="manual" occluded="0" rle="{rle}" {box} z_order="0"/>'


def cvat(*images, labels=("vessel", "catheter")):
    named = "".join(f"<label><name>{name}</name><type>any</type></label>" for name in labels)
    return (
        '<?xml version="1.0" encoding="utf-8"?>\n<annotations><version>1.1</version>'
        f"<meta><task><labels>{named}</labels></task></meta>{''.join(images)}</annotations>"
    )


def write(folder, name, content, images=("a.png",)):
    """An annotation file, and images."""
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    for image in images:
        write_image(folder / image)
    return folder


def read(find, folder, **reading):
    """Of every split, its rows by `sample_id`: phrases, and masks."""
    reading = Reading(**reading)
    return {
        split: {
            row["sample_id"]: dict(
                zip(row["phrases"], (np.asarray(mask) > 0 for mask in row["masks"]), strict=len(row["phrases"]) > 0)
            )
            for row in rows_of(source, reading)
        }
        for split, source in find(folder, reading).items()
    }


def same(found, expected):
    """Whether phrases and masks are those."""
    return found.keys() == expected.keys() and all((found[key] == expected[key]).all() for key in expected)


ODD = (None, True, 0, -1, 1e308, 10**400, float("nan"), "", "\ud800", "../a.png", "[SEG]", [], {}, [[]], 2**31, 0.5)


def mutated(value, random):
    """A JSON value with one place of its tree deleted, doubled, moved or replaced by what is odd."""
    value = copy.deepcopy(value)
    places = []

    def visit(node):
        for key in node if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], dict | list):
                visit(node[key])

    visit(value)
    for _ in range(random.randint(1, 2)):
        node, key = random.choice(places)
        change = random.randrange(4)
        try:
            if change == 0:
                del node[key]
            elif change == 1 and isinstance(node, list):
                node.insert(key, node[key])
            elif change == 2:
                other, place = random.choice(places)
                node[key] = copy.deepcopy(other[place])
            else:
                node[key] = random.choice(ODD)
        except (KeyError, IndexError):  # it was in what has been deleted
            pass
    return value


def damaged(data, random):
    """Bytes cut off, or with a few bits turned."""
    if random.random() < 0.3:
        return data[: random.randrange(len(data))]
    data = bytearray(data)
    for _ in range(random.randint(1, 4)):
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    return bytes(data)
