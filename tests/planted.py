"""Sources of every format that name people wherever the format has room for it."""

import base64
import io
import json
import os

import numpy as np
import PIL.Image
from annotated_folders import SQUARE
from datasets import Dataset, Features, Value
from PIL import ImageCms
from PIL.PngImagePlugin import PngInfo
from prepared import shown

from sa2va_trl.data.columns import FEATURES


# What no byte may hold, of people in files, folders, texts and metadata.
SECRETS = ["DOE^JOHN_1950", "Zhang^Weiming", "张伟明", "Kowalski^Ada", "Müllerova^Jörg"]
WIDTH, HEIGHT = 40, 32
POLYGON = [[x, y] for x, y in zip(SQUARE[::2], SQUARE[1::2], strict=True)]


def told(name):
    """A name as programs write it: whole, and its parts; in several encodings."""
    family, _, given = name.partition("^")
    text = f"{name} {given} {family}"
    return b"".join(text.encode(encoding) for encoding in ("utf-8", "gb18030", "utf-16-le", "utf-16-be"))


def picture(path, number, name):
    """A picture whose metadata name somebody: EXIF, comment, profile and the bytes behind a JPEG; texts of a PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(picture_bytes(number, name, "JPEG" if path.suffix == ".jpg" else "PNG"))
    return path


def picture_bytes(number, name, kind="PNG"):
    exif, buffer = PIL.Image.Exif(), io.BytesIO()
    exif[0x010E] = exif[0x013B] = name
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes() + told(name)
    if kind == "JPEG":
        shown(number).save(buffer, kind, exif=exif, comment=told(name), icc_profile=bytes(128) + told(name))
        return buffer.getvalue() + told(name)
    info = PngInfo()
    info.add_text("Patient", told(name).decode("latin-1"), zip=True)
    info.add_itxt("Other", name)
    shown(number).convert("RGB").save(buffer, kind, pnginfo=info, exif=exif, icc_profile=profile)
    return buffer.getvalue()


def mask_of(pages=1):
    pages = [np.zeros((HEIGHT, WIDTH), dtype=np.uint8) for _ in range(pages)]
    for page in pages:
        page[3:9, 4:20] = 255
    return [PIL.Image.fromarray(page) for page in pages]


def mask(path, name, pages=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    info = PngInfo()
    info.add_itxt("Patient", name)
    first, *others = mask_of(pages)
    if path.suffix == ".png":
        first.save(path, pnginfo=info)
    else:
        first.save(path, save_all=True, append_images=others, description=name.encode())


def write(folder, name, content):
    folder.mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    (folder / name).write_text(text, encoding="utf-8")


def mask_folder(folder):
    for number, name in enumerate(SECRETS):
        suffix = "png" if number % 2 else "jpg"
        picture(folder / "image" / name / f"IM_{SECRETS[-number]}.{suffix}", number, name)
        mask(folder / "mask" / name / f"IM_{SECRETS[-number]}.png", name)


def names_that_are_no_utf_8(folder):
    for number, name in enumerate(SECRETS):
        raw = name.encode("gb18030" if number % 2 == 0 and number < 4 else "latin-1")
        stem = os.fsdecode(b"IM_" + raw)
        picture(folder / "image" / stem / f"{stem}.png", number, name)
        mask(folder / "mask" / stem / f"{stem}.png", name)


def sa2va_json(folder):
    entries = []
    for number, name in enumerate(SECRETS):
        picture(folder / "images" / name / f"{name}.jpg", number, name)
        entries.append({"image": f"{name}/{name}.jpg", "mask": [[SQUARE]], "text": ["vessel"], "patient": name})
    write(folder, "annotations.json", entries)


def image_metadata(folder):
    rows = []
    for number, name in enumerate(SECRETS):
        picture(folder / "images" / f"{name}.png", number, name)
        mask(folder / "masks" / f"{name}.png", name)
        facts = {"patient_id": name, "video_id": f"run of {name}", "remark": name, "sample_id": name}
        rows.append(
            {"file_name": f"{name}.png", "mask_file_name": f"../masks/{name}.png", "phrase": "vessel", **facts}
        )
    write(folder / "images", "metadata.jsonl", "\n".join(map(json.dumps, rows)))


def rows_with_metadata(folder):
    """What `datasets` opens as it is, pictures beside their metadata."""
    rows = []
    for number, name in enumerate(SECRETS):
        picture(folder / "pictures" / name / f"{name}.png", number, name)
        mask(folder / "masks" / f"{name}.png", name)
        place = {"file_name": f"pictures/{name}/{name}.png", "masks_file_names": [f"masks/{name}.png"]}
        facts = {"patient_id": name, "video_id": f"run of {name}", "remark": name, "sample_id": name}
        rows.append({**place, "phrases": ["vessel"], **facts})
    write(folder, "metadata.jsonl", "\n".join(map(json.dumps, rows)))


def rows_with_pictures(folder):
    """Parquet files that are called as ours are, pictures within."""
    columns = {"image": [], "masks": [], "phrases": [["vessel"]] * len(SECRETS)}
    for number, name in enumerate(SECRETS):
        columns["image"].append({"path": f"{name}.png", "bytes": picture_bytes(number, name)})
        mask(folder / "own" / f"{name}.png", name)
        columns["masks"].append([{"path": f"{name}.png", "bytes": (folder / "own" / f"{name}.png").read_bytes()}])
    columns |= {"sample_id": SECRETS, "patient_id": SECRETS}
    rows = Dataset.from_dict(columns, features=Features({**FEATURES, "patient_id": Value("string")}))
    (folder / "data").mkdir()
    rows.to_parquet(folder / "data" / "train-00000-of-00001.parquet")


def coco(folder):
    images, annotations = [], []
    for number, name in enumerate(SECRETS):
        picture(folder / "images" / name / f"{name}.jpg", number, name)
        own = {"file_name": f"{name}/{name}.jpg", "width": WIDTH, "height": HEIGHT}
        images.append({"id": name, **own, "coco_url": f"http://{name}/", "date_captured": name})
        object_ = {"id": number, "image_id": name, "category_id": 1, "segmentation": [SQUARE], "iscrowd": 0}
        annotations.append({**object_, "attributes": {"patient": name}})
    about = {"info": {"contributor": SECRETS[0], "description": " ".join(SECRETS)}, "licenses": [{"name": SECRETS[3]}]}
    categories = [{"id": 1, "name": "vessel", "supercategory": SECRETS[3]}]
    write(
        folder, "annotations.json", {**about, "images": images, "annotations": annotations, "categories": categories}
    )


def yolo(folder):
    for number, name in enumerate(SECRETS):
        picture(folder / "images" / "train" / name / f"{name}.jpg", number, name)
        shares = " ".join(f"{x / WIDTH} {y / HEIGHT}" for x, y in POLYGON)
        write(folder / "labels" / "train" / name, f"{name}.txt", f"0 {shares}\n")
    about = "".join(f"# of {name}\n" for name in SECRETS)
    write(folder, "data.yaml", f"{about}train: images/train\nnames: [vessel]\nauthor: {SECRETS[0]}\n")


def cvat(folder):
    points, images = ";".join(f"{x},{y}" for x, y in POLYGON), ""
    for number, name in enumerate(SECRETS):
        picture(folder / "images" / name / f"{name}.jpg", number, name)
        shape = f'<polygon label="vessel" source="{name}" occluded="0" points="{points}" z_order="0">'
        shape += f'<attribute name="patient">{name}</attribute></polygon>'
        images += f'<image id="{number}" name="{name}/{name}.jpg" width="{WIDTH}" height="{HEIGHT}">{shape}</image>'
    people = "".join(f"<owner><username>{name}</username></owner><assignee>{name}</assignee>" for name in SECRETS)
    labels = "<labels><label><name>vessel</name><type>any</type></label></labels>"
    meta = f"<meta><task><name>{SECRETS[0]}</name>{people}{labels}</task></meta>"
    write(folder, "annotations.xml", f"<annotations><version>1.1</version>{meta}{images}</annotations>")


def labelme(folder):
    for number, name in enumerate(SECRETS):
        about = {"group_id": None, "shape_type": "polygon", "flags": {name: True}, "description": name}
        shapes = [{"label": "vessel", "points": POLYGON, **about}]
        own = {"imagePath": f"{name}/{name}.jpg", "imageData": None, "imageHeight": HEIGHT, "imageWidth": WIDTH}
        if number % 2:
            own["imageData"] = base64.b64encode(picture_bytes(number, name)).decode()
        else:
            picture(folder / name / f"{name}.jpg", number, name)
        write(folder, f"{name}.json", {"version": "5.5.0", "flags": {name: False}, "shapes": shapes, **own})


def label_studio(folder):
    tasks = []
    for number, name in enumerate(SECRETS):
        picture(folder / "images" / name / f"{name}.jpg", number, name)
        points = [[100 * x / WIDTH, 100 * y / HEIGHT] for x, y in POLYGON]
        size = {"original_width": WIDTH, "original_height": HEIGHT, "image_rotation": 0}
        value = {"points": points, "closed": True, "polygonlabels": ["vessel"]}
        about = {"from_name": name, "to_name": "image", "meta": {"text": [name]}}
        regions = [{"id": name, "type": "polygonlabels", **about, **size, "value": value}]
        person = {"id": 1, "email": f"{name}@example.org", "first_name": name}
        own = {"id": 1, "result": regions, "was_cancelled": False, "completed_by": person}
        data = {"image": f"/data/local-files/?d=images/{name}/{name}.jpg", "patient": name}
        about = {"file_upload": f"{name}.jpg", "meta": {"patient": name}, "data": data}
        tasks.append({"id": number, "annotations": [own], "updated_by": [person], **about})
    write(folder, "export.json", tasks)


def nnunet(folder):
    for number, name in enumerate(SECRETS):
        picture(folder / "imagesTr" / f"{name}_0000.png", number, name)
        mask(folder / "labelsTr" / f"{name}.png", name)
    about = {"name": SECRETS[0], "description": " ".join(SECRETS), "reference": SECRETS[3]}
    labels = {"background": 0, "vessel": 255}
    own = {"channel_names": {"0": "XA"}, "labels": labels, "numTraining": len(SECRETS), "file_ending": ".png"}
    write(folder, "dataset.json", {**about, **own})


def dicom(folder):
    """Names in the preamble, in standard and private elements, within sequences; a DICOMDIR that lists them all."""
    from dicom_files import Dataset, Sequence, dicom, ramp

    records = []
    for number, name in enumerate(SECRETS):
        person = Dataset()
        person.PatientName = person.ReferringPhysicianName = name
        person.add_new(0x00331001, "OB", told(name))
        about = {"PatientName": name, "PatientID": name, "InstitutionName": name, "PatientComments": name}
        about |= {"OperatorsName": [name, "A^B"], "ImageComments": name, "SpecificCharacterSet": "ISO_IR 192"}
        if number % 2 == 0:
            about["SpecificCharacterSet"] = "GB18030"
        about |= {"OtherPatientIDsSequence": Sequence([person]), "BurnedInAnnotation": "NO" if number else None}
        file = dicom(ramp(2, (WIDTH, HEIGHT)) >> number, **about)
        file.private_block(0x0009, f"{name} 1.0", create=True).add_new(1, "LO", name)
        file.preamble = told(name)[:128].ljust(128, b"\0")
        file.file_meta.PrivateInformationCreatorUID, file.file_meta.PrivateInformation = "1.2.3", told(name) + b" "
        place = folder / "images" / name / "IM1"
        place.parent.mkdir(parents=True)
        file.save_as(place, enforce_file_format=True)
        mask(folder / "masks" / name / "IM1.tif", name, pages=2)
        records.append(person)
    listing = dicom(ramp(1), kind="1.2.840.10008.1.3.10", DirectoryRecordSequence=Sequence(records))
    del listing.PixelData
    listing.save_as(folder / "images" / "DICOMDIR", enforce_file_format=True)


def nifti(folder):
    import nibabel

    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for number, name in enumerate(SECRETS):
        frames = np.stack([np.asarray(shown(10 * number + frame)).T for frame in range(2)], axis=-1)
        file = nibabel.Nifti1Image(frames, np.diag([-1, -1, 1, 1]))
        masks = nibabel.Nifti1Image(np.stack([np.asarray(page).T for page in mask_of(2)], -1), file.affine)
        for kind, own in (("images", file), ("masks", masks)):
            own.header["descrip"], own.header["intent_name"] = name.encode(), name.encode()[:16]
            own.header["aux_file"], own.header["db_name"] = name.encode(), name.encode()[:18]
            own.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", told(name)))
            nibabel.save(own, folder / kind / f"{name}.nii{'.gz' if number % 2 and kind == 'masks' else ''}")


def video(folder):
    import av

    for number, name in enumerate(SECRETS):
        path = folder / "images" / name / f"{name}.mp4"
        path.parent.mkdir(parents=True)
        with av.open(str(path), "w") as file:
            file.metadata.update(title=name, comment=f"of {name}", artist=name)
            stream = file.add_stream("mpeg4", rate=5, width=WIDTH, height=HEIGHT, pix_fmt="yuv420p")
            stream.metadata["handler_name"] = name
            for frame in range(3):
                shot = shown(10 * number + frame).convert("RGB")
                file.mux(stream.encode(av.VideoFrame.from_image(shot)))
            file.mux(stream.encode())
        path.write_bytes(path.read_bytes() + (len(told(name)) + 8).to_bytes(4) + b"free" + told(name))
        mask(folder / "masks" / name / f"{name}.tif", name, pages=3)


def pages(folder):
    """TIFF files of two pages with descriptions and a profile."""
    for number, name in enumerate(SECRETS):
        path = folder / "images" / name / f"{name}.tif"
        path.parent.mkdir(parents=True)
        first, other = (shown(10 * number + page).convert("RGB") for page in range(2))
        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes() + told(name)
        about = {"description": name.encode(), "software": name.encode(), "icc_profile": profile}
        first.save(path, save_all=True, append_images=[other], **about)
        mask(folder / "masks" / name / f"{name}.tif", name, pages=2)


# A format has a line here.
PLANTED = [
    *(mask_folder, names_that_are_no_utf_8, sa2va_json, image_metadata, coco, yolo, cvat, labelme, label_studio),
    *(nnunet, dicom, nifti, video, pages, rows_with_metadata, rows_with_pictures),
]
