"""What a page shows and gives out of segmented clips. The threshold is one of the steps of its slider."""

import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from ..evaluation.overlays import object_names
from ..files import file_name
from ..models import Sa2VAProcessor, Segmentation
from ..models.conversation import Conversation
from ..postprocessing import Postprocessing
from .clips import Clip


if TYPE_CHECKING:
    from peft import PeftModel

    from ..models import Sa2VAForConditionalGeneration


#: A threshold is `step / STEPS`, with a step from 1 to `STEPS - 1`: one byte a pixel says which of them it exceeds.
STEPS = 200
#: Of objects, in their order; distinguishable without red-green vision (Okabe and Ito, 2008).
COLOURS = ((86, 180, 233), (230, 159, 0), (0, 158, 115), (240, 228, 66), (204, 121, 167), (213, 94, 0), (0, 114, 178))
#: Of a mask over the picture; viewer.js has the same.
OPACITY = 0.55


@dataclass(frozen=True)
class Asked:
    """
    A model to ask.

    Args:
        title (`str`): what the page calls it.
        model (`Sa2VAForConditionalGeneration` or `PeftModel`): in evaluation mode.
        processor (`Sa2VAProcessor`): its own.
    """

    title: str
    model: "Sa2VAForConditionalGeneration | PeftModel"
    processor: Sa2VAProcessor


@dataclass(frozen=True)
class View:
    """
    A clip, and what models say of it.

    Args:
        clip ([`Clip`]): which.
        prompt (`str`, *optional*, defaults to `""`): what they were asked.
        results (`dict[str, list[Segmentation]]`, *optional*): by the model's title one a frame.
        step (`int`, *optional*, defaults to `STEPS // 2`): of the threshold to begin with.
        chats (`dict[str, Conversation]`, *optional*): by the model's title what further questions are asked of.
    """

    clip: Clip
    prompt: str = ""
    results: dict[str, list[Segmentation]] = field(default_factory=dict)
    step: int = STEPS // 2
    chats: dict[str, Conversation] = field(default_factory=dict)


def step_of(threshold: float) -> int:
    """
    The slider's step that is nearest to a threshold.

    Args:
        threshold (`float`): between 0 and 1.

    Returns:
        `int`: from 1 to `STEPS - 1`.
    """
    return min(max(round(threshold * STEPS), 1), STEPS - 1)


def at_step(result: Segmentation, step: int) -> Segmentation:
    """The same result with the threshold of a step."""
    return replace(result, threshold=step / STEPS)


def levels(result: Segmentation) -> np.ndarray:
    """
    How many of the slider's thresholds each probability exceeds: `levels(result) >= step` is
    `at_step(result, step).masks`, exactly.

    Args:
        result (`Segmentation`): of one image or frame.

    Returns:
        `np.ndarray` of shape `(objects, H, W)`: uint8, 0 to `STEPS - 1`.

    Example:

        ```python
        >>> import torch
        >>> from sa2va_trl.app.results import levels
        >>> from sa2va_trl.models import Segmentation

        >>> logits = torch.tensor([[[-9.0, 0.0], [0.01, 9.0]]])
        >>> result = Segmentation("", [None], logits, torch.ones(1), size=(2, 2), image_size=2, threshold=0.5)
        >>> levels(result).tolist()
        [[[0, 99], [100, 199]]]

        ```
    """
    # A mask is `probabilities > threshold` in float32, and so are these.
    thresholds = torch.tensor([step / STEPS for step in range(1, STEPS)], dtype=torch.float32)
    return torch.bucketize(result.probabilities.cpu(), thresholds).to(torch.uint8).numpy()


def segment_clip(
    asked: Asked,
    clip: Clip,
    prompt: str,
    answer: str | None = None,
    per_frame: bool = False,
    max_new_tokens: int = 256,
    on_frame: Callable[[int], None] = lambda done: None,
) -> tuple[list[Segmentation], Conversation | None]:
    """
    Ask a model about a clip.

    Args:
        asked ([`Asked`]): the model.
        clip ([`Clip`]): about which.
        prompt (`str`): the request.
        answer (`str`, *optional*): taken as given, and nothing is generated.
        per_frame (`bool`, *optional*, defaults to `False`): take each frame as an image of its own.
        max_new_tokens (`int`, *optional*, defaults to 256): longest answer.
        on_frame (`Callable[[int], None]`, *optional*): told how many frames are done, where they are taken one by one.

    Returns:
        The results, one a frame, on the CPU, without post-processing; and the dialogue, where the clip was asked about
        as a whole or is one picture.

    Raises:
        `ValueError`: no prompt, or as `segment`.
    """
    # (The page draws with a threshold alone.)
    request = {"processor": asked.processor, "postprocessing": Postprocessing()}
    request |= _answering(prompt, answer, max_new_tokens)
    if clip.moving and per_frame:
        results = []
        for number, frame in enumerate(clip.frames, start=1):
            results += _of_frames(asked.model.segment(image=frame, text=prompt, **request))
            on_frame(number)
        return results, None
    media = {"video": clip.frames} if clip.moving else {"image": clip.frames[0]}
    chat = asked.model.chat(prompt, **media, **request)
    return _of_frames(chat.result), chat


def ask_further(
    chat: Conversation, prompt: str, answer: str | None = None, max_new_tokens: int = 256
) -> list[Segmentation]:
    """
    One more question about the same clip.

    Args:
        chat ([`~models.conversation.Conversation`]): of [`segment_clip`].
        prompt, answer, max_new_tokens: as there.

    Returns:
        `list[Segmentation]`: one a frame.

    Raises:
        `ValueError`: no prompt, or as [`~models.conversation.Conversation.ask`].
    """
    return _of_frames(chat.ask(prompt, **_answering(prompt, answer, max_new_tokens)))


def _answering(prompt: str, answer: str | None, max_new_tokens: int) -> dict[str, Any]:
    """How a question is answered."""
    if not prompt.strip():
        raise ValueError("There is no prompt: write what to segment.")
    return {"answer": answer} if answer else {"max_new_tokens": max_new_tokens}


def _of_frames(result: Segmentation) -> list[Segmentation]:
    if result.low_res_logits.ndim == 4:
        return [result.frame(index) for index in range(result.low_res_logits.shape[1])]
    return [replace(result, low_res_logits=result.low_res_logits.cpu(), iou_scores=result.iou_scores.cpu())]


def object_labels(phrases: list[str | None]) -> list[str]:
    """
    What the objects of one answer are called.

    Args:
        phrases (`list[str | None]`): as in [`Segmentation`].

    Returns:
        `list[str]`: the phrase, with a number where it comes again, or the object's number where it has none.

    Example:

        ```python
        >>> from sa2va_trl.app.results import object_labels

        >>> object_labels(["artery", None, "artery"])
        ['artery', 'object 2', 'artery (2)']

        ```
    """
    labels = []
    for number, phrase in enumerate(phrases, start=1):
        count = phrases[:number].count(phrase) if phrase else 1
        labels.append((phrase or f"object {number}") + (f" ({count})" if count > 1 else ""))
    return labels


def legend(view: View) -> dict[str, tuple[int, int, int]]:
    """
    Colours by what objects are called: the same in all frames and of all models.

    Args:
        view ([`View`]): with all of them.

    Returns:
        `dict[str, tuple[int, int, int]]`: RGB, in the order in which they are met.
    """
    results = [result for of_model in view.results.values() for result in of_model]
    names = dict.fromkeys(label for result in results for label in object_labels(result.phrases))
    return {name: COLOURS[number % len(COLOURS)] for number, name in enumerate(names)}


def describe(view: View) -> dict[str, Any]:
    """
    All that viewer.js has to know beside pictures and levels.

    Args:
        view ([`View`]): what to show.

    Returns:
        `dict` that JSON can hold.
    """
    clip = view.clip
    return {
        "name": clip.name,
        "size": list(clip.frames[0].size),
        "frames": len(clip.frames),
        "moving": clip.moving,
        "start": clip.start,
        "steps": STEPS,
        "step": view.step,
        "opacity": OPACITY,
        "colours": legend(view),
        "models": [
            {
                "title": title,
                "answers": [
                    {
                        "text": result.text,
                        "objects": object_labels(result.phrases),
                        "predicted_iou": [round(score, 3) for score in result.iou_scores.tolist()],
                    }
                    for result in results
                ],
            }
            for title, results in view.results.items()
        ],
    }


def png(picture: Image.Image) -> bytes:
    """A picture as the bytes of a PNG file."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def mask_picture(result: Segmentation, index: int, step: int) -> Image.Image:
    """
    The mask of an object, as `predict` writes it.

    Args:
        result (`Segmentation`): of one image or frame.
        index (`int`): of the object.
        step (`int`): of the threshold.

    Returns:
        `PIL.Image.Image`: mode L, 0 and 255.

    Raises:
        `IndexError`: there is no such object.
    """
    return Image.fromarray(at_step(result, step).masks[index].cpu().numpy().astype(np.uint8) * 255)


def painted(image: Image.Image, result: Segmentation, step: int, colours: dict) -> Image.Image:
    """
    An image with the masks of all objects over it.

    Args:
        image (`PIL.Image.Image`): RGB.
        result (`Segmentation`): of it.
        step (`int`): of the threshold.
        colours (`dict[str, tuple[int, int, int]]`): of [`legend`].

    Returns:
        `PIL.Image.Image`: RGB, pixel by pixel what viewer.js draws.
    """
    drawn = np.asarray(image).astype(np.float64)
    for label, mask in zip(object_labels(result.phrases), at_step(result, step).masks.cpu().numpy(), strict=True):
        drawn[mask] = np.rint(drawn[mask] + (np.array(colours[label]) - drawn[mask]) * OPACITY)
    return Image.fromarray(drawn.astype(np.uint8))


def predictions(view: View, title: str, step: int) -> dict[str, Any]:
    """
    What `predict` would write into `predictions.json`, but for the files of probabilities.

    Args:
        view ([`View`]): a segmented clip.
        title (`str`): of the model.
        step (`int`): of the threshold.

    Returns:
        `dict` that JSON can hold. The names of files are those of [`archive`]; one overlay is of all of its objects.
    """
    entries, taken = [], set()
    for frame, result in enumerate(view.results[title]):
        name = view.clip.name_of(frame)
        source = {"name": name, "file": view.clip.file, **({"frame": frame} if view.clip.moving else {})}
        files = object_names(name, len(result.phrases), taken)
        overlay = f"overlays/{file_name(name)}.png"
        objects = [
            {"phrase": phrase, "mask": f"masks/{file}.png", "overlay": overlay, "predicted_iou": score}
            for file, phrase, score in zip(files, result.phrases, result.iou_scores.tolist(), strict=True)
        ]
        entries.append({**source, "text": result.text, "objects": objects})
    return {"prompt": view.prompt, "model": title, "threshold": step / STEPS, "predictions": entries}


def archive(view: View, title: str, step: int) -> bytes:
    """
    All masks and overlays of a clip and the JSON that lists them.

    Args:
        view ([`View`]): a segmented clip.
        title (`str`): of the model.
        step (`int`): of the threshold.

    Returns:
        `bytes`: of a ZIP file.
    """
    content, colours, buffer = predictions(view, title, step), legend(view), io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("predictions.json", json.dumps(content, indent=2) + "\n")
        for entry, frame, result in zip(content["predictions"], view.clip.frames, view.results[title], strict=True):
            for index, found in enumerate(entry["objects"]):
                file.writestr(found["mask"], png(mask_picture(result, index, step)))
            if entry["objects"]:
                file.writestr(entry["objects"][0]["overlay"], png(painted(frame, result, step, colours)))
    return buffer.getvalue()
