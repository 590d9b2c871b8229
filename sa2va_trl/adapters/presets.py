"""What trains: the presets `stage1`, `head`, `full` and `vlm`, and the table that says so."""

from collections import defaultdict

from peft import LoraConfig
from peft.utils.constants import DUMMY_TARGET_MODULES
from torch import nn


EMBEDDINGS = ("none", "seg", "full")
# Options that only stage1 has.
LORA = ("lora_r", "lora_alpha", "lora_dropout")
# The language model's linear layers and nothing else: "all-linear" would also adapt the vision tower, the projector
# and SAM 2's image encoder, and plain names such as "q_proj" the vision tower. (Phi-3's are fused.)
LANGUAGE_MODEL_LINEARS = r".*\.language_model\..*\.(q|k|v|qkv|o|gate|up|gate_up|down)_proj"
# What adapters of earlier versions say, which had no Phi-3: the same layers of every other language model.
EARLIER_LINEARS = r".*\.language_model\..*\.(q|k|v|o|gate|up|down)_proj"
# Not SAM 2's prompt encoder and memory: only clicks, boxes, masks or tracking reach them, and no loss does.
VLM = ("vlm.", "text_hidden_fcs.")
FULL = (*VLM, "grounding_encoder.sam2_model.image_encoder.")


def get_peft_config(
    trainable: str,
    seg_token_id: int,
    lora_r: int = 64,
    lora_alpha: int = 128,
    lora_dropout: float = 0.05,
    train_embeddings: str = "none",
    mask_decoder: str = "sam_mask_decoder",
) -> LoraConfig | None:
    """
    The adapter of a preset.

    Args:
        trainable (`str`):
            `"stage1"`: LoRA on the language model; `text_hidden_fcs`, SAM 2's mask decoder and InternVL's projector
            whole. (Qwen's counterpart of the projector belongs to its vision tower, which stays frozen.)
            `"head"`: `text_hidden_fcs` and the mask decoder only (17.98 M parameters on Sa2VA-InternVL3-8B).
            `"full"`, `"vlm"`: no adapter, see [`freeze_all_but_full`] and [`freeze_all_but_vlm`].
        seg_token_id (`int`): id of `[SEG]`.
        lora_r, lora_alpha, lora_dropout: of `"stage1"`'s LoRA.
        train_embeddings (`str`, *optional*, defaults to `"none"`):
            With `"stage1"`: `"seg"` trains `[SEG]`'s rows of embeddings and head, `"full"` both matrices, as Sa2VA's
            own training does. A model that already writes `[SEG]` needs neither.
        mask_decoder (`str`, *optional*, defaults to `"sam_mask_decoder"`):
            Name of the decoder that language prompts go to, `config.grounding_config.mask_decoder_name`. Where a model
            has two, the one for tracking never trains: no loss reaches it.

    Returns:
        `LoraConfig`, or `None` for `"full"` and `"vlm"`.

    Raises:
        `ValueError`: an unknown name, or an embedding choice that the preset does not have.
    """
    if trainable not in TRAINABLE:
        raise ValueError(f"trainable must be one of {', '.join(TRAINABLE)}, got {trainable!r}.")
    if train_embeddings not in EMBEDDINGS:
        raise ValueError(f"train_embeddings must be one of {', '.join(EMBEDDINGS)}, got {train_embeddings!r}.")
    if trainable != "stage1" and train_embeddings != "none":
        raise ValueError(
            f"train_embeddings={train_embeddings!r} has no meaning with trainable={trainable!r}: 'head' trains no "
            "embeddings, 'full' and 'vlm' always do."
        )
    if trainable in WHOLE:
        return None
    # PEFT wraps every module whose name ends with one of these; "sam_mask_decoder" does not end
    # "sam_mask_decoder_modified", nor the other way round.
    head = ["text_hidden_fcs", mask_decoder]
    if trainable == "head":
        return LoraConfig(target_modules=DUMMY_TARGET_MODULES, modules_to_save=head)
    modules = [*head, "multi_modal_projector"]
    if train_embeddings == "full":
        modules += ["embed_tokens", "lm_head"]
    rows = {"embed_tokens": [seg_token_id], "lm_head": [seg_token_id]} if train_embeddings == "seg" else None
    return LoraConfig(
        r=lora_r,
        lora_alpha=lora_alpha,
        lora_dropout=lora_dropout,
        target_modules=LANGUAGE_MODEL_LINEARS,
        modules_to_save=modules,
        trainable_token_indices=rows,
    )


def freeze_all_but_full(model: nn.Module) -> None:
    """
    Leave trainable what preset `"full"` trains: the VLM, `text_hidden_fcs`, SAM 2's image encoder and mask decoder.

    Args:
        model (`Sa2VAForConditionalGeneration`): changed in place.
    """
    decoder = f"grounding_encoder.sam2_model.{model.config.grounding_config.mask_decoder_name}."
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith((*FULL, decoder)))


def freeze_all_but_vlm(model: nn.Module) -> None:
    """
    Leave trainable what preset `"vlm"` trains: the VLM and `text_hidden_fcs`. SAM 2 stays as it is, so that a language
    model which has much to learn must learn to prompt it, and the mask decoder cannot forget to listen meanwhile.

    Args:
        model (`Sa2VAForConditionalGeneration`): changed in place.
    """
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(VLM))


#: Presets without an adapter, and what leaves of a model what they train.
WHOLE = {"full": freeze_all_but_full, "vlm": freeze_all_but_vlm}
TRAINABLE = ("stage1", "head", *WHOLE)


def trainable_table(model: nn.Module) -> str:
    """
    Which parts train, with counts.

    Args:
        model (`nn.Module`): a Sa2VA model or a `PeftModel` around one.

    Returns:
        `str`: a table with one line a part and a total.
    """
    trained, total = defaultdict(int), 0
    for name, parameter in model.named_parameters():
        # Under ZeRO-3 a parameter's own tensor is empty and `ds_numel` has its size.
        size = getattr(parameter, "ds_numel", parameter.numel())
        total += size
        if parameter.requires_grad:
            trained[_part(name)] += size
    rows = [*trained.items(), ("trainable", sum(trained.values())), ("all parameters", total)]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {count / 1e6:>12,.3f} M" for name, count in rows)


def _part(name: str) -> str:
    for part, marker in (
        ("LoRA (language model)", ".lora_"),
        ("[SEG] rows", "trainable_tokens"),
        ("text_hidden_fcs", "text_hidden_fcs"),
        ("SAM 2 mask decoder", "sam_mask_decoder"),
        ("SAM 2 image encoder", "image_encoder"),
        ("projector", "multi_modal_projector"),
        ("embeddings", "embed_tokens"),
        ("LM head", "lm_head"),
        ("vision tower", "vision_tower"),
        ("vision tower", ".visual."),
        ("language model", "language_model"),
    ):
        if marker in name:
            return part
    return "other"
