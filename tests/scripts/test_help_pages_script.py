"""The help that is printed is the help of the options as they are."""

import pytest

from sa2va_trl.scripts import HELP, TASKS
from sa2va_trl.scripts.help_pages import INHERITED, render


def sections(page):
    """What is this package's own, and what is inherited: its heading, which names versions, and its options."""
    own, _, others = page.partition(INHERITED)
    heading, _, options = others.partition("\n")
    return own, heading, f"\n{options}"


@pytest.mark.parametrize("task", TASKS)
def test_pages_are_what_the_options_say(task):
    remake = "make them anew: python -m sa2va_trl.scripts.help_pages"
    written, present = (sections(page) for page in ((HELP / f"{task}.txt").read_text(), render(task)))
    assert written[0] == present[0], remake
    if written[1] == present[1]:  # (other versions of TRL and transformers say other things)
        assert written[2] == present[2], remake


@pytest.mark.parametrize("task", ["sft", "dpo", "hard_sample"])
def test_own_options_come_first(task):
    own, _, inherited = sections((HELP / f"{task}.txt").read_text())
    for option in ("--config CONFIG", "--dataset_name", "--model_name_or_path", "--trainable", "--num_points"):
        assert f"\n  {option}" in own and f"\n  {option}" not in inherited
    for option in ("--max_steps", "--optim", "--output_dir", "--bf16"):
        assert f"\n  {option}" not in own and f"\n  {option}" in inherited


def test_what_must_be_given_is_in_the_first_line():
    first = (HELP / "convert.txt").read_text().splitlines()[0]
    assert first == "usage: sa2va-trl convert --source SOURCE --output_dir OUTPUT_DIR [--config CONFIG] [options]"


@pytest.mark.parametrize("task", TASKS)
def test_no_option_is_without_words(task):
    own, _, _ = sections(render(task))
    for entry in own.partition("\noptions:\n")[2].split("\n  -")[1:]:
        words = entry.split("(default")[0].split()
        assert len([word for word in words if word.islower()]) > 1, entry
