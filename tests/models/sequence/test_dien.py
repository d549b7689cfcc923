"""DIEN's recurrent layers."""

import pytest
import torch

from recemb.models.sequence.dien import AUGRU, DIEN, next_loss_sum

# Sums of a few float32 products in another order.
ROUNDING = {"rtol": 1e-5, "atol": 1e-6}


def test_with_full_attention_it_is_a_gru() -> None:
    made, gru = AUGRU(4), torch.nn.GRU(4, 4, batch_first=True)
    inputs = torch.randn(3, 6, 4)
    # torch's gates stand in the order reset, update, new, and its update is 1 - u.
    update, reset, new = made.of_input.weight.chunk(3)
    bias_update, bias_reset, bias_new = made.of_input.bias.chunk(3)
    own_update, own_reset, own_new = made.of_state.weight.chunk(3)
    with torch.no_grad():
        gru.weight_ih_l0.copy_(torch.cat([reset, -update, new]))
        gru.weight_hh_l0.copy_(torch.cat([own_reset, -own_update, own_new]))
        gru.bias_ih_l0.copy_(torch.cat([bias_reset, -bias_update, bias_new]))
        gru.bias_hh_l0.zero_()
    expected, _ = gru(inputs)
    torch.testing.assert_close(made(inputs, torch.ones(3, 6)), expected[:, -1], **ROUNDING)


def test_a_step_without_attention_leaves_the_state() -> None:
    made, inputs = AUGRU(4), torch.randn(2, 5, 4)
    attention = torch.rand(2, 5)
    attention[:, 2] = 0
    without = [0, 1, 3, 4]
    found = made(inputs, attention)
    torch.testing.assert_close(found, made(inputs[:, without], attention[:, without]), **ROUNDING)


def test_the_auxiliary_loss_is_that_of_its_definition() -> None:
    interests, history = torch.randn(3, 4, 2), torch.randn(3, 4, 2)
    lengths = torch.tensor([4, 2, 3])
    is_read = torch.arange(4) < lengths.unsqueeze(1)
    expected = 0.0
    for e in range(3):
        other = (e - 1) % 3
        for vectors, end, label in ((history[e], lengths[e], 1), (history[other], None, 0)):
            last = int(lengths[e]) if end is not None else int(min(lengths[e], lengths[other]))
            terms = [
                torch.nn.functional.binary_cross_entropy_with_logits(
                    interests[e, t] @ vectors[t + 1], torch.tensor(float(label))
                )
                for t in range(last - 1)
            ]
            expected += float(torch.stack(terms).mean())
    found = float(next_loss_sum(interests, history, is_read))
    assert found == pytest.approx(expected, rel=1e-5)


def test_only_the_most_recent_behaviours_are_read(make, draw) -> None:
    model, tables = make(DIEN, max_history=3)
    batch, same = draw([6, 2]), draw([6, 2])
    for feature in ("item_history", "category_history"):
        same.features[feature].values()[:3] = 0
    model.eval()
    assert torch.equal(model.score(batch, tables), model.score(same, tables))


def test_a_length_below_one_is_refused(make) -> None:
    with pytest.raises(ValueError, match="max_history must be at least 1"):
        make(DIEN, max_history=0)
