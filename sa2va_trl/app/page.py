"""The page: what one opens and asks on its left, and the viewer (viewer.js) on its right."""

import re
import time
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..media.suffixes import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from ..models.conversation import Conversation
from .clips import Clip, generated_clip, read_clip
from .results import Asked, View, ask_further, segment_clip
from .server import Views


if TYPE_CHECKING:
    from gradio import Blocks


PROMPTS = {
    "Vessel": "Please segment the blood vessel.",
    "Catheter": "Please segment the catheter.",
    "Diaphragm": "Please segment the diaphragm.",
}
#: The generated clip that is there at first: one that shows what `PROMPTS` ask for.
FIRST_CLIP = 2
# What may be wrong with a user's file, prompt or machine, and is said in the page.
FAULTS = (ValueError, OSError, ImportError, RuntimeError)
UPLOADS_SECONDS = 600  # an upload is deleted as soon as it is read; what is left of a broken one, after this time
CSS = """
.gradio-container { width: 100% !important; max-width: 1280px !important; margin: 0 auto !important; }
.dark sa2va-viewer { color-scheme: dark; }
#status .html-container, #viewer .html-container { padding: 0; }
#prompts { gap: 6px; }
#prompts button { flex: 1 1 auto; min-width: 0; padding: 4px 8px; }
#status { min-height: 1.5em; }
#status p { margin: 0; }
#status .fault { color: #c2410c; font-weight: 600; }
.dark #status .fault { color: #fdba74; }
#talk { max-height: 16em; overflow: auto; }
#talk p { margin: 2px 0; overflow-wrap: anywhere; }
#talk .answer { padding-left: 1em; opacity: 0.8; }
"""


def looks() -> dict[str, Any]:
    """How the page looks, for `gradio.mount_gradio_app`: fonts of the system alone, and the viewer."""
    import gradio as gr

    script = Path(__file__).with_name("viewer.js").read_text(encoding="utf-8")
    theme = gr.themes.Default(
        primary_hue="sky",
        neutral_hue="slate",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )
    return {"theme": theme, "css": CSS, "head": f"<script>{script}</script>"}


def said(message: str | Exception) -> str:
    """HTML of a line of the page, also of a fault; of a long one the first line."""
    kind = ' class="fault" role="alert"' if isinstance(message, Exception) else ""
    text = str(message).strip() or type(message).__name__
    return f"<p{kind}>{escape(text.splitlines()[0])}</p>"


def talk(chats: dict[str, Conversation]) -> str:
    """
    HTML of what has been said of a clip: questions and answers, by the title of each model where there are several.

    Args:
        chats (`dict[str, Conversation]`): of a view.
    """
    lines = []
    for title, chat in chats.items():
        lines += [f"<p><b>{escape(title)}</b></p>"] * (len(chats) > 1)
        for message in chat.messages:
            kind = ' class="answer"' if message["role"] == "assistant" else ""
            lines.append(f"<p{kind}>{escape(re.sub('</?p>', '', message['content']))}</p>")
    return "".join(lines)


def make_page(
    models: Sequence[Asked], views: Views, step: int, per_frame: bool, max_frames: int, max_new_tokens: int
) -> "Blocks":
    """
    Args:
        models (`list[Asked]`): one, or two to compare, of different titles.
        views ([`Views`]): where it puts what it shows.
        step (`int`): of the threshold to begin with.
        per_frame (`bool`): whether frames of a clip are taken one by one, unless the page is told otherwise.
        max_frames (`int`): how many frames of a clip are taken.
        max_new_tokens (`int`): longest answer.

    Returns:
        `gradio.Blocks`
    """
    import gradio as gr

    def show(view: View, request: gr.Request) -> str:
        return f'<sa2va-viewer src="views/{views.put(request.session_hash, view)}"></sa2va-viewer>'

    def open_clip(read: Callable[[], Clip], request: gr.Request) -> tuple:
        try:
            clip = read()
        except FAULTS as error:
            return gr.skip(), said(error), gr.skip(), gr.skip()
        width, height = clip.frames[0].size
        frames = f", {len(clip.frames)} frames" if clip.moving else ""
        less = f" (the {clip.left_out} after them are left out)" if clip.left_out else ""
        text = f"{clip.file}: {width} × {height}{frames}{less}. Ask for something in it."
        return show(View(clip, step=step), request), said(text), gr.update(visible=clip.moving), ""

    def open_upload(path: str | None, request: gr.Request) -> tuple:
        if path is None:
            return None, *4 * [gr.skip()]
        try:
            return None, *open_clip(lambda: read_clip(path, max_frames), request)
        finally:
            Path(path).unlink(missing_ok=True)

    def open_generated(hospital: str, number: float | None, request: gr.Request) -> tuple:
        return open_clip(lambda: generated_clip(int(hospital), int(number or 0)), request)

    bar = gr.Progress()  # Gradio finds it as a default

    # (Of what the closed part of the page holds Gradio may send nothing.)
    def segment(
        prompt: str, answer: str | None, one_by_one: bool, request: gr.Request, progress: gr.Progress = bar
    ) -> tuple:
        view, start, results, chats = views.of(request.session_hash), time.perf_counter(), {}, {}
        if view is None:
            return gr.skip(), said(ValueError("Open an image or a clip first.")), gr.skip()
        frames = len(view.clip.frames)

        def tell(done: int) -> None:
            title = models[len(results)].title
            progress((len(results) * frames + done, len(models) * frames), desc=title, unit="frames")

        try:
            for asked in models:
                given = (prompt, (answer or "").strip() or None, one_by_one, max_new_tokens)
                results[asked.title], chat = segment_clip(asked, view.clip, *given, on_frame=tell)
                if chat is not None:
                    chats[asked.title] = chat
        except FAULTS as error:
            return gr.skip(), said(error), gr.skip()
        return answered(View(view.clip, prompt, results, step, chats), start, request)

    def further(prompt: str, answer: str | None, request: gr.Request) -> tuple:
        view, start, results = views.of(request.session_hash), time.perf_counter(), {}
        try:
            if view is None or not view.results:
                raise ValueError("Segment something first: further questions follow that one.")
            if not view.chats:
                raise ValueError("Frame by frame there are no further questions: segment the clip as a whole.")
            for title, chat in view.chats.items():
                results[title] = ask_further(chat, prompt, (answer or "").strip() or None, max_new_tokens)
        except FAULTS as error:
            return gr.skip(), said(error), gr.skip()
        return answered(View(view.clip, prompt, results, step, view.chats), start, request)

    def answered(view: View, start: float, request: gr.Request) -> tuple:
        shown, results = views.of(request.session_hash), view.results
        if shown is None or shown.clip is not view.clip:  # closed, or another one was opened meanwhile
            return gr.skip(), gr.skip(), gr.skip()
        silent = [title for title, found in results.items() if not any(len(each.phrases) for each in found)]
        done = f"Done in {time.perf_counter() - start:.1f} s."
        if silent:
            whose = f" of {' and '.join(silent)}" if len(models) > 1 else ""
            done += f" The answer{whose} holds no [SEG], so there is no mask."
        return show(view, request), said(done), talk(view.chats)

    def close(request: gr.Request) -> None:
        views.forget(request.session_hash)

    names = " beside ".join(f"`{asked.title}`" for asked in models)
    with gr.Blocks(
        title="sa2va_trl", analytics_enabled=False, delete_cache=(UPLOADS_SECONDS, UPLOADS_SECONDS)
    ) as page:
        gr.Markdown(f"# Segment by asking\n{names}. Not for diagnosis.")
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                with gr.Tab("Generated clip"):
                    with gr.Row():
                        hospital = gr.Radio(["1", "2"], value="1", label="Hospital", min_width=120)
                        number = gr.Number(FIRST_CLIP, label="Number", precision=0, min_width=100)
                    generate = gr.Button("Open this clip", size="sm")
                with gr.Tab("Your file"):
                    suffixes = sorted(IMAGE_SUFFIXES | VIDEO_SUFFIXES)
                    upload = gr.File(label="Image or clip", file_types=suffixes, height=140)
                prompt = gr.Textbox(PROMPTS["Vessel"], label="Prompt", lines=1, max_lines=4)
                with gr.Row(elem_id="prompts"):
                    examples = [gr.Button(name, size="sm", min_width=60) for name in PROMPTS]
                ask = gr.Button("Segment", variant="primary")
                status = gr.HTML(said(""), elem_id="status", padding=False)
                said_so_far = gr.HTML("", elem_id="talk", padding=False)
                question = gr.Textbox(label="Further question", placeholder="And the catheter?", lines=1, max_lines=4)
                ask_on = gr.Button("Ask further", size="sm")
                with gr.Accordion("More", open=False):
                    one_by_one = gr.Checkbox(
                        per_frame, label="Frame by frame", info="Each frame of a clip as an image of its own."
                    )
                    answer = gr.Textbox(
                        label="Answer",
                        info="Taken as given, and nothing is generated.",
                        placeholder="Sure, [SEG].",
                    )
            with gr.Column(scale=5, min_width=300):
                viewer = gr.HTML(elem_id="viewer", padding=False)
        own = {"api_visibility": "private"}
        opened = [viewer, status, one_by_one, said_so_far]
        generated = {"fn": open_generated, "inputs": [hospital, number], "outputs": opened, **own}
        page.load(**generated, show_progress="hidden")
        generate.click(**generated)
        upload.upload(open_upload, upload, [upload, *opened], **own)
        for button, text in zip(examples, PROMPTS.values(), strict=True):
            button.click(None, None, prompt, js=f"() => {text!r}", **own)
        # (One at a time runs a model, whichever question it is.)
        own |= {"outputs": [viewer, status, said_so_far], "trigger_mode": "once", "concurrency_id": "model"}
        gr.on([ask.click, prompt.submit, answer.submit], segment, [prompt, answer, one_by_one], **own)
        gr.on([ask_on.click, question.submit], further, [question, answer], **own)
        page.unload(close)
    return page
