"""A decimal crosses the hub with the digits it came with."""

import copy
import json
from decimal import Decimal

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub.fhir import decimals
from hub.fhir.structure import check

written = st.from_regex(r"-?(0|[1-9][0-9]{0,17})\.[0-9]{1,17}([eE][+-]?[0-9]{1,2})?", fullmatch=True)


@given(st.lists(written, min_size=1, max_size=4))
def test_every_digit_comes_out_again(texts):
    raw = '{"a":[' + ",".join(texts) + "]}"
    told = decimals.dumps(copy.deepcopy(decimals.loads(raw.encode())))
    assert [each.as_tuple() for each in json.loads(told, parse_float=Decimal, parse_int=Decimal)["a"]] == [
        Decimal(text).as_tuple() for text in texts
    ]


@given(written)
def test_it_counts_as_the_number_it_is(text):
    assert float(decimals.decimal(text)) == float(text)


@given(st.integers(-(10**30), 10**30) | st.integers(-(10**19), 10**20), written)
def test_a_whole_number_beside_a_decimal_comes_out_again_however_large(number, text):
    told = decimals.dumps(decimals.loads(f'{{"a":{number},"b":{text}}}'.encode()))
    assert json.loads(told, parse_float=Decimal)["a"] == number


@given(st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
))  # fmt: skip
def test_everything_else_comes_out_as_it_was(tree):
    raw = orjson.dumps(tree)
    told = decimals.dumps(decimals.loads(raw))
    assert json.loads(told, parse_float=Decimal) == json.loads(raw, parse_float=Decimal)


@pytest.mark.parametrize("text", ["007.50", "+1.50"])
def test_what_json_may_not_write_so_is_a_plain_number(text):
    assert decimals.dumps(decimals.decimal(text)) == orjson.dumps(float(text))


def test_the_structure_check_sees_a_number():
    observation = {"resourceType": "Observation", "status": "final", "code": {"text": "weight"}}
    sound = decimals.loads(orjson.dumps(observation)[:-1] + b',"valueQuantity":{"value":71.50}}')
    assert isinstance(sound["valueQuantity"]["value"], Decimal)
    assert check(sound) == ()
