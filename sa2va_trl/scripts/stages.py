"""The stages of one run: which there are, in which order, and what their folders are called."""

from collections.abc import Sequence
from dataclasses import dataclass

import yaml

from .config_files import step_config_file


# By the task of a stage: which option of `three_stage` has its options.
SECTIONS = {"sft": "stage1", "dpo": "stage2", "hard_sample": "stage3", "grpo": "grpo"}
# What all is compared with where no stage has made it.
START = "start"


@dataclass(frozen=True)
class Stage:
    """
    Args:
        task (`str`): a key of `SECTIONS`.
        folder (`str`): of what it leaves, and what it is called in comparisons.
        preparation (`str`): folder of the pairs or scores that it learns from, where it needs any.
    """

    task: str
    folder: str
    preparation: str


@dataclass(frozen=True)
class Plan:
    """
    Args:
        stages (`tuple[Stage, ...]`): in their order.
        base (`str`): name of the model that the others are compared with: fine-tuned, or what the stages start from.
        last (`str`): name of the stage that the control is measured by; it has as many steps as those up to it.
    """

    stages: tuple[Stage, ...]
    base: str
    last: str

    @property
    def begins_with_sft(self) -> bool:
        """Whether the base is made here."""
        return self.stages[0].task == "sft"

    def names(self) -> tuple[list[str], list[str]]:
        """The models that there are, in their order: up to the last that the control is measured by, and after it."""
        found = [stage.folder for stage in self.stages]
        found = found if self.begins_with_sft else [self.base, *found]
        after = found.index(self.last) + 1
        return found[:after], found[after:]

    def before(self, task: str) -> tuple[str, str] | None:
        """Names of the model that a stage starts from and of the one that it makes, if it is among them."""
        names = sum(self.names(), [])
        for stage in self.stages:
            if stage.task == task:
                return names[names.index(stage.folder) - 1], stage.folder
        return None

    def comparisons(self) -> list[tuple[str, str]]:
        """What is compared with what, each pair once: `control` and `router` are what they are called."""
        judged, added = self.names()
        found = [*zip(judged, judged[1:], strict=False), (self.base, self.last)]
        if routed := self.before("hard_sample"):
            found.append((routed[0], "router"))
        found += [(self.base, "control"), ("control", self.last)]
        for before, name in zip([self.last, *added], added, strict=False):
            found += [(before, name), (self.base, name)]
        return list(dict.fromkeys(found))


def usual_plan(first_stage: int, with_grpo: bool) -> Plan:
    """
    The order that there was before others could be chosen, with the folder names of then.

    Args:
        first_stage (`int`): 2 where the model is fine-tuned already.
        with_grpo (`bool`): add reinforcement learning, which the control does not count.
    """
    stages = [Stage("sft", "stage1", "")] if first_stage == 1 else []
    stages += [Stage("dpo", "stage2", "preferences"), Stage("hard_sample", "stage3", "mining")]
    stages += [Stage("grpo", "grpo", "grpo_mining")] if with_grpo else []
    return Plan(tuple(stages), "stage1", "stage3")


def plan_in_order(tasks: Sequence[str]) -> Plan:
    """
    Stages in an order of one's own.

    Args:
        tasks (`Sequence[str]`): keys of `SECTIONS`, each at most once.

    Returns:
        `Plan`, whose folders have the place of a stage and its task in their names.

    Raises:
        `ValueError`: there are none, one is not known or comes twice, or fine-tuning is alone.

    Example:

    ```python
    >>> from sa2va_trl.scripts.stages import plan_in_order

    >>> plan = plan_in_order(["sft", "grpo"])
    >>> plan.base, plan.last
    ('stage1_sft', 'stage2_grpo')
    >>> plan_in_order(["hard_sample"]).comparisons()
    [('start', 'stage1_hard_sample'), ('start', 'router'), ('start', 'control'), ('control', 'stage1_hard_sample')]

    ```
    """
    known = ", ".join(SECTIONS)
    if isinstance(tasks, str) or not tasks:
        raise ValueError(f"stages: give a list of one or more of {known}; got {tasks!r}.")
    if unknown := [str(task) for task in tasks if task not in SECTIONS]:
        raise ValueError(f"stages: there is no {', '.join(unknown)}; there are {known}.")
    if twice := sorted({task for task in tasks if tasks.count(task) > 1}):
        raise ValueError(f"stages: {', '.join(twice)} comes twice; a stage can be run once.")
    if list(tasks) == ["sft"]:
        raise ValueError("stages: sft alone leaves nothing to compare; run sa2va-trl sft, or name a further stage.")
    made = {"dpo": "preferences", "hard_sample": "mining", "grpo": "mining"}
    stages = tuple(
        Stage(task, f"stage{place}_{task}", f"stage{place}_{made.get(task, '')}")
        for place, task in enumerate(tasks, start=1)
    )
    return Plan(stages, stages[0].folder if tasks[0] == "sft" else START, stages[-1].folder)


def draws_by_scores(options: dict) -> bool:
    """
    Whether reinforcement learning draws its rows by scores.

    Args:
        options (`dict`): of `grpo`, with `config` as [`~scripts.config_files.step_config_file`] takes it.

    Raises:
        `FileNotFoundError`: there is no such `config`.
    """
    config = options.get("config")
    settings = {} if config is None else yaml.safe_load(step_config_file(config).read_text()) or {}
    return {**settings, **options}.get("sample_by", "uniform") != "uniform"


def check_sections(tasks: Sequence[str], given: dict[str, dict]) -> None:
    """
    Options have a step that takes them.

    Args:
        tasks (`Sequence[str]`): the stages, in order.
        given (`dict[str, dict]`): options by the name of what they are for, as `three_stage` takes them.

    Raises:
        `ValueError`: there are options of a stage, or of what is made for it, that is not among them.
    """
    users = {section: (task,) for task, section in SECTIONS.items()}
    users |= {"preferences": ("dpo",), "router": ("hard_sample",)}
    users["mining"] = ("hard_sample", "grpo with sample_by") if "grpo" in tasks else ("hard_sample",)
    has = {*tasks} | ({"grpo with sample_by"} if "grpo" in tasks and draws_by_scores(given["grpo"]) else set())
    for section, names in users.items():
        if given.get(section) and not has & {*names}:
            raise ValueError(
                f"{section}: these are options for {' or '.join(names)}, which is not among stages: "
                f"{', '.join(tasks)}. Leave them out (--{section} '{{}}' on the command line)."
            )
