"""The line of progress while experiments are measured: which of them, how long it still takes, what came out last."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from tqdm import tqdm

from .. import terminal
from .duration import in_words

REDRAWN_S = 1.0
USUAL_COLUMNS, USUAL_ROWS = 80, 20
FORMAT = "{percentage:3.0f}%|{bar}| {desc}"  # the bar takes what the words leave, and what is too long is cut off


class Progress:
    """One line, redrawn in place each second while a process of its own measures; nothing where there is no terminal.

    Args:
        experiments: of each task that is to be measured, in the order of the experiments.
    """

    def __init__(self, experiments: Sequence[str]) -> None:
        self._names, self._tasks = list(dict.fromkeys(experiments)), Counter(experiments)
        self._begun: Counter[str] = Counter()
        self._now, self._result = "", ""
        self._began_s = self._task_began_s = time.monotonic()
        self._own_s = self._others_s = 0.0
        # The size is given, because on a terminal that knows none tqdm draws nothing.
        size = {"ncols": _columns() - 1, "nrows": USUAL_ROWS}
        self._bar = tqdm(bar_format=FORMAT, leave=False, disable=None, file=sys.stderr, **size)

    @property
    def shown(self) -> bool:
        """Whether there is a terminal to show it on."""
        return not self._bar.disable

    @contextlib.contextmanager
    def drawn(self) -> Iterator[None]:
        """While this lasts, the line is on the terminal."""
        over = threading.Event()

        def redraw() -> None:
            while not over.wait(REDRAWN_S):
                self._draw()

        thread = threading.Thread(target=redraw, daemon=True)
        with terminal.progress_line(self.shown):
            if self.shown:
                thread.start()
            try:
                yield
            finally:
                over.set()
                if self.shown:
                    thread.join()
                self._bar.close()

    def begins(self, experiment: str, own_s: float, others_s: Callable[[], float]) -> None:
        """A task begins.

        Args:
            own_s: estimated seconds that it takes.
            others_s: gives those of all that comes after it; asked only where the line is shown.
        """
        self._begun[experiment] += 1
        if not self.shown:
            return
        place = self._names.index(experiment) + 1
        nth = f"{self._begun[experiment]} of {self._tasks[experiment]}"
        self._now = f"experiment {place} of {len(self._names)}: {experiment} ({nth})"
        self._own_s, self._others_s, self._task_began_s = own_s, others_s(), time.monotonic()
        self._draw()

    def came_out(self, result: str) -> None:
        """A comparison has ended, with this result in a few words."""
        self._result = result
        self._draw()

    def _draw(self) -> None:
        now_s = time.monotonic()
        left_s = self._others_s + max(0.0, self._own_s - (now_s - self._task_began_s))
        last = f", last {self._result}" if self._result else ""
        self._bar.n = now_s - self._began_s
        self._bar.total = self._bar.n + left_s
        self._bar.desc = f"{self._now}, {in_words(left_s)} left{last}"
        self._bar.ncols = _columns() - 1  # in the last one some terminals go on to the next line
        self._bar.refresh()


def _columns() -> int:
    """Of the terminal now, as its window may have changed; some know no width."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or USUAL_COLUMNS
    except (OSError, ValueError):
        return USUAL_COLUMNS
