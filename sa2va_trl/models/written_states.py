"""States of the `[SEG]` tokens that `generate` writes, taken while it writes them."""

import logging
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn
from transformers import DynamicCache
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled


if TYPE_CHECKING:
    from .modeling import Sa2VAForConditionalGeneration

logger = logging.getLogger(__name__)


class WrittenStates:
    """
    What `encode` would read at the `[SEG]` tokens of answers, without a second pass over prompt and answer: a context
    around one call of `generate`, in which hooks see every token that is fed and the state that the final norm gets
    or leaves (`config.seg_state`). States are kept at `[SEG]` only, so that memory does not grow with the answer.

    It asks nothing of how `generate` works but compares what was fed with what came out. Where they differ (beams,
    tokens that were proposed and rejected, no cache), or where the steps run compiled and no hook sees them, there are
    no states, and the caller needs the second pass.

    Args:
        model (`Sa2VAForConditionalGeneration`): whose `generate` is called.
        prompt_length (`int`):
            Tokens of each prompt, with the padding on their left and without those that a cache holds already.
        held (`int`, *optional*, defaults to 0): how many a cache holds.
    """

    def __init__(self, model: "Sa2VAForConditionalGeneration", prompt_length: int, held: int = 0):
        self.model, self.prompt_length, self.held = model, prompt_length, held
        self._fed: list[torch.Tensor] = []  # token ids of each pass, of shape (rows, tokens)
        self._length = 0  # of them all
        self._kept: dict[tuple[int, int], torch.Tensor] = {}  # by row and position in the answer
        self._none: torch.Tensor | None = None  # of shape (0, D)
        self._latest: dict = {}  # keywords of the latest pass

    def __enter__(self) -> "WrittenStates":
        vlm = self.model.vlm.model
        self._hooks = [
            vlm.register_forward_pre_hook(self._see, with_kwargs=True),
            vlm.language_model.norm.register_forward_hook(self._keep),
        ]
        return self

    def __exit__(self, *exception: object) -> None:
        for hook in self._hooks:
            hook.remove()
        self._latest = {}  # with the cache in it

    def _see(self, vlm: nn.Module, args: tuple, kwargs: dict) -> None:
        # (A hook that is compiled into a step would stay in it.)
        if not torch.compiler.is_compiling():
            self._fed.append(kwargs["input_ids"])
            self._length += kwargs["input_ids"].shape[1]
            names = ("attention_mask", "position_ids", "cache", "past_key_values", "use_cache")
            self._latest = {name: kwargs[name] for name in names if kwargs.get(name) is not None}

    def _keep(self, norm: nn.Module, args: tuple, normed: torch.Tensor) -> None:
        if torch.compiler.is_compiling():
            return
        states = args[0] if self.model.config.seg_state == "raw" else normed
        if self._none is None:
            self._none = states.new_empty((0, states.shape[-1]))
        ids = self._fed[-1]
        first = self._length - ids.shape[1] - self.prompt_length
        if first + ids.shape[1] <= 0:
            return  # a [SEG] of the prompt is none of the answer
        for row, column in (ids == self.model.config.seg_token_id).nonzero().tolist():
            if first + column >= 0:
                self._kept[row, first + column] = states[row, column].clone()  # (A view would keep them all.)

    def of(self, answers: list[list[int]], reason: str = "") -> tuple[torch.Tensor, torch.Tensor] | None:
        """
        The states of all `[SEG]` in the answers. To be asked before the context is left: a `[SEG]` that ends the
        longest answer is written but not yet fed, and is fed now.

        Args:
            answers (`list[list[int]]`): token ids of each row's answer, up to where it stopped.
            reason (`str`, *optional*): why these states will not do, where the caller knows of one.

        Returns:
            States of shape `(segs, D)`, row by row, and the row of each; `None` where a second pass is needed.
        """
        reason = reason or self._compare(answers)
        seg = self.model.config.seg_token_id
        places = [(row, at) for row, ids in enumerate(answers) for at, each in enumerate(ids) if each == seg]
        if not reason and not all(place in self._kept for place in places):
            reason = self._feed_last(answers)
        if reason:
            logger.debug("The [SEG] states need a second pass over prompt and answer: %s.", reason)
            return None
        states = torch.stack([self._kept[place] for place in places]) if places else self._none
        return states, torch.tensor([row for row, _ in places], dtype=torch.long, device=states.device)

    @property
    def fed(self) -> list[int]:
        """Token ids that the language model was fed, of the first row: prompt and answer."""
        return [token for ids in self._fed for token in ids[0].tolist()]

    def _compare(self, answers: list[list[int]]) -> str:
        """Why what was fed is not what came out, token by token; empty where it is."""
        if is_deepspeed_zero3_enabled():
            return "with ZeRO-3 all processes run the same passes, whatever they wrote"
        if any(len(ids) != len(answers) for ids in self._fed):
            return "several sequences were written for each answer"
        fed = torch.cat(self._fed, dim=1)[:, self.prompt_length :].tolist() if self._fed else [[]] * len(answers)
        for ids, seen in zip(answers, fed, strict=True):
            # (All but the last token of the longest answer; and on a GPU a step more than was needed.)
            if self._none is None or len(seen) < len(ids) - 1:
                return "generate took steps that no hook saw, as compiled ones are"
            if seen[: len(ids)] != ids[: len(seen)]:
                return "what generate fed, one token after the other, is not what it returned"
        switch, prompt = self.model.config.rotary_switch, self.held + self.prompt_length
        if switch is not None and prompt <= switch < prompt + max(map(len, answers)):
            return "other rotary factors apply to a text of this length, and the prompt was read with the first"
        return ""

    def _feed_last(self, answers: list[list[int]]) -> str:
        """One step more, with the last token of the longest answers; why it cannot be, or nothing."""
        latest, written = self._latest, self._length - self.prompt_length
        if not isinstance(latest.get("cache", latest.get("past_key_values")), DynamicCache):
            return "there is no room in the cache for the [SEG] that ends an answer"
        ids = [answer[written] if len(answer) > written else answer[-1] for answer in answers]
        if "attention_mask" in latest:
            latest["attention_mask"] = F.pad(latest["attention_mask"], (0, 1), value=1)
        if "position_ids" in latest:
            latest["position_ids"] = latest["position_ids"][..., -1:] + 1
        self.model.vlm.model(input_ids=torch.tensor(ids, device=self._fed[-1].device)[:, None], **latest)
        return ""
