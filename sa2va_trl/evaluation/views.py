"""
Views of an image, for test-time augmentation: the image changed before the model, and the way back of what is drawn.

Every way back is exact. Pixels move or change their grey values, and none is interpolated, so whatever averages the
maps of several views compares like with like.
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image


#: What `--tta` takes; the number is one's own.
KNOWN = "hflip, vflip, scale with a number (scale0.75, scale1.25), gamma with a number (gamma0.8, gamma1.25)"
# Words that a view makes wrong.
_SIDES = {
    "hflip": re.compile(r"(?<![a-z])(left|right)(most|hand|wards?)?(?![a-z])|[左右]", re.IGNORECASE),
    "vflip": re.compile(
        r"(?<![a-z])(upper|lower|top|bottom|above|below|superior|inferior)(most)?(?![a-z])|[上下](?=[方部端段面叶支])|[顶底]部",
        re.IGNORECASE,
    ),
}
_NUMBERED = re.compile(r"(scale|gamma)([0-9]*\.?[0-9]+)")


class Change:
    """
    One picture made of a picture, and the way back. Nothing is changed; the others say what they change.

    As a collator's `augmentation` it is the same for all images and masks of a row.
    """

    def forward(self, picture: Image.Image) -> Image.Image:
        """
        Args:
            picture (`PIL.Image.Image`): of mode `RGB`, or `L` for a mask of 0 and 255.

        Returns:
            `PIL.Image.Image` of that mode, maybe of another size.
        """
        return picture

    def inverse(self, maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """
        Args:
            maps (`np.ndarray` of shape `(..., h, w)`): drawn on the changed picture, at its size.
            size (`tuple[int, int]`): height and width of the picture itself.

        Returns:
            `np.ndarray` of shape `(..., H, W)`: what they say of the picture, times the share that this change has in
            its view. The shares of a view's changes add up to 1 at every pixel.
        """
        return maps

    def __call__(
        self, images: list[Image.Image], masks: list[Image.Image], rng: np.random.Generator | None = None
    ) -> tuple[list[Image.Image], list[Image.Image]]:
        """As [`~data.augment.Augmentation`], without chance."""
        return [self.forward(image.convert("RGB")) for image in images], [self.forward(mask) for mask in masks]


class Plain(Change):
    """The image as it is."""


@dataclass(frozen=True)
class Flip(Change):
    """
    Args:
        axis (`int`): of the maps; -1 changes left and right, -2 up and down.
    """

    axis: int

    def forward(self, picture: Image.Image) -> Image.Image:
        ways = {-1: Image.Transpose.FLIP_LEFT_RIGHT, -2: Image.Transpose.FLIP_TOP_BOTTOM}
        return picture.transpose(ways[self.axis])

    def inverse(self, maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        return np.flip(maps, self.axis)


@dataclass(frozen=True)
class Gamma(Change):
    """
    Args:
        exponent (`float`): that grey values in [0, 1] are raised to: below 1 brightens, above 1 darkens.
    """

    exponent: float

    def forward(self, picture: Image.Image) -> Image.Image:
        grey = np.linspace(0, 1, 256) ** self.exponent
        return picture.point(np.rint(255 * grey).astype(np.uint8).tolist() * len(picture.getbands()))


@dataclass(frozen=True)
class Surround(Change):
    """
    The picture in the middle of a larger black one, so that a model which resizes to a square sees it smaller.

    Args:
        scale (`float`): side of the picture as a share of the larger one's, in (0, 1).
    """

    scale: float

    def _place(self, width: int, height: int) -> tuple[int, int, int, int]:
        whole = (math.ceil(width / self.scale), math.ceil(height / self.scale))
        return (whole[0] - width) // 2, (whole[1] - height) // 2, *whole

    def forward(self, picture: Image.Image) -> Image.Image:
        left, top, *whole = self._place(*picture.size)
        larger = Image.new(picture.mode, tuple(whole))
        larger.paste(picture, (left, top))
        return larger

    def inverse(self, maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        left, top, *_ = self._place(*size[::-1])
        return maps[..., top : top + size[0], left : left + size[1]]


@dataclass(frozen=True)
class Corner(Change):
    """
    One corner of the picture, which a model that resizes to a square sees larger. Where the four corners overlap, each
    has the same share.

    Args:
        scale (`float`): how many times larger it is seen, in (1, 2], so that the corners cover the picture.
        right, bottom (`bool`): which corner.
    """

    scale: float
    right: bool
    bottom: bool

    def _span(self, length: int, far: bool) -> slice:
        part = math.ceil(length / self.scale)
        return slice(length - part, length) if far else slice(0, part)

    def forward(self, picture: Image.Image) -> Image.Image:
        columns, rows = self._span(picture.width, self.right), self._span(picture.height, self.bottom)
        return picture.crop((columns.start, rows.start, columns.stop, rows.stop))

    def inverse(self, maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        # (Shares of 1, 1/2 and 1/4, which floating point multiplies with exactly.)
        down, across = (self._share(length) for length in size)
        share = down[:, None] * across
        place = (self._span(size[0], self.bottom), self._span(size[1], self.right))
        whole = np.zeros((*maps.shape[:-2], *size), dtype=maps.dtype)
        whole[(..., *place)] = maps * share[place].astype(maps.dtype)
        return whole

    def _share(self, length: int) -> np.ndarray:
        count = np.zeros(length)
        for far in (False, True):
            count[self._span(length, far)] += 1
        return 1 / count


@dataclass(frozen=True)
class View:
    """
    One way to look at an image. Its map is the sum of what its changes give back.

    Args:
        name (`str`): as in `--tta`.
        changes (`tuple[Change, ...]`): a forward pass each; four for a scale above 1.
    """

    name: str
    changes: tuple[Change, ...]


#: What is always averaged with.
PLAIN = View("plain", (Plain(),))


def parse_views(names: str | Iterable[str]) -> list[View]:
    """
    Args:
        names (`str` or iterable of `str`):
            `hflip`, `vflip`, `scale…` with a number in [0.25, 2], `gamma…` with one in [0.1, 10]; each entry may hold
            several with commas between.

    Returns:
        `list[View]`: in that order, without the plain one.

    Raises:
        `ValueError`: an unknown name, a number out of its range or 1, or a view twice.

    Example:

        ```python
        >>> from sa2va_trl.evaluation.views import parse_views

        >>> [(view.name, len(view.changes)) for view in parse_views("hflip,scale1.25,gamma0.8")]
        [('hflip', 1), ('scale1.25', 4), ('gamma0.8', 1)]

        ```
    """
    entries = [names] if isinstance(names, str) else names
    views = [_view(name.strip()) for entry in entries for name in str(entry).split(",")]
    for number, view in enumerate(views):
        if view.changes in [other.changes for other in views[:number]]:
            raise ValueError(f"tta names {view.name} twice: a mean would count it twice, so leave one out.")
    return views


def _view(name: str) -> View:
    if name in ("hflip", "vflip"):
        return View(name, (Flip(-1 if name == "hflip" else -2),))
    if (found := _NUMBERED.fullmatch(name)) is None:
        raise ValueError(f"tta has no view {name!r}, only {KNOWN}.")
    kind, number = found[1], float(found[2])
    low, high = (0.25, 2) if kind == "scale" else (0.1, 10)
    if not low <= number <= high or number == 1:
        raise ValueError(f"tta {name}: {kind} takes a number from {low} to {high} other than 1.")
    if kind == "gamma":
        return View(name, (Gamma(number),))
    if number < 1:
        return View(name, (Surround(number),))
    return View(name, tuple(Corner(number, right, bottom) for bottom in (False, True) for right in (False, True)))


def check_sides(texts: Iterable[str], views: Sequence[View]) -> None:
    """
    Refuse a view that makes a text wrong: on a mirrored image the left artery is on the right.

    Args:
        texts (iterable of `str`): questions, phrases and answers.
        views (`Sequence[View]`): to be averaged over.

    Raises:
        `ValueError`: naming the view, the word and the text.
    """
    wrong = [(view.name, _SIDES[view.name]) for view in views if view.name in _SIDES]
    for text in texts if wrong else ():
        for name, words in wrong:
            if (found := words.search(text)) is not None:
                raise ValueError(
                    f"tta {name} mirrors the image, and {text[:100]!r} says {found[0]!r}, which is the other side "
                    f"then: leave {name} out of --tta."
                )
