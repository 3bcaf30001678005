"""Times without an offset: what the clock on the wall said, in both odd nights of the year."""

import re
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub.journey.uk_time import Assumed, with_offset

LONDON = "Europe/London"


@pytest.mark.parametrize(
    ("text", "after", "assumed"),
    [
        ("2026-01-15T09:20:00", "2026-01-15T09:20:00+00:00", Assumed.ZONE),
        ("2026-07-15T09:20:00", "2026-07-15T09:20:00+01:00", Assumed.ZONE),
        # British Standard Time: summer all year, from 1968 to 1971.
        ("1970-01-15T09:20:00", "1970-01-15T09:20:00+01:00", Assumed.ZONE),
        # The hour that comes twice, its ends and its neighbours.
        ("2026-10-25T00:59:59", "2026-10-25T00:59:59+01:00", Assumed.ZONE),
        ("2026-10-25T01:00:00", "2026-10-25T01:00:00+01:00", Assumed.EARLIER),
        ("2026-10-25T01:59:59.999", "2026-10-25T01:59:59.999+01:00", Assumed.EARLIER),
        ("2026-10-25T02:00:00", "2026-10-25T02:00:00+00:00", Assumed.ZONE),
        # The hour that does not come.
        ("2026-03-29T00:59:59", "2026-03-29T00:59:59+00:00", Assumed.ZONE),
        ("2026-03-29T01:00:00", "2026-03-29T02:00:00+01:00", Assumed.LATER_HOUR),
        ("2026-03-29T01:59:59.5", "2026-03-29T02:59:59.5+01:00", Assumed.LATER_HOUR),
        ("2026-03-29T02:00:00", "2026-03-29T02:00:00+01:00", Assumed.ZONE),
        # What the sender said is kept digit by digit.
        ("2026-01-15T09:20:00.1234567890", "2026-01-15T09:20:00.1234567890+00:00", Assumed.ZONE),
        ("2026-01-15T09:20:60", "2026-01-15T09:20:60+00:00", Assumed.ZONE),
        ("2026-01-15T09:20", "2026-01-15T09:20+00:00", Assumed.ZONE),
        # Local mean time, to the whole minute.
        ("1840-01-15T09:20:00", "1840-01-15T09:20:00-00:01", Assumed.ZONE),
    ],
)
def test_the_clock_on_the_wall(text, after, assumed):
    placed = with_offset(text, LONDON)

    assert (after, assumed) == (placed.text, placed.assumed)


@pytest.mark.parametrize(
    "text",
    ["", "soon", "2026", "2026-01", "2026-01-15", "2026-01-15T09:20:00Z", "2026-01-15T09:20:00+01:00",
     "2026-02-30T09:20:00", "2026-01-15T25:00:00", "0000-01-01T00:00:00", "2026-01-15 09:20:00"],
)  # fmt: skip
def test_what_has_no_time_of_day_or_an_offset_or_is_no_time(text):
    assert with_offset(text, LONDON) is None


def test_another_zone():
    assert with_offset("2026-07-15T09:20:00", "Atlantic/Azores").text == "2026-07-15T09:20:00+00:00"


@given(st.datetimes(datetime.fromisoformat("1900-01-01"), datetime.fromisoformat("2100-01-01")))
def test_every_time_gets_an_offset_and_saying_it_twice_adds_nothing(moment):
    text = moment.isoformat()
    placed = with_offset(text, LONDON)
    said = datetime.fromisoformat(placed.text)

    assert re.fullmatch(re.escape(text[16:]) + r"[+-]\d\d:\d\d", placed.text[16:])
    assert said.astimezone(UTC)
    assert with_offset(placed.text, LONDON) is None
    if placed.assumed is not Assumed.LATER_HOUR:
        assert said.replace(tzinfo=None) == moment


@given(st.text("0123456789-T:. Z+", max_size=30))
def test_no_text_is_too_odd(text):
    with_offset(text, LONDON)


@pytest.mark.parametrize("text", ["0001-01-01T00:00:00", "9999-12-31T23:59:59"])
@pytest.mark.parametrize("zone", [LONDON, "Asia/Tokyo", "America/New_York"])
def test_the_edges_of_the_calendar(text, zone):
    placed = with_offset(text, zone)

    assert placed is None or placed.text.startswith(text)
