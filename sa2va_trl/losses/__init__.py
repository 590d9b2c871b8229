"""Loss functions of mask and language training.

Every loss of a mask takes logits and returns one value an object, shape `(N,)`, and `language_modeling_loss` one a
row, so that the caller chooses how objects and rows are averaged; `mask_losses` is how the trainers do. All of them
compute in float32 (float64 if given float64) whatever the precision of the model, accept `N = 0`, and have finite
gradients however confident the logits.

Mask targets may be `bool`, integer or floating point with values in [0, 1]. The range is not checked here, because
that would make the host wait for the accelerator at every step: masks are checked when the dataset is read.
"""

from .batches import mask_losses, mask_shares
from .language import language_modeling_loss
from .masks import dice_loss, mask_bce_loss, sample_points, soft_dice
from .policy_gradient import (
    advantages,
    bernoulli_kl,
    clip_fractions,
    clipped_surrogate,
    gaussian_kl,
    region_surrogate,
    value_loss,
)
from .preferences import PREFERENCE_LOSSES, PREFERENCE_SCORES, mask_rewards, preference_loss
from .topology import (
    same_class_neighbours,
    scnp_loss,
    skeleton_recall_loss,
    soft_cldice_loss,
    soft_skeleton,
    tubed_skeleton,
)


__all__ = [
    "PREFERENCE_LOSSES",
    "PREFERENCE_SCORES",
    "advantages",
    "bernoulli_kl",
    "clip_fractions",
    "clipped_surrogate",
    "dice_loss",
    "gaussian_kl",
    "language_modeling_loss",
    "mask_bce_loss",
    "mask_losses",
    "mask_rewards",
    "mask_shares",
    "preference_loss",
    "region_surrogate",
    "same_class_neighbours",
    "sample_points",
    "scnp_loss",
    "skeleton_recall_loss",
    "soft_cldice_loss",
    "soft_dice",
    "soft_skeleton",
    "tubed_skeleton",
    "value_loss",
]
