import math
import re
from dataclasses import fields

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from datasets import concatenate_datasets
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from PIL import Image
from transformers import TrainingArguments
from trl import SFTConfig

from sa2va_trl import SegCollator, SegSFTConfig, SegSFTTrainer, tiny_sa2va
from sa2va_trl.adapters.presets import freeze_all_but_full, get_peft_config, trainable_table
from sa2va_trl.data import DatasetError, synthetic_dataset
from sa2va_trl.models.configuration import SUPPORTED_VLMS
from sa2va_trl.models.grounding import upsample_mask_logits
from sa2va_trl.trainers.sft_config import SFT_REFUSED


# What a mask loss on still images cannot reach, by construction: SAM 2's predicted IoU and object score feed no loss,
# the token of the single-mask output is not used, and of the three others only the chosen one gets a gradient.
UNREACHED = re.compile(r"iou_prediction_head|pred_obj_score_head|output_hypernetworks_mlps")


@pytest.fixture(scope="module")
def data():
    train = synthetic_dataset(num_videos=2, frames_per_video=4, size=64)
    return train, synthetic_dataset(num_videos=1, frames_per_video=4, size=64, first_video=2)


def config(tmp_path, **options):
    defaults = {
        "output_dir": str(tmp_path),
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
    }
    if options.get("trainable", "stage1") == "stage1":
        defaults |= {"lora_r": 4, "lora_dropout": 0.0}
    return SegSFTConfig(**{**defaults, **options})


def trainer(tmp_path, data, callbacks=None, peft_config=None, family="internvl", **options):
    model, processor = tiny_sa2va(image_size=128, family=family)
    return SegSFTTrainer(
        model=model,
        args=config(tmp_path, **options),
        train_dataset=data[0],
        eval_dataset=data[1],
        processing_class=processor,
        callbacks=callbacks,
        peft_config=peft_config,
    )


def steps(finished):
    return [entry for entry in finished.state.log_history if "loss" in entry]


def assert_same_run(first, second, tolerance=1e-4):
    one, other = steps(first), steps(second)
    assert len(one) == len(other) > 0
    for a, b in zip(one, other, strict=True):
        for name in ("loss", "grad_norm", "lm_loss", "mask_loss", "dice_loss"):
            assert a[name] == pytest.approx(b[name], rel=tolerance), name


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"trainable": "full"}, ("vlm.", "text_hidden_fcs", "image_encoder", "sam_mask_decoder")),
        ({"trainable": "head"}, ("text_hidden_fcs", "sam_mask_decoder")),
        ({}, ("lora_", "text_hidden_fcs", "sam_mask_decoder", "multi_modal_projector")),
        (
            {"train_embeddings": "seg"},
            ("lora_", "text_hidden_fcs", "sam_mask_decoder", "multi_modal_projector", "trainable_tokens"),
        ),
        (
            {"train_embeddings": "full"},
            ("lora_", "text_hidden_fcs", "sam_mask_decoder", "multi_modal_projector", "embed_tokens", "lm_head"),
        ),
    ],
    ids=["full", "head", "stage1", "stage1-seg", "stage1-embeddings"],
)
@pytest.mark.parametrize("family", SUPPORTED_VLMS)
def test_every_trainable_parameter_moves_and_no_frozen_one_does(tmp_path, data, family, options, expected):
    if family != "internvl":
        expected = [part for part in expected if part != "multi_modal_projector"]
    run = trainer(tmp_path, data, weight_decay=0.0, family=family, **options)
    before = {name: parameter.detach().clone() for name, parameter in run.model.named_parameters()}
    trainable = {name for name, parameter in run.model.named_parameters() if parameter.requires_grad}
    for part in expected:
        assert any(part in name for name in trainable), part
    assert all(any(part in name for part in expected) for name in trainable)
    run.train()
    moved = {name for name, parameter in run.model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved <= trainable
    still = {name for name in trainable - moved if not UNREACHED.search(name)}
    assert not still
    assert any("output_hypernetworks_mlps" in name for name in moved)
    assert {"lm_loss", "mask_loss", "dice_loss", "mean_token_accuracy"} <= set(steps(run)[0])


def test_head_trains_nothing_but_the_head_and_says_so(tmp_path, data, log):
    run = trainer(tmp_path, data, trainable="head")
    model = run.model.get_base_model()
    head = [model.text_hidden_fcs, model.grounding_encoder.mask_decoder]
    expected = sum(p.numel() for module in head for p in module.parameters() if p.requires_grad)
    trained = sum(p.numel() for p in run.model.parameters() if p.requires_grad)
    assert trained == expected
    assert f"{trained / 1e6:,.3f} M" in log.text


@pytest.mark.parametrize("family", SUPPORTED_VLMS)
def test_lora_is_on_every_linear_layer_of_the_language_model_and_nowhere_else(family):
    model, _ = tiny_sa2va(image_size=128, family=family)
    names = {
        "vlm.model.language_model." + name
        for name, module in model.vlm.model.language_model.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    assert len(names) == (3 if family == "internvl" else 2) * 7
    adapted = get_peft_model(model, get_peft_config("stage1", model.config.seg_token_id, lora_r=2))
    found = {name for name, module in adapted.base_model.model.named_modules() if isinstance(module, LoraLayer)}
    assert found == names


@pytest.mark.parametrize("family", SUPPORTED_VLMS)
def test_the_table_knows_every_part(family):
    model, _ = tiny_sa2va(image_size=128, family=family)
    freeze_all_but_full(model)
    tower = model.vlm.model.vision_tower if family == "internvl" else model.vlm.model.visual
    table = trainable_table(model)
    assert "other" not in table and ("projector" in table) is (family == "internvl")
    line = next(line for line in table.splitlines() if line.startswith("vision tower"))
    assert line.endswith(f" {sum(p.numel() for p in tower.parameters()) / 1e6:,.3f} M")


def test_accumulation_does_not_change_the_run(tmp_path, data):
    runs = []
    for batch, accumulation in ((8, 1), (2, 4), (1, 8)):
        run = trainer(
            tmp_path,
            data,
            trainable="full",
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            max_steps=2,
        )
        run.train()
        runs.append(run)
    assert_same_run(runs[0], runs[1])
    assert_same_run(runs[0], runs[2])


@pytest.mark.parametrize("family", SUPPORTED_VLMS)
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_does_not_change_the_run(tmp_path, data, reentrant, family):
    plain = trainer(tmp_path, data, family=family)
    plain.train()
    checkpointed = trainer(
        tmp_path,
        data,
        family=family,
        gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": reentrant},
    )
    checkpointed.train()
    assert_same_run(plain, checkpointed)


def test_resumed_equals_uninterrupted_with_everything_random(tmp_path, data):
    options = {
        "trainable": "stage1",
        "lora_dropout": 0.1,
        "num_points": 64,
        "augmentation": {"flip": 0.5, "rotation": 20, "gamma": 0.5},
        "question_templates": ["Please segment {phrase}.", "Where is {phrase}?"],
        "max_steps": 6,
        "save_strategy": "steps",
        "save_steps": 3,
    }
    whole = trainer(tmp_path / "whole", data, **options)
    whole.train()
    resumed = trainer(tmp_path / "whole", data, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert len(steps(whole)) == 6
    for a, b in zip(steps(whole)[3:], steps(resumed)[3:], strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)
    for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_evaluation_reports_dice_at_the_images_own_size(tmp_path, data):
    run = trainer(tmp_path, data, trainable="head", per_device_eval_batch_size=3)
    metrics = run.evaluate()
    model = run.model.eval()
    dices = []
    for row in data[1]:
        result = model.segment(
            image=row["image"],
            text="Please segment the blood vessel.",
            answer="Sure, [SEG].",
            processor=run.processing_class,
        )
        predicted, target = result.masks[0].numpy(), np.asarray(row["mask"]) > 0
        dices.append(2 * (predicted & target).sum() / (predicted.sum() + target.sum()))
    assert metrics["eval_dice"] == pytest.approx(np.mean(dices), abs=1e-6)
    assert metrics["eval_iou"] == pytest.approx(np.mean([d / (2 - d) for d in dices]), abs=1e-6)
    assert metrics["eval_mask_loss"] > 0


def test_best_checkpoint_by_dice_is_the_one_that_is_left(tmp_path, data):
    run = trainer(
        tmp_path,
        data,
        trainable="full",
        max_steps=4,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        save_total_limit=1,
    )
    run.train()
    dices = [entry["eval_dice"] for entry in run.state.log_history if "eval_dice" in entry]
    assert run.args.metric_for_best_model == "dice" and run.state.best_metric == pytest.approx(max(dices))
    assert run.evaluate()["eval_dice"] == pytest.approx(max(dices), abs=1e-6)


@pytest.mark.parametrize(
    ("trainable", "family"),
    [("stage1", "internvl"), ("head", "internvl"), *[("stage1", name) for name in SUPPORTED_VLMS[1:]]],
)
def test_saved_adapter_gives_the_same_masks(tmp_path, data, trainable, family):
    run = trainer(tmp_path, data, trainable=trainable, family=family)
    run.train()
    run.save_model()
    run.create_model_card()
    names = {path.name for path in tmp_path.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "processor_config.json", "README.md"} <= names
    base, processor = tiny_sa2va(image_size=128, family=family)
    loaded = PeftModel.from_pretrained(base, tmp_path).eval()
    request = {"image": data[1][0]["image"], "text": "Please segment the blood vessel.", "answer": "Sure, [SEG]."}
    expected = run.model.eval().segment(**request, processor=processor)
    torch.testing.assert_close(loaded.segment(**request, processor=processor).mask_logits, expected.mask_logits)
    merged = loaded.merge_and_unload()
    torch.testing.assert_close(
        merged.segment(**request, processor=processor).mask_logits, expected.mask_logits, rtol=1e-4, atol=1e-5
    )


def test_card_names_no_local_path(tmp_path, data):
    run = trainer(tmp_path / "secret_patient_name" / "run", data, trainable="head")
    run.create_model_card()
    card = (tmp_path / "secret_patient_name" / "run" / "README.md").read_text()
    assert "secret_patient_name" not in card and "SegSFTTrainer" in card


@pytest.mark.parametrize(("mask_size", "family"), [(None, "internvl"), *[(64, name) for name in SUPPORTED_VLMS]])
def test_rows_without_object_and_rows_of_text_train(tmp_path, data, mask_size, family):
    train = data[0].remove_columns(["hard", "frame_index", "video_id", "patient_id"])
    row = train[0]
    empty = Image.new("L", row["image"].size)
    rows = [
        {
            "image": row["image"],
            "masks": [row["mask"]],
            "phrases": ["blood vessel"],
            "sample_id": "a",
            "messages": None,
        },
        {"image": row["image"], "masks": [empty], "phrases": ["stent"], "sample_id": "b", "messages": None},
        {
            "image": None,
            "masks": [],
            "phrases": [],
            "sample_id": "c",
            "messages": [
                {"role": "user", "content": "Which vessel?"},
                {"role": "assistant", "content": "The left one."},
            ],
        },
    ]
    from datasets import Dataset, Features, List, Value
    from datasets import Image as ImageFeature

    features = Features(
        {
            "image": ImageFeature(),
            "masks": List(ImageFeature(mode="L")),
            "phrases": List(Value("string")),
            "sample_id": Value("string"),
            "messages": List({"role": Value("string"), "content": Value("string")}),
        }
    )
    mixed = Dataset.from_list(rows, features=features)
    run = trainer(
        tmp_path,
        (mixed, None),
        trainable="full",
        per_device_train_batch_size=1,
        max_steps=3,
        mask_size=mask_size,
        family=family,
    )
    run.train()
    logged = steps(run)
    assert all(math.isfinite(entry["loss"]) for entry in logged)
    assert sum(entry["mask_loss"] == 0 for entry in logged) == 1
    assert all(entry["lm_loss"] > 0 for entry in logged)


def clips_and_stills(rows):
    """A clip of three frames with two objects, and still images with one, of one film of the synthetic data."""
    from datasets import Dataset, Features, List, Value
    from datasets import Image as ImageFeature

    rows = [rows[index] for index in range(4)]
    turned = [row["mask"].transpose(Image.Transpose.ROTATE_180) for row in rows]
    clip = {
        "images": [row["image"] for row in rows[:3]],
        "masks": [row["mask"] for row in rows[:3]] + turned[:3],
        "phrases": ["blood vessel", "catheter"],
        "sample_id": "clip",
    }
    stills = [
        {"images": [row["image"]], "masks": [row["mask"]], "phrases": ["blood vessel"], "sample_id": f"still {number}"}
        for number, row in enumerate(rows[2:])
    ]
    features = Features(
        {
            "images": List(ImageFeature()),
            "masks": List(ImageFeature(mode="L")),
            "phrases": List(Value("string")),
            "sample_id": Value("string"),
        }
    )
    return Dataset.from_list([clip, *stills], features=features)


def test_clips_train_beside_still_images(tmp_path, data):
    mixed = clips_and_stills(data[0])
    runs = []
    for batch, accumulation in ((3, 1), (1, 3)):
        run = trainer(
            tmp_path,
            (mixed, None),
            trainable="full",
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
        )
        before = {name: parameter.detach().clone() for name, parameter in run.model.named_parameters()}
        run.train()
        assert all(math.isfinite(entry["loss"]) and entry["mask_loss"] > 0 for entry in steps(run))
        for part in ("vlm.", "text_hidden_fcs.", "image_encoder.", "sam_mask_decoder."):
            moved = [n for n, p in run.model.named_parameters() if part in n and not torch.equal(p, before[n])]
            assert moved, part
        runs.append(run)
    assert_same_run(*runs)


def test_masks_of_a_clip_pair_with_what_the_model_draws(tmp_path, data):
    """The loss of a clip is the mean of those of its (object, frame) pairs, drawn one by one."""
    mixed = clips_and_stills(data[0]).select([0])
    run = trainer(tmp_path, (data[1], mixed), trainable="head")  # (trained on other pictures)
    metrics = run.evaluate()
    model, processor = run.model.eval(), run.processing_class
    batch = SegCollator(processor)([mixed[0]])
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "pixel_values")}
    states = model.encode(**inputs).seg_states
    losses, dices = [], []
    with torch.no_grad():
        for number, mask in enumerate(mixed[0]["masks"]):
            seg, frame = divmod(number, 3)
            pixels = processor.grounding_inputs([mixed[0]["images"][frame]])
            candidates, ious, _ = model.grounding_encoder.decode(
                model.grounding_encoder.encode(pixels), model.text_hidden_fcs(states[seg : seg + 1]), torch.tensor([0])
            )
            logits = candidates[:, ious[0].argmax()]
            target = torch.from_numpy(np.asarray(mask.resize(logits.shape[-2:], Image.Resampling.NEAREST)) > 0)
            losses.append(F.binary_cross_entropy_with_logits(logits[0], target.float()).item())
            predicted = upsample_mask_logits(logits, 128, mask.size[::-1])[0].sigmoid().numpy() > 0.5
            target = np.asarray(mask) > 0
            dices.append(2 * (predicted & target).sum() / (predicted.sum() + target.sum()))
    assert metrics["eval_mask_loss"] == pytest.approx(np.mean(losses), rel=1e-4)
    assert metrics["eval_dice"] == pytest.approx(np.mean(dices), abs=1e-6)
    assert len(set(np.round(losses, 6))) == 6


@pytest.mark.parametrize("trainable", ["full", "head", "stage1"])
@pytest.mark.parametrize("separate", [False, True])
def test_the_decoder_of_the_language_prompt_is_the_one_that_trains(tmp_path, data, log, trainable, separate):
    small, processor = tiny_sa2va(image_size=128)
    small.config.grounding_config.separate_tracking_decoder = separate
    model, base = type(small)(small.config), type(small)(small.config)
    base.load_state_dict(model.state_dict())
    options = {"lora_r": 4} if trainable == "stage1" else {}
    run = SegSFTTrainer(
        model=model,
        args=config(tmp_path, trainable=trainable, max_steps=1, weight_decay=0.1, **options),
        train_dataset=data[0],
        processing_class=processor,
    )
    before = {name: parameter.detach().clone() for name, parameter in run.model.named_parameters()}
    run.train()
    moved = {name for name, parameter in run.model.named_parameters() if not torch.equal(parameter, before[name])}
    decoders = {match[0] for name in moved if (match := re.search(r"sam_mask_decoder(_modified)?(?=\.)", name))}
    assert decoders == {"sam_mask_decoder_modified" if separate else "sam_mask_decoder"}
    size = sum(parameter.numel() for parameter in model.grounding_encoder.mask_decoder.parameters())
    size //= 1 if trainable == "full" else 2  # beside the copy that trains, PEFT keeps the original
    line = next(line for line in "\n".join(log.messages).splitlines() if line.startswith("SAM 2 mask decoder"))
    assert line.split()[-2] == f"{size / 1e6:,.3f}"
    if trainable != "full":
        run.save_model()
        loaded = PeftModel.from_pretrained(base, tmp_path)
        clip = [row["image"] for row in data[1]]
        request = {"text": "Segment it.", "answer": "[SEG]", "processor": processor, "video": clip, "num_frames": 2}
        torch.testing.assert_close(
            loaded.eval().segment(**request).mask_logits, run.model.eval().segment(**request).mask_logits
        )


@pytest.mark.parametrize("name", sorted(SFT_REFUSED))
def test_options_without_meaning_raise(tmp_path, name):
    values = {
        "packing": True,
        "eval_packing": True,
        "packing_strategy": "wrapped",
        "padding_free": True,
        "pad_to_multiple_of": 8,
        "max_length": 512,
        "truncation_mode": "keep_end",
        "dataset_text_field": "prompt",
        "dataset_kwargs": {"skip_prepare_dataset": True},
        "shuffle_dataset": True,
        "completion_only_loss": True,
        "assistant_only_loss": True,
        "loss_type": "dft",
        "label_smoothing_factor": 0.1,
        "router_aux_loss_coef": 0.01,
        "chat_template_path": "x.jinja",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "label_names": ["labels"],
        "use_liger_kernel": True,
        "trust_remote_code": True,
        "eval_do_concat_batches": False,
        "batch_eval_metrics": True,
        "average_tokens_across_devices": False,
    }
    with pytest.raises(ValueError, match=rf"{name}="):
        config(tmp_path, **{name: values[name]})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trainable": "lora"}, "trainable"),
        ({"trainable": "head", "train_embeddings": "seg"}, "train_embeddings"),
        ({"mask_weight": -1.0}, "mask_weight"),
        ({"num_points": -1}, "num_points"),
        ({"dataset_repeats": 0}, "dataset_repeats"),
        ({"augmentation": {"flips": 0.5}}, "augmentation"),
        ({"augmentation": {"flip": 2.0}}, "augmentation.flip"),
        ({"answer_templates": ["Sure."]}, "answer_templates"),
        ({"question_templates": ["Segment it."]}, "question_templates"),
        ({"early_stopping_patience": 2}, "load_best_model_at_end"),
        ({"train_sampling_strategy": "group_by_length"}, "group_by_length"),
    ],
)
def test_bad_options_name_themselves(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        config(tmp_path, **options)


def test_every_option_that_sft_adds_is_refused_or_works():
    """What TRL adds to Trainer's options is either listed as refused or known to do something here."""
    works = {"learning_rate", "model_init_kwargs", "dataset_num_proc", "activation_offloading"}
    inherited = {entry.name for entry in fields(SFTConfig)} - {entry.name for entry in fields(TrainingArguments)}
    assert inherited - set(SFT_REFUSED) == works & inherited


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trainable": "head", "lora_r": 8}, "lora_r"),
        ({"trainable": "full", "lora_alpha": 8}, "lora_alpha"),
        ({"mask_size": 0}, "mask_size"),
        ({"cldice_iterations": -1}, "cldice_iterations"),
        (
            {
                "prediction_loss_only": True,
                "load_best_model_at_end": True,
                "eval_strategy": "steps",
                "eval_steps": 1,
                "save_strategy": "steps",
                "save_steps": 1,
            },
            "prediction_loss_only",
        ),
    ],
)
def test_options_that_contradict_each_other_raise(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        SegSFTConfig(str(tmp_path), use_cpu=True, report_to="none", **options)


def test_own_collator_decides_about_the_data(tmp_path, data):
    model, processor = tiny_sa2va(image_size=128)
    with pytest.raises(ValueError, match="mask_size"):
        SegSFTTrainer(
            model=model,
            args=SegSFTConfig(str(tmp_path), use_cpu=True, report_to="none", mask_size=64),
            data_collator=SegCollator(processor),
            train_dataset=data[0],
            processing_class=processor,
        )


@pytest.mark.parametrize("family", SUPPORTED_VLMS)
@pytest.mark.parametrize("trainable", ["stage1", "head"])
def test_frozen_parts_build_no_graph_under_checkpointing(tmp_path, data, trainable, family):
    options = {"lora_r": 4, "lora_dropout": 0.0} if trainable == "stage1" else {}
    model, processor = tiny_sa2va(image_size=128, family=family)
    args = SegSFTConfig(str(tmp_path), use_cpu=True, report_to="none", trainable=trainable, max_steps=1, **options)
    run = SegSFTTrainer(model=model, args=args, train_dataset=data[0], processing_class=processor)
    assert run.args.gradient_checkpointing
    base, seen = run.model.get_base_model(), {}
    tower = base.vlm.model.vision_tower if family == "internvl" else base.vlm.model.visual
    for name, module in (("tower", tower), ("language", base.vlm.model.language_model)):

        def look(module, inputs, output, name=name):
            seen.setdefault(name, output.last_hidden_state.requires_grad)

        module.register_forward_hook(look)
    run.train()
    assert seen == {"tower": False, "language": trainable == "stage1"}


def test_trained_weights_are_float32_on_a_half_precision_model(tmp_path, data):
    model, processor = tiny_sa2va(image_size=128)
    arguments = {"train_dataset": data[0], "processing_class": processor}
    common = {
        "use_cpu": True,
        "report_to": "none",
        "trainable": "head",
        "max_steps": 1,
        "gradient_checkpointing": False,
    }
    with pytest.raises(ValueError, match="half precision"):
        SegSFTTrainer(
            model=model.to(torch.bfloat16), args=SegSFTConfig(str(tmp_path), bf16=False, **common), **arguments
        )
    model = tiny_sa2va(image_size=128)[0].to(torch.bfloat16)
    run = SegSFTTrainer(model=model, args=SegSFTConfig(str(tmp_path), bf16=True, **common), **arguments)
    dtypes = {(parameter.requires_grad, parameter.dtype) for parameter in run.model.parameters()}
    assert dtypes == {(True, torch.float32), (False, torch.bfloat16)}


def test_a_head_trains_in_float32_beside_a_vlm_in_half_precision(tmp_path, data):
    def make(**options):
        model, processor = tiny_sa2va(image_size=128)
        model.config.grounding_dtype = "float32"
        model.vlm.to(torch.bfloat16)
        common = {"use_cpu": True, "report_to": "none", "trainable": "head", "max_steps": 1, "lm_weight": 0}
        common |= {"gradient_checkpointing": False, "cache_features": "on", "cache_dir": str(tmp_path / "features")}
        args = SegSFTConfig(str(tmp_path), **common, **options)
        return SegSFTTrainer(model=model, args=args, train_dataset=data[0], processing_class=processor)

    with pytest.raises(ValueError, match="bf16_full_eval casts all weights, and grounding_dtype has no effect"):
        make(bf16_full_eval=True)
    run = make(bf16=False)
    before = {name: parameter.detach().clone() for name, parameter in run.model.named_parameters()}
    run.train()
    for name, parameter in run.model.named_parameters():
        assert parameter.dtype == (torch.bfloat16 if ".vlm." in name else torch.float32), name
        assert parameter.requires_grad or torch.equal(parameter, before[name]), name
    assert any(not torch.equal(p, before[name]) for name, p in run.model.named_parameters() if p.requires_grad)


def test_column_of_the_trainers_own_is_refused(tmp_path, data):
    with pytest.raises(DatasetError, match="row_index"):
        trainer(tmp_path, (data[0].add_column("row_index", list(range(len(data[0])))), None))


def test_preset_and_own_adapter_contradict(tmp_path, data):
    with pytest.raises(ValueError, match="trainable"):
        trainer(tmp_path, data, trainable="head", peft_config=LoraConfig(target_modules="all-linear"))
    with pytest.raises(ValueError, match="lora_r"):
        trainer(tmp_path, data, peft_config=LoraConfig(target_modules="all-linear"))


def test_bad_data_is_refused_before_training(tmp_path, data):
    leaking = concatenate_datasets([data[1], data[0].select([0])])
    with pytest.raises(DatasetError, match=r"sample_id|video_id|patient_id"):
        trainer(tmp_path, (data[0], leaking))
    with pytest.raises(DatasetError, match="train_dataset is empty"):
        trainer(tmp_path, (data[0].select([]), data[1]))
    with pytest.raises(DatasetError, match="eval_dataset"):
        trainer(tmp_path, (data[0], data[1].remove_columns("mask")))
    assert not list(tmp_path.iterdir())


def test_data_can_be_repeated(tmp_path, data):
    run = trainer(tmp_path, data, dataset_repeats=3)
    assert len(run.train_dataset) == 3 * len(data[0])
    rows = run.get_train_dataloader().dataset
    assert [row["row_index"] for row in rows] == list(range(3 * len(data[0])))
    assert [row["sample_id"] for row in rows] == data[0]["sample_id"][:] * 3


def test_all_losses_are_logged_and_add_up(tmp_path, data):
    weights = {"lm_weight": 1.0, "mask_weight": 2.0, "dice_weight": 0.5, "skeleton_recall_weight": 0.3}
    weights |= {"cldice_weight": 0.2, "scnp_weight": 0.15, "iou_weight": 0.1}
    run = trainer(tmp_path, data, cldice_iterations=3, max_steps=1, **weights)
    run.train()
    entry = steps(run)[0]
    total = sum(weight * entry[name.replace("_weight", "_loss")] for name, weight in weights.items())
    assert entry["loss"] == pytest.approx(total, rel=1e-3)
    assert entry["cldice_loss"] > 0 and entry["scnp_loss"] > entry["mask_loss"] + entry["dice_loss"]
