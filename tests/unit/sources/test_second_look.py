"""A topic that ends below our position, and a second later no longer: a broker that had not caught up, or another topic that grew."""

import pytest

from hub.sources import kafka_source
from hub.sources.kafka_config import WorkerConfig
from hub.sources.kafka_source import KafkaSource

KEY = ("epr.ra9.events", 0)
POSITION = 100


class Topic:
    """Kafka's answers, one after the other: a race between two looks that no real broker loses on demand."""

    def __init__(self, *ends, digest):
        self.ends, self.digest = list(ends), digest

    async def bounds(self, keys):
        end = self.ends.pop(0) if len(self.ends) > 1 else self.ends[0]
        return dict.fromkeys(keys, (0, end))

    async def digests_at(self, offsets):
        return dict.fromkeys(offsets, self.digest)


class Positions:
    def __init__(self):
        self.said = []

    async def load(self, keys):
        return dict.fromkeys(keys, POSITION)

    async def last_taken(self, keys):
        return dict.fromkeys(keys, (POSITION - 1, "what was taken in"))

    async def braked(self):
        return frozenset()

    async def take_up(self, starts):
        return dict.fromkeys(starts, 1)

    async def made_anew(self, *_):
        self.said.append("made anew")

    async def out_of_reach(self, *_):
        self.said.append("out of reach")


class Consumer:
    def __init__(self):
        self.reads, self.paused = {}, []

    def assigned(self):
        return [KEY]

    async def read_from(self, starts):
        self.reads |= starts

    async def pause(self, keys):
        self.paused = list(keys)


class Silent:
    def info(self, event, **bound):
        pass

    warning = error = info


def leave(code):
    raise AssertionError(code)


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    monkeypatch.setattr(kafka_source, "_SECOND_LOOK_S", 0)


@pytest.mark.parametrize("running", [False, True])
@pytest.mark.parametrize(
    ("ends", "digest", "said", "reads"),
    [
        ([60, 150], "what was taken in", [], True),
        ([60, 150], "something else", ["made anew"], False),
        ([60, 60], "", ["out of reach"], False),
    ],
)
async def test_what_grew_between_two_looks_is_read_only_if_it_is_the_old_one(
    ends, digest, said, reads, running
):
    positions, consumer = Positions(), Consumer()
    topic = Topic(*([POSITION] if running else []), *ends, digest=digest)
    source = KafkaSource(
        WorkerConfig(bootstrap_servers="none"), {KEY[0]: "RA9"}, None, positions, topic, Silent(), leave
    )
    if running:
        topic.digest = "what was taken in"
    await source.take_up(consumer)
    if running:
        topic.digest = digest
        await source._look_for_topics_made_anew({KEY})

    assert positions.said == said
    assert source.next_offset(KEY) == (POSITION if reads else None)
    assert consumer.paused == ([] if reads else [KEY])
