"""What an index says in SQL is what the lifecycle says."""

import re

from hub.domain.transfer import ENDED
from hub.store.tables import transfer


def test_open_transfers_are_those_that_are_not_over():
    partial = [each for each in transfer.indexes if each.name.endswith("_open")]
    assert len(partial) == 2
    for each in partial:
        words = str(each.dialect_options["postgresql"]["where"])
        assert set(re.findall(r"'([a-z-]+)'", words)) == {state.value for state in ENDED}
