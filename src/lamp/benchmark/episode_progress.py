"""What an evaluation says while it runs: what came of each episode, the rate so far, the time left."""

from __future__ import annotations

import time
from collections import Counter

from lamp.benchmark.episodes import EpisodeRecord
from lamp.benchmark.statistics import Rate
from lamp.progress import Progress, clock


class EpisodeProgress:
    """Says on the error stream what came of each episode, and between them that they are on their way."""

    def __init__(self, done: list[EpisodeRecord], planned: int) -> None:
        self._line = Progress("evaluate", planned, "episodes", done=len(done), brief=True)
        self._planned, self._before = planned, len(done)
        self._done = len(done)
        self._started = time.monotonic()
        self._trials = Counter(record.condition for record in done)
        self._successes = Counter(record.condition for record in done if record.success)

    def tell(self, record: EpisodeRecord) -> None:
        """Says what came of an episode, and what that makes of the whole."""
        self._done += 1
        self._trials[record.condition] += 1
        self._successes[record.condition] += record.success
        rate = Rate(successes=self._successes[record.condition], trials=self._trials[record.condition])
        low, high = rate.interval
        result = "success" if record.success else "no success"
        self._line.update(self._done)
        self._line.tell(
            f"[{self._done}/{self._planned}] {record.condition} task {record.task} state {record.state}: {result} after "
            f"{record.steps} steps ({record.wall_s:.1f} s); so far {rate.successes}/{rate.trials} "
            f"({100 * rate.value:.0f}%, {100 * low:.0f} to {100 * high:.0f}){self._pace()}"
        )

    def close(self) -> None:
        """Ends it."""
        self._line.close()

    def _pace(self) -> str:
        elapsed = time.monotonic() - self._started
        hourly = 3600 * (self._done - self._before) / elapsed if elapsed > 0 else 0.0
        if not hourly:
            return ""
        return f"; {hourly:,.0f} episodes/h, {clock(3600 * (self._planned - self._done) / hourly)} left"
