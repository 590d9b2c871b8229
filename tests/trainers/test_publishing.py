"""Pushing and fetching with the real client of huggingface_hub, against a Hub on loopback."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hub_server import TOKEN, hub


ROOT = Path(__file__).parents[2]
PROCESSOR = {"tokenizer.json", "tokenizer_config.json", "processor_config.json", "chat_template.jinja"}
ADAPTER = {"adapter_config.json", "adapter_model.safetensors", "base_model.json", "README.md"} | PROCESSOR
RESUME = {"optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "resume.json"}
METRICS = {
    "dice": {"mean": 0.7, "std": 0.1, "ci95": [0.6, 0.8], "n": 5},
    "iou": {"mean": 0.5, "std": 0.1, "ci95": [None, None], "n": 5, "patient": "smith"},
    "smith_john": {"mean": 0.1, "std": 0.0, "ci95": [0.1, 0.1], "n": 1},
}


@pytest.fixture(scope="module")
def pushed(tmp_path_factory):
    """A run of the client in a folder named after a patient; the Hub afterwards and the client's report."""
    folder = tmp_path_factory.mktemp("run") / "smith_john"
    folder.mkdir()
    (folder / "metrics.json").write_text(json.dumps(METRICS))
    with hub() as server:
        environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"} | {
            "HF_ENDPOINT": server.url,
            "HF_HOME": str(folder / "home"),
            "HF_TOKEN": TOKEN,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
        }
        client = [sys.executable, str(ROOT / "tests" / "hub_client.py"), str(folder)]
        finished = subprocess.run(client, env=environment, cwd=folder, capture_output=True, text=True)
        assert finished.returncode == 0, finished.stderr[-20000:]
        yield server, json.loads(finished.stdout.splitlines()[-1])


def test_what_comes_back_is_what_was_pushed_bit_for_bit(pushed):
    _, report = pushed
    assert report["base_differs"]
    assert all(report["local"].values()), report["local"]
    assert all(report["hub"].values()), report["hub"]
    assert report["full"]


def test_only_the_weights_asked_for_are_fetched(pushed):
    server, report = pushed
    assert any(name.endswith("/model.safetensors") for name in server.files("user/full"))
    assert report["fetched"] == ["model.safetensors"]
    assert report["subfolder"]


def test_only_model_processor_and_card_go_up(pushed):
    server, _ = pushed
    files = server.files("user/local")
    assert files.keys() == ADAPTER | {f"last-checkpoint/{name}" for name in ADAPTER | RESUME}
    assert server.files("user/named").keys() == ADAPTER
    assert server.files("user/by-hand").keys() == ADAPTER
    model = {"config.json", "generation_config.json", "model.safetensors", "README.md"} | PROCESSOR
    checkpoints = {f"checkpoint-{step}/{name}" for step in (1, 2) for name in model | RESUME}
    assert server.files("user/full").keys() == model | checkpoints


def test_a_pushed_checkpoint_can_be_gone_on_from(pushed):
    server, report = pushed
    assert report["resumed"] == [1, 2, 3]
    state = json.loads(server.files("user/local")["last-checkpoint/trainer_state.json"])
    assert state["global_step"] == 2


def test_no_name_of_a_patient_or_folder_is_published(pushed):
    server, _ = pushed
    assert all(server.commits.values()) and len(server.commits) == 5
    for repo, commits in server.commits.items():
        for _, files in commits:
            for name, content in files.items():
                assert "smith" not in name.lower()
                # Whatever the encoding: weights, pickles and text alike.
                assert b"smith" not in content.lower(), (repo, name)
                assert "smith".encode("utf-16-le") not in content.lower(), (repo, name)


def test_a_repository_is_never_named_after_the_output_folder(pushed):
    server, report = pushed
    assert "hub_model_id" in report["unnamed"]
    assert server.commits.keys() == {"user/local", "user/base", "user/named", "user/by-hand", "user/full"}


def card(files):
    text = files["README.md"].decode()
    _, front, body = text.split("---\n", 2)
    return yaml.safe_load(front), body


def test_cards_say_what_is_public(pushed):
    server, _ = pushed
    front, body = card(server.files("user/local"))
    assert (front["library_name"], front["pipeline_tag"]) == ("peft", "image-segmentation")
    assert "base_model" not in front and "datasets" not in front
    assert "| dice | 0.7000 | 0.6000 - 0.8000 | 5 |" in body and "| iou | 0.5000 | - | 5 |" in body
    assert body.startswith("\n# local\n")
    front, body = card(server.files("user/named"))
    assert (front["base_model"], front["datasets"]) == ("user/base", ["hospital/angiograms"])
    assert 'PeftModel.from_pretrained(base, "user/named")' in body
    assert 'Sa2VAForConditionalGeneration.from_pretrained("user/base")' in body
    assert "LoRA (language model)" in body
    front, body = card(server.files("user/by-hand"))
    assert front["library_name"] == "peft" and front["base_model"] == "user/base"
    front, body = card(server.files("user/full"))
    assert front["library_name"] == "sa2va_trl" and "peft" not in body


def test_the_base_is_recorded_with_its_commit(pushed):
    server, _ = pushed
    record = json.loads(server.files("user/named")["base_model.json"])
    assert record["base_model_name_or_path"] == "user/base"
    assert record["revision"] == server.commits["user/base"][-1][0]
    assert json.loads(server.files("user/named")["adapter_config.json"])["base_model_name_or_path"] == "user/base"
    for name in ("base_model.json", "adapter_config.json"):
        assert json.loads(server.files("user/local")[name])["base_model_name_or_path"] is None
