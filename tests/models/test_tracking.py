"""Videos: against SAM 2's own predictor, and the invariants of tracking."""

import weakref
from copy import deepcopy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sam2.modeling import sam2_base
from sam2.sam2_video_predictor import SAM2VideoPredictor

from sa2va_trl import GroundingEncoder, Sa2VAGroundingConfig, tiny_sa2va
from sa2va_trl.models import tracking
from sa2va_trl.models.grounding import upsample_mask_logits
from sa2va_trl.models.tracking import track
from sa2va_trl.postprocessing import Postprocessing


SIZE = 64
FRAMES = 12
SMALL = {
    "image_size": SIZE,
    "embed_dim": 8,
    "num_heads": 1,
    "stages": (1, 2, 3, 2),
    "global_att_blocks": (4,),
    "window_spec": (8, 4, 8, 4),
    "hidden_dim": 32,
    "decoder_mlp_dim": 32,
    "memory_dim": 8,
    "memory_layers": 2,
    "memory_mlp_dim": 32,
}
QUESTION = "Please segment the blood vessel."
TWO = "A <p> wide vessel </p> [SEG] and a <p> thin one </p> [SEG]."


def random(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_encoder(mask_prompt=None, balanced=True, **options):
    """A small SAM 2 without a weight of zero or one, for which some objects are there and some are not."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = GroundingEncoder(Sa2VAGroundingConfig(**SMALL, **options)).eval()
    with torch.no_grad():
        for seed, tensor in enumerate(encoder.state_dict().values()):
            tensor.add_(0.2 * random(*tensor.shape, seed=seed))
        head = encoder.sam2_model.sam_mask_decoder.pred_obj_score_head
        # Again and again, because what is held to be absent changes what follows.
        for _ in range(3 if balanced else 0):
            seen = []
            hook = head.register_forward_hook(lambda module, inputs, output, seen=seen: seen.append(output))
            run(encoder, prompted=[3, 7], mask_prompt=mask_prompt)
            hook.remove()
            scores = torch.cat(seen).flatten().sort().values
            # In the widest gap of the middle: a score at zero would be a matter of rounding.
            middle = scores[len(scores) // 4 : -len(scores) // 4]
            widest = middle.diff().argmax()
            head.layers[-1].bias -= middle[widest : widest + 2].mean()
    return encoder


PIXELS = random(FRAMES, 3, SIZE, SIZE, seed=1)
PROMPTS = random(3, SMALL["hidden_dim"], seed=2)


def run(encoder, prompted, prompts=PROMPTS, pixels=PIXELS, **options):
    """Mask logits `(frames, objects, S/4, S/4)`, and the order in which the frames came."""
    results = list(track(encoder, prompts, lambda index: pixels[index][None], len(pixels), prompted, **options))
    order = [index for index, _, _ in results]
    assert sorted(order) == list(range(len(pixels)))
    masks = torch.stack([logits for _, logits, _ in sorted(results, key=lambda result: result[0])])
    assert masks.shape == (len(pixels), len(prompts), SIZE // 4, SIZE // 4) and masks.dtype == torch.float32
    assert all(scores.shape == (len(prompts),) and 0 <= scores.min() <= scores.max() <= 1 for *_, scores in results)
    return masks, order


def close(actual, expected, tolerance=1e-4):
    assert actual.shape == expected.shape
    drawn = expected[expected > -1000]  # not what the gate has emptied
    assert drawn.std() > 1e-2
    assert (actual - expected).abs().max() < tolerance * max(1, drawn.abs().max())


@pytest.fixture(scope="module")
def encoder():
    return make_encoder()


# Against the predictor of the `sam2` package


class WithoutGate:
    """Torch for `sam2_base`, whose only `where` is the gate that empties the mask of an absent object."""

    where = staticmethod(lambda condition, kept, _: kept)

    def __getattr__(self, name):
        return getattr(torch, name)


@pytest.fixture
def predictor_of(monkeypatch):
    def make(encoder):
        predictor = deepcopy(encoder.sam2_model)
        predictor.__class__ = SAM2VideoPredictor
        predictor.fill_hole_area = 0
        predictor.non_overlap_masks = False
        predictor.clear_non_cond_mem_around_input = predictor.add_all_frames_to_correct_as_cond = False
        monkeypatch.setattr("sam2.sam2_video_predictor.load_video_frames", lambda **_: (PIXELS, SIZE, SIZE))
        monkeypatch.setattr(torch, "bfloat16", torch.float32)  # it stores memories in half precision
        return predictor, predictor.init_state("")

    return make


def propagated(predictor, state, backward):
    results = predictor.propagate_in_video(state, reverse=backward)
    return {index: masks[:, 0].clone() for index, _, masks in results}


def on_square(masks):
    return upsample_mask_logits(masks, SIZE, (SIZE, SIZE))


@pytest.mark.parametrize("version", ["2.0", "2.1"])
@pytest.mark.parametrize("prompted", [[0], [3, 7], [11]])
def test_soft_tracking_is_sam2s_without_the_gate(monkeypatch, predictor_of, version, prompted):
    encoder = make_encoder(sam2_version=version)
    masks, _ = run(encoder, prompted)
    monkeypatch.setattr(sam2_base, "torch", WithoutGate())
    for backward in (False, True):
        predictor, state = predictor_of(encoder)
        for number, prompt in enumerate(PROMPTS):
            predictor._obj_id_to_idx(state, number)
            hook = predictor.sam_prompt_encoder.register_forward_hook(
                lambda module, inputs, output, prompt=prompt: (
                    torch.cat([output[0], prompt[None, None]], 1),
                    output[1],
                )
            )
            for frame in prompted:
                outputs, _ = predictor._run_single_frame_inference(
                    inference_state=state,
                    output_dict=state["output_dict_per_obj"][number],
                    frame_idx=frame,
                    batch_size=1,
                    is_init_cond_frame=True,
                    point_inputs=None,
                    mask_inputs=None,
                    reverse=False,
                    run_mem_encoder=False,
                )
                state["temp_output_dict_per_obj"][number]["cond_frame_outputs"][frame] = outputs
            hook.remove()
        expected = propagated(predictor, state, backward)
        # The second direction of ours starts at the first prompted frame, and so does the oracle's. (Backward from
        # frame 0 it has nothing to do.)
        start = min(prompted)
        assert sorted(expected) == list(range(start + 1 if start else 0) if backward else range(start, FRAMES))
        for frame, oracle in expected.items():
            close(on_square(masks[frame]), oracle)


@pytest.mark.parametrize("version", ["2.0", "2.1"])
@pytest.mark.parametrize("separate", [False, True])
def test_mask_prompts_are_sam2s_own(predictor_of, version, separate):
    prompted, threshold = [3, 7], 0.4
    options = {"mask_prompt": (threshold, (SIZE, SIZE))}
    encoder = make_encoder(**options, sam2_version=version, separate_tracking_decoder=separate)
    masks, _ = run(encoder, prompted, **options)
    assert (masks == -1024).all((2, 3)).any() and not (masks == -1024).all((2, 3)).all()
    for backward in (False, True):
        predictor, state = predictor_of(encoder)
        for frame in prompted:
            drawn, ious, _ = encoder.decode(
                encoder.encode(PIXELS[frame][None]), PROMPTS, torch.zeros(len(PROMPTS), dtype=torch.long)
            )
            best = drawn[torch.arange(len(PROMPTS)), ious.argmax(1)]
            for number, mask in enumerate(on_square(best).sigmoid() > threshold):
                assert mask.any() and not mask.all()
                predictor.add_new_mask(state, frame, number, mask)
        expected = propagated(predictor, state, backward)
        close(on_square(masks[list(expected)].flatten(0, 1)), torch.cat(list(expected.values())))


def test_frames_are_resized_before_they_become_mask_prompts(encoder):
    # A mask that lives on few pixels of a small frame is a coarser one.
    whole, small = (run(encoder, [0], mask_prompt=(0.5, size))[0][0] for size in ((SIZE, SIZE), (5, 9)))
    assert (whole > 0).any() and (whole > 0).float().ne((small > 0).float()).float().mean() > 0.01


def test_mask_prompts_are_cut_at_the_temperature_of_the_probabilities(encoder):
    # sigmoid(x / 2) > sigmoid(0.1) where sigmoid(x) > sigmoid(0.2).
    cuts = {number: float(torch.sigmoid(torch.tensor(number, dtype=torch.float64))) for number in (0.1, 0.2)}
    size = (SIZE, SIZE)
    plain, tempered, other = (
        run(encoder, [0], mask_prompt=(cuts[cut], size), temperature=temperature)[0][0]
        for cut, temperature in ((0.2, 1.0), (0.1, 2.0), (0.2, 2.0))
    )
    assert torch.equal(plain, tempered) and not torch.equal(plain, other)


def test_the_language_prompt_goes_to_the_modified_decoder_only():
    encoder = make_encoder(separate_tracking_decoder=True)
    masks, _ = run(encoder, [0])
    single = make_encoder()
    single.load_state_dict({n: t for n, t in encoder.state_dict().items() if "_modified" not in n})
    other, _ = run(single, [0])
    assert (masks[0] - other[0]).abs().max() > 1e-2
    with torch.no_grad():
        for tensor in encoder.sam2_model.sam_mask_decoder.parameters():
            tensor.add_(0.1)
    changed, _ = run(encoder, [0])
    assert torch.equal(changed[0], masks[0]) and (changed[1] - masks[1]).abs().max() > 1e-2


# Invariants


@pytest.mark.parametrize("options", [{}, {"mask_prompt": (0.5, (40, 50))}])
def test_objects_together_are_objects_one_by_one(encoder, options):
    together, _ = run(encoder, [2, 6], **options)
    for number in range(len(PROMPTS)):
        alone, _ = run(encoder, [2, 6], prompts=PROMPTS[number : number + 1], **options)
        close(alone[:, 0], together[:, number])
    assert (together[:, 0] - together[:, 1]).abs().max() > 1e-2


@pytest.mark.parametrize("version", ["2.0", "2.1"])
def test_backward_is_forward_on_the_reversed_clip(version):
    encoder = make_encoder(sam2_version=version)
    backward, order = run(encoder, [FRAMES - 1])
    forward, _ = run(encoder, [0], pixels=PIXELS.flip(0))
    assert order == [*range(FRAMES)][::-1]
    close(backward, forward.flip(0))
    # From the middle of a clip, each direction is as if the other were not there.
    both, order = run(encoder, [5])
    assert order == [*range(5, FRAMES), 4, 3, 2, 1, 0]
    if version == "2.1":
        return  # the encoding of time depends on the length of a short clip
    close(both[5:], run(encoder, [0], pixels=PIXELS[5:])[0])
    close(both[:6], run(encoder, [5], pixels=PIXELS[:6])[0])


def test_prompted_frames_reach_all_others_and_tracked_ones_only_what_follows(encoder):
    masks, _ = run(encoder, [0, 4])

    def moved(frame):
        pixels = PIXELS.clone()
        pixels[frame] = random(3, SIZE, SIZE, seed=9)
        changed = (run(encoder, [0, 4], pixels=pixels)[0] - masks).abs().amax((1, 2, 3)) > 1e-5
        return changed.nonzero()[:, 0].tolist()

    assert moved(4) == [1, 2, 3, *range(4, FRAMES)]
    assert moved(2) == [2, 3, *range(5, FRAMES)]
    assert moved(9) == [9, 10, 11]


def test_every_frame_is_encoded_once_and_no_features_are_kept(encoder, monkeypatch):
    seen, alive, encode = [], [], encoder.encode

    def watched(pixels):
        assert not any(reference() is not None for reference in alive)
        seen.append(pixels)
        pyramid = encode(pixels)
        alive.extend(weakref.ref(level) for level in pyramid)
        return pyramid

    monkeypatch.setattr(encoder, "encode", watched)
    run(encoder, [3, 7])
    assert sorted(PIXELS.tolist().index(pixels[0].tolist()) for pixels in seen) == list(range(FRAMES))


@pytest.mark.parametrize("prompted", [[0, 30], [50]])
def test_memory_is_bounded_and_nothing_is_forgotten_that_is_needed(encoder, monkeypatch, prompted):
    pixels = random(51, 3, SIZE, SIZE, seed=3)
    prepare, kept = encoder.sam2_model._prepare_memory_conditioned_features, []

    def watched(**arguments):
        recent = arguments["output_dict"]["non_cond_frame_outputs"]
        kept.append((len(recent), sum("maskmem_features" in memory for memory in recent.values())))
        return prepare(**arguments)

    monkeypatch.setattr(encoder.sam2_model, "_prepare_memory_conditioned_features", watched)
    masks, _ = run(encoder, prompted, pixels=pixels)
    pointers, memories = (max(values) for values in zip(*kept, strict=True))
    assert (pointers, memories) == (15, 6)
    monkeypatch.setattr(tracking, "_forget", lambda *arguments: None)
    assert torch.equal(run(encoder, prompted, pixels=pixels)[0], masks)
    assert max(kept)[0] > 40 - 2


def test_tracking_leaves_no_graph(encoder):
    for _, logits, scores in track(encoder, PROMPTS, lambda index: PIXELS[index][None], 3, [0]):
        assert not logits.requires_grad and not scores.requires_grad and torch.is_grad_enabled()


@pytest.mark.parametrize("version", ["2.0", "2.1"])
@pytest.mark.parametrize("options", [{}, {"mask_prompt": (0.5, (40, 50))}])
def test_half_precision(version, options):
    encoder = make_encoder(balanced=False, sam2_version=version)
    exact, _ = run(encoder, [2], **options)
    head = deepcopy(encoder.mask_decoder)
    rounded, _ = run(encoder.to(torch.bfloat16), [2], **options)
    encoder.sam2_model.sam_mask_decoder = head  # as trained: float32 on top of half precision
    mixed, _ = run(encoder, [2], **options)
    for masks in (rounded, mixed):
        same = ((masks == -1024) == (exact == -1024)).flatten(2).all(2)
        assert same.float().mean() > 0.8
        assert (masks - exact)[same].abs().mean() < 0.1 * exact[exact > -1024].std()


# `segment`


@pytest.fixture(scope="module")
def network():
    model, processor = tiny_sa2va(image_size=SIZE)
    with torch.no_grad():
        for seed, tensor in enumerate(model.grounding_encoder.state_dict().values()):
            tensor.add_(0.1 * random(*tensor.shape, seed=seed))
    return model.eval(), processor


@pytest.fixture(scope="module")
def clip():
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (30, 50, 3), dtype=np.uint8)) for _ in range(7)]


def segment(network, video, **options):
    model, processor = network
    return model.segment(**{"video": video, "text": QUESTION, "processor": processor, "answer": TWO, **options})


def test_a_result_of_a_video(network, clip):
    result = segment(network, clip, num_frames=3, threshold=0.4)
    assert result.text == TWO and result.phrases == ["wide vessel", "thin one"]
    assert result.prompted_frames == [0, 3, 6]
    assert result.low_res_logits.shape == (2, 7, SIZE // 4, SIZE // 4) and result.iou_scores.shape == (2, 7)
    assert result.mask_logits.shape == (2, 7, SIZE, SIZE)
    assert result.probabilities.shape == result.masks.shape == (2, 7, 30, 50)
    assert torch.equal(result.masks, result.probabilities > 0.4) and result.masks.any() and not result.masks.all()
    for index in range(7):
        frame = result.frame(index)
        assert frame.text == result.text and torch.equal(frame.iou_scores, result.iou_scores[:, index])
        for name in ("mask_logits", "probabilities"):
            torch.testing.assert_close(getattr(frame, name), getattr(result, name)[:, index])
        assert torch.equal(frame.masks, frame.probabilities > 0.4)
    with pytest.raises(ValueError, match="result of an image"):
        frame.frame(0)
    with pytest.raises(IndexError):
        result.frame(7)


def test_one_frame_is_an_image(network, clip):
    model, processor = network
    video = segment(network, clip[:1]).frame(0)
    image = model.segment(image=clip[0], text=QUESTION, processor=processor, answer=TWO)
    assert video.phrases == image.phrases
    for name in ("mask_logits", "probabilities", "iou_scores"):
        close(getattr(video, name), getattr(image, name), 1e-5) if name != "iou_scores" else None
        assert (getattr(video, name) - getattr(image, name)).abs().max() < 1e-5


def test_the_language_model_sees_the_prompted_frames_and_no_other(network, clip):
    result = segment(network, clip, frames=[4, 1])
    assert result.prompted_frames == [1, 4]
    blank = [frame if index in (1, 4) else Image.new("RGB", frame.size) for index, frame in enumerate(clip)]
    other = segment(network, blank, frames=[1, 4])
    assert torch.equal(other.low_res_logits[:, [1, 4]], result.low_res_logits[:, [1, 4]])
    assert not torch.equal(other.low_res_logits[:, 0], result.low_res_logits[:, 0])
    # With all frames prompted, the masks are those of a training row.
    model, processor = network
    whole = segment(network, clip[:3], num_frames=3)
    pixels, blocks = processor.tiles(clip[:3], clip=True)
    chat = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": TWO}]
    with torch.no_grad():
        row = model(
            torch.tensor([processor.encode_chat(chat, blocks)[0]]),
            **pixels,
            grounding_pixel_values=processor.grounding_inputs(clip[:3]),
            image_counts=torch.tensor([3]),
        )
    assert (whole.low_res_logits.flatten(0, 1) - row.mask_logits).abs().max() < 1e-5


def test_policies_and_ways_of_tracking_come_from_the_config_or_the_call(network, clip):
    model, processor = network
    by_call = segment(network, clip, frame_policy="first", num_frames=2, tracking="mask_prompt")
    assert by_call.prompted_frames == [0, 1]
    changed = tiny_sa2va(image_size=SIZE)[0].eval()
    changed.load_state_dict(model.state_dict())
    changed.config.frame_policy, changed.config.num_frames, changed.config.tracking = "first", 2, "mask_prompt"
    assert torch.equal(segment((changed, processor), clip).low_res_logits, by_call.low_res_logits)
    soft = segment(network, clip, frame_policy="first", num_frames=2)
    assert not torch.equal(soft.low_res_logits, by_call.low_res_logits)
    # The mask prompts are the soft way's masks at the video's own size.
    square = F.interpolate(soft.masks[:, :2].float(), size=(SIZE, SIZE), mode="bilinear", antialias=True) >= 0.5
    grid = F.interpolate(20 * square.float() - 10, size=(SIZE // 4, SIZE // 4), mode="bilinear", antialias=True)
    close(by_call.low_res_logits[:, :2], grid)


def test_arrays_and_files_are_their_frames(network, clip, tmp_path):
    av = pytest.importorskip("av")
    array = np.stack([np.asarray(frame) for frame in clip])
    path = tmp_path / "clip.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height = 50, 30
        for frame in array:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    with av.open(str(path)) as container:
        decoded = [frame.to_image() for frame in container.decode(video=0)]
    expected = segment(network, clip, frames=[2])
    assert torch.equal(segment(network, array, frames=[2]).low_res_logits, expected.low_res_logits)
    from_file = segment(network, path, frames=[2]).low_res_logits
    assert torch.equal(segment(network, decoded, frames=[2]).low_res_logits, from_file)
    assert not torch.equal(from_file, expected.low_res_logits)  # the codec loses something


def test_frames_may_differ_in_size_and_masks_have_that_of_the_first(network, clip, tmp_path):
    clip[3].save(tmp_path / "frame.png")
    mixed = [clip[0], np.asarray(clip[1].resize((70, 90))), clip[2], tmp_path / "frame.png", clip[4].resize((20, 20))]
    result = segment(network, mixed, frames=[0, 1])
    assert result.masks.shape[1:] == (5, 30, 50) and result.frame(1).masks.shape[1:] == (30, 50)
    plain = segment(network, [*mixed[:3], clip[3], mixed[4]], frames=[0, 1])
    assert torch.equal(result.low_res_logits, plain.low_res_logits)
    # Each frame is drawn as it is: alike but for the first, whose size is another.
    turned = segment(network, [clip[0].resize((60, 80)), *mixed[1:]], frames=[1])
    assert turned.masks.shape[1:] == (5, 80, 60)
    assert torch.equal(turned.low_res_logits[:, 1], segment(network, mixed, frames=[1]).low_res_logits[:, 1])
    moved = segment(network, mixed, frames=[0], postprocessing=Postprocessing(flow_weight=0.5))
    assert moved.pictures.shape == (5, 30, 50) and moved.masks.shape[1:] == (5, 30, 50)


def test_an_answer_without_objects_encodes_nothing(network, clip, monkeypatch):
    monkeypatch.setattr(network[0].grounding_encoder, "encode", None)
    result = segment(network, clip, answer="There is none.")
    assert result.masks.shape == (0, 7, 30, 50) and result.phrases == [] and result.frame(3).masks.shape == (0, 30, 50)


def test_generated_answers_see_one_tile_a_frame(clip):
    model, processor = tiny_sa2va(image_size=SIZE, max_patches=4)
    tiles = []
    model.vlm.model.vision_tower.register_forward_pre_hook(
        lambda module, arguments, named: tiles.append(
            len(named.get("pixel_values", arguments[0] if arguments else 0))
        ),
        with_kwargs=True,
    )
    segment((model.eval(), processor), clip, answer=None, num_frames=3, max_new_tokens=3)
    assert tiles == [3]  # what is written is not read again


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"video": []}, "no frames"),
        ({"video": "none.mp4"}, "no file"),
        ({"image": Image.new("RGB", (8, 8))}, "exactly one of them"),
        ({"images": []}, "exactly one of them"),
        ({"frame_policy": "last"}, "frame_policy must be one of uniform, first, starts, got 'last'"),
        ({"num_frames": 0}, "num_frames must be an integer of at least 1"),
        ({"num_frames": 2.5}, "num_frames must be an integer of at least 1"),
        ({"tracking": "hard"}, "tracking must be one of soft, mask_prompt, got 'hard'"),
        ({"frames": []}, "at least one frame"),
        ({"frames": [0, 7]}, r"holds \[7\], but the video's 7 frames are 0 to 6"),
        ({"frames": [-1]}, r"holds \[-1\]"),
        ({"frames": [2, 2]}, "holds a frame twice"),
        ({"frames": [0], "num_frames": 2}, "no effect"),
        ({"frames": [0], "frame_policy": "first"}, "no effect"),
        ({"text": [QUESTION]}, "one text"),
        ({"answer": [TWO]}, "one text"),
    ],
)
def test_segment_refuses(network, clip, options, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        segment(network, **{"video": clip, **options})


@pytest.mark.parametrize("name", ["frame_policy", "num_frames", "frames", "tracking"])
def test_options_of_a_video_need_one(network, clip, name):
    values = {"frame_policy": "first", "num_frames": 2, "frames": [0], "tracking": "soft"}
    with pytest.raises(ValueError, match=rf"{name} with `video` only"):
        segment(network, None, image=clip[0], **{name: values[name]})
