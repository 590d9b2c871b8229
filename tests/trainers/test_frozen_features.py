import copy

import pytest
import torch
from datasets import concatenate_datasets
from peft import LoraConfig, get_peft_model
from region_rows import rows_with_regions
from rows import every_kind, noise
from transformers import TrainerCallback

from sa2va_trl import SegCollator, SegSFTConfig, SegSFTTrainer, tiny_sa2va
from sa2va_trl.data import synthetic_dataset
from sa2va_trl.data.augment import Augmentation
from sa2va_trl.errors import FeatureError
from sa2va_trl.features import encoding, packed_masks
from sa2va_trl.features.encoding import FeatureCollator
from sa2va_trl.features.store import FeatureStore


TINY = tiny_sa2va(image_size=128)


@pytest.fixture(scope="module")
def data():
    train = synthetic_dataset(num_videos=1, frames_per_video=6, size=64)
    return train, synthetic_dataset(num_videos=1, frames_per_video=3, size=64, first_video=2)


def trainer(folder, data, mode="on", model=None, data_collator=None, callbacks=None, **options):
    defaults = {
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "max_steps": 5,
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 2,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "num_points": 0,
        "trainable": "head",
        "lm_weight": 0.0,
    }
    if mode != "off":
        defaults["cache_dir"] = str(folder / "cache")
    return SegSFTTrainer(
        model=copy.deepcopy(TINY[0]) if model is None else model,
        args=SegSFTConfig(str(folder / mode), cache_features=mode, **{**defaults, **options}),
        train_dataset=data[0],
        eval_dataset=data[1],
        processing_class=TINY[1],
        data_collator=data_collator,
        callbacks=callbacks,
    )


def log_of(run):
    drop = ("lm_loss", "token_accuracy", "runtime", "per_second", "total_flos", "num_tokens")
    return [
        {name: value for name, value in entry.items() if not any(part in name for part in drop)}
        for entry in run.state.log_history
    ]


def assert_same(one, other, tolerance=1e-4):
    assert len(one) == len(other) > 0
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            assert a[name] == pytest.approx(b[name], rel=tolerance, abs=tolerance / 100), name


def count_encodings(run):
    """Images that SAM 2's encoder sees from now on."""
    seen = []
    encoder = run.accelerator.unwrap_model(run.model).grounding_encoder.sam2_model.image_encoder
    encoder.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    return seen


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mask_size": 48, "skeleton_recall_weight": 1.0, "cldice_weight": 0.5, "iou_weight": 1.0},
        {"dataset_repeats": 3, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 1},
        {"dataloader_num_workers": 1, "dataloader_persistent_workers": True, "bf16": True},
    ],
    ids=["plain", "losses", "repeats", "workers-that-stay-bf16"],
)
def test_training_from_the_cache_is_training_without(tmp_path, data, options):
    runs = []
    for mode in ("off", "on"):
        run = trainer(tmp_path, data, mode, eval_strategy="steps", eval_steps=2, **options)
        seen = count_encodings(run)
        run.train()
        runs.append((log_of(run), {n: p.detach() for n, p in run.model.named_parameters() if p.requires_grad}, seen))
    (log, weights, _), (cached_log, cached_weights, seen) = runs
    # In half precision a row's last bits depend on the rows beside it.
    assert_same(log, cached_log, 3e-2 if options.get("bf16") else 1e-4)
    assert any("eval_dice" in entry for entry in log)
    if not options.get("bf16"):
        for name, weight in weights.items():
            # A tenth of one of Adam's steps, which are as long for the smallest of gradients.
            torch.testing.assert_close(weight, cached_weights[name], rtol=1e-4, atol=1e-4)
    # Every row of both data sets went through the encoder once, whatever the epochs and repeats.
    assert sum(seen) == len(data[0]) + len(data[1])
    # What is there serves the next run, and its evaluation on its own.
    run = trainer(tmp_path, data, "auto", **options)
    assert run.features is not None
    seen = count_encodings(run)
    run.evaluate()
    run.train()
    assert seen == []


def test_rows_of_every_kind_train_from_the_cache(tmp_path):
    rows = every_kind()
    held_out = rows.select([0]).map(lambda row: {"sample_id": "other", "image": noise(7)})
    runs = []
    for mode in ("off", "on"):
        run = trainer(tmp_path, (rows, held_out), mode, max_steps=12, per_device_train_batch_size=1)
        run.train()
        runs.append(log_of(run))
    assert_same(*runs)


def test_rows_with_regions_train_from_the_cache(tmp_path):
    """In views whose regions move with the image, beside rows without; a row whose regions leave is shown as it is."""
    rows = rows_with_regions()
    held_out = rows.select([1]).map(lambda row: {"sample_id": "other", "image": noise(7)})
    augmentation = {"flip": 0.5, "shift": 0.4}
    collator = SegCollator(TINY[1], augmentation=Augmentation(**augmentation), views=2, seed=3)
    options = {"max_steps": 5, "seed": 3, "eval_strategy": "steps", "eval_steps": 5}
    without = trainer(tmp_path, (rows, held_out), "off", data_collator=collator, **options)
    without.train()
    cached = trainer(tmp_path, (rows, held_out), "on", augmentation=augmentation, cache_views=2, **options)
    cached.train()
    assert_same(log_of(without), log_of(cached))
    # The features of other regions are others.
    whole = rows.map(lambda row: {"regions": [[0, 0, 48, 40]] if row["regions"] else None})
    others = trainer(tmp_path, (whole, held_out), "on", augmentation=augmentation, cache_views=2, **options)
    assert not set(others._keys[whole._fingerprint][:3]) & set(cached._keys[rows._fingerprint])


def test_an_evaluation_before_training_sees_the_pixels(tmp_path, data):
    run = trainer(tmp_path, data, "on")
    cold = run.evaluate()
    assert "eval_lm_loss" in cold
    run.train()
    assert "eval_lm_loss" not in run.evaluate()
    # Rows that come later have no features; those that the trainer has, have.
    assert "eval_lm_loss" not in run.evaluate(data[1])
    assert "eval_lm_loss" in run.evaluate(data[1].select([2, 1, 0]))


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, data):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 2

    options = {"save_strategy": "steps", "save_steps": 2}
    whole = trainer(tmp_path, data, "on", **options)
    whole.train()
    other = tmp_path / "other"
    trainer(other, data, "on", callbacks=[Stop()], **options).train()
    resumed = trainer(other, data, "on", **options)
    resumed.train(resume_from_checkpoint=str(other / "on" / "checkpoint-2"))
    assert_same(log_of(whole)[:-1], log_of(resumed)[:-1])


def test_weights_that_change_before_training_starts_are_noticed(tmp_path, data):
    run = trainer(tmp_path, data, "on")
    run.train()
    again = trainer(tmp_path, data, "on")
    with torch.no_grad():
        for parameter in again.model.get_base_model().vlm.parameters():
            parameter.mul_(1.01)
    seen = count_encodings(again)
    again.train()
    assert sum(seen) == len(data[0]) + len(data[1])
    fresh = copy.deepcopy(TINY[0])
    with torch.no_grad():
        for parameter in fresh.vlm.parameters():
            parameter.mul_(1.01)
    without = trainer(tmp_path, data, "off", model=fresh)
    without.train()
    assert_same(log_of(without), log_of(again))


AUGMENTATION = {"flip": 0.5, "rotation": 20.0, "gamma": 0.5}


def test_cached_views_take_turns_and_are_what_the_collator_shows(tmp_path, data):
    options = {"max_steps": 15, "eval_strategy": "steps", "eval_steps": 9, "seed": 3}
    collator = SegCollator(TINY[1], augmentation=Augmentation(**AUGMENTATION), views=2, seed=3)
    without = trainer(tmp_path, data, "off", data_collator=collator, **options)
    without.train()
    logs = []
    for computed in (2 * len(data[0]) + len(data[1]), 0):
        cached = trainer(tmp_path, data, "on", augmentation=AUGMENTATION, cache_views=2, **options)
        seen = count_encodings(cached)
        cached.train()
        assert sum(seen) == computed
        assert_same(log_of(without), log_of(cached))
        logs.append(log_of(cached))
    plain = trainer(tmp_path, data, "on", **options)
    plain.train()
    assert log_of(plain)[0]["loss"] != pytest.approx(logs[0][0]["loss"], rel=1e-3)


def test_views_need_augmentation_and_a_cache(tmp_path, data):
    for mode, options in (
        ("on", {}),
        ("on", {"augmentation": {"flip": 0.0}}),
        ("off", {"augmentation": AUGMENTATION}),
    ):
        with pytest.raises(ValueError, match="cache_views"):
            trainer(tmp_path, data, mode, cache_views=2, **options)
    run = trainer(tmp_path, data, "auto", augmentation=AUGMENTATION, cache_views=2, trainable="stage1")
    assert run.features is None and run.data_collator.views is None


REASONS = {
    "lora": ({"trainable": "stage1"}, "weights before the mask head train"),
    "full": ({"trainable": "full"}, "weights before the mask head train"),
    "augmentation": ({"augmentation": {"flip": 0.5}}, "augmentation"),
    "language loss": ({"lm_weight": 0.5}, "lm_weight=0.5"),
    "questions": ({"question_templates": ["A {phrase}?", "Which {phrase}?"]}, "2 question_templates"),
    "answers": ({"answer_templates": ["[SEG]", "It is [SEG]"]}, "2 answer_templates"),
}


@pytest.mark.parametrize(("options", "reason"), REASONS.values(), ids=REASONS)
def test_what_needs_the_pixels_is_named(tmp_path, data, log, options, reason):
    with pytest.raises(ValueError, match=f"(?s)cache_features=on is not possible.*{reason}"):
        trainer(tmp_path, data, "on", **options)
    run = trainer(tmp_path, data, "auto", **options)
    assert run.features is None and isinstance(run.data_collator, SegCollator)
    (line,) = [line for line in log.messages if "cache_features" in line]
    assert line.startswith("cache_features=auto: off") and reason.split("=")[0] in line
    assert not (tmp_path / "cache").exists()


def test_auto_says_what_it_does_and_what_it_takes(tmp_path, data, log):
    run = trainer(tmp_path, data, "auto")
    assert isinstance(run.data_collator, FeatureCollator)
    said = log.text
    assert "cache_features=auto: on" in said and "9 to compute" in said and str(run.features.folder) in said
    run.train()
    stored = sum(file.stat().st_size for file in run.features.folder.glob("*.bin"))
    assert f"{stored / 2**20:,.1f} MiB to write" in said


def test_dropout_and_transforms_before_the_head_are_named(tmp_path, data):
    lora = LoraConfig(r=2, lora_dropout=0.1, target_modules=r".*language_model.*q_proj")
    frozen = get_peft_model(copy.deepcopy(TINY[0]), lora)
    frozen.requires_grad_(False)
    frozen.get_base_model().text_hidden_fcs.requires_grad_(True)
    with pytest.raises(ValueError, match="dropout"):
        trainer(tmp_path, data, "on", model=frozen, trainable=None)
    changed = data[0].with_transform(lambda rows: rows)
    with pytest.raises(ValueError, match="(format|transform)"):
        trainer(tmp_path, (changed, data[1]), "on")
    other = SegCollator(TINY[1], questions=["What is the {phrase}?"])
    with pytest.raises(ValueError, match="other question_templates"):
        trainer(tmp_path, data, "on", data_collator=other)


def test_too_little_room(tmp_path, data, log, monkeypatch):
    monkeypatch.setattr(FeatureStore, "free", lambda self: 1000)
    with pytest.raises(FeatureError, match=r"cache_features=on: .* bytes are needed .* 1,000 can be written"):
        trainer(tmp_path, data, "on")
    run = trainer(tmp_path, data, "auto")
    assert run.features is None and "no room" in log.text
    run.train()


def test_options_that_mean_nothing(tmp_path):
    with pytest.raises(ValueError, match="cache_features must be one of auto, on, off"):
        SegSFTConfig(str(tmp_path), use_cpu=True, cache_features="yes")
    with pytest.raises(ValueError, match="cache_dir has no meaning"):
        SegSFTConfig(str(tmp_path), use_cpu=True, cache_features="off", cache_dir="x")


def test_the_default_folder_is_beside_the_data(tmp_path, data):
    data[0].save_to_disk(tmp_path / "train")
    stored = type(data[0]).load_from_disk(str(tmp_path / "train"))
    run = trainer(tmp_path, (stored, data[1]), "on", cache_dir=None)
    assert run.features.root.parent == tmp_path / "train"


def test_rows_that_are_alike_share_their_features(tmp_path, data):
    twice = concatenate_datasets([data[0], data[0].map(lambda row: {"sample_id": row["sample_id"] + "b"})])
    run = trainer(tmp_path, (twice, data[1]), "on")
    seen = count_encodings(run)
    run.train()
    assert sum(seen) == len(data[0]) + len(data[1])


@pytest.mark.parametrize(("learning_rate", "best"), [(10.0, 0), (1e-3, 4)], ids=["worse", "better"])
def test_the_start_is_kept_where_nothing_is_better(tmp_path, data, learning_rate, best):
    options = {"eval_strategy": "steps", "eval_steps": 4, "save_strategy": "steps", "save_steps": 4, "max_steps": 4}
    # (The loss, as two steps of an untrained model need not show in its Dice.)
    options |= {"load_best_model_at_end": True, "metric_for_best_model": "loss", "greater_is_better": False}
    run = trainer(tmp_path, data, learning_rate=learning_rate, eval_on_start=True, save_total_limit=1, **options)
    before = {name: value.clone() for name, value in run.model.named_parameters()}
    run.train()
    assert run.state.best_model_checkpoint.endswith(f"checkpoint-{best}")
    same = [torch.equal(before[name], value) for name, value in run.model.named_parameters()]
    assert all(same) == (best == 0)


def test_masks_are_drawn_once(tmp_path, data, monkeypatch, log):
    drawn, draw = [], packed_masks.draw_masks

    def counted(collator, row):
        drawn.append(row["sample_id"])
        return draw(collator, row)

    for module in (encoding, packed_masks):
        monkeypatch.setattr(module, "draw_masks", counted)
    run = trainer(tmp_path, data, max_steps=4)
    run.train()
    run.evaluate()
    ids = [*data[0]["sample_id"], *data[1]["sample_id"]]
    assert sorted(drawn) == sorted(ids) and log.text.count("Masks packed: ") == 2
    # A store of features alone, as earlier versions left it, is completed.
    for file in run.data_collator.packed.folder.glob("part-*"):
        file.unlink()
    again = trainer(tmp_path, data, max_steps=2)
    seen = count_encodings(again)
    drawn.clear()
    again.evaluate()  # on its own, it draws what is not there
    assert sorted(drawn) == sorted(data[1]["sample_id"])
    again.train()
    again.evaluate()
    assert sorted(drawn) == sorted([*ids, *data[1]["sample_id"]]) and seen == []
    assert_same(log_of(run)[:1], log_of(again)[:1], 1e-6)
