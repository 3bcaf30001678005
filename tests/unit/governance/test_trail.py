import re
from datetime import UTC, datetime, timedelta

import pytest

from hub.audit.catalogue import TRANSFER_CODE
from hub.audit.entries import Code
from hub.domain.message import FlagCode
from hub.domain.transfer import EVENT_TYPE, State, Step
from hub.governance.trail import short_name, tell

NAMES = {
    "RA9": "Torbay and South Devon NHS Foundation Trust",
    "RH8": "Royal Devon University Healthcare NHS Foundation Trust",
}
SUMMER = datetime(2026, 7, 6, 8, 10, tzinfo=UTC)  # 09:10 in London
TRANSFER = {
    "transfer_id": "t",
    "sender": "RA9",
    "receiver": "RH8",
    "state": "accepted",
    "requested_at": SUMMER,
}


def row(code, event, at, *, trust=None, counterpart=None, occurred_at=None, **detail):
    return {
        "code": code.value,
        "event_id": event,
        "at": at,
        "occurred_at": occurred_at,
        "trust": trust,
        "counterpart": counterpart,
        "detail": detail,
    }


def act(
    event, step, by, to, at, *, before, after, heard=timedelta(seconds=1), delivered=True, why="", flags=()
):
    """The entries of one accepted message."""
    code = TRANSFER_CODE[EVENT_TYPE[step]] if before else Code.TRANSFER_CREATED
    entries = [
        row(Code.MESSAGE_RECEIVED, event, at + heard, trust=by, occurred_at=at, sha256="ab12"),
        row(Code.MESSAGE_REPAIRED, event, at + heard, trust=by, occurred_at=at, flags=list(flags)),
        row(
            code,
            event,
            at + heard,
            trust=by,
            occurred_at=at,
            step=step,
            why=why,
            **{"from": before, "to": after},
        ),
        row(
            Code.ROUTED,
            event,
            at + heard,
            trust=by,
            counterpart=to,
            occurred_at=at,
            routes=[{"to": to, "topic": "x"}],
        ),
    ]
    if delivered:
        entries.append(row(Code.DISCLOSURE_SENT, event, at + heard + timedelta(minutes=1), counterpart=to))
    return entries


def asked(**more):
    return act("e1", Step.REQUEST, "RA9", "RH8", SUMMER, before=None, after="requested", **more)


def accepted(at=SUMMER + timedelta(minutes=15), **more):
    more = {"before": "requested", "after": "accepted", **more}
    return act("e2", Step.ACCEPT, "RH8", "RA9", at, why="RH8 accepted", **more)


def test_it_is_told_in_london_time_and_plain_words():
    assert list(tell(TRANSFER, [*asked(), *accepted()], NAMES)) == [
        "Transfer from Torbay and South Devon to Royal Devon, asked for on Monday 6 July 2026",
        "",
        "09:10  Torbay and South Devon asked Royal Devon to take a patient.",
        "       Royal Devon was told: delivered at 09:11.",
        "09:25  Royal Devon accepted.",
        "       Torbay and South Devon was told: delivered at 09:26.",
        "",
        "Now: Royal Devon has accepted. It has not said yet that a bed is ready.",
    ]


def test_what_has_not_been_delivered_is_not_called_delivered():
    story = "\n".join(tell(TRANSFER, asked(delivered=False), NAMES))
    assert "Royal Devon is to be told. The message has not been delivered yet." in story
    assert "delivered at" not in story


def test_it_is_told_in_the_order_in_which_it_happened_but_the_request_opens_it():
    early = accepted(SUMMER - timedelta(minutes=1), heard=timedelta(minutes=40))
    lines = list(tell(TRANSFER, [*early, *asked()], NAMES))
    assert lines[2].startswith("09:10  Torbay")
    assert lines[4] == "09:09  Royal Devon accepted."
    assert lines[5].strip() == "The hub heard of it at 09:49."


def test_another_day_has_a_heading():
    assert "Tuesday 7 July 2026:" in list(
        tell(TRANSFER, [*asked(), *accepted(SUMMER + timedelta(days=1))], NAMES)
    )


@pytest.mark.parametrize(
    ("code", "words"), [("RRNA", ": what is needed is not available in time."), ("X-9", "refused.")]
)
def test_a_refusal_has_its_reason_in_words_or_none(code, words):
    refused = act(
        "e3",
        Step.REJECT,
        "RH8",
        "RA9",
        SUMMER,
        before="requested",
        after="rejected",
        why=f"RH8 refused ({code})",
    )
    line = next(line for line in tell(TRANSFER, [*asked(), *refused], NAMES) if "refused" in line)
    assert words in line
    assert code not in line


def test_a_hazard_is_said():
    gone = act(
        "e4",
        Step.DEPART,
        "RA9",
        "RH8",
        SUMMER + timedelta(hours=1),
        before="requested",
        after="in-transit",
        flags=[FlagCode.MOVED_WITHOUT_ACCEPTANCE.value],
    )
    story = "\n".join(tell(TRANSFER, [*asked(), *gone], NAMES))
    assert "Take note: the patient left before Royal Devon had accepted." in story


def test_late_news_that_moves_nothing_is_called_that():
    late = accepted(before="completed", after="completed")
    assert any(
        "did not change how the transfer stood" in line for line in tell(TRANSFER, [*asked(), *late], NAMES)
    )


def test_a_duplicate_and_a_reading_are_told():
    again = row(Code.MESSAGE_DUPLICATE, "e9", SUMMER + timedelta(hours=1), trust="RA9", first_event_id="e1")
    read = row(Code.AUDIT_READ, None, SUMMER + timedelta(hours=2), reader="x")
    story = list(tell(TRANSFER, [*asked(), again, read], NAMES))
    assert "10:10  Torbay and South Devon sent one of its messages again. Nothing was done twice." in story
    assert story[-1] == "This record was looked at once before now, last on Monday 6 July 2026 at 11:10."


@pytest.mark.parametrize("state", list(State))
@pytest.mark.parametrize("step", list(Step))
def test_no_step_and_no_state_is_told_in_codes(step, state):
    later = act(
        "e5",
        step,
        "RH8",
        "RA9",
        SUMMER + timedelta(hours=1),
        before="requested",
        after="x",
        why="RH8 did (OTH)",
    )
    transfer = {**TRANSFER, "state": state.value}
    story = "\n".join(tell(transfer, [*asked(), *later], NAMES))
    assert not re.search(r"RA9|RH8|OTH|transfer\.|[{}]|ab12|allocate-bed", story)
    assert "Now: " in story


def test_a_trust_that_has_left_the_hub_is_not_told_as_a_code():
    assert "RH8" not in "\n".join(tell(TRANSFER, asked(), {"RA9": NAMES["RA9"]}))


def test_a_story_of_seconds_shows_seconds():
    assert any(line.startswith("09:10:00  ") for line in tell(TRANSFER, asked(), NAMES))


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("University Hospitals Plymouth NHS Trust", "University Hospitals Plymouth"),
        ("Royal Devon University Healthcare NHS Foundation Trust", "Royal Devon"),
        ("Chesterfield Royal Hospital NHS Foundation Trust", "Chesterfield Royal Hospital"),
    ],
)
def test_short_names(name, short):
    assert short_name(name) == short
