"""What a retention policy may say."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from hub.domain.retention import DAYS_MIN, SINCE, Kind, Policy
from hub.facade.access import KEPT_FOR
from hub.store.load import STAYS_KEPT
from hub.store.retention import _WAYS
from hub.store.tables import metadata
from hub.trusts import TrustsError, load_directory, load_retention

SCHEMAS = Path(__file__).resolve().parents[3] / "schemas"
TRUSTS = load_directory(SCHEMAS)
POLICY = load_retention(SCHEMAS, TRUSTS)


def said(**change):
    tree = yaml.safe_load((SCHEMAS / "retention.yaml").read_text(encoding="utf-8"))
    return tree | change


def with_rule(kind, **change):
    tree = said()
    tree["ages_out"] = [rule | (change if rule["kind"] == kind else {}) for rule in tree["ages_out"]]
    return tree


def test_every_kind_has_its_start_its_floor_and_a_way_to_be_found():
    assert set(SINCE) == set(DAYS_MIN) == set(_WAYS) == set(Kind)


def test_every_table_ages_out_or_is_kept_for_ever_and_the_policy_says_which():
    never = [table for kept in POLICY.never for table in kept.tables]
    ages = {way.table.name for way in _WAYS.values()}
    assert sorted(never) == sorted(set(never))
    assert set(never) | ages == set(metadata.tables)
    assert not set(never) & ages


def test_the_book_is_never_let_go():
    never = {table for kept in POLICY.never for table in kept.tables}
    assert {"audit_batch", "audit_act", "audit_node", "audit_checkpoint", "transfer_history"} <= never


@pytest.mark.parametrize("kind", [Kind.MESSAGE_OF_TRANSFER, Kind.CONTENT_OF_TRANSFER, Kind.NEWS])
def test_nothing_goes_while_a_party_may_still_read_it(kind):
    assert timedelta(days=DAYS_MIN[kind]) >= KEPT_FOR
    with pytest.raises(ValidationError, match="at least 30 days"):
        Policy.model_validate(with_rule(kind, days=29))


@pytest.mark.parametrize("kind", [Kind.MESSAGE_ALONE, Kind.CONTENT_ALONE])
def test_nothing_goes_while_a_request_may_still_come_for_it(kind):
    assert timedelta(days=DAYS_MIN[kind]) > STAYS_KEPT
    with pytest.raises(ValidationError, match="at least 15 days"):
        Policy.model_validate(with_rule(kind, days=14))


def test_a_period_begins_where_the_hub_counts_it_from():
    with pytest.raises(ValidationError, match="is counted from: the transfer is over"):
        Policy.model_validate(with_rule(Kind.NEWS, after="it was delivered"))


@pytest.mark.parametrize(
    "tree",
    [
        said(ages_out=said()["ages_out"][1:]),
        said(ages_out=[*said()["ages_out"], said()["ages_out"][0]]),
        said(holds=[{"since": "2026-01-01", "because": "nothing named"}]),
        said(sometimes=[]),
        with_rule(Kind.RECEIPT, days=-1),
        with_rule(Kind.RECEIPT, why=""),
    ],
)
def test_what_is_no_policy(tree):
    with pytest.raises(ValidationError):
        Policy.model_validate(tree)


def test_a_file_that_cannot_be_used_lets_nothing_go(tmp_path):
    (tmp_path / "retention.yaml").write_text("ages_out: [", encoding="utf-8")
    with pytest.raises(TrustsError, match=r"retention\.yaml"):
        load_retention(tmp_path, TRUSTS)
    twice = "holds: []\n" + (SCHEMAS / "retention.yaml").read_text(encoding="utf-8")
    (tmp_path / "retention.yaml").write_text(twice, encoding="utf-8")
    with pytest.raises(TrustsError, match="there twice"):
        load_retention(tmp_path, TRUSTS)


def test_a_hold_for_a_trust_that_has_not_joined_is_a_mistake(tmp_path):
    hold = {"since": "2026-01-01", "because": "An inquiry", "trusts": ["ZZ9"]}
    (tmp_path / "retention.yaml").write_text(yaml.safe_dump(said(holds=[hold])), encoding="utf-8")
    with pytest.raises(TrustsError, match="ZZ9"):
        load_retention(tmp_path, TRUSTS)


def test_the_digest_is_that_of_what_it_says():
    assert Policy.model_validate(said()).digest == POLICY.digest
    assert Policy.model_validate(with_rule(Kind.RECEIPT, days=31)).digest != POLICY.digest


def test_what_is_older_goes():
    now = datetime(2026, 11, 23, 9, tzinfo=UTC)
    rule = POLICY.rule(Kind.RECEIPT)
    assert now - rule.before(now) == timedelta(days=rule.days)
