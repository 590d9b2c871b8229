"""Metrics that a user brings, the one that the best checkpoint is chosen by, and models in which nothing trains."""

import copy

import numpy as np
import pytest
from peft import PeftModel
from rows import every_kind, make, mask, noise

from sa2va_trl import (
    HardSampleConfig,
    HardSampleTrainer,
    SegDPOConfig,
    SegDPOTrainer,
    SegSFTConfig,
    SegSFTTrainer,
    tiny_sa2va,
)


TINY = tiny_sa2va(image_size=64)
TRAIN = make([{"image": noise(9), "masks": [mask(9)], "phrases": ["vessel"], "sample_id": "train"}])
ROWS = every_kind()
KINDS = {
    "sft": (SegSFTTrainer, SegSFTConfig, {}),
    "dpo": (SegDPOTrainer, SegDPOConfig, {"pairs": "online"}),
    "hard": (HardSampleTrainer, HardSampleConfig, {}),
}


def trainer(folder, evaluation=ROWS, kind="sft", model=None, compute_metrics=None, mask_metrics=None, **options):
    trainer, config, own = KINDS[kind]
    options = {"trainable": "head", "max_steps": 2, "per_device_eval_batch_size": 2, **own, **options}
    return trainer(
        model=copy.deepcopy(TINY[0]) if model is None else model,
        args=config(
            str(folder),
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
            gradient_checkpointing=False,
            save_strategy=options.pop("save_strategy", "no"),
            **options,
        ),
        train_dataset=TRAIN,
        eval_dataset=evaluation,
        processing_class=TINY[1],
        compute_metrics=compute_metrics,
        mask_metrics=mask_metrics,
    )


def areas(predicted, target):
    """Of a clip with two objects and three frames: (6, H, W)."""
    assert predicted.dtype == target.dtype == bool and predicted.shape == target.shape and predicted.ndim == 3
    false = np.nan if len(target) > 1 else (predicted & ~target).mean()
    return {"target_area": target.mean(), "area": predicted.mean(), "false_share": false}


@pytest.mark.parametrize("kind", KINDS)
def test_a_metric_over_masks_is_averaged_over_rows(tmp_path, kind):
    run = trainer(tmp_path, kind=kind, mask_metrics=areas)
    found = run.evaluate()
    shares = [np.mean([np.asarray(one) > 0 for one in row["masks"]]) for row in ROWS if row["masks"]]
    assert found["eval_target_area"] == pytest.approx(np.mean(shares), abs=1e-6)
    # Of rows with one mask only: where it is NaN it does not count.
    output = run.predict(ROWS)
    assert output.predictions.shape == (len(ROWS), 5)
    masks = np.array([len(row["masks"]) for row in ROWS])
    assert np.array_equal(np.isnan(output.predictions[:, 0]), masks == 0)
    assert np.array_equal(np.isnan(output.predictions[:, 4]), masks != 1)
    assert found["eval_false_share"] == pytest.approx(output.predictions[masks == 1, 4].mean(), abs=1e-6)
    assert found["eval_dice"] == pytest.approx(trainer(tmp_path, kind=kind).evaluate()["eval_dice"], abs=1e-6)


def test_the_best_checkpoint_may_be_chosen_by_it(tmp_path):
    options = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    options |= {"load_best_model_at_end": True, "learning_rate": 1e-2}
    run = trainer(
        tmp_path, mask_metrics=areas, metric_for_best_model="false_share", greater_is_better=False, **options
    )
    run.train()
    values = [entry["eval_false_share"] for entry in run.state.log_history if "eval_false_share" in entry]
    assert run.state.best_metric == min(values) and len(values) == 2


def test_compute_metrics_gets_what_was_measured_of_each_row(tmp_path):
    seen = []

    def compute(prediction):
        seen.append(prediction.predictions.shape)
        return {"median_dice": float(np.nanmedian(prediction.predictions[:, 0]))}

    run = trainer(tmp_path, compute_metrics=compute)
    found = run.evaluate()
    assert seen == [(len(ROWS), 2)] and "eval_dice" not in found
    median = np.nanmedian(run.predict(ROWS).predictions[:, 0])
    assert median > 0 and found["eval_median_dice"] == pytest.approx(median, abs=1e-6)
    trainer(tmp_path, compute_metrics=compute, mask_metrics=areas).evaluate()
    assert seen[2:] == [(len(ROWS), 5)]


WRONG = {
    "no dict": (lambda predicted, target: 0.5, "must return a dict"),
    "nothing": (lambda predicted, target: {}, "must return a dict"),
    "an array": (lambda predicted, target: {"area": predicted}, "must return a dict of numbers"),
    "taken": (lambda predicted, target: {"dice": 1.0}, "returns dice, which evaluation has already"),
}


@pytest.mark.parametrize(("metrics", "message"), WRONG.values(), ids=WRONG)
def test_a_metric_that_cannot_be_used_is_refused_at_construction(tmp_path, metrics, message):
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, mask_metrics=metrics)


def test_a_metric_has_to_be_the_same_for_all_rows_and_to_be_computed(tmp_path):
    with pytest.raises(ValueError, match="prediction_loss_only"):
        trainer(tmp_path, mask_metrics=areas, prediction_loss_only=True)
    run = trainer(tmp_path, mask_metrics=lambda predicted, target: {f"of_{len(target)}": 1.0})
    with pytest.raises(ValueError, match="the same metrics of every row: of_1; got of_2"):
        run.evaluate()


# The metric that the best checkpoint is chosen by

BEST = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 1}
BEST |= {"save_strategy": "steps", "save_steps": 1}
SETS = {"x": ROWS, "y": ROWS.select([0])}


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"evaluation": SETS}, "x_loss, x_dice, x_iou, y_loss, y_dice, y_iou"),
        ({"evaluation": SETS, "metric_for_best_model": "z_dice"}, "x_loss, x_dice"),
        ({"evaluation": SETS, "mask_metrics": areas}, "x_iou, x_target_area"),
        ({"evaluation": SETS, "compute_metrics": lambda prediction: {"mean": 1.0}}, "x_loss"),
        ({"compute_metrics": lambda prediction: {"mean": prediction.predictions.mean()}}, "loss, mean"),
        ({"compute_metrics": lambda prediction: {"eval_mean": 1.0}, "mask_metrics": areas}, "loss, mean"),
        ({"metric_for_best_model": "accuracy"}, "loss, dice, iou"),
        ({"metric_for_best_model": "eval_accuracy"}, "loss, dice, iou"),
        ({"kind": "hard", "metric_for_best_model": "easy"}, "loss, dice, iou, dice_hard, dice_easy"),
    ],
)
def test_a_metric_that_there_is_not_is_refused_at_construction(tmp_path, options, names):
    with pytest.raises(ValueError, match=f"metric_for_best_model=.* is none of the metrics.*{names}"):
        trainer(tmp_path, **BEST, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"evaluation": SETS, "metric_for_best_model": "x_dice"},
        {"evaluation": SETS, "metric_for_best_model": "eval_y_loss"},
        {"kind": "hard", "worst": 0.5, "metric_for_best_model": "dice_hard"},
        {"compute_metrics": lambda prediction: {"mean": 1.0}, "metric_for_best_model": "mean"},
    ],
)
def test_a_metric_that_there_is_is_taken(tmp_path, options):
    run = trainer(tmp_path, **BEST, **options)
    assert run.args.metric_for_best_model == options["metric_for_best_model"]
    if options.get("kind") != "hard":  # which has a single row here, and so nothing to tell apart
        run.train()
        assert run.state.best_model_checkpoint is not None


def test_what_only_an_evaluation_shows_is_a_sentence(tmp_path):
    def compute(prediction):
        if len(prediction.label_ids) != len(ROWS):
            raise RuntimeError("takes these rows only, so that it cannot be tried on others")
        return {"mean": 1.0}

    run = trainer(tmp_path, compute_metrics=compute, **BEST)
    with pytest.raises(ValueError, match="'dice' is none of the metrics of this evaluation: .*mean"):
        run.train()


# Models in which nothing trains


@pytest.mark.parametrize("kind", KINDS)
def test_a_frozen_adapter_is_refused_at_construction(tmp_path, kind):
    trainer(tmp_path).save_model(str(tmp_path / "adapter"))
    frozen = PeftModel.from_pretrained(copy.deepcopy(TINY[0]), str(tmp_path / "adapter"))
    with pytest.raises(ValueError, match=r"Nothing of the model trains: .* is_trainable=True"):
        trainer(tmp_path, kind=kind, model=frozen, trainable=None)
    trained = PeftModel.from_pretrained(copy.deepcopy(TINY[0]), str(tmp_path / "adapter"), is_trainable=True)
    trainer(tmp_path, kind=kind, model=trained, trainable=None)
