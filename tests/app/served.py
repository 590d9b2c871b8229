"""The page in this process, and Debian's Chromium to look at it; neither may reach any other machine."""

import os
import socket
import threading
import time
from contextlib import contextmanager

import pytest
from browser import chromium  # noqa: F401  (for the tests of the page)

from sa2va_trl.app.page import looks, make_page
from sa2va_trl.app.server import Views, make_server


LOCAL = ("127.0.0.1", "localhost", "::1")


@contextmanager
def served(models, folder, per_frame=True, max_frames=128):
    """The address of a page with these models, what it shows, and the hosts that this process has asked for."""
    import uvicorn

    views, asked, connect, look_up = Views(), [], socket.socket.connect, socket.getaddrinfo

    def watched(own, address, *rest):
        if own.family != socket.AF_UNIX and address[0] not in LOCAL:
            asked.append(address)
        return connect(own, address, *rest)

    def looked_up(host, *rest, **options):
        if host not in (*LOCAL, None):
            asked.append(host)
        return look_up(host, *rest, **options)

    with pytest.MonkeyPatch.context() as patch, socket.create_server(("127.0.0.1", 0)) as listening:
        patch.setenv("GRADIO_TEMP_DIR", str(folder))
        patch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
        patch.setattr(socket.socket, "connect", watched)
        patch.setattr(socket, "getaddrinfo", looked_up)
        page = make_page(models, views, step=100, per_frame=per_frame, max_frames=max_frames, max_new_tokens=24)
        app = make_server(page, views, "127.0.0.1", **looks())
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/", views, asked
        finally:
            server.should_exit = True
            thread.join()


def files_below(folder):
    """Sizes of all files, by their path."""
    return {os.path.join(where, name): os.stat(os.path.join(where, name)).st_size
            for where, _, names in os.walk(folder) for name in names}  # fmt: skip


def wait_for(true, seconds=90.0):
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it has not come to this"
        time.sleep(0.05)
