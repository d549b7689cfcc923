"""Bytes by part."""

from recemb.tables.storage import Storage


def test_totals_are_the_sums_of_the_parts():
    storage = Storage(
        full_bytes=100,
        serve={"weights": 30, "codes": 5},
        train={"weights": 60, "codes": 5, "optimizer_state": 7},
    )
    assert storage.serve_bytes == 35
    assert storage.train_bytes == 72
    assert storage.to_dict() == {"full": 100, "serve": storage.serve, "train": storage.train}
