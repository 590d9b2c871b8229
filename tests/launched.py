"""
What a process of a launch does in the tests: it stands ready and runs one script after the other, as a folder tells
it. So that many runs pay for one start: `python launched.py FOLDER`, started by [`launch.Launch`].
"""

import gc
import json
import os
import runpy
import sys
import time
import traceback
from itertools import count
from pathlib import Path

import counted_once
import torch
from accelerate.state import AcceleratorState, GradientState


def next_job(folder, number):
    """The job of this number, once it is there; `None` when there will be none, since whoever gives them is gone."""
    path, giver = folder / f"{number}.json", int((folder / "giver").read_text())
    while not path.exists():
        try:
            os.kill(giver, 0)
            time.sleep(0.02)
        except OSError:
            return None
    return json.loads(path.read_text())


def run(line):
    """A script with its arguments, from the state of a process that has just started, but for what is imported."""
    environment = dict(os.environ)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    torch.manual_seed(FRESH)
    sys.argv = line
    counted_once.count_once()
    try:
        runpy.run_path(line[0], run_name="__main__")
    finally:
        os.environ.clear()
        os.environ.update(environment)
        gc.collect()
        gc.freeze()  # what is left are libraries: not to be looked at again in every collection of the next run


FRESH = torch.initial_seed()  # of a process that nobody has seeded


def main():
    folder, rank = Path(sys.argv[1]), os.environ.get("RANK", "0")
    leave, torch.distributed.destroy_process_group = torch.distributed.destroy_process_group, lambda: None
    for number in count():
        job = next_job(folder, number)
        if job is None:
            break
        os.chdir(job["folder"])
        try:
            run(job["line"])
        except BaseException:
            (folder / f"{number}-{rank}.failed").write_text(traceback.format_exc())
            raise
        (folder / f"{number}-{rank}.done").touch()
    gc.unfreeze()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        leave()
        time.sleep(0.5)  # as in `processes.leave_process_group`


if __name__ == "__main__":
    main()
