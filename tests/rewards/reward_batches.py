"""Predictions and targets that tests of rewards look at."""

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage


@st.composite
def batches(draw, max_side=9):
    """Predictions and targets of a few samples, each sample at a size of its own."""
    shapes = draw(st.lists(hnp.array_shapes(min_dims=2, max_dims=2, max_side=max_side), min_size=1, max_size=3))
    return tuple(
        [draw(hnp.arrays(np.uint8, shape, elements=st.integers(0, 1))) for shape in shapes] for _ in ("pred", "target")
    )


@st.composite
def groups(draw, max_side=12):
    """Some masks of one object, `(K, H, W)`, and its target."""
    shape = draw(hnp.array_shapes(min_dims=2, max_dims=2, max_side=max_side))
    count = draw(st.integers(1, 4))
    return draw(hnp.arrays(bool, (count, *shape))), draw(hnp.arrays(bool, shape))


def blob_group(count=4, seed=0, shape=(60, 80), smooth=3.0):
    """Larger masks with loops and branches, `(K, H, W)`, and a target that they are variations of."""
    rng = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(rng.normal(size=shape), smooth)
    field /= field.std()
    noise = [ndimage.gaussian_filter(rng.normal(size=shape), smooth) for _ in range(count)]
    target = field > 0.6
    target[: shape[0] // 4] = False  # so that a box is smaller than the image
    preds = np.stack([field + 0.5 * n / n.std() > 0.6 for n in noise])
    preds[:, : shape[0] // 5] = False
    return preds, target
