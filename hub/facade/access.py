"""Who may read what of a transfer: one table for trusts, one for roles; the lesser holds. Who may *do* what is the lifecycle's
(`hub.domain.transfer`) and the roles' (`hub.domain.roles`), whichever door is used.

Source: DOMAIN, 5.4. A trust's user or system never gets more than its trust, but for a clinician who breaks the glass.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import IntEnum, StrEnum

from hub.domain.ids import OdsCode
from hub.domain.roles import Role
from hub.domain.transfer import ENDED, State, Transfer
from hub.domain.trust import Directory
from hub.store.book import Scope

KEPT_FOR = timedelta(days=30)
"""How long after its end a transfer that did not arrive is more than a state for the receiver."""


class Sees(IntEnum):
    """Each includes what is before it."""

    NOTHING = 0
    """Not even that it exists: 404."""
    STATUS = 1
    """The Task: who asked whom, when, how it stands and why. No request, no patient beyond the number."""
    MINIMUM = 2
    """Who the patient is, and of the request what a bed or a journey is planned by: no note, no history, no documents."""
    CLINICAL = 3
    """The request and the patient too, as `hub.journey.disclose` shows them to this party."""


class End(StrEnum):
    """Which end of the transfer a trust is."""

    SENDER = "sender"
    RECEIVER = "receiver"
    NEITHER = "neither"


class Phase(StrEnum):
    """What a transfer has come to, as far as reading depends on it."""

    DRAFT = "draft"
    """Or what was one to its end: the receiver was never asked."""
    OPEN = "open"
    REFUSED = "refused"
    ERROR = "entered in error"
    ARRIVED = "completed"
    ENDED = "ended without arrival"
    LONG_ENDED = "ended without arrival, thirty days ago"


_S, _C, _N = Sees.STATUS, Sees.CLINICAL, Sees.NOTHING

READING: Mapping[End, Mapping[Phase, Sees]] = {
    # What it sent and what was decided on it stays its own.
    End.SENDER: dict.fromkeys(Phase, _C),
    End.RECEIVER: {
        Phase.DRAFT: _N,
        Phase.OPEN: _C,
        Phase.REFUSED: _S,
        Phase.ERROR: _S,
        Phase.ARRIVED: _C,
        Phase.ENDED: _C,
        Phase.LONG_ENDED: _S,
    },
    End.NEITHER: dict.fromkeys(Phase, _N),
}


MOST: Mapping[Role, Sees] = {
    Role.SYSTEM: Sees.CLINICAL,
    Role.CLINICIAN: Sees.CLINICAL,
    Role.BED_MANAGER: Sees.MINIMUM,
    Role.TRANSPORT: Sees.MINIMUM,
    Role.GOVERNANCE: Sees.STATUS,
    Role.JOINT_GOVERNANCE: Sees.STATUS,
}
"""The most that each role sees, whatever its trust may."""

MAY_BREAK_THE_GLASS = frozenset({Role.CLINICIAN})


@dataclass(frozen=True, slots=True)
class Reader:
    """Who reads: a trust, in a role. ``broken`` are the hub's ids of patients for whom the glass is broken at the moment."""

    trust: OdsCode
    role: Role = Role.SYSTEM
    broken: frozenset[str] = frozenset()


class Audit(StrEnum):
    """How much of the audit a role sees."""

    NOTHING = "nothing"
    OWN_ACTS = "its trust's own acts"
    OWN_TRUST = "its trust's patients, and what its trust did or was told"
    TRUSTS_THAT_AGREED = "the same of all trusts that opened their audits to each other"


AUDIT: Mapping[Role, Audit] = {
    Role.SYSTEM: Audit.OWN_ACTS,
    Role.CLINICIAN: Audit.NOTHING,
    Role.BED_MANAGER: Audit.NOTHING,
    Role.TRANSPORT: Audit.NOTHING,
    Role.GOVERNANCE: Audit.OWN_TRUST,
    Role.JOINT_GOVERNANCE: Audit.TRUSTS_THAT_AGREED,
}


def audit_scope(reader: Reader, directory: Directory) -> Scope | None:
    """What the reader may see of the audit; None: nothing, whatever is asked."""
    match AUDIT[reader.role]:
        case Audit.OWN_ACTS:
            return Scope(frozenset({reader.trust}), own_acts_only=True)
        case Audit.OWN_TRUST:
            return Scope(frozenset({reader.trust}))
        case Audit.TRUSTS_THAT_AGREED:
            return Scope(directory.joint_with(reader.trust))
        case Audit.NOTHING:
            return None


def sees(transfer: Transfer, reader: Reader, now: datetime) -> Sees:
    """What the reader may read of this transfer at ``now`` (UTC)."""
    phase = phase_of(transfer, now)
    if transfer.person_id in reader.broken and phase is not Phase.DRAFT:
        return Sees.CLINICAL
    return min(READING[end_of(transfer, reader.trust)][phase], MOST[reader.role])


def end_of(transfer: Transfer, trust: OdsCode) -> End:
    if trust == transfer.sender:
        return End.SENDER
    return End.RECEIVER if trust == transfer.receiver else End.NEITHER


def phase_of(transfer: Transfer, now: datetime) -> Phase:
    if not transfer.was_asked:
        return Phase.DRAFT
    if transfer.state in _PHASE:
        return _PHASE[transfer.state]
    if transfer.state not in ENDED:
        return Phase.OPEN
    long_ago = (transfer.changed_at or transfer.requested_at) <= now - KEPT_FOR
    return Phase.LONG_ENDED if long_ago else Phase.ENDED


_PHASE: Mapping[State, Phase] = {
    State.DRAFT: Phase.DRAFT,
    State.REJECTED: Phase.REFUSED,
    State.ENTERED_IN_ERROR: Phase.ERROR,
    State.COMPLETED: Phase.ARRIVED,
}
