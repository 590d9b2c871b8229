"""The sampler and what wraps a model. (What it draws is tested among the preferences.)"""

import torch

from sa2va_trl.data import SegCollator, synthetic_dataset
from sa2va_trl.data.collator import TARGETS
from sa2va_trl.sampling import MaskSampler


@torch.no_grad()
def test_candidates_are_drawn_through_what_wraps_the_model(tiny):
    model, processor = tiny
    batch = SegCollator(processor)(list(synthetic_dataset(1, 2, 64)))
    features = model.encode(**{name: value for name, value in batch.items() if name not in TARGETS})

    class Wrapper(torch.nn.DataParallel):
        """Nothing of the model but its `forward`, as with DDP."""

        calls = 0

        def forward(self, **inputs):
            self.calls += 1
            return self.module(**inputs)

    wrapped = Wrapper(model)
    assert not hasattr(wrapped, "config")
    expected, found = MaskSampler()(model, features), MaskSampler()(wrapped, features)
    assert wrapped.calls == 2
    assert torch.equal(found.mask_logits, expected.mask_logits)
    assert torch.equal(found.embeddings, expected.embeddings)
    assert MaskSampler(embedding=0)(wrapped, features).mask_logits.shape[1] == 7 and wrapped.calls == 3
