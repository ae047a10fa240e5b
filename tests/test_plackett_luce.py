"""The distribution of ordered draws without replacement, against brute force over every ordered subset."""

from itertools import permutations

import numpy as np
import pytest
import torch

from maskaug.agents.plackett_luce import log_prob, sample, to_cells

M = 5
LOGITS = torch.tensor([[0.3, -1.2, 2.0, 0.0, 0.7], [-3.0, 4.0, 0.5, 0.5, -0.5]], dtype=torch.float64)


def exact(logits: torch.Tensor, drawn: tuple[int, ...]) -> float:
    """Product of softmaxes over what is left, straight from the definition."""
    weights = logits.exp().tolist()
    left, p = set(range(M)), 1.0
    for cell in drawn:
        p *= weights[cell] / sum(weights[i] for i in left)
        left.remove(cell)
    return p


def full_order(drawn: tuple[int, ...]) -> list[int]:
    return [*drawn, *(i for i in range(M) if i not in drawn)]


@pytest.mark.parametrize("k", range(1, M + 1))
def test_log_prob_is_the_product_of_softmaxes_and_sums_to_one(k: int) -> None:
    subsets = list(permutations(range(M), k))
    orders = torch.tensor([full_order(s) for s in subsets])[:, None].expand(-1, 2, -1)
    got = log_prob(LOGITS, orders, k).exp()
    expected = torch.tensor([[exact(row, s) for row in LOGITS] for s in subsets], dtype=torch.float64)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(got.sum(0), torch.ones(2, dtype=torch.float64))


def test_what_comes_after_the_first_k_does_not_matter() -> None:
    orders = torch.tensor([[[2, 0, 1, 3, 4]], [[2, 0, 4, 3, 1]]])
    first, second = log_prob(LOGITS[:1], orders, 2)
    assert first == second


def test_draws_have_their_exact_frequencies() -> None:
    k, n = 2, 20_000
    orders = sample(LOGITS.float(), n, torch.Generator().manual_seed(3))
    assert orders.shape == (n, 2, M)
    assert (orders.sort(-1).values == torch.arange(M)).all()
    subsets = list(permutations(range(M), k))
    for row in range(2):
        counts = {s: 0 for s in subsets}
        for pair in orders[:, row, :k].tolist():
            counts[tuple(pair)] += 1
        expected = np.array([exact(LOGITS[row], s) * n for s in subsets])
        observed = np.array([counts[s] for s in subsets], np.float64)
        # Rare outcomes go into one bin: the test's distribution holds for expected counts of five and more.
        rare = expected < 5
        expected = np.append(expected[~rare], expected[rare].sum())
        observed = np.append(observed[~rare], observed[rare].sum())
        keep = expected > 0
        statistic = ((observed - expected)[keep] ** 2 / expected[keep]).sum()
        degrees = torch.tensor(float(keep.sum() - 1))
        assert torch.special.gammainc(degrees / 2, torch.tensor(statistic / 2)) < 0.9999  # the chi-square's quantile


def test_draws_of_one_batch_are_independent() -> None:
    orders = sample(torch.zeros(2, M), 4000, torch.Generator().manual_seed(0))
    same = (orders[:, 0, 0] == orders[:, 1, 0]).double().mean()
    again = (orders[:-1, 0, 0] == orders[1:, 0, 0]).double().mean()
    assert abs(same - 1 / M) < 0.03
    assert abs(again - 1 / M) < 0.03


def test_gradient_is_the_hand_formula() -> None:
    logits = LOGITS[:1].clone().requires_grad_()
    drawn, k = (2, 4, 0), 3
    log_prob(logits, torch.tensor(full_order(drawn))[None, None], k).sum().backward()  # type: ignore[no-untyped-call]
    expected = torch.zeros(M, dtype=torch.float64)
    left = list(range(M))
    for cell in drawn:
        # d log softmax = one-hot − softmax over what is left.
        expected[cell] += 1
        expected[left] -= LOGITS[0, left].softmax(0)
        left.remove(cell)
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad[0], expected, rtol=1e-10, atol=1e-12)


def test_gradient_agrees_with_finite_differences() -> None:
    orders = sample(LOGITS, 3, torch.Generator().manual_seed(1))
    assert torch.autograd.gradcheck(lambda x: log_prob(x, orders, 3), LOGITS.clone().requires_grad_())


def test_extreme_scores_stay_finite() -> None:
    logits = torch.tensor([[0.0, 80.0, -80.0, 40.0, -40.0]], requires_grad=True)
    orders = torch.tensor([[[2, 4, 0, 3, 1]]])
    value = log_prob(logits, orders, 4)
    value.sum().backward()  # type: ignore[no-untyped-call]
    assert value.isfinite().all()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert (sample(logits, 10, torch.Generator().manual_seed(0))[..., :2] == torch.tensor([1, 3])).all()


def test_a_seed_means_its_draws() -> None:
    logits = torch.zeros(3, 16)
    first = sample(logits, 4, torch.Generator().manual_seed(7))
    assert torch.equal(first, sample(logits, 4, torch.Generator().manual_seed(7)))
    assert not torch.equal(first, sample(logits, 4, torch.Generator().manual_seed(8)))


def test_sampling_takes_no_gradient_and_no_global_generator() -> None:
    logits = torch.zeros(3, 16, requires_grad=True)
    before = torch.get_rng_state()
    orders = sample(logits, 2, torch.Generator().manual_seed(7))
    assert not orders.requires_grad
    assert torch.equal(before, torch.get_rng_state())


def test_to_cells_marks_the_first_k_row_by_row() -> None:
    orders = torch.tensor([[[5, 2, 0, 1, 3, 4, 6, 7, 8]]])
    cells = to_cells(orders, 2, 3)
    assert cells.tolist() == [[[[False, False, True], [False, False, True], [False, False, False]]]]
