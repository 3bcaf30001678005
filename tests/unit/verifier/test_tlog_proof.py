"""A proof stands alone: the entry, its place, the path, the checkpoint; and every byte of it counts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub.audit.merkle import inclusion_proof
from hub.audit.proof import proof_text
from hub.verifier import Kind, verify_proof
from tests.harness.sealed_log import FALSE_KEY, HUB, HUB_KEY, ORIGIN, a_log, keys_of

LOG = a_log(100, [64])


def prove(index, size=100, log=LOG):
    return proof_text(index, log.leaves[index], inclusion_proof(index, size, log.nodes), log.notes[size])


def test_a_proof_is_in_the_form_of_the_standard():
    first, extra, index, *path, empty, origin, size, _, _, _, end = prove(57, 64).split("\n")

    assert first == "c2sp.org/tlog-proof@v1"
    assert extra.startswith("extra ")
    assert index == "index 57"
    assert len(path) == 6
    assert (empty, origin, size, end) == ("", ORIGIN, "64", "")


def test_every_entry_can_be_proved():
    for index in range(100):
        report = verify_proof(prove(index), HUB)
        assert report.intact
        assert (index, 100, ORIGIN, LOG.leaves[index]) == (
            report.index,
            report.size,
            report.origin,
            report.entry,
        )
    alone = a_log(1)
    assert verify_proof(prove(0, 1, alone), HUB).intact


@pytest.mark.parametrize("index", [0, 57, 99])
def test_a_change_of_any_byte_is_found(index):
    proof = prove(index).encode()
    for at in range(len(proof)):
        changed = bytearray(proof)
        changed[at] ^= 1 << at % 7
        report = verify_proof(bytes(changed).decode(errors="replace"), HUB)
        assert not report.intact
        assert report.findings
        assert not verify_proof((proof[:at] + proof[at + 1 :]).decode(errors="replace"), HUB).intact


def test_another_entry_place_path_or_key_proves_nothing():
    path = inclusion_proof(57, 100, LOG.nodes)
    for index, leaf, hashes in [
        (57, LOG.leaves[56], path),
        (56, LOG.leaves[57], path),
        (157, LOG.leaves[57], path),
        (57, LOG.leaves[57], path[:-1]),
        (57, LOG.leaves[57], [*path, path[0]]),
        (57, LOG.leaves[57], []),
    ]:
        (finding,) = verify_proof(proof_text(index, leaf, hashes, LOG.notes[100]), HUB).findings
        assert (Kind.ALTERED, index) == (finding.kind, finding.leaf)
    (finding,) = verify_proof(prove(57), keys_of(FALSE_KEY)).findings
    assert Kind.WRONG_KEY is finding.kind


def test_a_leaf_that_says_another_index_than_its_place_is_found():
    log = a_log(3)
    log.add(LOG.leaves[7])
    log.checkpoint([HUB_KEY])

    (finding,) = verify_proof(prove(3, 4, log), HUB).findings
    assert Kind.REORDERED is finding.kind


@given(st.text(max_size=200))
def test_any_text_has_an_answer(text):
    proof = prove(57)
    assert not verify_proof(text, HUB).intact
    assert not verify_proof(proof[:30] + text + proof[30:], HUB).intact or not text
    assert not verify_proof(proof + text, HUB).intact or not text
