import json
import os
import pickle
import signal
import time
from multiprocessing import get_context

import numpy as np
import pytest
import torch
from datasets import Image as ImageFeature
from peft import LoraConfig, get_peft_model
from PIL import Image
from rows import chat, every_kind, make, mask, noise

from sa2va_trl import SegCollator, tiny_sa2va
from sa2va_trl.data import DatasetError
from sa2va_trl.errors import FeatureError
from sa2va_trl.features import store as module
from sa2va_trl.features.encoding import FeatureCollator, encoder
from sa2va_trl.features.fingerprint import fingerprint, weights_digest
from sa2va_trl.features.rows import KEY, NumberedRows, feature_bytes, row_keys, row_sizes
from sa2va_trl.features.store import FeatureStore
from sa2va_trl.models.configuration import SEG_STATES, SUPPORTED_VLMS
from sa2va_trl.models.outputs import SegFeatures, pair_masks
from sa2va_trl.models.processing import PROMPT_STYLES


QUESTION, ANSWER = "Please segment the {phrase}.", "Sure, [SEG]."


def built(folder, model, processor, dataset, batch_size=2):
    store = FeatureStore(folder, fingerprint(model, processor))
    keys = row_keys(dataset, QUESTION, ANSWER)
    rows = {key: (dataset, index) for index, key in enumerate(keys)}
    encode = encoder(model, SegCollator(processor), lambda batch: batch)
    count = store.build(rows, encode, batch_size, progress=False)
    return store, keys, count


def test_masks_beside_stored_features_are_checked(tmp_path):
    model, processor = tiny_sa2va(image_size=128)
    dataset = every_kind()
    store, keys, _ = built(tmp_path, model, processor, dataset)
    cached = FeatureCollator(SegCollator(processor, allow_worse=False), store)
    row = {**dataset[0], KEY: keys[0]}
    del row["image"]
    cached([row])
    (own,) = row["masks"]
    grey, turned, empty = Image.new("L", own.size, 9), Image.new("L", own.size[::-1]), Image.new("L", own.size)
    for changed, reason in (
        ({"masks": [grey]}, "mask 0 is not binary: values 9"),
        ({"masks": [None]}, "mask 0 is missing"),
        ({"chosen_mask": own, "rejected_mask": grey}, "rejected_mask is not binary"),
        ({"chosen_mask": own, "rejected_mask": turned}, "rejected_mask is 40 x 48, its image 48 x 40"),
        ({"chosen_mask": own, "rejected_mask": own}, "are equal"),
        ({"chosen_mask": own}, "rejected_mask is missing"),
        ({"chosen_mask": empty, "rejected_mask": own}, "worse than the rejected one"),
    ):
        with pytest.raises(DatasetError, match=f"'still' cannot be used: .*{reason}"):
            cached([{**row, **changed}])


def test_numbered_rows_are_those_of_the_data_set():
    dataset = every_kind().select([4, 0, 2])
    rows = NumberedRows(dataset, keys=["a", "b", "c"])
    assert len(rows) == 3
    assert [(row["sample_id"], row["row_index"], row[KEY]) for row in rows.__getitems__([2, 0, 2])] == [
        ("clip", 2, "c"),
        ("empty", 0, "a"),
        ("clip", 2, "c"),
    ]
    assert KEY not in NumberedRows(dataset)[1] and NumberedRows(dataset)[1]["row_index"] == 1


# What is read is what `encode` makes


@pytest.mark.parametrize("seg_state", SEG_STATES)
@pytest.mark.parametrize("family", SUPPORTED_VLMS)
def test_losses_and_gradients_from_the_store_are_those_of_the_pixels(tmp_path, family, seg_state):
    model, processor = tiny_sa2va(image_size=128, family=family)
    model.config.seg_state = seg_state
    model.requires_grad_(False)
    head = [model.text_hidden_fcs, model.grounding_encoder.mask_decoder]
    for part in head:
        part.requires_grad_(True)
    dataset = every_kind()
    store, keys, _ = built(tmp_path, model, processor, dataset)
    collator = SegCollator(processor)
    cached = FeatureCollator(collator, pickle.loads(pickle.dumps(store)))
    # In another order and other company than when they were computed, and one of them twice.
    for order in ([2, 0, 5, 1], [4, 3, 1, 1], [3], [3, 4]):
        rows = [dataset[index] for index in order]
        whole = collator(rows)
        batch = cached([{**row, KEY: keys[index]} for row, index in zip(rows, order, strict=True)])
        assert torch.equal(batch["masks"], whole["masks"])
        assert torch.equal(batch["image_counts"], whole["image_counts"])
        for one, other in zip(batch["original_masks"], whole["original_masks"], strict=True):
            assert torch.equal(one, other)
        results = []
        for training in (False, True):
            model.train(training)
            for inputs in (
                {"features": batch["features"]},
                {k: v for k, v in whole.items() if k not in ("labels", "masks", "original_masks")},
            ):
                model.zero_grad()
                out = model(**inputs)
                target = batch["masks"].float()
                loss = ((out.mask_logits - target) ** 2).mean(dim=(1, 2)).sum() + out.iou_scores.sum()
                if training:
                    loss.backward()
                grads = [p.grad for part in head for p in part.parameters() if p.grad is not None]
                results.append((loss.detach(), out.mask_logits.detach(), out.row_index, out.seg_states, grads))
        for one, other in (results[:2], results[2:]):
            torch.testing.assert_close(one[0], other[0], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(one[1], other[1], rtol=1e-5, atol=1e-5)
            assert torch.equal(one[2], other[2]) and len(one[2]) == len(batch["masks"])
            torch.testing.assert_close(one[3], other[3], rtol=1e-5, atol=1e-5)
        from_store, from_pixels = results[2][4], results[3][4]
        # Every rank gets its gradients, whatever its rows.
        assert len(from_store) == len(from_pixels) > 0
        scale = max(float(g.abs().max()) for g in from_pixels)
        for one, other in zip(from_store, from_pixels, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * max(scale, 1e-3))


def test_half_precision_is_stored_as_it_is(tmp_path):
    model, processor = tiny_sa2va(image_size=128)
    model = model.to(torch.bfloat16).eval()
    dataset = every_kind()
    store = FeatureStore(tmp_path, fingerprint(model, processor))
    keys = row_keys(dataset, QUESTION, ANSWER)

    def prepare(batch):
        return {k: v.to(torch.bfloat16) if v.is_floating_point() else v for k, v in batch.items()}

    encode = encoder(model, SegCollator(processor), prepare)
    store.build({key: (dataset, index) for index, key in enumerate(keys)}, encode, 1, progress=False)
    found, _ = store.read(keys[:1])
    expected = encode([dataset[0]])[0]
    for one, other in zip((found.seg_states, *found.pyramid), (expected.seg_states, *expected.pyramid), strict=True):
        assert one.dtype == other.dtype and torch.equal(one, other)
    sizes = row_sizes(dataset)
    for key, (images, segs) in zip(keys, sizes, strict=True):
        assert store.records[key].size == feature_bytes(model.config, images, segs, 2)


def test_bytes_are_known_beforehand(tmp_path, tiny):
    dataset = every_kind()
    store, keys, _ = built(tmp_path, *tiny, dataset)
    for key, (images, segs) in zip(keys, row_sizes(dataset), strict=True):
        assert store.records[key].size == feature_bytes(tiny[0].config, images, segs, 4)
    assert sum(file.stat().st_size for file in store.folder.glob("*.bin")) == sum(
        record.size for record in store.records.values()
    )


def test_encoding_leaves_the_model_in_its_mode(tmp_path, tiny):
    model = tiny[0].train()
    model.vlm.eval()
    before = [part.training for part in model.modules()]
    built(tmp_path, model, tiny[1], every_kind().select([0]))
    assert before == [part.training for part in model.modules()]


def test_features_take_the_place_of_text_and_nothing_else(tiny):
    model, processor = tiny
    batch = SegCollator(processor)([every_kind()[0]])
    batch.pop("masks"), batch.pop("original_masks")
    features = model(**batch, encode_only=True).features
    with pytest.raises(ValueError, match="stand in for"):
        model(features=features, labels=batch["labels"])
    with pytest.raises(ValueError, match="input_ids"):
        model()


# What rows and weights are known by


def test_a_key_is_of_images_and_text_alone():
    base = {"image": noise(0), "masks": [mask(0)], "phrases": ["vessel"], "sample_id": "a"}
    twin = {**base, "masks": [mask(1)], "sample_id": "b"}
    others = [
        {**base, "image": noise(1)},
        {**base, "phrases": ["artery"]},
        {**base, "images": [noise(0), noise(1)], "image": None, "masks": [mask(0), mask(0)]},
        {**base, "images": [noise(1), noise(0)], "image": None, "masks": [mask(0), mask(0)]},
        {**base, "phrases": [], "messages": chat("It is [SEG].")},
        {**base, "phrases": [], "messages": chat("Here: [SEG].")},
    ]
    keys = row_keys(make([base, twin, *others]), QUESTION, ANSWER)
    assert keys[0] == keys[1]
    assert len(set(keys)) == len(keys) - 1
    assert row_keys(make([base]), "Where is the {phrase}?", ANSWER) != keys[:1]
    assert row_keys(make([base]), QUESTION, "It is [SEG].") != keys[:1]


def test_a_key_follows_the_content_of_a_file(tmp_path):
    file = tmp_path / "image.png"
    noise(0).save(file)
    dataset = make([{"masks": [mask(0)], "phrases": ["vessel"], "sample_id": "a"}]).remove_columns("image")
    dataset = dataset.add_column("image", [str(file)]).cast_column("image", ImageFeature())
    first = row_keys(dataset, QUESTION, ANSWER)
    noise(1).save(file)
    assert row_keys(dataset, QUESTION, ANSWER) != first


BEFORE = (
    "vlm.model.vision_tower",
    "vlm.model.multi_modal_projector",
    "vlm.model.language_model.embed_tokens",
    "vlm.model.language_model.layers.1",
    "grounding_encoder.sam2_model.image_encoder",
)
AFTER = ("vlm.lm_head", "text_hidden_fcs", "sam_mask_decoder", "no_mem_embed")


@pytest.mark.parametrize("part", [*BEFORE, *AFTER])
def test_the_digest_follows_every_weight_before_the_cut_and_no_other(tiny, part):
    model, _ = tiny
    before = weights_digest(model)
    weight = [parameter for name, parameter in model.named_parameters() if part in name][-1]
    flat = weight.data.view(-1)
    flat[-1] = torch.nextafter(flat[-1], torch.tensor(float("inf")))
    assert (weights_digest(model) != before) == (part in BEFORE)


def test_an_adapter_counts_where_it_acts_before_the_cut(tiny):
    model, processor = tiny
    plain = fingerprint(model, processor)
    head = get_peft_model(model, LoraConfig(target_modules=["text_hidden_fcs.0"]))
    assert fingerprint(head, processor) == plain
    head.unload()
    lora = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    with_lora = fingerprint(lora, processor)
    assert with_lora != plain
    layer = next(part for part in lora.modules() if hasattr(part, "scaling") and part.scaling)
    layer.scaling["default"] *= 2
    assert fingerprint(lora, processor) != with_lora
    layer.scaling["default"] /= 2
    with lora.disable_adapter():
        assert fingerprint(lora, processor) != with_lora
    assert fingerprint(lora, processor) == with_lora


def test_the_fingerprint_follows_the_processor_and_the_type(tiny):
    model, processor = tiny
    plain = fingerprint(model, processor)
    assert json.loads(json.dumps(plain)) == plain
    processor.tokenizer(["a", "bcd"], padding=True)
    processor.pad([[1], [1, 2]])
    assert fingerprint(model, processor) == plain
    assert fingerprint(model, processor, dtype=torch.bfloat16) != plain
    assert fingerprint(model, processor, autocast="bfloat16") != plain
    processor.grounding_image_size //= 2
    assert fingerprint(model, processor) != plain
    processor.grounding_image_size *= 2
    processor.image_processor.image_mean = [0.5] * 3
    assert fingerprint(model, processor) != plain


def test_the_fingerprint_follows_the_state_and_the_prompts(tmp_path, any_tiny):
    model, processor = any_tiny
    dataset = every_kind().select([0, 1])
    prints, states = [], {}
    for seg_state in SEG_STATES:
        model.config.seg_state = seg_state
        for style in PROMPT_STYLES:
            processor.prompt_style = style
            store, keys, count = built(tmp_path, model, processor, dataset)
            if store.prints in prints:
                # InternVL's official prompts are those of its training.
                assert model.config.vlm_config.model_type == "internvl" and style == "official" and count == 0
                continue
            assert count == 2
            prints.append(store.prints)
            states[seg_state, style] = store.read(keys)[0].seg_states
    assert len(prints) == (2 if model.config.vlm_config.model_type == "internvl" else 4)
    different = list(states.values())
    assert not any(torch.equal(one, other) for i, one in enumerate(different) for other in different[:i])


def test_other_weights_have_other_files(tmp_path, tiny):
    model, processor = tiny
    dataset = every_kind().select([0, 1])
    first, keys, count = built(tmp_path, model, processor, dataset)
    assert count == 2 and built(tmp_path, model, processor, dataset)[2] == 0
    with torch.no_grad():
        model.vlm.model.language_model.layers[0].mlp.up_proj.weight[0, 0] += 1
    second, _, count = built(tmp_path, model, processor, dataset)
    assert count == 2 and second.folder != first.folder
    assert not torch.equal(first.read(keys)[0].seg_states, second.read(keys)[0].seg_states)
    # Weights that do not change features leave them where they are.
    with torch.no_grad():
        model.text_hidden_fcs[0].weight.add_(1)
    assert built(tmp_path, model, processor, dataset)[2] == 0


# Files. Rows are numbers here, and `encode` writes down which it was asked for.


class Numbers:
    """Stands in for a data set: row `i` is `{"number": i}`."""

    def __getitem__(self, index):
        return {"number": index}


def numbered(row):
    """Made-up features of a row: 1 or 2 `[SEG]`s on 0 to 2 images."""
    number = row["number"]
    rng = torch.Generator().manual_seed(number)
    segs, images = 1 + number % 2, number % 3
    states = torch.randn(segs, 5, generator=rng)
    return states, tuple(torch.randn(images, 2, side, side, generator=rng) for side in (8, 4, 2))


def encode_numbers(rows):
    parts = [numbered(row) for row in rows]
    segs, images = [len(states) for states, _ in parts], [len(levels[0]) for _, levels in parts]
    pairs = pair_masks(torch.arange(len(rows)).repeat_interleave(torch.tensor(segs)), torch.tensor(images))
    pyramid = tuple(torch.cat([levels[level] for _, levels in parts]) for level in range(3))
    return SegFeatures(torch.cat([states for states, _ in parts]), *pairs, pyramid), segs, images


COUNT = 12
ROWS = {f"key{number}": (Numbers(), number) for number in range(COUNT)}


def store(folder):
    return FeatureStore(folder, {"weights": "some"})


def build(folder, log=None, pause=0.0, die_after=None, batch_size=2):
    """Returns the store and the rows that were computed."""
    asked = []

    def encode(rows):
        time.sleep(pause)
        if die_after is not None and len(asked) >= die_after:
            os.kill(os.getpid(), signal.SIGKILL)
        asked.extend(row["number"] for row in rows)
        if log is not None:
            with open(log, "a") as file:
                file.writelines(f"{row['number']}\n" for row in rows)
        return encode_numbers(rows)

    found = store(folder)
    found.build(ROWS, encode, batch_size, progress=False)
    return found, asked


def assert_right(found, keys=ROWS):
    for key in keys:
        features, images = found.read([key])
        states, levels = numbered({"number": ROWS[key][1]})
        assert torch.equal(features.seg_states, states)
        assert all(torch.equal(one, other) for one, other in zip(features.pyramid, levels, strict=True))
        assert images.tolist() == [len(levels[0])]
    order = list(keys)[::-1]
    features, _ = found.read(order)
    expected, _, _ = encode_numbers([{"number": ROWS[key][1]} for key in order])
    for name in ("seg_states", "seg_index", "image_index", "row_index"):
        assert torch.equal(getattr(features, name), getattr(expected, name)), name
    assert all(torch.equal(one, other) for one, other in zip(features.pyramid, expected.pyramid, strict=True))


def spawn(*args):
    # Not a fork of this process: one that has computed with several threads deadlocks in torch.
    context = get_context("forkserver")
    context.set_forkserver_preload(["sa2va_trl.features.encoding"])
    process = context.Process(target=build, args=args)
    process.start()
    return process


def test_rows_are_computed_once(tmp_path):
    found, asked = build(tmp_path)
    assert asked == list(range(COUNT))
    assert_right(found)
    again, asked = build(tmp_path)
    assert asked == []
    assert_right(again)
    with pytest.raises(FeatureError, match="no features of the row with key 'other'"):
        again.read(["key1", "other"])


@pytest.mark.parametrize("die_after", [0, 2, 8])
def test_a_killed_run_is_taken_up_where_it_ended(tmp_path, die_after):
    process = spawn(tmp_path, None, 0.0, die_after)
    process.join(30)
    assert process.exitcode == -signal.SIGKILL
    # Worse than that: killed while it wrote.
    for file in store(tmp_path).folder.glob("part-*"):
        with open(file, "ab") as part:
            part.write(file.read_bytes()[:17])
    found, asked = build(tmp_path)
    assert asked == list(range(die_after, COUNT))
    assert_right(found)
    assert build(tmp_path)[1] == []


def files(folder, end):
    return sorted(store(folder).folder.glob(f"*.{end}"))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("end", ["bin", "jsonl"])
def test_a_damaged_row_is_computed_again_and_only_that(tmp_path, end, seed):
    build(tmp_path)
    (file,) = files(tmp_path, end)
    content = bytearray(file.read_bytes())
    place = np.random.default_rng(seed).integers(len(content))
    content[place] ^= 1 << seed
    file.write_bytes(content)
    found, asked = build(tmp_path)
    # A damaged line end takes the next line with it, and a letter of a name in the line's own grammar nothing.
    assert 1 <= len(asked) <= 2
    assert_right(found)
    assert build(tmp_path)[1] == []


@pytest.mark.parametrize("end", ["bin", "jsonl"])
def test_a_file_that_was_cut_off_costs_its_last_rows(tmp_path, end):
    build(tmp_path)
    (file,) = files(tmp_path, end)
    os.truncate(file, file.stat().st_size // 2)
    found, asked = build(tmp_path)
    assert 0 < len(asked) < COUNT and asked == list(range(COUNT))[-len(asked) :]
    assert_right(found)


def test_a_lost_file_costs_its_rows(tmp_path):
    build(tmp_path)
    files(tmp_path, "bin")[0].unlink()
    found, asked = build(tmp_path)
    assert len(asked) == COUNT
    assert_right(found)
    assert len(files(tmp_path, "jsonl")) == 1  # what described the lost file is gone too


def test_of_two_builders_one_computes_and_both_read(tmp_path):
    log = tmp_path / "log"
    others = [spawn(tmp_path, log, 0.1), spawn(tmp_path, log, 0.1)]
    found, _ = build(tmp_path, log, 0.1)
    for other in others:
        other.join(60)
        assert other.exitcode == 0
    assert sorted(map(int, log.read_text().split())) == list(range(COUNT))
    assert_right(found)


def test_a_dead_builder_holds_nobody_up(tmp_path):
    process = spawn(tmp_path, None, 0.0, 4)
    process.join(30)
    assert (store(tmp_path).folder / "lock").exists()
    start = time.monotonic()
    assert_right(build(tmp_path)[0])
    assert time.monotonic() - start < 5


def test_too_little_room_is_said_before_anything_is_computed(tmp_path, monkeypatch):
    monkeypatch.setattr(FeatureStore, "free", lambda self: 1234)
    asked = []
    with pytest.raises(FeatureError, match="24,000 bytes are needed and 1,234 bytes are free"):
        store(tmp_path).build(ROWS, asked.append, 2, need=lambda keys: 2000 * len(keys), progress=False)
    assert asked == [] and files(tmp_path, "bin") == []


def test_a_disk_that_fills_up_leaves_nothing_corrupt(tmp_path, monkeypatch):
    room = 5000
    write_all = module._write_all

    def limited(file, content):
        nonlocal room
        if len(content) > room:
            write_all(file, memoryview(content)[:room])
            raise OSError(28, "No space left on device")
        room -= len(content)
        return write_all(file, content)

    monkeypatch.setattr(module, "_write_all", limited)
    with pytest.raises(FeatureError, match=r"No space left on device.*bytes are needed and .*bytes are free"):
        store(tmp_path).build(ROWS, encode_numbers, 2, need=lambda keys: len(keys), progress=False)
    written = store(tmp_path).open().records
    assert 0 < len(written) < COUNT
    assert_right(store(tmp_path).open(), list(written))
    assert files(tmp_path, "bin")[0].stat().st_size == sum(record.size for record in written.values())
    room = 10**9
    found, asked = build(tmp_path)
    assert len(asked) == COUNT - len(written)
    assert_right(found)


def test_an_error_of_the_model_is_the_error(tmp_path):
    def encode(rows):
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        store(tmp_path).build(ROWS, encode, 2, progress=False)
    assert_right(build(tmp_path)[0])


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FeatureError, match="cache_dir"):
        build(tmp_path / "file")
