import json
import re

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

from sa2va_trl import Sa2VAForConditionalGeneration, SegCollator, SegSFTConfig, SegSFTTrainer, tiny_sa2va
from sa2va_trl.adapters.base_model import SAMPLES, base_fingerprint, base_record, check_base
from sa2va_trl.adapters.mask_options import store_mask_options
from sa2va_trl.adapters.peft_model import SegPeftModel, add_adapter, can_join, is_adapter, load_adapter, merge_adapter
from sa2va_trl.adapters.presets import get_peft_config
from sa2va_trl.data import synthetic_dataset
from sa2va_trl.hub import commit_operations, resume_operations
from sa2va_trl.model_card import model_card, public_name


PRESETS = [("head", "none"), ("stage1", "none"), ("stage1", "seg"), ("stage1", "full")]


def base(**options):
    return tiny_sa2va(image_size=128, **options)[0].eval()


def perturbed(model, trainable="stage1", embeddings="none", seed=0):
    """An adapter all of whose weights differ from those it starts with."""
    config = get_peft_config(trainable, model.config.seg_token_id, 4, 8, 0.0, embeddings)
    adapted = SegPeftModel.adopt(get_peft_model(model, config))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_((noise * 0.1 * (parameter.abs().mean() + 0.1)).to(parameter.dtype))
    return adapted.eval()


@pytest.fixture(scope="module")
def inputs():
    batch = SegCollator(tiny_sa2va(image_size=128)[1])(
        list(synthetic_dataset(num_videos=1, frames_per_video=2, size=64))
    )
    return {name: batch[name] for name in batch if name not in ("labels", "masks", "original_masks")}


@torch.no_grad()
def outputs(model, inputs):
    found = model.eval()(**inputs)
    return found.logits.double(), found.mask_logits.double()


def difference(found, expected):
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(found, expected, strict=True))


# The base of an adapter


@pytest.mark.parametrize("tied", [False, True])
def test_fingerprint_does_not_depend_on_how_the_weights_are_held(tmp_path, tied):
    model = base(tie_word_embeddings=tied)
    model.bfloat16().float()  # as published weights are
    expected = base_fingerprint(model)
    model.save_pretrained(tmp_path, max_shard_size="1MB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        loaded = Sa2VAForConditionalGeneration.from_pretrained(tmp_path, dtype=dtype)
        check_base(loaded, base_record(loaded), write_record(tmp_path / "adapter", expected))
        if dtype != torch.float16:
            assert base_fingerprint(loaded) == expected
    for trainable, embeddings in PRESETS:
        wrapped = perturbed(Sa2VAForConditionalGeneration.from_pretrained(tmp_path), trainable, embeddings)
        assert base_fingerprint(wrapped) == expected, (trainable, embeddings)
    assert ("vlm.lm_head (linear layers)" in expected) != tied


def test_fingerprint_of_weights_that_only_float32_holds_is_that_of_bfloat16(tmp_path):
    model = base()
    expected = base_fingerprint(model)
    found = base_fingerprint(model.bfloat16())
    assert all(found[part]["bfloat16"] == expected[part]["bfloat16"] for part in expected)
    # And a half-precision base is the one of a float32 adapter.
    for dtype in (torch.bfloat16, torch.float16):
        half = base().to(dtype)
        check_base(half, base_record(half), write_record(tmp_path, expected))


def write_record(folder, fingerprint, **values):
    folder.mkdir(exist_ok=True)
    record = {"base_model_name_or_path": None, "revision": None, "fingerprint": fingerprint, **values}
    (folder / "base_model.json").write_text(json.dumps(record))
    return folder


def test_fingerprint_sees_every_single_tensor():
    model = base()
    expected = base_fingerprint(model)
    # All of the language model, and every eighth of the others, for time.
    chosen = [
        (name, parameter)
        for index, (name, parameter) in enumerate(model.named_parameters())
        if "language_model" in name or index % 8 == 0
    ]
    for name, parameter in chosen:
        value = parameter.detach().clone()
        with torch.no_grad():
            parameter += 0.01 * parameter.abs().mean() + 0.01
        found = base_fingerprint(model)
        different = [part for part in expected if found[part] != expected[part]]
        assert len(different) == 1 and name.startswith(different[0].split(" ")[0]), name
        with torch.no_grad():
            parameter.copy_(value)
    assert len(chosen) > 70 and base_fingerprint(model) == expected


def test_a_small_low_rank_change_of_one_layer_is_seen():
    model = base()
    expected = base_fingerprint(model)
    weight = model.vlm.model.language_model.layers[1].mlp.up_proj.weight
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        delta = torch.randn(len(weight), 1, generator=generator) @ torch.randn(1, weight.shape[1], generator=generator)
        weight += delta * weight.std() * 0.02
    assert [part for part in expected if base_fingerprint(model)[part] != expected[part]] == [
        "vlm.model.language_model (linear layers)"
    ]


@pytest.mark.parametrize("place", [(0,), (-1,), (slice(None), 0), (slice(None), -1)])
def test_a_change_of_one_row_or_column_is_seen(place):
    model = base()
    expected = base_fingerprint(model)
    weight = model.vlm.model.language_model.layers[1].mlp.up_proj.weight
    assert weight.numel() > 4 * SAMPLES
    with torch.no_grad():
        weight[place] += 1
    assert base_fingerprint(model) != expected


def test_the_same_values_in_another_shape_are_another_base(tmp_path):
    model = base()
    write_record(tmp_path, base_fingerprint(model))
    layer = model.vlm.model.language_model.layers[1].mlp.up_proj
    layer.weight = nn.Parameter(layer.weight.detach().reshape(layer.weight.T.shape))
    with pytest.raises(ValueError, match="linear layers"):
        check_base(model, base_record(model), tmp_path)


# Stands in for bitsandbytes, which replaces the weights of linear layers by packed bytes.
def quantise(model):
    for module in model.vlm.model.language_model.modules():
        if isinstance(module, nn.Linear):
            packed = torch.zeros(module.weight.numel() // 2, 1, dtype=torch.uint8)
            module.weight = nn.Parameter(packed, requires_grad=False)
    return model


def test_a_quantised_language_model_is_compared_by_its_other_parts(tmp_path):
    expected = base_fingerprint(base())
    quantised = quantise(base())
    record = base_record(quantised)
    assert [part for part, digests in record["fingerprint"].items() if digests is None] == [
        "vlm.model.language_model (linear layers)"
    ]
    check_base(quantised, record, write_record(tmp_path, expected))
    # And the other way round: trained on quantised weights, loaded on whole ones.
    whole = base()
    check_base(whole, base_record(whole), write_record(tmp_path, record["fingerprint"]))
    with torch.no_grad():
        quantised.text_hidden_fcs[0].bias += 1
    with pytest.raises(ValueError, match="text_hidden_fcs"):
        check_base(quantised, base_record(quantised), write_record(tmp_path, expected))


def test_merging_into_quantised_weights_is_refused():
    adapted = perturbed(base())
    quantise(adapted.get_base_model())
    with pytest.raises(ValueError, match="quantised"):
        merge_adapter(adapted)


def test_another_base_is_refused_with_both_names_and_the_part(tmp_path):
    perturbed(base()).save_pretrained(tmp_path)
    record = json.loads((tmp_path / "base_model.json").read_text())
    write_record(tmp_path, record["fingerprint"], base_model_name_or_path="user/right", revision="abc")
    other = base()
    other.config._name_or_path = "user/wrong"
    with torch.no_grad():
        other.vlm.model.language_model.layers[0].self_attn.q_proj.weight[3] *= 1.5
    with pytest.raises(ValueError) as error:
        load_adapter(other, str(tmp_path))
    assert re.search(r"user/right \(revision abc\).*user/wrong.*language_model \(linear layers\)", str(error.value))
    assert "vision_tower" not in str(error.value)
    with pytest.raises(ValueError, match="vlm.lm_head"):
        load_adapter(base(tie_word_embeddings=True), str(tmp_path))
    with pytest.raises(ValueError, match="vision_tower"):
        load_adapter(base(seed=1), str(tmp_path), merge=True)
    assert isinstance(load_adapter(base(), str(tmp_path)), SegPeftModel)


@pytest.mark.parametrize("init", [True, "pissa"])  # with a record of the weights, and without
def test_an_adapter_of_another_seg_state_is_refused(tmp_path, init):
    model = base()
    model.config.seg_state = "raw"
    targets = r".*\.language_model\..*\.q_proj"
    SegPeftModel.adopt(
        get_peft_model(model, LoraConfig(r=2, target_modules=targets, init_lora_weights=init))
    ).save_pretrained(tmp_path)
    record = json.loads((tmp_path / "base_model.json").read_text())
    assert record["seg_state"] == "raw"
    with pytest.raises(
        ValueError, match=r"trained on masks from seg_state=raw, but .* from seg_state=normed: load the"
    ):
        load_adapter(base(), str(tmp_path))
    same = base()
    same.config.seg_state = "raw"
    assert load_adapter(same, str(tmp_path), merge=True).config.seg_state == "raw"
    # An adapter of an earlier version, when all states were normed.
    del record["seg_state"]
    (tmp_path / "base_model.json").write_text(json.dumps(record))
    assert isinstance(load_adapter(base(), str(tmp_path)), SegPeftModel)
    other = base()
    other.config.seg_state = "raw"
    with pytest.raises(ValueError, match=r'load the base with "seg_state": "normed" in its config.json'):
        load_adapter(other, str(tmp_path))


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"fingerprint": [1]}', '{"fingerprint": {"a": "b"}}'])
def test_a_damaged_record_is_refused(tmp_path, content):
    perturbed(base(), "head").save_pretrained(tmp_path)
    (tmp_path / "base_model.json").write_text(content)
    with pytest.raises(ValueError, match="base_model.json"):
        load_adapter(base(), str(tmp_path))


def test_an_adapter_that_starts_by_changing_its_base_is_not_refused_for_it(tmp_path, inputs):
    config = LoraConfig(r=2, target_modules=r".*\.language_model\..*\.q_proj", init_lora_weights="pissa")
    adapted = SegPeftModel.adopt(get_peft_model(base(), config))
    with torch.no_grad():
        adapted.get_base_model().vlm.model.language_model.layers[0].self_attn.q_proj.lora_B["default"].weight += 0.1
    expected = outputs(adapted, inputs)
    adapted.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "base_model.json").read_text())["fingerprint"] is None
    assert difference(outputs(load_adapter(base(), str(tmp_path)), inputs), expected) < 1e-5


def test_a_sharded_base_takes_no_adapter(tmp_path):
    perturbed(base(), "head").save_pretrained(tmp_path)
    model, adapted = base(), perturbed(base(), "head")
    for sharded in (model, adapted.get_base_model()):
        next(sharded.parameters()).ds_id = 0  # as ZeRO-3 marks its parameters
    with pytest.raises(ValueError, match="ZeRO-3"):
        load_adapter(model, str(tmp_path))
    with pytest.raises(ValueError, match="ZeRO-3"):
        merge_adapter(adapted)


@pytest.mark.parametrize("strategy", ["checkpoint", "all_checkpoints"])
def test_sharded_checkpoints_are_not_pushed(tmp_path, strategy):
    model, processor = tiny_sa2va(image_size=128)
    config = SegSFTConfig(
        str(tmp_path), trainable="head", use_cpu=True, hub_model_id="user/name", hub_strategy=strategy
    )
    data = synthetic_dataset(num_videos=1, frames_per_video=2, size=64)
    trainer = SegSFTTrainer(model=model, args=config, train_dataset=data, processing_class=processor)
    trainer.is_deepspeed_enabled = True
    with pytest.raises(ValueError, match="every_save"):
        trainer.init_hf_repo()


def test_resuming_on_another_base_is_refused(tmp_path):
    data = synthetic_dataset(num_videos=1, frames_per_video=2, size=64)
    options = {"max_steps": 2, "save_steps": 1, "gradient_checkpointing": False, "use_cpu": True, "report_to": "none"}

    def trainer(seed):
        model, processor = tiny_sa2va(image_size=128, seed=seed)
        config = SegSFTConfig(str(tmp_path), trainable="head", num_points=0, disable_tqdm=True, **options)
        return SegSFTTrainer(model=model, args=config, train_dataset=data, processing_class=processor)

    trainer(0).train()
    for name in ("base_model.json", "adapter_model.safetensors", "processor_config.json", "README.md"):
        assert (tmp_path / "checkpoint-1" / name).is_file()
    with pytest.raises(ValueError, match="vision_tower"):
        trainer(1).train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    trainer(0).train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


# Loading


def test_missing_unexpected_and_misshapen_weights_are_all_named(tmp_path):
    perturbed(base()).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "adapter_model.safetensors")
    names = sorted(weights)
    del weights[names[0]]
    weights["base_model.model.stranger"] = torch.zeros(1)
    weights[names[5]] = weights[names[5]].flatten()[:2].clone()
    save_file(weights, tmp_path / "adapter_model.safetensors", metadata={"format": "pt"})
    model = base()
    with pytest.raises(ValueError) as error:
        load_adapter(model, str(tmp_path))
    for name in (names[0], "base_model.model.stranger", names[5]):
        assert name in str(error.value)
    assert base_fingerprint(model) == base_fingerprint(base())  # as it was, without wrappers
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in base().named_parameters()]


def test_a_folder_without_safetensors_is_refused(tmp_path):
    perturbed(base(), "head").save_pretrained(tmp_path)
    torch.save(load_file(tmp_path / "adapter_model.safetensors"), tmp_path / "adapter_model.bin")
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(ValueError, match="adapter_model.safetensors"):
        load_adapter(base(), str(tmp_path))


def test_a_name_that_is_neither_folder_nor_hub_id_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no Hub id"):
        load_adapter(base(), str(tmp_path / "nowhere"))


# Merging


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("trainable", "embeddings"), PRESETS)
def test_loaded_and_merged_models_are_the_adapter(tmp_path, inputs, trainable, embeddings, tied):
    adapted = perturbed(base(tie_word_embeddings=tied), trainable, embeddings)
    expected = outputs(adapted, inputs)
    adapted.save_pretrained(tmp_path / "adapter")
    assert difference(outputs(base(tie_word_embeddings=tied), inputs), expected) > 0.01
    again = PeftModel.from_pretrained(base(tie_word_embeddings=tied), tmp_path / "adapter")
    assert difference(outputs(again, inputs), expected) == 0
    merged = load_adapter(base(tie_word_embeddings=tied), str(tmp_path / "adapter"), merge=True)
    assert difference(outputs(merged, inputs), expected) < 1e-5
    assert not any("lora" in name or "modules_to_save" in name for name, _ in merged.named_parameters())
    # Both sides of a tied head trained apart: it is untied, in weights and config, and stays so on disk.
    still_tied = tied and embeddings == "none"
    head, tokens = merged.get_output_embeddings().weight, merged.get_input_embeddings().weight
    assert (head is tokens) == still_tied
    merged.save_pretrained(tmp_path / "merged")
    reloaded, info = Sa2VAForConditionalGeneration.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not any(info.values())
    assert reloaded.config.tie_word_embeddings == still_tied
    assert difference(outputs(reloaded, inputs), expected) < 1e-5


@pytest.mark.parametrize("rows", [{"embed_tokens": [262]}, {"lm_head": [262]}], ids=["embeddings", "head"])
def test_a_tied_head_with_only_one_side_trained_merges_as_the_adapter_computes(inputs, rows):
    model = base(tie_word_embeddings=True)
    modules = ["text_hidden_fcs"]
    config = LoraConfig(r=2, target_modules=r".*\.language_model\..*\.q_proj", modules_to_save=modules)
    config.trainable_token_indices = rows
    adapted = get_peft_model(model, config).eval()
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter += 0.1
    expected = outputs(adapted, inputs)
    merged = merge_adapter(adapted)
    assert difference(outputs(merged, inputs), expected) < 1e-5
    assert merged.config.tie_word_embeddings == (
        merged.get_output_embeddings().weight is merged.get_input_embeddings().weight
    )


def test_sums_are_rounded_once(tmp_path):
    """Merged into bfloat16, every weight is the float32 sum rounded; a delta rounded first would often differ."""
    adapted = perturbed(base().bfloat16())
    layer = adapted.get_base_model().vlm.model.language_model.layers[0].mlp.up_proj
    total = layer.base_layer.weight.float() + layer.get_delta_weight("default").float()
    twice = layer.base_layer.weight + layer.get_delta_weight("default").bfloat16()
    assert not torch.equal(twice, total.bfloat16())
    merged = merge_adapter(adapted)
    found = merged.vlm.model.language_model.layers[0].mlp.up_proj.weight
    assert found.dtype == torch.bfloat16 and torch.equal(found, total.bfloat16())
    assert {p.dtype for p in merged.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in merge_adapter(perturbed(base().bfloat16()), torch.float32).parameters()} == {
        torch.float32
    }


def test_a_broken_adapter_is_not_merged():
    adapted = perturbed(base())
    with torch.no_grad():
        adapted.get_base_model().vlm.model.language_model.layers[0].mlp.up_proj.lora_B["default"].weight[0, 0] = (
            torch.nan
        )
    with pytest.raises(ValueError, match="NaN"):
        merge_adapter(adapted)


def test_a_merged_model_does_not_pass_for_its_base():
    model = base()
    model.config._name_or_path = "user/base"
    merged = merge_adapter(perturbed(model))
    assert base_record(merged)["base_model_name_or_path"] is None
    assert base_record(merged)["fingerprint"] != base_fingerprint(base())


# What is published

NAME = "smith_john"
PRIVATE = st.sampled_from(
    [
        f"/data/{NAME}",
        f"../{NAME}",
        f"./{NAME}",
        f"~/{NAME}",
        NAME,
        f"data/{NAME}/angio",
        f"C:\\{NAME}\\angio",
        f"file://{NAME}/a",
        f"{NAME}/a b",
        f"{NAME}/a\nbase_model: x/y",
        f"-{NAME}/a",
        f"{NAME}/a..b",
        f"{NAME}/",
        f"/{NAME}",
        f"{NAME}.zip",
        f"https://hospital/{NAME}",
    ]
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    base_model=PRIVATE,
    dataset=PRIVATE | st.lists(PRIVATE),
    name=st.sampled_from(["sample_id", "patient_id", NAME, f"dice {NAME}"]),
    key=st.sampled_from(["ci95", "mean", "n"]),
)
def test_a_card_holds_nothing_private(base_model, dataset, name, key):
    rows = [{"patient_id": NAME, "dice": 0.1}]
    value = {"mean": 0.7, "std": 0.1, "ci95": [0.6, 0.8], "n": 5, "groups": {NAME: rows}, NAME: 1}
    card = model_card(
        "Sa2VA adapter",
        base_model=base_model,
        dataset_name=dataset,
        metrics={"dice": value, name: value, "per_group": rows},
        log=[{"step": 1, "eval_dice": 0.5, "eval_iou": 0.4, f"eval_{NAME}_dice": 0.1}, {f"eval_{NAME}_loss": 1.0}],
    )
    assert NAME not in str(card)
    assert "| dice | 0.7000 | 0.6000 - 0.8000 | 5 |" in str(card)
    assert "| 1 | 0.5000 | 0.4000 |" in str(card)
    front = yaml.safe_load(str(card).split("---\n")[1])
    assert front.keys() == {"library_name", "pipeline_tag", "tags"}
    # A value that is no number is not printed but refused, and the message does not go into the card.
    with pytest.raises(ValueError, match="metrics.json"):
        model_card("x", metrics={"dice": {**value, key: NAME}})


def test_only_hub_ids_that_are_no_local_path_are_public(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert public_name("patients/smith") == "patients/smith"
    (tmp_path / "patients" / "smith").mkdir(parents=True)
    assert public_name("patients/smith") is None
    assert public_name("ByteDance/Sa2VA-4B") == "ByteDance/Sa2VA-4B"
    assert public_name(None) is None and public_name("") is None


def test_saving_by_hand_names_no_path(tmp_path):
    folder = tmp_path / NAME
    base().save_pretrained(folder / "base")
    adapted = perturbed(Sa2VAForConditionalGeneration.from_pretrained(folder / "base"))
    adapted.save_pretrained(tmp_path / "out")
    for file in (tmp_path / "out").iterdir():
        assert NAME.encode() not in file.read_bytes(), file.name
    again = load_adapter(Sa2VAForConditionalGeneration.from_pretrained(folder / "base"), str(tmp_path / "out"))
    again.save_pretrained(tmp_path / "again")
    for file in (tmp_path / "again").iterdir():
        assert NAME.encode() not in file.read_bytes(), file.name
    with pytest.raises(ValueError, match="pickle"):
        adapted.save_pretrained(tmp_path / "out", safe_serialization=False)


def test_of_a_folder_only_listed_files_go_up(tmp_path, tiny):
    perturbed(tiny[0]).save_pretrained(tmp_path)
    expected = {operation.path_in_repo for operation in commit_operations(tmp_path, True, tiny[1])}
    strangers = ("training_args.bin", "smith.png", "metrics.json", "model-smith.safetensors", "trainer_state.json")
    for name in (*strangers, "optimizer.pt", "tokenizer_smith.json", "model.safetensors", "adapter_model.bin"):
        (tmp_path / name).write_text("smith")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "smith.safetensors").write_text("smith")
    assert {operation.path_in_repo for operation in commit_operations(tmp_path, True, tiny[1])} == expected
    assert {"adapter_model.safetensors", "base_model.json", "README.md", "tokenizer.json"} < expected


def test_a_pushed_state_has_no_paths_and_no_names_of_evaluation_sets(tmp_path):
    state = {
        "best_model_checkpoint": "/data/smith/checkpoint-5",
        "trial_name": "smith",
        "trial_params": {"smith": 1},
        "global_step": 5,
        "log_history": [{"step": 5, "loss": 1.0, "eval_smith_dice": 0.5, "eval_dice": 0.5}],
        "stateful_callbacks": {"_Progress": {"attributes": {"start": {"eval_smith": [0.5], "eval": [0.4]}}}},
    }
    (tmp_path / "trainer_state.json").write_text(json.dumps(state))
    (tmp_path / "training_args.bin").write_bytes(b"smith")
    states = ("optimizer.pt", "actor_critic.pt")
    for name in states:
        (tmp_path / name).write_bytes(b"numbers")
    operations = {o.path_in_repo: o for o in resume_operations(tmp_path, "last-checkpoint", ["smith"])}
    assert operations.keys() == {f"last-checkpoint/{name}" for name in (*states, "trainer_state.json")}
    content = operations["last-checkpoint/trainer_state.json"].path_or_fileobj
    assert b"smith" not in content
    assert json.loads(content)["log_history"] == [{"step": 5, "loss": 1.0, "eval_dice": 0.5}]
    assert json.loads(content)["stateful_callbacks"]["_Progress"]["attributes"]["start"] == {"eval": [0.4]}
    assert json.loads(content)["best_model_checkpoint"] == "checkpoint-5"


# Several adapters on one base


def test_an_adapter_beside_another_waits_for_its_turn(tmp_path, inputs):
    for seed, name in enumerate(("one", "other")):
        perturbed(base(), "head", seed=seed).save_pretrained(tmp_path / name)
    store_mask_options(tmp_path / "other", mask_threshold=0.3, mask_temperature=2.0)
    expected = {name: outputs(load_adapter(base(), str(tmp_path / name)), inputs) for name in ("one", "other")}
    model = load_adapter(base(), str(tmp_path / "one"))
    same, options = add_adapter(model, str(tmp_path / "other"), "second")
    own = {"mask_threshold": 0.3, "mask_temperature": 2.0, "mask_postprocessing": {}}
    assert same is model and options == own
    assert (model.config.mask_threshold, model.config.mask_temperature) == (0.5, 1.0)  # the first one's
    assert difference(outputs(model, inputs), expected["one"]) == 0
    model.set_adapter("second", inference_mode=True)
    assert difference(outputs(model, inputs), expected["other"]) == 0
    assert difference(expected["one"], expected["other"]) > 1e-2


def test_folders_of_adapters_are_told_from_others(tmp_path):
    perturbed(base(), "stage1", "seg").save_pretrained(tmp_path / "rows")
    perturbed(base(), "head").save_pretrained(tmp_path / "head")
    (tmp_path / "empty").mkdir()
    assert is_adapter(str(tmp_path / "head")) and not is_adapter(str(tmp_path / "empty"))
    with pytest.raises(ValueError, match="There is no folder"):
        is_adapter(str(tmp_path / "none"))
    for name, other in (("head", "rows"), ("rows", "head")):
        model = load_adapter(base(), str(tmp_path / name))
        assert can_join(model, str(tmp_path / name)) and not can_join(model, str(tmp_path / other))
        assert can_join(base(), str(tmp_path / other))
