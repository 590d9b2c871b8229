"""Tokenizer and image processor beside published weights, as transformers 4.57 and the official tools read them."""

import json
import logging
import os
import subprocess
import sys
import sysconfig

import pytest
import torch
from families import tiny_family
from PIL import Image
from test_tokenization import CORPUS, write_internlm2
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import GotOcr2ImageProcessorPil, Qwen2Tokenizer, Qwen2VLImageProcessorPil
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from sa2va_trl import Sa2VAForConditionalGeneration, Sa2VAProcessor
from sa2va_trl.models import published_files
from sa2va_trl.models.processing import QWEN_CLIP_SIZE, QWEN_IMAGE_SIZE
from sa2va_trl.models.published import native_config, published_config
from sa2va_trl.models.published_files import qwen_chat_template
from sa2va_trl.models.tiny import QWEN_SPECIAL_TOKENS, SPECIAL_TOKENS
from sa2va_trl.models.tokenization import load_tokenizer


FAMILIES = ("qwen2", "internlm2", "qwen2_5_vl", "qwen3_vl")
TEXTS = [
    "<|im_start|>user\n<img><IMG_CONTEXT></img>\nPlease segment the vessel.<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>\nWhere?<|im_end|>\n",
    "Sure, [SEG]. <p> the left coronary artery </p> [SEG]<|im_end|><|endoftext|>",
    "naïve cafe\u0301  血管造影\t 12.5 mm\n\n[SEG][SEG] <vp></vp>",
]
# What the official tools do with a folder, under transformers 4.57.
OFFICIAL = """
import json, sys
from PIL import Image
import transformers
from transformers import AutoProcessor, AutoTokenizer

assert transformers.__version__.startswith("4.57"), transformers.__version__


def read(name, folder, texts, image, messages):
    found = {}
    for kind, use_fast in (("fast", True), ("slow", False)):
        tokenizer = AutoTokenizer.from_pretrained(folder, use_fast=use_fast)
        found[kind] = {
            "class": type(tokenizer).__name__,
            "ids": [tokenizer(text).input_ids for text in texts],
            "texts": [tokenizer.decode(tokenizer(text).input_ids) for text in texts],
            "skipped": tokenizer.decode(tokenizer("[SEG]").input_ids, skip_special_tokens=True),
            "special": {key: value for key, value in tokenizer.special_tokens_map.items()},
            "template": tokenizer.chat_template,
        }
    if "qwen2_5_vl" in name or "qwen3_vl" in name:
        processor = AutoProcessor.from_pretrained(folder)
        prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
        inputs = processor(text=[prompt], images=[Image.open(image)], return_tensors="pt")
        found["processor"] = {
            "class": type(processor).__name__,
            "ids": inputs.input_ids[0].tolist(),
            "grid": inputs.image_grid_thw[0].tolist(),
            "pixels": inputs.pixel_values.double().sum().item(),
            "video": [type(processor.video_processor).__name__, dict(processor.video_processor.size)],
        }
    return found


# What the tools say goes to standard error, so that only results are in the output.
results, sys.stdout = sys.stdout, sys.stderr
for line in sys.stdin:
    folders, *asked = json.loads(line)
    print(json.dumps({name: read(name, folder, *asked) for name, folder in folders.items()}), file=results, flush=True)
"""


def qwen2_tokenizer(special_tokens):
    """A byte-level tokenizer of Qwen's class, with merges."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trained.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet))
    model = json.loads(trained.to_str())["model"]
    assert len(model["merges"]) > 100
    tokenizer = Qwen2Tokenizer(
        vocab=model["vocab"],
        merges=[tuple(pair) for pair in model["merges"]],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token=None,
        clean_up_tokenization_spaces=False,
    )
    # (As the official trainer adds them: special, and not among the listed ones.)
    tokenizer.add_tokens(
        [token for token in special_tokens if token not in tokenizer.get_vocab()], special_tokens=True
    )
    return tokenizer


def make_processor(family, folder):
    """A processor of published sizes, with a tokenizer of the family's kind."""
    if family == "qwen2":
        return Sa2VAProcessor(GotOcr2ImageProcessorPil(), qwen2_tokenizer(SPECIAL_TOKENS))
    if family == "internlm2":
        write_internlm2(folder)
        return Sa2VAProcessor(GotOcr2ImageProcessorPil(), load_tokenizer(folder), prompt_template="internlm2_chat")
    statistics = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "patch_size": 16}
    if family == "qwen2_5_vl":
        statistics = {"image_mean": OPENAI_CLIP_MEAN, "image_std": OPENAI_CLIP_STD, "patch_size": 14}
    image_processor = Qwen2VLImageProcessorPil(size=dict(QWEN_IMAGE_SIZE), merge_size=2, **statistics)
    return Sa2VAProcessor(image_processor, qwen2_tokenizer(QWEN_SPECIAL_TOKENS))


def same_processor(one, other):
    assert [one.tokenizer(text).input_ids for text in TEXTS] == [other.tokenizer(text).input_ids for text in TEXTS]
    assert one.tokenizer.special_tokens_map == other.tokenizer.special_tokens_map
    assert one.tokenizer.all_special_tokens == other.tokenizer.all_special_tokens
    assert one.tokenizer.added_tokens_decoder == other.tokenizer.added_tokens_decoder
    assert len(one.tokenizer) == len(other.tokenizer)


@pytest.mark.parametrize("family", FAMILIES)
def test_our_own_loader_reads_it(family, tmp_path):
    model, _ = tiny_family(family)
    processor = make_processor(family, tmp_path / "source")
    model.save_pretrained(tmp_path / "published", layout="published")
    written = processor.save_pretrained(tmp_path / "published", layout="published")
    assert {str(tmp_path / "published" / file) for file in ("tokenizer.json", "tokenizer_config.json")} <= set(written)
    again = Sa2VAProcessor.from_pretrained(tmp_path / "published")
    same_processor(again, processor)
    # And after a detour over the native layout, whose chat template is this package's own.
    again.save_pretrained(tmp_path / "native")
    native = Sa2VAProcessor.from_pretrained(tmp_path / "native")
    native.save_pretrained(tmp_path / "again", layout="published")
    assert not (tmp_path / "again" / "processor_config.json").exists()
    files = {file.name for file in (tmp_path / "again").iterdir()}
    assert files == {file.name for file in (tmp_path / "published").iterdir()} - {"config.json", "model.safetensors"}
    # (What transformers 5 keeps to itself, such as `errors`, may be said or not.)
    for name in files - {"tokenizer_config.json"}:
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "published" / name).read_bytes(), name
    model.save_pretrained(tmp_path / "again", layout="published")
    same_processor(Sa2VAProcessor.from_pretrained(tmp_path / "again"), processor)


@pytest.mark.parametrize("family", FAMILIES)
def test_folders_as_they_were_written_before_are_read(family, tmp_path):
    model, _ = tiny_family(family)
    processor = make_processor(family, tmp_path / "source")
    model.save_pretrained(tmp_path / "published", layout="published")
    processor.tokenizer.save_pretrained(tmp_path / "published")
    if "vl" in family:
        processor.image_processor.save_pretrained(tmp_path / "published")
    same_processor(Sa2VAProcessor.from_pretrained(tmp_path / "published"), processor)


def test_nothing_of_transformers_5_is_written(tmp_path):
    processor = make_processor("qwen3_vl", tmp_path)
    processor.tokenizer.add_special_tokens({"additional_special_tokens": ["<vp>"]})
    processor.save_pretrained(tmp_path / "native")  # leaves its class in the tokenizer
    processor.save_pretrained(tmp_path / "published", layout="published")
    settings = json.loads((tmp_path / "published" / "tokenizer_config.json").read_text())
    assert not settings.keys() & {"extra_special_tokens", "backend", "is_local", "local_files_only"}
    assert settings["additional_special_tokens"] == ["<vp>"]
    assert settings["tokenizer_class"] == "Qwen2Tokenizer"
    assert settings["processor_class"] == "Qwen3VLProcessor"
    seg = settings["added_tokens_decoder"][str(processor.seg_token_id)]
    assert seg["content"] == "[SEG]" and seg["special"] is True
    assert (tmp_path / "published" / "chat_template.jinja").read_text() == qwen_chat_template("")


def test_a_tokenizers_own_template_is_kept(tmp_path):
    processor = make_processor("qwen2_5_vl", tmp_path)
    processor.tokenizer.chat_template = "{{ messages[0]['content'] }}"
    processor.save_pretrained(tmp_path, layout="published")
    assert (tmp_path / "chat_template.jinja").read_text() == "{{ messages[0]['content'] }}"


def test_an_option_without_effect_is_refused(tmp_path):
    processor = make_processor("qwen2_5_vl", tmp_path)
    with pytest.raises(ValueError, match="does not take push_to_hub"):
        processor.save_pretrained(tmp_path / "published", layout="published", push_to_hub=True)
    assert not (tmp_path / "published").exists()


@pytest.fixture(scope="session")
def official(tmp_path_factory):
    """
    What the official tools make of folders and a picture, in one process: Python of an environment with transformers
    4.57, and torch and all else of this one.
    """
    folder = tmp_path_factory.mktemp("official") / "venv"
    python = str(folder / "bin" / "python")
    install = [python, "-m", "pip", "install", "--quiet", "transformers==4.57.6"]
    for command in ([sys.executable, "-m", "venv", str(folder)], install):
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            last = [line for line in result.stderr.splitlines() if line.strip()][-1:]
            pytest.skip(f"transformers 4.57 cannot be installed here: {' '.join(last)[:200]}")
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    # Behind its own packages on the path.
    own = folder / "lib" / version / "site-packages" / "parent.pth"
    own.write_text(sysconfig.get_paths()["purelib"] + "\n")
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "\nSegment the vessel."}]}]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    said, pipes = folder.with_name("said.txt"), {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with (
        said.open("w") as stderr,
        subprocess.Popen([python, "-c", OFFICIAL], stderr=stderr, env=environment, **pipes) as process,
    ):

        def ask(folders, image):
            process.stdin.write(json.dumps([folders, TEXTS, str(image), messages]) + "\n")
            process.stdin.flush()
            result = process.stdout.readline()
            assert result, said.read_text()[-3000:]
            assert "incorrect regex pattern" not in said.read_text()
            return json.loads(result)

        yield ask


def test_the_official_tools_read_it(official, tmp_path, request):
    processors = {family: make_processor(family, tmp_path / f"{family}_source") for family in FAMILIES}
    processors |= {f"tiny_{family}": tiny_family(family)[1] for family in FAMILIES}
    native = make_processor("qwen3_vl", tmp_path)
    native.save_pretrained(tmp_path / "native")
    processors["qwen3_vl_via_native"] = Sa2VAProcessor.from_pretrained(tmp_path / "native")
    folders = {name: str(tmp_path / name) for name in processors}
    for name, processor in processors.items():
        family = next(family for family in FAMILIES if family in name.removeprefix("tiny_"))
        tiny_family(family)[0].save_pretrained(folders[name], layout="published")
        processor.save_pretrained(folders[name], layout="published")
    # Of one size in both: ours gives a still image 401,408 pixels at least, the official file far fewer.
    image = Image.radial_gradient("L").resize((1008, 672)).convert("RGB")
    image.save(tmp_path / "image.png")
    found = official(folders, tmp_path / "image.png")
    for name, processor in processors.items():
        expected = [processor.tokenizer(text).input_ids for text in TEXTS]
        for kind in ("fast", "slow"):
            assert found[name][kind]["ids"] == expected, (name, kind)
            assert found[name][kind]["special"]["eos_token"] == processor.tokenizer.eos_token
        assert found[name]["fast"]["skipped"] == ""
        has_slow = not name.startswith(("tiny", "internlm2"))
        assert (found[name]["slow"]["class"] == "Qwen2Tokenizer") == has_slow
        assert found[name]["fast"]["template"] == found[name]["slow"]["template"] != ""
        if "vl" not in name:
            continue
        read = found[name]["processor"]
        second = "qwen2_5" in name
        assert read["class"] == ("Qwen2_5_VLProcessor" if second else "Qwen3VLProcessor")
        assert read["video"][0] == ("Qwen2VLVideoProcessor" if second else "Qwen3VLVideoProcessor")
        if name.startswith("tiny"):
            continue  # which sees far fewer pixels than the official file says
        processor.prompt_style = "official"  # with the system turn that goes into the written template
        pixels, blocks = processor.tiles([image])
        chat = [{"role": "user", "content": "<image>\nSegment the vessel."}]
        assert read["ids"] == processor.encode_chat(chat, blocks)[0]
        assert read["grid"] == pixels["image_grid_thw"][0].tolist()
        assert read["pixels"] == pytest.approx(pixels["pixel_values"].double().sum().item(), rel=1e-2)


@pytest.mark.parametrize("kind", ["qwen25", "qwen3", "internvl"])
def test_published_files_come_out_as_they_went_in(official, shared, tmp_path, kind):
    """The recorded folders of the official converter, read and written: the official tools find the same."""
    source, written = tmp_path / "source", tmp_path / "written"
    source.mkdir()
    reference = shared / "reference"
    small = reference / "tokenizer" if kind == "internvl" else reference / "qwen" / kind / "tokenizer"
    for file in [*small.iterdir(), reference / "tokenizer/vocab.json", reference / "tokenizer/merges.txt"]:
        if not (source / file.name).exists():
            (source / file.name).symlink_to(file)
    spec = reference / ("internvl_qwen2_tiny.json" if kind == "internvl" else f"qwen/{kind}/spec.json")
    config = json.loads(spec.read_text())["config"] | {"transformers_version": "4.57.0"}
    (source / "config.json").write_text(json.dumps(config))
    written.mkdir()
    config = published_config(native_config(config, seg_token_id=151669, image_token_id=151655), torch.float32)
    (written / "config.json").write_text(json.dumps(config))
    Sa2VAProcessor.from_pretrained(source).save_pretrained(written, layout="published")
    Image.radial_gradient("L").resize((333, 222)).convert("RGB").save(tmp_path / "image.png")
    family = {"qwen25": "qwen2_5_vl", "qwen3": "qwen3_vl"}.get(kind, kind)
    folders = {f"{family}_source": str(source), f"{family}_written": str(written)}
    found = official(folders, tmp_path / "image.png")
    assert found[f"{family}_source"] == found[f"{family}_written"]


def test_the_weights_are_still_read(tmp_path):
    model, processor = tiny_family("qwen3_vl")
    model.save_pretrained(tmp_path, layout="published")
    processor.save_pretrained(tmp_path, layout="published")
    again = Sa2VAForConditionalGeneration.from_pretrained(tmp_path)
    assert again.config.seg_token_id == model.config.seg_token_id
    assert again.config.image_token_id == model.config.image_token_id


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_a_pixel_budget_that_the_layout_has_no_place_for_is_told(tmp_path, family, caplog, monkeypatch):
    monkeypatch.setattr(published_files, "logger", logging.getLogger("processing"))
    processor = make_processor(family, tmp_path / "source")
    processor.image_processor.size, processor.clip_size = dict(QWEN_IMAGE_SIZE), dict(QWEN_CLIP_SIZE)
    processor.save_pretrained(tmp_path / "published", layout="published")
    assert "pixel budget" not in caplog.text
    processor.image_processor.size = {"shortest_edge": 3136, "longest_edge": 50176}
    processor.save_pretrained(tmp_path / "other", layout="published")
    assert "no place for a pixel budget" in caplog.text
