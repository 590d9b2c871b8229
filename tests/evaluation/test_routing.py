import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import get_peft_model

from sa2va_trl import SegFeatures, hub, tiny_sa2va
from sa2va_trl.adapters.presets import get_peft_config
from sa2va_trl.data import synthetic_dataset
from sa2va_trl.evaluation import evaluate, predict_probabilities, stored_features
from sa2va_trl.evaluation.routing import (
    EVERYTHING,
    NOTHING,
    ROUTE_BY,
    Router,
    fit_router,
    fit_threshold,
    is_hard,
    make_router,
    predict_routed,
    routing_report,
)
from sa2va_trl.features.fingerprint import before_the_cut
from sa2va_trl.models.grounding import GroundingEncoder
from sa2va_trl.postprocessing import IDENTITY, Postprocessing
from sa2va_trl.scripts.arguments import ModelArguments, RouterArguments
from sa2va_trl.scripts.loading import load_model, load_router


ANSWER = "Sure, [SEG]."


def head_adapter(model, folder, seed):
    """An adapter of the mask head with weights that draw something else."""
    adapted = hub.SegPeftModel.adopt(get_peft_model(model, get_peft_config("head", model.config.seg_token_id)))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    adapted.save_pretrained(folder)


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """Folders of a second stage's adapter on the tiny model, and of a third's on the merged second."""
    root = tmp_path_factory.mktemp("stages")
    head_adapter(tiny_sa2va(image_size=64)[0], root / "stage2", seed=2)
    head_adapter(hub.load_adapter(tiny_sa2va(image_size=64)[0], str(root / "stage2"), merge=True), root / "stage3", 3)
    return root / "stage2", root / "stage3"


def first_of(stages):
    return ModelArguments("tiny-random", grounding_image_size=64, adapter=str(stages[0]))


def second_of(stages):
    return RouterArguments(router_adapter=str(stages[1]))


@pytest.fixture(scope="module", params=["shared", "of its own"])
def models(request, stages):
    """The first model, the second one alone, and a router between them."""
    model, processor = load_model(first_of(stages))
    if request.param == "shared":
        alone = hub.load_adapter(load_model(first_of(stages), merge=True)[0], str(stages[1])).eval()
        router = load_router(second_of(stages), first_of(stages), model, processor)
    else:
        alone, _ = tiny_sa2va(image_size=64, seed=5)
        router = make_router(model, processor, *tiny_sa2va(image_size=64, seed=5))
    assert router.shared == (request.param == "shared")
    return model.eval(), processor, alone.eval(), router


@pytest.fixture(scope="module")
def dataset():
    return synthetic_dataset(num_videos=3, frames_per_video=2, size=64)


def set_to(router, by, threshold):
    return Router(router.model, router.processor, router.shared, by, threshold)


def maps(predictions):
    return {row["sample_id"]: found for row, found in predictions}


@pytest.mark.parametrize("by", ROUTE_BY)
def test_none_and_all_routed_are_the_models_themselves(models, dataset, by):
    model, processor, alone, router = models
    options = {"batch_size": 4, "progress": False}
    for threshold, own in ((NOTHING[by], model), (EVERYTHING[by], alone)):
        found = maps(predict_routed(model, processor, set_to(router, by, threshold), dataset, **options))
        expected = maps(predict_probabilities(own, processor, dataset, **options))
        assert list(found) == list(expected) == list(dataset["sample_id"])
        for name, probabilities in expected.items():
            np.testing.assert_array_equal(found[name], probabilities)
    one, other = (maps(predict_probabilities(own, processor, dataset, **options)) for own in (model, alone))
    assert all(np.abs(one[name] - other[name]).max() > 0.05 for name in one)


@pytest.mark.parametrize("by", ROUTE_BY)
def test_hard_frames_only_are_drawn_by_the_second_model(models, dataset, by):
    model, processor, alone, router = models
    everything = evaluate(
        dataset, predict_routed(model, processor, set_to(router, by, EVERYTHING[by]), dataset, progress=False)
    )[1]
    values = np.sort(everything[by])
    router = set_to(router, by, float(values[2:4].mean()))
    _, samples = evaluate(dataset, predict_routed(model, processor, router, dataset, progress=False))
    hard = samples[by] < router.threshold if by == "predicted_iou" else samples[by] > router.threshold
    assert samples["routed"].dtype == bool and samples["routed"].sum() == 3
    assert samples["routed"].tolist() == hard.tolist()
    scores = {
        own: evaluate(dataset, predict_probabilities(own, processor, dataset, progress=False))[1]
        for own in (model, alone)
    }
    expected = np.where(samples["routed"], scores[alone]["dice"], scores[model]["dice"])
    assert samples["dice"].to_numpy() == pytest.approx(expected, abs=1e-3)
    assert everything["routed"].all()


@pytest.mark.parametrize("by", ROUTE_BY)
def test_the_way_of_a_frame_does_not_depend_on_its_batch(models, dataset, by):
    model, processor, _, router = models
    base = evaluate(dataset, predict_routed(model, processor, set_to(router, by, 0.5), dataset, 1, progress=False))[1]
    values = np.sort(base[by])
    assert np.diff(values)[2] > 1e-4
    router = set_to(router, by, float(values[2:4].mean()))
    expected = None
    for order, batch_size in ((range(6), 1), (range(6), 4), ([5, 3, 1, 4, 2, 0], 3), ([2, 0, 4], 2)):
        rows = dataset.select(order)
        predictions = predict_routed(model, processor, router, rows, batch_size, progress=False)
        samples = evaluate(rows, predictions)[1].set_index("sample_id")
        expected = samples if expected is None else expected
        assert (samples["routed"] == expected["routed"].loc[samples.index]).all()
        assert samples[by].to_numpy() == pytest.approx(expected[by].loc[samples.index].to_numpy(), abs=1e-5)
    assert expected["routed"].sum() == 3


def test_stored_features_give_the_same(models, dataset, tmp_path):
    model, processor, _, router = models
    features = stored_features(model, processor, dataset, "on", tmp_path, progress=False)
    router = set_to(router, "spread", 0.0)
    expected = maps(predict_routed(model, processor, router, dataset, progress=False))
    found = maps(predict_routed(model, processor, router, dataset, progress=False, features=features))
    for name, probabilities in expected.items():
        assert found[name] == pytest.approx(probabilities, abs=1e-5)


def test_models_that_share_features_share_their_memory_and_encode_once(stages, dataset, monkeypatch):
    model, processor = load_model(first_of(stages))
    router = load_router(second_of(stages), first_of(stages), model, processor)
    assert router.shared
    theirs = {parameter.data_ptr() for parameter in model.parameters()}
    own = [name for name, parameter in router.model.named_parameters() if parameter.data_ptr() not in theirs]
    assert not [name for name, parameter in before_the_cut(router.model) if parameter.data_ptr() not in theirs]
    assert any("text_hidden_fcs" in name for name in own) and any("sam_mask_decoder" in name for name in own)
    calls = []
    encode = GroundingEncoder.encode
    monkeypatch.setattr(
        GroundingEncoder, "encode", lambda self, pixels: calls.append(len(pixels)) or encode(self, pixels)
    )
    list(predict_routed(model, processor, set_to(router, "predicted_iou", 2.0), dataset, 3, progress=False))
    assert calls == [3, 3]


def test_other_features_are_not_taken_for_the_same(stages):
    model, processor = load_model(first_of(stages))
    other, other_processor = load_model(first_of(stages))
    with torch.no_grad():
        next(iter(other.get_base_model().vlm.model.parameters())).view(-1)[0] += 1e-3
    assert not make_router(model, processor, other, other_processor).shared
    other, other_processor = load_model(first_of(stages))
    other_processor.image_seq_length += 1
    assert not make_router(model, processor, other, other_processor).shared


@pytest.mark.parametrize("by", ROUTE_BY)
@pytest.mark.parametrize("answer", [ANSWER, "Nothing."])
def test_pictures_are_segmented_by_the_model_that_they_belong_to(models, image, by, answer):
    model, processor, alone, router = models
    request = {"image": image, "text": "Vessel?", "answer": answer, "threshold": 0.4}
    for threshold, own in ((NOTHING[by], model), (EVERYTHING[by], alone)):
        found, route = set_to(router, by, threshold).segment(model, processor, **request)
        has_mask = answer == ANSWER
        expected = (own if has_mask else model).segment(processor=processor, **request)
        assert torch.equal(found.low_res_logits, expected.low_res_logits) and found.text == expected.text
        assert torch.equal(found.iou_scores, expected.iou_scores) and found.threshold == 0.4
        assert len(found.low_res_logits) == has_mask
        assert route["routed"] == (has_mask and own is alone)
        assert (route[by] is not None) == has_mask
    if has_mask and by == "predicted_iou":
        assert route[by] == pytest.approx(float(model.segment(processor=processor, **request).iou_scores))


def test_a_routed_picture_is_drawn_with_the_second_models_threshold_and_temperature(models, image, monkeypatch):
    model, processor, _, router = models
    for config, threshold, temperature in ((model.config, 0.3, 2.0), (router.model.config, 0.6, 1.5)):
        monkeypatch.setattr(config, "mask_threshold", threshold)
        monkeypatch.setattr(config, "mask_temperature", temperature)
    request = {"image": image, "text": "Vessel?", "answer": ANSWER}
    for limit, threshold, temperature in ((NOTHING, 0.3, 2.0), (EVERYTHING, 0.6, 1.5)):
        own = set_to(router, "predicted_iou", limit["predicted_iou"])
        found, _ = own.segment(model, processor, **request)
        assert (found.threshold, found.temperature) == (threshold, temperature)
        assert own.segment(model, processor, **request, threshold=0.4)[0].threshold == 0.4


def test_a_routed_picture_is_post_processed_as_the_second_model_is(models, image, monkeypatch):
    model, processor, _, router = models
    monkeypatch.setattr(model.config, "mask_postprocessing", {"min_size": 3})
    monkeypatch.setattr(router.model.config, "mask_postprocessing", {"closing_radius": 2})
    request = {"image": image, "text": "Vessel?", "answer": ANSWER}
    for limit, expected in ((NOTHING, Postprocessing(min_size=3)), (EVERYTHING, Postprocessing(closing_radius=2))):
        own = set_to(router, "predicted_iou", limit["predicted_iou"])
        assert own.segment(model, processor, **request)[0].postprocessing == expected
        given = own.segment(model, processor, **request, postprocessing=IDENTITY)[0]
        assert given.postprocessing == IDENTITY


def test_a_video_has_no_decoder_to_replace(models, image):
    model, processor, _, _ = models
    with pytest.raises(ValueError, match="decode"):
        model.segment(video=[image], text="Vessel?", processor=processor, answer=ANSWER, decode=model.decode_masks)


def test_a_row_goes_as_a_whole_by_its_mean(models):
    _, _, _, router = models
    index = torch.tensor([0, 1, 2])
    features = SegFeatures(torch.zeros(3, 4), index, index, torch.tensor([0, 0, 2]), ())
    values = set_to(router, "predicted_iou", 0.5).values(None, features, torch.tensor([0.2, 0.6, 0.9]))
    assert values == pytest.approx({0: 0.4, 2: 0.9})


def test_spread_is_of_the_masks_at_the_threshold():
    class Sampler:
        def __call__(self, model, features):
            return SimpleNamespace(mask_logits=torch.tensor([0.1, -0.1]).reshape(1, 2, 1, 1))

    index = torch.tensor([0])
    features = SegFeatures(torch.zeros(1, 4), index, index, index, ())
    router = Router(None, None, True, "spread", sampler=Sampler())
    for threshold, expected in ((0.5, 1.0), (0.4, 0.0), (0.6, 0.0)):
        first = SimpleNamespace(config=SimpleNamespace(mask_threshold=threshold, mask_temperature=1))
        assert router.values(first, features, None) == {0: expected}


# fit_threshold


rows = st.lists(
    st.tuples(st.sampled_from([0.0, 0.1, 0.5, 1.0]) | st.floats(0, 1), st.floats(0, 1), st.floats(0, 1)),
    min_size=1,
    max_size=20,
)


@settings(deadline=None, max_examples=100)
@given(rows=rows, by=st.sampled_from(ROUTE_BY))
def test_fitted_router_is_the_best_on_its_rows(rows, by):
    values, first, second = (np.array(column) for column in zip(*rows, strict=True))

    def result(threshold):
        routed = np.array([is_hard(value, by, threshold) for value in values])
        return np.where(routed, second, first).mean(), routed.sum()

    best, count = result(fit_threshold(values, first, second, by))
    assert best >= max(first.mean(), second.mean()) - 1e-9
    # No other threshold does better, nor as well with fewer rows.
    for threshold in (NOTHING[by], EVERYTHING[by], *values, *(np.nextafter(value, 2) for value in values)):
        other, routed = result(threshold)
        assert other <= best + 1e-9
        if routed < count:
            assert other < best or math.isclose(other, best, abs_tol=1e-9)


def test_fitted_threshold_lies_between_the_rows():
    first, second = [0.9, 0.9, 0.2, 0.3], [0.5, 0.5, 0.6, 0.6]
    assert fit_threshold([0.8, 0.9, 0.2, 0.4], first, second) == pytest.approx(0.6)
    assert fit_threshold([0.2, 0.1, 0.8, 0.6], first, second, "spread") == pytest.approx(0.4)


@pytest.mark.parametrize("by", ROUTE_BY)
def test_one_model_may_be_best_alone_and_ties_go_to_the_first(by):
    assert fit_threshold([0.1, 0.5], [0.9, 0.9], [0.8, 0.8], by) == NOTHING[by]
    assert fit_threshold([0.1, 0.5], [0.8, 0.8], [0.9, 0.9], by) == EVERYTHING[by]
    assert fit_threshold([0.1, 0.5], [0.8, 0.8], [0.8, 0.8], by) == NOTHING[by]
    # Routing the easy one too would change nothing.
    values = [0.1, 0.5] if by == "predicted_iou" else [0.5, 0.1]
    assert fit_threshold(values, [0.2, 0.8], [0.4, 0.8], by) == pytest.approx(0.3)
    # Rows of one value cannot be told apart.
    assert fit_threshold([0.5, 0.5], [0.2, 0.8], [0.4, 0.5], by) == NOTHING[by]


@pytest.mark.parametrize("by", ROUTE_BY)
def test_neighbouring_numbers_are_told_apart(by):
    values = [0.3, float(np.nextafter(0.3, 1))]
    hard = int(by == "spread")
    gains = [0.0, 0.0]
    gains[hard], gains[1 - hard] = 0.5, -0.5
    threshold = fit_threshold(values, [0.5, 0.5], [0.5 + gain for gain in gains], by)
    assert [is_hard(value, by, threshold) for value in values] == [hard == 0, hard == 1]


def test_bad_rows_and_options_are_named():
    with pytest.raises(ValueError, match="`dice_second` must hold one number a row"):
        fit_threshold([0.1, 0.2], [0.1, 0.2], [0.1])
    with pytest.raises(ValueError, match="`values` must hold one number a row, of at least one row"):
        fit_threshold([], [], [])
    with pytest.raises(ValueError, match="`dice_first` must be finite, got nan"):
        fit_threshold([0.1], [math.nan], [0.1])
    with pytest.raises(ValueError, match="route_by must be one of predicted_iou, spread, got 'dice'"):
        fit_threshold([0.1], [0.1], [0.1], "dice")
    with pytest.raises(ValueError, match="route_threshold must be a finite number, got nan"):
        Router(None, None, True, "spread", math.nan)


@pytest.mark.parametrize("by", ROUTE_BY)
def test_router_is_fitted_to_what_the_evaluations_say(models, dataset, by):
    model, processor, alone, router = models
    router = set_to(router, by, NOTHING[by])
    _, first = evaluate(dataset, predict_routed(model, processor, router, dataset, progress=False))
    _, second = evaluate(dataset, predict_probabilities(alone, processor, dataset, progress=False))
    fitted = fit_router(model, processor, router, dataset, progress=False)
    assert fitted["threshold"] == router.threshold == fit_threshold(first[by], first["dice"], second["dice"], by)
    assert (fitted["by"], fitted["n"]) == (by, 6)
    assert fitted["dice_first"] == pytest.approx(first["dice"].mean())
    assert fitted["dice_second"] == pytest.approx(second["dice"].mean())
    metrics, samples = evaluate(dataset, predict_routed(model, processor, router, dataset, progress=False))
    assert fitted["dice_routed"] == pytest.approx(metrics["dice"]["mean"])
    assert fitted["routed"] == samples["routed"].mean()


def test_report_says_when_a_router_made_no_choice():
    router = Router(None, None, True, "predicted_iou", 0.1)
    entries = [{"routed": False, "predicted_iou": 0.4}, {"routed": False, "predicted_iou": 0.8}]
    text = routing_report(router, entries)
    assert "0 of 2" in text and "predicted IoU below 0.1" in text
    assert "between 0.4 and 0.8" in text and "no image reaches" in text
    entries = [{**entry, "routed": True} for entry in entries]
    assert "every image goes" in routing_report(router, entries)
    entries[0]["routed"] = False
    assert "no choice" not in routing_report(router, entries)
    router = Router(None, None, True, "spread", 0.1)
    assert "spread above 0.1" in routing_report(router, [{"routed": False, "spread": None}])


# load_router


def test_adapter_is_put_on_the_base_that_it_fits(stages, tmp_path):
    model, processor = load_model(first_of(stages))
    merged = hub.load_adapter(load_model(first_of(stages), merge=True)[0], str(stages[1]))
    # A third stage on the second, and a second one beside the second.
    head_adapter(tiny_sa2va(image_size=64)[0], tmp_path / "beside", seed=7)
    beside = hub.load_adapter(tiny_sa2va(image_size=64)[0], str(tmp_path / "beside"))
    for folder, expected in ((stages[1], merged), (tmp_path / "beside", beside)):
        args = RouterArguments(router_adapter=str(folder), route_threshold=0.25)
        router = load_router(args, first_of(stages), model, processor)
        assert router.shared and (router.by, router.threshold) == ("predicted_iou", 0.25)
        wanted = expected.get_base_model().text_hidden_fcs.state_dict()
        found = router.model.get_base_model().text_hidden_fcs.state_dict()
        assert all(torch.equal(found[name], value) for name, value in wanted.items())
    args = RouterArguments(router_model="tiny-random", route_by="spread")
    router = load_router(args, first_of(stages), model, processor)
    assert router.shared and (router.by, router.threshold) == ("spread", NOTHING["spread"])


def test_second_models_that_cannot_be_used_are_refused(stages, tmp_path):
    model, processor = load_model(first_of(stages))
    other, _ = tiny_sa2va(image_size=64, seed=1)
    head_adapter(other, tmp_path / "foreign", seed=1)
    with pytest.raises(ValueError, match="load the base that it was trained on"):
        load_router(RouterArguments(router_adapter=str(tmp_path / "foreign")), first_of(stages), model, processor)
    with pytest.raises(ValueError, match="There is no folder"):
        load_router(RouterArguments(router_adapter=str(tmp_path / "none")), first_of(stages), model, processor)
    for args in (
        RouterArguments(router_adapter=str(stages[0])),
        RouterArguments(router_model="tiny-random", router_adapter=str(stages[0])),
    ):
        with pytest.raises(ValueError, match="could not take effect"):
            load_router(args, first_of(stages), model, processor)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"route_by": "spread"}, "route_by has no effect without"),
        ({"route_threshold": 0.5}, "route_threshold has no effect without"),
        ({"router_model": "tiny", "route_by": "dice"}, "route_by must be one of"),
        ({"router_model": "tiny", "route_threshold": math.inf}, "route_threshold must be a finite number"),
    ],
)
def test_options_that_cannot_take_effect_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        RouterArguments(**options)


def test_a_second_model_with_another_question_is_asked_that(models, dataset, monkeypatch):
    model, processor, alone, router = models
    router = set_to(router, "predicted_iou", EVERYTHING["predicted_iou"])
    plain = maps(predict_routed(model, processor, router, dataset, batch_size=4, progress=False))
    for own in (alone, router.model):
        monkeypatch.setattr(own.config, "default_question", "Where is the {phrase}, if there is one?")
    found = maps(predict_routed(model, processor, router, dataset, batch_size=4, progress=False))
    expected = maps(predict_probabilities(alone, processor, dataset, batch_size=4, progress=False))
    for name, probabilities in expected.items():
        np.testing.assert_array_equal(found[name], probabilities)
        assert np.abs(found[name] - plain[name]).max() > 1e-4
