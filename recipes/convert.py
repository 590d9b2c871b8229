"""
Convert checkpoints: the layout that Sa2VA publishes to the native one and back, and what the official trainer saves
(`iter_N.pth`) to an adapter or, merged, to a model.

    python recipes/convert.py --source ByteDance/Sa2VA-InternVL3-8B --output_dir outputs/sa2va --dtype bfloat16
    python recipes/convert.py --source outputs/sa2va --layout published --output_dir outputs/for_other_tools
    python recipes/convert.py --source iter_3672.pth --model_name_or_path BASE --output_dir outputs/adapter
"""

from sa2va_trl.cli import main


if __name__ == "__main__":
    main("convert")
