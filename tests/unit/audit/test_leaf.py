"""The bytes of a leaf: one form, nothing left out, nothing the same that is not."""

import json
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub.audit.entries import AuditEntry, Code, Outcome
from hub.audit.leaf import FIELDS, apart, leaf_bytes, said_bytes

AT = datetime(2026, 3, 1, 9, 10, tzinfo=UTC)
TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=8)
TIMES = st.datetimes(timezones=st.sampled_from([UTC, timezone(timedelta(hours=1))]))
DETAIL = st.dictionaries(
    TEXT,
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**63), 2**63)
        | st.floats(allow_nan=False, allow_infinity=False)
        | TEXT,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
        max_leaves=5,
    ),
    max_size=3,
)
WORDS = (
    "trust",
    "counterpart",
    "event_id",
    "person_id",
    "transfer_id",
    "request_id",
    "user_id",
    "role_id",
    "client_id",
)
OPTIONAL = dict.fromkeys(WORDS, TEXT) | {"occurred_at": TIMES}
ENTRIES = st.fixed_dictionaries(
    {
        "entry": st.integers(0, 2**53),
        "code": st.sampled_from([code.value for code in Code]),
        "at": TIMES,
        "outcome": st.sampled_from([0, 4, 8, 12]),
        "system": TEXT,
        "detail": DETAIL,
    },
    optional=OPTIONAL,
)


def read_back(leaf):
    """Index and fields, as somebody who has nothing but the leaf would have them."""
    fields = json.loads(leaf)
    index = fields.pop("leaf")
    assert fields.pop("v") == 1
    for name in ("at", "occurred_at"):
        if name in fields:
            fields[name] = datetime.fromisoformat(fields[name])
    return index, fields


def test_an_entry_as_it_is_written():
    fields = {
        "entry": 7, "code": Code.DISCLOSURE_SENT, "at": AT, "outcome": Outcome.SUCCESS, "trust": "RA9", "system": "hub",
        "event_id": None, "detail": {"b": 1, "a": {"d": "\u00e9", "c": 2.5}},
    }  # fmt: skip

    assert (
        leaf_bytes(12, fields)
        == (
            '{"leaf":12,"v":1,"entry":7,"code":"disclosure-sent","at":"2026-03-01T09:10:00.000000Z","outcome":0,'
            '"trust":"RA9","system":"hub","detail":{"a":{"c":2.5,"d":"\u00e9"},"b":1}}'
        ).encode()
    )


def test_every_field_of_an_audit_entry_has_its_place():
    assert set(AuditEntry.__slots__) <= set(FIELDS)


@given(st.integers(0, 2**60), ENTRIES)
def test_an_entry_read_back_gives_the_same_bytes(index, fields):
    leaf = leaf_bytes(index, fields)

    assert leaf == leaf_bytes(*read_back(leaf))
    assert b"\n" not in leaf
    assert list(json.loads(leaf)) == ["leaf", "v", *(name for name in FIELDS if name in fields)]


@given(
    ENTRIES,
    st.booleans(),
    st.sampled_from(WORDS),
    st.sampled_from(['","detail":{}', "\\", '\\","detail":', ',"at":']),
)
def test_an_entry_is_taken_apart_whatever_it_says(fields, has_detail, word, text):
    """It is cut as text, so no text in it may pass for the beginning of a part."""
    detail = fields["detail"] if has_detail else None
    said = said_bytes(fields | {"detail": detail, word: text})

    code, between, found = apart(said)

    whole = json.loads(said)
    assert list(json.loads(b"{%b}" % code)) == ["code"]
    assert json.loads(b"{%b%b}" % (code, found)) == {
        name: whole[name] for name in ("code", "detail") if name in whole
    }
    assert json.loads(b"{%b}" % between) == {
        name: value for name, value in whole.items() if name not in ("code", "detail")
    }


@given(st.integers(0, 2**60), ENTRIES)
def test_distinct_entries_have_distinct_bytes(index, fields):
    """Everything can be read back from the bytes, so that two entries with the same bytes are one."""
    index_read, read = read_back(leaf_bytes(index, fields))

    assert index == index_read
    assert fields == read
    assert json.dumps(fields["detail"], sort_keys=True) == json.dumps(
        read["detail"], sort_keys=True
    )  # 1 is not 1.0


@given(ENTRIES, st.sampled_from(sorted(OPTIONAL)))
def test_an_absent_value_is_not_an_empty_one(fields, name):
    absent = leaf_bytes(1, fields | {name: None})
    empty = leaf_bytes(1, fields | {name: AT if name == "occurred_at" else ""})

    assert absent != empty
    assert absent == leaf_bytes(1, {key: value for key, value in fields.items() if key != name})


def test_the_zone_and_the_order_of_keys_make_no_difference():
    summer = timezone(timedelta(hours=1))
    fields = {"entry": 7, "code": "x", "at": AT, "detail": {"a": 1, "b": 2}}
    same = {"detail": {"b": 2, "a": 1}, "at": AT.astimezone(summer), "code": "x", "entry": 7}

    assert leaf_bytes(1, fields) == leaf_bytes(1, same)


def test_what_cannot_be_written_is_refused():
    with pytest.raises(ValueError, match="not a field"):
        leaf_bytes(1, {"entry": 7, "code": "x", "at": AT, "colour": "red"})
    with pytest.raises(ValueError, match="zone"):
        leaf_bytes(1, {"entry": 7, "code": "x", "at": AT.replace(tzinfo=None)})
