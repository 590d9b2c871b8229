"""Keys and values of what a conversation holds so far, so that its next turn is read on from there."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from transformers import DynamicCache


if TYPE_CHECKING:
    from .modeling import Sa2VAForConditionalGeneration


class PrefixCache:
    """
    What the language model has read of one conversation: keys and values, and the tokens that they are of.

    Before each pass `keep` cuts it down to what the next tokens begin with, so that it may hold whatever earlier
    passes have left: an answer that was cut off, tokens behind its end, a turn that failed.

    It has a full layer for each of the model's, sliding windows included (whose own layers cannot be cut back), and
    grows as any dynamic cache. Qwen places what follows an image by an offset that it keeps on the model. It belongs
    to the conversation, and is kept here.

    Phi-3 turns all keys by other rotary factors once a text is longer than `rotary_switch`. Keys of both kinds never
    stand beside each other: what was read with the wrong ones is read again.

    Args:
        image_token_id (`int`): images are read with their pixels or not at all.
        rotary_switch (`int`, *optional*): see [`~models.configuration.Sa2VAConfig.rotary_switch`].
    """

    def __init__(self, image_token_id: int, rotary_switch: int | None = None):
        self.image_token_id, self.rotary_switch = image_token_id, rotary_switch
        self.cache = DynamicCache()
        self.ids: list[int] = []
        self._rope_deltas = None
        self._is_long = False  # which rotary factors its keys have

    def keep(self, ids: Sequence[int], length: int | None = None) -> int:
        """
        Cut down to what a sequence begins with, and leave at least one of its tokens to be read.

        Args:
            ids (`list[int]`): token ids of the conversation up to the next answer.
            length (`int`, *optional*, defaults to that of `ids`): tokens up to where the next pass reads.

        Returns:
            `int`: how many of them need not be read again. None, where an image would have to be, or where other
            rotary factors apply.
        """
        was_long, self._is_long = self._is_long, self._has_long(len(ids) if length is None else length)
        pairs = zip(self.ids, ids[:-1], strict=False)
        count = next((count for count, (held, wanted) in enumerate(pairs) if held != wanted), None)
        if count is None:
            count = min(len(self.ids), len(ids) - 1)
        self._cut(0 if self.image_token_id in ids[count:] or was_long != self._is_long else count)
        return len(self.ids)

    @contextmanager
    def reading(self, model: "Sa2VAForConditionalGeneration") -> Iterator[None]:
        """
        Around passes that read on. One that fails or is interrupted leaves nothing behind.

        Args:
            model (`Sa2VAForConditionalGeneration`): whose passes they are.
        """
        vlm, held = model.vlm.model, len(self.ids)
        if hasattr(vlm, "rope_deltas"):
            vlm.rope_deltas = self._rope_deltas
        try:
            yield
        except BaseException:
            self._cut(held)
            raise
        self._rope_deltas = getattr(vlm, "rope_deltas", None)

    def has_read(self, ids: list[int]) -> None:
        """
        Say what has been read in all. Where that is not what the cache holds, nothing is known of what was added, and
        it is cut off.

        Args:
            ids (`list[int]`): token ids.
        """
        if self._has_long(len(ids)) != self._is_long:
            self._cut(0)  # it became too long for the factors that its beginning was read with
        elif self.cache.get_seq_length() == len(ids):
            self.ids = list(ids)
        else:
            self._cut(len(self.ids))

    def _has_long(self, length: int) -> bool:
        return self.rotary_switch is not None and length > self.rotary_switch

    def _cut(self, count: int) -> None:
        del self.ids[count:]
        if count == 0:
            self.cache, self._rope_deltas = DynamicCache(), None
            return
        # (Not by `crop`, which counts from the end: a pass that was interrupted has not come as far in every layer.)
        for layer in self.cache.layers:
            layer.keys, layer.values = layer.keys[..., :count, :], layer.values[..., :count, :]
