import itertools

import numpy as np
import pytest
from samples import sample

from sa2va_trl.errors import DatasetError
from sa2va_trl.evaluation import score
from sa2va_trl.evaluation.postprocessing import (
    CLIPS,
    METRICS,
    SPACE,
    Candidate,
    Kept,
    KeptMaps,
    choose,
    gains,
    make_candidates,
    score_candidates,
    search,
)
from sa2va_trl.metrics import cldice
from sa2va_trl.postprocessing import IDENTITY, Postprocessing, draw_row


SMALL = {"hysteresis": (1.0, 0.5), "closing_radius": (0, 1), "min_share": (0.0, 0.005, 0.02)}


def line(size, row, columns=(4, -4)):
    mask = np.zeros((size, size), bool)
    mask[row : row + 4, columns[0] : columns[1]] = True
    return mask


def world(images=12, specks=0, gap=False, size=48, seed=0):
    """Rows of patients with two images each; maps that are right at 0.5, but for specks beside or gaps in the line."""
    rng = np.random.default_rng(seed)
    rows, maps = [], []
    for number in range(images):
        target = line(size, 20 + int(rng.integers(-8, 8)))
        values = np.where(target, 0.8, 0.1) + rng.uniform(-0.05, 0.05, target.shape)
        for _ in range(specks):
            row, column = rng.integers(0, size - 2, 2)
            values[row : row + 2, column : column + 2] = 0.9
        if gap:
            values[:, 20:27] = np.where(target, 0.2, values)[:, 20:27]
        rows.append(sample(f"s{number}", target, patient_id=f"p{number // 2}"))
        maps.append(values.astype(np.float32)[None])
    return rows, maps


def made(world, **options):
    rows, maps = world
    candidates = make_candidates((0.3, 0.5, 0.7), options.pop("space", SMALL))
    return choose(zip(rows, maps, strict=True), candidates, **options)


# Candidates


def test_candidates_are_all_combinations_the_simplest_first():
    found = make_candidates((0.3, 0.5), SMALL)
    assert len(found) == len(set(found)) == 2 * 2 * 2 * 3 and found[0] == Candidate(0.5, IDENTITY)
    counts = [len(one.settings.to_dict()) for one in found]
    assert counts == sorted(counts) and found[1] == Candidate(0.3, IDENTITY)
    assert {one.settings.hysteresis for one in found} == {1.0, 0.5}


def test_without_clips_none_is_smoothed():
    assert not any(one.settings.is_temporal for one in make_candidates())
    smoothing = [one for one in make_candidates((0.5,), {}, CLIPS) if one.settings.is_temporal]
    assert len(smoothing) == len(CLIPS) - 1


@pytest.mark.parametrize(
    ("thresholds", "space", "message"),
    [((0.0,), {}, "thresholds must"), ((0.5,), {"min_share": (2.0,)}, "min_share"), ((0.5,), {"a": (1,)}, "no a")],
)
def test_values_that_cannot_be_are_named(thresholds, space, message):
    with pytest.raises(ValueError, match=message):
        make_candidates(thresholds, space)


# Scores


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("frames", [1, 3])
def test_scores_of_many_are_those_of_each_alone(metric, frames):
    """Steps that several have in common are drawn once."""
    rng = np.random.default_rng(0)
    size = (2 * frames, 32, 32)
    smooth = rng.random(size) * 0.5 + 0.5 * (np.arange(32) % 8 < 4)
    kept = Kept(smooth.astype(np.float32), rng.random(size) < 0.4, rng.random((frames - 1, 2, 32, 32)), frames)
    space = {**SMALL, "bridge_length": (0, 5)}
    candidates = make_candidates((0.4, 0.6), space, CLIPS if frames > 1 else ({},))
    some = [candidates[place] for place in rng.permutation(len(candidates))[:40]]
    for one, value in zip(some, score_candidates(kept, some, metric), strict=True):
        masks = draw_row(kept.maps, one.threshold, one.settings, frames, kept.flows)
        measured = [METRICS[metric](mask, target) for mask, target in zip(masks, kept.targets, strict=True)]
        assert value == float(np.mean(measured))


def test_scores_are_those_of_an_evaluation():
    rows, maps = world(2, specks=4)
    settings = Postprocessing(0.5, 1, 0, 6)
    for row, own in zip(rows, maps, strict=True):
        found = score_candidates(Kept.of(row, own), [Candidate(0.6, settings)])
        assert found[0] == score(row, own, 0.6, postprocessing=settings)["dice"]
        found = score_candidates(Kept.of(row, own), [Candidate(0.6, settings)], "cldice")
        (mask,), target = draw_row(own, 0.6, settings), np.asarray(row["masks"][0]) > 0
        assert found[0] == cldice(mask, target)


# The search


def test_specks_are_found_to_be_worth_dropping(tmp_path):
    choices = made(world(specks=8), folder=tmp_path)
    both = choices["both"].one
    # A speck has 4 pixels of 2304, the line 160.
    assert both.settings.min_share == 0.005 and both.settings.closing_radius == 0
    assert choices["both"].value > choices["threshold"].value + 0.01
    assert choices["postprocessing"].one.threshold == 0.5 and choices["threshold"].one.settings.is_identity
    assert not list(tmp_path.iterdir())


def test_a_gap_is_found_to_be_worth_bridging():
    space = {"bridge_length": (0, 12), "min_share": (0.0, 0.005)}
    choices = made(world(gap=True), space=space, metric="cldice")
    assert choices["both"].one.settings.to_dict() == {"bridge_length": 12}
    assert choices["both"].value > choices["threshold"].value


def test_of_equal_ones_the_simplest_is_chosen():
    choices = made(world())
    for choice in choices.values():
        assert choice.one == Candidate(0.5, IDENTITY) and choice.value == 1


def test_the_best_of_all_is_found_where_all_see_all():
    """With few patients there is one round, and no chance to drop the best."""
    rows, maps = world(6, specks=6, seed=1)
    candidates = make_candidates((0.3, 0.5, 0.9), SMALL)
    found = choose(zip(rows, maps, strict=True), candidates)["both"]
    assert len(found.found.rounds) == 1 and found.found.rounds[0].images == 6

    def mean(one):
        pairs = zip(rows, maps, strict=True)
        return np.mean([score(row, own, one.threshold, postprocessing=one.settings)["dice"] for row, own in pairs])

    means = [mean(one) for one in candidates]
    assert found.one == candidates[int(np.argmax(np.round(means, 12)))] and found.value == pytest.approx(max(means))


def test_many_patients_are_searched_in_rounds(tmp_path):
    rows, maps = world(48, specks=6)
    kept = KeptMaps(zip(rows, maps, strict=True), tmp_path)
    candidates, seen = make_candidates((0.3, 0.5), SMALL), []
    always = [Candidate(0.3, IDENTITY)]
    found = search(kept, candidates, always=always, progress=lambda *round: seen.append(round))
    assert [one.clusters for one in found.rounds] == [6, 12, 24]
    counts = [len(one.candidates) for one in found.rounds]
    assert counts[0] == len(candidates) and counts == sorted(counts, reverse=True) and len(seen) == 48
    assert all(candidates.index(always[0]) in one.candidates for one in found.rounds)
    assert candidates[found.best].settings.min_share == 0.005
    again = kept[3]
    assert np.array_equal(again.maps, maps[3]) and again.flows is None and again.frames == 1


def clips(count=3, frames=5, size=32):
    """Clips in which a frame fails now and then."""
    rng = np.random.default_rng(0)
    for number in range(count):
        target = line(size, 12)
        maps = np.where(target, 0.8, 0.1)[None] + rng.uniform(-0.05, 0.05, (frames, *target.shape))
        maps[1 + number % 3] = 0.1
        row = sample(f"c{number}", *[target] * frames, patient_id=f"p{number}")
        row["images"] = [row.pop("image")] * frames
        row["masks"], row["phrases"] = row["masks"], ["vessel"]
        yield row, maps.astype(np.float32)


def test_of_clips_smoothing_in_time_is_found():
    candidates = make_candidates(
        (0.5,), {"min_share": (0.0, 0.01)}, ({}, {"majority_frames": 3}, {"flow_weight": 0.5})
    )
    choices = choose(clips(), candidates)
    assert choices["both"].one.settings.majority_frames == 3 and choices["both"].value == 1
    table = gains(clips(), choices)
    assert table[-1]["gain"]["mean"] == pytest.approx(0.2) and table[-1]["dice"]["mean"] == 1


# The report


def test_gains_are_paired_differences_to_a_half_and_to_the_threshold_alone():
    rows, maps = world(specks=8)
    choices = made((rows, maps))
    table = gains(zip(*world(specks=8, seed=5), strict=True), choices)
    assert [one["name"] for one in table] == ["0.5", "threshold", "postprocessing", "both"]
    values = {one["name"]: one["dice"]["mean"] for one in table}
    for one in table[1:]:
        assert one["gain"]["mean"] == pytest.approx(values[one["name"]] - values["0.5"])
        assert one["gain"]["clusters"] == 6
    assert table[0]["gain"] is None is table[1]["gain_over_threshold"]
    assert table[3]["gain_over_threshold"]["ci95"][0] > 0


def test_masks_and_nothing_are_refused():
    rows, maps = world(2)
    candidates = make_candidates((0.5,), SMALL)
    with pytest.raises(DatasetError, match="'s0' is binary: it holds 0 and 1 .*Give the probabilities"):
        choose(zip(rows, [(own > 0.5).astype(np.float32) for own in maps], strict=True), candidates)
    with pytest.raises(DatasetError, match="one value throughout"):
        choose(zip(rows, [np.full_like(own, 0.2) for own in maps], strict=True), candidates)
    with pytest.raises(DatasetError, match="no row with a mask"):
        choose(iter(()), candidates)
    empty = [sample(f"e{number}", np.zeros((48, 48), bool)) for number in range(2)]
    with pytest.raises(DatasetError, match="the masks are all empty"):
        choose(zip(empty, maps, strict=True), candidates)
    choices = made((rows, maps))
    with pytest.raises(DatasetError, match="'s0' is binary"):
        gains(zip(rows, [(own > 0.5).astype(np.float32) for own in maps], strict=True), choices)


def test_what_is_tried_by_default_can_be_set():
    assert all(Postprocessing.from_dict({name: value}) for name, values in SPACE.items() for value in values)
    assert len(make_candidates()) == len(make_candidates(space={})) * len(list(itertools.product(*SPACE.values())))
