"""Rows of images, questions and answers, answers that `generate` is made to write, and results that must be equal."""

import torch
from transformers import LogitsProcessor, LogitsProcessorList


QUESTION = "Please segment the blood vessel."
TWO_OBJECTS = "A <p> wide vessel </p> [SEG] and a <p> thin one </p> [SEG]."


def close(actual, expected, tolerance=1e-5):
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


def make_batch(processor, rows):
    """Arguments of `forward` for rows of (images, question, answer)."""
    images = [image for group, _, _ in rows for image in group]
    pixels, blocks = processor.tiles(images)
    blocks = iter(blocks)
    encoded = [
        processor.encode_chat(
            [{"role": "user", "content": question}, {"role": "assistant", "content": answer}],
            [next(blocks) for _ in group],
        )
        for group, question, answer in rows
    ]
    input_ids = processor.pad([ids for ids, _ in encoded])
    lengths = torch.tensor([[len(ids)] for ids, _ in encoded])
    return {
        "input_ids": input_ids,
        "attention_mask": (torch.arange(input_ids.shape[1]) < lengths).long(),
        "labels": processor.pad([labels for _, labels in encoded], value=-100),
        "grounding_pixel_values": processor.grounding_inputs(images),
        "image_counts": torch.tensor([len(group) for group, _, _ in rows]),
        **pixels,
    }


def encode_arguments(batch):
    return {name: tensor for name, tensor in batch.items() if name != "labels"}


def vlm_pixels(batch):
    return {name: batch[name] for name in ("pixel_values", "image_grid_thw") if name in batch}


class Forced(LogitsProcessor):
    """Makes `generate` write the given answers, token by token."""

    def __init__(self, processor, answers):
        end = processor.stop_strings[0]
        self.answers = [processor.tokenizer(answer + end).input_ids for answer in answers]
        self.step = 0

    def __call__(self, input_ids, scores):
        forced = torch.full_like(scores, float("-inf"))
        for row, answer in enumerate(self.answers):
            forced[row, answer[min(self.step, len(answer) - 1)]] = 0
        self.step += 1
        return forced


def forced(processor, *answers):
    return LogitsProcessorList([Forced(processor, answers)])


class Scripted(LogitsProcessor):
    """Makes `generate` write these tokens, in every sequence alike, whatever the order in which it asks."""

    def __init__(self, ids):
        self.ids, self.start = ids, None

    def __call__(self, input_ids, scores):
        if self.start is None:
            self.start = input_ids.shape[1]
        wanted = self.ids[min(input_ids.shape[1] - self.start, len(self.ids) - 1)]
        return torch.full_like(scores, -1e4).index_fill(1, torch.tensor([wanted]), 0.0)


def scripted(ids):
    return LogitsProcessorList([Scripted(ids)])


def assert_same(actual, expected):
    assert (actual.text, actual.phrases) == (expected.text, expected.phrases)
    for field in ("mask_logits", "probabilities", "iou_scores"):
        close(getattr(actual, field), getattr(expected, field))
    uncertain = (expected.probabilities - 0.5).abs() < 1e-5
    assert torch.equal(actual.masks | uncertain, expected.masks | uncertain)


def assert_float32(result):
    assert {tensor.dtype for tensor in (result.mask_logits, result.probabilities, result.iou_scores)} == {
        torch.float32
    }
