"""Rollouts to look at: a table of their rewards, and the masks of one group."""

from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw

from ..files import whole_file
from .rollouts import Rollouts


# Found by both, by the drawn mask alone, by the greedy mask alone; as in other pictures.
BOTH, DRAWN, GREEDY = (235, 235, 235), (235, 90, 40), (70, 130, 255)
TITLE = 14


def save_rollouts(folder: Path, step: int, found: Rollouts, sample_ids: list[str]) -> None:
    """
    Write what was drawn at a step.

    Args:
        folder (`Path`): gets `step_000100.parquet` (`sample_id`, `generation`, `reward`, its parts and `advantage`;
            generation 0 is the greedy mask, which has a reward only) and `step_000100.png` (see [`group_picture`]).
        step (`int`): number of the step.
        found ([`~trainers.rollouts.Rollouts`]): of a batch, with a mask at least.
        sample_ids (`list[str]`): of its masks.
    """
    rows = []
    for mask, name in enumerate(sample_ids):
        rows.append({"sample_id": name, "mask": mask, "generation": 0, "reward": found.greedy_rewards[mask].item()})
        for number in range(found.rewards.shape[1]):
            parts = {part: values[mask, number].item() for part, values in found.components.items()}
            values = {"reward": found.rewards[mask, number].item(), **parts}
            values["advantage"] = found.advantages[mask, number].item()
            rows.append({"sample_id": name, "mask": mask, "generation": number + 1, **values})
    with whole_file(folder / f"step_{step:06d}.parquet") as temporary:
        pd.DataFrame(rows).to_parquet(temporary)
    # The group with the most to learn from.
    chosen = int(found.rewards.std(1, correction=0).argmax())
    with whole_file(folder / f"step_{step:06d}.png") as temporary:
        group_picture(found, chosen).save(temporary, "PNG")


def group_picture(found: Rollouts, mask: int) -> Image.Image:
    """
    The drawn masks of one group beside each other, each over the greedy one: white where both are, orange the drawn
    one alone, blue the greedy one alone; above them the rewards.

    Args:
        found ([`~trainers.rollouts.Rollouts`]): of a batch.
        mask (`int`): which of its masks.
    """
    greedy = found.greedy[mask].cpu().numpy()
    height, width = greedy.shape
    sheet = Image.new("RGB", ((width + 2) * (found.rewards.shape[1] + 1), height + TITLE))
    pen = ImageDraw.Draw(sheet)
    masks = [greedy, *found.candidates[mask].cpu().numpy()]
    rewards = [found.greedy_rewards[mask].item(), *found.rewards[mask].tolist()]
    for number, (own, reward) in enumerate(zip(masks, rewards, strict=True)):
        panel = np.zeros((height, width, 3), dtype=np.uint8)
        panel[own & greedy], panel[own & ~greedy], panel[~own & greedy] = BOTH, DRAWN, GREEDY
        left = number * (width + 2)
        sheet.paste(Image.fromarray(panel), (left, TITLE))
        pen.text((left + 2, 1), f"{'greedy ' if not number else ''}{reward:.3f}", fill=(255, 255, 255))
    return sheet
