"""Regions: cells, the clause that announces them, and the features that the language model reads."""

import numpy as np
import pytest
import torch
from conversations import close, forced
from PIL import Image

from sa2va_trl import Sa2VAProcessor, tiny_sa2va
from sa2va_trl.models.regions import box_mask, region_cells, region_mask, with_regions
from sa2va_trl.models.tiny import SPECIAL_TOKENS, tiny_tokenizer


CONTEXT = "<IMG_CONTEXT>"


@pytest.fixture(scope="module")
def tiled():
    """A tiny model that sees up to four tiles of an image and a thumbnail, and its processor."""
    model, processor = tiny_sa2va(image_size=128, max_patches=4)
    return model.eval().requires_grad_(False), processor


def drawn(size=(100, 60), seed=0):
    """A mask of a few large blocks."""
    blocks = np.random.default_rng(seed).random((3, 5)) < 0.5
    blocks[0, 0], blocks[2, 4] = True, False
    return Image.fromarray(255 * blocks.astype(np.uint8)).resize(size, Image.Resampling.NEAREST)


@pytest.mark.parametrize("size", [(448, 448), (100, 60), (7, 5), (1023, 1), (333, 517)])
@pytest.mark.parametrize("side", [8, 16])
def test_cells_are_those_of_the_official_resize(size, side):
    """`F.interpolate` of float masks, and by hand: the pixel at floor(cell * pixels / cells)."""
    mask = Image.fromarray(255 * np.random.default_rng(0).integers(0, 2, size[::-1], np.uint8))
    cells = region_cells(mask, side)
    pixels = torch.from_numpy(np.array(mask) > 0)
    official = torch.nn.functional.interpolate(pixels[None, None].float(), size=(side, side), mode="nearest")[0, 0]
    assert torch.equal(cells, official.bool())
    rows, columns = ([cell * pixels // side for cell in range(side)] for pixels in size[::-1])
    assert torch.equal(cells, pixels[rows][:, columns])


def test_every_form_of_a_region_is_one_mask():
    pixels = np.zeros((60, 100), dtype=np.uint8)
    pixels[10:40, 20:70] = 1
    expected = Image.fromarray(255 * pixels)
    forms = [pixels, 255 * pixels, pixels.astype(bool), torch.from_numpy(pixels), torch.from_numpy(pixels) > 0]
    forms += [expected, expected.convert("1"), pixels.tolist()]
    forms += [(20, 10, 70, 40), [20.0, 10.0, 70.0, 40.0], np.array([20, 10, 70, 40]), torch.tensor([20, 10, 70, 40])]
    forms += [(19.6, 9.6, 69.6, 40.4)]  # the same centres of pixels
    for form in forms:
        assert region_mask(form, (100, 60)).tobytes() == expected.tobytes(), form


@pytest.mark.parametrize(
    ("region", "reason"),
    [
        (np.ones((60, 99), bool), "region2 is 99 x 60, its image 100 x 60"),
        (Image.new("L", (60, 100), 255), "region2 is 60 x 100, its image 100 x 60"),
        (np.zeros((60, 100), bool), "region2 is empty"),
        (np.full((60, 100), 7, np.uint8), "region2 is not binary: values 7"),
        (np.full((60, 100), 0.5), "region2 is an array of float64"),
        (np.ones((2, 60, 100), bool), "region2 is an array of shape"),
        ((10, 10, 10, 20), "region2 is the box .* in order and inside"),
        ((-1, 10, 10, 20), "region2 is the box .* in order and inside"),
        ((0, 0, 101, 20), "region2 is the box .* in order and inside its image of 100 x 60"),
        ((0, 0, 10), "region2 is not a box of four numbers"),
        ((0, 0, 10, float("nan")), "region2 is not a box of four numbers"),
        ((1, 1, 3, 3), "region2 holds no cell of the 8 x 8"),
        ("mask.png", "region2 is a str"),
        (None, "region2 is "),
    ],
)
def test_what_is_no_region_is_named(tiled, image, region, reason):
    model, processor = tiled
    request = {"image": image, "text": "What is region1?", "processor": processor, "answer": "A box."}
    with pytest.raises(ValueError, match=reason):
        model.segment(**request, regions=[(0, 0, 50, 30), region])


def test_a_pixel_is_in_a_box_where_its_centre_is():
    assert np.array(box_mask((0.5, 0, 2.5, 1), (4, 2))).tolist() == [[255, 255, 0, 0], [0, 0, 0, 0]]


def test_the_prompt_is_the_official_one(tiled):
    """Word for word that of Sa2VA's training, before a question; and where `<image>` stands, that of its inference."""
    _, processor = tiled
    image, regions = Image.new("RGB", (448, 224)), [[0, 0, 448, 112], [0, 0, 56, 112]]
    tokens = 64 * 3  # two tiles and a thumbnail
    clause = (
        f"There are 2 part regions in the picture: region1<vp>{CONTEXT * 32}</vp>, region2<vp>{CONTEXT * 4}</vp>.\n"
    )
    block = f"<img>{CONTEXT * tokens}</img>\n{clause}"
    pixels, blocks = processor.tiles([image], regions=[regions])
    assert blocks == [block]
    assert pixels["region_masks"].sum((1, 2)).tolist() == [32, 4] and pixels["region_counts"].tolist() == [0, 0, 2]
    for text, content in (
        ("What is region1?", f"{block}What is region1?"),
        ("<image>What is region1?", f"{block}What is region1?"),
        ("<image>\nWhat is region1?", f"{block}\nWhat is region1?"),
        ([{"type": "image"}, {"type": "text", "text": "What is region1?"}], f"{block}What is region1?"),
    ):
        ids = processor.encode_chat([{"role": "user", "content": text}], blocks)[0]
        prompt = f"<|im_start|>user\n{content}<|im_end|>\n<|im_start|>assistant\n"
        assert ids == processor.tokenizer(prompt, add_special_tokens=False).input_ids
    # No regions, no clause.
    assert processor.tiles([image], regions=[[]])[1] == processor.tiles([image])[1]


def inputs_of(processor, rows, answers=None):
    """Arguments of `hidden_states` for rows of (image, regions, question), right-padded."""
    pixels, blocks = processor.tiles([image for image, *_ in rows], regions=[regions for _, regions, _ in rows])
    ids = [
        processor.encode_chat([{"role": "user", "content": text}], [block])[0]
        for (*_, text), block in zip(rows, blocks, strict=True)
    ]
    lengths = torch.tensor([[len(own)] for own in ids])
    input_ids = processor.pad(ids)
    return {"input_ids": input_ids, "attention_mask": (torch.arange(input_ids.shape[1]) < lengths).long(), **pixels}


def official_states(model, input_ids, pixel_values, regions):
    """Of one row, by the official arithmetic: all tiles, and each region's cells of the last one, row by row."""
    tiles = model.vlm.model.get_image_features(pixel_values, return_dict=True).pooler_output
    stream = [row for tile in tiles for row in tile]
    side = int(tiles.shape[1] ** 0.5)
    for region in regions:
        pixels = np.asarray(region)
        for y in range(side):
            for x in range(side):
                if pixels[y * pixels.shape[0] // side, x * pixels.shape[1] // side]:
                    stream.append(tiles[-1].reshape(side, side, -1)[y, x])
    embeddings = model.get_input_embeddings()(input_ids).clone()
    places = torch.nonzero(input_ids[0] == model.config.image_token_id)[:, 0]
    assert len(places) == len(stream)
    for place, row in zip(places, stream, strict=True):
        embeddings[0, place] = row
    return model.vlm.model.language_model(inputs_embeds=embeddings).last_hidden_state


def test_states_are_those_of_the_official_arithmetic(tiled, image):
    """Of rows with regions beside one without, and of each alone."""
    model, processor = tiled
    regions = [drawn(), drawn(seed=1)]
    rows = [
        (image, regions, "Describe region1 and region2."),
        (image.resize((60, 60)), [], "Hello?"),
        (image.rotate(180), regions[:1], "Please segment region1, which is a long request."),
    ]
    batch = inputs_of(processor, rows)
    states = model.hidden_states(**batch)
    for number, row in enumerate(rows):
        alone = inputs_of(processor, [row])
        expected = official_states(model, alone["input_ids"], alone["pixel_values"], row[1])
        length = expected.shape[1]
        close(states[number, :length], expected[0])
        close(model.hidden_states(**alone), expected)


def test_regions_reach_what_is_written_and_drawn(tiled, image):
    """Batched with an image without any, left-padded, generated or given; and in beams, where rows are repeated."""
    model, processor = tiled
    images, texts = [image, image.resize((60, 60))], ["Please segment region1.", "What?"]
    regions, answer = [[drawn(), (0, 0, 60, 60)], []], "Sure, [SEG]."
    request = {"images": images, "text": texts, "processor": processor, "regions": regions}
    given = model.segment(**request, answer=answer)
    written = model.segment(**request, logits_processor=forced(processor, answer, answer))
    for one, other in zip(written, given, strict=True):
        close(one.mask_logits, other.mask_logits, 1e-4)
    alone = model.segment(image=image, text=texts[0], processor=processor, answer=answer, regions=regions[0])
    without = model.segment(image=image, text=texts[0], processor=processor, answer=answer)
    close(alone.low_res_logits, given[0].low_res_logits)
    assert (alone.low_res_logits - without.low_res_logits).abs().max() > 1e-4
    options = {"num_beams": 2, "max_new_tokens": 4}
    beams = model.segment(**request, **options)
    assert [own.text for own in beams] == [
        model.segment(image=image, text=text, processor=processor, regions=own, **options).text
        for image, text, own in zip(images, texts, regions, strict=True)
    ]


@pytest.mark.parametrize("is_written", [False, True])
def test_a_dialogue_goes_on_about_regions(tiled, image, is_written):
    """As a pass over the whole of it, though the image and its regions are read once."""
    model, processor = tiled

    def said(answer):
        return {"logits_processor": forced(processor, answer)} if is_written else {"answer": answer}

    regions = [drawn()]
    chat = model.chat("What is region1?", image=image, processor=processor, regions=regions, **said("A box."))
    result = chat.ask("Please segment region1.", **said("Sure, [SEG]."))
    pixels, blocks = processor.tiles([image], regions=[regions])
    input_ids = torch.tensor([processor.encode_chat(chat.messages, blocks)[0]])
    assert len(chat.messages) == 4 and int((input_ids == processor.seg_token_id).sum()) == 1
    whole = model.encode(input_ids, **pixels, grounding_pixel_values=processor.grounding_inputs([image]))
    close(result.low_res_logits, model.decode_masks(whole)[0])


def test_gradients_of_cells_add_up_with_and_without_checkpointing(image):
    """And those of the projector are those of an embedding stream that is made by hand."""
    model, processor = tiny_sa2va(image_size=128)
    model.train()
    batch = inputs_of(processor, [(image, [drawn()], "What is region1?")])
    batch["labels"] = batch["input_ids"].masked_fill(batch["input_ids"] == model.config.image_token_id, -100)
    projector = model.vlm.model.multi_modal_projector
    found = []
    for is_checkpointing in (False, True):
        if is_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.zero_grad()
        model(**batch).loss.backward()
        found.append([parameter.grad.clone() for parameter in projector.parameters()])
    model.zero_grad()
    states = official_states(model, batch["input_ids"], batch["pixel_values"], [drawn()])
    targets = torch.nn.functional.pad(batch["labels"], (0, 1), value=-100)[:, 1:]
    logits = model.get_output_embeddings()(states)
    torch.nn.functional.cross_entropy(logits[0], targets[0], ignore_index=-100).backward()
    for plain, checkpointed, parameter in zip(*found, projector.parameters(), strict=True):
        close(plain, checkpointed)
        close(plain, parameter.grad)
        assert plain.abs().max() > 1e-3


def test_what_does_not_go_together_is_refused(tiled, image):
    model, processor = tiled
    batch = inputs_of(processor, [(image, [drawn()], "What?")])
    for change, reason in (
        ({"region_masks": None}, "go together"),
        ({"region_counts": None}, "go together"),
        ({"region_counts": batch["region_counts"] * 2}, "says 2 regions, and there are 1"),
        ({"region_counts": batch["region_counts"][1:]}, "do not go with"),
        ({"region_masks": batch["region_masks"][:, 1:]}, "do not go with"),
        ({"pixel_values": None}, "region_masks are of images"),
    ):
        with pytest.raises(ValueError, match=reason):
            model.hidden_states(**{**batch, **change})
    request = {"processor": processor, "text": "What?"}
    regions = [drawn()]
    with pytest.raises(ValueError, match="a video's frames have none"):
        model.segment(video=[image] * 2, regions=regions, **request)
    for given in ({"images": [image]}, {"video": [image] * 2}, {}):
        with pytest.raises(ValueError, match="chat takes regions of a single `image`"):
            model.chat("What?", **given, processor=processor, regions=regions)
    for alone in ((0, 0, 8, 8), regions[0], np.ones(image.size[::-1], bool), torch.ones(image.size[::-1]), None, 5):
        with pytest.raises(ValueError, match=r"a list of masks and boxes, such as \[\(x0, y0, x1, y1\)\].*; got"):
            model.segment(images=[image], regions=[alone], **request)
    with pytest.raises(ValueError, match="region2 is a NoneType, neither a mask nor a box"):
        model.segment(image=image, regions=[*regions, None], **request)
    with pytest.raises(ValueError, match="1 images and regions of 2 images"):
        model.segment(images=[image], regions=[regions, []], **request)
    with pytest.raises(ValueError, match="still images"):
        processor.tiles([image], clip=True, regions=[regions])
    with pytest.raises(ValueError, match="only the processor may write"):
        model.segment(image=image, processor=processor, text="What is <vp>?")
    with pytest.raises(ValueError, match="region_masks"):
        model.segment(image=image, region_masks=batch["region_masks"], **request)
    # Nothing is left behind of what went wrong.
    assert not model.vlm.model.multi_modal_projector._forward_hooks


def test_qwen_and_tokenizers_without_vp_have_no_regions(tiled, image):
    model, processor = tiny_sa2va(image_size=128, family="qwen2_5_vl")
    regions = [drawn()]
    with pytest.raises(ValueError, match="Regions are InternVL's"):
        model.segment(image=image, text="What?", processor=processor, regions=regions)
    batch = {"input_ids": torch.tensor([[1]]), "pixel_values": torch.zeros((1, 1))}
    with pytest.raises(ValueError, match="Regions are InternVL's"):
        model.hidden_states(**batch, region_masks=torch.ones((1, 8, 8)), region_counts=torch.tensor([1]))
    without = [token for token in SPECIAL_TOKENS if "vp" not in token]
    processor = Sa2VAProcessor(tiled[1].image_processor, tiny_tokenizer(without), image_seq_length=64)
    with pytest.raises(ValueError, match="does not hold '<vp>' as one token"):
        processor.tiles([image], regions=[regions])


def test_every_feature_stands_once_and_once_more_for_each_region_with_its_cell():
    generator = torch.Generator().manual_seed(0)
    features = torch.arange(3 * 16.0).reshape(3, 16, 1)
    masks = torch.rand((4, 4, 4), generator=generator) < 0.5
    counts = torch.tensor([1, 0, 3])
    stream = with_regions(features, masks, counts)[:, 0]
    occurrences = torch.bincount(stream.long(), minlength=48).reshape(3, 16)
    assert torch.equal(occurrences, 1 + torch.stack([masks[0], torch.zeros(4, 4), masks[1:].sum(0)]).flatten(1).long())
    assert torch.equal(with_regions(features, masks[:0], counts * 0)[:, 0], features.flatten())
