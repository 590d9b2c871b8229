"""
A page to click on: open an image or a clip, or a generated one, write a prompt, see the answer and the masks, move the
threshold, play the clip, and download masks, overlays and JSON.

    sa2va-trl app
    sa2va-trl app --model_name_or_path BASE --adapter outputs/stage1 --compare_adapter outputs/stage3

It is served to this machine alone, at http://127.0.0.1:7860, loads nothing from elsewhere and keeps no picture: an
upload is deleted as soon as it is read. It needs Gradio: pip install 'sa2va_trl[app]'.
"""

import logging
import os
import signal
import socket
import sys
import tempfile
from dataclasses import dataclass, field
from importlib.util import find_spec

import torch

from ..app.page import looks, make_page
from ..app.results import Asked, step_of
from ..app.server import LOOPBACK, Views, make_server
from .arguments import ModelArguments, RecipeParser
from .loading import load_model, load_second
from .screen import say


@dataclass
class AppArguments:
    host: str = field(
        default="127.0.0.1",
        metadata={"help": "Address to serve; any other than 127.0.0.1 lets everybody in who can reach it."},
    )
    port: int = field(default=7860, metadata={"help": "Port to serve; 0 takes a free one."})
    compare_model: str | None = field(
        default=None, metadata={"help": "Second model, beside the first; the first one's base by default."}
    )
    compare_adapter: str | None = field(default=None, metadata={"help": "Adapter of the second model."})
    threshold: float | None = field(
        default=None,
        metadata={"help": "Probability to begin with, in steps of 0.005; the first model's own by default."},
    )
    per_frame: bool | None = field(
        default=None,
        metadata={"help": "Take frames of a clip one by one to begin with; by default where tracking is not trained."},
    )
    max_frames: int = field(default=128, metadata={"help": "Most frames of a clip, which are held in memory."})
    max_new_tokens: int = field(default=256, metadata={"help": "Longest answer."})

    @property
    def has_second(self) -> bool:
        """Whether a second model was given."""
        return self.compare_model is not None or self.compare_adapter is not None

    def __post_init__(self):
        if self.threshold is not None and not 0 < self.threshold < 1:
            raise ValueError(f"threshold must lie between 0 and 1, got {self.threshold}.")
        if not 0 <= self.port < 65536:
            raise ValueError(f"port must be from 0 to 65535, got {self.port}.")
        for name in ("max_frames", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")


def listen(host: str, port: int) -> socket.socket:
    """
    Args:
        host (`str`): address.
        port (`int`): 0 for a free one.

    Returns:
        `socket.socket`, which listens.

    Raises:
        `ValueError`: the address cannot be had; the message names the option.
    """
    try:
        return socket.create_server((host, port))
    except OSError as error:
        reason = str(error.strerror or error).partition(" (")[0]
        raise ValueError(
            f"host={host}, port={port} cannot be served ({reason}); give another --port, or --host."
        ) from error


def load_models(args: AppArguments, model_args: ModelArguments) -> list[Asked]:
    """
    Args:
        args (`AppArguments`): whether there is a second model.
        model_args (`ModelArguments`): the first one.

    Returns:
        `list[Asked]`: one or two, in evaluation mode, on the GPU where there is one.

    Raises:
        `ValueError`: as [`load_model`], or both models are the same.
    """
    named = [(model_args.model_name_or_path, model_args.adapter)]
    if args.has_second:
        named.append((args.compare_model or model_args.model_name_or_path, args.compare_adapter))
        if named[0] == named[1]:
            raise ValueError("compare_model and compare_adapter name the first model: there is nothing to compare.")
    loaded = [load_model(model_args)]
    if args.has_second:
        loaded.append(load_second(args.compare_model, args.compare_adapter, model_args))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return [
        Asked(" + ".join(filter(None, names)), model.eval().to(device), processor)
        for names, (model, processor) in zip(named, loaded, strict=True)
    ]


def serve(args: AppArguments, models: list[Asked], listening: socket.socket) -> None:
    """
    Serve the page until the process is interrupted or terminated.

    Args:
        args (`AppArguments`): of the page.
        models (`list[Asked]`): of [`load_models`].
        listening (`socket.socket`): of [`listen`].
    """
    import uvicorn

    class Server(uvicorn.Server):
        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            # A page that is left open would keep it from ending; cut off, each would leave a traceback.
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL + 1)
            await super().shutdown(sockets)

    threshold = models[0].model.config.mask_threshold if args.threshold is None else args.threshold
    tracks = all(asked.model.config.tracking_trained for asked in models)
    views, per_frame = Views(), not tracks if args.per_frame is None else args.per_frame
    page = make_page(models, views, step_of(threshold), per_frame, args.max_frames, args.max_new_tokens)
    app = make_server(page, views, args.host, **looks())
    host, port = listening.getsockname()[:2]
    say(f"http://{host}:{port} is the page; Ctrl+C ends it.")
    if any(asked.model.config.mask_postprocessing for asked in models):
        say("The page draws with the threshold alone, and leaves out the post-processing that is stored.")
    if args.host not in LOOPBACK:
        say(f"host={args.host}: everybody who can reach this address can use the page.")
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1, server_header=False)
    Server(config).run(sockets=[listening])


def make_parser() -> RecipeParser:
    """What reads the options of the task, and prints them for `--help`."""
    return RecipeParser((AppArguments, ModelArguments), prog="sa2va-trl app", description=__doc__)


def main() -> None:
    args, model_args = make_parser().parse_args_and_config()
    if find_spec("gradio") is None:
        say("sa2va-trl app needs Gradio: pip install 'sa2va_trl[app]'", file=sys.stderr)
        raise SystemExit(1)
    with listen(args.host, args.port) as listening, tempfile.TemporaryDirectory(prefix="sa2va_trl_app_") as folder:
        # Gradio reads these when it is imported: no report to anybody, and uploads where they are removed at the end.
        os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": folder}
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # or nothing would be removed
        models = load_models(args, model_args)
        try:
            serve(args, models, listening)
        except KeyboardInterrupt:
            pass
