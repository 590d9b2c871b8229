"""
A page to click on: open an image or a clip, or a generated one, write a prompt, see the answer and the masks, move the
threshold, play the clip, and download masks, overlays and JSON.

    python recipes/app.py
    python recipes/app.py --model_name_or_path BASE --adapter outputs/stage1 --compare_adapter outputs/stage3

It is served to this machine alone, at http://127.0.0.1:7860, loads nothing from elsewhere and keeps no picture: an
upload is deleted as soon as it is read. It needs Gradio: pip install 'sa2va_trl[app]'.
"""

from sa2va_trl.cli import main


if __name__ == "__main__":
    main("app")
