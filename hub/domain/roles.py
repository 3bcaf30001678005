"""What a person who signed in is to the hub, and what each may do to a transfer (DOMAIN, 5.4)."""

from collections.abc import Iterable, Mapping
from enum import StrEnum

from hub.domain.transfer import Step


class Role(StrEnum):
    """``SYSTEM`` is a trust's record system; the others are people, by the role they chose when they signed in."""

    SYSTEM = "system"
    CLINICIAN = "clinician"
    BED_MANAGER = "bed-manager"
    TRANSPORT = "transport"
    GOVERNANCE = "governance"
    JOINT_GOVERNANCE = "joint-governance"
    """Governance on behalf of several trusts: those that opened their audit to each other."""


MAY_DO: Mapping[Role, frozenset[Step]] = {
    Role.SYSTEM: frozenset(Step),
    Role.CLINICIAN: frozenset(Step),
    Role.BED_MANAGER: frozenset({Step.RECEIVE, Step.AWAIT_BED, Step.ALLOCATE_BED, Step.RELEASE_BED}),
    Role.TRANSPORT: frozenset({Step.DEPART, Step.ARRIVE}),
    Role.GOVERNANCE: frozenset(),
    Role.JOINT_GOVERNANCE: frozenset(),
}
"""The steps each may take, of those that the lifecycle lets the trust take."""


_ALL = frozenset(Step)


def may_do(role: Role, steps: Iterable[Step]) -> bool:
    """Whether a message of this role's may take these steps. One that takes none, an update of a record, is for those who may do all."""
    taken = frozenset(steps)
    return MAY_DO[role] == _ALL or (bool(taken) and taken <= MAY_DO[role])
