"""Small referring sets in the layouts that people have them in."""

import json

import numpy as np
import PIL.Image

from sa2va_trl.data.rle import coco_string, mask_runs


HEIGHT, WIDTH = 48, 64
FRAMES = ("00000", "00005", "00010", "00015")
PALETTE = [0, 0, 0, 236, 95, 103, 249, 145, 87]


def moving(frame, row=8, side=16):
    """A box that goes to the right; nothing in the last frame."""
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    if frame < len(FRAMES) - 1:
        mask[row : row + side, 4 + 6 * frame : 4 + 6 * frame + side] = True
    return mask


def standing(frame):
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[30:44, 40:60] = True
    return mask


def picture(frame, seed=0):
    noise = np.random.default_rng(seed + frame).integers(0, 60, (HEIGHT, WIDTH, 3))
    noise[moving(frame)] += 120
    noise[standing(frame)] += (0, 150, 60)
    return PIL.Image.fromarray(noise.astype(np.uint8))


def write_frames(folder, videos, frames=FRAMES, suffix=".jpg"):
    for seed, video in enumerate(videos):
        (folder / video).mkdir(parents=True, exist_ok=True)
        for number, name in enumerate(frames):
            picture(number, 10 * seed).save(folder / video / f"{name}{suffix}")


def rle(mask):
    if not mask.any():
        return None
    return {"size": [HEIGHT, WIDTH], "counts": coco_string(mask_runs(mask, columns=True))}


def write_mevis(folder, videos=("v0", "v1"), masks=True, split="valid_u"):
    """A split of MeViS: of each video a moving thing, a standing one, and both."""
    place = folder / split if split else folder
    write_frames(place / "JPEGImages", videos)
    meta, runs = {}, {}
    for number, video in enumerate(videos):
        ids = [2 * number, 2 * number + 1]
        for key, draw in zip(ids, (moving, standing), strict=True):
            runs[str(key)] = [rle(draw(frame)) for frame in range(len(FRAMES))]
        said = [("The box moving right", ids[:1]), ("what stands still?", ids[1:]), ("all boxes", ids)]
        meta[video] = {
            "expressions": {
                str(key): {"exp": text, "obj_id": list(range(len(own))), "anno_id": own}
                for key, (text, own) in enumerate(said)
            },
            "vid_id": number,
            "frames": list(FRAMES),
        }
    if not masks:
        for video in meta.values():
            for expression in video["expressions"].values():
                del expression["obj_id"], expression["anno_id"]
    (place / "meta_expressions.json").write_text(json.dumps({"videos": meta}))
    if masks:
        (place / "mask_dict.json").write_text(json.dumps(runs))
    return folder


def write_ref_youtube_vos(folder, videos=("v0", "v1"), masks=True, split="valid", annotated=FRAMES):
    """A split of Ref-YouTube-VOS, or of Ref-DAVIS17 with two expressions an object."""
    write_frames(folder / split / "JPEGImages", videos)
    meta = {}
    for video in videos:
        texts = ("a box", "the box above", "a green box", "the box below")
        meta[video] = {
            "expressions": {
                str(key): {"exp": text, **({"obj_id": str(1 + key // 2)} if masks else {})}
                for key, text in enumerate(texts)
            },
            "frames": list(FRAMES),
        }
        for number, name in enumerate(FRAMES if masks else ()):
            if name in annotated:
                ids = np.where(standing(number), 2, moving(number)).astype(np.uint8)
                mask = PIL.Image.fromarray(ids, mode="P")
                mask.putpalette(PALETTE)
                file = folder / split / "Annotations" / video / f"{name}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                mask.save(file)
    file = folder / "meta_expressions" / split / "meta_expressions.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"videos": meta}))
    return folder


def boxes(*masks):
    """COCO's annotations of boxes: rows and columns of their masks."""
    return [{"size": [HEIGHT, WIDTH], "counts": mask_runs(mask, columns=True)} for mask in masks]


def write_refcoco(folder, refs="refs.json", none=False):
    """Two images, two objects each; of gRefCOCO also both together, and what is not there."""
    (folder / "images").mkdir(parents=True)
    images, annotations, listed = [], [], []
    for number in range(2):
        picture(number).save(folder / "images" / f"COCO_{number}.jpg")
        images.append({"id": number, "file_name": f"COCO_{number}.jpg", "height": HEIGHT, "width": WIDTH})
        for key, own in enumerate(boxes(moving(number), standing(number))):
            ann = 10 * number + key
            annotations.append({"id": ann, "image_id": number, "category_id": 1, "segmentation": own, "iscrowd": 0})
            sentences = [{"sent": f"box {key}", "raw": f"Box {key}!", "sent_id": 100 * ann + n} for n in range(2)]
            split = "val" if number else "testA"
            listed.append({"ref_id": ann, "ann_id": ann, "image_id": number, "split": split, "sentences": sentences})
    if none:
        for ref_id, ids in ((50, [0, 1]), (51, [-1])):
            sentences = [{"sent": f"of {ids}", "sent_id": 1000 + ref_id}]
            listed.append({"ref_id": ref_id, "ann_id": ids, "image_id": 0, "split": "testA", "sentences": sentences})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "box"}]}
    (folder / "instances.json").write_text(json.dumps(content))
    (folder / refs).write_text(json.dumps(listed))
    return folder
