import torch

from recemb.models.field import FieldVectors, FirstOrder


def test_dense_fields_are_value_times_vector_and_come_first() -> None:
    fields = FieldVectors(num_dense=2, num_features=1, embedding_dim=3)
    dense, vectors = torch.tensor([[2.0, -1.0]]), torch.tensor([[7.0, 8.0, 9.0]])
    stacked = fields(dense, vectors)
    torch.testing.assert_close(stacked[0, 0], 2.0 * fields.dense_vectors[0])
    torch.testing.assert_close(stacked[0, 1], -1.0 * fields.dense_vectors[1])
    torch.testing.assert_close(stacked[0, 2], vectors[0])


def test_without_dense_columns_there_are_no_parameters() -> None:
    assert not list(FieldVectors(num_dense=0, num_features=2, embedding_dim=3).parameters())
    assert not list(FirstOrder(num_dense=0).parameters())


def test_first_order_adds_weights_and_weighted_values() -> None:
    first_order = FirstOrder(num_dense=2)
    first_order.dense_weights.data = torch.tensor([0.5, 2.0])
    total = first_order(torch.tensor([[4.0, 3.0]]), torch.tensor([[1.0, 10.0]]))
    torch.testing.assert_close(total, torch.tensor([0.5 * 4 + 2 * 3 + 1 + 10]))


def test_first_order_starts_without_an_opinion_on_dense_columns() -> None:
    assert not FirstOrder(num_dense=3).dense_weights.any()
