"""Who gets what of a message: a table of author and reader."""

import itertools

import pytest

from hub.domain.transfer import Party
from hub.journey.disclose import resources_for

MESSAGE = ({"fullUrl": "urn:uuid:1", "resource": {"resourceType": "ServiceRequest"}},)
CROSSES = {(Party.SENDER, Party.RECEIVER), (Party.RECEIVER, Party.SENDER)}


@pytest.mark.parametrize(("author", "reader"), list(itertools.product(Party, Party)))
def test_only_the_two_ends_get_anything_and_only_of_each_other(author, reader):
    shown = resources_for(MESSAGE, author, reader, sensitive=False)
    assert shown == (MESSAGE if (author, reader) in CROSSES else ())
