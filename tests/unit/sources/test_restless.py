"""A worker that is given its partitions again and again says so, and what is to be done."""

import pytest

from hub.sources import kafka_source
from hub.sources.kafka_config import WorkerConfig
from hub.sources.kafka_source import KafkaSource
from tests.unit.sources.test_second_look import KEY, POSITION, Consumer, Positions, Topic, leave


class Log:
    def __init__(self):
        self.said = []

    def info(self, event, **bound):
        pass

    def error(self, event, **bound):
        self.said.append((event, bound["todo"]))

    warning = info


@pytest.mark.parametrize(
    ("instance", "todo"), [("ward", "HUB_WORKER_INSTANCE"), (None, "workers that come and go")]
)
async def test_partitions_that_come_and_go_without_end_are_said_once_a_minute(monkeypatch, instance, todo):
    """As when two workers have one name: each is well by itself, and hardly anything is taken in."""
    time = 0.0
    monkeypatch.setattr(kafka_source.time, "monotonic", lambda: time)
    log = Log()
    config = WorkerConfig(bootstrap_servers="none", instance=instance)
    topic = Topic(POSITION, digest="what was taken in")
    source = KafkaSource(config, {KEY[0]: "RA9"}, None, Positions(), topic, log, leave)
    for _ in range(61):
        await source.take_up(Consumer())
        time += 1.0
    assert [(event, todo in said) for event, said in log.said] == [("worker.restless", True)] * 2


async def test_restarts_of_others_are_not_said(monkeypatch):
    """Ten workers that are replaced one after the other, five seconds each."""
    time = 0.0
    monkeypatch.setattr(kafka_source.time, "monotonic", lambda: time)
    log = Log()
    topic = Topic(POSITION, digest="what was taken in")
    source = KafkaSource(
        WorkerConfig(bootstrap_servers="none"), {KEY[0]: "RA9"}, None, Positions(), topic, log, leave
    )
    for _ in range(60):
        await source.take_up(Consumer())
        time += 2.5
    assert log.said == []
