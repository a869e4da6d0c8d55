"""Experts are placed so that ranks have about as much to do, whatever experts tokens want."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from sapwood.parallel.balance import Floats, Longs, balance, in_order, pack, place, replicate

SEEDS = range(3)


def zipf(num_experts: int, seed: int, *, power: float = 1.0) -> Floats:
    """Tokens that want each expert: the r-th most wanted one is wanted 1 / r^power times as often as the first."""
    random = np.random.default_rng(seed)
    wanted: Floats = random.permutation(1e6 / np.arange(1, num_experts + 1) ** power)
    return wanted


def slowly(weights: Floats, num_places: int) -> Longs:
    """The same replicas as `replicate`, all compared each time."""
    counts = np.ones(len(weights))
    places = list(range(len(weights)))
    while len(places) < num_places:
        most = int(np.argmax(weights / counts))
        counts[most] += 1
        places.append(most)
    return np.array(places)


@pytest.mark.parametrize("seed", SEEDS)
def test_replicas_against_a_slow_twin(seed: int) -> None:
    weights = np.random.default_rng(seed).random(40)
    assert np.array_equal(replicate(weights, 64), slowly(weights, 64))


def test_no_other_numbers_of_replicas_leave_less_to_the_busiest() -> None:
    """Giving the next replica to whoever has most is the best that can be: against all ways to share 4 of them out."""
    for seed in SEEDS:
        weights = np.random.default_rng(seed).random(5) ** 3
        counts = np.bincount(replicate(weights, 9), minlength=5)
        shares = (np.array(one) + 1 for one in itertools.product(range(5), repeat=5) if sum(one) == 4)
        assert max(weights / counts) == pytest.approx(min(max(weights / share) for share in shares))


@pytest.mark.parametrize("seed", SEEDS)
def test_packing_is_within_what_greed_guarantees(seed: int) -> None:
    """As many items in each bin; the busiest bin has no more than the mean and one item more."""
    weights = np.random.default_rng(seed).random(48)
    bins = pack(weights, 8)
    assert sorted(itertools.chain(*bins)) == list(range(48)) and {len(one) for one in bins} == {6}
    loads = [sum(weights[one]) for one in bins]
    assert max(loads) <= np.mean(loads) + weights.max()


@pytest.mark.parametrize("num_ranks", [8, 16, 32, 64])
def test_skewed_demand_is_balanced(num_ranks: int) -> None:
    """256 experts that are wanted as by Zipf's law, with a replica for each rank: DeepSeek-V3's numbers."""
    for seed in SEEDS:
        tokens = zipf(256, seed)
        placing = place(tokens, num_places=256 + num_ranks, num_ranks=num_ranks)
        before, after = in_order(256, num_ranks).balance(tokens), placing.balance(tokens)
        assert after > 0.9 and after > before
        assert sorted(set(placing.experts_P.tolist())) == list(range(256))
        assert placing.loads(tokens).sum() == pytest.approx(tokens.sum()), "nothing is lost"


def test_what_was_measured_holds_for_what_comes() -> None:
    """Placed by a sample of tokens, ranks are balanced for others of the same kind."""
    random, shares = np.random.default_rng(0), zipf(64, 1) / zipf(64, 1).sum()
    seen, comes = random.multinomial(20_000, shares), random.multinomial(20_000, shares)
    placing = place(seen, num_places=80, num_ranks=8)
    assert placing.balance(comes) > 0.9 > in_order(64, 8).balance(comes)


def test_groups_stay_on_one_node() -> None:
    tokens = zipf(64, 2)
    placing = place(tokens, num_places=96, num_ranks=8, num_groups=8, num_nodes=4)
    nodes = placing.experts_P.reshape(4, -1) // 8
    for one, other in itertools.combinations(nodes, 2):
        assert not set(one.tolist()) & set(other.tolist())
    assert all(len(set(one.tolist())) == 2 for one in nodes)
    assert placing.balance(tokens) > in_order(64, 8).balance(tokens)


def test_groups_that_nodes_cannot_share_mean_nothing() -> None:
    tokens = zipf(12, 0)
    apart = place(tokens, num_places=16, num_ranks=4, num_groups=3, num_nodes=2)
    assert np.array_equal(apart.experts_P, place(tokens, num_places=16, num_ranks=4).experts_P)


@pytest.mark.parametrize(
    ("places", "ranks", "nodes", "says"), [(9, 2, 1, "divide"), (8, 3, 1, "divide"), (4, 2, 1, "fit")]
)
def test_what_cannot_be(places: int, ranks: int, nodes: int, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        place(np.ones(8), num_places=places, num_ranks=ranks, num_nodes=nodes)


def test_balance_of_nothing() -> None:
    assert balance(np.zeros(4)) == 1.0 and balance(np.array([1, 1, 2])) == pytest.approx(2 / 3)
