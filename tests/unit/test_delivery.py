"""What an error means, and how long to wait."""

import pytest

from hub.domain.delivery import Scope, backoff_s, judge

TOPIC = "hub.ra9.inbox"


@pytest.mark.parametrize(
    ("name", "scope", "says"),
    [
        ("MessageSizeTooLargeError", Scope.RECORD, "max.message.bytes"),
        (
            "UnknownTopicOrPartitionError",
            Scope.TOPIC,
            "topic hub.ra9.inbox does not exist: run `hub topics apply`",
        ),
        ("TopicAuthorizationFailedError", Scope.TOPIC, "not authorised to write"),
        ("ProducerFenced", Scope.OWNER, "another dispatcher"),
        ("KafkaConnectionError", Scope.RECEIVER, "does not answer"),
        ("TransactionalIdAuthorizationFailed", Scope.RECEIVER, "hub.dispatcher.*"),
        ("SomethingNew", Scope.RECEIVER, "hub team"),
    ],
)
def test_an_error_says_what_it_is_about_and_who_can_mend_it(name, scope, says):
    fault = judge(name, TOPIC)

    assert fault.scope is scope
    assert says in str(fault)
    assert str(fault).startswith(name)


def test_nobody_is_sent_to_a_command_that_does_not_help():
    """`hub topics apply` makes topics, and gives nobody a permission."""
    assert "hub topics apply" not in str(judge("TopicAuthorizationFailedError", TOPIC))


@pytest.mark.parametrize("name", ["MessageSizeTooLargeError", "UnknownTopicOrPartitionError"])
def test_an_error_about_an_unknown_topic_holds_everything_back(name):
    assert judge(name).scope is Scope.RECEIVER


def test_waits_double_up_to_the_longest():
    waits = [backoff_s(n, first_s=0.5, max_s=60, jitter=0) for n in (1, 2, 3, 8, 9, 10_000)]

    assert waits == [0.5, 1, 2, 60, 60, 60]


@pytest.mark.parametrize("failures", [1, 4, 50])
def test_jitter_takes_away_at_most_half_and_adds_nothing(failures):
    plain = backoff_s(failures, first_s=1, max_s=60, jitter=0)

    assert (
        plain / 2
        < backoff_s(failures, first_s=1, max_s=60, jitter=0.999)
        < backoff_s(failures, first_s=1, max_s=60, jitter=0.5)
        < plain
    )
