import hashlib

import numpy as np
import pytest

from sa2va_trl.data.angiography import generate_video


def digest(array):
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]


# Arguments of a run, and what its masks and frames were before there were scenes of several structures. (Of these runs
# the frames are the same with the sets of instructions that numpy picks from; of larger ones a grey value may round
# the other way.)
@pytest.mark.parametrize(
    ("arguments", "masks", "frames"),
    [
        ((0, 0, 4, 64), "b04c1038e8a93e02", "79f4808d67160dd6"),
        ((0, 1, 3, 96), "f918ede994d55720", "e92505a6ead4c2fc"),
        ((2**35, 3, 2, 48), "c982182247deed80", "64759c1215ec4e28"),
        ((4, 2, 3, 80), "d25dfd78018cd95a", "552357d7fc191a1a"),
        ((4, 9, 3, 80), "536df93626521045", "48aa187094ad8dae"),
    ],
)
def test_runs_are_to_the_bit_what_they_have_always_been(arguments, masks, frames):
    video = generate_video(*arguments)
    assert (digest(video.masks), digest(video.frames)) == (masks, frames)
