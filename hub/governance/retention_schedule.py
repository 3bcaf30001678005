"""The retention schedule as a page, from the policy that the hub goes by."""

from collections.abc import Iterator

from hub.domain.retention import Policy


def page(policy: Policy) -> Iterator[str]:
    """The lines of `deploy/governance/retention-schedule.md`."""
    yield "# Retention schedule"
    yield ""
    yield "Made by `hub governance retention-schedule` from `schemas/retention.yaml`, which is what `hub retention apply` goes by; a test holds it to that file."
    yield "The periods are the manufacturer's proposals until the controllers have decided. The record of care is each trust's own; the hub's copy is for carrying."
    yield ""
    yield f"Policy, SHA-256: `{policy.digest}`; each `retention-applied` entry of the audit names the policy that it went by."
    yield ""
    yield "## What ages out"
    yield ""
    yield "| kind | what goes | when | why | who decides |"
    yield "|---|---|---|---|---|"
    for rule in policy.ages_out:
        days = "day" if rule.days == 1 else "days"
        yield f"| `{rule.kind}` | {rule.what} | {rule.days} {days} after {rule.after} | {rule.why} | {rule.decided_by} |"
    yield ""
    yield "Nothing goes of a transfer that is not over, of a message in quarantine, or of what was not delivered, whatever its age."
    yield ""
    yield "## What is kept for ever"
    yield ""
    yield "| what | tables | why |"
    yield "|---|---|---|"
    for kept in policy.never:
        yield f"| {kept.what} | {', '.join(f'`{name}`' for name in kept.tables)} | {kept.why} |"
    yield ""
    yield "## Orders not to destroy"
    yield ""
    if not policy.holds:
        yield "None."
    for hold in policy.holds:
        yield f"* Since {hold.since:%Y-%m-%d}: {hold.because}; {', '.join((*hold.trusts, *hold.transfers))}"
    yield ""
    yield "## What the deploying organisation decides elsewhere"
    yield ""
    yield "* Kafka keeps its own copies of events, inboxes and receipts for `HUB_TOPIC_RETENTION_DAYS`."
    yield "* Backups of the database hold what has aged out since; their age is a period like these."
    yield "* Logs hold no content and no number of a patient; their age is the log store's."
    yield "* Who received an AuditEvent (`hub.audit`, a repository) keeps it by their own schedule."
