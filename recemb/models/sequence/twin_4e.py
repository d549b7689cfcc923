"""TWIN-4E: tables for search and sum, and for history and target: four."""

from typing import ClassVar

from recemb.models.sequence.dare import DARE
from recemb.models.sequence.part import Sharing


class TWIN4E(DARE):
    """DARE, with an item as a behaviour and as a target being two items.

    What an item is to the one is not learned from what it is to the other: it does worse.

    Source: Feng et al., "Long-Sequence Recommendation Models Need Decoupled Embeddings", ICLR 2025,
    section 5, "TWIN-4E".
    """

    sharing: ClassVar[Sharing] = "history_target"
