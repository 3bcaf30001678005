"""Whoever reads an incident at night reads what to do about it, with commands that there are."""

import re

from typer.main import get_command

from hub.cli import app
from hub.domain.incident import ADVICE, IncidentKind


def test_each_kind_says_what_is_to_be_done():
    assert set(ADVICE) == set(IncidentKind)


def test_the_commands_that_it_names_are_there():
    named = {
        words
        for advice in ADVICE.values()
        for words in re.findall(r"`hub ([a-z -]+?)(?: --[a-z]+)*`", advice)
    }
    assert "resend" in named
    for words in named:
        at = get_command(app)
        for word in words.split():
            at = at.commands[word]
