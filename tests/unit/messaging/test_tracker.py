"""Only a finished prefix is committed, whatever the order in which records finish."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from headrace.messaging.tracker import PartitionTracker


class Partition(RuleBasedStateMachine):
    """Records begin in offset order (compaction leaves gaps) and finish in any."""

    def __init__(self) -> None:
        super().__init__()
        self.tracker = PartitionTracker()
        self.started: list[int] = []
        self.finished: set[int] = set()
        self.committed = 0

    @initialize(first=st.integers(0, 1 << 62))
    def begins_somewhere(self, first: int) -> None:
        self.next = first

    @rule(gap=st.integers(0, 3))
    def begin(self, gap: int) -> None:
        offset = self.next + gap
        self.next = offset + 1
        self.tracker.start(offset)
        self.started.append(offset)

    @precondition(lambda self: len(self.finished) < len(self.started))
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        offset = data.draw(st.sampled_from([o for o in self.started if o not in self.finished]))
        self.tracker.finish(offset)
        self.finished.add(offset)

    @invariant()
    def nothing_unfinished_is_committed_past(self) -> None:
        offset = self.tracker.committable
        if offset is None:
            assert not self.started
            return
        assert all(o in self.finished for o in self.started if o < offset)

    @invariant()
    def what_is_finished_is_committed_as_far_as_may_be(self) -> None:
        unfinished = [offset for offset in self.started if offset not in self.finished]
        if self.started:
            assert self.tracker.committable == (unfinished[0] if unfinished else self.started[-1] + 1)

    @invariant()
    def the_committed_offset_never_falls(self) -> None:
        offset = self.tracker.committable or 0
        assert offset >= self.committed
        self.committed = offset


TestPartition = Partition.TestCase


@given(st.permutations(range(8)))
def test_a_crash_at_any_moment_repeats_and_never_skips(order: list[int]) -> None:
    tracker = PartitionTracker()
    for offset in range(8):
        tracker.start(offset)
    done: set[int] = set()
    for offset in order:
        tracker.finish(offset)
        done.add(offset)
        again = range(tracker.committable or 0, 8)
        assert done | set(again) == set(range(8))
