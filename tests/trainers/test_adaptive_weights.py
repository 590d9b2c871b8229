"""Weights that follow a metric."""

import json
from types import SimpleNamespace

import pytest

from sa2va_trl import SegGRPOConfig, SegGRPOTrainer, SegSFTConfig, SegSFTTrainer, tiny_sa2va
from sa2va_trl.data import synthetic_dataset
from sa2va_trl.rewards import PRESETS
from sa2va_trl.trainers.adaptive_weights import AdaptWeights, WeightState, read_rules


RECALL = {"component": "recall", "below": 0.8, "weight": 0.4, "otherwise": 0.2}


@pytest.fixture(scope="module")
def data():
    return synthetic_dataset(num_videos=1, frames_per_video=4, size=64)


def config(kind, tmp_path, **options):
    return kind(
        **{
            "output_dir": str(tmp_path / "out"),
            "use_cpu": True,
            "report_to": "none",
            "disable_tqdm": True,
            "max_steps": 4,
            "per_device_train_batch_size": 2,
            "learning_rate": 1e-3,
            "lr_scheduler_type": "constant",
            "logging_steps": 1,
            "gradient_checkpointing": False,
            "save_strategy": "no",
            "num_points": 0,
            "cache_features": "off",
            **options,
        }
    )


def grpo(tmp_path, data, rules, **options):
    model, processor = tiny_sa2va(image_size=128)
    own = {"num_generations": 2, "reward": {"dice": 0.8, "recall": 0.2}, **options}
    args = config(SegGRPOConfig, tmp_path, adaptive_weights=rules, **own)
    return SegGRPOTrainer(model=model, args=args, train_dataset=data, processing_class=processor)


def test_the_weight_follows_the_moving_mean_with_slack_and_patience():
    state = WeightState([{**RECALL, "metric": "recall", "decay": 0.0, "margin": 0.05, "patience": 3}])
    found = []
    for step, value in enumerate([0.7, 0.9, 0.9, 0.9, 0.82, 0.82, 0.7, 0.84, 0.84, 0.84], start=1):
        state.see("recall", value)
        state.see("other", 0.0)
        state.step(step)
        found.append(state.weights["recall"])
    # Back after 3 steps, kept at 0.82, raised again at once where 3 steps have passed, and kept within the margin.
    assert found == [0.4, 0.4, 0.4, 0.2, 0.2, 0.2, 0.4, 0.4, 0.4, 0.4]
    assert state.means == {"recall": pytest.approx(0.84)}


def test_the_mean_moves_slowly_and_counts_values_as_often_as_they_were_seen():
    state = WeightState([{**RECALL, "metric": "recall"}])
    state.see("recall", 0.5, times=3)
    state.see("recall", 0.9, times=1)
    assert state.step(1) == {"recall": 0.4} and state.means["recall"] == pytest.approx(0.6)
    assert state.step(2) == {} and state.means["recall"] == pytest.approx(0.6)  # nothing was seen
    state.see("recall", 1.0)
    state.step(3)
    assert state.means["recall"] == pytest.approx(0.9 * 0.6 + 0.1)


def test_a_state_goes_through_a_file_and_nothing_changes_where_it_may_not():
    rule = {**RECALL, "metric": "m", "below": None, "above": 0.5}
    state = WeightState([rule])
    state.see("m", 0.7)
    assert state.step(1, may_change=False) == {} and state.weights == {}
    state.see("m", 0.2)
    again = WeightState.from_state(json.loads(json.dumps(state.state())))
    assert again.step(2) == state.step(2) == {"recall": 0.4}
    assert again.state() == state.state()


@pytest.mark.parametrize(
    "rule, message",
    [
        ({**RECALL, "above": 0.9}, "rule 1, .*give either below or above"),
        ({**RECALL, "below": None}, "give either below or above"),
        ({**RECALL, "weight": 0.0}, "weight must be positive, got 0.0"),
        ({**RECALL, "otherwise": 0.4}, "nothing would change"),
        ({**RECALL, "decay": 1.0}, r"decay in \[0, 1\)"),
        ({**RECALL, "over": 0.9}, "unexpected keyword argument 'over'"),
        ({"component": "recall", "below": 0.8}, "missing 2 required"),
        ("[{", "is not JSON"),
        ([RECALL, RECALL], "recall has more than one rule"),
    ],
)
def test_rules_that_cannot_be(tmp_path, rule, message):
    with pytest.raises(ValueError, match=message):
        config(SegSFTConfig, tmp_path, adaptive_weights=rule)
    assert read_rules(json.dumps([RECALL])) == read_rules(RECALL)


@pytest.mark.parametrize("reward", [{"dice": 0.8, "recall": 0.2}, "published"])
def test_a_reward_changes_between_rollouts_and_presets_stay(tmp_path, data, reward):
    before = json.dumps([PRESETS["default"].weights, PRESETS["published"].TERMS])
    rule = {**RECALL, "below": 1.1, "weight": 0.9}  # at once
    run = grpo(tmp_path, data, [rule], reward=reward, num_iterations=2)
    run.train()
    entries = [entry for entry in run.state.log_history if "loss" in entry]
    assert [entry["reward_weights/recall"] for entry in entries] == pytest.approx([0.2, 0.2, 0.9, 0.9])
    first, second = (entry for entry in entries if "reward" in entry)
    parts = {name: second[f"rewards/{name}/mean"] for name in ("dice", "recall")}
    if reward == "published":
        assert run.scorer.reward.reward.TERMS["recall"] == (0.9, 5.0)
    else:
        assert second["reward"] == pytest.approx((0.8 * parts["dice"] + 0.9 * parts["recall"]) / 1.7, abs=1e-6)
        parts = {name: first[f"rewards/{name}/mean"] for name in ("dice", "recall")}
        assert first["reward"] == pytest.approx(0.8 * parts["dice"] + 0.2 * parts["recall"], abs=1e-6)
    assert json.dumps([PRESETS["default"].weights, PRESETS["published"].TERMS]) == before


def test_a_resumed_run_has_the_weights_of_one_that_was_not_ended(tmp_path, data):
    rules = [{**RECALL, "below": 1.1, "decay": 0.5, "patience": 2}]
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "learning_rate": 1e-5}
    whole = grpo(tmp_path, data, rules, **options)
    whole.train()
    resumed = grpo(tmp_path, data, rules, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    assert whole.weight_state.state() == resumed.weight_state.state()
    assert whole.weight_state.means["recall"] > 0
    for name in ("reward", "loss", "reward_weights/recall"):
        values = [[entry[name] for entry in run.state.log_history if name in entry] for run in (whole, resumed)]
        assert values[0] == pytest.approx(values[1], rel=1e-5) and len(values[0]) >= 3
    for others in ([{**rules[0], "weight": 0.5}], None):
        with pytest.raises(ValueError, match="begun with another adaptive_weights"):
            run = grpo(tmp_path, data, others, **options)
            run.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))


def test_another_trainer_changes_a_loss(tmp_path, data):
    model, processor = tiny_sa2va(image_size=128)
    rule = {"component": "cldice", "above": 0.0, "weight": 5.0, "otherwise": 1.0}
    args = config(SegSFTConfig, tmp_path, adaptive_weights=rule, cldice_weight=1.0, lm_weight=0.0, trainable="head")
    run = SegSFTTrainer(model=model, args=args, train_dataset=data, processing_class=processor)
    run.train()
    entries = [entry for entry in run.state.log_history if "loss" in entry]
    for number, entry in enumerate(entries):
        weight = 5.0 if number else 1.0
        parts = 2 * entry["mask_loss"] + 0.5 * entry["dice_loss"] + weight * entry["cldice_loss"]
        assert entry["loss"] == pytest.approx(parts, rel=1e-3)
    assert [entry["cldice_weight"] for entry in entries] == [1.0, 5.0, 5.0, 5.0]
    assert args.cldice_weight == 1.0  # whose config it is has not changed


def test_components_and_metrics_that_there_are_not(tmp_path, data):
    with pytest.raises(ValueError, match="'recall' has no weight above 0 .* there are dice, lm, mask"):
        model, processor = tiny_sa2va(image_size=128)
        args = config(SegSFTConfig, tmp_path, adaptive_weights=[RECALL])
        SegSFTTrainer(model=model, args=args, train_dataset=data, processing_class=processor)
    with pytest.raises(ValueError, match="'recall' is no part of the reward with a weight; there are dice, cldice"):
        grpo(tmp_path, data, [RECALL], reward="default")
    with pytest.raises(ValueError, match="none: give reward as weights"):
        grpo(tmp_path, data, [RECALL], reward="recall")
    with pytest.raises(ValueError, match="eval_dice is of an evaluation, and eval_strategy is no"):
        grpo(tmp_path, data, [{**RECALL, "metric": "eval_dice"}])
    with pytest.raises(ValueError, match="no 'reacll' is recorded in training; there are .*rewards/recall/mean"):
        grpo(tmp_path, data, [{**RECALL, "metric": "reacll", "patience": 2}], logging_steps=50).train()


def test_a_metric_that_no_evaluation_has_is_said_at_the_first_one():
    state = WeightState([{**RECALL, "metric": "eval_dicee"}])
    callback = AdaptWeights(SimpleNamespace(weight_state=state, eval_dataset=object()))
    with pytest.raises(ValueError, match="no 'eval_dicee' comes of an evaluation; there are eval_dice"):
        callback.on_evaluate(None, None, None, metrics={"eval_dice": 0.5})
    state.rules = WeightState([{**RECALL, "metric": "eval_dice"}]).rules
    callback.on_evaluate(None, None, None, metrics={"eval_dice": 0.5})
    assert state.seen == {"eval_dice": [0.5, 1]}
