"""Thousands of exports with the same dozen checkpoints: each signature is checked once, and the answer kept."""

import pytest

from hub.verifier import note


@pytest.fixture(autouse=True, scope="module")
def signatures_are_checked_once():
    known, verifies = {}, note._verifies

    def remembered(key, signature, text):
        asked = (key.public_bytes_raw(), signature, text)
        if asked not in known:
            known[asked] = verifies(key, signature, text)
        return known[asked]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(note, "_verifies", remembered)
        yield
