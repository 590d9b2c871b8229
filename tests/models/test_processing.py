import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoTokenizer,
    CLIPImageProcessorPil,
    GotOcr2ImageProcessorPil,
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessor,
    Qwen2VLImageProcessorPil,
)
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from sa2va_trl import Sa2VAProcessor
from sa2va_trl.models.processing import QWEN_CLIP_SIZE, QWEN_IMAGE_SIZE
from sa2va_trl.models.templates import QWEN2_5_OPENING
from sa2va_trl.models.tiny import QWEN_SPECIAL_TOKENS, tiny_tokenizer


def make_processor(tile=448, tokenizer=None, seq_length=2, **kwargs):
    image_processor = GotOcr2ImageProcessorPil(
        size={"height": tile, "width": tile},
        crop_to_patches=True,
        min_patches=1,
        max_patches=12,
        image_mean=IMAGENET_DEFAULT_MEAN,
        image_std=IMAGENET_DEFAULT_STD,
    )
    tokenizer = tiny_tokenizer() if tokenizer is None else tokenizer
    return Sa2VAProcessor(image_processor, tokenizer, image_seq_length=seq_length, **kwargs)


def make_qwen_processor(patch=14, size=QWEN_IMAGE_SIZE, kind=Qwen2VLImageProcessorPil, **kwargs):
    statistics = {"image_mean": IMAGENET_DEFAULT_MEAN, "image_std": IMAGENET_DEFAULT_STD}
    image_processor = kind(size=dict(size), patch_size=patch, **statistics)
    return Sa2VAProcessor(image_processor, tiny_tokenizer(QWEN_SPECIAL_TOKENS), **kwargs)


@pytest.fixture(scope="module")
def processor():
    return make_processor(grounding_image_size=96)


@pytest.fixture(scope="module")
def reference_tokenizer(shared):
    return AutoTokenizer.from_pretrained(shared / "reference" / "tokenizer")


def noise(width, height, mode="RGB"):
    pixels = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def normalized(image):
    pixels = np.asarray(image, dtype=np.float64) / 255
    return ((pixels - IMAGENET_DEFAULT_MEAN) / IMAGENET_DEFAULT_STD).transpose(2, 0, 1)


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


# Pixels


@pytest.mark.parametrize(
    ("size", "tiles"),
    [((640, 480), 13), ((1024, 1024), 10), ((512, 512), 1), ((1920, 1080), 9), ((800, 800), 5)],
)
def test_published_tile_counts(size, tiles):
    pixels, blocks = make_processor(seq_length=256).tiles([Image.new("RGB", size)])
    assert pixels["pixel_values"].shape == (tiles, 3, 448, 448)
    assert blocks == ["<img>" + "<IMG_CONTEXT>" * (256 * tiles) + "</img>"]


def expected_grid(width, height, tile):
    """Columns and rows, by going through all grids of at most twelve tiles from the smallest to the largest."""
    best, smallest = (1, 1), float("inf")
    for area in range(1, 13):
        for columns in range(1, area + 1):
            if area % columns:
                continue
            rows = area // columns
            difference = abs(width / height - columns / rows)
            large_enough = width * height > 0.5 * tile * tile * columns * rows
            if difference < smallest or (difference == smallest and large_enough):
                best, smallest = (columns, rows), difference
    return best


@settings(deadline=None, max_examples=60)
@given(width=st.integers(8, 160), height=st.integers(8, 160))
@example(width=60, height=40)  # 1x1 and 2x1 are equally near, and the image is large enough for the larger
@example(width=30, height=20)  # and here it is not
@example(width=128, height=64)
def test_tiles(width, height):
    tile = 32
    image = noise(width, height)
    columns, rows = expected_grid(width, height, tile)
    resized = image.resize((tile * columns, tile * rows), Image.Resampling.BICUBIC)
    pieces = [
        resized.crop((tile * column, tile * row, tile * (column + 1), tile * (row + 1)))
        for row in range(rows)
        for column in range(columns)
    ]
    if len(pieces) > 1:
        pieces.append(image.resize((tile, tile), Image.Resampling.BICUBIC))
    pixels, blocks = make_processor(tile).tiles([image])
    assert blocks == ["<img>" + "<IMG_CONTEXT>" * (2 * len(pieces)) + "</img>"]
    np.testing.assert_allclose(pixels["pixel_values"], np.stack([normalized(piece) for piece in pieces]), atol=1e-5)


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize(
    "options",
    [{}, {"do_normalize": False}, {"do_rescale": False}, {"rescale_factor": 0.5}, {"image_std": [0.1, 0.7, 3.0]}],
    ids=lambda options: "-".join(options) or "published",
)
def test_tiles_are_bit_for_bit_those_of_the_image_processor(options, clip):
    processor = make_processor(tile=28)
    for name, value in options.items():
        setattr(processor.image_processor, name, value)
    # Every grey value is among them.
    images = [noise(70, 40), noise(28, 28), noise(60, 90, "L")]
    given = {"crop_to_patches": False} if clip else {}
    expected = processor.image_processor(
        images=[image.convert("RGB") for image in images], return_tensors="pt", **given
    )
    pixels = processor.tiles(images, clip=clip)[0]["pixel_values"]
    assert pixels.dtype == expected["pixel_values"].dtype and torch.equal(pixels, expected["pixel_values"])
    assert pixels.is_contiguous()


def test_tiles_of_several_images_and_of_clips():
    processor = make_processor(tile=32)
    images = [noise(64, 32), noise(32, 32, "L"), noise(32, 64, "RGBA")]
    pixels, blocks = processor.tiles(images)
    assert [block.count("<IMG_CONTEXT>") for block in blocks] == [6, 2, 6]
    single = [processor.tiles([image])[0]["pixel_values"] for image in images]
    assert torch.equal(pixels["pixel_values"], torch.cat(single))
    clip, blocks = processor.tiles(images, clip=True)
    assert [block.count("<IMG_CONTEXT>") for block in blocks] == [2, 2, 2]
    thumbnails = torch.stack([tiles[-1] for tiles in single])
    torch.testing.assert_close(clip["pixel_values"], thumbnails, rtol=0, atol=1e-5)
    assert processor.tiles([]) == ({}, [])


@settings(deadline=None, max_examples=25)
@given(
    patch=st.sampled_from([14, 16]),  # Qwen2.5-VL, Qwen3-VL
    clip=st.booleans(),
    short=st.integers(8, 400),
    aspect=st.floats(1, 199),
    upright=st.booleans(),
)
@example(patch=16, clip=False, short=1200, aspect=1.0, upright=False)
@example(patch=14, clip=True, short=100, aspect=199.0, upright=True)
@example(patch=16, clip=False, short=8, aspect=199.0, upright=False)
def test_qwen_keeps_its_budget_and_nearly_the_aspect(patch, clip, short, aspect, upright):
    long = min(int(short * aspect), 8000)
    processor = make_qwen_processor(patch)
    image = Image.new("L", (short, long) if upright else (long, short))
    pixels, (block,) = processor.tiles([image], clip=clip)
    ((time, rows, columns),) = pixels["image_grid_thw"].tolist()
    assert time == 1 and pixels["pixel_values"].shape == (rows * columns, 3 * 2 * patch * patch)
    least, most = (100_352, 401_408) if clip else (401_408, 1_605_632)
    assert least <= rows * columns * patch * patch <= most
    assert rows % 2 == columns % 2 == 0
    assert block == "<|vision_start|>" + "<|image_pad|>" * (rows * columns // 4) + "<|vision_end|>"
    # Either side is rounded to whole units of two patches, so less than one unit off at the image's own aspect.
    unit, scale = 2 * patch, (rows * columns * patch**2 / (image.width * image.height)) ** 0.5
    error = abs(np.log(columns / rows) - np.log(image.width / image.height))
    assert error <= 1.5 * unit / (scale * short) + 1.5 * unit / (scale * long)


def test_qwen_pixels():
    """The images, put together again from their patches."""
    patch, unit = 4, 8
    processor = make_qwen_processor(patch, size={"shortest_edge": 8 * unit**2, "longest_edge": 24 * unit**2})
    images = [noise(60, 40), noise(20, 45, "L"), noise(16, 16, "RGBA")]  # too large, within the budget, too small
    pixels, blocks = processor.tiles(images)
    grid = pixels["image_grid_thw"].tolist()
    assert grid == [[1, 8, 12], [1, 12, 4], [1, 6, 6]]
    parts = pixels["pixel_values"].split([rows * columns for _, rows, columns in grid])
    for image, (_, rows, columns), part in zip(images, grid, parts, strict=True):
        size = (columns * patch, rows * patch)
        expected = normalized(image.convert("RGB").resize(size, Image.Resampling.BICUBIC))
        # units down, units across, patches down and across a unit, channel, time, pixels down and across a patch
        found = part.reshape(rows // 2, columns // 2, 2, 2, 3, 2, patch, patch)
        for moment in (0, 1):
            whole = found[:, :, :, :, :, moment].permute(4, 0, 2, 5, 1, 3, 6).reshape(3, *size[::-1])
            np.testing.assert_allclose(whole, expected, atol=1e-5)
    assert [block.count("<|image_pad|>") for block in blocks] == [rows * columns // 4 for _, rows, columns in grid]
    assert processor.tiles([]) == ({}, [])


def test_qwen_pixels_are_never_torchvisions():
    images = [noise(1000, 700)]
    expected = make_qwen_processor().tiles(images)[0]["pixel_values"]
    processor = make_qwen_processor(kind=Qwen2VLImageProcessor)
    assert type(processor.image_processor) is Qwen2VLImageProcessorPil
    assert torch.equal(processor.tiles(images)[0]["pixel_values"], expected)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "1"])
def test_grounding_pixels(mode, processor):
    images = [noise(150, 70, mode), noise(40, 96, mode)]
    pixels = processor.grounding_inputs(images)
    assert pixels.dtype == torch.float32
    resized = [image.convert("RGB").resize((96, 96), Image.Resampling.BICUBIC) for image in images]
    np.testing.assert_allclose(pixels, np.stack([normalized(image) for image in resized]), atol=1e-5)
    assert processor.grounding_inputs([]).shape == (0, 3, 96, 96)


# Prompts


BLOCK = "<img><IMG_CONTEXT><IMG_CONTEXT></img>"
OTHER = "<img><IMG_CONTEXT></img>"
OPEN, TURN, CLOSE = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>"
PHI_OPEN, PHI_TURN = "<|user|>\n", "<|end|>\n<|assistant|>\n"
PARTS = [{"type": "image"}, {"type": "text", "text": "Where?"}]
TWO_TURNS = [user("Where?"), assistant("Here [SEG]."), user("And there?"), assistant("[SEG]")]


@pytest.mark.parametrize(
    ("template", "messages", "blocks", "expected"),
    [
        ("qwen_chat", [user("Where?")], [BLOCK], f"{OPEN}{BLOCK}\nWhere?{TURN}"),
        ("qwen_chat", [user(PARTS)], [BLOCK], f"{OPEN}{BLOCK}\nWhere?{TURN}"),
        ("qwen_chat", [user("<image>Where?")], [BLOCK], f"{OPEN}{BLOCK}Where?{TURN}"),
        ("qwen_chat", [user("In <image>, where?")], [BLOCK], f"{OPEN}In {BLOCK}, where?{TURN}"),
        ("qwen_chat", [user("Where?")], [BLOCK, BLOCK], f"{OPEN}{BLOCK}\n{BLOCK}\nWhere?{TURN}"),
        ("qwen_chat", [user("In <image>, where?")], [BLOCK, OTHER], f"{OPEN}In {BLOCK}\n{OTHER}, where?{TURN}"),
        ("qwen_chat", [user("<image> or <image>?")], [BLOCK, OTHER], f"{OPEN}{BLOCK} or {OTHER}?{TURN}"),
        ("qwen_chat", [user([*PARTS, *PARTS])], [BLOCK, OTHER], f"{OPEN}{BLOCK}\nWhere?{OTHER}\nWhere?{TURN}"),
        (
            "qwen_chat",
            [user("What?"), assistant("An <image>."), user("In <image>, where?")],
            [BLOCK],
            f"{OPEN}What?{TURN}An <image>.{CLOSE}\n{OPEN}In {BLOCK}, where?{TURN}",
        ),
        (
            "qwen_chat",
            [user("What is <image>?"), assistant("A."), user("And <image>?")],
            [BLOCK, OTHER],
            f"{OPEN}What is {BLOCK}?{TURN}A.{CLOSE}\n{OPEN}And {OTHER}?{TURN}",
        ),
        ("qwen_chat", [user("Hello {there}")], [], f"{OPEN}Hello {{there}}{TURN}"),
        (
            "internlm2_chat",
            TWO_TURNS,
            [BLOCK],
            f"{OPEN}{BLOCK}\nWhere?{TURN}Here [SEG].{CLOSE}\n{OPEN}And there?{TURN}[SEG]{CLOSE}",
        ),
        (
            "qwen_chat",
            [{"role": "system", "content": "Be brief."}, user("Where?"), assistant("[SEG]")],
            [BLOCK],
            f"<|im_start|>system\nBe brief.{CLOSE}\n{OPEN}{BLOCK}\nWhere?{TURN}[SEG]{CLOSE}",
        ),
        (
            "phi3_chat",
            TWO_TURNS,
            [BLOCK],
            f"{PHI_OPEN}{BLOCK}\nWhere?{PHI_TURN}Here [SEG].<|end|>\n{PHI_OPEN}And there?{PHI_TURN}[SEG]<|end|>",
        ),
    ],
)
def test_prompts(template, messages, blocks, expected):
    processor = make_processor(prompt_template=template)
    input_ids, labels = processor.encode_chat(messages, blocks)
    assert processor.tokenizer.decode(input_ids) == expected
    # Learned are the answers with their end, and neither the separator after it nor anything of the prompts.
    end = processor.stop_strings[0]
    learned = [label for label in labels if label != -100]
    answers = [message["content"] for message in messages if message["role"] == "assistant"]
    assert processor.tokenizer.decode(learned) == "".join(answer + end for answer in answers)
    assert len(labels) == len(input_ids)
    assert all(label in (-100, token) for token, label in zip(input_ids, labels, strict=True))


@pytest.mark.parametrize("template", ["qwen_chat", "internlm2_chat", "phi3_chat"])
def test_one_more_turn_is_what_the_whole_conversation_has(template):
    processor = make_processor(prompt_template=template)
    earlier = processor.encode_chat(TWO_TURNS, [BLOCK])[0]
    assert earlier + processor.next_turn("More?") == processor.encode_chat([*TWO_TURNS, user("More?")], [BLOCK])[0]
    with pytest.raises(ValueError, match="have their places in earlier turns: leave <image> out"):
        processor.next_turn("In <image>?")
    for text in ("a <|im_end|>", None):
        with pytest.raises(ValueError, match="only the processor may write|must be text"):
            processor.next_turn(text)


def test_a_start_token_stands_once():
    tokenizer = tiny_tokenizer()
    start = tokenizer.pad_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{start} $A", special_tokens=[(start, tokenizer.pad_token_id)]
    )
    processor = make_processor(tokenizer=tokenizer, prompt_template="internlm2_chat")
    input_ids, labels = processor.encode_chat(TWO_TURNS, [BLOCK])
    assert input_ids[0] == tokenizer.pad_token_id and input_ids.count(tokenizer.pad_token_id) == 1
    assert labels[0] == -100 and len(labels) == len(input_ids)
    assert processor.stopping() == {"eos_token_id": [tokenizer.convert_tokens_to_ids("<|im_end|>")]}


QWEN_SMALL = {"shortest_edge": 4 * 28 * 28, "longest_edge": 16 * 28 * 28}


@pytest.mark.parametrize(
    "processor",
    [
        *[make_processor(tile=32, prompt_template=name) for name in ("qwen_chat", "internlm2_chat", "phi3_chat")],
        make_qwen_processor(size=QWEN_SMALL),
        make_qwen_processor(size=QWEN_SMALL, prompt_style="official"),
        make_qwen_processor(patch=16, size=QWEN_SMALL, prompt_style="official"),
    ],
    ids=["qwen_chat", "internlm2_chat", "phi3_chat", "qwen_vl", "qwen2_5_vl-official", "qwen3_vl-official"],
)
def test_the_chat_template_gives_the_same_ids(processor):
    images = [noise(64, 32), noise(32, 32)]
    texts = [[{"type": "image"}, {"type": "text", "text": text}] for text in ("Where is the vessel?", "It's?")]
    pixels, blocks = processor.tiles(images)
    expected = [processor.encode_chat([user(text)], [block])[0] for text, block in zip(texts, blocks, strict=True)]
    prompts = [processor.apply_chat_template([user(text)], add_generation_prompt=True) for text in texts]
    batch = processor(images=images, text=prompts)
    assert torch.equal(batch["input_ids"], processor.pad(expected, side="left"))
    for row, ids in enumerate(expected):
        assert batch["attention_mask"][row].tolist() == [0] * (batch["input_ids"].shape[1] - len(ids)) + [1] * len(ids)
    assert list(batch) == ["input_ids", "attention_mask", *pixels] == processor.model_input_names
    assert all(torch.equal(batch[name], tensor) for name, tensor in pixels.items())
    nested = processor(images=[[image] for image in images], text=prompts, padding_side="right")
    assert torch.equal(nested["input_ids"], processor.pad(expected))


def test_the_chat_template_of_a_whole_conversation(processor):
    messages = [{"role": "system", "content": "Be brief."}, *TWO_TURNS]
    text = processor.apply_chat_template(messages)
    assert text == processor.tokenizer.decode(processor.encode_chat(messages, [])[0]) + "\n"
    output = processor.tokenizer.apply_chat_template(
        messages, chat_template=processor.chat_template, return_dict=True, return_assistant_tokens_mask=True
    )
    masked = [token for token, mask in zip(output["input_ids"], output["assistant_masks"], strict=True) if mask]
    assert processor.tokenizer.decode(masked) == "Here [SEG].<|im_end|>[SEG]<|im_end|>"


# Official prompts


VISION = "<|vision_start|><|image_pad|><|vision_end|>"
SYSTEM = "<|im_start|>system\nBe brief.<|im_end|>\n"


@pytest.mark.parametrize(
    ("messages", "blocks", "expected"),
    [
        ([user("Where?")], [VISION], f"{QWEN2_5_OPENING}{OPEN}{VISION}Where?{TURN}"),
        ([user("<image>Where?")], [VISION], f"{QWEN2_5_OPENING}{OPEN}{VISION}Where?{TURN}"),
        ([user("<image>\nWhere?")], [VISION], f"{QWEN2_5_OPENING}{OPEN}{VISION}\nWhere?{TURN}"),
        ([user("In <image>, where?")], [VISION], f"{QWEN2_5_OPENING}{OPEN}{VISION}In , where?{TURN}"),
        ([user(PARTS)], [VISION], f"{QWEN2_5_OPENING}{OPEN}{VISION}Where?{TURN}"),
        ([user(PARTS[::-1])], [VISION], f"{QWEN2_5_OPENING}{OPEN}{VISION}Where?{TURN}"),
        ([user("Where?")], [VISION] * 3, f"{QWEN2_5_OPENING}{OPEN}{VISION}{VISION}{VISION}Where?{TURN}"),
        ([user("Hello.")], [], f"{QWEN2_5_OPENING}{OPEN}Hello.{TURN}"),
        (
            [user("What?"), assistant("A."), user("In <image>, where?")],
            [VISION],
            f"{QWEN2_5_OPENING}{OPEN}What?{TURN}A.{CLOSE}\n{OPEN}{VISION}In , where?{TURN}",
        ),
        (
            TWO_TURNS,
            [VISION],
            f"{QWEN2_5_OPENING}{OPEN}{VISION}Where?{TURN}Here [SEG].{CLOSE}\n{OPEN}And there?{TURN}[SEG]{CLOSE}",
        ),
        (
            [{"role": "system", "content": "Be brief."}, user("Where?")],
            [VISION],
            f"{SYSTEM}{OPEN}{VISION}Where?{TURN}",
        ),
    ],
)
def test_official_prompts(messages, blocks, expected):
    first, second = (make_qwen_processor(patch, prompt_style="official") for patch in (14, 16))
    for processor in (first, second):
        input_ids, labels = processor.encode_chat(messages, blocks)
        # Qwen3-VL's own template has no system turn of its own.
        opening = "" if processor is first else QWEN2_5_OPENING
        assert processor.tokenizer.decode(input_ids) == expected.removeprefix(opening)
        assert len(labels) == len(input_ids)
        learned = [token for token in labels if token != -100]
        answers = [message["content"] for message in messages if message["role"] == "assistant"]
        assert processor.tokenizer.decode(learned) == "".join(answer + CLOSE for answer in answers)
    with pytest.raises(ValueError, match="<image> .* stands 2 times in the user's turns, for 1 images"):
        first.encode_chat([user("<image> and <image>")], [VISION])


def test_the_official_chat_template_of_a_whole_conversation():
    processor = make_qwen_processor(prompt_style="official")
    for messages in (TWO_TURNS, [{"role": "system", "content": "Be brief."}, *TWO_TURNS]):
        text = processor.apply_chat_template(messages)
        assert text == processor.tokenizer.decode(processor.encode_chat(messages, [])[0]) + "\n"
    placed = processor.apply_chat_template([user("In <image>, where?")], add_generation_prompt=True)
    assert placed == f"{QWEN2_5_OPENING}{OPEN}<image>In , where?{TURN}"


# Sizes (width, height) after the first step, and after the second with units of 28 and of 32 pixels. The budgets of
# the first step are qwen-vl-utils' own; those of the second are Sa2VA's.
TWO_STEPS = {
    (500, 375): [(504, 364), (756, 560), (768, 544)],  # as recorded of the official code
    (1920, 1080): [(1932, 1092), (1680, 952), (1664, 928)],
    (640, 480): [(644, 476), (756, 560), (768, 576)],
    (640, 427): [(644, 420), (812, 532), (800, 512)],
    (1280, 720): [(1288, 728), (1288, 728), (1280, 736)],
    (9, 20): [(56, 84), (532, 784), (544, 800)],  # too small: to as many pixels as 4 units have, rounded up
    (20, 1600): [(28, 1596), (84, 4788), (96, 4800)],
    (6000, 4000): [(4368, 2912), (1540, 1008), (1536, 1024)],  # too large, even for the first step
}


@pytest.mark.parametrize("size", TWO_STEPS)
def test_official_pixels_are_resized_twice(size):
    image = noise(*size)
    first, *second = TWO_STEPS[size]
    for patch, (width, height) in zip((14, 16), second, strict=True):
        processor = make_qwen_processor(patch, prompt_style="official")
        pixels, (block,) = processor.tiles([image])
        assert pixels["image_grid_thw"].tolist() == [[1, height // patch, width // patch]]
        assert block.count("<|image_pad|>") == height * width // (4 * patch * patch)
        expected = processor.image_processor(images=[image.resize(first)], return_tensors="pt")
        assert torch.equal(pixels["pixel_values"], expected["pixel_values"])
        # A clip's frame is a picture like any other.
        clip, blocks = processor.tiles([image, image], clip=True)
        assert blocks == [block, block]
        assert torch.equal(clip["pixel_values"], torch.cat([pixels["pixel_values"]] * 2))
        # ... which it is not in training, and with another budget at that.
        processor.prompt_style = "training"
        assert processor.tiles([image], clip=True)[1][0].count("<|image_pad|>") < block.count("<|image_pad|>")


def test_an_image_as_thin_as_a_thread_is_refused():
    with pytest.raises(ValueError, match="no image whose sides differ more than 200 times: 201 x 1 pixels"):
        make_qwen_processor(prompt_style="official").tiles([Image.new("RGB", (201, 1))])


def test_both_styles_are_one_for_internvl():
    processor, images = make_processor(tile=32), [noise(64, 32), noise(32, 32)]
    one = [processor.tiles(images, clip=clip) for clip in (False, True)]
    prompt = processor.encode_chat([user("In <image>, where?")], one[0][1])
    template = processor.chat_template
    processor.prompt_style = "official"
    assert processor.chat_template == template and not processor.is_official
    for clip, (pixels, blocks) in zip((False, True), one, strict=True):
        again, same = processor.tiles(images, clip=clip)
        assert torch.equal(again["pixel_values"], pixels["pixel_values"]) and same == blocks
    assert processor.encode_chat([user("In <image>, where?")], one[0][1]) == prompt


@pytest.mark.parametrize("kind", [make_processor, make_qwen_processor])
@pytest.mark.parametrize("style", ["training", "official"])
def test_the_style_is_saved(kind, style, tmp_path):
    processor = kind(prompt_style=style, **({"official_opening": "Hi."} if kind is make_qwen_processor else {}))
    processor.save_pretrained(tmp_path)
    loaded = Sa2VAProcessor.from_pretrained(tmp_path)
    for name in ("prompt_style", "official_opening", "clip_size", "chat_template"):
        assert getattr(loaded, name) == getattr(processor, name), name
    other = {"training": "official", "official": "training"}[style]
    changed = Sa2VAProcessor.from_pretrained(tmp_path, prompt_style=other)
    assert changed.prompt_style == other
    assert (changed.chat_template == processor.chat_template) == (kind is make_processor)
    changed.prompt_style = style
    assert changed.chat_template == processor.chat_template
    # Somebody's own chat template stays.
    own = kind(chat_template="{{ messages }}")
    own.prompt_style = "official"
    assert own.chat_template == "{{ messages }}"


def test_the_opening_that_is_set_is_the_chat_templates_too(tmp_path):
    processor, chat = make_qwen_processor(prompt_style="official"), [user("Where?")]

    def asked(processor=processor):
        return processor.apply_chat_template(chat, tokenize=False)

    assert asked().startswith("<|im_start|>system")
    processor.official_opening = "Hi."
    assert asked().startswith("Hi.<|im_start|>user")
    processor.save_pretrained(tmp_path)
    assert asked(Sa2VAProcessor.from_pretrained(tmp_path)) == asked()
    processor.prompt_style = "training"
    training = asked()
    assert training == make_qwen_processor().apply_chat_template(chat, tokenize=False)
    processor.official_opening = "Hello."
    assert asked() == training
    processor.prompt_style = "official"
    assert asked().startswith("Hello.<|im_start|>user")
    with pytest.raises(ValueError, match="official_opening must be text"):
        processor.official_opening = None
    internvl = make_processor()
    internvl.official_opening = None
    with pytest.raises(ValueError, match="official_opening is Qwen's"):
        internvl.official_opening = "Hi."
    own = make_qwen_processor(chat_template="{{ messages }}", prompt_style="official")
    own.official_opening = "Hi."
    assert own.chat_template == "{{ messages }}"


def test_a_clips_budget_can_be_that_of_a_still_image(tmp_path):
    processor = make_qwen_processor()
    image = noise(640, 480)
    assert processor.clip_size == QWEN_CLIP_SIZE
    processor.clip_size = processor.image_processor.size
    assert processor.clip_size == QWEN_IMAGE_SIZE
    processor.save_pretrained(tmp_path)
    for each in (processor, Sa2VAProcessor.from_pretrained(tmp_path)):
        assert torch.equal(each.tiles([image], clip=True)[0]["pixel_values"], each.tiles([image])[0]["pixel_values"])
    for value in (None, 5, {"height": 5, "width": 5}, {"longest_edge": 5}):
        with pytest.raises(ValueError, match="clip_size must be"):
            processor.clip_size = value
    with pytest.raises(ValueError, match="clip_size is Qwen's"):
        make_processor().clip_size = QWEN_IMAGE_SIZE


@given(
    sequences=st.lists(st.lists(st.integers(0, 200), min_size=1, max_size=6), min_size=1, max_size=4),
    value=st.sampled_from([None, -100]),
)
def test_pad(processor, sequences, value):
    for side in ("left", "right"):
        padded = processor.pad(sequences, value=value, side=side)
        assert padded.dtype == torch.int64
        fill = processor.tokenizer.pad_token_id if value is None else value
        assert padded.shape == (len(sequences), max(map(len, sequences)))
        for row, sequence in zip(padded.tolist(), sequences, strict=True):
            filling = [fill] * (len(row) - len(sequence))
            assert row == (filling + sequence if side == "left" else sequence + filling)


@pytest.mark.parametrize(
    ("text", "phrases"),
    [
        ("Sure, [SEG].", [None]),
        ("No.", []),
        ("<p> a vessel </p> [SEG] and <p>another\none</p>[SEG]", ["a vessel", "another\none"]),
        ("<p> a </p> <p> b </p> [SEG] [SEG] <p> c </p>", ["b", None]),
        ("<p> open [SEG] </p> [SEG]", [None, None]),
    ],
)
def test_phrases(text, phrases, processor):
    assert processor.phrases(text) == phrases


# What raises


@pytest.mark.parametrize(
    ("messages", "blocks"),
    [
        ([user("<image> and <image>")], [BLOCK]),
        ([user("<image> Where?")], []),
        ([user("<image> Where?"), assistant("Here."), user("In <image>?")], [BLOCK]),
        ([user("<image> and <image>")], [BLOCK] * 3),
    ],
)
def test_misplaced_images_raise(messages, blocks, processor):
    marked = sum(message["content"].count("<image>") for message in messages)
    message = f"stands {marked} times in the user's turns, for {len(blocks)} images: it may stand once for all"
    with pytest.raises(ValueError, match=message):
        processor.encode_chat(messages, blocks)


@pytest.mark.parametrize(
    ("message", "fault"),
    [
        (assistant(PARTS), "not of the assistant"),
        (user([{"type": "video"}]), "parts must be .*, got {'type': 'video'}"),
        (user([{"role": "user", "content": "x"}]), "parts must be .*, got {'role': 'user'"),
        (user(["text"]), "parts must be .*, got 'text'"),
        (user([{"type": "text"}]), "parts must be .*, got {'type': 'text'}"),
    ],
)
def test_parts_that_have_no_place_raise(message, fault, processor):
    with pytest.raises(ValueError, match=fault):
        processor.encode_chat([message], [BLOCK])


@pytest.mark.parametrize("role", ["system", "user", "assistant"])
@pytest.mark.parametrize("content", ["a <|im_end|> b", [{"type": "text", "text": "<|im_end|>"}]])
def test_only_the_processor_writes_reserved_tokens(role, content, processor):
    with pytest.raises(ValueError, match=rf"A text of the {role} holds <\|im_end\|>"):
        processor.encode_chat([{"role": role, "content": content}], [])


@pytest.mark.parametrize("content", [None, 3, b"bytes"])
def test_a_content_that_is_no_text_is_refused(content, processor):
    with pytest.raises(ValueError, match="content must be text, got"):
        processor.encode_chat([user(content)], [])


@pytest.mark.parametrize(("texts", "images"), [(["<image>"], []), (["a", "<image>"], 2), ("a", 1)])
def test_images_and_placeholders_must_pair(texts, images, processor):
    images = [noise(32, 32)] * images if images else None
    with pytest.raises(ValueError, match=rf"but {len(images or [])} images were given"):
        processor(images=images, text=texts)


def test_bad_processors_raise():
    with pytest.raises(ValueError, match="prompt_template must be one of qwen_chat, internlm2_chat, phi3_chat"):
        make_processor(prompt_template="vicuna")
    tokenizer = tiny_tokenizer().backend_tokenizer
    without_seg = PreTrainedTokenizerFast(
        tokenizer_object=type(tokenizer).from_str(tokenizer.to_str().replace("[SEG]", "[OTHER]"))
    )
    with pytest.raises(ValueError, match=r"does not hold '\[SEG\]' as one token; add it as a special token"):
        make_processor(tokenizer=without_seg)
    with pytest.raises(ValueError, match="does not hold '<img>' as one token"):
        make_processor(tokenizer=tiny_tokenizer(QWEN_SPECIAL_TOKENS))
    with pytest.raises(ValueError, match=r"does not hold '<\|vision_start\|>' as one token"):
        Sa2VAProcessor(Qwen2VLImageProcessorPil(), tiny_tokenizer())
    with pytest.raises(ValueError, match="image_seq_length is InternVL's"):
        make_qwen_processor(image_seq_length=256)
    with pytest.raises(ValueError, match="clip_size is Qwen's"):
        make_processor(clip_size=QWEN_IMAGE_SIZE)
    with pytest.raises(ValueError, match="official_opening is Qwen's"):
        make_processor(official_opening="")
    with pytest.raises(ValueError, match="prompt_style must be one of training, official, got 'demo'"):
        make_qwen_processor(prompt_style="demo")
    with pytest.raises(ValueError, match=r"must be a GotOcr2ImageProcessorPil .* got CLIPImageProcessorPil"):
        Sa2VAProcessor(CLIPImageProcessorPil(), tiny_tokenizer())
    with pytest.raises(ValueError, match="needs `text`"):
        make_processor()(images=noise(32, 32))


# The published tokenizer and pixels


def test_published_ids(reference_tokenizer):
    processor = make_processor(tokenizer=reference_tokenizer)
    assert (processor.seg_token_id, processor.image_token_id) == (151674, 151667)
    input_ids, labels = processor.encode_chat(
        [user("<image>Please segment the blood vessel."), assistant("Sure, [SEG].")], [BLOCK]
    )
    start, end, newline = 151644, 151645, 198
    question = [5501, 10238, 279, 6543, 26182, 13]
    answer = [39814, 11, 220, 151674, 13, end]
    prompt = [start, 872, newline, 151665, 151667, 151667, 151666, *question, end, newline, start, 77091, newline]
    assert input_ids == prompt + answer
    assert labels == [-100] * len(prompt) + answer


def test_published_stopping(reference_tokenizer):
    qwen = make_processor(tokenizer=reference_tokenizer, prompt_template="qwen_chat")
    assert qwen.stopping() == {"eos_token_id": [151645, 151643]}
    phi = make_processor(tokenizer=reference_tokenizer, prompt_template="phi3_chat")
    # (As in official inference, the tokenizer's own end too.)
    assert phi.stopping() == {"stop_strings": ["<|end|>", "<|im_end|>"], "tokenizer": reference_tokenizer}


def test_published_pixels(shared):
    expected = load_file(shared / "reference" / "image_640x512.safetensors")
    with Image.open(shared / "reference" / "image_640x512.png") as image:
        pixels = make_processor().tiles([image])[0]["pixel_values"]
    torch.testing.assert_close(pixels[:, :, ::64, ::64], expected["img640x512.pixel_sample"], rtol=0, atol=1e-6)
    torch.testing.assert_close(pixels.sum((1, 2, 3)), expected["img640x512.pixel_sum"], rtol=1e-5, atol=0)


SMALL_BUDGET = {"shortest_edge": 4 * 28 * 28, "longest_edge": 40 * 28 * 28}
SIDES = st.tuples(st.integers(1, 700), st.integers(1, 700))


def image_tokens_of(processor, size, clip):
    """What `tiles` makes of an image, counted in its text block; `None` where it refuses the size."""
    try:
        _, (block,) = processor.tiles([Image.new("RGB", size)], clip=clip)
    except ValueError:
        return None
    return block.count(processor.image_token)


@pytest.mark.parametrize(
    "processor",
    [
        make_processor(tile=28),
        make_qwen_processor(size=SMALL_BUDGET, clip_size={"shortest_edge": 28 * 28, "longest_edge": 9 * 28 * 28}),
        make_qwen_processor(patch=16, size=SMALL_BUDGET),
        make_qwen_processor(),
        make_qwen_processor(size=SMALL_BUDGET, prompt_style="official"),
        make_qwen_processor(patch=16, size=SMALL_BUDGET, prompt_style="official"),
    ],
    ids=["internvl", "qwen2_5_vl", "qwen3_vl", "published budget", "official qwen2_5_vl", "official qwen3_vl"],
)
@settings(max_examples=40, deadline=None)
@given(size=SIDES, clip=st.booleans())
@example(size=(700, 3), clip=False)
@example(size=(3, 601), clip=True)
@example(size=(3, 600), clip=False)
@example(size=(563, 700), clip=False)
def test_image_tokens_are_known_from_the_size(processor, size, clip):
    expected = image_tokens_of(processor, size, clip)
    if expected is None:
        with pytest.raises(ValueError, match="aspect ratio|200 times"):
            processor.num_image_tokens(size, clip)
    else:
        assert processor.num_image_tokens(size, clip) == expected


def test_qwen_refuses_a_strip_and_internvl_takes_it():
    with pytest.raises(ValueError, match="200"):
        make_qwen_processor().num_image_tokens((3000, 10))
    assert make_processor().num_image_tokens((3000, 10)) == 13 * 2
    assert make_processor().num_image_tokens((3000, 10), clip=True) == 2
