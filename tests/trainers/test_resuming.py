import copy
import json
import shutil

import pytest
import torch
from datasets import concatenate_datasets
from peft import LoraConfig, get_peft_model
from transformers import TrainerCallback

from sa2va_trl import HardSampleConfig, HardSampleTrainer, SegSFTConfig, SegSFTTrainer, processes, tiny_sa2va
from sa2va_trl.adapters.presets import get_peft_config
from sa2va_trl.data import synthetic_dataset
from sa2va_trl.errors import FeatureError
from sa2va_trl.scripts.training import train_and_save


TINY = tiny_sa2va(image_size=64)
DATA = synthetic_dataset(num_videos=1, frames_per_video=6, size=64)
HELD_OUT = synthetic_dataset(num_videos=1, frames_per_video=2, size=64, first_video=2)
OPTIONS = {
    "use_cpu": True,
    "report_to": "none",
    "disable_tqdm": True,
    "gradient_checkpointing": False,
    "cache_features": "off",
    "num_points": 0,
    "lm_weight": 0.0,
    "trainable": "head",
    "lr_scheduler_type": "linear",
    "learning_rate": 1e-3,
    "per_device_train_batch_size": 2,
    "logging_steps": 1,
    "max_steps": 4,
    "save_steps": 2,
}


def make(folder, kind=SegSFTTrainer, data=DATA, callbacks=None, peft_config=None, scores=None, **options):
    config = HardSampleConfig if kind is HardSampleTrainer else SegSFTConfig
    options = {name: value for name, value in {**OPTIONS, **options}.items() if value is not None}
    return kind(
        copy.deepcopy(TINY[0]),
        config(str(folder), **options),
        train_dataset=data,
        eval_dataset=HELD_OUT,
        processing_class=TINY[1],
        callbacks=callbacks,
        peft_config=peft_config,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of four steps, with checkpoints at 2 and 4; not to be changed."""
    run = make(tmp_path_factory.mktemp("finished"))
    run.train()
    return run


@pytest.fixture
def checkpoint(finished, tmp_path):
    """A copy of its checkpoint at step 2."""
    shutil.copytree(f"{finished.args.output_dir}/checkpoint-2", tmp_path / "checkpoint-2")
    return tmp_path / "checkpoint-2"


def trained(run):
    return {name: value.detach().clone() for name, value in run.model.named_parameters() if value.requires_grad}


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def rates(run):
    return [(entry["step"], entry["learning_rate"]) for entry in run.state.log_history if "learning_rate" in entry]


def files(folder):
    return {path.relative_to(folder): path.stat().st_mtime_ns for path in folder.rglob("*")}


# A finished run


@pytest.mark.parametrize("steps", [{"max_steps": 4}, {"max_steps": -1, "num_train_epochs": 1.25}, {"max_steps": 3}])
def test_a_finished_run_is_left_alone(finished, log, steps):
    run = make(finished.args.output_dir, **steps)
    output = run.train(resume_from_checkpoint=True)
    assert output.global_step == run.state.global_step == 4
    (line,) = [line for line in log.messages if "finished" in line]
    assert "checkpoint-4: the run is finished (4 of" in line
    assert_equal(trained(run), trained(finished))
    assert run.evaluate()["eval_dice"] == pytest.approx(finished.evaluate()["eval_dice"], abs=1e-6)


def test_a_longer_run_goes_on(finished, tmp_path):
    shutil.copytree(finished.args.output_dir, tmp_path / "out")
    run = make(tmp_path / "out", max_steps=5)
    run.train(resume_from_checkpoint="latest")
    assert run.state.global_step == 5


def test_a_recipe_leaves_a_finished_run_as_it_is(tmp_path):
    out = tmp_path / "out"
    options = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 2, "save_total_limit": 1}
    options |= {"metric_for_best_model": "loss"}
    first = make(out, **options)
    train_and_save(first, None, "synthetic")
    before = files(out)
    run = make(out, **options)
    train_and_save(run, str(out / "checkpoint-4"), "synthetic")
    assert files(out) == before
    assert_equal(trained(run), trained(first))
    # Ended between its last checkpoint and its end: then that is made up for.
    for name in ("adapter_model.safetensors", "trainer_state.json"):
        (out / name).unlink()
    train_and_save(make(out, **options), str(out / "checkpoint-4"), "synthetic")
    assert files(out).keys() == before.keys()
    assert json.loads((out / "trainer_state.json").read_text())["global_step"] == 4


# (The second logs nothing before its end, so that only the weights tell the two runs apart.)
@pytest.mark.parametrize("logging", [1, 100])
def test_another_runs_model_does_not_pass_for_that_of_a_finished_run(tmp_path, logging):
    out, options = tmp_path / "out", {"max_steps": 2, "logging_steps": logging}
    train_and_save(make(out, **options), None, "synthetic")
    # Killed between its last checkpoint and its end.
    killed = make(out, learning_rate=1e-2, **options)
    killed.train()
    run = make(out, learning_rate=1e-2, **options)
    train_and_save(run, str(out / "checkpoint-2"), "synthetic")
    names = ("adapter_model.safetensors", "trainer_state.json")
    assert all((out / name).read_bytes() == (out / "checkpoint-2" / name).read_bytes() for name in names)
    assert_equal(trained(run), trained(killed))


@pytest.mark.parametrize("kind", ["deepspeed", "fsdp"])
def test_what_loads_a_model_only_to_train_it_does_not_pretend_to_have_it(finished, tmp_path, monkeypatch, kind):
    out = tmp_path / "out"
    shutil.copytree(finished.args.output_dir, out)
    run = make(out)
    monkeypatch.setattr(run, f"is_{kind}_enabled", True)
    for start in (run.train, lambda checkpoint: train_and_save(run, checkpoint, "synthetic")):
        before = files(out)
        with pytest.raises(ValueError, match=r"finished .* once more with python, .*gradient_accumulation_steps=1\)"):
            start(str(out / "checkpoint-4"))
        assert files(out) == before
    # Done as it says; then there is nothing to do.
    train_and_save(make(out), str(out / "checkpoint-4"), "synthetic")
    before = files(out)
    train_and_save(run, str(out / "checkpoint-4"), "synthetic")
    assert files(out) == before


def test_a_run_that_was_stopped_early_is_finished(tmp_path):
    options = {"eval_strategy": "steps", "eval_steps": 1, "save_steps": 1, "load_best_model_at_end": True}
    options |= {"early_stopping_patience": 2, "learning_rate": 0.0, "max_steps": 8}
    first = make(tmp_path, **options)
    first.train()
    assert first.state.global_step == 3
    run = make(tmp_path, **options)
    run.train(resume_from_checkpoint=True)
    assert run.state.global_step == 3 and rates(run) == rates(first) and len(rates(run)) == 3
    # Its patience goes on where it was: one more evaluation ends it.
    run = make(tmp_path, **options)
    run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert run.state.global_step == 3


def test_a_finished_run_on_hard_samples(tmp_path, log):
    options = {"worst": 0.5, "include_review": True, "gradient_accumulation_steps": 1}
    first = make(tmp_path, HardSampleTrainer, **options)
    first.train()
    run = make(tmp_path, HardSampleTrainer, **options)
    log.clear()
    assert run.train(resume_from_checkpoint=True).global_step == 4
    assert "finished" in log.text
    assert_equal(trained(run), trained(first))


# What is missing


def test_a_checkpoint_without_optimizer_is_refused_unless_a_new_one_is_insisted_on(tmp_path, finished, log):
    make(tmp_path, save_only_model=True).train()
    shutil.rmtree(tmp_path / "checkpoint-4")
    with pytest.raises(ValueError, match="no optimizer state .*--allow_new_optimizer"):
        make(tmp_path).train(resume_from_checkpoint=True)
    run = make(tmp_path, allow_new_optimizer=True)
    run.train(resume_from_checkpoint=True)
    assert "a new optimizer begins at step 2; the learning rate is that of this step" in log.text
    assert rates(run) == rates(finished) and len(rates(run)) == 4


def test_a_new_optimizer_has_to_take_effect(finished, checkpoint, tmp_path):
    with pytest.raises(ValueError, match="no effect without resume_from_checkpoint"):
        make(tmp_path / "out", allow_new_optimizer=True).train()
    with pytest.raises(ValueError, match="no effect: .* has the state of its optimizer"):
        make(tmp_path / "out", allow_new_optimizer=True).train(resume_from_checkpoint=str(checkpoint))


@pytest.mark.parametrize(
    "name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "adapter_model.safetensors", "resume.json"]
)
@pytest.mark.parametrize("how", ["gone", "cut off"])
def test_a_file_that_is_missing_or_cut_off_is_named(checkpoint, tmp_path, name, how):
    file = checkpoint / name
    content = file.read_bytes()
    file.unlink()
    if how == "cut off":
        file.write_bytes(content[: len(content) // 2])
    run = make(tmp_path / "out")
    if (name, how) == ("resume.json", "gone"):  # of an older version: what fits goes on
        run.train(resume_from_checkpoint=str(checkpoint))
        assert run.state.global_step == 4
        return
    what = "no optimizer state" if (name, how) == ("optimizer.pt", "gone") else name
    if (name, how) == ("adapter_model.safetensors", "gone"):
        what = "valid checkpoint"
    with pytest.raises(ValueError, match=what):
        run.train(resume_from_checkpoint=str(checkpoint))
    assert run.state.global_step == 0


def test_what_deepspeed_has_saved_is_told_from_what_has_no_optimizer(checkpoint, tmp_path):
    (checkpoint / "optimizer.pt").rename(checkpoint / "kept")
    (checkpoint / "global_step2").mkdir()
    (checkpoint / "kept").rename(checkpoint / "global_step2" / "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    with pytest.raises(ValueError, match="saved with DeepSpeed, and this run is without"):
        make(tmp_path / "out").train(resume_from_checkpoint=str(checkpoint))
    run = make(tmp_path / "out", allow_new_optimizer=True)
    run.train(resume_from_checkpoint=str(checkpoint))
    assert run.state.global_step == 4


# What differs

RATHER = {
    "trainable": ({"trainable": "stage1"}, "trainable='head', and this run has trainable='stage1'"),
    "full": ({"trainable": "full"}, "trainable='head', and this run has trainable='full'"),
    "learning_rate": ({"learning_rate": 1e-4}, "learning_rate=0.001, and this run has learning_rate=0.0001"),
    "optim": ({"optim": "sgd"}, "optim=adamw_torch_fused, and this run has optim=sgd"),
    "seed": ({"seed": 7}, "seed=42, and this run has seed=7"),
    "data_seed": ({"data_seed": 7}, "seed=42, and this run has seed=7"),
    "sampling": ({"train_sampling_strategy": "sequential"}, "random, and this run has .*sequential"),
    "repeats": ({"dataset_repeats": 2}, "dataset_repeats=1, and this run has dataset_repeats=2"),
    "batch": ({"per_device_train_batch_size": 3}, "2 rows a step .*, and this run has 3 rows a step"),
    "accumulation": ({"gradient_accumulation_steps": 2}, "2 rows a step .*, and this run has 4 rows a step"),
    "rows": ({"data": DATA.select(range(5))}, r"6 rows than train_dataset has \(5\)"),
    "order": ({"data": DATA.select([1, 0, 2, 3, 4, 5])}, "other rows, or in another order"),
}


# Of an older checkpoint, without a record, only what trains can be told.
OLDER = ("trainable", "full")


@pytest.mark.parametrize(
    ("case", "older"), [*((name, False) for name in RATHER), *((name, True) for name in OLDER)], ids=str
)
def test_the_option_that_differs_is_named(checkpoint, tmp_path, case, older):
    options, message = RATHER[case]
    if older:
        (checkpoint / "resume.json").unlink()
    run = make(tmp_path / "out", **options)
    with pytest.raises(ValueError, match=message):
        run.train(resume_from_checkpoint=str(checkpoint))
    assert run.state.global_step == 0 and not rates(run)


@pytest.mark.parametrize("case", ["rows", "order", "batch", "learning_rate", "trainable"])
def test_the_option_that_differs_from_a_finished_runs_is_named(finished, tmp_path, case):
    options, message = RATHER[case]
    run = make(tmp_path, **options)
    with pytest.raises(ValueError, match=message):
        run.train(resume_from_checkpoint=f"{finished.args.output_dir}/checkpoint-4")


def test_more_steps_than_the_run_has_are_anothers_where_nothing_is_recorded(checkpoint, tmp_path):
    (checkpoint / "resume.json").unlink()
    with pytest.raises(ValueError, match="has 2 steps and this run 1: it is of other data"):
        make(tmp_path / "out", max_steps=1).train(resume_from_checkpoint=str(checkpoint))


def test_what_another_process_lacks_stops_this_one_too(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "everywhere", lambda value: [value, "ValueError('lacks rng_state_1.pth')"])
    run = make(tmp_path / "out")
    with pytest.raises(FeatureError, match="Another process failed: .*lacks rng_state_1.pth"):
        run.train(resume_from_checkpoint=str(checkpoint))
    assert run.state.global_step == 0


LORA = {
    "lora_r": ({"lora_r": 8}, "lora_r=4, and this run has lora_r=8"),
    "lora_alpha": ({"lora_alpha": 8}, "lora_alpha=16, and this run has lora_alpha=8"),
    "embeddings": ({"train_embeddings": "seg"}, "train_embeddings='none', and this run has train_embeddings='seg'"),
    "head": ({"trainable": "head", "lora_r": None, "lora_alpha": None}, "trainable='stage1', .* trainable='head'"),
    "own": (
        {"peft_config": LoraConfig(target_modules=["q_proj"]), "trainable": None, "lora_r": None, "lora_alpha": None},
        "trainable='stage1', and this run has trainable='an adapter of your own'",
    ),
}


@pytest.fixture(scope="module")
def stage1(tmp_path_factory):
    options = {"trainable": "stage1", "lora_r": 4, "lora_alpha": 16}
    run = make(tmp_path_factory.mktemp("stage1"), max_steps=2, **options)
    run.train()
    return f"{run.args.output_dir}/checkpoint-2", options


@pytest.mark.parametrize(("changed", "message"), LORA.values(), ids=LORA)
def test_the_option_of_the_adapter_that_differs_is_named(stage1, tmp_path, changed, message):
    checkpoint, options = stage1
    run = make(tmp_path, **{**options, **changed})
    with pytest.raises(ValueError, match=message):
        run.train(resume_from_checkpoint=checkpoint)
    assert run.state.global_step == 0


@pytest.mark.parametrize("embeddings", ["none", "seg", "full"])
def test_the_same_adapter_is_gone_on_with(tmp_path, embeddings):
    options = {"trainable": "stage1", "lora_r": 4, "train_embeddings": embeddings}
    make(tmp_path, max_steps=2, **options).train()
    run = make(tmp_path, max_steps=3, **options)
    run.train(resume_from_checkpoint=True)
    assert run.state.global_step == 3


def test_an_adapter_by_another_name_is_gone_on_with(tmp_path):
    def run(lora_r=4, **options):
        options = {**OPTIONS, "trainable": None, **options}
        model = get_peft_model(copy.deepcopy(TINY[0]), get_peft_config("stage1", 262, lora_r), adapter_name="vessels")
        return SegSFTTrainer(
            model,
            SegSFTConfig(str(tmp_path), **{name: value for name, value in options.items() if value is not None}),
            train_dataset=DATA,
            processing_class=TINY[1],
        )

    whole = run()
    whole.train()
    again = run()
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert_equal(trained(again), trained(whole))
    with pytest.raises(ValueError, match="lora_r=4, and this run has lora_r=8"):
        run(lora_r=8).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    file = tmp_path / "checkpoint-2" / "vessels" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match="vessels/adapter_model.safetensors is damaged"):
        run().train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_weights_of_another_size_are_a_sentence(checkpoint, tmp_path):
    from safetensors.torch import load_file, save_file

    file = checkpoint / "adapter_model.safetensors"
    weights = load_file(file)
    save_file({name: torch.cat([value, value]) for name, value in weights.items()}, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="does not fit this model"):
        make(tmp_path / "out").train(resume_from_checkpoint=str(checkpoint))


def test_an_optimizer_of_other_weights_is_a_sentence(checkpoint, tmp_path):
    file = checkpoint / "optimizer.pt"
    state = torch.load(file, weights_only=True)
    state["param_groups"][0]["params"].pop()
    torch.save(state, file)
    with pytest.raises(ValueError, match="its optimizer does not fit what trains here"):
        make(tmp_path / "out").train(resume_from_checkpoint=str(checkpoint))


def test_other_data_are_welcome_from_the_beginning_of_an_epoch(checkpoint, tmp_path):
    run = make(tmp_path / "out", ignore_data_skip=True, data=DATA.select(range(4)), per_device_train_batch_size=1)
    run.train(resume_from_checkpoint=str(checkpoint))
    assert run.state.global_step == 4


# Rows in their order


class Seen(TrainerCallback):
    """Notes the rows of each step, by number."""

    def __init__(self):
        self.rows = {}

    def watch(self, run):
        collate, step = run.data_collator, run.training_step
        run.data_collator = lambda rows: {**collate(rows), "numbers": [row["row_index"] for row in rows]}

        def training_step(model, inputs, *args, **kwargs):
            self.rows.setdefault(run.state.global_step + 1, []).extend(inputs.pop("numbers"))
            return step(model, inputs, *args, **kwargs)

        run.training_step = training_step
        return self


def test_rows_come_in_the_same_order_with_other_batches_of_the_same_rows(tmp_path):
    data = concatenate_datasets([DATA, synthetic_dataset(num_videos=1, frames_per_video=4, size=64, first_video=4)])
    options = {"data": data, "max_steps": 9, "save_steps": 1}
    whole = make(tmp_path / "whole", per_device_train_batch_size=2, gradient_accumulation_steps=2, **options)
    expected = Seen().watch(whole)
    whole.train()
    assert [len(rows) for rows in expected.rows.values()] == [4, 4, 2] * 3
    assert all(sorted(sum((expected.rows[3 * n + k] for k in (1, 2, 3)), [])) == list(range(10)) for n in range(3))
    assert expected.rows[1] != expected.rows[4] != expected.rows[7]
    for step, sizes in ((4, (4, 1)), (8, (1, 4)), (6, (2, 2))):
        names = ("per_device_train_batch_size", "gradient_accumulation_steps")
        run = make(tmp_path / f"from-{step}", **dict(zip(names, sizes, strict=True)), **options)
        seen = Seen().watch(run)
        run.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
        assert seen.rows == {number: rows for number, rows in expected.rows.items() if number > step}
        losses = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
        assert losses == pytest.approx(
            [entry["loss"] for entry in whole.state.log_history if "loss" in entry], rel=1e-4
        )


def test_the_order_of_rows_is_the_runs_own_whoever_seeds_torch(finished, checkpoint, tmp_path):
    fresh, resumed = Seen(), Seen()
    run = make(tmp_path / "fresh")
    fresh.watch(run)
    run.train()
    run = make(tmp_path / "out")
    resumed.watch(run)
    torch.manual_seed(5)
    run.train(resume_from_checkpoint=str(checkpoint))
    assert resumed.rows == {step: rows for step, rows in fresh.rows.items() if step > 2}
    assert run.args.data_seed == json.loads((checkpoint / "resume.json").read_text())["seed"] == run.args.seed
