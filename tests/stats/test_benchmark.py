"""The simulation benchmark: its parts run and find what is planted, with few draws."""

from benchmarks import statistics as simulated


def test_conditional_test_keeps_its_size_where_only_the_count_matters() -> None:
    made = simulated.pairs_of_columns(simulated.Draws(2, 50), 100, "1 to 20", "hump", 0.05, False, 0.0)
    from orchestrator.stats.conditional import conditional_association

    rates = [(conditional_association(x, y, c[:, None]).p < 0.05).mean() for x, y, c in made]
    assert max(rates) < 0.08


def test_policy_intervals_cover_without_discordant_pairs() -> None:
    least, wrong = simulated.policies(40)
    assert least > 0.85  # a bootstrap of pairs covers 33 to 79 %
    assert wrong < 0.12
