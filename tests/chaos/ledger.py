"""What was sent and what must have become of it: plain values. The simulation writes them, the checker reads them.

Nothing of `hub` is imported here, because the checker must owe the hub nothing.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class Sent:
    """One record that Kafka acknowledged. `expected`: the dispositions it may have, empty if any is right.

    `story` is the request number (or a name of the patient's own) that it belongs to. `news`: the event type of the
    inbox record that it must cause at `news_to`; None where it must cause none, "?" where both can be right.
    """

    trust: str
    topic: str
    partition: int
    offset: int
    message_id: str
    sha256: str
    what: str
    story: str
    attempts: int
    expected: frozenset[str]
    news: str | None = None
    news_to: str | None = None

    @property
    def place(self) -> tuple[str, int, int]:
        return (self.topic, self.partition, self.offset)


@dataclass(slots=True)
class Story:
    """One transfer as it must end: between whom, in which state. `finished`: its simulation came to the end."""

    request_number: str
    sender: str
    receiver: str
    final_state: str
    nhs_number: str
    finished: bool = False
    waited_for: str = ""


class GaveUpError(Exception):
    """The hub did not say within the patience what a hospital had to see before it could go on."""


@dataclass(slots=True)
class Journey:
    """One of the journeys as it must end. ``parties`` are who may hear of it; ``states`` how many of its transfers end in
    which; ``inboxes`` how many of its transfers are told at a hospital by these event types, in this order."""

    name: str
    parties: frozenset[str]
    states: Counter[str]
    inboxes: Counter[tuple[str, tuple[str, ...]]]
    finished: bool = False
    waited_for: str = ""


class Heard(NamedTuple):
    """One record in a hospital's inbox: whose, of which request, and what it is called."""

    to: str
    request: str
    event_type: str


Outcome = tuple[tuple[str, tuple[Heard, ...]], ...]
"""Of each message of a moment what becomes of it, and all that is heard of it."""


@dataclass(frozen=True, slots=True)
class Moment:
    """Messages (trust and id) that are sent without waiting for each other, and what may come of them; nothing else may."""

    what: str
    messages: tuple[tuple[str, str], ...]
    outcomes: tuple[Outcome, ...]


@dataclass(slots=True)
class Tale:
    """One patient's story with several requests. ``requests``: number → who asks whom; ``states``: in which each must end.

    ``secrets``: words that nothing may contain that a hospital is told.
    """

    name: str
    plot: str
    nhs_number: str
    requests: dict[str, tuple[str, str]] = field(default_factory=dict)
    states: dict[str, str] = field(default_factory=dict)
    moments: list[Moment] = field(default_factory=list)
    secrets: dict[str, set[str]] = field(default_factory=dict)
    finished: bool = False
    waited_for: str = ""


@dataclass(frozen=True, slots=True)
class Fetched:
    """One message that a hospital fetched over REST, under its number; `topic` is where it would lie otherwise."""

    seq: int
    topic: str
    key: str
    headers: dict[str, str]
    body: bytes


@dataclass(slots=True)
class Ledger:
    """All that one seed sent, and what was fetched, by trust, in order, each once."""

    trusts: tuple[str, ...]
    fetched: dict[str, list[Fetched]] = field(default_factory=dict)
    sent: list[Sent] = field(default_factory=list)
    stories: dict[str, Story] = field(default_factory=dict)
    journeys: dict[str, Journey] = field(default_factory=dict)
    tales: dict[str, Tale] = field(default_factory=dict)

    def topic(self, trust: str, purpose: str) -> str:
        """`events`, `inbox` or `receipts`: the names are part of the contract with the trusts."""
        return f"epr.{trust.lower()}.events" if purpose == "events" else f"hub.{trust.lower()}.{purpose}"

    def topics(self, purpose: str) -> list[str]:
        return [self.topic(trust, purpose) for trust in self.trusts]
