"""SAM 2's memory attention over the objects of one frame: the same sums with less arithmetic."""

import torch
import torch.nn.functional as F
from sam2.modeling.memory_attention import MemoryAttention
from sam2.modeling.position_encoding import apply_rotary_enc
from sam2.modeling.sam.transformer import RoPEAttention


# Queries and keys at a time: what is between the two products stays in a processor's cache.
_QUERIES, _KEYS = 256, 2048


class MemoryCrossAttention(RoPEAttention):
    """
    Attention of a frame to the memories of objects, with one head.

    Its values are a linear map of the memories, and an average of mapped values is the map of the averaged values: so
    on a CPU the memories themselves are averaged, a quarter as wide as their values, and mapped afterwards.
    """

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, num_k_exclude_rope: int = 0) -> torch.Tensor:
        """
        Args:
            q (`torch.Tensor` of shape `(1 or objects, H * W, C)`): the frame, of a square grid.
            k, v (`torch.Tensor` of shape `(objects, keys, memory_dim)`):
                Memories with and without their positions: of whole grids, one after the other, then pointers.
            num_k_exclude_rope (`int`, *optional*, defaults to 0): how many of the keys are pointers.

        Returns:
            `torch.Tensor` of shape `(objects, H * W, C)`.
        """
        queries, keys = self.q_proj(q)[:, None], self.k_proj(k)[:, None]
        side = round(q.shape[-2] ** 0.5)
        if self.freqs_cis.shape[0] != q.shape[-2]:
            self.freqs_cis = self.compute_cis(end_x=side, end_y=side)
        self.freqs_cis = self.freqs_cis.to(q.device)
        grids = keys.shape[-2] - num_k_exclude_rope
        queries, rotated = apply_rotary_enc(queries, keys[:, :, :grids], freqs_cis=self.freqs_cis, repeat_freqs_k=True)
        keys = torch.cat([rotated, keys[:, :, grids:]], dim=2)
        # (In tiles half precision would round what torch's own attention sums in float32; on a GPU its kernels want
        # keys and values of one width.)
        if queries.device.type == "cpu" and queries.dtype == torch.float32:
            averaged = self.v_proj(average(queries[:, 0], keys[:, 0], v))
        else:
            queries = queries.expand(len(keys), -1, -1, -1)
            averaged = F.scaled_dot_product_attention(queries, keys, self.v_proj(v)[:, None])[:, 0]
        return self.out_proj(averaged)


@torch.compiler.disable  # which would write a loop of hundreds of steps into a graph
def average(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """
    Scaled dot-product attention whose values may have another width than its keys, for CPUs (where torch would make a
    matrix of queries times keys). In tiles with a running maximum, as in FlashAttention (arXiv 2205.14135).

    Args:
        queries (`torch.Tensor` of shape `(1 or objects, queries, C)`): of floats.
        keys (`torch.Tensor` of shape `(objects, keys, C)`): likewise.
        values (`torch.Tensor` of shape `(objects, keys, D)`): likewise.

    Returns:
        `torch.Tensor` of shape `(objects, queries, D)`.

    Example:

        ```python
        >>> import torch
        >>> from sa2va_trl.models.memory_attention import average

        >>> keys, values = torch.randn(2, 3000, 8), torch.randn(2, 3000, 4)
        >>> queries = torch.randn(1, 300, 8)
        >>> expected = (queries @ keys.transpose(1, 2) / 8**0.5).softmax(-1) @ values
        >>> torch.allclose(average(queries, keys, values), expected, atol=1e-5)
        True

        ```
    """
    queries = (queries * queries.shape[-1] ** -0.5).expand(len(keys), -1, -1)
    result = queries.new_empty(*queries.shape[:2], values.shape[-1])
    # Object by object: a batch's tiles would not stay in the cache.
    for number in range(len(keys)):
        tiles = list(zip(keys[number].T.split(_KEYS, dim=1), values[number].split(_KEYS), strict=True))
        for start in range(0, queries.shape[1], _QUERIES):
            tile = queries[number, start : start + _QUERIES]
            highest, total, summed = tile.new_full((len(tile), 1), -torch.inf), 0, 0
            for some_keys, some_values in tiles:
                weights = tile @ some_keys
                before, highest = highest, torch.maximum(highest, weights.amax(1, keepdim=True))
                weights, shrunk = weights.sub_(highest).exp_(), (before - highest).exp_()
                total = total * shrunk + weights.sum(1, keepdim=True)
                summed = summed * shrunk + weights @ some_values
            result[number, start : start + _QUERIES] = summed / total
    return result


class FrameMemoryAttention(MemoryAttention):
    """Memory attention of one frame, which is the same for all objects until the first of their memories comes in."""

    def forward(
        self,
        curr: list[torch.Tensor],
        memory: torch.Tensor,
        curr_pos: list[torch.Tensor],
        memory_pos: torch.Tensor,
        num_obj_ptr_tokens: int = 0,
    ) -> torch.Tensor:
        """
        Args:
            curr, curr_pos (`list` of one `torch.Tensor` of shape `(H * W, objects, C)`):
                The frame and its positions, the same for all objects: only the first is looked at.
            memory, memory_pos (`torch.Tensor` of shape `(keys, objects, memory_dim)`): see [`MemoryCrossAttention`].
            num_obj_ptr_tokens (`int`, *optional*, defaults to 0): how many of the keys are pointers.

        Returns:
            `torch.Tensor` of shape `(H * W, objects, C)`.
        """
        (frame,), (position,) = curr, curr_pos
        output = (frame[:, :1] + 0.1 * position[:, :1]).transpose(0, 1)
        memory, memory_pos = memory.transpose(0, 1), memory_pos.transpose(0, 1)
        for layer in self.layers:
            # The first layer attends to itself once, and has as many outputs as there are objects.
            output = layer(output, memory, memory_pos, num_k_exclude_rope=num_obj_ptr_tokens)
        return self.norm(output).transpose(0, 1)
