"""Reinforcement learning on masks: what is drawn, what trains, what is logged, what stops it."""

import logging
import re

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from sa2va_trl import SegGRPOConfig, SegGRPOTrainer, SegSFTConfig, tiny_sa2va
from sa2va_trl.data import synthetic_dataset
from sa2va_trl.rewards import RewardError
from sa2va_trl.trainers import grpo_trainer
from sa2va_trl.trainers.actor_critic import STATE
from sa2va_trl.trainers.callbacks import RankHistory
from sa2va_trl.trainers.rollouts import roll_out
from tests.rows import every_kind, make, noise


# See tests/trainers/test_sft_trainer.py.
UNREACHED = re.compile(r"iou_prediction_head|pred_obj_score_head|output_hypernetworks_mlps")


@pytest.fixture(scope="module")
def data():
    return synthetic_dataset(num_videos=2, frames_per_video=4, size=64)


@pytest.fixture(scope="module")
def held_out():
    return synthetic_dataset(num_videos=1, frames_per_video=2, size=64, first_video=8)


def config(tmp_path, **options):
    return SegGRPOConfig(
        **{
            "output_dir": str(tmp_path / "out"),
            "use_cpu": True,
            "report_to": "none",
            "disable_tqdm": True,
            "max_steps": 2,
            "per_device_train_batch_size": 2,
            "learning_rate": 1e-3,
            "lr_scheduler_type": "constant",
            "logging_steps": 1,
            "gradient_checkpointing": False,
            "save_strategy": "no",
            "num_points": 0,
            "cache_features": "off",
            "num_generations": 4,
            **options,
        }
    )


def trainer(args, data, **options):
    model, processor = tiny_sa2va(image_size=128)
    return SegGRPOTrainer(model=model, args=args, train_dataset=data, processing_class=processor, **options)


def first_pixel(pred_masks, **columns):
    """A reward that no two masks share by chance."""
    return [float(np.asarray(mask).mean()) for mask in pred_masks]


def logged(run):
    return [entry for entry in run.state.log_history if "reward" in entry]


@pytest.mark.parametrize("policy", ["embedding", "field", "both"])
def test_what_it_logs_and_that_the_ratio_is_one_at_first(tmp_path, data, held_out, policy):
    args = config(tmp_path, policy=policy, beta=0.1, eval_strategy="steps", eval_steps=2)
    run = trainer(args, data, eval_dataset=held_out)
    run.train()
    first, *_ = entries = logged(run)
    assert len(entries) == 2
    names = {"reward", "reward_std", "frac_reward_zero_std", "rewards/greedy", "kl", "decoder_loss", "dice_loss"}
    names |= {f"rewards/{name}/{kind}" for name in ("dice", "cldice") for kind in ("mean", "std")}
    clips = {f"clip_ratio/{name}" for name in ("low_mean", "high_mean", "region_mean")}
    assert names <= set(first) and (clips | {"policy_loss"} <= set(first)) == (policy != "field")
    assert first["kl"] == pytest.approx(0, abs=1e-6) and all(first.get(name, 0) == 0 for name in clips)
    # Advantages of a group add up to 0, and with a ratio of 1 so does the surrogate.
    assert first.get("policy_loss", 0) == pytest.approx(0, abs=1e-6)
    assert all(0 <= entry["reward"] <= 1 and 0 <= entry["rewards/greedy"] <= 1 for entry in entries)
    assert {"eval_dice", "eval_iou", "eval_loss"} <= set(run.state.log_history[-2])


@pytest.mark.parametrize("trainable", ["head", "stage1"])
def test_after_a_step_what_should_train_has_moved(tmp_path, data, trainable):
    # The reward is not one that all masks of an untrained model share.
    args = config(tmp_path, trainable=trainable, max_steps=3, sft_weight=0.0, policy="both")
    run = trainer(args, data, reward_funcs=first_pixel)
    before = {name: parameter.detach().clone() for name, parameter in run.model.named_parameters()}
    run.train()
    assert logged(run)[0]["frac_reward_zero_std"] == 0
    assert logged(run)[0]["rewards/first_pixel/std"] > 0
    for name, parameter in run.model.named_parameters():
        if UNREACHED.search(name) or (".lora_A" in name):  # LoRA's A moves once B has
            continue
        assert torch.equal(parameter, before[name]) != parameter.requires_grad, name


def test_the_policy_gradient_raises_the_reward(tmp_path, data):
    args = config(tmp_path, max_steps=40, learning_rate=2e-3, sft_weight=0.0, policy="both", credit="global")
    run = trainer(args, data, reward_funcs=lambda pred_masks, **columns: [-value for value in first_pixel(pred_masks)])
    run.train()
    rewards = [entry["rewards/greedy"] for entry in logged(run)]
    assert np.mean(rewards[-5:]) > np.mean(rewards[:5]) + 0.05


# What learns beside the model: both parts of it. One mask an object would do; two tell how rewards deviate.
BESIDE = {"advantage": "value", "learn_noise": True, "ppo_learning_rate": 1e-2}


def test_local_credit_raises_the_dice(tmp_path, data):
    args = config(tmp_path, max_steps=25, learning_rate=2e-3, sft_weight=0.0, policy="field", reward="dice")
    run = trainer(args, data)
    run.train()
    rewards = [entry["rewards/greedy"] for entry in logged(run)]
    assert np.mean(rewards[-5:]) > np.mean(rewards[:5]) + 0.02


def test_the_loss_is_the_weighted_sum_of_its_parts(tmp_path, data):
    weights = {"beta": 0.5, "decoder_weight": 0.7, "sft_weight": 0.3}
    args = config(tmp_path, policy="both", max_steps=3, trainable="head", **weights)
    run = trainer(args, data, reward_funcs=first_pixel)
    run.train()
    for entry in logged(run):
        supervised = args.mask_weight * entry["mask_loss"] + args.dice_weight * entry["dice_loss"]
        parts = entry["policy_loss"] + 0.7 * entry["decoder_loss"] + 0.5 * entry["kl"] + 0.3 * supervised
        assert entry["loss"] == pytest.approx(parts, rel=1e-4, abs=1e-5)
    assert logged(run)[-1]["kl"] > 1e-5 and all(entry["decoder_loss"] for entry in logged(run))


def test_the_noise_falls_to_its_end(tmp_path, data, monkeypatch):
    seen = []

    def recorded(model, features, sampler, *rest):
        seen.append((sampler.embedding_noise, sampler.field_noise))
        return roll_out(model, features, sampler, *rest)

    monkeypatch.setattr(grpo_trainer, "roll_out", recorded)
    trainer(config(tmp_path, policy="both", max_steps=3, noise_end=0.5), data).train()
    assert np.array(seen) == pytest.approx(np.array([(0.1, 0.5), (0.075, 0.375), (0.05, 0.25)]))


def test_a_step_encodes_once(tmp_path, data, monkeypatch):
    """And what the divergence is from sees the same features: the head alone trains."""
    run = trainer(config(tmp_path, trainable="head", beta=0.1, max_steps=2), data)
    calls = []
    tower = next(own for name, own in run.model.named_modules() if name.endswith("language_model"))
    tower.register_forward_hook(lambda *_: calls.append(1))
    monkeypatch.setattr(run, "tell_needs", lambda *_, **__: None)  # which runs a step by itself
    run.train()
    assert len(calls) == 2


@pytest.mark.parametrize("options", [{}, BESIDE])
def test_rollouts_do_not_depend_on_batches(tmp_path, data, options):
    runs = []
    for number, sizes in enumerate(((4, 1), (1, 4)) if options else ((4, 1), (2, 2), (1, 4))):
        batch, steps = sizes
        sizes = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": steps, **options}
        run = trainer(config(tmp_path / str(number), policy="both", **sizes), data)
        run.train()
        runs.append(logged(run))
    for other in runs[1:]:
        for one, two in zip(runs[0], other, strict=True):
            names = ["reward", "reward_std", "rewards/greedy", "loss", "grad_norm", "decoder_loss", "dice_loss"]
            for name in names + ["value_loss", "embedding_noise"] * bool(options):
                assert one[name] == pytest.approx(two[name], rel=2e-4, abs=2e-6), name


def test_several_iterations_share_rollouts_and_then_clip(tmp_path, data):
    args = config(tmp_path, num_iterations=3, max_steps=6, epsilon=0.01, sft_weight=0.0, learning_rate=1e-2)
    calls = []

    def reward(pred_masks, mask, sample_id, **columns):
        calls.append(sample_id[0])
        return first_pixel(pred_masks)

    run = trainer(args, data, reward_funcs=reward)
    plan = run.plan(0)
    assert plan[:2] == plan[2:4] == plan[4:6] and len(plan) == 3 * 8 and set(plan) == set(range(8))
    run.train()
    assert len(calls) == 2 * 2  # steps with new rollouts, and a group of each row
    entries = [entry for entry in run.state.log_history if "policy_loss" in entry]
    regions = [entry["clip_ratio/region_mean"] for entry in entries]
    assert regions[0] == regions[3] == 0 and max(regions[1:3]) > 0
    assert [entry["step"] for entry in logged(run)] == [1, 4]


def test_ppo_with_one_mask_an_object(tmp_path, data):
    options = {**BESIDE, "num_generations": 1, "credit": "global", "num_iterations": 2, "max_steps": 4}
    run = trainer(config(tmp_path, **options), data, reward_funcs=first_pixel)
    run.train()
    entries = [entry for entry in run.state.log_history if "policy_loss" in entry]
    first, second, *_ = entries
    # The head expects nothing yet, so that the advantage is the reward; and the ratio is exactly 1.
    assert first["policy_loss"] == -first["reward"] and first["reward"] > 0
    assert first["value_loss"] > second["value_loss"]
    assert first["embedding_noise"] == pytest.approx(0.1) and second["embedding_noise"] != first["embedding_noise"]
    assert [entry["clip_ratio/region_mean"] for entry in entries][::2] == [0, 0]
    # The later masks are drawn with what was learned.
    assert run._kept[0].noise == entries[2]["embedding_noise"] and run._kept[0].noise != pytest.approx(0.1, rel=1e-3)
    # One mask deviates from nothing.
    assert "reward_std" not in first and "rewards/first_pixel/std" not in first
    # It is no part of the model: neither of what is saved nor of what its optimizer has.
    names = [name for name, _ in run.model.named_parameters()]
    assert not [name for name in names if "noise" in name or "actor" in name]
    run.save_model(str(tmp_path / "saved"))
    assert not (tmp_path / "saved" / STATE).exists()


def test_a_critic_is_warmed_up_before_the_policy_learns(tmp_path, data):
    options = {**BESIDE, "critic_warmup": 2, "max_steps": 2, "sft_weight": 0.0}
    run = trainer(config(tmp_path, **options), data, reward_funcs=first_pixel)
    with pytest.raises(ValueError, match="critic_warmup=2 leaves the policy none of 2 steps"):
        run.train()
    run.args.max_steps = 3
    run.train()
    entries = logged(run)
    assert [entry["grad_norm"] > 0 for entry in entries] == [False, False, True]
    assert [entry["embedding_noise"] for entry in entries] == pytest.approx([0.1] * 3)  # as masks were drawn with
    assert run.actor_critic.noise != pytest.approx(0.1) and entries[1]["value_loss"] < entries[0]["value_loss"]


@pytest.mark.parametrize("options", [{}, BESIDE])
def test_a_resumed_run_goes_on_alike(tmp_path, data, options):
    options = {"num_iterations": 2, "max_steps": 6, "save_strategy": "steps", "save_steps": 2, **options}
    whole = trainer(config(tmp_path, **options), data)
    whole.train()
    resumed = trainer(config(tmp_path, **options), data)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-4"))
    for name in ["loss", "grad_norm", "policy_loss"] + ["value_loss", "embedding_noise"] * ("advantage" in options):
        values = [[entry[name] for entry in run.state.log_history if name in entry] for run in (whole, resumed)]
        assert len(values[0]) == 6 and values[0] == pytest.approx(values[1], rel=1e-5), name
    if "advantage" in options:
        assert whole.actor_critic.noise == resumed.actor_critic.noise != pytest.approx(0.1, rel=1e-3)
        checkpoint = str(tmp_path / "out" / "checkpoint-4")
        with pytest.raises(ValueError, match="begun with advantage=value, and this run has advantage=group"):
            bare = {name: value for name, value in options.items() if name not in BESIDE}
            trainer(config(tmp_path, **bare), data).train(resume_from_checkpoint=checkpoint)


def test_cached_features_change_nothing(tmp_path, data):
    runs = []
    for mode in ("off", "on"):
        options = {} if mode == "off" else {"cache_dir": str(tmp_path / "features")}
        run = trainer(config(tmp_path / mode, cache_features=mode, **options), data)
        run.train()
        runs.append(logged(run))
    for one, two in zip(*runs, strict=True):
        for name in ("reward", "loss", "grad_norm"):
            assert one[name] == pytest.approx(two[name], rel=1e-4), name


def scored(data, **columns):
    return pd.DataFrame({"sample_id": data["sample_id"], **columns})


def test_rows_are_drawn_by_the_spread_of_their_rewards(tmp_path, data):
    spread = [0.0, 0.4, 0.1, 0.1, 0.0, 0.2, 0.0, 0.0]
    scores = scored(data, dice=[0.5] * 8, reward_spread=spread)
    run = trainer(config(tmp_path, sample_by="spread"), data, scores=scores)
    plans = [run.plan(epoch) for epoch in range(20)]
    assert all(len(plan) == 8 for plan in plans) and len(set(map(tuple, plans))) > 10
    counts = np.bincount(np.concatenate(plans), minlength=8) / 20
    # The second is held to three times the mean, and the others share the rest.
    assert counts == pytest.approx(np.array([0.0, 3.0, 1.25, 1.25, 0.0, 2.5, 0.0, 0.0]), abs=0.35)
    again = trainer(config(tmp_path, sample_by="spread"), data, scores=scores)
    assert [again.plan(epoch) for epoch in range(20)] == plans


def test_the_rows_of_the_largest_spread_are_kept(tmp_path, data, log):
    spread = np.array([0.0, 0.4, 0.1, 0.1, 0.0, 0.2, 0.0, 0.3])
    scores = scored(data, dice=[0.5] * 8, reward_spread=spread)
    options = {"sample_by": "spread", "max_samples": 3, "num_train_epochs": 2, "max_steps": -1}
    run = trainer(config(tmp_path, **options), data, scores=scores)
    kept = [data[number]["sample_id"] for number in (1, 5, 7)]
    assert run.train_dataset["sample_id"] == kept
    assert "max_samples: training has 3 rows; 5 are left out." in log.text
    run.train()
    assert run.state.global_step == 4 and len(logged(run)) == 4
    hard = trainer(
        config(tmp_path, sample_by="hardness", max_samples=2), data, scores=scored(data, dice=np.linspace(0.2, 0.9, 8))
    )
    assert hard.train_dataset["sample_id"] == data["sample_id"][:2]
    some = trainer(config(tmp_path, max_samples=3), data)
    assert len(some.train_dataset) == 3 and sorted(some.plan(0)) == [0, 1, 2]


def test_a_resumed_run_draws_the_same_rows_of_the_same_scores(tmp_path, data):
    scores = scored(data, dice=[0.5] * 8, reward_spread=np.linspace(0.1, 0.4, 8))
    options = {"sample_by": "spread", "max_steps": 6, "save_strategy": "steps", "save_steps": 2}
    whole = trainer(config(tmp_path, **options), data, scores=scores)
    whole.train()
    checkpoint = str(tmp_path / "out" / "checkpoint-2")
    resumed = trainer(config(tmp_path, **options), data, scores=scores)
    resumed.train(resume_from_checkpoint=checkpoint)
    for name in ("loss", "reward"):
        values = [[entry[name] for entry in logged(run)] for run in (whole, resumed)]
        assert len(values[0]) == 6 and values[0] == pytest.approx(values[1], rel=1e-5), name
    other = scored(data, dice=[0.5] * 8, reward_spread=np.linspace(0.4, 0.1, 8))
    with pytest.raises(ValueError, match="begun with scores="):
        trainer(config(tmp_path, **options), data, scores=other).train(resume_from_checkpoint=checkpoint)


def test_the_rank_history_goes_on_where_it_was(tmp_path, data):
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "learning_rate": 1e-5}
    options |= {"rank_history": 64, "policy": "field", "sft_weight": 0.0}
    runs = [trainer(config(tmp_path, **options), data, reward_funcs=first_pixel) for _ in range(2)]
    runs[0].train()
    checkpoint = str(tmp_path / "out" / "checkpoint-2")
    runs[1].train(resume_from_checkpoint=checkpoint)
    histories = [run.restored(RankHistory).values for run in runs]
    assert len(histories[0]) == 4 * 2 * 4 and histories[0] == pytest.approx(histories[1])
    losses = [[entry["loss"] for entry in logged(run)] for run in runs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5) and losses[0][-1] != 0
    with pytest.raises(ValueError, match="begun with rank_history=64, and this run has rank_history=32"):
        trainer(config(tmp_path, **{**options, "rank_history": 32}), data, reward_funcs=first_pixel).train(
            resume_from_checkpoint=checkpoint
        )


def test_every_kind_of_row_takes_the_same_forward_passes(tmp_path):
    """As processes have to, of which one may have rows without a mask, or with groups that are skipped."""
    empty = {"image": noise(7), "masks": [Image.new("L", (48, 40))], "phrases": ["vessel"], "sample_id": "empty mask"}
    rows = make([*every_kind(), empty])
    args = config(tmp_path, max_steps=len(rows), per_device_train_batch_size=1, beta=0.1, policy="both", **BESIDE)
    run = trainer(args, rows)
    passes, step = [[]], run.training_step  # (the first are of what it takes in memory, and of no row)
    for name, module in run.model.named_modules():
        if list(module.parameters(recurse=False)):
            module.register_forward_hook(lambda *args, name=name: passes[-1].append(name))

    def training_step(*args, **kwargs):
        passes.append([])
        return step(*args, **kwargs)

    run.training_step = training_step
    run.train()
    losses = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
    assert len(losses) == len(rows) and np.isfinite(losses).all()
    assert len(passes) == 1 + len(rows) and len(passes[1]) > 100
    assert all(own == passes[1] for own in passes[1:])


def test_a_table_and_a_picture_of_rollouts(tmp_path, data):
    one = {"num_generations": 1, "advantage": "value", "credit": "global", "output_dir": str(tmp_path / "one")}
    trainer(config(tmp_path, rollout_steps=1, max_steps=1, **one), data).train()
    assert Image.open(tmp_path / "one" / "rollouts" / "step_000000.png").size == (2 * (32 + 2), 32 + 14)
    trainer(config(tmp_path, rollout_steps=2, max_steps=3), data).train()
    folder = tmp_path / "out" / "rollouts"
    assert sorted(file.name for file in folder.iterdir()) == [
        *("step_000000.parquet", "step_000000.png", "step_000002.parquet", "step_000002.png")
    ]
    table = pd.read_parquet(folder / "step_000000.parquet")
    assert len(table) == 2 * 5 and set(table["generation"]) == set(range(5))
    assert {"sample_id", "reward", "dice", "cldice", "advantage"} <= set(table)
    drawn = table[table["generation"] > 0]
    assert np.allclose(drawn["reward"], 0.6 * drawn["dice"] + 0.4 * drawn["cldice"], atol=1e-6)
    assert Image.open(folder / "step_000000.png").size == (5 * (32 + 2), 32 + 14)


@pytest.mark.parametrize(
    "reward, options, cause",
    [
        (lambda pred_masks, **columns: [1.0] * len(pred_masks), {"policy": "field"}, "their rewards do not"),
        (first_pixel, {"embedding_noise": 1e-9}, "equals the greedy one: the noise is too small"),
    ],
)
def test_a_run_without_any_spread_says_why(tmp_path, data, caplog, reward, options, cause):
    run = trainer(config(tmp_path, skip_patience=2, max_steps=3, **options), data, reward_funcs=reward)
    logging.getLogger("sa2va_trl").propagate = True
    with caplog.at_level(logging.WARNING, logger="sa2va_trl"):
        run.train()
    said = [record.getMessage() for record in caplog.records if "spread of rewards" in record.getMessage()]
    assert len(said) == 1 and cause in said[0] and "the last 2 steps" in said[0]
    first = logged(run)[0]
    assert first["frac_reward_zero_std"] == 1 and first.get("policy_loss", 0) == first["decoder_loss"] == 0


@pytest.mark.parametrize(
    "value, said", [(float("nan"), "nan in place of a finite number"), (None, "ZeroDivisionError")]
)
def test_a_reward_that_fails_names_itself_and_the_sample(tmp_path, data, value, said):
    def broken(pred_masks, **columns):
        return [1 / 0 if value is None else value for _ in pred_masks]

    run = trainer(config(tmp_path), data, reward_funcs=broken)
    with pytest.raises(RewardError, match=f"reward broken, .*sample_id v0.*step 0: {said}"):
        run.train()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_generations": 1}, "num_generations must be at least 2, got 1"),
        ({"num_generations": 5, "policy": "both"}, "at least 4 and even, got 5"),
        ({"policy": "tokens"}, "policy must be one of embedding, field, both"),
        ({"reward": "dise"}, "unknown 'dise'; there are dice, iou"),
        ({"reward": {"dice": -1.0}}, "weights must be 0 or more"),
        ({"embedding_noise": 0.0}, "embedding_noise must be positive"),
        ({"noise_end": 0.0}, "noise_end must lie in"),
        ({"epsilon": 1.0}, "epsilon must lie between 0 and 1"),
        ({"advantage": "mean"}, "advantage must be one of group, rloo, batch, value"),
        ({"num_generations": 1, "advantage": "value"}, "needs credit=global: local credit is measured"),
        ({"num_generations": 2, "advantage": "value", "policy": "both"}, "num_generations=2 with policy=both needs"),
        ({"num_generations": 0, "advantage": "value"}, "num_generations must be at least 1, got 0"),
        ({"num_generations": 3, "advantage": "value", "policy": "both"}, "at least 2 and even, got 3"),
        ({"advantage": "value", "scale_rewards": "group"}, "advantage=value is not of one group"),
        ({"advantage": "batch", "scale_rewards": "group"}, "advantage=batch is not of one group"),
        ({"policy": "field", "advantage": "value"}, "all of this reward has local credit"),
        ({"learn_noise": True, "noise_end": 0.5}, "noise_end=0.5 contradicts learn_noise=True"),
        ({"learn_noise": True, "policy": "field"}, "policy=field draws no embedding"),
        ({"learn_noise": True, "embedding_noise": 0.001}, "must lie between 0.01 and 2.0 with learn_noise=True"),
        ({"ppo_learning_rate": 0.1}, "it is of learn_noise=True and of advantage=value"),
        ({"learn_noise": True, "ppo_learning_rate": 0.0}, "ppo_learning_rate must be positive"),
        ({"critic_warmup": 1}, "it is of advantage=value"),
        ({"critic_warmup": -1}, "critic_warmup must not be negative"),
        ({"policy": "field", "epsilon": 0.1}, "policy=field draws no embedding"),
        ({"policy": "field", "decoder_weight": 0.0}, "leaves nothing that learns"),
        ({"field_noise": 1.0}, "policy=embedding draws no field"),
        ({"credit": "global", "credit_cells": 8}, "credit=global has no cells"),
        ({"policy": "field", "advantage": "rloo"}, "all of this reward has local credit"),
        ({"decoder_weight": 0.0, "credit": "global"}, "decoder_weight=0 weights no likelihood"),
        ({"num_iterations": 2, "save_strategy": "steps", "save_steps": 3}, "must be a multiple of num_iterations=2"),
        ({"lm_weight": 1.0}, "no loss reaches the words"),
        ({"beta": -1.0}, "beta must be finite and not negative"),
        ({"skip_patience": 0}, "skip_patience must be at least 1"),
        ({"lora_dropout": 0.1}, "lora_dropout=0.1 must be 0: the ratio is of one network"),
        ({"train_sampling_strategy": "sequential"}, "this trainer plans its epochs itself"),
        ({"epsilon": 0.1}, "with num_iterations=1 the ratio is always 1"),
        ({"beta": float("nan")}, "beta must be finite and not negative"),
        ({"num_iterations": 2, "save_strategy": "steps", "save_steps": 0.3}, "save_steps=0.3 must be a multiple"),
        ({"num_iterations": 2, "auto_find_batch_size": True}, "auto_find_batch_size is not possible with num_iter"),
        ({"sample_by": "variance"}, "sample_by must be one of uniform, spread, hardness"),
        ({"max_samples": 0}, "max_samples must be at least 1"),
        ({"max_samples": 2, "dataset_repeats": 2}, "max_samples keeps rows once"),
        ({"sample_by": "spread", "dataset_repeats": 2}, "sample_by=spread decides how often"),
        ({"rollout_steps": 0}, "rollout_steps must be at least 1"),
    ],
)
def test_options_that_cannot_be(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        config(tmp_path, **options)


def test_what_the_trainer_refuses(tmp_path, data):
    with pytest.raises(TypeError, match="must be a SegGRPOConfig, got SegSFTConfig"):
        trainer(SegSFTConfig(str(tmp_path), use_cpu=True, report_to="none"), data)
    with pytest.raises(TypeError, match="which a stream has not"):
        trainer(config(tmp_path), data.to_iterable_dataset())
    with pytest.raises(ValueError, match="Give either reward_funcs or args.reward"):
        trainer(config(tmp_path, reward="dice"), data, reward_funcs=first_pixel)
    with pytest.raises(ValueError, match="scores have no effect with sample_by=uniform"):
        trainer(config(tmp_path), data, scores=scored(data, dice=[0.5] * 8))
    with pytest.raises(ValueError, match="sample_by=spread needs scores of the training rows"):
        trainer(config(tmp_path, sample_by="spread"), data)
    with pytest.raises(ValueError, match="beta needs an adapter"):
        trainer(config(tmp_path, trainable="full", beta=0.1), data)
