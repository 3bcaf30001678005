"""What a message did to the transfers: what `advance` answers, and what is told and written down of it."""

from collections.abc import Iterable

from hub.domain.message import Flag, FlagCode
from hub.domain.transfer import Fact, Move, State, Step, Transfer, is_outdated
from hub.domain.value import value

_NOT_ACCEPTED = frozenset(
    {State.DRAFT, State.REQUESTED, State.RECEIVED, State.INFO_REQUESTED, State.REJECTED}
    | {State.CANCELLED, State.REDIRECTED, State.ENTERED_IN_ERROR}
)


@value
class Taken:
    """What a message did to one transfer: its fact and, of stays that were told before the transfer was known, theirs.

    ``before`` is the state that was stored; ``move`` what the message's own fact did in its place in the story.
    """

    transfer: Transfer
    before: State | None
    facts: tuple[Fact, ...]
    move: Move
    created: bool = False

    @property
    def fact(self) -> Fact:
        """The message's own."""
        return self.move.fact

    @property
    def detail(self) -> dict[str, object]:
        """What happened, for the audit."""
        return {
            "step": self.fact.step,
            "from": self.before,
            "to": self.transfer.state,
            "why": self.fact.because,
            "version": self.transfer.version,
        }

    @property
    def came_late(self) -> bool:
        """Whether something that happened after it was known before it."""
        return any(each.occurred_at > self.fact.occurred_at for each in self.transfer.facts)

    @property
    def is_outdated(self) -> bool:
        """Whether it asks for what its sender has said anew since."""
        facts = self.transfer.facts
        return (
            len(facts) > 1 and self.fact.step in {Step.REQUEST, Step.UPDATE} and is_outdated(self.fact, facts)
        )

    @property
    def moved_without_acceptance(self) -> bool:
        departs = self.fact.step is Step.DEPART and not self.transfer.inferred
        return departs and self.move.before in _NOT_ACCEPTED

    @property
    def corrects(self) -> bool:
        """Whether the state is now another than the fact by itself would have made it, or something was taken back."""
        if self.fact.step is Step.REQUEST and self.before is State.DRAFT:
            # The receiver hears of it for the first time.
            return False
        changed = self.before is not None and self.transfer.state is not self.before
        return changed and (self.fact.step is Step.RETRACT or self.move.after is not self.transfer.state)

    @property
    def is_alert(self) -> bool:
        """Both hospitals must hear of it, the one that told it too."""
        too_late = self.fact.step is Step.RETRACT and self.transfer.state is self.before
        return self.fact.step is Step.DIVERGE or self.moved_without_acceptance or too_late

    @property
    def flags(self) -> tuple[Flag, ...]:
        found = []
        if self.moved_without_acceptance:
            found.append(Flag(FlagCode.MOVED_WITHOUT_ACCEPTANCE))
        elif self.is_alert:
            found.append(Flag(FlagCode.RECORDS_DIVERGE))
        if self.created and self.transfer.inferred:
            found.append(Flag(FlagCode.TRANSFER_INFERRED))
        return tuple(found)


@value
class Advanced:
    """What was taken, per transfer. None: the message is kept as an event that moved nothing.

    ``shared`` are transfers whose receiver hears of the event although nothing moved.
    """

    taken: tuple[Taken, ...] = ()
    shared: tuple[Transfer, ...] = ()
    flags: tuple[Flag, ...] = ()


def flags_of(taken: Iterable[Taken]) -> tuple[Flag, ...]:
    return tuple(dict.fromkeys(flag for each in taken for flag in each.flags))
