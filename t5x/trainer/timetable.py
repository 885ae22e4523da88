"""What a run does beside its steps, and when: a table of (period, action)."""

import dataclasses
from collections.abc import Callable, Collection

Action = Callable[[], object]


@dataclasses.dataclass(frozen=True)
class Entry:
    """An action of a run.

    Attributes:
      period: steps from one time to the next, counted from step 0; also at the run's end. 0 or
        None: not by period.
      action: what is done.
      steps: at these steps too.
    """

    period: int | None
    action: Action
    steps: Collection[int] = ()

    def is_due(self, step: int, last: bool) -> bool:
        """Whether the action is to be done after `step`, the run's last one or not."""
        by_period = bool(self.period) and (last or step % self.period == 0)
        return by_period or step in self.steps


class Timetable:
    """The entries of a run, in the order in which what falls on the same step is done.

    Args:
      entries: what is done, and when.
      end: step at which the run ends.
      stretch: most steps before the run looks up; the shortest period, or all steps, when None.
    """

    def __init__(self, *entries: Entry, end: int, stretch: int | None = None) -> None:
        self._entries, self.end = entries, end
        periods = [entry.period for entry in entries if entry.period]
        self._periods = [*periods, stretch or min([*periods, end or 1])]

    def next_stop(self, step: int) -> int:
        """The first step after `step` at which there is something to do or to look at."""
        stops = [(step // period + 1) * period for period in self._periods]
        for entry in self._entries:
            stops += [other for other in entry.steps if other > step]
        return min(*stops, self.end)

    def due(self, step: int, last: bool) -> list[Action]:
        """What is to be done after `step`, the run's last one or not."""
        return [entry.action for entry in self._entries if entry.is_due(step, last)]

    def is_due(self, action: Action, step: int) -> bool:
        """Whether an action of the table is done after `step`."""
        return action in self.due(step, last=step == self.end)
