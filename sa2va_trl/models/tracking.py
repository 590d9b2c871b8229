"""Masks of a video: prompted by language on some frames, carried to the others by SAM 2's memory."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from sam2.modeling.sam2_base import NO_OBJ_SCORE

from ..mask_logits import mask_probabilities, upsample_mask_logits
from .grounding import GroundingEncoder


@torch.no_grad()
def track(
    encoder: GroundingEncoder,
    prompts: torch.Tensor,
    pixels: Callable[[int], torch.Tensor],
    num_frames: int,
    prompted: list[int],
    mask_prompt: tuple[float, tuple[int, int]] | None = None,
    temperature: float = 1.0,
) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """
    Masks of all frames of a clip, frame by frame.

    The prompted frames come first: each is decoded with the language prompts, without memory, and its masks are
    encoded into a memory that every other frame sees. From the first prompted frame the masks are then carried to the
    end of the clip, and from there backward to its beginning. The two directions know nothing of each other, so a clip
    played backward gives the same masks. All objects are one batch and every frame goes through SAM 2's image encoder
    once.

    Between two frames only memories are kept: those of the prompted frames, and a window of the frames that the next
    one can reach.

    Args:
        encoder (`GroundingEncoder`): SAM 2.
        prompts (`torch.Tensor` of shape `(objects, C)`): language embeddings, at least one.
        pixels (`callable`): from the index of a frame to its normalised pixels, `(1, 3, S, S)`.
        num_frames (`int`): length of the clip.
        prompted (`list[int]`): indices of the prompted frames, all different.
        mask_prompt (`tuple[float, tuple[int, int]]`, *optional*):
            Sa2VA-i's way (arXiv 2509.19082): the prompted frames' masks, thresholded at this probability on frames of
            this height and width, are what SAM 2 tracks as if a user had drawn them, and where it believes an object
            absent the mask is empty. Without it, as in Sa2VA's own code, the soft masks are remembered and no mask is
            emptied.
        temperature (`float`, *optional*, defaults to 1.0): of the probabilities that `mask_prompt` cuts.

    Yields:
        The index of a frame, its mask logits of shape `(objects, S/4, S/4)` (float32; -1024 throughout where an object
        is held to be absent) and predicted IoUs of shape `(objects,)` in [0, 1]. Frames come in the order that they
        are done: from the first prompted one on, then backward to 0.
    """
    memories, masks = {}, {}
    if mask_prompt is not None:
        mask_prompt = (*mask_prompt, temperature)
    for index in sorted(prompted):
        # Features are never given a name here: the last frame's would live on while the next are computed.
        masks[index], memories[index] = _prompt(encoder, encoder.encode(pixels(index)), prompts, mask_prompt)
    start = min(prompted)
    for order in (range(start, num_frames), range(start - 1, -1, -1)):
        recent = {}
        for index in order:
            if index in masks:
                yield index, *masks.pop(index)
                continue
            drawn, recent[index] = _propagate(
                encoder,
                encoder.encode(pixels(index)),
                len(prompts),
                {"cond_frame_outputs": memories, "non_cond_frame_outputs": recent},
                index,
                num_frames,
                order.step < 0,
                mask_prompt is not None,
            )
            _forget(encoder, recent, index)
            yield index, *drawn


def _prompt(encoder, features, prompts, mask_prompt):
    """Masks and memory of a prompted frame."""
    sam2 = encoder.sam2_model
    fine, middle, coarse = features
    owner = torch.zeros(len(prompts), dtype=torch.long, device=prompts.device)
    embedding = encoder.without_memory(coarse)[owner]
    logits, iou, token, score = _best(
        encoder.draw(encoder.mask_decoder, (fine, middle, embedding), owner, prompts=prompts)
    )
    if mask_prompt is not None:
        prompt = _mask_prompt(logits, encoder.config.image_size, *mask_prompt)
        # As SAM 2 takes a user's mask: it is the output, and the decoder only makes a pointer of it.
        logits = F.interpolate(20 * prompt - 10, size=logits.shape[-2:], mode="bilinear", antialias=True)[:, 0]
        drawn = encoder.draw(
            sam2.sam_mask_decoder,
            (fine, middle, coarse[owner]),
            owner,
            masks=sam2.mask_downsample(prompt.to(sam2.mask_downsample.weight.dtype)),
            multimask_output=False,
        )
        token, seen = drawn[2][:, 0], drawn[3]
        score = 20 * prompt.flatten(1).amax(1, keepdim=True) - 10
        pointer = _pointer(sam2, token, torch.minimum(seen, score))
    else:
        pointer = _pointer(sam2, token, score)
    return (logits, iou), _remember(encoder, coarse, logits, pointer, score)


def _mask_prompt(logits, image_size, threshold, size, temperature):
    # On the frame's own grid first, where the mask is what `segment` would return, then on SAM 2's square.
    probabilities = mask_probabilities(upsample_mask_logits(logits, image_size, size), temperature)
    masks = (probabilities > threshold).float()
    square = F.interpolate(masks[:, None], size=(image_size, image_size), mode="bilinear", antialias=True)
    return (square >= 0.5).float()


def _propagate(encoder, features, objects, outputs, index, num_frames, backward, gate):
    """Masks and memory of a frame that only the memory prompts."""
    sam2 = encoder.sam2_model
    fine, middle, coarse = features
    owner = torch.zeros(objects, dtype=torch.long, device=coarse.device)
    current, position, size = _flat(sam2, coarse, objects)
    with _half(sam2):
        embedding = sam2._prepare_memory_conditioned_features(
            frame_idx=index,
            is_init_cond_frame=False,
            current_vision_feats=[current],
            current_vision_pos_embeds=[position],
            feat_sizes=[size],
            output_dict=outputs,
            num_frames=num_frames,
            track_in_reverse=backward,
        )
    logits, iou, token, score = _best(encoder.draw(sam2.sam_mask_decoder, (fine, middle, embedding), owner))
    if gate:
        logits = torch.where(score[..., None] > 0, logits, NO_OBJ_SCORE)
    return (logits, iou), _remember(encoder, coarse, logits, _pointer(sam2, token, score), score)


def _best(drawn):
    logits, ious, tokens, scores = drawn
    best = ious.argmax(dim=-1)
    each = torch.arange(len(best), device=best.device)
    return logits[each, best], ious[each, best], tokens[each, best], scores


def _pointer(sam2, token, score):
    with _half(sam2):
        pointer = sam2.obj_ptr_proj(token.to(sam2.no_obj_ptr.dtype))
    return torch.where(score > 0, pointer, sam2.no_obj_ptr)


def _remember(encoder, coarse, logits, pointer, score):
    sam2 = encoder.sam2_model
    current, _, size = _flat(sam2, coarse, len(logits))
    square = encoder.config.image_size
    with _half(sam2):
        memory, position = sam2._encode_new_memory(
            current_vision_feats=[current],
            feat_sizes=[size],
            pred_masks_high_res=F.interpolate(logits[:, None], size=(square, square), mode="bilinear"),
            object_score_logits=score,
            is_mask_from_pts=False,
        )
    return {"maskmem_features": memory, "maskmem_pos_enc": position, "obj_ptr": pointer}


def _flat(sam2, coarse, objects):
    """The coarse level and its position encoding as SAM 2's memory wants them, `(HW, objects, C)`, and `(H, W)`."""
    dtype = sam2.no_mem_embed.dtype
    position = sam2.image_encoder.neck.position_encoding(coarse)
    levels = (level.to(dtype).flatten(2).permute(2, 0, 1).expand(-1, objects, -1) for level in (coarse, position))
    return *levels, tuple(coarse.shape[-2:])


def _half(sam2):
    # SAM 2 mixes float32 constants into its memory, which only autocast brings to half-precision weights.
    weight = sam2.no_mem_embed
    if weight.dtype == torch.float32:
        return nullcontext()  # and leave an autocast of the caller's alone
    return torch.autocast(weight.device.type, dtype=weight.dtype)


def _forget(encoder, recent, index):
    """Drop what no later frame can reach: memories after `num_maskmem - 1` frames, pointers after a few more."""
    sam2 = encoder.sam2_model
    for frame in list(recent):
        age = abs(index - frame) + 1  # how far the next frame is from it
        if age >= max(sam2.num_maskmem, sam2.max_obj_ptrs_in_encoder):
            del recent[frame]
        elif age >= sam2.num_maskmem:
            recent[frame] = {"obj_ptr": recent[frame]["obj_ptr"]}
