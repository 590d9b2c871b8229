"""The whole network in small, with random weights or with those that come with the package."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GotOcr2ImageProcessorPil,
    InternVLConfig,
    InternVLVisionConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2Config,
    Qwen2VLImageProcessorPil,
    Qwen3VLConfig,
)
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from .configuration import SUPPORTED_VLMS, Sa2VAConfig, Sa2VAGroundingConfig, official_seg_state
from .grounding import whole_weights
from .modeling import Sa2VAForConditionalGeneration
from .processing import Sa2VAProcessor


CHAT_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
SEG_TOKENS = ["[SEG]", "<p>", "</p>", "<vp>", "</vp>"]
SPECIAL_TOKENS = [*CHAT_TOKENS, "<img>", "</img>", "<IMG_CONTEXT>", *SEG_TOKENS]
#: Words that are tokens, as they are in published models, after a space and at the beginning of a text: what is said
#: of angiograms here. All else is written in bytes.
WORDS = """
please segment segmentation result image picture this that these the a an of in on to from and or is are it
they there There no not you me see find show mark point out where which what pixels belong would like visible
run blood vessel vessels vascular coronary artery arteries tree contrast catheter guiding tube left right main
side branch branches small smaller one trunk narrowing narrow narrowed stenosis stretch diaphragm dome shadow
""".split()
FIRST_WORDS = """
Please Sure Segment Show Mark Find Where Which What Can Could Do Does Is It They These There To Yes No filled assistant
user
""".split()
QWEN_SPECIAL_TOKENS = [
    *[*CHAT_TOKENS, "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"],
    *SEG_TOKENS,
]


#: Side of InternVL's tiles in pixels, and the tokens of one: a quarter of its patches of 14 pixels.
TILE, TILE_TOKENS = 224, 64
#: The weights of the package.
WEIGHTS = Path(__file__).with_name("tiny_weights") / "model.safetensors"
# As the alphabet of bytes spells it.
_SPACE = "\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}"


def tiny_tokenizer(special_tokens: list[str] = SPECIAL_TOKENS) -> PreTrainedTokenizerFast:
    """
    A tokenizer of `WORDS` and `FIRST_WORDS`, single bytes and Sa2VA's special tokens: nothing to download, and it
    writes any text.

    Args:
        special_tokens (`list[str]`, *optional*, defaults to `SPECIAL_TOKENS`): InternVL's or `QWEN_SPECIAL_TOKENS`.

    Returns:
        `PreTrainedTokenizerFast`: with bytes, the beginnings of words, and the special tokens.
    """
    # A word is grown letter by letter, so that all of its beginnings are tokens too.
    vocab = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [
        (word[:end], word[end])
        for word in [*(f"{_SPACE}{word}" for word in WORDS), *FIRST_WORDS]
        for end in range(1, len(word))
    ]
    merges = list(dict.fromkeys(merges))
    vocab += [start + letter for start, letter in merges]
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(vocab)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special_tokens)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=special_tokens[len(CHAT_TOKENS) :],
        clean_up_tokenization_spaces=False,
    )


def _tiny_vlm_config(family: str, tokenizer: PreTrainedTokenizerFast, tie_word_embeddings: bool) -> PreTrainedConfig:
    """Two layers of vision and two or three of language."""
    text = {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 128,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 4096,
        "tie_word_embeddings": tie_word_embeddings,
    }
    if family == "internvl":
        # Enough to learn the words for structures, and to see whether a thin one is there.
        text |= {"hidden_size": 96, "num_hidden_layers": 3, "intermediate_size": 192, "initializer_range": 0.05}
        return InternVLConfig(
            vision_config=InternVLVisionConfig(
                hidden_size=48,
                num_hidden_layers=2,
                num_attention_heads=3,
                intermediate_size=96,
                image_size=TILE,
                attention_bias=True,
            ),
            text_config=Qwen2Config(**text),
            image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
            image_seq_length=TILE_TOKENS,
            tie_word_embeddings=tie_word_embeddings,
        )
    vision = {"depth": 2, "hidden_size": 32, "num_heads": 2, "intermediate_size": 64, "out_hidden_size": 64}
    # The shares of time, height and width in the eight rotary frequencies of a head, as uneven as the published ones.
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]}
    if family == "qwen2_5_vl":
        kind = Qwen2_5_VLConfig
        vision |= {"window_size": 56, "fullatt_block_indexes": [1]}
        text |= {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id}
    else:
        kind = Qwen3VLConfig
        vision |= {"num_position_embeddings": 64, "deepstack_visual_indexes": [0]}
        rope["mrope_interleaved"] = True
        text["head_dim"] = 16
    tokens = {"image": "<|image_pad|>", "video": "<|video_pad|>"}
    tokens |= {"vision_start": "<|vision_start|>", "vision_end": "<|vision_end|>"}
    return kind(
        vision_config=vision,
        text_config={**text, "rope_parameters": rope},
        tie_word_embeddings=tie_word_embeddings,
        **{f"{name}_token_id": tokenizer.convert_tokens_to_ids(token) for name, token in tokens.items()},
    )


@torch.no_grad()
def _prepare_to_learn(model: Sa2VAForConditionalGeneration) -> None:
    """
    What a model that starts from nothing needs for its masks to follow words. A prompt is drawn as strong as SAM 2's
    own tokens, beside which it would not be heard otherwise; and one of three candidate masks is the chosen one from
    the start, or else the choice of an untrained head would change what trains from step to step.
    """
    model.text_hidden_fcs[2].weight.mul_(8)
    choice = model.grounding_encoder.sam2_model.sam_mask_decoder.iou_prediction_head.layers[-1]
    choice.weight.mul_(0.1)
    choice.bias.copy_(torch.tensor([0.0, 2.0, -4.0, -4.0]))


def tiny_sa2va(
    image_size: int = 256,
    max_patches: int = 1,
    seed: int = 0,
    tie_word_embeddings: bool = False,
    family: str = "internvl",
    pretrained: bool = False,
) -> tuple[Sa2VAForConditionalGeneration, Sa2VAProcessor]:
    """
    The whole network, small enough to train on a laptop: a vision tower of two layers, a language model of two or
    three and a small Hiera.

    Args:
        image_size (`int`, *optional*, defaults to 256):
            Side of the square that SAM 2 sees, in pixels; a multiple of 32. The mask grid is a quarter of it. The
            weights of the package were trained with 256.
        max_patches (`int`, *optional*, defaults to 1):
            Most tiles of 224 pixels that the VLM sees of an image (12 in published models). Qwen, which has no tiles,
            sees up to as many pixels, and a quarter of them of a clip's frame.
        seed (`int`, *optional*, defaults to 0):
            Seed of the weights. The caller's random state is left alone.
        tie_word_embeddings (`bool`, *optional*, defaults to `False`):
            Whether the head shares the embeddings, for tests; published models never do.
        family (`str`, *optional*, defaults to `"internvl"`):
            Of the VLM: `"internvl"` (InternViT and Qwen2), `"qwen2_5_vl"` or `"qwen3_vl"`.
        pretrained (`bool`, *optional*, defaults to `False`):
            The weights that come with the package (InternVL only), in place of random ones: they tell three structures
            of generated angiograms apart by name (`recipes/configs/tiny/pretrain_talk.yaml` and on). Nothing is
            clinical.

    Returns:
        The model, in float32 and training nothing less than everything, and its processor.

    Raises:
        `ValueError`: an unknown family, or with `pretrained` another one than InternVL, a seed or tied embeddings.

    Example:

        ```python
        >>> from sa2va_trl import tiny_sa2va

        >>> model, processor = tiny_sa2va(image_size=128)
        >>> model.config.grounding_config.image_size, model.config.grounding_config.mask_size
        (128, 32)

        ```
    """
    if family not in SUPPORTED_VLMS:
        raise ValueError(f"family must be one of {', '.join(SUPPORTED_VLMS)}, got {family!r}.")
    if pretrained and (family != "internvl" or seed != 0 or tie_word_embeddings):
        raise ValueError(
            "The package's weights are of family internvl, without tied embeddings, and no seed changes them: leave "
            "family, seed and tie_word_embeddings out, or take random weights (pretrained=False)."
        )
    tokenizer = tiny_tokenizer(SPECIAL_TOKENS if family == "internvl" else QWEN_SPECIAL_TOKENS)
    config = Sa2VAConfig(
        vlm_config=_tiny_vlm_config(family, tokenizer, tie_word_embeddings),
        grounding_config=Sa2VAGroundingConfig(
            image_size=image_size,
            embed_dim=24,
            num_heads=1,
            stages=(2, 3, 3, 1),
            global_att_blocks=(7,),
            window_spec=(8, 8, 8, 8),
            window_pos_embed_bkg_spatial_size=(8, 8),
            hidden_dim=64,
            decoder_mlp_dim=256,
            memory_dim=16,
            memory_layers=1,
            memory_mlp_dim=128,
        ),
        seg_token_id=tokenizer.convert_tokens_to_ids("[SEG]"),
        seg_state=official_seg_state(family),
        tracking_trained=False,
    )
    with whole_weights(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Sa2VAForConditionalGeneration(config)
        _prepare_to_learn(model)
    if pretrained:
        model.load_state_dict(load_file(WEIGHTS))
    for holder in (model.config.text_config, model.generation_config):
        # As Trainer would align them, with a warning. (Not earlier: the embedding of padding would be zeros.)
        holder.eos_token_id, holder.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    if family == "internvl":
        image_processor = GotOcr2ImageProcessorPil(
            size={"height": TILE, "width": TILE},
            crop_to_patches=True,
            min_patches=1,
            max_patches=max_patches,
            image_mean=IMAGENET_DEFAULT_MEAN,
            image_std=IMAGENET_DEFAULT_STD,
        )
        options = {"image_seq_length": TILE_TOKENS}
    else:
        # As in published models, a budget spans a factor of four, and a clip's frame has a quarter of a still image's.
        most = max_patches * 112 * 112
        image_processor = Qwen2VLImageProcessorPil(
            size={"shortest_edge": most // 4, "longest_edge": most},
            patch_size=config.vlm_config.vision_config.patch_size,
            **({} if family == "qwen2_5_vl" else {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}),
        )
        options = {"clip_size": {"shortest_edge": most // 16, "longest_edge": most // 4}}
    processor = Sa2VAProcessor(
        image_processor, tokenizer, grounding_image_size=image_size, prompt_template="qwen_chat", **options
    )
    return model, processor
