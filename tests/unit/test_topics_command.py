"""`hub topics`: what its exit code says to whoever starts the services after it."""

import pytest
from typer.testing import CliRunner

from hub.cli import app
from hub.commands.terminal import settings_now
from hub.demo.broker import EmbeddedBroker
from hub.destinations import topics
from hub.destinations.topics import Row, TopicState


@pytest.mark.parametrize(
    ("state", "after_apply", "after_list"),
    [
        (TopicState.RIGHT, 0, 0),
        (TopicState.UNKNOWN, 0, 0),
        (TopicState.UNWANTED, 0, 0),
        (TopicState.DIFFERS, 0, 1),
        (TopicState.MISSING, 1, 1),
        (TopicState.FAILED, 1, 1),
    ],
)
def test_a_topic_that_is_there_keeps_no_service_from_starting(monkeypatch, state, after_apply, after_list):
    """A topic of an older hub has other settings, which nothing changes by itself, and the number of its partitions nobody should."""

    def rows(*_):
        return [Row("hub.rh8.inbox", state, "partitions 6, wanted 1")]

    monkeypatch.setattr(topics, "open_admin", lambda *_, **__: None)
    monkeypatch.setattr(topics, "apply", rows)
    monkeypatch.setattr(topics, "compare", rows)
    for command, exit_code in (("apply", after_apply), ("list", after_list)):
        done = CliRunner().invoke(app, ["topics", command, "--json"])
        assert (done.exit_code, state.value in done.output) == (exit_code, True), command


def test_the_broker_of_the_demo_cannot_be_asked_and_that_is_said(monkeypatch):
    """Where `hub send` and `hub tail` send people when something is wrong with a topic."""
    monkeypatch.setattr(topics, "_ANSWER_S", 0.5)
    monkeypatch.setattr(topics, "_CREATE_S", 0.5)
    monkeypatch.setenv("COLUMNS", "300")
    with EmbeddedBroker() as broker:
        monkeypatch.setenv("HUB_KAFKA_BOOTSTRAP_SERVERS", broker.bootstrap_servers)
        settings_now.cache_clear()
        made = CliRunner().invoke(app, ["topics", "apply", "--json"])
        broker.ensure_topics(["epr.ra9.events"])
        asked = CliRunner().invoke(app, ["topics", "list"])
        settings_now.cache_clear()
    for done in (made, asked):
        assert done.exit_code == 1
        assert "if this is the broker of `hub demo`: it cannot be asked" in done.output
