"""
Write the two halves that draw masks as ONNX files, checked against torch: SAM 2's image encoder, and the mask decoder,
which takes an image's pyramid and prompts. The language model, which prompts come from, is in neither; with --input
and --prompt the mean of its prompts for a question on pictures is stored beside them, as prompts.npy.

    python recipes/export_onnx.py --model_name_or_path MODEL --output_dir outputs/onnx
    python recipes/export_onnx.py --model_name_or_path BASE --adapter ADAPTER \\
        --input IMAGES --prompt "the blood vessel" --output_dir outputs/onnx
"""

from sa2va_trl.cli import main


if __name__ == "__main__":
    main("export_onnx")
