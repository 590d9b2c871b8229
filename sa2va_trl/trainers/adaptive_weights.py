"""Weights that follow a metric: that of recall is raised while too little is found, and lowered again."""

import json
import math
from dataclasses import asdict, dataclass
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState


@dataclass(frozen=True)
class WeightRule:
    """
    What weight a part of the loss, or of the reward, has.

    Args:
        component (`str`):
            Part of the reward ([`~trainers.SegGRPOTrainer`]), such as `recall`; of other trainers that of a config's
            `<component>_weight`, such as `cldice`.
        weight (`float`):
            While the moving mean of the metric is below `below`, or above `above`; positive. (Parts of a reward that
            is given as weights are divided by the sum of all.)
        otherwise (`float`): positive.
        below, above (`float`, *optional*): one of the two.
        metric (`str`, *optional*):
            What is watched: the name that it is logged under, in training or, as `eval_dice`, in evaluation. By
            default `rewards/<component>/mean`, of other trainers `<component>_loss`.
        margin (`float`, *optional*, defaults to 0.02):
            How far the mean has to be beyond the threshold for `otherwise` to come back.
        patience (`int`, *optional*, defaults to 10): least number of steps between two changes.
        decay (`float`, *optional*, defaults to 0.9): share of the moving mean that a step leaves, in [0, 1).

    Raises:
        `ValueError`: a value out of its range, or both or none of `below` and `above`.
    """

    component: str
    weight: float
    otherwise: float
    below: float | None = None
    above: float | None = None
    metric: str | None = None
    margin: float = 0.02
    patience: int = 10
    decay: float = 0.9

    def __post_init__(self):
        if (self.below is None) == (self.above is None):
            raise ValueError("give either below or above")
        if not math.isfinite(self.below if self.above is None else self.above):
            raise ValueError("below and above must be finite")
        for name in ("weight", "otherwise"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.weight == self.otherwise:
            raise ValueError(f"weight and otherwise are both {self.weight}, so that nothing would change")
        if self.margin < 0 or self.patience < 1 or not 0 <= self.decay < 1:
            raise ValueError(
                "margin must not be negative, patience at least 1 and decay in [0, 1), got "
                f"{self.margin}, {self.patience} and {self.decay}"
            )

    def holds(self, mean: float, before: bool | None) -> bool:
        """
        Args:
            mean (`float`): the moving mean.
            before (`bool`, *optional*): whether the rule held before; `None` at first.

        Returns:
            `bool`: whether `weight` is the component's weight.
        """
        slack = self.margin if before else 0.0
        return mean < self.below + slack if self.above is None else mean > self.above - slack


def read_rules(value: Any) -> list[WeightRule]:
    """
    Rules from options.

    Args:
        value (`list[dict]`, `dict` or `str`): one or several, or the JSON of such.

    Returns:
        `list[WeightRule]`.

    Raises:
        `ValueError`: naming what is wrong with which.

    Example:

        ```python
        >>> from sa2va_trl.trainers.adaptive_weights import read_rules

        >>> (rule,) = read_rules([{"component": "recall", "below": 0.8, "weight": 0.4, "otherwise": 0.2}])
        >>> rule.holds(0.79, before=None), rule.holds(0.81, before=True), rule.holds(0.81, before=False)
        (True, True, False)

        ```
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise ValueError(f"adaptive_weights: {value!r} is not JSON ({error}).") from error
    rules = []
    for number, entry in enumerate([value] if isinstance(value, dict) else value, start=1):
        try:
            rules.append(WeightRule(**entry))
        except (TypeError, ValueError) as error:
            reason = str(error).replace("WeightRule.__init__() ", "").rstrip(".")
            raise ValueError(f"adaptive_weights: rule {number}, {entry}: {reason}.") from error
    names = [rule.component for rule in rules]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"adaptive_weights: {', '.join(twice)} has more than one rule.")
    return rules


class WeightState(TrainerCallback, ExportableState):
    """
    What a resumed run needs to go on with the weights of one that was not ended; it becomes a part of
    `trainer_state.json`.

    Args:
        rules (`list[dict]`, *optional*): of [`WeightRule`].

    Attributes:
        seen (`dict[str, list]`): of each metric the sum and the number of values since the last step.
        means (`dict[str, float]`): the moving mean, by component.
        holding (`dict[str, bool]`): which rules hold; empty until something was seen.
        changed_at (`dict[str, int]`): step of the last change.
    """

    NAMES = ("seen", "means", "holding", "changed_at")

    def __init__(self, rules: list[dict] | None = None):
        self.rules = read_rules(rules or [])
        self.seen, self.means, self.holding, self.changed_at = {}, {}, {}, {}

    def state(self) -> dict:
        """What a checkpoint keeps."""
        return {
            "args": {"rules": [asdict(rule) for rule in self.rules]},
            "attributes": {name: getattr(self, name) for name in self.NAMES},
        }

    def see(self, name: str, value: float, times: int = 1) -> None:
        """Take note of a value of a metric, `times` over, if a rule watches it."""
        if any(rule.metric == name for rule in self.rules) and not math.isnan(value):
            total, count = self.seen.get(name, (0.0, 0))
            self.seen[name] = [total + times * value, count + times]

    def step(self, step: int, may_change: bool = True) -> dict[str, float]:
        """
        Take what was seen into the means.

        Args:
            step (`int`): number of the step that has ended.
            may_change (`bool`, *optional*, defaults to `True`): whether weights may change now.

        Returns:
            `dict[str, float]`: weights that have changed, by component.
        """
        changed = {}
        for rule in self.rules:
            name = rule.component
            total, count = self.seen.get(rule.metric, (0.0, 0))
            if count:
                mean = total / count
                self.means[name] = rule.decay * self.means.get(name, mean) + (1 - rule.decay) * mean
            if not may_change or name not in self.means:
                continue
            before = self.holding.get(name)
            if before is not None and step - self.changed_at[name] < rule.patience:
                continue
            now = rule.holds(self.means[name], before)
            if now != before:
                self.holding[name], self.changed_at[name] = now, step
                changed[name] = rule.weight if now else rule.otherwise
        self.seen = {}
        return changed

    @property
    def weights(self) -> dict[str, float]:
        """The weights that rules give now, by component."""
        return {
            rule.component: rule.weight if self.holding[rule.component] else rule.otherwise
            for rule in self.rules
            if rule.component in self.holding
        }


class AdaptWeights(TrainerCallback):
    """Has a trainer's weights follow its metrics."""

    def __init__(self, trainer: Trainer):
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer.begin_adapting()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer.adapt()

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        for name, value in (metrics or {}).items():
            self.trainer.weight_state.see(name, value)
        # (Of several sets each has its own evaluation.)
        if metrics and not isinstance(self.trainer.eval_dataset, dict):
            for rule in self.trainer.weight_state.rules:
                if rule.metric.startswith("eval_") and rule.metric not in metrics:
                    names = ", ".join(sorted(metrics))
                    raise ValueError(
                        f"adaptive_weights: no {rule.metric!r} comes of an evaluation; there are {names}."
                    )


class AdaptingMixin:
    """
    A mask trainer whose weights follow metrics.

    Of the trainer it needs what `Trainer` has, a config with `adaptive_weights`, and a call to
    [`~AdaptingMixin.setup_weights`] at the end of its constructor.
    """

    _watched = "{}_loss"
    # What a weight is logged under.
    _logged_weight = "{}_weight"

    def restored(self, kind: type[TrainerCallback]) -> TrainerCallback:
        """The callback of a kind, looked up each time: Trainer may put a restored one in the place of the first."""
        return next(entry for entry in self.callback_handler.callbacks if type(entry) is kind)

    @property
    def weight_state(self) -> WeightState:
        """What the rules have seen."""
        return self.restored(WeightState)

    def setup_weights(self) -> None:
        """
        Raises:
            `ValueError`: a rule is of a weight that there is not, or of one that is 0.
        """
        if self.args.adaptive_weights is None:
            return
        rules = [
            asdict(rule) | {"metric": rule.metric or self._watched.format(rule.component)}
            for rule in read_rules(self.args.adaptive_weights)
        ]
        for rule in rules:
            self.check_component(rule["component"])
            if rule["metric"].startswith("eval_") and self.args.eval_strategy == "no":
                raise ValueError(f"adaptive_weights: {rule['metric']} is of an evaluation, and eval_strategy is no.")
        self.add_callback(WeightState(rules))
        self.add_callback(AdaptWeights(self))

    def check_component(self, name: str) -> None:
        """
        Args:
            name (`str`): of a component.

        Raises:
            `ValueError`: it has no weight, or none that is above 0.
        """
        weights = {
            entry.removesuffix("_weight"): value
            for entry, value in vars(self.args).items()
            if entry.endswith("_weight") and value
        }
        if name not in weights:
            raise ValueError(
                f"adaptive_weights: {name!r} has no weight above 0 that could change; there are "
                f"{', '.join(sorted(weights))}. (Set {name}_weight to what training starts with, if there is one.)"
            )

    def component_weight(self, name: str) -> float:
        """The present weight of a component."""
        return getattr(self.args, f"{name}_weight")

    def set_component_weight(self, name: str, weight: float) -> None:
        """Give a component another weight, from the next step on."""
        setattr(self.args, f"{name}_weight", weight)

    def watch(self, name: str, value: float, times: int = 1) -> None:
        """Show a metric of a micro-batch, `times` over, to the rules, if there are any."""
        if self.args.adaptive_weights is not None:
            self.weight_state.see(name, value, times)

    def may_adapt(self) -> bool:
        """Whether weights may change after this step."""
        return True

    def begin_adapting(self) -> None:
        """Take up the weights of a run that is gone on with."""
        for name, weight in self.weight_state.weights.items():
            self.set_component_weight(name, weight)

    def adapt(self) -> None:
        """
        Look at the metrics of a step, and change weights where rules say so.

        Raises:
            `ValueError`: a metric that is watched has not been recorded.
        """
        state, step = self.weight_state, self.state.global_step
        for rule in state.rules:  # that of this step
            weight = self.component_weight(rule.component)
            self._metrics["train"][self._logged_weight.format(rule.component)].append(weight)
        for name, weight in state.step(step, self.may_adapt()).items():
            self.set_component_weight(name, weight)
            self._tell(f"Step {step}: the weight of {name} is {weight:g} from now on ({state.means[name]:.3f}).")
        for rule in state.rules:
            waits = rule.metric.startswith("eval_") or step <= rule.patience
            if rule.component not in state.means and not waits:
                names = ", ".join(sorted(self._metrics["train"]))
                raise ValueError(f"adaptive_weights: no {rule.metric!r} is recorded in training; there are {names}.")
