"""A log of 1,000 entries, and everything that can be done to its export, at every position.

Whoever does it has no key, but knows the format: hashes are made anew where that helps.
"""

import re

import pytest

from hub.audit.export import checkpoint_line, entry_line, header_line
from hub.audit.hashes import leaf_hash
from hub.audit.note import sign
from hub.verifier import Kind, verify_export
from tests.harness.sealed_log import FALSE_KEY, HUB, HUB_KEY, NEXT_KEY, ORIGIN, a_log, an_entry, keys_of

pytestmark = pytest.mark.long

SIZE = 1_000
CHECKPOINTS = [1, 2, 95, 96, 192, 289, 350, 351, 480, 640, 777, 900, 998, 1000]
LOG = a_log(SIZE, CHECKPOINTS)
EXPORT = LOG.export()
LEAF_AT = [at for at, line in enumerate(EXPORT) if line.startswith(b'{"hash"')]
"""Where in the export each leaf's line is."""
CHECKPOINT_AT = [at for at, line in enumerate(EXPORT) if line.startswith(b'{"checkpoint"')]
EVERY = range(SIZE)


def kinds_of(lines, keys=HUB, old=None):
    """What is found in it; and it is never intact."""
    report = verify_export(lines, keys, old)
    assert report.intact is False
    assert report.findings
    return report.findings


def places(findings, kind):
    return [finding.leaf for finding in findings if finding.kind is kind]


def segment_of(leaf):
    """Between which checkpoints it was sealed."""
    after = next(size for size in CHECKPOINTS if size > leaf)
    before = max([size for size in CHECKPOINTS if size <= leaf], default=0)
    return before, after


def within(finding, leaf):
    return finding.leaf is not None and finding.leaf <= leaf < (finding.upto or finding.leaf + 1)


def numbered(leaf, index):
    return re.sub(rb"^\{\"leaf\":\d+", b'{"leaf":%d' % index, leaf)


def sealed(leaf):
    """The line as if this leaf had been sealed so."""
    return entry_line(leaf_hash(leaf), leaf)


def numbered_anew(lines, index):
    """These lines with their leaves numbered from ``index``, and the checkpoints as they are."""
    anew = []
    for line in lines:
        if line.startswith(b'{"hash"'):
            anew.append(sealed(numbered(line[63:-2], index)))
            index += 1
        else:
            anew.append(line)
    return anew


def replaced(lines, at, line):
    return [*lines[:at], line, *lines[at + 1 :]]


FORGED = LOG.leaves[0].replace(b'"RA9"', b'"RXX"')


def test_untouched_it_is_intact():
    report = verify_export(EXPORT, HUB)

    assert report.intact
    assert ((), 0, SIZE, SIZE, len(CHECKPOINTS)) == (
        report.findings, report.first, report.size, report.proved, report.checkpoints,
    )  # fmt: skip


def test_the_first_checkpoint_that_can_be_made_from_any_part_of_it_is_intact():
    for first in [*CHECKPOINTS, 0, 3, 500, 999]:
        for old in [None, 0, 1, 3, 96, 351, 500, 1000]:
            assert verify_export(LOG.export(first, SIZE, old), HUB).intact
        for size in CHECKPOINTS:
            if size >= first and (size > first or size in LOG.notes):
                assert verify_export(LOG.export(first, size), HUB).intact


@pytest.mark.parametrize("part", range(4))
def test_a_flipped_bit_is_found_at_its_entry(part):
    """Bits all over each line; its line and no other."""
    for leaf in EVERY[part::4]:
        at, line = LEAF_AT[leaf], EXPORT[LEAF_AT[leaf]]
        for place in {(5 + leaf * 7) % 63, 64 + leaf * 5 % 275}:
            flipped = bytearray(line)
            flipped[place] ^= 1 << (leaf + place) % 8
            if flipped[place] == 10:
                continue  # then it is two lines, and not this attack
            findings = kinds_of(replaced(EXPORT, at, bytes(flipped)))
            assert [(Kind.ALTERED, leaf, at + 1)] == [(each.kind, each.leaf, each.line) for each in findings]


def test_a_changed_entry_with_its_old_hash_is_found_exactly():
    for leaf, at in enumerate(LEAF_AT):
        changed = entry_line(leaf_hash(LOG.leaves[leaf]), LOG.leaves[leaf].replace(b'"RA9"', b'"RXX"'))
        report = verify_export(replaced(EXPORT, at, changed), HUB)
        assert [(Kind.ALTERED, leaf, at + 1)] == [
            (each.kind, each.leaf, each.line) for each in report.findings
        ]
        assert SIZE == report.proved


def test_a_changed_entry_with_a_new_hash_is_found_between_its_checkpoints():
    for leaf, at in enumerate(LEAF_AT):
        changed = sealed(LOG.leaves[leaf].replace(b'"RA9"', b'"RXX"'))
        (finding,) = kinds_of(replaced(EXPORT, at, changed))
        assert (Kind.ALTERED, *segment_of(leaf)) == (finding.kind, finding.leaf, finding.upto)


def test_a_deleted_entry_is_missed():
    for leaf, at in enumerate(LEAF_AT):
        (finding,) = kinds_of(EXPORT[:at] + EXPORT[at + 1 :])
        assert (Kind.MISSING, leaf) == (finding.kind, finding.leaf)


def test_a_deleted_entry_is_missed_when_the_others_are_numbered_anew():
    """In which segment; which one it was, nothing in the export can say."""
    for leaf in EVERY:
        at = LEAF_AT[leaf]
        (finding,) = kinds_of(EXPORT[:at] + numbered_anew(EXPORT[at + 1 :], leaf))
        assert Kind.MISSING is finding.kind
        if segment_of(leaf)[1] == SIZE:
            assert SIZE - 1 == finding.leaf
            assert "any after 997" in finding.message
        else:
            assert segment_of(leaf) == (finding.leaf, finding.upto)


def test_an_inserted_entry_is_found():
    for leaf, at in enumerate(LEAF_AT):
        for place in {at, at + leaf % 2}:  # before the one whose number it took, and after it
            lines = [*EXPORT[:place], sealed(numbered(FORGED, leaf)), *EXPORT[place:]]
            report = verify_export(lines, HUB)
            (finding,) = report.findings
            assert (Kind.ADDED, leaf, place + 1) == (finding.kind, finding.leaf, finding.line)
            assert SIZE == report.proved


@pytest.mark.parametrize("part", range(4))
def test_an_inserted_entry_is_found_when_the_others_are_numbered_anew(part):
    for leaf in EVERY[part::4]:
        at = LEAF_AT[leaf]
        lines = [*EXPORT[:at], sealed(numbered(FORGED, leaf)), *numbered_anew(EXPORT[at:], leaf + 1)]
        (finding,) = kinds_of(lines)
        assert (Kind.ADDED, leaf, at + 1) == (finding.kind, finding.leaf, finding.line)


def test_a_doubled_entry_is_found():
    for leaf, at in enumerate(LEAF_AT):
        (finding,) = kinds_of([*EXPORT[: at + 1], *EXPORT[at:]])
        assert (Kind.ADDED, leaf, at + 2) == (finding.kind, finding.leaf, finding.line)
        if leaf % 5:
            continue
        elsewhere = LEAF_AT[(leaf + 333) % SIZE]
        (finding,) = kinds_of([*EXPORT[:elsewhere], EXPORT[at], *EXPORT[elsewhere:]])
        assert (Kind.ADDED, leaf, elsewhere + 1) == (finding.kind, finding.leaf, finding.line)


def test_swapped_neighbours_are_found():
    for leaf in EVERY[:-1]:
        lines = list(EXPORT)
        one, other = LEAF_AT[leaf], LEAF_AT[leaf + 1]
        lines[one], lines[other] = lines[other], lines[one]
        moved = places(kinds_of(lines), Kind.REORDERED)
        assert {leaf, leaf + 1} & {*moved}


def test_entries_swapped_far_apart_are_found_both():
    for leaf in EVERY:
        other = (leaf + 333) % SIZE
        lines = list(EXPORT)
        lines[LEAF_AT[leaf]], lines[LEAF_AT[other]] = lines[LEAF_AT[other]], lines[LEAF_AT[leaf]]
        findings = kinds_of(lines)
        assert {leaf, other} <= {*places(findings, Kind.REORDERED)}
        assert {Kind.REORDERED} == {finding.kind for finding in findings}


def test_a_cut_off_tail_is_found():
    for leaf, at in enumerate(LEAF_AT):
        (finding,) = kinds_of(EXPORT[:at])
        assert (Kind.TRUNCATED, leaf, SIZE) == (finding.kind, finding.leaf, finding.upto)
        if leaf % 5 == 0:  # in the middle of a line
            (finding,) = kinds_of([*EXPORT[:at], EXPORT[at][:-10]])
            assert (Kind.TRUNCATED, leaf) == (finding.kind, finding.leaf)


def test_a_cut_off_tail_is_found_when_the_header_says_so_too():
    """Unless it is cut at a checkpoint: that export is true, and only an old checkpoint shows what is not in it."""
    kept = LOG.notes[SIZE]
    for leaf, at in enumerate(LEAF_AT):
        lines = [header_line(ORIGIN, 0, leaf, []), *EXPORT[1:at]]
        if leaf in CHECKPOINTS:
            assert verify_export(lines, HUB).intact
        else:
            (finding,) = kinds_of(lines)
            assert (Kind.TRUNCATED, leaf) == (finding.kind, finding.leaf)
        if leaf in CHECKPOINTS or leaf % 10 == 0:
            assert Kind.TRUNCATED in {finding.kind for finding in kinds_of(lines, old=kept)}


def test_a_cut_off_head_is_found():
    for leaf in EVERY[1:]:
        findings = kinds_of([EXPORT[0], *EXPORT[LEAF_AT[leaf] :]])
        missing = next(finding for finding in findings if finding.kind is Kind.MISSING)
        assert (0, leaf) == (missing.leaf, missing.upto or 1)


def test_a_checkpoint_that_is_gone_is_missed():
    for number, at in enumerate(CHECKPOINT_AT[:-1]):
        (finding,) = kinds_of(EXPORT[:at] + EXPORT[at + 1 :])
        assert (Kind.CHECKPOINT_MISSING, CHECKPOINTS[number + 1]) == (finding.kind, finding.leaf)
    (finding,) = kinds_of(EXPORT[:-1])
    assert (Kind.TRUNCATED, SIZE) == (finding.kind, finding.leaf)


def test_a_checkpoint_that_is_another_is_found():
    for number, at in enumerate(CHECKPOINT_AT):
        size = CHECKPOINTS[number]
        false_root = sign(ORIGIN, size, leaf_hash(b"another"), [FALSE_KEY])
        true_key = LOG.notes[size].splitlines()[-1].split()[-1]
        for note, kind in [
            (false_root, Kind.WRONG_KEY),
            (sign(ORIGIN, size, LOG.frontier.root(), [FALSE_KEY]), Kind.WRONG_KEY),
            (LOG.notes[size] + false_root.splitlines()[-1] + "\n", Kind.WRONG_KEY),
            (re.sub(r" \S+\n$", f" {true_key}\n", false_root), Kind.CHECKPOINT_ALTERED),
            (LOG.notes[size].replace(ORIGIN, "other.example"), Kind.WRONG_KEY),
            (LOG.notes[size].replace(f"\n{size}\n", f"\n{size + 1}\n"), Kind.CHECKPOINT_ALTERED),
            (LOG.notes[size].replace(f"\n{size}\n", f"\n0{size}\n"), Kind.CHECKPOINT_ALTERED),
            (LOG.notes[size] + LOG.notes[size].splitlines()[-1] + "\n", Kind.CHECKPOINT_ALTERED),
            (LOG.notes[size] + "\n", Kind.CHECKPOINT_ALTERED),
        ]:
            findings = kinds_of(replaced(EXPORT, at, checkpoint_line(number + 1, note)))
            assert (kind, at + 1) in {(finding.kind, finding.line) for finding in findings}


def test_a_true_checkpoint_in_another_ones_place_is_found():
    for number, at in enumerate(CHECKPOINT_AT):
        for other, size in enumerate(CHECKPOINTS):
            if other != number:
                findings = kinds_of(replaced(EXPORT, at, checkpoint_line(number + 1, LOG.notes[size])))
                assert at + 1 in {finding.line for finding in findings}


def test_a_checkpoint_that_was_moved_is_found():
    for number, at in enumerate(CHECKPOINT_AT[:-1]):
        without = EXPORT[:at] + EXPORT[at + 1 :]
        for to in range(max(1, at - 4), at + 5):
            if to != at:
                findings = kinds_of([*without[:to], EXPORT[at], *without[to:]])
                assert {Kind.REORDERED} <= {finding.kind for finding in findings}, (CHECKPOINTS[number], to)


def test_a_checkpoint_that_says_something_else_with_the_right_key_is_found():
    """Two histories, both signed: the rest of the export says which is this one."""
    for number, at in enumerate(CHECKPOINT_AT[:-1]):
        note = sign(ORIGIN, CHECKPOINTS[number], leaf_hash(b"another history"), [HUB_KEY])
        findings = kinds_of(replaced(EXPORT, at, checkpoint_line(number + 1, note)))
        assert at + 1 in {finding.line for finding in findings}


def test_an_export_signed_anew_with_another_key_is_found():
    log = a_log(SIZE, CHECKPOINTS, signers=[FALSE_KEY])

    assert [(Kind.WRONG_KEY, at + 1) for at in CHECKPOINT_AT] == [
        (finding.kind, finding.line) for finding in kinds_of(log.export())
    ]
    assert verify_export(log.export(), keys_of(FALSE_KEY)).intact


def test_a_key_that_was_replaced_signs_no_more():
    """Its public key is still given to verifiers, for what it signed in its time; whoever has stolen it can go on with nothing."""
    forged = a_log(400, [100, 200, 300], lambda n: an_entry(n) | ({"trust": "RXX"} if n == 250 else {}))
    trees = {
        size: a_log(size, (), lambda n: an_entry(n) | ({"trust": "RXX"} if n == 250 else {}))
        for size in (200, 300, 400)
    }
    for size, signers in ((200, [HUB_KEY, NEXT_KEY]), (300, [NEXT_KEY]), (400, [HUB_KEY])):
        forged.notes[size] = sign(ORIGIN, size, trees[size].frontier.root(), signers)
    [finding] = verify_export(forged.export(), keys_of(HUB_KEY, NEXT_KEY)).findings
    assert (finding.kind, finding.leaf) == (Kind.WRONG_KEY, 400)
    # A sealer that was not started again since takes over for a while: the new key is away and comes back.
    for size, signers in ((200, [HUB_KEY, NEXT_KEY]), (300, [HUB_KEY]), (400, [HUB_KEY, NEXT_KEY])):
        forged.notes[size] = sign(ORIGIN, size, trees[size].frontier.root(), signers)
    assert verify_export(forged.export(), keys_of(HUB_KEY, NEXT_KEY)).intact


def test_keys_are_replaced_without_a_gap():
    log = a_log(300, [100, 200])
    log.notes[200] = sign(ORIGIN, 200, a_log(200).frontier.root(), [HUB_KEY, NEXT_KEY])
    log.notes[300] = sign(ORIGIN, 300, log.frontier.root(), [NEXT_KEY])

    assert verify_export(log.export(), keys_of(HUB_KEY, NEXT_KEY)).intact
    assert {Kind.WRONG_KEY} == {finding.kind for finding in kinds_of(log.export(), HUB)}


def test_what_follows_the_last_checkpoint_is_found():
    for line in (EXPORT[0], EXPORT[1], EXPORT[-1], b"\n", b"{}\n", b" ", sealed(numbered(FORGED, SIZE))):
        findings = kinds_of([*EXPORT, line])
        assert len(EXPORT) + 1 == findings[0].line


def test_history_rewritten_with_the_right_key_is_found_by_whoever_kept_a_checkpoint():
    """By itself it is flawless, which is why somebody else has to keep checkpoints."""
    kept = LOG.notes[480]
    for leaf in range(0, SIZE, 23):
        rewritten = a_log(
            SIZE, CHECKPOINTS, lambda n, at=leaf: an_entry(n) | ({"trust": "RXX"} if n == at else {})
        )
        assert verify_export(rewritten.export(), HUB).intact
        report = verify_export(rewritten.export(), HUB, kept)
        against = verify_export(rewritten.export(640, SIZE, old=480), HUB, kept)
        if leaf < 480:
            for each in (report, against):
                assert [(Kind.REWRITTEN, 0, 480)] == [(one.kind, one.leaf, one.upto) for one in each.findings]
        else:  # what was not sealed yet when it was kept, it cannot speak of
            assert report.intact
            assert against.intact


def test_of_a_file_of_checkpoints_each_one_counts():
    """The sealer adds to its file, so after a history was rewritten the newest ones in it are the new history's."""
    rewritten = a_log(SIZE, CHECKPOINTS, lambda n: an_entry(n) | ({"trust": "RXX"} if n == 3 else {}))
    sizes = [size for size in CHECKPOINTS if size <= 640]
    honest = "".join(f"{LOG.notes[size]}\n" for size in sizes)
    report = verify_export(EXPORT, HUB, honest)
    assert (report.intact, report.findings) == (True, ())
    grown = f"{honest}{rewritten.notes[SIZE]}\n"
    assert verify_export(rewritten.export(), HUB, rewritten.notes[SIZE]).intact
    found = verify_export(rewritten.export(), HUB, grown).findings
    assert {(each.kind, each.upto) for each in found} == {
        (Kind.REWRITTEN, size) for size in sizes if size > 3
    }
    # An export that begins later is compared with those that it can be compared with, and says so if there is none.
    assert verify_export(LOG.export(700, SIZE, old=640), HUB, honest).intact
    early = f"{LOG.notes[350]}\n{LOG.notes[351]}\n"
    [finding] = verify_export(LOG.export(701, SIZE), HUB, early).findings
    assert (finding.kind, finding.leaf) == (Kind.NOT_COMPARED, 351)
    for broken in ("", "\n", honest.replace("\u2014", "-", 1), honest[:-2], honest + "x"):
        assert not verify_export(EXPORT, HUB, broken).intact
