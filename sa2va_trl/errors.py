"""What is wrong with a user's data, features or mining: the package's own errors."""

from typing import NamedTuple


class CheckpointError(ValueError):
    """A checkpoint that cannot be used as it is; the message says which file or tensor and why."""


_LISTED = 50


class BadRow(NamedTuple):
    """
    One row that cannot be used.

    Args:
        row (`int`):
            Position in the dataset (or in the list of the annotation file).
        sample_id (`str` or `None`):
            Its `sample_id`, where it has one.
        file (`str` or `None`):
            The file to look at, where it is known.
        reason (`str`):
            What is wrong with it.
    """

    row: int | None
    sample_id: str | None
    file: str | None
    reason: str

    def __str__(self) -> str:
        where = [] if self.row is None else [f"row {self.row}"]
        if self.sample_id is not None:
            where.append(f"sample_id {self.sample_id!r}")
        if self.file is not None:
            where.append(self.file)
        return f"{', '.join(where)}: {self.reason}"


class DatasetError(ValueError):
    """
    A dataset, or a folder to be read as one, that cannot be trained on.

    Args:
        message (`str`):
            What is wrong and what to do.
        problems (list of `BadRow`, *optional*):
            Every bad row. The message lists the first 50 and counts the rest.
    """

    def __init__(self, message: str, problems: list[BadRow] | None = None):
        self.problems = list(problems or [])
        lines = [message] + [f"  {problem}" for problem in self.problems[:_LISTED]]
        if len(self.problems) > _LISTED:
            lines.append(f"  ... and {len(self.problems) - _LISTED} more")
        super().__init__("\n".join(lines))


class FeatureError(RuntimeError):
    """Features cannot be written or read. The message says what to do; nothing is left corrupt."""


class MiningError(ValueError):
    """Scores, or a choice among them, that cannot be used. The message says what to do."""


def listed(names: list[str]) -> str:
    """Names for a message: the first 50, and how many more."""
    more = f", ... and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
