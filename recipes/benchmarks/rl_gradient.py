"""
How good the gradients of a group of masks are.

    python recipes/benchmarks/rl_gradient.py --output_dir outputs/rl

What masks are drawn around, theta, is the projected `[SEG]` embedding, or a field of 16 x 16 points that shifts the
decoder's logits. The gradient of the expected reward with respect to it is estimated from many rollouts once, and from
K by the score function (the advantage times what was drawn; of a field also the local credit of each cell), and by
what trains the decoder: the likelihood of the drawn masks where they differ from the greedy one, weighted by the
advantage or by local credit, followed back to theta.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from sa2va_trl.data import structure_dataset
from sa2va_trl.features.encoding import RowEncoder
from sa2va_trl.files import write_json
from sa2va_trl.losses import region_surrogate
from sa2va_trl.mask_logits import upsample_mask_logits
from sa2va_trl.rewards import CREDITS, score_group
from sa2va_trl.scripts.arguments import ModelArguments
from sa2va_trl.scripts.loading import load_model
from sa2va_trl.trainers.rollouts import spread_over


CELLS = 16  # along a side, of the field and of local credit


class Policy:
    """
    What masks of one object are drawn around, as a function of what is drawn.

    Args:
        kind: `"embedding"` or `"field"`.
        model, features: of one mask.
        size: of the image.
        share: standard deviation; of the embedding as a share of its root mean square, of the field in logits.
    """

    def __init__(self, kind: str, model, features, size: tuple[int, int], share: float):
        self.kind, self.model, self.features, self.size = kind, model, features, size
        with torch.no_grad():
            own = model(features=features, output_candidates=True)
        self.mean, self.greedy = own.prompts, own.mask_logits
        self.shape = (self.mean.shape[-1],) if kind == "embedding" else (CELLS, CELLS)
        self.std = share * (self.mean.square().mean().sqrt().item() if kind == "embedding" else 1.0)

    def logits(self, shift: torch.Tensor) -> torch.Tensor:
        """Of `(n, *shape)`: `(n, h, w)`, on the decoder's grid."""
        if self.kind == "embedding":
            return self.model(features=self.features.repeat(len(shift)), prompts=self.mean + shift).mask_logits
        return self.greedy + F.interpolate(shift[:, None], size=self.greedy.shape[-2:], mode="bilinear")[:, 0]

    @torch.no_grad()
    def draw(self, count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
        """What was drawn, the masks on the decoder's grid and those at the image's size."""
        noise = self.std * torch.randn(count, *self.shape, generator=generator)
        grid = torch.cat([self.logits(part) for part in noise.split(64)])
        side = self.model.config.grounding_config.image_size
        masks = torch.cat([upsample_mask_logits(part, side, self.size) > 0 for part in grid.split(64)])
        return noise, grid > 0, masks.numpy()

    def likelihood(self, drawn: torch.Tensor, credit: torch.Tensor) -> torch.Tensor:
        """The trainer's gradient of the decoder's loss, with respect to what is drawn around."""
        shift = torch.zeros(1, *self.shape, requires_grad=True)
        greedy = self.logits(torch.zeros(1, *self.shape)).detach() > 0
        spread = spread_over(credit[None].float(), self.greedy.shape[-2:])
        loss = region_surrogate(self.logits(shift), drawn[None], greedy, spread).mean()
        return -torch.autograd.grad(loss, shift)[0].flatten()


def estimates(policy: Policy, name: str, noise, drawn, masks, rewards: torch.Tensor, target) -> dict:
    """Gradients of one group by estimator, up to a constant."""
    gains = (rewards - rewards.mean()).float()

    def local(cells: int) -> torch.Tensor:
        credit = torch.from_numpy(CREDITS[name](masks, target, (cells, cells))).float()
        return credit - credit.mean(0)

    credit = local(CELLS)
    found = {
        "score, global": (gains[:, None] * noise.flatten(1)).mean(0),
        "likelihood, global": policy.likelihood(drawn, gains[:, None, None]),
        "likelihood, local": policy.likelihood(drawn, credit),
        "likelihood, local, finer": policy.likelihood(drawn, local(2 * CELLS)),
    }
    if policy.kind == "field":
        found["score, local"] = (credit * noise).mean(0).flatten()
    return found


def cosine(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(F.cosine_similarity(one.double(), other.double(), dim=0))


def unseen(count: int):
    """Frames of generated runs that pretraining has not seen, each of another run."""
    data = structure_dataset(num_videos=count, frames_per_video=6, seed=1, hospital=1, structures=["blood vessel"])
    first: dict[str, int] = {}
    for number, (video, frame) in enumerate(zip(data["video_id"], data["frame_index"], strict=True)):
        if frame == 2:
            first.setdefault(video, number)
    return data.select(list(first.values())[:count])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", required=True, type=Path)
    parser.add_argument("--model_name_or_path", default="tiny")
    parser.add_argument("--images", type=int, default=5)
    parser.add_argument("--reference", type=int, default=2048, help="rollouts of the long-run gradient")
    parser.add_argument("--generations", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--groups", type=int, default=8, help="of each K, seed and image")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--embedding_noise", type=float, nargs="+", default=[0.1, 1.0])
    parser.add_argument("--field_noise", type=float, default=0.5)
    args = parser.parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    model, processor = load_model(ModelArguments(model_name_or_path=args.model_name_or_path))
    model.eval().requires_grad_(False)
    data = unseen(args.images)
    rows = RowEncoder(model, processor, data, progress=False)
    found, reliability, began = [], [], time.time()
    for number in range(args.images):
        _, targets, features = rows([number])
        target = targets[0][0].numpy() > 0
        for kind, share in [("embedding", own) for own in args.embedding_noise] + [("field", args.field_noise)]:
            policy = Policy(kind, model, features, target.shape, share)

            def sample(count: int, seed: int, policy=policy, target=target) -> tuple:
                drawn = policy.draw(count, torch.Generator().manual_seed(seed))
                parts = score_group({"dice": 1, "cldice": 1}, drawn[2], target).components
                return *drawn, {name: torch.from_numpy(values) for name, values in parts.items()}

            noise, _, _, rewards = sample(args.reference, 10**6 + number)
            half, references = args.reference // 2, {}
            for name, values in rewards.items():
                halves = [
                    ((part - part.mean())[:, None] * own.flatten(1).double()).mean(0)
                    for part, own in zip(values.split(half), noise.split(half), strict=True)
                ]
                agreement = cosine(*halves)
                # Of the mean of both halves to the gradient itself, were there no end to the rollouts. (Images
                # whose halves do not agree are left out.)
                own = (2 * agreement / (1 + agreement)) ** 0.5 if agreement > 0.1 else np.nan
                references[name] = (halves[0] + halves[1], own)
                reliability.append({"image": number, "policy": f"{kind} {share:g}", "reward": name, "reference": own})
            for seed in range(args.seeds):
                noise, drawn, masks, rewards = sample(args.groups * max(args.generations), 1000 * seed + number)
                for count in args.generations:
                    for group in range(args.groups):
                        own = slice(group * count, (group + 1) * count)
                        for name, values in rewards.items():
                            reference, to_truth = references[name]
                            given = (policy, name, noise[own], drawn[own], masks[own], values[own], target)
                            for estimator, value in estimates(*given).items():
                                row = {"image": number, "policy": f"{kind} {share:g}", "reward": name, "seed": seed}
                                row |= {"K": count, "estimator": estimator, "cosine": cosine(value, reference)}
                                found.append({**row, "corrected": row["cosine"] / to_truth})
        print(f"image {number + 1} of {args.images}, {time.time() - began:.0f} s", flush=True)
        table = pd.DataFrame(found)
        keys = ["policy", "reward", "estimator", "K"]
        by_seed = table.groupby([*keys, "seed"])["corrected"].mean().groupby(keys)
        summary = by_seed.agg(["mean", "std"]).reset_index()
        own = pd.DataFrame(reliability).groupby(["policy", "reward"])["reference"].mean().reset_index()
        write_json(
            args.output_dir / "gradient.json",
            {"images": number + 1, "cosines": summary.to_dict("records"), "reference": own.to_dict("records")},
        )
    print(f"\nCosine to the gradient of {args.reference} rollouts, corrected for its noise (deviation of the seeds):")
    wide = summary.assign(text=[f"{one:.3f} ({two:.3f})" for one, two in summary[["mean", "std"]].to_numpy()])
    print(wide.pivot(index=keys[:3], columns="K", values="text").to_string())
    print(own.to_string(index=False))


if __name__ == "__main__":
    main()
