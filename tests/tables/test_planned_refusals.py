"""What PlannedTables does not accept."""

import pytest
import torch

from recemb.tables.lookup_plan import LookupPlan, Output, PhysicalTable, VirtualLookup
from recemb.tables.planned import PlannedTables
from recemb.tables.program import Remap
from recemb.tables.spec import TableSpec

NUM_IDS = 20
SPECS = [
    TableSpec(name=f, num_embeddings=NUM_IDS, embedding_dim=4, feature_names=(f,)) for f in "fg"
]


def plan_of(program=(), buffers=None):
    return LookupPlan(
        tables=(PhysicalTable(name="t", num_rows=NUM_IDS, width=4),),
        outputs=tuple(
            Output(
                key=f,
                feature=f,
                owner=f,
                num_ids=NUM_IDS,
                embedding_dim=4,
                pooling="sum",
                lookups=(VirtualLookup(table="t", program=program),),
            )
            for f in "fg"
        ),
        buffers=buffers or {},
    )


def test_a_plan_for_other_keys_is_refused():
    with pytest.raises(ValueError, match=r"differ in feature, pooling or order of \[.g.\]"):
        PlannedTables(SPECS[:1], plan_of())


@pytest.mark.parametrize(
    ("buffers", "message"),
    [
        ({}, r"reads buffers \['remap'\]"),
        ({"remap": torch.full((NUM_IDS,), 99)}, "holds 99, but the plan says that its values are"),
    ],
)
def test_a_missing_or_foreign_buffer_is_refused(buffers, message):
    plan = plan_of((Remap(buffer="remap"),), {"remap": NUM_IDS})
    with pytest.raises(ValueError, match=message):
        PlannedTables(SPECS, plan, buffers=buffers)
