"""
Choose the question that a model is asked on one split, and report on another what it gains over the package's own:
candidates of a file, or of templates with other words for the phrases, in English and Chinese.

    sa2va-trl search_prompts --model_name_or_path MODEL --dataset_name DIR --output_dir outputs/prompts
    sa2va-trl search_prompts --model_name_or_path BASE --adapter OUT --dataset_name DIR --prompts FILE --store

FILE holds a question a line, with {phrase} where the row's phrase goes ("Show me the {phrase}."), or with other words
for some phrases ("Show me the {phrase|blood vessel=coronary artery}."). Lines that begin with # are left out.
"""

from dataclasses import dataclass, field
from pathlib import Path

from ..adapters.mask_options import store_mask_options
from ..evaluation import summarize
from ..evaluation.candidate_questions import TEMPLATES, check_languages, made_questions, phrases_in, read_questions
from ..evaluation.prompts import METRICS, AskedRows, as_json, difference, search_questions
from ..files import write_json
from ..questions import QUESTIONS, question_of
from .arguments import ComparedDataArguments, ModelArguments, RecipeParser
from .choosing import chosen_and_reported, gain_in_short, gain_in_words, on_device, place_to_store
from .commands import command, of_data, of_model
from .loading import load_model
from .screen import finish, say


@dataclass
class SearchPromptsArguments:
    choose_split: str = field(default="validation", metadata={"help": "Split to choose the question on."})
    dataset_split: str = field(default="test", metadata={"help": "Split to report on."})
    output_dir: str = field(default="outputs/prompts", metadata={"help": "Folder for the results."})
    prompts: str | None = field(
        default=None, metadata={"help": "File of questions with {phrase}, one a line; # begins a comment."}
    )
    languages: list[str] | None = field(
        default=None,
        metadata={"help": "Questions made of the package's templates: en, zh or both; both without prompts."},
    )
    metric: str = field(default="dice", metadata={"help": "What to choose by: dice or cldice."})
    store: bool = field(
        default=False, metadata={"help": "Store the question in the folder of the adapter, or else of the model."}
    )
    batch_size: int = field(default=8, metadata={"help": "Images in a forward pass."})
    finalists: int = field(default=4, metadata={"help": "Questions to ask of all images, beside the package's own."})
    seed: int = field(default=0, metadata={"help": "Of the order in which patients enter the rounds."})

    def __post_init__(self):
        if self.choose_split == self.dataset_split:
            raise ValueError(
                f"choose_split={self.choose_split!r} is the split to report on: choose the question on another, or "
                "the result flatters it."
            )
        if self.metric not in METRICS:
            raise ValueError(f"metric must be {' or '.join(METRICS)}, got {self.metric!r}.")
        for name in ("batch_size", "finalists"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.languages is None:
            self.languages = [] if self.prompts is not None else list(TEMPLATES)
        else:
            check_languages(self.languages)


def say_table(finalists: list[dict], metric: str) -> None:
    """The questions that were asked of all images, a line each, the best first."""
    width = max(len(metric), 6)
    say(f"{metric:>{width}}   difference [95 %]             p (Holm)   question")
    for entry in finalists:
        p, found = "", entry["difference"]
        if found is not None:
            p = f"{found['permutation_p_holm']:.2g}"
        say(f"{entry['mean']:>{width}.4f}   {gain_in_short(found):<27}   {p:<8}   {entry['question']}")


def is_better(finalist: dict) -> bool:
    """
    Whether a question is better than the package's own, as far as the images that it was chosen on can tell. (Other
    words than those that a model has been trained with are not worth a difference that may be chance.)
    """
    low = None if finalist["difference"] is None else finalist["difference"]["ci95"][0]
    return low is not None and low > 0


def make_parser() -> RecipeParser:
    """What reads the options of the task, and prints them for `--help`."""
    kinds = (SearchPromptsArguments, ComparedDataArguments, ModelArguments)
    return RecipeParser(kinds, prog="sa2va-trl search_prompts", description=__doc__)


def main() -> None:
    args, data_args, model_args = make_parser().parse_args_and_config()
    given = [] if args.prompts is None else read_questions(args.prompts)
    folder = place_to_store(model_args) if args.store else None
    chosen_on, reported = chosen_and_reported(data_args, args.choose_split, args.dataset_split)
    phrases = phrases_in(chosen_on)
    made = made_questions(phrases, args.languages) if args.languages else []
    if not set(given + made) - {QUESTIONS[0]}:
        raise ValueError(f"prompts={args.prompts!r} holds nothing to choose from but the package's own question.")

    model, processor = load_model(model_args)
    model = on_device(model)
    own = question_of(model.config)  # that of an earlier search is kept to the end too
    questions = list(dict.fromkeys([QUESTIONS[0], own, *given, *made]))

    # Choose
    asked = AskedRows(model, processor, chosen_on, questions, args.metric, args.batch_size)
    halving, finalists = search_questions(asked, sorted({0, questions.index(own)}), args.finalists, args.seed)
    best = finalists[0]
    chosen = best["question"] if is_better(best) else QUESTIONS[0]

    # Report
    compared = list(dict.fromkeys([QUESTIONS[0], best["question"]]))
    test = AskedRows(model, processor, reported, compared, args.metric, args.batch_size)
    values = test(range(len(compared)), range(len(test.positions)))
    default, other = (summarize(each, test.clusters, (0, 1)) for each in (values[0], values[-1]))
    gain = difference(values, test) if len(compared) > 1 else None
    stored = {"default_question": None if chosen == QUESTIONS[0] else chosen}
    content = {
        "choose_split": args.choose_split,
        "dataset_split": args.dataset_split,
        "metric": args.metric,
        "phrases": phrases,
        **as_json(halving, questions),
        "finalists": finalists,
        "best": best["question"],
        "chosen": chosen,
        "test": {"default": default, "best": other, "difference": gain},
        "to_store": stored,
        "model": {"default_question": model.config.default_question},
    }
    output = Path(args.output_dir)
    write_json(output / "prompts.json", content)

    rounds = ", ".join(f"{len(each.candidates)} x {each.images}" for each in halving.rounds)
    say(f"{args.choose_split} split, {len(questions)} questions; questions x images of the rounds: {rounds}")
    say_table(finalists, args.metric)
    on_test = f"{args.metric} on {args.dataset_split}"
    result = f'"{chosen}" is chosen, {on_test} {default["mean"]:.4f}'
    if gain is not None:
        say(f"the best of them against the package's own, {on_test}: {gain_in_words(gain)}")
        if chosen == best["question"]:
            result += f" -> {other['mean']:.4f}"
        else:
            say(f"on {args.choose_split} its interval is not above 0, so the package's own question stays")
    wrote = f"results in {output}"
    if folder is not None:
        wrote += f"; stored in {store_mask_options(folder, **stored)}"
    split = None if args.dataset_split == "test" else args.dataset_split
    # (The package's own has to be named where the model has another.)
    line = {} if args.store or chosen == own else {"question": chosen}
    evaluate = command("evaluate", **of_model(model_args), **of_data(data_args), dataset_split=split, **line)
    finish(result, wrote, f"score it in full: {evaluate}")
