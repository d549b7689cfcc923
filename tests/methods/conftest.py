"""The field sizes of the published budgets."""

import pytest

from recemb.tables.spec import TableSpec

# Ids per field of Criteo Kaggle and Avazu without a minimum count.
_SIZES = {
    "criteo": [
        1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194, 27,
        14992, 5461306, 10, 5652, 2173, 4, 7046547, 18, 15, 286181, 105, 142572,
    ],
    "avazu": [
        240, 7, 7, 4737, 7745, 26, 8552, 559, 36, 2686408, 6729486, 8251, 5, 4, 2626, 8, 9, 435, 4,
        68, 172, 60,
    ],
}  # fmt: skip


@pytest.fixture
def published_specs():
    """Return a function from "criteo" or "avazu" to its tables of width 16."""

    def specs_of(name):
        return [
            TableSpec(name=f"t{i}", num_embeddings=n, embedding_dim=16, feature_names=(f"f{i}",))
            for i, n in enumerate(_SIZES[name])
        ]

    return specs_of
