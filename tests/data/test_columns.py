import pytest
from datasets import Features, Image, List

from sa2va_trl.data import columns
from sa2va_trl.data.checks import check_dataset
from sa2va_trl.data.columns import is_image_list, mask_mode


def test_the_mode_of_masks_is_that_of_their_feature():
    features = Features({"mask": Image(mode="L"), "masks": List(Image(mode="1")), "image": Image()})
    assert [mask_mode(features, name) for name in features] == ["L", "1", None]
    assert mask_mode(None, "mask") is mask_mode(features, "chosen_mask") is None
    assert is_image_list(features["masks"]) and not is_image_list(features["mask"])


def test_what_has_a_file_of_its_own_now_is_the_same_thing_here():
    assert columns.check_dataset is check_dataset
    with pytest.raises(AttributeError, match="no_such_name"):
        columns.no_such_name  # noqa: B018
