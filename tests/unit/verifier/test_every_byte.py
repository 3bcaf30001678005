"""Every byte of an export counts; whatever the bytes are there is an answer, and "intact" only where it is true."""

from io import BytesIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hub.audit.export import entry_line
from hub.audit.hashes import leaf_hash
from hub.audit.note import sign
from hub.verifier import Kind, verify_export
from hub.verifier.export import lines_of
from tests.harness.sealed_log import FALSE_KEY, HUB, HUB_KEY, NEXT_KEY, a_log, an_entry, keys_of

pytestmark = pytest.mark.long

BOTH = keys_of(HUB_KEY, NEXT_KEY)
LOG = a_log(66, [3, 20, 41], signers=[HUB_KEY])
LOG.notes[41] = a_log(41, signers=[HUB_KEY, NEXT_KEY]).notes[41]
KEPT = LOG.notes[3]
EXPORT = b"".join(LOG.export(first=7, old=3))
"""Some sixty entries, four hashes before them, and a checkpoint that two keys signed."""


def verified(data, keys=BOTH, old=KEPT):
    return verify_export(lines_of(BytesIO(data)), keys, old)


def claims_are_true(data, report):
    """Whatever is called intact consists of entries and checkpoints of the log, each in its place."""
    lines = data.split(b"\n")[1:]
    leaves = [line for line in lines if line.startswith(b'{"hash"')]
    entries = LOG.leaves[report.first : report.size]
    return leaves == [entry_line(leaf_hash(leaf), leaf)[:-1] for leaf in entries] and report.size in LOG.notes


def test_it_is_intact():
    assert verified(EXPORT).intact
    assert b'"old":3' in EXPORT


@pytest.mark.parametrize("part", range(4))
def test_a_change_of_any_byte_is_found(part):
    lines = {at: EXPORT.count(b"\n", 0, at) + 1 for at in range(len(EXPORT))}
    for at in range(part, len(EXPORT), 4):
        changed = bytearray(EXPORT)
        changed[at] ^= 1 << (at // 4 + at) % 8
        report = verified(bytes(changed))
        assert not report.intact, (at, bytes(changed[at - 20 : at + 20]))
        if lines[at] > 1:  # one byte, and whoever looks finds it at that line, or the one that it ran into
            assert {lines[at], lines[at] + 1} & {finding.line for finding in report.findings}, report.findings


def test_a_byte_more_or_less_is_found():
    for at in range(0, len(EXPORT), 13):
        assert not verified(EXPORT[:at] + EXPORT[at + 1 :]).intact
        assert not verified(EXPORT[:at] + EXPORT[at : at + 1] + EXPORT[at:]).intact
        assert not verified(EXPORT[:at]).intact


@given(st.binary(max_size=300))
def test_any_bytes_have_an_answer(data):
    assert not verified(data).intact
    assert not verified(EXPORT + data).intact or not data
    assert not verified(EXPORT.split(b"\n", 1)[0] + b"\n" + data).intact


@given(st.lists(st.sampled_from(EXPORT.splitlines(keepends=True)), max_size=90))
def test_any_of_its_lines_in_any_order_have_an_answer(lines):
    data = b"".join(lines)
    report = verified(data)

    assert not report.intact or claims_are_true(data, report)


PIECES = st.sampled_from(
    [
        b"\n",
        b'"',
        b"\\",
        b"{",
        b"}",
        b"0",
        b"9",
        b"=",
        b"A",
        b"\xff",
        b'"leaf":',
        b'{"checkpoint":',
        b'{"hash":"',
        b" ",
        b"\\n",
    ]
)


@settings(max_examples=400)
@given(
    st.lists(
        st.tuples(st.integers(0, len(EXPORT)), st.integers(0, 60), PIECES | st.binary(max_size=4)),
        min_size=1,
        max_size=5,
    )
)
def test_any_changes_have_an_answer_and_are_found(changes):
    data = EXPORT
    for at, length, piece in changes:
        data = data[:at] + piece + data[at + length :]
    report = verified(data)

    assert not report.intact or data == EXPORT or claims_are_true(data, report)


@settings(max_examples=200)
@given(
    st.lists(
        st.tuples(st.sampled_from("dixs"), st.integers(1, 62), st.integers(1, 62)), min_size=1, max_size=6
    )
)
def test_any_changes_of_lines_have_an_answer_and_are_found(changes):
    """Deleted, inserted, exchanged, and exchanged for one that is sealed anew."""
    lines = EXPORT.splitlines(keepends=True)
    for what, place, elsewhere in changes:
        one, other = place % len(lines), elsewhere % len(lines)
        if what == "d" and len(lines) > 2:
            del lines[one]
        elif what == "i":
            lines.insert(one, lines[other])
        elif what == "x":
            lines[one], lines[other] = lines[other], lines[one]
        else:
            leaf = lines[one][63:-2].replace(b"RA9", b"RXX")
            lines[one] = entry_line(leaf_hash(leaf), leaf)
    data = b"".join(lines)
    report = verified(data)

    assert not report.intact or data == EXPORT or claims_are_true(data, report)


@given(st.text(max_size=200))
def test_any_kept_checkpoint_has_an_answer(text):
    assert not verified(EXPORT, old=text).intact


def test_a_kept_checkpoint_is_compared_where_that_can_be_done():
    without = LOG.export(
        first=7
    )  # 7 = 4 + 2 + 1: the root at 3 cannot be had from these, that at 4 and 6 can
    for size, expected in [
        (3, [Kind.NOT_COMPARED]),
        (4, []),
        (5, [Kind.NOT_COMPARED]),
        (6, []),
        (7, []),
        (8, []),
        (50, []),
    ]:
        report = verify_export(without, BOTH, a_log(size).notes[size])
        assert expected == [finding.kind for finding in report.findings]
        other = a_log(size, entry=lambda number: an_entry(number + 1)).notes[size]
        found = [finding.kind for finding in verify_export(without, BOTH, other).findings]
        assert (expected or [Kind.REWRITTEN]) == found


def test_a_kept_checkpoint_of_another_log_another_key_or_a_larger_log_is_told():
    for note, kind in [
        (a_log(67).notes[67], Kind.TRUNCATED),
        (sign("hub.other", 3, bytes(32), [HUB_KEY]), Kind.NOT_COMPARED),
        (a_log(3, signers=[FALSE_KEY]).notes[3], Kind.WRONG_KEY),
        (KEPT.replace("\n3\n", "\n2\n"), Kind.CHECKPOINT_ALTERED),
    ]:
        (finding,) = verify_export(LOG.export(first=7, old=3), BOTH, note).findings
        assert kind is finding.kind


def test_a_long_stretch_without_a_checkpoint_does_not_fill_the_memory(monkeypatch):
    """The part that is folded away is proved by the next checkpoint all the same."""
    monkeypatch.setattr("hub.verifier.export.ITEMS_MAX", 5)
    lines = LOG.export()
    assert verify_export(lines, BOTH).intact
    for at, line in enumerate(lines[1:], start=1):
        if line.startswith(b'{"hash"'):
            leaf = line[63:-2].replace(b"RA9", b"RXX")
            (finding,) = verify_export(
                [*lines[:at], entry_line(leaf_hash(leaf), leaf), *lines[at + 1 :]], BOTH
            ).findings
            assert finding.kind is Kind.ALTERED
            assert finding.leaf in {0, 3, 20, 41}
        assert not verify_export(lines[:at] + lines[at + 1 :], BOTH).intact
        moved = lines[:at] + lines[at + 1 :]
        for to in range(1, len(lines), 7):
            assert to == at or not verify_export([*moved[:to], line, *moved[to:]], BOTH).intact


def test_an_empty_log_and_an_export_of_nothing():
    empty = a_log(0)
    assert verify_export(empty.export(), HUB).intact
    assert verify_export(LOG.export(first=66), BOTH).intact
    assert not verify_export(LOG.export(first=66)[:1], BOTH).intact
    assert not verify_export([], BOTH).intact
