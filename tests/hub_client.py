"""
What a user does with the Hub, as a program of its own: the client of huggingface_hub reads its endpoint once, when it
is imported. Run by `adapters/test_peft_model.py` with a folder to work in; prints one JSON object.
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from huggingface_hub import constants, snapshot_download
from peft import PeftModel

from sa2va_trl import Sa2VAForConditionalGeneration, Sa2VAProcessor, SegSFTConfig, SegSFTTrainer, tiny_sa2va
from sa2va_trl.adapters.peft_model import load_adapter
from sa2va_trl.data import synthetic_dataset


FOLDER = Path(sys.argv[1])
# Rows of a raw folder are called after its files and patients.
DATA = synthetic_dataset(num_videos=1, frames_per_video=4, size=64)
for name in ("video_id", "patient_id"):
    DATA = DATA.remove_columns(name).add_column(name, [f"SMITH^JOHN_{number // 2}" for number in range(len(DATA))])
DATA = DATA.remove_columns("sample_id").add_column("sample_id", [f"smith_{number}" for number in range(len(DATA))])
EVALUATION = synthetic_dataset(num_videos=1, frames_per_video=2, size=64, first_video=2)


def trainer(base, processor, name, **options):
    output = FOLDER / name
    output.mkdir(exist_ok=True)
    # What users leave lying in such a folder.
    (output / "smith_john.png").write_bytes(b"smith")
    (output / "metrics.json").write_text('{"smith": 1}')
    defaults = {
        "max_steps": 2,
        "save_steps": 1,
        "eval_steps": 1,
        "eval_strategy": "steps",
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "gradient_checkpointing": False,
        "num_points": 0,
        "lora_r": 4,
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": 1,
        "run_name": "smith",
        "push_to_hub": True,
        "hub_always_push": True,
    }
    return SegSFTTrainer(
        model=base,
        args=SegSFTConfig(str(output), **{**defaults, **options}),
        train_dataset=DATA,
        eval_dataset={"smith": EVALUATION},
        processing_class=processor,
    )


@torch.no_grad()
def outputs(model, processor):
    model = model.eval()
    result = model.segment(image=DATA[0]["image"], text="Vessel?", processor=processor, answer="Sure, [SEG].")
    return result.mask_logits


def load(name):
    return Sa2VAForConditionalGeneration.from_pretrained(name), Sa2VAProcessor.from_pretrained(name)


def fetched_weights(name):
    snapshots = Path(constants.HF_HUB_CACHE, f"models--{name.replace('/', '--')}", "snapshots")
    return ["/".join(file.relative_to(snapshots).parts[1:]) for file in snapshots.rglob("*.safetensors")]


def main():
    report = {}
    local = FOLDER / "base"
    model, processor = tiny_sa2va(image_size=128)
    model.save_pretrained(local)
    processor.save_pretrained(local)

    # A base that is a local folder; every checkpoint is pushed, with what resuming needs.
    run = trainer(*load(local), "out", hub_model_id="user/local", hub_strategy="checkpoint")
    run.train()
    run._finish_current_push()
    run.push_to_hub(dataset_name=str(FOLDER / "data"), metrics=json.loads((FOLDER / "metrics.json").read_text()))
    expected = outputs(run.model, processor)
    found = {
        "peft": outputs(PeftModel.from_pretrained(load(local)[0], "user/local"), processor),
        "load_adapter": outputs(load_adapter(load(local)[0], "user/local"), processor),
        "processor": outputs(load_adapter(load(local)[0], "user/local"), Sa2VAProcessor.from_pretrained("user/local")),
    }
    report["local"] = {name: torch.equal(expected, value) for name, value in found.items()}
    report["base_differs"] = not torch.equal(expected, outputs(load(local)[0], processor))

    # The last checkpoint, fetched and gone on from.
    fetched = Path(snapshot_download("user/local", allow_patterns="last-checkpoint/*")) / "last-checkpoint"
    resumed = trainer(*load(local), "resumed", max_steps=3, push_to_hub=False, save_strategy="no")
    resumed.train(resume_from_checkpoint=str(fetched))
    report["resumed"] = [entry["step"] for entry in resumed.state.log_history if "loss" in entry]

    # A base on the Hub, and the adapter pushed by hand.
    model.push_to_hub("user/base")
    processor.push_to_hub("user/base")
    shutil.rmtree(constants.HF_HUB_CACHE)  # pushing has left an older snapshot there
    run = trainer(*load("user/base"), "named", hub_model_id="user/named", hub_strategy="every_save")
    run.train()
    run.push_to_hub(dataset_name="hospital/angiograms")
    run.model.push_to_hub("user/by-hand")
    processor.push_to_hub("user/by-hand")
    expected = outputs(run.model, processor)
    report["hub"] = {
        name: torch.equal(expected, outputs(PeftModel.from_pretrained(load("user/base")[0], name), processor))
        for name in ("user/named", "user/by-hand")
    }

    # A whole model.
    run = trainer(
        *load(local), "full", trainable="full", lora_r=64, hub_model_id="user/full", hub_strategy="all_checkpoints"
    )
    run.train()
    run.push_to_hub()
    report["full"] = torch.equal(outputs(run.model, processor), outputs(*load("user/full")))
    report["fetched"] = fetched_weights("user/full")
    in_checkpoint = Sa2VAForConditionalGeneration.from_pretrained("user/full", subfolder="checkpoint-2")
    report["subfolder"] = torch.equal(outputs(run.model, processor), outputs(in_checkpoint, processor))

    try:
        trainer(*load(local), "smith", hub_model_id=None)
    except ValueError as error:
        report["unnamed"] = str(error)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
