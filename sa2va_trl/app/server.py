"""The server of the page: what is shown, held in memory alone, and the addresses under which the page asks for it."""

import json
import secrets
import zlib
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from ..files import file_name
from .results import View, archive, describe, legend, levels, mask_picture, painted, png, predictions


if TYPE_CHECKING:
    from fastapi import FastAPI
    from gradio import Blocks


# Browsers load nothing from elsewhere, whatever a page asks for, and store no picture.
HEADERS = (
    (
        b"content-security-policy",
        b"default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
        b"style-src 'self' 'unsafe-inline'; form-action 'self'; base-uri 'self'",
    ),
    (b"referrer-policy", b"no-referrer"),
)
LOOPBACK = ("127.0.0.1", "localhost")


class Views:
    """What each open page shows: one view a page, under an address that cannot be guessed."""

    def __init__(self):
        self._of_page: dict[str, tuple[str, View]] = {}

    def put(self, page: str, view: View) -> str:
        """
        Show a view.

        Args:
            page (`str`): which page; what it showed before is forgotten.
            view (`View`): what it shows now.

        Returns:
            `str`: the name of the view in addresses.
        """
        token = secrets.token_urlsafe(16)
        self._of_page[page] = token, view
        return token

    def of(self, page: str) -> View | None:
        """What a page shows."""
        return self._of_page.get(page, (None, None))[1]

    def find(self, token: str) -> View:
        """
        Args:
            token (`str`): the name of a view.

        Returns:
            `View`

        Raises:
            `LookupError`: no page shows it any more.
        """
        for own, view in self._of_page.values():
            if own == token:
                return view
        raise LookupError(f"No page shows {token}.")

    def forget(self, page: str) -> None:
        """A page is closed."""
        self._of_page.pop(page, None)

    def __len__(self) -> int:
        return len(self._of_page)


class _WithHeaders:
    """An application whose answers all have `HEADERS`."""

    def __init__(self, app: Callable[..., Awaitable[None]]):
        self.app = app

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        async def answer(message: dict) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *HEADERS]
            await send(message)

        await self.app(scope, receive, answer)


def make_server(page: "Blocks", views: Views, host: str, **looks: Any) -> "FastAPI":
    """
    Args:
        page (`gradio.Blocks`): of [`~app.page.make_page`].
        views ([`Views`]): that it fills.
        host (`str`): where it is to be served; under a loopback address it answers to no other name.
        looks: of `gradio.mount_gradio_app`.

    Returns:
        `fastapi.FastAPI` with the page and what it asks for.
    """
    import gradio as gr
    from fastapi import FastAPI, HTTPException, Response
    from fastapi.middleware.trustedhost import TrustedHostMiddleware

    app = FastAPI(openapi_url=None)

    def found(make: Callable[[View], bytes], token: str, kind: str, name: str = "", **headers: str) -> Response:
        try:
            view = views.find(token)
            if name:
                headers["Content-Disposition"] = f'attachment; filename="{name.format(file_name(view.clip.name))}"'
            return Response(make(view), media_type=kind, headers={"Cache-Control": "no-store", **headers})
        except LookupError as error:
            raise HTTPException(404, "This is shown no more: open it again.") from error

    def result_of(view: View, model: int, frame: int):
        return list(view.results.values())[model][frame]

    def title_of(view: View, model: int) -> str:
        return list(view.results)[model]

    @app.get("/views/{token}")
    def view(token: str) -> Response:
        return found(lambda view: json.dumps(describe(view)).encode(), token, "application/json")

    @app.get("/views/{token}/frames/{frame}")
    def frame(token: str, frame: int) -> Response:
        return found(lambda view: png(view.clip.frames[frame]), token, "image/png")

    @app.get("/views/{token}/{model}/levels/{frame}")
    def level(token: str, model: int, frame: int) -> Response:
        def make(view: View) -> bytes:
            return zlib.compress(levels(result_of(view, model, frame)).tobytes(), 1)

        return found(make, token, "application/octet-stream", **{"Content-Encoding": "deflate"})

    @app.get("/views/{token}/{model}/mask/{frame}/{index}")
    def mask(token: str, model: int, frame: int, index: int, step: int) -> Response:
        def make(view: View) -> bytes:
            return png(mask_picture(result_of(view, model, frame), index, step))

        return found(make, token, "image/png", f"{{}}_frame{frame}_mask{index}.png")

    @app.get("/views/{token}/{model}/overlay/{frame}")
    def overlay(token: str, model: int, frame: int, step: int) -> Response:
        def make(view: View) -> bytes:
            return png(painted(view.clip.frames[frame], result_of(view, model, frame), step, legend(view)))

        return found(make, token, "image/png", f"{{}}_frame{frame}_overlay.png")

    @app.get("/views/{token}/{model}/json")
    def listing(token: str, model: int, step: int) -> Response:
        def make(view: View) -> bytes:
            return (json.dumps(predictions(view, title_of(view, model), step), indent=2) + "\n").encode()

        return found(make, token, "application/json", "{}_predictions.json")

    @app.get("/views/{token}/{model}/zip")
    def everything(token: str, model: int, step: int) -> Response:
        return found(lambda view: archive(view, title_of(view, model), step), token, "application/zip", "{}.zip")

    gr.mount_gradio_app(app, page, path="/", ssr_mode=False, footer_links=[], **looks)
    if host in LOOPBACK:  # a site elsewhere cannot reach it by a name that it points here
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(LOOPBACK))
    app.add_middleware(_WithHeaders)
    return app
