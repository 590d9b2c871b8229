import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from importlib.util import find_spec
from pathlib import Path

import pytest
from tasks import run_task

from sa2va_trl.scripts import app
from sa2va_trl.scripts.app import AppArguments, listen, load_models
from sa2va_trl.scripts.arguments import ModelArguments


def test_without_gradio_one_line_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(app, "find_spec", lambda name: None)
    monkeypatch.setattr(app, "load_models", lambda *_: pytest.fail("a model is loaded"))
    with pytest.raises(SystemExit) as error:
        run_task("app", "--port", "0")
    assert error.value.code == 1
    assert capsys.readouterr().err == "sa2va-trl app needs Gradio: pip install 'sa2va_trl[app]'\n"


@pytest.mark.parametrize(
    ("option", "value"), [("threshold", 0.0), ("threshold", 1.0), ("port", 70000), ("max_frames", 0)]
)
def test_options_out_of_range_are_refused(option, value):
    with pytest.raises(ValueError, match=f"^{option} must"):
        AppArguments(**{option: value})


def test_a_port_that_is_taken_is_named():
    with listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(ValueError, match=rf"port={port} cannot be served \(Address already in use\)"):
            listen("127.0.0.1", port)


def test_models_to_compare_have_their_own_titles(second):
    given = ModelArguments(grounding_image_size=64)
    (one,) = load_models(AppArguments(), given)
    assert one.title == "tiny" and not one.model.training
    models = load_models(AppArguments(compare_model=str(second)), given)
    assert [asked.title for asked in models] == ["tiny", str(second)]
    assert models[1].processor.grounding_image_size == 64
    first, other = (asked.model.text_hidden_fcs[0].weight for asked in models)
    assert (first != other).any()
    for same in (AppArguments(compare_model="tiny"), AppArguments(compare_model=str(second))):
        base = given if same.compare_model == "tiny" else ModelArguments(model_name_or_path=str(second))
        with pytest.raises(ValueError, match="nothing to compare"):
            load_models(same, base)


def test_an_adapter_is_compared_with_its_base(tmp_path):
    from peft import get_peft_model

    from sa2va_trl import tiny_sa2va
    from sa2va_trl.adapters.peft_model import SegPeftModel
    from sa2va_trl.adapters.presets import get_peft_config

    model, processor = tiny_sa2va(image_size=64)
    folder = tmp_path / "base"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    adapted = SegPeftModel.adopt(get_peft_model(model, get_peft_config("head", model.config.seg_token_id)))
    adapted.save_pretrained(tmp_path / "adapter")
    args = AppArguments(compare_adapter=str(tmp_path / "adapter"))
    models = load_models(args, ModelArguments(model_name_or_path=str(folder)))
    assert [asked.title for asked in models] == [str(folder), f"{folder} + {tmp_path / 'adapter'}"]
    assert models[1].model.config.mask_threshold == 0.5


@pytest.mark.slow
@pytest.mark.skipif(find_spec("gradio") is None, reason="needs sa2va_trl[app]")
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_nothing_stays_when_it_ends(tmp_path, end):
    """Not an upload that nobody has read, while a page is open; and without a traceback."""
    line = [sys.executable, "-m", "sa2va_trl.cli", "app", "--port", "0", "--grounding_image_size", "64"]
    environment = {**os.environ, "TMPDIR": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(line, env=environment, **pipes) as process:
        try:
            address = re.match(
                r"(http://127\.0\.0\.1:\d+) is the page; Ctrl\+C ends it\.\n", process.stdout.readline()
            )
            assert address, process.stderr.read()
            address = address[1]
            body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\nmine\r\n--x--\r\n'
            kind = {"Content-Type": "multipart/form-data; boundary=x"}
            request = urllib.request.Request(f"{address}/gradio_api/upload", body, kind)
            with urllib.request.urlopen(request, timeout=60) as reply:
                assert reply.status == 200
            (file,) = (file for file in Path(tmp_path).rglob("*") if file.is_file() and file.read_bytes() == b"mine")
            assert file.relative_to(tmp_path).parts[0].startswith("sa2va_trl_app_")
            host, port = address.removeprefix("http://").split(":")
            with socket.create_connection((host, int(port)), timeout=60) as open_page:
                open_page.sendall(f"GET /gradio_api/heartbeat/a HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
                assert b"200 OK" in open_page.recv(100)
                process.send_signal(end)
                assert process.wait(timeout=60) == 0
            assert not list(tmp_path.glob("sa2va_trl_app_*"))
            assert "Traceback" not in process.stderr.read()
        finally:
            process.kill()
