"""The rewards as they are, in TRL's own trainer of token policies."""

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, Value
from transformers import Qwen2Config, Qwen2ForCausalLM
from trl import GRPOConfig, GRPOTrainer

from sa2va_trl.models.tiny import tiny_tokenizer
from sa2va_trl.rewards import RewardError, checked, cldice_reward, dice_reward, get_reward


SIDE = 8


def written_mask(tokens):
    """A policy that writes masks: token by token, how many pixels of each row are foreground."""
    lengths = np.array(list(tokens) + [0] * SIDE)[:SIDE] % (SIDE + 1)
    return np.arange(SIDE)[None] < lengths[:, None]


def rollouts(prompts, trainer):
    """TRL's hook: what it returns beside tokens are columns for the rewards."""
    ids = trainer.processing_class(prompts)["input_ids"]
    written = []
    for own in ids:
        with torch.no_grad():
            whole = trainer.model.generate(torch.tensor([own]), do_sample=True, max_new_tokens=SIDE, pad_token_id=0)
        written.append(whole[0, len(own) :].tolist())
    masks = [written_mask(tokens) for tokens in written]
    return {"prompt_ids": ids, "completion_ids": written, "logprobs": None, "pred_masks": masks}


def rows(count=4):
    targets = [np.zeros((SIDE, SIDE), dtype=np.uint8) for _ in range(count)]
    for number, target in enumerate(targets):
        target[:, : 1 + number] = 255
    columns = {
        "prompt": ["Please segment the vessel."] * count,
        "mask": [Image().encode_example(target) for target in targets],
        "sample_id": [f"row {number}" for number in range(count)],
    }
    features = Features({"prompt": Value("string"), "mask": Image(mode="L"), "sample_id": Value("string")})
    return Dataset.from_dict(columns, features=features)


def make_trainer(folder, rewards):
    tokenizer = tiny_tokenizer()
    torch.manual_seed(0)
    config = Qwen2Config(
        **{"vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1},
        **{"num_attention_heads": 2, "num_key_value_heads": 1},
        **{"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None},
    )
    args = GRPOConfig(
        output_dir=str(folder),
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=SIDE,
        max_steps=1,
        logging_steps=1,
        learning_rate=1e-2,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
    )
    options = {"args": args, "train_dataset": rows(), "processing_class": tokenizer, "rollout_func": rollouts}
    return GRPOTrainer(model=Qwen2ForCausalLM(config), reward_funcs=rewards, **options)


@pytest.fixture(autouse=True)
def _quietly(monkeypatch):
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")


def test_a_step_of_the_stock_trainer_takes_the_rewards_unchanged(tmp_path):
    seen = []

    def watched(pred_masks, mask, **kwargs):
        seen.extend(zip(pred_masks, mask, strict=True))
        return checked("published")(pred_masks=pred_masks, mask=mask, **kwargs)

    trainer = make_trainer(tmp_path, [dice_reward, cldice_reward, get_reward("default"), watched])
    before = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    trainer.train()
    logged = next(entry for entry in trainer.state.log_history if "reward" in entry)
    preds, targets = zip(*seen, strict=True)
    assert len(preds) == 4
    for reward, name in (
        (dice_reward, "dice_reward"),
        (cldice_reward, "cldice_reward"),
        (get_reward("default"), "default_reward"),
        (get_reward("published"), "watched"),
    ):
        expected = np.mean(reward(pred_masks=list(preds), mask=list(targets)))
        assert logged[f"rewards/{name}/mean"] == pytest.approx(expected, rel=1e-5)
    assert logged["reward_std"] > 0
    assert any(not torch.equal(value, before[name]) for name, value in trainer.model.named_parameters())


def test_a_reward_that_fails_there_names_sample_and_step(tmp_path):
    def bad(pred_masks, **kwargs):
        return [0.5] * (len(pred_masks) - 1) + [float("nan")]

    with pytest.raises(RewardError, match=r"reward bad, sample 3 of the batch \(sample_id row \d\), step 0: nan"):
        make_trainer(tmp_path, [checked(bad)]).train()
