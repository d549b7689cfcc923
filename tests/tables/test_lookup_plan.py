"""LookupPlan: what it refuses, its JSON, how it prints."""

import dataclasses
import json

import pytest

from recemb.tables.lookup_plan import (
    LookupPlan,
    Output,
    PhysicalTable,
    Projection,
    RowProgram,
    VirtualLookup,
)
from recemb.tables.program import Digit, Hash

TABLE = PhysicalTable(name="shared", num_rows=10, width=4)
HASHED = VirtualLookup(table="shared", program=(Hash(seed=1, num_rows=10),))
OUTPUT = Output(
    key="f",
    feature="f",
    owner="items",
    num_ids=1000,
    embedding_dim=4,
    pooling="sum",
    lookups=(HASHED,),
)
PLAN = LookupPlan(tables=(TABLE,), outputs=(OUTPUT,))
RICH = LookupPlan(
    tables=(TABLE, PhysicalTable(name="codes", num_rows=50, width=4, dtype="int8")),
    outputs=(
        dataclasses.replace(
            OUTPUT,
            lookups=(
                HASHED,
                VirtualLookup(
                    table="codes",
                    program=(Digit(divisor=2, modulus=50),),
                    row=RowProgram(scale="scale", threshold=0.5, norm=2, prefix=3),
                ),
            ),
            combine="product",
            projection="up",
            embedding_dim=8,
            pooling="mean",
            num_ids=None,
        ),
    ),
    projections=(Projection(name="up", in_width=4, out_width=8),),
)


def changed(**changes):
    return LookupPlan(tables=(TABLE,), outputs=(dataclasses.replace(OUTPUT, **changes),))


@pytest.mark.parametrize("plan", [PLAN, RICH, changed(embedding_dim=7, padding=3)])
def test_json_gives_the_plan_back(plan):
    assert LookupPlan.from_json(plan.to_json()) == plan


def test_json_is_plain():
    assert json.loads(PLAN.to_json())["tables"] == [
        {"name": "shared", "num_rows": 10, "width": 4, "dtype": "float32", "step": None}
    ]


@pytest.mark.parametrize("text", ["{}", "[]", '{"format": 1, "tables": 3}', "null"])
def test_other_json_is_refused(text):
    with pytest.raises(ValueError, match="not the JSON of a LookupPlan"):
        LookupPlan.from_json(text)


def test_another_format_is_refused():
    with pytest.raises(ValueError, match="format 99 is not known"):
        LookupPlan.from_json(PLAN.to_json().replace('"format": 1', '"format": 99'))


def test_a_plan_prints_one_line_for_each_table_and_output():
    assert str(RICH).splitlines() == [
        "shared: 10 x 4 float32",
        "codes: 50 x 4 int8",
        "f (any id, mean) = product(shared[id hash(0x00000001) over 10], "
        "codes[id // 2 % 50] * scale if norm2 > 0.5 [:3]) @ up -> 8",
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lookups": ()}, "lookups is empty"),
        ({"lookups": (VirtualLookup(table="none"),)}, "no physical table 'none', only"),
        ({"lookups": (VirtualLookup(table="shared"),)}, "can reach row 999 of table 'shared'"),
        (
            {"lookups": (VirtualLookup(table="shared"),), "num_ids": None},
            "can reach any row of table 'shared', which has 10",
        ),
        (
            {"embedding_dim": 5},
            "make a vector of 4 values, and 0 zeros follow, but embedding_dim is 5",
        ),
        ({"lookups": (HASHED, HASHED)}, "make a vector of 8 values"),
        ({"combine": "weighted"}, "needs an importance"),
        ({"importance": HASHED}, "needs an importance"),
        ({"combine": "weighted", "importance": HASHED}, "is 4 wide, but there are 1 lookups"),
        ({"combine": "xor"}, "unknown pooling 'sum' or combine 'xor'"),
        ({"projection": "p"}, "no projection 'p'"),
        (
            {"lookups": (dataclasses.replace(HASHED, row=RowProgram(prefix=5)),)},
            r"prefix must be in \[0, 4\]",
        ),
    ],
)
def test_a_plan_that_cannot_work_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        changed(**changes)


def test_rows_of_two_widths_cannot_be_added():
    tables = (TABLE, PhysicalTable(name="narrow", num_rows=10, width=2))
    lookups = (HASHED, dataclasses.replace(HASHED, table="narrow"))
    output = dataclasses.replace(OUTPUT, lookups=lookups, combine="sum")
    with pytest.raises(ValueError, match=r"sum needs rows of one width, got widths \[4, 2\]"):
        LookupPlan(tables=tables, outputs=(output,))


def test_integers_need_a_scale():
    tables = (dataclasses.replace(TABLE, dtype="int8"),)
    with pytest.raises(ValueError, match="its rows need a scale"):
        LookupPlan(tables=tables, outputs=(OUTPUT,))


def test_a_projection_must_fit():
    output = dataclasses.replace(OUTPUT, projection="p", embedding_dim=2)
    projection = Projection(name="p", in_width=3, out_width=2)
    with pytest.raises(ValueError, match="takes width 3, but the rows make 4"):
        LookupPlan(tables=(TABLE,), outputs=(output,), projections=(projection,))


@pytest.mark.parametrize(
    "names", [{"tables": (TABLE, TABLE)}, {"outputs": (OUTPUT, OUTPUT)}], ids=["table", "output"]
)
def test_a_name_used_twice_is_refused(names):
    with pytest.raises(ValueError, match="is named twice"):
        LookupPlan(**{"tables": (TABLE,), "outputs": (OUTPUT,), **names})


@pytest.mark.parametrize("changes", [{"num_rows": 0}, {"width": 0}, {"dtype": "float8"}])
def test_a_table_of_no_size_or_type_is_refused(changes):
    with pytest.raises(ValueError, match="physical table 'shared'"):
        dataclasses.replace(TABLE, **changes)


def test_padding_is_part_of_the_width():
    assert "3 zeros" in str(changed(embedding_dim=7, padding=3))
    for wrong in ({"embedding_dim": 6, "padding": 3}, {"embedding_dim": 3, "padding": -1}):
        with pytest.raises(ValueError, match="zeros follow, but embedding_dim is"):
            changed(**wrong)
