"""Models refuse what they cannot be made with."""

import pytest

from recemb.models.sequence.bst import BST
from recemb.models.sequence.dare import DARE
from recemb.models.sequence.din import DIN
from recemb.models.sequence.eta import ETA
from recemb.models.sequence.sdim import SDIM
from recemb.models.sequence.sim import SIM


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (DARE, {"top_k": 0}, "DARE: top_k must be at least 1, got 0"),
        (DARE, {"l2": -1.0}, "DARE: l2 must be at least 0"),
        (DARE, {"attention_dim": "wide"}, "attention_dim must be a width, or one for each of"),
        (DIN, {"top_k": -1}, "DIN: top_k must be at least 1"),
        (DIN, {"attention_units": 0}, "DIN: attention_units must be at least 1"),
        (ETA, {"num_bits": 0}, "ETA: num_bits must be at least 1"),
        (SDIM, {"bits_per_group": 0}, "SDIM: bits_per_group must be at least 1"),
        (SIM, {"num_heads": 0}, "SIM: num_heads must be at least 1"),
        (SIM, {"auxiliary_units": None}, "SIM: soft search learns from the auxiliary loss alone"),
        (BST, {"max_history": -3}, "BST: max_history must be at least 1"),
    ],
)
def test_what_a_model_cannot_be_made_with_is_refused(make, kind, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        make(kind, **options)
