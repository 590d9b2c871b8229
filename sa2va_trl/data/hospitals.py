"""How the generated pictures of a hospital look: what is drawn from which range."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .surroundings import ribs, wires


Range = tuple[float, float]


@dataclass(frozen=True)
class Hospital:
    """
    Ranges that a run's numbers are drawn from, evenly. Lengths are in pixels of a 256 px frame.

    Args:
        background (`Callable`): from a random generator and a size to what lies behind the vessels.
        zoom, thickness (`tuple[float, float]`): factors on the tree, and on its radii alone.
        corkscrew (`float`): largest amplitude of the vessels' fine turns, in radians.
        contrast (`tuple[float, float]`): log intensity that a filled vessel of 5 px radius absorbs.
        photons (`tuple[float, float]`): of the brightest pixel; fewer are noisier.
        brightness (`tuple[float, float]`): its grey value.
        blur (`tuple[float, float]`): of easy and of hard frames, standard deviation in pixels.
        grain (`float`): of the noise, standard deviation in pixels of the frame.
        noise (`float`): factor on the noise, for its smoothing by the grain.
        sharpening (`float`): how much of what a blur takes away is added, which leaves bright rims.
        gamma (`float`): exponent of the display curve.
        catheter_radius, catheter_density (`tuple[float, float]`): of the catheter.
        dome_density, dome_edge (`float`): what the diaphragm absorbs, and how soft its edge is in frame widths.
        collimated (`bool`): whether blades hide the picture's edges.
    """

    background: Callable[[np.random.Generator, int], np.ndarray] = ribs
    zoom: Range = (1.0, 1.0)
    thickness: Range = (1.0, 1.0)
    corkscrew: float = 0.0
    contrast: Range = (0.42, 0.56)
    photons: Range = (260, 380)
    brightness: Range = (125, 165)
    blur: Range = (0.8, 1.2)
    grain: float = 0.5
    noise: float = 1.6
    sharpening: float = 0.0
    gamma: float = 1.0
    catheter_radius: Range = (1.8, 2.4)
    catheter_density: Range = (0.28, 0.45)
    dome_density: float = 0.3
    dome_edge: float = 0.012
    collimated: bool = False


#: Of the plain runs.
PLAIN = Hospital()
#: Of named scenes, by number.
HOSPITALS = {
    1: Hospital(catheter_radius=(2.0, 2.8), catheter_density=(0.32, 0.5)),
    2: Hospital(
        background=wires,
        zoom=(1.0, 1.15),
        thickness=(0.68, 0.9),
        corkscrew=0.45,
        contrast=(0.36, 0.5),
        photons=(900, 1600),
        brightness=(150, 205),
        blur=(0.6, 1.0),
        grain=1.0,
        noise=2.8,
        sharpening=0.5,
        gamma=1.25,
        catheter_radius=(2.3, 3.1),
        catheter_density=(0.3, 0.5),
        dome_density=0.24,
        dome_edge=0.004,
        collimated=True,
    ),
}
