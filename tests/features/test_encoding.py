import pickle

import pytest
import torch
from feature_stores import ANSWER, QUESTION, built
from peft import LoraConfig, get_peft_model
from PIL import Image
from rows import every_kind

from sa2va_trl import SegCollator, tiny_sa2va
from sa2va_trl.batches import CPU_ROWS
from sa2va_trl.data import DatasetError
from sa2va_trl.features.encoding import FeatureCollator, RowEncoder, encoder, to_model, unwrapped
from sa2va_trl.features.fingerprint import fingerprint
from sa2va_trl.features.rows import KEY, feature_bytes, item_sizes, row_keys, row_sizes
from sa2va_trl.features.store import FeatureStore
from sa2va_trl.models.configuration import SEG_STATES, SUPPORTED_VLMS


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


@pytest.mark.parametrize("part", ["all", "VLM"])
def test_half_precision_is_stored_as_it_is(tmp_path, part):
    model, processor = tiny_sa2va(image_size=128)
    (model if part == "all" else model.vlm).to(torch.bfloat16)
    model.eval()
    dataset = every_kind()
    store = FeatureStore(tmp_path, fingerprint(model, processor))
    keys = row_keys(dataset, QUESTION, ANSWER)
    encode = encoder(model, SegCollator(processor), lambda batch: to_model(model, batch))
    store.build({key: (dataset, index) for index, key in enumerate(keys)}, encode, 1, progress=False)
    found, _ = store.read(keys[:1])
    expected = encode([dataset[0]])[0]
    for one, other in zip((found.seg_states, *found.pyramid), (expected.seg_states, *expected.pyramid), strict=True):
        assert one.dtype == other.dtype and torch.equal(one, other)
    assert found.seg_states.dtype == torch.bfloat16 and item_sizes(model) == (2, 2 if part == "all" else 4)
    sizes = row_sizes(dataset)
    for key, (images, segs) in zip(keys, sizes, strict=True):
        assert store.records[key].size == feature_bytes(model.config, images, segs, *item_sizes(model))


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


def test_rows_go_through_the_model_in_batches(tmp_path, tiny):
    model, processor = tiny
    dataset = every_kind()
    store, keys, _ = built(tmp_path, model, processor, dataset)
    for features in (None, (store, keys)):
        rows = RowEncoder(model, processor, dataset, features, batch_size=4, progress=False)
        batches = list(rows.batches("some"))
        assert [(start, len(decoded), len(masks)) for start, decoded, masks, _ in batches] == [(0, 4, 4), (4, 2, 2)]
        for start, decoded, masks, encoded in batches:
            numbers = range(start, start + len(decoded))
            assert [row["sample_id"] for row in decoded] == [dataset[number]["sample_id"] for number in numbers]
            again, targets, expected = rows(numbers)
            assert torch.equal(encoded.seg_states, expected.seg_states)
            assert [len(own) for own in masks] == [len(own) for own in targets] == [len(row["masks"]) for row in again]


def test_what_wraps_a_model_is_taken_off(tiny):
    model, _ = tiny
    assert unwrapped(model) is unwrapped(torch.nn.DataParallel(model)) is model
    adapted = get_peft_model(model, LoraConfig(target_modules=["text_hidden_fcs.0"]))
    assert unwrapped(adapted) is unwrapped(torch.nn.DataParallel(adapted)) is adapted


def test_rows_may_be_changed_before_they_are_read():
    model, processor = tiny_sa2va(image_size=128)
    rows = RowEncoder(model.eval(), processor, every_kind(), progress=False)
    taller = rows.changed(
        lambda images, masks, rng: ([i.resize((9, 21)) for i in images], [m.resize((9, 21)) for m in masks])
    )
    decoded, targets, encoded = rows([0])
    own, changed, other = taller([0])
    assert own[0]["sample_id"] == decoded[0]["sample_id"] and own[0]["image"].size == decoded[0]["image"].size
    assert targets[0].shape[-2:] == own[0]["image"].size[::-1] and changed[0].shape[-2:] == (21, 9)
    assert not torch.allclose(encoded.seg_states, other.seg_states)
    assert torch.equal(rows([0])[2].seg_states, encoded.seg_states)  # as they were


def by_size(network, dataset, order, **options):
    """What an encoder makes of the rows in this order, with what is drawn from it, and the rows of its passes."""
    model, processor = network
    encode = RowEncoder(model, processor, dataset, progress=False, by_size=True, **options)
    made, true = [], encode._encode
    encode._encode = lambda rows: (made.append([row["sample_id"] for row in rows]), true(rows))[1]
    rows, masks, features = encode(order)
    with torch.no_grad():
        return rows, masks, model(features=features), made


@pytest.mark.parametrize("family", SUPPORTED_VLMS)
def test_rows_of_like_size_go_together_and_nothing_else_changes(family):
    model, processor = network = tiny_sa2va(image_size=128, family=family)
    model.eval()
    dataset, order = every_kind(), [4, 2, 0, 3, 5, 1]
    rows, masks, features = RowEncoder(model, processor, dataset, batch_size=6, progress=False)(order)
    with torch.no_grad():
        whole = model(features=features)
    for size in (2, 6):
        same_rows, same_masks, drawn, made = by_size(network, dataset, order, batch_size=size)
        assert [row["sample_id"] for row in same_rows] == [row["sample_id"] for row in rows]
        assert all(torch.equal(one, other) for one, other in zip(same_masks, masks, strict=True))
        assert torch.equal(drawn.row_index, whole.row_index) and len(whole.row_index) > len(rows)
        torch.testing.assert_close(drawn.mask_logits, whole.mask_logits, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(drawn.iou_scores, whole.iou_scores, rtol=1e-5, atol=1e-5)
        # A text has no image, and so nothing of its size.
        assert made[-1] == ["text"] and made[0] != order and all(len(names) <= size for names in made)


def test_auto_is_a_few_rows_on_a_cpu_and_refused_where_batches_are_fixed(tiny):
    assert RowEncoder(*tiny, every_kind(), batch_size="auto", by_size=True).batch_size == CPU_ROWS
    with pytest.raises(ValueError, match="give a number"):
        RowEncoder(*tiny, every_kind(), batch_size="auto")
