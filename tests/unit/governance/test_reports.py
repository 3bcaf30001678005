"""What is asked of the audit, as rows, as CSV and as a page: from entries that tell one story."""

import csv
import io
import re
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser

import pytest

from hub.audit.entries import Code
from hub.governance import access_page, reports
from hub.governance.csv_text import csv_text

NAMES = {
    "RA9": "Torbay and South Devon NHS Foundation Trust",
    "RH8": "Royal Devon University Healthcare NHS Foundation Trust",
    "RK9": 'O\'Brien & Sons <NHS> "Trust"',
}
MONDAY = datetime(2026, 11, 23, 9, 0, tzinfo=UTC)


def row(code, at=MONDAY, **columns):
    empty = dict.fromkeys(
        (
            "trust",
            "counterpart",
            "user_id",
            "role_id",
            "client_id",
            "person_id",
            "transfer_id",
            "event_id",
            "occurred_at",
        )
    )
    return (
        empty
        | {"entry": 1, "code": code.value, "at": at, "outcome": 0, "system": "rest", "detail": {}}
        | columns
    )


STORY = [
    row(Code.DISCLOSURE_SENT, MONDAY, trust="RA9", counterpart="RH8"),
    row(Code.DISCLOSURE_SENT, MONDAY + timedelta(hours=1), trust="RA9", counterpart="RH8"),
    row(Code.RECORD_READ, MONDAY + timedelta(hours=2), trust="RH8", user_id="u1", client_id="RH8|u1", detail={"as": "clinician"}),
    row(Code.RECORD_SEARCHED, MONDAY + timedelta(hours=3), trust="RA9", client_id="epr", detail={"as": "system"}),
    row(Code.GLASS_BROKEN, MONDAY + timedelta(hours=4), trust="RK9", user_id="u2", role_id="1111", detail={"grant": "g1", "owners": ["RA9", "RH8"], "until": "x"}),
    row(Code.RECORD_READ, MONDAY + timedelta(hours=5), trust="RK9", user_id="u2", detail={"as": "clinician", "glass_broken": True}),
    row(Code.AUDIT_READ, MONDAY + timedelta(hours=6), user_id="jsmith"),
    row(Code.TRANSFER_ACCEPTED, MONDAY + timedelta(hours=7), trust="RH8", user_id="u1"),
]  # fmt: skip


def test_who_has_seen_a_patient_is_everybody_once_for_each_way():
    rows = reports.who_has_seen(STORY, NAMES)
    assert [(r["trust"], r["how"], r["user"], r["client"], r["times"]) for r in rows] == [
        (None, "read the audit", "jsmith", None, 1),
        ("RK9", "read behind broken glass", "u2", None, 1),
        ("RK9", "broke the glass", "u2", None, 1),
        ("RA9", "found in a search", None, "epr", 1),
        ("RH8", "read", "u1", None, 1),
        ("RH8", "was told", None, None, 2),
    ]
    assert (rows[-1]["first_at"], rows[-1]["last_at"]) == (MONDAY, MONDAY + timedelta(hours=1))
    assert all(set(r) == set(reports.WHO_HAS_SEEN.columns) for r in rows)


@pytest.mark.parametrize(
    ("days", "reviewed", "must"),
    [(0, None, "waits"), (7, None, "waits"), (8, None, "overdue"), (1, "justified", "justified"), (9, "not-justified", "not-justified")],
)  # fmt: skip
def test_a_broken_glass_waits_five_working_days(days, reviewed, must):
    entries = list(STORY)
    if reviewed:
        entries.append(row(Code.GLASS_REVIEWED, MONDAY + timedelta(days=1), user_id="officer", detail={"grant": "g1", "verdict": reviewed}))  # fmt: skip
    [found] = reports.broken(entries, MONDAY + timedelta(days=days))
    assert (found["review"], found["owners"]) == (must, "RA9, RH8")
    assert found["reviewed_by"] == ("officer" if reviewed else None)
    assert reports.broken(entries, MONDAY, until=MONDAY) == []
    assert [len(reports.broken(entries, MONDAY, trust=each)) for each in ("RK9", "RA9", "RX1")] == [1, 1, 0]


def test_months_are_londons():
    assert [each.astimezone(UTC).isoformat() for each in reports.month(2026, 10)] == [
        "2026-09-30T23:00:00+00:00",
        "2026-11-01T00:00:00+00:00",
    ]
    assert reports.last_month(datetime(2027, 1, 1, tzinfo=UTC)) == reports.month(2026, 12)
    assert reports.last_month(datetime(2026, 6, 30, 23, 30, tzinfo=UTC)) == reports.month(2026, 6)


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", " =1", "＝1"])
def test_no_cell_is_a_formula(text):
    [_, cells] = csv.reader(
        io.StringIO(csv_text(["a", "b"], [{"a": text, "b": 'plain, "quoted"\nline'}]), newline="")
    )
    assert cells == [f"'{text}", 'plain, "quoted"\nline']


def test_a_csv_has_a_heading_times_in_utc_and_empty_cells():
    said = csv_text(
        ["at", "who", "times"], [{"at": MONDAY.astimezone(reports.LONDON), "who": None, "times": 3}]
    )
    assert said == "at,who,times\r\n2026-11-23T09:00:00Z,,3\r\n"


class Text(HTMLParser):
    def __init__(self):
        super().__init__()
        self.said, self.open, self.attributes = [], [], []

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, *each) for each in attrs]
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, "what is opened is closed, in order"

    def handle_data(self, data):
        self.said.append(data)


def page(entries=STORY, **more):
    text = access_page.page(entries, NAMES, number="9990000018", made_at=MONDAY, **more)
    parsed = Text()
    parsed.feed(text)
    assert parsed.open == []
    return text, " ".join(" ".join(parsed.said).split()), parsed


def test_the_page_says_to_a_patient_who_has_seen_their_record():
    text, said, parsed = page()
    assert "For the patient with the number 999 000 0018 ." in said
    assert (
        f"{NAMES['RH8']} It was sent news of your move between hospitals 2 times 23 November 2026, 10:00"
        in said
    )
    assert f"{NAMES['RH8']} A doctor, nurse or other clinician looked at your record once" in said
    assert f"{NAMES['RA9']} A computer system searched, and your record was among what was found" in said
    assert f"{NAMES['RK9']} A doctor, nurse or other clinician opened your record in an emergency" in said
    assert "The transfer hub Somebody who runs the hub looked at the list of who has seen your record" in said
    assert "for one hour" in said
    # Nobody by name, no codes, nothing for who does not know the hub.
    for each in ("u1", "u2", "jsmith", "epr", "1111", "RA9", "RH8", "disclosure", "UTC", "None"):
        assert not re.search(rf"\b{each}\b", said), each
    assert "<NHS>" not in text
    assert ("html", "lang", "en-GB") in parsed.attributes
    assert {value for tag, name, value in parsed.attributes if name == "scope"} == {"col", "row"}
    assert "@page { size: A4" in text
    assert not re.search(r"https?://|<script|<img|<link", text), "nothing is fetched"


def test_the_pages_times_are_londons():
    summer = row(
        Code.DISCLOSURE_SENT, datetime(2026, 7, 1, 23, 30, tzinfo=UTC), trust="RA9", counterpart="RH8"
    )
    assert "2 July 2026, 00:30" in page([summer])[1]


def test_the_page_of_somebody_whom_nobody_looked_at():
    said = page([], since=MONDAY, contact="<records@torbay.example>")[1]
    assert "nobody looked at your record" in said
    assert "This page lists what happened since 23 November 2026, 09:00." in said
    assert "Ask: <records@torbay.example>." in said
    assert "emergency" not in said
