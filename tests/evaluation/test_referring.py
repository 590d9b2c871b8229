from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from referring_sets import HEIGHT, WIDTH, moving, standing, write_mevis, write_refcoco

from sa2va_trl.data.loading import load_dataset_dict
from sa2va_trl.errors import DatasetError
from sa2va_trl.evaluation.referring import (
    aggregate_protocol,
    check_expressions,
    check_pictures,
    picture_names,
    predict_clips,
    predict_expressions,
)
from sa2va_trl.evaluation.results import score
from sa2va_trl.metrics import track_scores


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return load_dataset_dict(write_mevis(tmp_path_factory.mktemp("mevis") / "set"))["valid_u"]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = write_refcoco(tmp_path_factory.mktemp("refcoco") / "set", "grefs(unc).json", none=True)
    return load_dataset_dict(folder)["testA"]


class Told:
    """A model whose answers are known: it draws what a function says, and keeps what it was asked."""

    device = torch.device("cpu")

    def __init__(self, draw):
        self.draw, self.asked = draw, []

    def eval(self):
        return self

    def segment(self, text, processor, video=None, images=None, **options):
        def answer(own):
            masks = self.draw(own)
            return SimpleNamespace(phrases=[None] * len(masks), masks=torch.from_numpy(np.array(masks)))

        self.asked += [text] if video is not None else text
        return answer(text) if video is not None else [answer(own) for own in text]


def test_a_model_that_draws_the_truth_has_j_and_f_of_1(clips):
    def truth(text):
        draw = standing if "still" in text else moving if "right" in text else lambda f: moving(f) | standing(f)
        # (Only the first [SEG] counts, as in the official evaluation.)
        return [np.stack([draw(frame) for frame in range(4)]), np.ones((4, HEIGHT, WIDTH), dtype=bool)]

    model = Told(truth)
    found = list(predict_clips(model, None, clips, progress=False))
    assert model.asked[:3] == [
        "<image>\nPlease segment The box moving right.",
        "<image>\nwhat stands still? Please respond with segmentation mask.",
        "<image>\nPlease segment all boxes.",
    ]
    scores = [score(row, masks, 0.5, "rvos") for row, masks in found]
    assert all(own["j"] == own["f"] == own["j_and_f"] == 1 for own in scores)
    assert [(own["video_id"], own["exp_id"]) for own in scores[:4]] == [
        ("v0", "0"),
        ("v0", "1"),
        ("v0", "2"),
        ("v1", "0"),
    ]


def test_without_a_mask_in_the_answer_there_is_nothing(clips):
    nothing = Told(lambda text: np.zeros((0, 4, HEIGHT, WIDTH), dtype=bool))
    scores = [score(row, masks, 0.5, "rvos") for row, masks in predict_clips(nothing, None, clips, progress=False)]
    # The moving box is not in the last of four frames, where nothing is right.
    assert [own["j_and_f"] for own in scores] == [0.25, 0, 0] * 2


def test_scores_are_those_of_the_track(clips):
    rng = np.random.default_rng(0)
    drawn = rng.random((4, HEIGHT, WIDTH)) > 0.5
    for row, masks in predict_clips(Told(lambda text: [drawn]), None, clips.select([0]), progress=False):
        truth = np.stack([moving(frame) for frame in range(4)])
        assert score(row, masks, 0.5, "rvos")["j_and_f"] == pytest.approx(track_scores(drawn, truth).j_and_f)


def test_j_and_f_are_means_over_expressions_with_intervals_by_video():
    rng = np.random.default_rng(1)
    samples = pd.DataFrame({"sample_id": list("abcdef"), "video_id": ["v0"] * 4 + ["v1"] * 2})
    for name in ("j", "f"):
        samples[name] = rng.random(6)
    samples["j_and_f"] = (samples["j"] + samples["f"]) / 2
    found = aggregate_protocol(samples, "rvos")
    assert list(found) == ["j_and_f", "j", "f", "by_video"]
    assert found["j"]["mean"] == pytest.approx(samples["j"].mean()) and found["j"]["n"] == 6
    assert found["j_and_f"]["mean"] == pytest.approx((found["j"]["mean"] + found["f"]["mean"]) / 2)
    assert found["by_video"]["j"]["mean"] == pytest.approx(samples.groupby("video_id")["j"].mean().mean())


def test_images_are_asked_by_expression_and_masks_joined(images):
    def draw(text):
        return [] if "of [-1]" in text else [moving(0), standing(0)]

    model = Told(lambda text: np.array(draw(text)).reshape(-1, HEIGHT, WIDTH))
    rows = list(predict_expressions(model, SimpleNamespace(num_image_tokens=sum), images, "auto", progress=False))
    assert model.asked[0] == "<image>\n Please segment box 0 in this image." and len(rows) == len(images) == 6
    samples = pd.DataFrame([score(row, mask, 0.5, "refcoco") for row, mask in rows])
    both, one, other = (int(own.sum()) for own in (moving(0) | standing(0), moving(0), standing(0)))
    assert samples["iou"].tolist() == pytest.approx([one / both] * 2 + [other / both] * 2 + [1, 1])
    samples["picture"] = picture_names(images)
    assert samples["picture"].tolist() == [images[0]["sample_id"]] * 6
    found = aggregate_protocol(samples, "refcoco")
    assert found["ciou"]["mean"] == pytest.approx((2 * one + 2 * other + both) / (5 * both))
    assert found["giou"]["mean"] == pytest.approx(samples["iou"].mean())
    assert found["n_acc"]["mean"] == found["t_acc"]["mean"] == 1 and found["n_acc"]["n"] == 1
    assert found["ciou"]["ci95"] == [None, None]  # of one picture


def test_the_interval_of_ciou_holds_it_and_is_by_picture():
    rng = np.random.default_rng(2)
    unions = rng.integers(10, 1000, 40)
    shares = np.repeat(rng.random(20), 2)
    samples = pd.DataFrame({"union": unions, "intersection": (shares * unions).astype(int)})
    samples["sample_id"] = [f"row{number}" for number in range(40)]
    samples["iou"], samples["absence_sensitivity"] = samples["intersection"] / samples["union"], np.nan
    by_picture = samples.assign(picture=[str(number // 2) for number in range(40)])
    found = aggregate_protocol(by_picture, "refcoco")
    low, high = found["ciou"]["ci95"]
    assert low < found["ciou"]["mean"] < high and set(found) == {"ciou", "giou"}
    alone = aggregate_protocol(samples, "refcoco")["ciou"]["ci95"]
    assert alone[1] - alone[0] < high - low  # two expressions of a picture are not two
    again = aggregate_protocol(by_picture.iloc[rng.permutation(40)], "refcoco")
    assert again["ciou"]["ci95"] == found["ciou"]["ci95"]
    # What is known of patients counts more: their pictures are not independent either.
    of_two = aggregate_protocol(by_picture.assign(patient_id=np.repeat(["p", "q"], 20)), "refcoco")
    assert of_two["ciou"]["ci95"] != found["ciou"]["ci95"] and of_two["ciou"]["mean"] == found["ciou"]["mean"]
    assert of_two["giou"] == aggregate_protocol(samples.assign(picture=np.repeat(["p", "q"], 20)), "refcoco")["giou"]


@pytest.mark.filterwarnings("error")
def test_pictures_with_nothing_in_them_say_nothing_of_ciou():
    samples = pd.DataFrame({"intersection": [5, 90, 30], "union": [10, 100, 40]})
    samples["iou"], samples["absence_sensitivity"] = samples["intersection"] / samples["union"], np.nan
    nothing = pd.DataFrame({"intersection": [0] * 9, "union": 0, "iou": 1.0, "absence_sensitivity": 1.0})
    both = pd.concat([samples, nothing], ignore_index=True)
    both["absence_specificity"] = both["absence_sensitivity"].isna().map({True: 1.0, False: np.nan})
    both["sample_id"] = [str(number) for number in range(len(both))]
    pictures = ["p", "q", "r", *map(str, range(9))]
    alone = aggregate_protocol(samples.assign(sample_id=list("abc"), picture=pictures[:3]), "refcoco")["ciou"]
    found = aggregate_protocol(both.assign(picture=pictures), "refcoco")["ciou"]
    assert found["ci95"] == alone["ci95"] and found["mean"] == alone["mean"] == 125 / 150
    # Where one picture alone says something, there is no interval.
    one = aggregate_protocol(both.assign(picture=["p"] * 3 + ["q"] * 9), "refcoco")["ciou"]
    assert one["ci95"] == [None, None] and one["mean"] == 125 / 150


def test_rows_of_another_kind_are_refused(clips, images, tmp_path):
    assert check_expressions(clips, "rvos") and check_expressions(images, "refcoco")
    with pytest.raises(DatasetError, match="row 0, sample_id .*: is no clip"):
        check_expressions(images, "rvos")
    with pytest.raises(DatasetError, match="is not one image, which protocol=refcoco"):
        check_expressions(clips, "refcoco")
    bare = load_dataset_dict(write_mevis(tmp_path / "set", masks=False, split="valid"))["validation"]
    assert not check_expressions(bare, "rvos")
    mixed = Dataset.from_list([clips[0], bare[0]], features=clips.features)
    with pytest.raises(DatasetError, match="1 of 2 rows have masks"):
        check_expressions(mixed, "rvos")
    check_pictures(bare)
    (tmp_path / "set" / "valid" / "JPEGImages" / "v1" / "00005.jpg").write_bytes(b"none")
    with pytest.raises(DatasetError, match=r"3 of 6 rows cannot be used(.|\n)*image 1 .*00005.jpg"):
        check_pictures(bare)


def test_a_tiny_model_follows_both_protocols(network, clips, images):
    options = {"max_new_tokens": 4, "num_frames": 1}
    ((row, masks),) = predict_clips(*network, clips.select([0]), progress=False, **options)
    assert masks.shape == (4, HEIGHT, WIDTH) and masks.dtype == bool
    assert {"j", "f", "j_and_f"} <= set(score(row, masks, 0.5, "rvos"))
    ((row, masks),) = predict_expressions(*network, images.select([0]), progress=False, max_new_tokens=4)
    assert masks.shape == (1, HEIGHT, WIDTH) and masks.dtype == bool
