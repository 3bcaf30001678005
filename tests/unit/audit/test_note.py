"""Keys and checkpoints: the example of Go's note package, and ours through both readers."""

import pytest

from hub.audit.note import (
    Checkpoint,
    NoteError,
    Signer,
    read_checkpoint,
    read_private_keys,
    read_signer,
    sign,
)
from hub.verifier import KeyFormatError, Kind, read_keys
from hub.verifier.note import open_checkpoint
from tests.harness.sealed_log import FALSE_KEY, HUB, HUB_KEY, NEXT_KEY, ORIGIN, keys_of

ROOT = bytes(range(32))


def test_the_example_of_the_note_package_has_the_same_key_and_signature():
    signer = read_signer("PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz")
    text = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"

    assert signer.vkey == "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
    assert (signer.key_id + signer.sign(text)).hex() == (
        "c74f20a3f64992e052f541bf49f7dcbc8010c5506d885ba92cbafca40704959227348b8652060dd451580b6a5948d5e02afa9fa9d9e0"
        "a2da5165be8a13a472c81c099c03"
    )


def test_a_checkpoint_is_three_lines_and_a_signature():
    note = sign(ORIGIN, 5, ROOT, [HUB_KEY])

    assert note.startswith(
        "hub.example/audit\n5\nAAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n\n\u2014 hub.example/audit "
    )
    assert note == sign(ORIGIN, 5, ROOT, [HUB_KEY])
    assert Checkpoint(ORIGIN, 5, ROOT) == read_checkpoint(note)
    assert ((ORIGIN, 5, ROOT, HUB.keys()), []) == open_checkpoint(note, HUB)


def test_while_a_key_is_replaced_two_sign_and_neither_signature_can_be_taken_away():
    note = sign(ORIGIN, 5, ROOT, [NEXT_KEY, HUB_KEY])
    both = keys_of(HUB_KEY, NEXT_KEY)

    assert note == sign(ORIGIN, 5, ROOT, [HUB_KEY, NEXT_KEY, HUB_KEY])
    assert open_checkpoint(note, both) == ((ORIGIN, 5, ROOT, both.keys()), [])
    head, first, second, _ = note.rsplit("\n", 3)
    for less in (f"{head}\n{first}\n", f"{head}\n{second}\n", f"{head}\n{second}\n{first}\n"):
        _, faults = open_checkpoint(less, both)
        assert [Kind.CHECKPOINT_ALTERED] == [fault.kind for fault in faults]


def test_who_has_only_one_of_two_keys_is_told_that_the_other_is_unknown():
    checkpoint, faults = open_checkpoint(sign(ORIGIN, 5, ROOT, [HUB_KEY, NEXT_KEY]), HUB)

    assert (ORIGIN, 5, ROOT, HUB.keys()) == checkpoint
    assert [Kind.WRONG_KEY] == [fault.kind for fault in faults]


def test_an_unknown_key_proves_nothing_even_under_the_same_name():
    checkpoint, faults = open_checkpoint(sign(ORIGIN, 5, ROOT, [FALSE_KEY]), HUB)

    assert checkpoint is None
    assert [Kind.WRONG_KEY] == [fault.kind for fault in faults]


@pytest.mark.parametrize(
    "note",
    [
        "", "\n", "a\n5\n\n", "a\n05\n" + "A" * 43 + "=\n\n\u2014 a AAAA\n", "a\n5\n" + "A" * 42 + "B=\n\n\u2014 a AA==\n",
        "a\n5\n" + "A" * 43 + "=\nmore\n\n\u2014 a AAAA\n", "a\n5\n" + "A" * 43 + "=\n\n\u2014 a AA\n", "\ud800", "\u2014 \ud800 x\n",
    ],
)  # fmt: skip
def test_what_is_not_in_form_is_no_checkpoint(note):
    checkpoint, faults = open_checkpoint(note, HUB)

    assert checkpoint is None
    assert faults


def test_keys_come_back_from_their_lines():
    assert HUB_KEY == read_signer(HUB_KEY.private_line)
    assert [HUB_KEY, NEXT_KEY] == read_private_keys(
        f"# now\n{HUB_KEY.private_line}\n\n{NEXT_KEY.private_line}\n"
    )
    assert "seed" not in repr(HUB_KEY)
    assert len(read_keys(f"# from March\n{HUB_KEY.vkey}\n\n{NEXT_KEY.vkey}\n")) == 2


@pytest.mark.parametrize(
    "line",
    ["", "hub", "PRIVATE+KEY+hub+00000000+AA==", HUB_KEY.vkey, HUB_KEY.private_line[:-4], "x" + HUB_KEY.private_line,
     HUB_KEY.private_line.replace("audit+", "other+")],
)  # fmt: skip
def test_what_is_not_a_private_key_is_refused(line):
    with pytest.raises(NoteError):
        read_signer(line)


@pytest.mark.parametrize(
    "text",
    ["", "# nothing\n", "hub", "hub+00000000+AA==", HUB_KEY.private_line, HUB_KEY.vkey[:-4], "\ud800+\ud800+\ud800",
     HUB_KEY.vkey.replace("audit+", "other+")],
)  # fmt: skip
def test_what_is_not_a_public_key_is_refused(text):
    with pytest.raises(KeyFormatError):
        read_keys(text)


def test_names_origins_and_roots_must_fit_the_form():
    for name in ("", "a b", "a+b", "a\nb", "a\u00a0b"):
        with pytest.raises(NoteError):
            Signer(name, bytes(32))
    with pytest.raises(NoteError):
        Signer("hub", bytes(31))
    for origin, root in (("", ROOT), ("a\nb", ROOT), ("a", ROOT[:31])):
        with pytest.raises(NoteError):
            sign(origin, 1, root, [HUB_KEY])
    with pytest.raises(NoteError):
        sign(ORIGIN, 1, ROOT, [])
    for note in ("", "a\n1\n\n\n", "a\nb\nc\nd\ne\n", "a\n01\n" + "A" * 43 + "=\n\n\n"):
        with pytest.raises(NoteError):
            read_checkpoint(note)
