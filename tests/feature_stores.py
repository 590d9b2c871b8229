"""A store with the features of some rows."""

from sa2va_trl import SegCollator
from sa2va_trl.features.encoding import encoder
from sa2va_trl.features.fingerprint import fingerprint
from sa2va_trl.features.rows import row_keys
from sa2va_trl.features.store import FeatureStore


QUESTION, ANSWER = "Please segment the {phrase}.", "Sure, [SEG]."


def built(folder, model, processor, dataset, batch_size=2):
    store = FeatureStore(folder, fingerprint(model, processor))
    keys = row_keys(dataset, QUESTION, ANSWER)
    rows = {key: (dataset, index) for index, key in enumerate(keys)}
    encode = encoder(model, SegCollator(processor), lambda batch: batch)
    count = store.build(rows, encode, batch_size, progress=False)
    return store, keys, count
