"""
All stages in one command: fine-tuning, preference optimisation on mined pairs, training on mined hard samples, and
the evaluation of each on the same held-out patients, beside as many further steps of fine-tuning.

    python recipes/three_stage.py --config recipes/configs/tiny/three_stage.yaml

Every step is a run of another recipe, printed before it starts. One that was ended is taken up at its last checkpoint,
and one that is done is not run again. To train on several processes, set `launcher`, which starts the training steps:

    python recipes/three_stage.py --config recipes/configs/sa2va_internvl3_8b/three_stage.yaml --dataset_name DIR \\
        --launcher "accelerate launch --config_file accelerate_configs/zero3.yaml"
"""

from sa2va_trl.cli import main


if __name__ == "__main__":
    main("three_stage")
