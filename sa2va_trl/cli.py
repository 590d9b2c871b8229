"""
The command `sa2va-trl`. Nothing heavy is imported before a task starts: the list of tasks and their help are there at
once.
"""

import sys
from difflib import get_close_matches
from importlib import import_module

from .scripts import HELP, TASKS
from .scripts.quiet import VERBOSE, run


def main(task: str | None = None) -> None:
    """
    Args:
        task (`str`, *optional*): which task to run, on all of `sys.argv`; by default `sys.argv` begins with its name.

    Raises:
        `SystemExit`: there is no such task, or the task's options are wrong (2), or it has failed (1).
    """
    program, *line = sys.argv
    if task is None:
        if not line or line[0] in ("-h", "--help"):
            print(overview())
            return
        if line[0] == "--version":
            print(f"sa2va_trl {sys.modules[__package__].__version__}")
            return
        task, *line = line
    if task not in TASKS:
        nearest = get_close_matches(task, TASKS, n=1, cutoff=0)[0]
        print(f"sa2va-trl: there is no task {task!r}; did you mean {nearest}?", file=sys.stderr)
        raise SystemExit(2)
    if "-h" in line or "--help" in line:
        print((HELP / f"{task}.txt").read_text(encoding="utf-8"), end="")
        return
    sys.argv = [program, *line]
    run(task, lambda: import_module(f"sa2va_trl.scripts.{task}").main(), verbose=VERBOSE in line)


def overview() -> str:
    """The tasks, a line each."""
    width = max(map(len, TASKS))
    lines = [f"  {task:<{width}}  {about}" for task, about in TASKS.items()]
    return "\n".join(
        [
            "usage: sa2va-trl TASK [--config NAME] [options]",
            "",
            "Post-train Sa2VA on your own masks with the Hugging Face stack.",
            "",
            *lines,
            "",
            "sa2va-trl TASK --help lists the options of a task; --verbose shows what else goes into its log.",
        ]
    )


if __name__ == "__main__":
    main()
