"""What PPO learns beside the model: how far its policy draws, and what a mask will be worth."""

import math
import zipfile
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn

from ..files import whole_file


# Bounds of a learned noise, as a share of the embedding's root mean square: below the first one hardly a pixel
# changes, beyond the second one nothing of the embedding is left.
NOISE_RANGE = (0.01, 2.0)
# Its file in a checkpoint.
STATE = "actor_critic.pt"
# Hidden units of the value head.
HIDDEN = 64


class ActorCritic(nn.Module):
    """
    The learned standard deviation of the policy on the projected `[SEG]` embedding, and the value head of PPO
    (Schulman et al., 2017, arXiv 1707.06347): a small network that says of an embedding what its masks will be worth.

    It is no part of the model: nothing of it is published, no wrapper of the model knows it, and it has an optimizer
    of its own (Adam at a constant rate). What it learns from are embeddings without a gradient, so that it moves
    nothing but itself; processes average its gradients before a step, and so stay alike.

    Args:
        width (`int`): coordinates of an embedding, C.
        noise (`float`, *optional*): the deviation it begins with, within `NOISE_RANGE`; without, none is learned.
        value (`bool`, *optional*, defaults to `False`): whether there is a value head. It begins with 0 everywhere.
        learning_rate (`float`, *optional*, defaults to 1e-3): of both.
        seed (`int`, *optional*, defaults to 0): of the value head's first weights.

    Example:

        ```python
        >>> import torch
        >>> from sa2va_trl.trainers.actor_critic import ActorCritic

        >>> extra = ActorCritic(width=8, noise=0.1, value=True)
        >>> round(extra.noise, 4), extra.values(torch.ones(3, 8)).tolist()
        (0.1, [0.0, 0.0, 0.0])

        ```
    """

    def __init__(
        self, width: int, noise: float | None = None, value: bool = False, learning_rate: float = 1e-3, seed: int = 0
    ):
        super().__init__()
        self.log_noise = None if noise is None else nn.Parameter(torch.tensor(math.log(noise)))
        self.head = None
        if value:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                self.head = nn.Sequential(nn.Linear(width, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, 1))
            nn.init.zeros_(self.head[-1].weight)
            nn.init.zeros_(self.head[-1].bias)
        self.optimizer = torch.optim.Adam(self.parameters(), lr=learning_rate)

    @property
    def noise(self) -> float:
        """The present standard deviation, as a share of an embedding's root mean square."""
        return self.log_noise.detach().exp().item()

    def std(self, drawn: torch.Tensor, noise: float) -> torch.Tensor:
        """
        The policy's present standard deviation, with a gradient.

        Args:
            drawn (`torch.Tensor` of shape `(masks,)`): the one that embeddings were drawn with.
            noise (`float`): the share that it was, as `noise` said then.

        Returns:
            `torch.Tensor` of shape `(masks,)`; exactly `drawn` until a step has been taken.
        """
        return drawn * (self.log_noise.exp() / noise)

    def values(self, embeddings: torch.Tensor) -> torch.Tensor:
        """
        The rewards that are expected of masks.

        Args:
            embeddings (`torch.Tensor` of shape `(masks, C)`):
                Those that masks are drawn around; their scale is of no account, and no gradient reaches them.

        Returns:
            `torch.Tensor` of shape `(masks,)`, float32.
        """
        embeddings = embeddings.detach().float()
        with torch.autocast(embeddings.device.type, enabled=False):
            return self.head(F.layer_norm(embeddings, embeddings.shape[-1:]))[:, 0]

    def update(self, accelerator: Accelerator) -> None:
        """
        Take a step with the gradients that were gathered since the last one. All processes call it together.

        Args:
            accelerator (`Accelerator`): of the run.
        """
        parameters = list(self.parameters())
        flat = torch.cat([parameter.grad.flatten() for parameter in parameters])
        flat = accelerator.reduce(flat, reduction="mean")
        for parameter, part in zip(parameters, flat.split([entry.numel() for entry in parameters]), strict=True):
            parameter.grad = part.view_as(parameter).clone()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.log_noise is not None:
            with torch.no_grad():
                self.log_noise.clamp_(*map(math.log, NOISE_RANGE))

    def save(self, folder: str | Path) -> None:
        """
        Write everything that a run goes on with.

        Args:
            folder (`str` or `Path`): of a checkpoint; made if it is not there.
        """
        Path(folder).mkdir(parents=True, exist_ok=True)
        with whole_file(Path(folder) / STATE) as temporary:
            torch.save({"weights": self.state_dict(), "optimizer": self.optimizer.state_dict()}, temporary)

    def load(self, folder: str | Path) -> None:
        """
        Go on with what [`~ActorCritic.save`] has written. The learning rate is its own, as of any optimizer.

        Args:
            folder (`str` or `Path`): of a checkpoint.

        Raises:
            `ValueError`: it lacks the file, the file is damaged, or something else was learned.
        """
        file = Path(folder) / STATE
        if not file.is_file():
            raise ValueError(
                f"{folder} lacks {STATE}: it was begun without learn_noise=True and advantage=value. Resume it with "
                "the same options."
            )
        if not zipfile.is_zipfile(file):
            raise ValueError(f"{file} is damaged or cut off: resume from another checkpoint.")
        state = torch.load(file, map_location="cpu", weights_only=True)
        if {name: value.shape for name, value in state["weights"].items()} != {
            name: value.shape for name, value in self.state_dict().items()
        }:
            raise ValueError(f"{folder} was begun with another learn_noise or advantage: resume it with the same.")
        self.load_state_dict(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
