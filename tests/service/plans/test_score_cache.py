"""What plans take from statistics, kept by content."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from fimlora import score
from fimlora.confidence.evidence import examples_of
from fimlora_service.plans.score_cache import ScoreCache, ScoredStatistics
from support.results import make_statistics


@pytest.fixture(scope="module")
def scored():
    statistics = make_statistics()
    return ScoredStatistics(score(statistics), "sha256:1", examples_of(statistics))


class Reader:
    """Delivers scored statistics and counts how often it is asked to."""

    def __init__(self, scored):
        self.scored, self.n = scored, 0

    def __call__(self):
        self.n += 1
        return self.scored


def test_equal_content_is_read_once(scored):
    """And another key is another file."""
    cache, read = ScoreCache(), Reader(scored)

    found = [cache.get(key, read) for key in ("a", "a", "b", "a")]

    assert found == [scored] * 4
    assert read.n == 2


def test_what_was_not_used_for_longest_gives_way(scored):
    """The limit is in bytes: two of these fit."""
    cache, read = ScoreCache(2 * scored.n_bytes + 1), Reader(scored)

    for key in ("a", "b", "a", "c", "a", "b"):
        cache.get(key, read)

    assert read.n == 4  # a, b, c, and b again


def test_what_is_larger_than_the_limit_is_delivered_and_not_kept(scored):
    """A model with very many modules is still planned."""
    cache, read = ScoreCache(scored.n_bytes - 1), Reader(scored)

    assert cache.get("a", read) is cache.get("a", read) is scored
    assert read.n == 2


def test_who_asks_while_it_is_read_waits_for_it(scored):
    """A burst of plans reads a file once."""
    cache, read = ScoreCache(), Reader(scored)

    def read_slowly():
        time.sleep(0.1)
        return read()

    with ThreadPoolExecutor(8) as pool:
        found = [pool.submit(cache.get, "a", read_slowly) for _ in range(8)]

    assert [future.result() for future in found] == [scored] * 8
    assert read.n == 1


def test_no_more_are_read_at_once_than_the_limit_says(scored):
    """Each holds the sums of a file in memory."""
    cache, under_way, most = ScoreCache(n_at_once=2), [], []

    def read():
        under_way.append(1)
        most.append(len(under_way))
        time.sleep(0.02)
        under_way.pop()
        return scored

    with ThreadPoolExecutor(8) as pool:
        found = [pool.submit(cache.get, key, read) for key in range(8)]

    assert [future.result() for future in found] == [scored] * 8
    assert max(most) == 2


def test_a_file_that_cannot_be_read_leaves_nothing_behind(scored):
    """The next request tries again."""
    cache = ScoreCache()

    def fail():
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        cache.get("a", fail)
    assert cache.get("a", Reader(scored)) is scored
