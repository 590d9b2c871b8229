"""Candidate masks of a policy, with their log-densities."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from .models.outputs import SegFeatures


@dataclass
class Candidates:
    """
    K candidate masks for every mask of some features; the model's own comes first.

    Args:
        mask_logits (`torch.Tensor` of shape `(masks, K, S/4, S/4)`):
            float32. A candidate is foreground where its probability exceeds the model's `mask_threshold`.
        log_prob (`torch.Tensor` of shape `(masks, K)`):
            Log-density of what was drawn for the candidate, in its own coordinates: of `embedding` those of the
            projected `[SEG]` embedding, of `field` those of the grids. NaN where nothing was drawn.
        source (`tuple[str, ...]` of length K): `"greedy"`, `"embedding"`, `"field"`, `"token"` or `"threshold"`.
        embeddings (`torch.Tensor` of shape `(masks, E, C)`):
            What was drawn for the `embedding` candidates, without a gradient: the actions of a policy.
        embedding_std (`torch.Tensor` of shape `(masks,)`): their standard deviation.
        prompts (`torch.Tensor` of shape `(masks, C)`): the projected `[SEG]` embeddings that they were drawn around.
        iou_scores (`torch.Tensor` of shape `(masks,)`): predicted IoU in [0, 1] of the model's own mask.
    """

    mask_logits: torch.Tensor
    log_prob: torch.Tensor
    source: tuple[str, ...]
    embeddings: torch.Tensor
    embedding_std: torch.Tensor
    prompts: torch.Tensor
    iou_scores: torch.Tensor


def gaussian_log_prob(values: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """
    Log-density of an isotropic Gaussian.

    Args:
        values (`torch.Tensor` of shape `(masks, E, C)`): see [`Candidates`].
        mean (`torch.Tensor` of shape `(masks, C)`): a policy's projected `[SEG]` embeddings.
        std (`torch.Tensor` of shape `(masks,)`): positive.

    Returns:
        `torch.Tensor` of shape `(masks, E)`, float32.
    """
    mean, std = mean.float()[:, None], std.float()[:, None]
    squares = (values.float() - mean).square().sum(-1)
    return -0.5 * squares / std.square() - values.shape[-1] * (std.log() + 0.5 * math.log(2 * math.pi))


@dataclass(frozen=True)
class MaskSampler:
    """
    Draws candidate masks from one encoding: passes of the mask decoder only, two of them however many candidates.

    The candidates are, in this order: the model's own mask (`greedy`, what `decode_masks` gives); masks of embeddings
    drawn around the projected `[SEG]` embedding (`embedding`); the model's own mask under a smooth random shift of its
    logits (`field`); SAM 2's other two candidates (`token`); and the model's own mask at other thresholds
    (`threshold`). Independent noise on every pixel is left out on purpose: it shatters vessels instead of varying
    them.

    Under autograd `mask_logits` are differentiable throughout (of `embedding` candidates also with respect to the
    embedding that they were drawn around), and `log_prob` of `embedding` candidates is the policy's: its gradient with
    respect to the mean is that of a score function, what was drawn being held fixed. That of `field` has no gradient,
    as the field does not depend on the model.

    Args:
        embedding (`int`, *optional*, defaults to 2): number of `embedding` candidates.
        field (`int`, *optional*, defaults to 2): number of `field` candidates.
        tokens (`bool`, *optional*, defaults to `True`): the two `token` candidates.
        thresholds (`tuple[float, ...]`, *optional*, defaults to `(0.3, 0.7)`): probabilities in (0, 1).
        embedding_noise (`float`, *optional*, defaults to 0.1):
            Standard deviation of each coordinate as a share of the embedding's root mean square. A decoder that was
            only ever asked for one thing may ignore its prompt, and these candidates then equal the model's own mask.
        field_noise (`float`, *optional*, defaults to 1.0): standard deviation at the grid points, in logits.
        field_grids (`tuple[int, ...]`, *optional*, defaults to `(16, 4)`):
            Points a side of the grids that a field is the sum of; on SAM 2's own 256 x 256 logits their cells measure
            16 and 64 pixels. Between the points the field is bilinear.

    Raises:
        `ValueError`: an option out of its range.

    Example:

        ```python
        >>> from sa2va_trl import MaskSampler, SegCollator, tiny_sa2va
        >>> from sa2va_trl.data import synthetic_dataset
        >>> from sa2va_trl.features.encoding import to_model

        >>> model, processor = tiny_sa2va(image_size=128)
        >>> batch = SegCollator(processor)(list(synthetic_dataset(1, 2, 64)))
        >>> features = model.eval().encode(**to_model(model, batch))
        >>> candidates = MaskSampler(embedding=1, field=1)(model, features)
        >>> candidates.source
        ('greedy', 'embedding', 'field', 'token', 'token', 'threshold', 'threshold')
        >>> candidates.mask_logits.shape
        torch.Size([2, 7, 32, 32])

        ```
    """

    embedding: int = 2
    field: int = 2
    tokens: bool = True
    thresholds: tuple[float, ...] = (0.3, 0.7)
    embedding_noise: float = 0.1
    field_noise: float = 1.0
    field_grids: tuple[int, ...] = (16, 4)

    def __post_init__(self):
        object.__setattr__(self, "thresholds", tuple(self.thresholds))
        object.__setattr__(self, "field_grids", tuple(self.field_grids))
        for name in ("embedding", "field"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is a number of candidates, got {getattr(self, name)}.")
        for name in ("embedding_noise", "field_noise"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}.")
        if not self.field_grids or min(self.field_grids) < 1:
            raise ValueError(f"field_grids needs at least one grid of at least one point, got {self.field_grids}.")
        if not all(0 < threshold < 1 for threshold in self.thresholds):
            raise ValueError(f"thresholds must lie between 0 and 1, got {self.thresholds}.")

    @property
    def source(self) -> tuple[str, ...]:
        """Where each candidate comes from, in order."""
        counts = {"greedy": 1, "embedding": self.embedding, "field": self.field}
        counts |= {"token": 2 * self.tokens, "threshold": len(self.thresholds)}
        return tuple(name for name, count in counts.items() for _ in range(count))

    def __call__(
        self,
        model: nn.Module,
        features: SegFeatures,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
    ) -> Candidates:
        """
        Args:
            model (`nn.Module`):
                `Sa2VAForConditionalGeneration`, a `PeftModel`, or what wraps one (DDP, DeepSpeed); left as it is, in
                its own mode. Under `torch.distributed` all processes call it together, with or without masks.
            features (`SegFeatures`): from its `encode`.
            generator (`torch.Generator` or `Sequence[torch.Generator]`, *optional*):
                Source of all randomness, on any device; seeded with 0 by default. The noise of one mask after the
                other is drawn from it, so that masks one by one get what they get in one batch. Or one a mask.

        Returns:
            [`Candidates`].
        """
        config = getattr(model, "module", model).config  # (DDP and DeepSpeed have none, or one of their own.)
        generator = torch.Generator().manual_seed(0) if generator is None else generator

        own = model(features=features, output_candidates=True)
        greedy, mean = own.mask_logits, own.prompts
        # (As the embedding's own scale, so that the noise means the same to every checkpoint.)
        std = self.embedding_noise * mean.detach().float().square().mean(-1).sqrt().clamp(min=1e-6)
        embedding_noise, grids = self._draw(len(mean), mean.shape[-1], generator, mean.device)

        parts = [greedy[:, None]]
        log_prob = [torch.full_like(greedy[:, :1, 0], math.nan)]
        drawn = mean[:, None].float() + std[:, None, None] * embedding_noise
        if self.embedding:
            decoded = model(features=features.repeat(self.embedding), prompts=drawn.flatten(end_dim=1)).mask_logits
            parts.append(decoded.unflatten(0, (len(mean), self.embedding)))
            log_prob.append(gaussian_log_prob(drawn.detach(), mean, std))
        if self.field:
            parts.append(greedy[:, None] + self._upsample(grids, config.grounding_config.mask_size))
            squares = sum(grid.square().sum((-2, -1)) for grid in grids) / self.field_noise**2
            points = sum(side**2 for side in self.field_grids)
            log_prob.append(-0.5 * squares - points * (math.log(self.field_noise) + 0.5 * math.log(2 * math.pi)))
        if self.tokens:
            best = own.candidate_iou_scores.argmax(dim=-1)
            masks = torch.arange(len(best), device=best.device)
            others = (best[:, None] + torch.arange(1, 3, device=best.device)) % 3
            parts.append(own.candidate_logits[masks[:, None], others.sort(dim=-1).values])
        if self.thresholds:
            usual = _logit(config.mask_threshold)
            shifts = [config.mask_temperature * (usual - _logit(threshold)) for threshold in self.thresholds]
            shifts = greedy.new_tensor(shifts)
            parts.append(greedy[:, None] + shifts[:, None, None])
        densities = torch.cat(log_prob, dim=1)
        rest = len(self.source) - densities.shape[1]
        return Candidates(
            mask_logits=torch.cat(parts, dim=1),
            log_prob=F.pad(densities, (0, rest), value=math.nan),
            source=self.source,
            embeddings=drawn.detach(),
            embedding_std=std,
            prompts=mean,
            iou_scores=own.iou_scores,
        )

    def _draw(
        self, masks: int, width: int, generator: torch.Generator | Sequence[torch.Generator], device: torch.device
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Standard noise of shape `(masks, E, C)`, and the fields' grids, each of shape `(masks, F, side, side)`."""
        sizes = [self.embedding * width, *(self.field * side**2 for side in self.field_grids)]
        sources = [generator] * masks if isinstance(generator, torch.Generator) else generator
        noise = [torch.randn(sum(sizes), generator=each, device=each.device).to(device) for each in sources]
        noise = torch.stack(noise) if noise else torch.zeros(0, sum(sizes), device=device)
        embedding, *fields = noise.split(sizes, dim=1)
        grids = [
            self.field_noise * values.reshape(masks, self.field, side, side)
            for values, side in zip(fields, self.field_grids, strict=True)
        ]
        return embedding.reshape(masks, self.embedding, width), grids

    @staticmethod
    def _upsample(grids: list[torch.Tensor], size: int) -> torch.Tensor:
        return sum(F.interpolate(grid, size=(size, size), mode="bilinear", align_corners=False) for grid in grids)


def _logit(probability: float) -> float:
    return math.log(probability) - math.log1p(-probability)


def default_sampler() -> MaskSampler:
    """
    The candidates that difficulty is judged by: all but SAM 2's own other two masks. A model that was trained on masks
    has only ever been asked for its best mask, so the other two may be anything; their distance would measure
    untrained outputs and not the picture.
    """
    return MaskSampler(tokens=False)
