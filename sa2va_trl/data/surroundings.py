"""What lies around the vessels of a generated angiogram: chest, wires, catheter, collimator."""

import numpy as np
from scipy import interpolate, ndimage


Range = tuple[float, float]


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)), without overflow."""
    return 1 / (1 + np.exp(-np.clip(x, -30, 30)))


def _smooth_noise(rng, size, cells):
    """Noise of unit variance whose features are about `size / cells` pixels wide."""
    knots, grid = np.arange(cells + 3), np.linspace(1, cells + 1, size)
    rows = interpolate.CubicSpline(knots, rng.standard_normal((len(knots), len(knots))))(grid)
    field = interpolate.CubicSpline(knots, rows, axis=1)(grid)
    return (field - field.mean()) / (field.std() + 1e-6)


def _tissue(rng, size, tilt, waves):
    """Coordinates (x, y) in [0, 1], and soft tissue: a slope of up to `tilt`, and noise, by cells and amplitude."""
    x, y = np.meshgrid(np.linspace(0, 1, size), np.linspace(0, 1, size))
    slope = rng.uniform(-tilt, tilt, 2)
    field = slope[0] * (x - 0.5) + slope[1] * (y - 0.5)
    for cells, amplitude in waves:
        field += amplitude * _smooth_noise(rng, size, cells)
    return x, y, field


def ribs(rng: np.random.Generator, size: int) -> np.ndarray:
    """
    A chest seen from the front: soft tissue, heart, spine and ribs.

    Args:
        rng (`np.random.Generator`): source of every random number.
        size (`int`): width and height in pixels.

    Returns:
        `np.ndarray` of shape `(size, size)`, float32: log attenuation of everything that does not move with the heart.
    """
    x, y, field = _tissue(rng, size, 0.25, ((2, 0.14), (5, 0.07), (14, 0.03), (40, 0.018)))
    # Heart shadow: a soft dark ellipse.
    centre = rng.uniform(0.4, 0.6, 2)
    field += 0.12 * sigmoid((0.38 - np.hypot((x - centre[0]) * 0.9, y - centre[1])) / 0.06)
    # Spine: a dark band, vertebra by vertebra.
    spine = rng.uniform(-0.05, 1.05) + rng.uniform(-0.15, 0.15) * (y - 0.5)
    vertebrae = 0.75 + 0.25 * np.cos(2 * np.pi * (y * rng.uniform(4, 5.5) + rng.uniform()))
    field += rng.uniform(0.08, 0.16) * vertebrae * sigmoid((0.09 - np.abs(x - spine)) / 0.015)
    # Ribs: curved bands with denser rims.
    slope, curve = rng.uniform(-0.5, 0.5), rng.uniform(-0.5, 0.5)
    spacing, phase = rng.uniform(0.22, 0.3), rng.uniform()
    level = (y - slope * (x - 0.5) - curve * (x - 0.5) ** 2) / spacing + phase
    to_rib = np.abs(level - np.floor(level) - 0.5) * spacing
    half = rng.uniform(0.028, 0.042)
    rim = np.exp(-0.5 * ((to_rib - half) / 0.006) ** 2)
    field += rng.uniform(0.05, 0.10) * (sigmoid((half - to_rib) / 0.006) + 0.5 * rim)
    return field.astype(np.float32)


def wires(rng: np.random.Generator, size: int) -> np.ndarray:
    """
    A chest after surgery, seen from the side: mottled lung, the sharp border of the heart, spine, loops of wire that
    hold the sternum, clips, and sometimes a lead across the picture; no ribs.

    Args:
        rng (`np.random.Generator`): source of every random number.
        size (`int`): width and height in pixels.

    Returns:
        `np.ndarray` of shape `(size, size)`, float32: log attenuation of everything that does not move with the heart.
    """
    x, y, field = _tissue(rng, size, 0.3, ((2, 0.10), (9, 0.035), (26, 0.03)))
    # Mottle: small vessels of the lung, outside the heart's shadow.
    mottle = np.abs(_smooth_noise(rng, size, 34)) * _smooth_noise(rng, size, 12)
    # The heart's border: one long, sharp curve from top to bottom.
    across = rng.uniform(0.45, 0.75) + rng.uniform(0.15, 0.5) * (y - 0.4) + rng.uniform(-0.6, 0.2) * (y - 0.5) ** 2
    shadow = sigmoid((across - x) / 0.006)
    if rng.uniform() < 0.5:
        shadow = shadow[:, ::-1]
    field += rng.uniform(0.14, 0.26) * shadow + 0.05 * mottle * (1 - shadow)
    # Spine: broad, with the sharp end plates of its vertebrae.
    spine = rng.uniform(0.0, 1.0) + rng.uniform(-0.2, 0.2) * (y - 0.5)
    level = y * rng.uniform(3.5, 4.5) + rng.uniform()
    plates = np.exp(-0.5 * ((level - np.round(level)) / 0.035) ** 2)
    inside = sigmoid((0.11 - np.abs(x - spine)) / 0.006)
    field += rng.uniform(0.08, 0.14) * inside * (1 + 0.45 * plates)
    field += _metal(rng, size)
    return field.astype(np.float32)


def _metal(rng: np.random.Generator, size: int) -> np.ndarray:
    """Log attenuation of thin dark lines: loops of wire one above the other, clips, and perhaps a lead."""
    lines = []
    if rng.uniform() < 0.7:
        middle, spacing = rng.uniform(0.1, 0.9), rng.uniform(0.16, 0.24)
        wide, high = rng.uniform(0.018, 0.03), rng.uniform(0.03, 0.05)
        around = np.linspace(0, 2 * np.pi, 40)
        for top in np.arange(rng.uniform(0.0, 0.2), 1.0, spacing):
            centre = np.array([middle + rng.uniform(-0.02, 0.02), top])
            turn = rng.uniform(-0.4, 0.4)
            oval = np.stack([wide * np.cos(around), high * np.sin(around)], axis=1)
            lines.append((centre + oval @ _rotation(turn), rng.uniform(0.3, 0.5)))
            tail = np.linspace(0, 1, 12)[:, None] * np.array([rng.uniform(0.01, 0.03), rng.uniform(-0.03, 0.03)])
            lines.append((centre + [wide, 0] + tail, rng.uniform(0.3, 0.5)))
    for _ in range(rng.integers(0, 5)):
        at, turn = rng.uniform(0.1, 0.9, 2), rng.uniform(0, np.pi)
        step = rng.uniform(0.008, 0.016) * np.array([np.cos(turn), np.sin(turn)])
        lines.append((at + np.linspace(-1, 1, 9)[:, None] * step, rng.uniform(0.4, 0.7)))
    if rng.uniform() < 0.5:
        u = np.linspace(0, 1, 160)[:, None]
        first, last = np.array([-0.02, rng.uniform(0, 1)]), np.array([1.02, rng.uniform(0, 1)])
        bow = np.array([rng.uniform(0.3, 0.7), rng.uniform(-0.2, 1.2)])
        lines.append(((1 - u) ** 2 * first + 2 * (1 - u) * u * bow + u**2 * last, rng.uniform(0.12, 0.22)))
    field = np.zeros((size, size))
    for points, density in lines:
        field = np.maximum(field, density * _stroke(points, size))
    return field


def _rotation(angle: float) -> np.ndarray:
    return np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])


def _stroke(points: np.ndarray, size: int, width: float = 0.0028) -> np.ndarray:
    """A thin line through points (in units of the frame's width): 1 on it, soft at its sides."""
    steps = np.maximum(np.ceil(np.linalg.norm(np.diff(points, axis=0), axis=1) * size * 2), 1).astype(int)
    ways = zip(points[:-1], points[1:], steps, strict=True)
    dense = np.concatenate([a + np.linspace(0, 1, n, endpoint=False)[:, None] * (b - a) for a, b, n in ways])
    column, row = np.rint(dense * size - 0.5).astype(int).T
    there = (column >= 0) & (column < size) & (row >= 0) & (row < size)
    line = np.zeros((size, size), dtype=np.float32)
    line[row[there], column[there]] = 1
    soft = ndimage.gaussian_filter(line, max(width * size, 0.4))
    return soft / max(float(soft.max()), 1e-6)


def collimator(rng: np.random.Generator, size: int) -> np.ndarray:
    """
    Blades that keep the rays from the picture's edges, with straight sides and more or less rounded corners.

    Args:
        rng (`np.random.Generator`): source of every random number.
        size (`int`): width and height in pixels.

    Returns:
        `np.ndarray` of shape `(size, size)`: distance of each pixel's centre from the opening's edge in units of the
        frame's width, above 0 inside.
    """
    x, y = np.meshgrid((np.arange(size) + 0.5) / size - 0.5, (np.arange(size) + 0.5) / size - 0.5)
    # Two blades of three are in the picture.
    left, right, top, bottom = 0.5 - np.where(rng.uniform(size=4) < 0.67, rng.uniform(0.008, 0.05, 4), -0.1)
    rounding = rng.choice([0.004, rng.uniform(0.05, 0.14), rng.uniform(0.18, 0.3)])
    x, y = (np.stack([x, y], axis=-1) @ _rotation(rng.uniform(-0.03, 0.03))).transpose(2, 0, 1)
    # Signed distance of a box with rounded corners.
    beyond_x = np.maximum(x - right, -left - x) + rounding
    beyond_y = np.maximum(y - bottom, -top - y) + rounding
    outside = np.hypot(np.maximum(beyond_x, 0), np.maximum(beyond_y, 0))
    return rounding - outside - np.minimum(np.maximum(beyond_x, beyond_y), 0)


def catheter_line(rng: np.random.Generator, root: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    A catheter that comes from above, in units of the frame's width.

    Args:
        rng (`np.random.Generator`): source of every random number.
        root (`np.ndarray` of shape `(2,)`): where it ends.

    Returns:
        `tuple`: the centre line (C, 2) from the picture's edge to the root, and the share (C,) that each of its points
        takes of the root's motion.
    """
    entry = np.array([np.clip(root[0] + rng.uniform(-0.25, 0.25), 0.05, 0.95), -0.06])
    sag = root + np.array([rng.uniform(-0.14, 0.14), -rng.uniform(0.02, 0.10)])
    u = np.linspace(0, 1, 24)[:, None]
    line = (1 - u) ** 3 * entry + 3 * (1 - u) ** 2 * u * (entry + [0, 0.12]) + 3 * (1 - u) * u**2 * sag + u**3 * root
    return line, u[:, 0] ** 1.5
