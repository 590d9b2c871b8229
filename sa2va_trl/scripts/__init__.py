"""The tasks of the command line, one file each, and what they share. Importing this alone loads nothing of them."""

from pathlib import Path


# In the order in which one meets them. Each is a module here, with a `main` and a `make_parser`.
TASKS = {
    "prepare_data": "make a data set of images and annotations as they come, split by patient, without names",
    "inspect": "look at data before training: masks as they are fed, sizes, duplicates, odd rows",
    "sft": "stage 1: fine-tune Sa2VA on images with masks",
    "build_preferences": "make pairs of a better and a worse mask from a model's own predictions",
    "dpo": "stage 2: optimise preferences over masks",
    "mine_hard_samples": "find the rows that a model segments badly, and labels to look at",
    "hard_sample": "stage 3: train on hard samples, with a share of ordinary ones",
    "grpo": "reinforcement learning on masks, after any other stage",
    "three_stage": "all stages, and the evaluation of each beside a control",
    "cross_validate": "train in folds, each evaluated on patients of its own; set configurations beside each other",
    "evaluate": "score a model, or masks of another tool, on held-out rows",
    "sweep_threshold": "choose the threshold on one split, and say what it gains on another",
    "search_postprocessing": "choose threshold and post-processing on one split, and say what they gain on another",
    "search_prompts": "choose the question on one split, and say what it gains on another",
    "compare": "set evaluations of the same samples beside each other",
    "predict": "segment an image, a folder of images or a video",
    "app": "a page to click on: ask about a picture or a clip, move the threshold, compare",
    "merge": "fold an adapter into its base model",
    "export_onnx": "write SAM 2's image encoder and the mask decoder as ONNX files",
    "convert": "read published checkpoints and the official trainer's, and write them",
}
# TASK.txt: what `sa2va-trl TASK --help` prints.
HELP = Path(__file__).parent / "help"
