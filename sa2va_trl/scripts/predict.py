"""
Segment an image, a folder of images or a video: masks, probability maps, overlays and a JSON.

    sa2va-trl predict
    sa2va-trl predict --model_name_or_path MODEL --input IMAGE --prompt "Please segment the blood vessel."

With --tta and --ensemble masks are drawn from the mean of the probabilities; the first model answers.

With nothing else, the tiny model is asked for three things on the frames of a generated angiogram.

A TIFF of several pages and an animated GIF, PNG or WebP are videos. In a folder every image is segmented on its own,
and so is every page of such a file. Whatever else the folder holds is named and left out.

With --export the masks are written for an annotation tool, too, with their images:

    sa2va-trl predict --input DIR --export cvat --prompt "Please segment the blood vessel." --export_classes vessel

The results of an earlier call in `output_dir` are replaced, as soon as all of the new ones are there.
"""

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from ..batches import AUTO, Batches, parse_batch_size
from ..data.angiography import generate_video
from ..data.export.annotated import Annotated
from ..data.export.folder import WRITERS, Images
from ..evaluation import overlay
from ..evaluation.averaging import Member, check_questions, common_postprocessing, common_threshold, segment_averaged
from ..evaluation.overlays import object_names
from ..evaluation.routing import Router, routing_report
from ..evaluation.views import View, check_sides
from ..files import replaced_together, write_json
from ..media.clips import Picture, folder_images, frame_name, in_size, is_clip, open_video, read_pictures
from ..media.suffixes import is_byproduct
from ..models import Sa2VAProcessor, Segmentation
from ..models.regions import box_mask
from ..questions import ask, question_of
from .arguments import AveragingArguments, ModelArguments, RecipeParser, RouterArguments
from .exporting import (
    EXPORT,
    check_classes,
    check_format,
    check_input,
    class_of_prompt,
    foreign_files,
    predicted_images,
    record,
)
from .exporting import HELP as EXPORTING
from .loading import COMPILING, Model, compile_models, load_members, load_model, load_router
from .mask_drawing import HELP as POSTPROCESSING
from .mask_drawing import given_postprocessing
from .screen import finish, say


# What a call leaves in output_dir: a file for every mask in each folder, and the JSON that says which.
SUFFIXES = {"masks": ".png", "probabilities": ".npy", "overlays": ".png"}
RESULT = "predictions.json"
# The input that is generated, and which of the runs: pretraining of the tiny model has not seen it.
SYNTHETIC = "synthetic"
RUN = {"seed": 20261, "video": 3, "num_frames": 8, "scene": "named"}
# Pictures and prompts that are looked at for those of like size: so many batches, and not more pixels.
WINDOW, WINDOW_PIXELS = 4, 100_000_000
# Of a model that has not learned to track.
UNTRAINED = (
    "this model's tracking is not trained, so masks are lost between the frames that it is asked about: add "
    "--per_frame true"
)
# What a generated angiogram is asked for; the first of them anything else.
PHRASES = ["blood vessel", "catheter", "diaphragm"]


@dataclass
class PredictArguments:
    input: str = field(
        default=SYNTHETIC,
        metadata={
            "help": "An image, a folder of images (each on its own) or a video; a TIFF of several pages, an animated "
            "GIF, PNG or WebP, and a DICOM, NIfTI or NPY file of several frames are videos. By default the frames of "
            "a generated angiogram."
        },
    )
    prompt: list[str] | None = field(
        default=None,
        metadata={
            "help": "What to segment: a text, or several; by default the model's own question for the blood vessel, "
            "and of the generated angiogram for catheter and diaphragm too."
        },
    )
    answer: str | None = field(
        default=None, metadata={"help": 'Take this answer as given ("Sure, [SEG].") instead of generating one.'}
    )
    regions: list[str] | None = field(
        default=None,
        metadata={
            "help": "Boxes x0,y0,x1,y1 in pixels of the one image that is given, which the prompt speaks of as "
            "region1, region2 and so on. For models on InternVL."
        },
    )
    threshold: float | None = field(
        default=None, metadata={"help": "Probability above which a pixel is foreground; the model's own by default."}
    )
    postprocessing: str = field(default="stored", metadata={"help": POSTPROCESSING})
    output_dir: str = field(
        default="outputs/predictions",
        metadata={"help": "Folder for the results; those of an earlier call are replaced."},
    )
    export: str | None = field(default=None, metadata={"help": EXPORTING.format("the masks")})
    export_classes: list[str] | None = field(
        default=None,
        metadata={
            "help": "What the annotation tool calls the objects of each prompt; by default as the answer calls them, "
            "else as the prompt does."
        },
    )
    batch_size: str = field(
        default="1",
        metadata={
            "help": "Pictures and prompts at a time at most, those of like size together; auto: as many as memory "
            "takes. A router, tta and ensemble take one picture after the other, and so do clips."
        },
    )
    max_new_tokens: int | None = field(default=None, metadata={"help": "Longest answer; 256 by default."})
    per_frame: bool = field(default=False, metadata={"help": "Take each frame of a video as an image of its own."})
    frame_policy: str | None = field(
        default=None,
        metadata={"help": "Frames of a video to prompt: uniform, first or starts; the model's own by default."},
    )
    num_frames: int | None = field(
        default=None, metadata={"help": "How many frames of a video to prompt; the model's own number by default."}
    )
    tracking: str | None = field(
        default=None,
        metadata={
            "help": "How masks of prompted frames reach the others: soft or mask_prompt; the model's own by default."
        },
    )
    torch_compile: bool = field(default=False, metadata={"help": COMPILING})
    cache_implementation: str | None = field(
        default=None,
        metadata={
            "help": "Cache of the language model while it answers: dynamic (default) or static, with which its steps "
            "are compiled on a GPU."
        },
    )

    @property
    def is_video(self) -> bool:
        """Whether the input is one clip."""
        return not self.is_synthetic and is_clip(self.input)

    @property
    def is_synthetic(self) -> bool:
        """Whether the input is generated."""
        return self.input == SYNTHETIC

    @property
    def boxes(self) -> list[list[float]] | None:
        """`regions`, as `segment` takes them."""
        if self.regions is None:
            return None
        try:
            given = [region.split(",") if isinstance(region, str) else region for region in self.regions]
            boxes = [[float(value) for value in box] for box in given]
        except (TypeError, ValueError):
            boxes = []
        if not boxes or any(len(box) != 4 for box in boxes):
            raise ValueError(f"regions must be boxes x0,y0,x1,y1, such as 10,20,110,90; got {self.regions}.")
        return boxes

    @property
    def tracking_options(self) -> dict:
        """Options of `segment` that only a video takes."""
        return {"frame_policy": self.frame_policy, "num_frames": self.num_frames, "tracking": self.tracking}

    def __post_init__(self):
        self.batch_size: int | str = parse_batch_size(self.batch_size)
        if self.batch_size not in (AUTO, 1) and self.is_video and not self.per_frame:
            raise ValueError("batch_size has no effect on a video that is tracked as a whole: leave it out.")
        if isinstance(self.prompt, str):  # of a YAML, or of Python
            self.prompt = [self.prompt]
        if self.prompt is not None and (not self.prompt or len(set(self.prompt)) < len(self.prompt)):
            raise ValueError(f"prompt must be a text, or several different ones, got {self.prompt}.")
        if isinstance(self.regions, str):
            self.regions = [self.regions]
        if isinstance(self.export_classes, str):
            self.export_classes = [self.export_classes]
        check_format(self.export)
        if self.export is None and self.export_classes is not None:
            raise ValueError("export_classes has no effect without export.")
        check_classes(self.export_classes, len(self.prompt or (PHRASES if self.is_synthetic else PHRASES[:1])))
        if self.answer is not None and self.max_new_tokens is not None:
            raise ValueError("max_new_tokens has no effect with an answer, since nothing is generated.")
        if self.answer is not None and self.cache_implementation is not None:
            raise ValueError("cache_implementation has no effect with an answer, since nothing is generated.")
        if self.cache_implementation not in (None, "dynamic", "static"):
            raise ValueError(f"cache_implementation must be dynamic or static, got {self.cache_implementation!r}.")
        if self.per_frame and not self.is_video:
            raise ValueError(f"per_frame is for a video; input {self.input} is none.")
        if self.boxes is not None and (self.is_synthetic or self.is_video or Path(self.input).is_dir()):
            raise ValueError(f"regions are of one image; input {self.input} is none.")
        given = [name for name, value in self.tracking_options.items() if value is not None]
        if given and (self.per_frame or not self.is_video):
            raise ValueError(f"{', '.join(given)} is for a video whose frames are not taken one by one (per_frame).")
        drawing = given_postprocessing(self.postprocessing)
        if drawing is not None and drawing.is_temporal and (self.per_frame or not self.is_video):
            raise ValueError(f"postprocessing={drawing} smooths videos that are taken as a whole; this input is none.")
        if self.threshold is not None and not 0 < self.threshold < 1:
            raise ValueError(f"threshold must lie between 0 and 1, got {self.threshold}.")


def check_router(args: PredictArguments, router_args: RouterArguments) -> None:
    """
    Raises:
        `ValueError`: a router without a threshold, for a video that is tracked as a whole, or with a `batch_size`.
    """
    if router_args.has_router and router_args.route_threshold is None:
        raise ValueError("A router needs route_threshold; sa2va-trl evaluate can choose one (route_split).")
    if router_args.has_router and args.batch_size not in (AUTO, 1):
        raise ValueError("A router sends one picture after the other: leave out batch_size.")
    if router_args.has_router and args.is_video and not args.per_frame:
        raise ValueError("A router sends frames, and a video is tracked as a whole: add per_frame.")


def check_averaging(args: PredictArguments, router_args: RouterArguments, averaging: AveragingArguments) -> None:
    """
    Raises:
        `ValueError`: averages beside a router, of a video that is tracked as a whole, with a `batch_size` or with
            regions, or a prompt that a view makes wrong.
    """
    averaging.check_router(router_args)
    if averaging.is_on and args.regions is not None:
        raise ValueError(f"regions have no effect on changed images: leave {averaging.in_words} out, or regions.")
    if averaging.in_words and args.batch_size not in (AUTO, 1):
        raise ValueError(f"{averaging.in_words} average one picture after the other: leave out batch_size.")
    if (names := averaging.in_words) and args.is_video and not args.per_frame:
        raise ValueError(f"{names} average the masks of frames, and a video is tracked as a whole: add per_frame.")
    check_sides([*(args.prompt or []), args.answer or ""], averaging.views)


def check_output(output: Path) -> None:
    """Refuse a folder in which predict would remove what it has not written."""
    if output.exists() and not output.is_dir():
        raise ValueError(f"output_dir={str(output)!r} is a file: give a folder.")
    own, foreign, exported = set(), [], None
    if (output / RESULT).exists():
        try:
            content = json.loads((output / RESULT).read_text())
            own = {Path(found["mask"]).stem for entry in content["predictions"] for found in entry["objects"]}
            exported = content.get("export")
        except (OSError, ValueError, LookupError, TypeError):
            foreign.append(RESULT)
    for name, suffix in SUFFIXES.items():
        folder = output / name
        if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
            foreign.append(name)
        elif folder.is_dir():
            foreign += [
                f"{name}/{file.name}"
                for file in sorted(folder.iterdir())
                if not (file.suffix == suffix and file.stem in own) and not is_byproduct(file)
            ]
    foreign += foreign_files(output, exported)
    if foreign:
        more = f", ... ({len(foreign)} in all)" if len(foreign) > 5 else ""
        raise ValueError(
            f"output_dir={str(output)!r} holds what no {RESULT} of this program lists, and would be replaced: "
            f"{', '.join(foreign[:5])}{more}. Give another output_dir, or move them away."
        )


def default_prompts(model: Model, is_synthetic: bool) -> list[str]:
    """What a model is asked of an input where nobody says it: its own question, for one or all of `PHRASES`."""
    phrases = PHRASES if is_synthetic else PHRASES[:1]
    return [ask(question_of(model.config), phrase) for phrase in phrases]


def open_input(args: PredictArguments, stack: ExitStack) -> tuple[Sequence[Image.Image] | None, Iterator[Picture]]:
    """The clip, where it is segmented as a whole, and the pictures. All is read once before anything is given out."""
    if args.is_video and not args.per_frame:
        clip, file = stack.enter_context(open_video(args.input)), Path(args.input)
        size = clip[0].size  # of all masks of a clip, whatever the size of the others
        frames = (in_size(clip[index], size) for index in range(len(clip)))
        return clip, (Picture(frame_name(file.stem, index), file, index, frame) for index, frame in enumerate(frames))
    pictures = generated_pictures() if args.is_synthetic else read_pictures(args.input)
    first = next(pictures)
    for number, box in enumerate(args.boxes or [], start=1):
        try:
            box_mask(box, first.image.size)
        except ValueError as error:
            raise ValueError(f"{place(first)}: region{number} {error}.") from error
    return None, chain([first], pictures)


def generated_pictures() -> Iterator[Picture]:
    """Frames of a generated angiogram, each a picture of its own."""
    for index, frame in enumerate(generate_video(**RUN).frames):
        name = frame_name(SYNTHETIC, index)
        yield Picture(name, Path(SYNTHETIC), index, Image.fromarray(frame).convert("RGB"))


def segmentations(
    args: PredictArguments,
    model: Model,
    processor: Sa2VAProcessor,
    clip: Sequence[Image.Image] | None,
    pictures: Iterable[Picture],
    router: Router | None = None,
    members: Sequence[Member] = (),
    views: Sequence[View] = (),
) -> Iterator[tuple[Picture, str, Segmentation, dict]]:
    """The picture, the prompt, the result and the route of every image or frame and every prompt."""
    request = {"threshold": args.threshold, "answer": args.answer}
    request["postprocessing"] = given_postprocessing(args.postprocessing)
    if args.regions is not None:
        request["regions"] = args.boxes
    if args.answer is None:
        request["max_new_tokens"] = args.max_new_tokens or 256
        if args.cache_implementation is not None:
            request["cache_implementation"] = args.cache_implementation
    if clip is not None:
        with named(args.input):
            results = {
                prompt: model.segment(video=clip, text=prompt, processor=processor, **args.tracking_options, **request)
                for prompt in args.prompt
            }
        for prompt, result in results.items():
            warn(f"{args.input}, {prompt!r}", result)
        for picture in pictures:
            for prompt, result in results.items():
                yield picture, prompt, result.frame(picture.frame), {}
        return
    asked = ((picture, prompt) for picture in pictures for prompt in args.prompt)
    if router is None and not members:
        yield from in_batches(model, processor, asked, args.batch_size, request)
        return
    for picture, prompt in asked:
        with named(place(picture)):
            own, route = {"image": picture.image, "text": prompt, **request}, {}
            if members:
                result = segment_averaged(members, views, **own)
            else:
                result, route = router.segment(model, processor, **own)
        warn(f"{picture.name}, {prompt!r}", result)
        yield picture, prompt, result, route


def in_batches(
    model: Model,
    processor: Sa2VAProcessor,
    asked: Iterable[tuple[Picture, str]],
    batch_size: int | str,
    request: dict,
) -> Iterator[tuple[Picture, str, Segmentation, dict]]:
    """What [`segmentations`] gives of pictures and prompts, in their order; those of like size go together."""
    batches = Batches(batch_size, model.device)

    def segment(window: list[tuple[Picture, str]], numbers: list[int]) -> list[Segmentation]:
        pictures, prompts = zip(*(window[number] for number in numbers), strict=True)
        with named(place(pictures[0])) if len(numbers) == 1 else nullcontext():
            try:
                own = {"images": [picture.image for picture in pictures], "text": list(prompts), **request}
                if "regions" in request:
                    own["regions"] = [request["regions"]] * len(pictures)
                return model.segment(processor=processor, **own)
            except (ValueError, RuntimeError) as error:
                if len(numbers) == 1 or isinstance(error, torch.OutOfMemoryError):
                    raise
        # One by one, so that the error says of which picture it is.
        return [result for number in numbers for result in segment(window, [number])]

    for window in windows(asked, WINDOW * batches.most):
        work = []
        for picture, _ in window:
            with named(place(picture)):
                work.append(processor.num_image_tokens(picture.image.size))
        results = batches.in_order(partial(segment, window), work)
        for (picture, prompt), result in zip(window, results, strict=True):
            warn(f"{picture.name}, {prompt!r}", result)
            yield picture, prompt, result, {}


def windows(asked: Iterable[tuple[Picture, str]], count: int) -> Iterator[list[tuple[Picture, str]]]:
    """Pictures and prompts, in their order, that are in memory together: so many, and not too many pixels."""
    window, pixels, latest = [], 0, None
    for picture, prompt in asked:
        area, is_new = picture.image.width * picture.image.height, picture is not latest
        if window and (len(window) == count or (is_new and pixels + area > WINDOW_PIXELS)):
            yield window
            window, pixels, is_new = [], 0, True
        window.append((picture, prompt))
        pixels, latest = pixels + area * is_new, picture
    if window:
        yield window


def place(picture: Picture) -> str:
    """What an error says of where a picture comes from."""
    return str(picture.file) if picture.frame is None else f"{picture.file}, frame {picture.frame}"


@contextmanager
def named(file: str | Path) -> Iterator[None]:
    """Errors say which file they are about."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    except RuntimeError as error:
        raise RuntimeError(f"{file}: {error}") from error


def warn(name: str, result: Segmentation) -> None:
    """Say where an answer has drawn nothing; `name` is that of the picture with the prompt."""
    if not len(result.iou_scores):
        say(f"WARNING: {name}: the answer holds no [SEG], so there is no mask: {result.text[:100]!r}")


def save(folder: Path, picture: Picture, name: str, result: Segmentation, route: dict, taken: set[str]) -> dict:
    """Write the masks, maps and overlays of a picture, in files of this name; what the JSON says of it."""
    probabilities = result.probabilities.cpu().numpy()
    objects, names = [], object_names(name, len(result.phrases), taken)
    scores, masks = result.iou_scores.tolist(), result.masks.cpu().numpy()
    for name, phrase, score, values, mask in zip(names, result.phrases, scores, probabilities, masks, strict=True):
        files = {kind: f"{kind}/{name}{suffix}" for kind, suffix in SUFFIXES.items()}
        Image.fromarray(mask.astype(np.uint8) * 255).save(folder / files["masks"])
        np.save(folder / files["probabilities"], values)
        overlay(picture.image, mask).save(folder / files["overlays"])
        objects.append(
            {
                "phrase": phrase,
                "mask": files["masks"],
                "probabilities": files["probabilities"],
                "overlay": files["overlays"],
                "predicted_iou": score,
            }
        )
    source = {"name": picture.name, "file": picture.file.name}
    if picture.frame is not None:
        source["frame"] = picture.frame
    return {**source, "text": result.text, "objects": objects, **route}


def classes_of(args: PredictArguments, question: str) -> dict[str | None, tuple[str, bool]]:
    """What [`predicted_images`] takes: what the objects of each prompt are called in an export."""
    names = args.export_classes or [class_of_prompt(prompt, question) for prompt in args.prompt]
    found = [(name, args.export_classes is not None) for name in names]
    return dict(zip(args.prompt, found, strict=True)) if len(found) > 1 else {None: found[0]}


def make_parser() -> RecipeParser:
    """What reads the options of the task, and prints them for `--help`."""
    kinds = (PredictArguments, ModelArguments, RouterArguments, AveragingArguments)
    return RecipeParser(kinds, prog="sa2va-trl predict", description=__doc__)


def main() -> None:
    args, model_args, router_args, averaging = make_parser().parse_args_and_config()
    check_router(args, router_args)
    check_averaging(args, router_args, averaging)
    output = Path(args.output_dir)
    check_output(output)
    with ExitStack() as stack:
        check_input(args.export, args.input)
        clip, pictures = open_input(args, stack)  # a bad input is reported before a model is loaded
        results = [*SUFFIXES, RESULT, *([EXPORT] if args.export else [])]
        folder = stack.enter_context(replaced_together(output, results))
        model, processor = load_model(model_args)
        model = model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
        router = load_router(router_args, model_args, model, processor) if router_args.has_router else None
        members = []
        if averaging.is_on:
            members = load_members(averaging.ensemble or [], model_args, model, processor)
            args.threshold = common_threshold(members) if args.threshold is None else args.threshold
            if given_postprocessing(args.postprocessing) is None:
                common_postprocessing(members)
        if args.torch_compile:
            second = [] if router is None else [router.model]
            compile_models([*(member.model for member in members), model, *second])
        if args.prompt is None:
            second = [] if router is None else [Member(router.model, router.processor)]
            check_questions(members or [Member(model, processor), *second], "prompt")
            args.prompt = default_prompts(model, args.is_synthetic)
            check_sides(args.prompt, averaging.views)
        if clip is not None and not model.config.tracking_trained:
            say(f"WARNING: {UNTRAINED}")

        for name in SUFFIXES:
            (folder / name).mkdir()
        predictions, taken, images = [], set(), {}
        exported = Images(folder / EXPORT, args.export)
        results = segmentations(args, model, processor, clip, pictures, router, members, averaging.views)
        for picture, prompt, result, route in tqdm(results, desc="predict"):
            name, asked = picture.name, {}
            if len(args.prompt) > 1:
                name, asked = f"{name}.prompt{args.prompt.index(prompt)}", {"prompt": prompt}
            if args.export and picture.name not in images:
                images[picture.name] = Annotated(exported.keep(picture), picture.image.size, frame=picture.frame)
            predictions.append({**save(folder, picture, name, result, route, taken), **asked})
        content = {"prompt": args.prompt if len(args.prompt) > 1 else args.prompt[0], "predictions": predictions}
        if args.regions is not None:
            content["regions"] = args.boxes
        if not args.is_synthetic and Path(args.input).is_dir():
            content["left_out"] = folder_images(Path(args.input))[1]
        if args.export:
            classes = classes_of(args, question_of(model.config))
            WRITERS[args.export](folder / EXPORT, predicted_images(folder, predictions, images, classes))
            content["export"] = record(folder, args.export)
        write_json(folder / RESULT, content)
    if not args.export:  # one of an earlier call is of masks that are replaced
        shutil.rmtree(output / EXPORT, ignore_errors=True)
    if router is not None:
        say(routing_report(router, predictions))
    unit = "frames" if args.is_video or args.is_synthetic else "images"
    count = len(predictions) // len(args.prompt)
    finish(
        f"{count} {unit}, {len(taken)} masks",
        f"{output / RESULT} lists what is in {', '.join(SUFFIXES)}",
        f"look at them: {output / 'overlays'}" + (f"; for the annotation tool: {output / EXPORT}" * bool(args.export)),
    )
