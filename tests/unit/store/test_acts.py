"""What is sealed together is stored together, and comes back as the leaves that were hashed."""

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from hub.audit.leaf import FIELDS, as_leaf, leaf_bytes, said_bytes
from hub.store import acts
from hub.store.waiting import BATCH_MAX, Waiting
from tests.unit.audit.test_leaf import ENTRIES

WRITTEN = st.lists(st.tuples(ENTRIES, st.integers(1, 4), st.booleans()), min_size=1, max_size=8)


def entries(written, number):
    """Entries in the order of their numbers: each some times with the same words but for its code and whom it went to, with a gap
    before it or none.
    """
    for fields, times, gap in written:
        number += gap
        for nth in range(times):
            own = {"code": f"code-{nth}", "counterpart": "RH8" if nth % 2 else None}
            yield Waiting(number, said_bytes({**fields, **own, "entry": None}))
            number += 1


@given(WRITTEN, st.integers(0, 2**50), st.integers(0, 3 * BATCH_MAX))
def test_every_entry_comes_back_as_the_leaf_that_was_hashed(written, first, number):
    waiting = list(entries(written, number))
    hashes = [bytes([nth % 256]) * 32 for nth in range(len(waiting))]

    rows = [dict(zip(acts.COLUMNS, each, strict=True)) for each in acts.records(first, waiting, hashes)]

    found = [entry for row in rows for entry in acts.entries(row)]
    assert [
        (
            each["leaf_index"],
            each["hash"],
            leaf_bytes(each["leaf_index"], {name: each[name] for name in FIELDS}),
        )
        for each in found
    ] == [
        (leaf, hash_, as_leaf(leaf, each.entry, each.said))
        for leaf, (each, hash_) in enumerate(zip(waiting, hashes, strict=True), first)
    ]
    assert len(rows) <= len(written) + len({each.entry // BATCH_MAX for each in waiting})


def test_an_act_is_of_one_batch():
    """Which batches are sealed shows by the numbers of the acts."""
    said = said_bytes({"code": "routed", "at": datetime(2026, 7, 1, tzinfo=UTC), "outcome": 0, "detail": {}})
    waiting = [Waiting(number, said) for number in range(BATCH_MAX - 2, BATCH_MAX + 3)]

    rows = list(acts.records(7, waiting, [b"h" * 32] * 5))

    assert [(leaf, entry, len(hashes)) for leaf, entry, hashes, *_ in rows] == [
        (7, BATCH_MAX - 2, 2 * 32),
        (9, BATCH_MAX, 3 * 32),
    ]
