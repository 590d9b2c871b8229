import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GotOcr2ImageProcessorPil,
    InternVLConfig,
    InternVLVisionConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from .configuration import Sa2VAConfig, Sa2VAGroundingConfig
from .grounding import whole_weights
from .modeling import Sa2VAForConditionalGeneration
from .processing import Sa2VAProcessor


SPECIAL_TOKENS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<img>",
    "</img>",
    "<IMG_CONTEXT>",
    "[SEG]",
    "<p>",
    "</p>",
    "<vp>",
    "</vp>",
]


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """
    A tokenizer of single bytes and Sa2VA's special tokens: nothing to download, and it writes any text.

    Returns:
        `PreTrainedTokenizerFast` with 267 tokens.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={byte: index for index, byte in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL_TOKENS)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=SPECIAL_TOKENS[3:],
        clean_up_tokenization_spaces=False,
    )


def tiny_sa2va(
    image_size: int = 256, max_patches: int = 1, seed: int = 0, tie_word_embeddings: bool = False
) -> tuple[Sa2VAForConditionalGeneration, Sa2VAProcessor]:
    """
    The whole network, small enough to train on a laptop: a two-layer InternViT and Qwen2 and a small Hiera, with
    random weights.

    Args:
        image_size (`int`, *optional*, defaults to 256):
            Side of the square that SAM 2 sees, in pixels; a multiple of 32. The mask grid is a quarter of it.
        max_patches (`int`, *optional*, defaults to 1):
            Most tiles of 112 pixels that the VLM sees of an image (12 in published models).
        seed (`int`, *optional*, defaults to 0):
            Seed of the weights. The caller's random state is left alone.
        tie_word_embeddings (`bool`, *optional*, defaults to `False`):
            Whether the head shares the embeddings, for tests; published models never do.

    Returns:
        The model, in float32 and training nothing less than everything, and its processor.
    """
    tokenizer = tiny_tokenizer()
    vlm_config = InternVLConfig(
        vision_config=InternVLVisionConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            image_size=112,
            attention_bias=True,
        ),
        text_config=Qwen2Config(
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=128,
            vocab_size=len(tokenizer),
            max_position_embeddings=4096,
            tie_word_embeddings=tie_word_embeddings,
        ),
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=16,
        tie_word_embeddings=tie_word_embeddings,
    )
    config = Sa2VAConfig(
        vlm_config=vlm_config,
        grounding_config=Sa2VAGroundingConfig(
            image_size=image_size,
            embed_dim=24,
            num_heads=1,
            stages=(1, 2, 4, 2),
            global_att_blocks=(5,),
            window_spec=(8, 8, 8, 8),
            window_pos_embed_bkg_spatial_size=(8, 8),
            hidden_dim=64,
            decoder_mlp_dim=256,
            memory_dim=16,
            memory_layers=1,
            memory_mlp_dim=128,
        ),
        seg_token_id=tokenizer.convert_tokens_to_ids("[SEG]"),
    )
    with whole_weights(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Sa2VAForConditionalGeneration(config)
    image_processor = GotOcr2ImageProcessorPil(
        size={"height": 112, "width": 112},
        crop_to_patches=True,
        min_patches=1,
        max_patches=max_patches,
        image_mean=IMAGENET_DEFAULT_MEAN,
        image_std=IMAGENET_DEFAULT_STD,
    )
    processor = Sa2VAProcessor(
        image_processor, tokenizer, image_seq_length=16, grounding_image_size=image_size, prompt_template="qwen_chat"
    )
    return model, processor
