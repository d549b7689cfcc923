"""DARE beside TWIN: the same numbers from tied tables, apart gradients."""

import torch

from recemb.models.sequence.dare import DARE
from recemb.models.sequence.twin import TWIN

LENGTHS = [9, 3, 6, 1, 4]
# Gradients of one table and of two are sums of the same products in another order.
ROUNDING = {"rtol": 1e-4, "atol": 1e-6}
COLUMNS = ("item", "category", "position")


def tied(make):
    """Return TWIN, and DARE with two copies of its tables and with its parameters."""
    twin, one = make(TWIN)
    dare, two = make(DARE)
    dare.load_state_dict(twin.state_dict())
    for name in COLUMNS:
        for role in ("attention", "representation"):
            two.table(f"{name}.{role}").detach().copy_(one.table(name).detach())
    return (twin, one), (dare, two)


def show_gradients(tables) -> None:
    """Put the gradients where the values are; zeros where there is none."""
    for weight in tables.parameters():
        weight.data = torch.zeros_like(weight) if weight.grad is None else weight.grad


def gradient(model, tables, batch):
    """Return the loss, and the gradient of each table by name."""
    for p in (*model.parameters(), *tables.parameters()):
        p.grad = None
    loss = model.loss_sum(model.inputs(batch, tables), batch.labels)
    loss.backward()
    values = [weight.detach().clone() for weight in tables.parameters()]
    show_gradients(tables)
    grads = {spec.name: tables.table(spec.name).detach().clone() for spec in tables.specs}
    for weight, value in zip(tables.parameters(), values, strict=True):
        weight.data = value
    return loss.detach(), grads


def test_two_tied_tables_give_the_bits_of_one(make, draw) -> None:
    (twin, one), (dare, two) = tied(make)
    batch = draw(LENGTHS)
    losses = [m.loss_sum(m.inputs(batch, t), batch.labels) for m, t in ((twin, one), (dare, two))]
    assert torch.equal(*losses)
    assert torch.equal(twin.eval().score(batch, one), dare.eval().score(batch, two))


def test_gradients_of_both_roles_add_up_to_that_of_the_shared_table(make, draw) -> None:
    (twin, one), (dare, two) = tied(make)
    batch = draw(LENGTHS)
    _, shared = gradient(twin, one, batch)
    _, apart = gradient(dare, two, batch)
    for name in COLUMNS:
        total = apart[f"{name}.attention"] + apart[f"{name}.representation"]
        torch.testing.assert_close(total, shared[name], **ROUNDING)


def test_two_tables_that_get_the_sum_of_their_gradients_train_as_one(make, draw) -> None:
    (twin, one), (dare, two) = tied(make)
    for step in range(4):
        batch = draw(LENGTHS, seed=step)
        _, shared = gradient(twin, one, batch)
        _, apart = gradient(dare, two, batch)
        for name in COLUMNS:
            total = apart[f"{name}.attention"] + apart[f"{name}.representation"]
            one.table(name).detach().sub_(0.1 * shared[name])
            for role in ("attention", "representation"):
                two.table(f"{name}.{role}").detach().sub_(0.1 * total)
            a, r = (two.table(f"{name}.{role}") for role in ("attention", "representation"))
            assert torch.equal(a, r)
            torch.testing.assert_close(a, one.table(name), **ROUNDING)


def test_scores_have_no_gradient_in_representation_tables(make, draw) -> None:
    model, tables = make(DARE)
    inputs = model.inputs(draw(LENGTHS), tables)
    (weights := model.weights(inputs)).full.square().sum().backward()
    assert weights.full.requires_grad
    show_gradients(tables)
    for name in COLUMNS:
        assert not bool(tables.table(f"{name}.representation").any())
        assert bool(tables.table(f"{name}.attention").any())


def test_roles_and_columns_have_widths_of_their_own(make, draw) -> None:
    model, tables = make(
        DARE, dim=4, attention_dim={"item": 2, "position": 6}, representation_dim=8
    )
    assert [p.attention.dim for p in model.parts] == [2, 4, 6]
    assert [p.representation.dim for p in model.parts] == [8, 8, 8]
    assert model.eval().score(draw(LENGTHS), tables).shape == (5,)
