"""The best of many questions to ask a model: by successive halving, each with its difference to the first."""

from collections.abc import Hashable, Sequence
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from torch import nn
from tqdm.auto import tqdm

from ..data.checks import check_dataset
from ..data.columns import REGIONS
from ..data.fit import check_fit, image_tokens
from ..data.layout import normalize_row, row_layout
from ..data.prompts import ANSWERS, conversation
from ..data.row_regions import region_cells
from ..data.stored import iter_undecoded, plain_rows
from ..errors import DatasetError
from ..features.encoding import row_collator, to_model
from ..metrics import cldice
from ..models import Sa2VAProcessor
from ..postprocessing import Postprocessing
from .clusters import sample_clusters
from .differences import paired_difference, summarize
from .halving import Halving, successive_halving
from .predictions import probabilities_of
from .results import drawn_masks, row_identifiers, score
from .significance import holm


#: What questions are chosen by.
METRICS = ("dice", "cldice")


class AskedRows:
    """
    The rows of a data set that have masks, scored with any of several questions, teacher-forced with the package's
    answer. What does not depend on the question is made once a batch, and not once a question: pixels are read, tiled
    and resized, and go through SAM 2's image encoder. Through the language model rows go once a question.

    Args:
        model (`Sa2VAForConditionalGeneration` or `PeftModel`): in evaluation mode afterwards.
        processor (`Sa2VAProcessor`): of the model.
        dataset (`datasets.Dataset`): rows as in [`~data.checks.check_dataset`].
        questions (`Sequence[str]`): templates, see [`~questions.ask`].
        metric (`str`, *optional*, defaults to `"dice"`): one of `METRICS`.
        batch_size (`int`, *optional*, defaults to 8): rows a pass.
        progress (`bool`, *optional*, defaults to `True`): show a bar.

    Raises:
        `DatasetError`: bad rows, rows that do not fit the model with the longest question, or no row with a mask.
        `ValueError`: an unknown metric.
    """

    def __init__(
        self,
        model: nn.Module,
        processor: Sa2VAProcessor,
        dataset: Dataset,
        questions: Sequence[str],
        metric: str = "dice",
        batch_size: int = 8,
        progress: bool = True,
    ):
        if metric not in METRICS:
            raise ValueError(f"metric must be {' or '.join(METRICS)}, got {metric!r}.")
        self.model, self.processor, self.dataset = model.eval(), processor, plain_rows(dataset)
        self.questions, self.metric, self.batch_size, self.progress = list(questions), metric, batch_size, progress
        check_dataset(self.dataset, name="dataset")
        self.collator = row_collator(model, processor, self.questions[0])
        check_fit(self.dataset, replace(self.collator, questions=self.questions), name="dataset")
        rows = [row for part in iter_undecoded(self.dataset) for row in part]
        self.positions = [position for position, row in enumerate(rows) if row_layout(row).masks]
        if not self.positions:
            raise DatasetError("The dataset has no row with a mask, so there is nothing to score.")
        samples = pd.DataFrame([row_identifiers(rows[position]) for position in self.positions])
        #: One label a scored row: its patient, or else video, or else the row itself.
        self.clusters: list[Hashable] = sample_clusters(samples) or list(range(len(samples)))
        #: Whether any mask that was scored has something in it.
        self.has_foreground = False

    def __call__(self, which: Sequence[int], rows: Sequence[int]) -> np.ndarray:
        """
        Args:
            which (`Sequence[int]`): questions, by their numbers.
            rows (`Sequence[int]`): of those with masks, by their numbers.

        Returns:
            `np.ndarray` of shape `(questions, rows)`: the metric, averaged over a row's masks.
        """
        found = np.empty((len(which), len(rows)))
        questions = [self.questions[number] for number in which]
        starts = range(0, len(rows), self.batch_size)
        for start in tqdm(starts, desc=f"{len(which)} questions", disable=not self.progress):
            numbers = rows[start : start + self.batch_size]
            decoded = [self.dataset[self.positions[number]] for number in numbers]
            found[:, start : start + len(numbers)] = self._scores(questions, decoded)
        return found

    @torch.no_grad()
    def _scores(self, questions: list[str], rows: list[dict]) -> list[list[float]]:
        batch = self.collator(rows)
        targets = batch["original_masks"]
        self.has_foreground |= any(bool(target.any()) for target in targets)
        layouts = [normalize_row(row) for row in rows]
        sizes = [[image.size for image in layout["images"]] for layout in layouts]
        cells = [region_cells(self.processor, layout[REGIONS]) for layout in layouts]
        blocks = [
            [self.processor.image_block(n, drawn) for n in image_tokens(self.processor, own)]
            for own, drawn in zip(sizes, cells, strict=True)
        ]
        inputs, pyramid, found = to_model(self.model, batch), None, []
        for question in questions:
            texts = to_model(self.model, self._texts(question, layouts, blocks))
            features = self.model(**{**inputs, **texts}, encode_only=True).features
            if pyramid is None:  # from now on it is known
                pyramid = features.pyramid
                del inputs["grounding_pixel_values"]
            features = replace(features, pyramid=pyramid)
            outputs = self.model(features=features)
            maps = (probabilities_of(self.model, outputs, position, own) for position, own in enumerate(targets))
            found.append([self._score(row, own, target) for row, own, target in zip(rows, maps, targets, strict=True)])
        return found

    def _texts(self, question: str, layouts: list[dict], blocks: list[list[str]]) -> dict[str, torch.Tensor]:
        """What the collator makes of text, with another question."""
        sequences = []
        for layout, own in zip(layouts, blocks, strict=True):
            chat = layout["messages"]
            if chat is None:
                number = len(layout["phrases"])
                chat = conversation(layout["phrases"], [question] * number, [ANSWERS[0]] * number)
            sequences.append(self.processor.encode_chat(chat, own)[0])
        lengths = torch.tensor([len(ids) for ids in sequences])
        mask = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
        return {"input_ids": self.processor.pad(sequences), "attention_mask": mask}

    def _score(self, row: dict, probabilities: np.ndarray, target: torch.Tensor) -> float:
        config = self.model.config
        settings = (config.mask_threshold, Postprocessing.from_dict(config.mask_postprocessing))
        if self.metric == "dice":
            return score(row, probabilities, settings[0], postprocessing=settings[1])["dice"]
        pairs = zip(drawn_masks(row, probabilities, *settings), target.numpy() > 0, strict=True)
        return float(np.mean([cldice(mask, own) for mask, own in pairs]))


def search_questions(
    asked: AskedRows, kept: Sequence[int] = (0,), finalists: int = 4, seed: int = 0
) -> tuple[Halving, list[dict]]:
    """
    The best question, and how sure that is.

    Args:
        asked (`AskedRows`): questions, the first of which the others are compared with, and rows to choose on.
        kept (`Sequence[int]`, *optional*, defaults to `(0,)`): numbers of those that are scored on all rows.
        finalists, seed (`int`, *optional*): see [`~evaluation.halving.successive_halving`].

    Returns:
        [`~evaluation.halving.Halving`], and for every question that was scored on all rows, the best first, what can
        be said of it in JSON: `question`, its number `candidate`, what [`summarize`] says of its metric, and as
        `difference` to the first question [`paired_difference`] with `permutation_p_holm`, corrected for all of them;
        `None` of the first one.

    Raises:
        `ValueError`: fewer than two questions, or some twice.
        `DatasetError`: masks that are all empty.
    """
    questions = asked.questions
    if len(questions) < 2 or len(set(questions)) < len(questions):
        raise ValueError(f"A search needs at least two questions and none twice, got {questions}.")
    halving = successive_halving(len(questions), asked, asked.clusters, kept, finalists, seed=seed)
    if not asked.has_foreground:
        raise DatasetError("The masks are all empty, so the best question is one that finds nothing.")
    last = halving.rounds[-1].candidates
    alpha = 0.05 / (len(last) - 1)
    table = [
        {
            "question": questions[candidate],
            "candidate": candidate,
            **summarize(halving.values[candidate], asked.clusters, (0, 1)),
            "difference": None if candidate == 0 else difference(halving.values[[0, candidate]], asked, alpha),
        }
        for candidate in last
    ]
    others = [entry["difference"] for entry in table if entry["difference"] is not None]
    for entry, adjusted in zip(others, holm([entry["permutation_p"] for entry in others]), strict=True):
        entry["permutation_p_holm"] = adjusted
    return halving, table


def difference(values: np.ndarray, asked: AskedRows, alpha: float = 0.05) -> dict:
    """
    Args:
        values (`np.ndarray` of shape `(2, rows)`): of one question and of another.
        asked (`AskedRows`): the rows.
        alpha (`float`, *optional*, defaults to 0.05): see there.

    Returns:
        `dict`: how far the other is better, from [`~evaluation.paired_difference`].
    """
    return paired_difference(*values, asked.clusters, bounds=(-1, 1), alpha=alpha)


def as_json(halving: Halving, questions: Sequence[str]) -> dict:
    """
    A search for a file.

    Args:
        halving (`Halving`): from [`search_questions`].
        questions (`Sequence[str]`): that were searched.

    Returns:
        `dict`: `candidates`, for each its `question`, its `mean` and the number of `images` that is of; and `rounds`
        as in [`~evaluation.halving.Round`].
    """
    counts = np.isfinite(halving.values).sum(1).tolist()
    means = np.nanmean(halving.values, axis=1).tolist()
    names = ("question", "mean", "images")
    candidates = [dict(zip(names, line, strict=True)) for line in zip(questions, means, counts, strict=True)]
    return {"candidates": candidates, "rounds": [asdict(each) for each in halving.rounds]}
