"""Tables of scores for the tests of statistics and ranks."""

from collections.abc import Mapping

import numpy as np

from dgbench.leaderboard.scores import FloatArray, ScoreTable

CENTERS = ("A", "B", "C")


def table_of(values: Mapping[str, FloatArray], *, higher_is_better: bool = True, metric: str = "dsc") -> ScoreTable:
    methods, seeds, _ = next(iter(values.values())).shape
    names = ("erm", *(f"m{place}" for place in range(1, methods)))
    return ScoreTable(
        metric=metric, higher_is_better=higher_is_better, methods=names, seeds=tuple(range(seeds)), values=values
    )


def random_table(
    *, methods: int = 3, seeds: int = 5, cases: int = 12, centers: int = 3, draw: int = 0, gain: float = 0.0
) -> ScoreTable:
    """Scores around 0.6 with every part of the model; method k gains k × ``gain``."""
    random = np.random.default_rng(draw)
    gains = gain * np.arange(methods)[:, None, None]
    return table_of(
        {
            f"C{place}": 0.6
            + gains
            + 0.2 * random.standard_normal((1, 1, cases))
            + 0.02 * random.standard_normal((methods, seeds, 1))
            + 0.05 * random.standard_normal((methods, 1, cases))
            + 0.05 * random.standard_normal((methods, seeds, cases))
            for place in range(centers)
        }
    )
