"""A stage that is killed, while it writes too, in a loader too or in one of two ranks, ends with the same bits."""

import pytest

pytest.importorskip("wordfreq", reason="the benchmark's captions are of its words")

from benchmarks.kills import Strike, make_job, make_parents, result, run_with, strikes

STRIKES = {
    1: [Strike(0, False, True, 0.0), Strike(0, True, False, 1.0), Strike(0, False, True, 0.01)],
    2: [Strike(1, False, True, 0.0), Strike(0, True, False, 1.5), Strike(0, False, True, 0.01)],
}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("ranks", STRIKES)
def test_a_killed_stage_ends_with_the_undisturbed_bits(tmp_path, ranks):
    parents = make_parents(str(tmp_path))
    undisturbed, killed = (make_job(str(tmp_path), parents, name) for name in ("undisturbed", "killed"))
    assert run_with(undisturbed, ranks, iter(()), 0) == []
    hits = run_with(killed, ranks, iter(STRIKES[ranks]), 3)
    assert len(hits) == 3
    assert any(hit.is_writing for hit in hits)
    assert result(killed) == result(undisturbed)


def test_the_kills_of_a_seed_are_always_the_same():
    one, other, another = ([next(coming) for _ in range(9)] for coming in (strikes(seed, 2, 5.0) for seed in (0, 0, 1)))
    assert one == other != another
    assert {strike.rank for strike in one} == {0, 1}
