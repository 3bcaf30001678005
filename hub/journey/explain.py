"""What the hub makes of one message, and why: a dry run that anybody who holds the message may see.

The one place that shows a message's values beside the hub's words; nothing of it is stored or logged.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from hub.dialects import detect
from hub.domain.message import Canonical, Change, Flag, FlagCode, Kind, Received, Unmapped
from hub.domain.rejection import Disposition, Rejection
from hub.domain.trust import Directory
from hub.fhir import headers
from hub.journey.decide import Journey, understand

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Explanation:
    """One message, explained. `as_json` is its stable form: the same for the same bytes on every machine."""

    outcome: str
    """``canonical``, ``quarantined`` or ``rejected``."""
    dialect: str
    """What the message was read as; what it looks like, if it could not be read."""
    event_type: str | None
    issues: tuple[Json, ...]
    changes: tuple[Change, ...] = ()
    unmapped: tuple[Unmapped, ...] = ()
    canonical: Json | None = None
    routes: tuple[Json, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Plain data, keys in a fixed order."""
        return {
            "outcome": self.outcome,
            "dialect": self.dialect,
            "event_type": self.event_type,
            "issues": list(self.issues),
            "changes": [
                {
                    "path": each.path,
                    "before": each.before,
                    "after": each.after,
                    "rule": each.rule,
                    **({"source": each.source} if each.source else {}),
                }
                for each in self.changes
            ],
            "unmapped": [{"path": each.path, "value": each.value, "why": each.why} for each in self.unmapped],
            "canonical": self.canonical,
            "routes": list(self.routes),
        }


def explain(received: Received, journey: Journey) -> Explanation:
    """Run steps 1 and 2 on a message and say what they did. Which transfer it belongs to, only the store knows."""
    understood = understand(received, journey)
    meaning = understood.meaning
    dialect = understood.dialect or detect(received.headers.get(headers.CONTENT_TYPE, ""), received.raw).value
    if isinstance(meaning, Rejection):
        rejected = meaning.ruling.disposition is Disposition.REJECTED
        return Explanation(
            "rejected" if rejected else "quarantined",
            dialect,
            None,
            (_refusal(meaning),),
            meaning.changes,
            meaning.unmapped,
        )
    return Explanation(
        "canonical",
        dialect,
        meaning.event_type,
        tuple(map(_doubt, meaning.flags)),
        meaning.changes,
        meaning.unmapped,
        meaning.message,
        tuple(_routes(meaning, journey.directory)),
    )


def _refusal(rejection: Rejection) -> Json:
    detail = f"{rejection.detail.rstrip('.')}." if rejection.detail else ""
    said = f"{detail} {rejection.ruling.advice}".strip()
    return {
        "code": rejection.why.value,
        "severity": "error",
        "path": rejection.at,
        "message": f"{said} To be mended by: {rejection.ruling.owner}.",
    }


def _doubt(flag: Flag) -> Json:
    said = " ".join(filter(None, (_DOUBTS[flag.code], flag.detail)))
    return {"code": flag.code.value, "severity": "warning", "path": flag.path, "message": said}


_DOUBTS: dict[FlagCode, str] = {
    FlagCode.NHS_NUMBER_INVALID: "The NHS number fails its check digit; it is kept and never used to find the patient.",
    FlagCode.NHS_NUMBER_UNVERIFIED: "The sender says that the NHS number is not verified; it is not used to find the patient.",
    FlagCode.EVENT_TIME_ASSUMED: "The message does not say when it happened; the time it was received is taken.",
    FlagCode.CLOCK_SKEW: "The time lies in the future; the time it was received is taken.",
    FlagCode.MESSAGE_ID_MISSING: "Without an id of its own, the same content sent again counts as a repetition.",
    FlagCode.KEY_EMPTY: "Without a key, messages of one patient may be read out of order.",
    FlagCode.SENDER_NOT_NAMED: "Nobody is named as sender; the owner of the topic is taken.",
    FlagCode.REASON_INCONSISTENT: "Reason and status contradict each other; the status counts.",
    FlagCode.TRANSFER_AMBIGUOUS: "More than one transfer could be meant; nothing was moved.",
    FlagCode.RECORDS_DIVERGE: "An identifier belongs to somebody else already; it was not linked.",
    FlagCode.MOVED_WITHOUT_ACCEPTANCE: "The patient left before the receiver had accepted.",
    FlagCode.TIME_ZONE_ASSUMED: "A time has no offset; the trust's own clock is assumed.",
    FlagCode.ENCOUNTER_CLASS_ASSUMED: "Encounter.class is missing or not known; see the change for what is assumed.",
    FlagCode.CONTENT_TYPE_WRONG: "The header names another format than the message is in; the message counts.",
    FlagCode.CODE_UNMAPPED: "No map knows this code; it is passed on as it was sent.",
}


def _routes(canonical: Canonical, directory: Directory) -> Iterable[Json]:
    """Who would hear of it. Only a request says its receiver itself; the rest depends on the transfer it belongs to."""
    if canonical.kind is Kind.REQUEST and canonical.receiver is not None:
        yield {"to": canonical.receiver, "topic": directory[canonical.receiver].inbox_topic, "what": "news"}
    elif canonical.kind is Kind.ENCOUNTER:
        yield {"to": None, "topic": None, "what": "news, if the stay moves a transfer: its other trust"}
    else:
        yield {"to": None, "topic": None, "what": "news: the other trust of the transfer it belongs to"}
    yield {"to": canonical.trust, "topic": directory[canonical.trust].receipts_topic, "what": "receipt"}
