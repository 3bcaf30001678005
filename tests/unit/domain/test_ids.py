"""Identifiers: how they are written, and when two mean the same."""

import uuid
from datetime import UTC, datetime, timedelta

import nhs_number
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub.demo.people import patient_number
from hub.domain.ids import parse_nhs_number, parse_ods, time_ordered_id

moments = st.datetimes(datetime(1971, 1, 1), datetime(9999, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 - hypothesis wants it so


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("RA9", "RA9"),
        (" rh801 ", "RH801"),
        ("R", None),
        ("RA9RA9X", None),
        ("RA-9", None),
        ("", None),
        (None, None),
        (9, None),
        ("RÄ9", None),
    ],
)
def test_ods_codes(text, code):
    assert parse_ods(text) == code


@pytest.mark.parametrize("text", ["9990000018", "999 000 0018", "999-000-0018", "\t999\u00a00000018\n"])
def test_an_nhs_number_in_any_spacing(text):
    number = parse_nhs_number(text)

    assert number.digits == "9990000018"
    assert number == parse_nhs_number("9990000018")


@pytest.mark.parametrize("text", ["", "999", "99900000180", "999000001X", "٩٩٩٠٠٠٠٠١٨", "not known"])
def test_what_is_no_nhs_number_is_not_valid(text):
    assert not parse_nhs_number(text).valid


@pytest.mark.parametrize("digit", "0123456789")
def test_repeated_digits_are_no_number_though_some_pass_modulus_11(digit):
    number = parse_nhs_number(digit * 10)

    assert (number.valid, number.repeated) == (False, True)


@given(st.integers(0, 899_899), st.integers(0, 9), st.integers(1, 9))
def test_one_wrong_digit_is_always_found(n, place, off):
    right = patient_number(n).nhs_number
    wrong = right[:place] + str((int(right[place]) + off) % 10) + right[place + 1 :]

    assert parse_nhs_number(right).valid
    assert not parse_nhs_number(wrong).valid


@given(st.integers(0, 10**10 - 1) | st.integers(3_112_999_000, 3_113_001_000) | st.integers(0, 100_000_100))
def test_a_check_digit_is_judged_as_the_package_judges_it(number):
    digits = f"{number:010d}"
    checked = f"{digits[:9]}{nhs_number.calculate_checksum(digits[:9])}"[:10]

    for each in (digits, checked):
        found = parse_nhs_number(each)
        assert found.valid == (nhs_number.is_valid(each) and not found.repeated)


@given(st.text())
def test_reading_an_nhs_number_never_fails(text):
    parse_nhs_number(text)


@given(moments, st.lists(st.text(), max_size=3))
def test_a_time_ordered_id_is_a_uuid_of_version_7_and_always_the_same(at, parts):
    found = uuid.UUID(time_ordered_id(at, *parts))

    assert (found.version, found.variant) == (7, uuid.RFC_4122)
    assert str(found) == time_ordered_id(at, *parts)
    assert found.int >> 80 == int(at.timestamp() * 1000)


@given(moments, moments)
def test_ids_sort_by_their_time(one, other):
    if other - one >= timedelta(milliseconds=2):
        assert time_ordered_id(one, "z") < time_ordered_id(other, "a")


def test_other_parts_give_other_ids():
    at = datetime(2026, 11, 23, tzinfo=UTC)

    assert (
        len({time_ordered_id(at, *parts) for parts in ((), ("a",), ("b",), ("a", "b"), ("ab",), ("a", 1))})
        == 6
    )
