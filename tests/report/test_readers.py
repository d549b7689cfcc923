"""Angles of readers and lengths of rows, against geometry."""

import pytest
import torch

from recemb.report.readers import mean_angle, reader_angles, row_norms
from recemb.tables.full import full_tables
from recemb.tables.spec import TableSpec


def test_angles_are_those_between_lines():
    # Readers (1, 0), (0, 1), (-1, 0) and (1, 1).
    weight = torch.tensor([[1.0, 0, 0, 1, -1, 0, 1, 1]])
    angles = reader_angles(weight, [2, 2, 2, 2])
    expected = torch.tensor(
        [[0.0, 90, 0, 45], [90, 0, 90, 45], [0, 90, 0, 45], [45, 45, 45, 0]], dtype=torch.float64
    )
    torch.testing.assert_close(angles, expected, rtol=0, atol=1e-5)
    assert mean_angle(angles) == pytest.approx((90 + 0 + 45 + 90 + 45 + 45) / 6)


def test_readers_are_blocks_of_the_layer():
    # Two units: readers are (1, 0 | 0, 0) and (0, 0 | 1, 0) as blocks of columns.
    weight = torch.tensor([[1.0, 0, 0, 0], [0, 0, 1, 0]])
    assert float(reader_angles(weight, [2, 2])[0, 1]) == pytest.approx(90)


@pytest.mark.parametrize(("widths", "message"), [([1, 3], "no angle"), ([2, 2, 2], "add up to 6")])
def test_widths_must_fit(widths, message):
    with pytest.raises(ValueError, match=message):
        reader_angles(torch.ones(3, 4), widths)


def test_one_feature_has_no_angle():
    with pytest.raises(ValueError, match="two features"):
        mean_angle(torch.zeros(1, 1))


def tables_of(weight):
    rows, width = weight.shape
    spec = TableSpec(name="t", num_embeddings=rows, embedding_dim=width, feature_names=("f",))
    tables = full_tables([spec])
    with torch.no_grad():
        tables.table("t").copy_(weight)
    return tables


def test_norms_are_summarised():
    tables = tables_of(torch.tensor([[3.0, 4], [0, 0], [0, 1], [0, 2], [0, -3]]))
    found = row_norms(tables, "t")
    assert found.quantiles == (0.0, 1.0, 2.0, 3.0, 5.0)
    assert found.mean_square == pytest.approx((25 + 0 + 1 + 4 + 9) / 5)
    assert (found.num_rows, found.num_zero) == (5, 1)


def test_norms_of_chosen_rows():
    tables = tables_of(torch.tensor([[3.0, 4], [0, 0]]))
    assert row_norms(tables, "t", torch.tensor([0])).mean_square == pytest.approx(25)
    with pytest.raises(ValueError, match="no row of 't'"):
        row_norms(tables, "t", torch.tensor([], dtype=torch.long))
