"""OptEmbed's masks: the estimator, thresholds, prefixes."""

import math

import pytest
import torch

from recemb.methods.masked_rows import MaskedRows, SurrogateStep, Thresholds, surrogate_slope
from recemb.tables.layout import Group
from recemb.tables.lookup_plan import PhysicalTable

GROUP = Group(
    name="g",
    width=4,
    dtype="float32",
    tables=tuple(PhysicalTable(name=n, num_rows=3, width=4) for n in "ab"),
    first_rows=(0, 3),
    num_rows=6,
)


def test_the_estimator_is_the_published_one():
    x = torch.tensor([-1.2, -1, -0.7, -0.4, -0.2, 0, 0.2, 0.4, 0.7, 1, 1.2])
    expected = torch.tensor([0, 0.4, 0.4, 0.4, 1.2, 2, 1.2, 0.4, 0.4, 0.4, 0])
    torch.testing.assert_close(surrogate_slope(x), expected)


def test_the_step_is_strict_and_its_gradient_the_estimator():
    x = torch.tensor([-0.2, 0.0, 0.7], requires_grad=True)
    y = SurrogateStep.apply(x)
    assert y.tolist() == [0, 0, 1]
    y.backward(torch.tensor([1.0, 2, 3]))
    torch.testing.assert_close(x.grad, torch.tensor([1.2, 4, 1.2]))


def read(mask, vectors, tables):
    rows = torch.arange(len(vectors))
    return mask(vectors, rows, torch.tensor(tables))


@pytest.mark.parametrize(("norm", "kept"), [(1, [True, False]), (2, [True, True])])
def test_a_row_is_on_if_its_norm_is_above_the_threshold(norm, kept):
    mask = MaskedRows(GROUP, settings=Thresholds(norm=norm))
    with torch.no_grad():
        mask.thresholds.copy_(torch.tensor([0.9, 1.2]))
    vectors = torch.tensor([[1.0, 0, 0, 0], [1.0, 0.2, 0, 0]])
    if norm == 2:
        vectors = torch.tensor([[1.0, 0, 0, 0], [1.25, 0, 0, 0]])
    found = read(mask, vectors, [0, 1])
    assert [bool(row.any()) for row in found] == kept


def test_gradients_reach_rows_and_thresholds_as_derived():
    mask = MaskedRows(GROUP, settings=Thresholds())
    with torch.no_grad():
        mask.thresholds.copy_(torch.tensor([0.5, 0.9]))
    vectors = torch.tensor([[0.3, -0.4, 0, 0.1], [0.1, 0.1, -0.1, 0.5]], requires_grad=True)
    grad = torch.tensor([[1.0, 2, 3, 4], [-1, 0.5, 2, 1]])
    read(mask, vectors, [0, 1]).backward(grad)
    norms = vectors.detach().abs().sum(1)  # 0.8 and 0.8: on, and off
    slopes = surrogate_slope(norms - torch.tensor([0.5, 0.9]))
    inner = (grad * vectors.detach()).sum(1)
    torch.testing.assert_close(mask.thresholds.grad, -inner * slopes)
    on = torch.tensor([[1.0], [0.0]])
    expected = on * grad + (inner * slopes).unsqueeze(1) * vectors.detach().sign()
    torch.testing.assert_close(vectors.grad, expected)


def test_the_penalty_is_alpha_times_the_sum_of_exponentials():
    mask = MaskedRows(GROUP, settings=Thresholds(alpha=0.5))
    with torch.no_grad():
        mask.thresholds.copy_(torch.tensor([0.0, 1.0]))
    penalty = mask.penalty()
    assert penalty.item() == pytest.approx(0.5 * (1 + math.exp(-1)))
    penalty.backward()
    torch.testing.assert_close(mask.thresholds.grad, torch.tensor([-0.5, -0.5 * math.exp(-1)]))


def test_a_row_s_own_threshold():
    mask = MaskedRows(GROUP, settings=Thresholds(scope="feature"))
    assert mask.thresholds.shape == (6,)
    with torch.no_grad():
        mask.thresholds[1] = 100
    found = read(mask, torch.ones(3, 4), [0, 0, 0])
    assert [bool(row.any()) for row in found] == [True, False, True]


@pytest.mark.parametrize("scope", ["field", "feature"])
def test_the_table_s_mask_is_the_batch_s(scope):
    mask = MaskedRows(GROUP, settings=Thresholds(scope=scope))
    with torch.no_grad():
        mask.thresholds.uniform_(1, 3)
    weight = torch.randn(6, 4)
    found = read(mask, weight, [0, 0, 0, 1, 1, 1])
    assert torch.equal(mask.kept(weight), found.abs().sum(1) > 0)


def test_widths_cut_rows_table_by_table():
    mask = MaskedRows(GROUP)
    mask.widths.copy_(torch.tensor([1, 3]))
    found = read(mask, torch.ones(2, 4), [0, 1])
    assert found.tolist() == [[1, 0, 0, 0], [1, 1, 1, 0]]


def test_training_draws_every_width_equally_often():
    mask = MaskedRows(GROUP)
    mask.draws_widths = True
    found = read(mask, torch.ones(20_000, 4), [0] * 20_000)
    counts = torch.bincount(found.sum(1).long(), minlength=5)[1:]
    # Five standard deviations of a binomial count.
    assert ((counts - 5000).abs() < 5 * (20_000 * 0.25 * 0.75) ** 0.5).all()
    mask.eval()
    assert read(mask, torch.ones(3, 4), [0] * 3).all()


def test_prefixes_leave_the_norm_that_thresholds_see():
    mask = MaskedRows(GROUP, settings=Thresholds())
    with torch.no_grad():
        mask.thresholds.fill_(3.5)
    mask.widths.fill_(1)
    assert read(mask, torch.ones(1, 4), [0]).tolist() == [[1, 0, 0, 0]]


@pytest.mark.parametrize("wrong", [{"scope": "row"}, {"norm": 3}, {"alpha": -1.0}])
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ValueError, match="Thresholds"):
        Thresholds(**wrong)
