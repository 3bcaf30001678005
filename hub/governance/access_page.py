"""Who has seen a patient's record, as a page for the patient: the answer to a subject access request (UK GDPR, article 15).

For somebody who knows nothing of the hub: plain words, organisations by name, times in London, no codes and nobody's name but the
organisations'. Prints on A4, reads well aloud and without colours. Nothing in it needs the network.
"""

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from html import escape

from hub.domain.roles import Role
from hub.governance.reports import LONDON, How, Look, Row, looks, name_of

_WHO: Mapping[str | None, str] = {
    Role.SYSTEM: "a computer system",
    Role.CLINICIAN: "a doctor, nurse or other clinician",
    Role.BED_MANAGER: "a member of staff who arranges beds",
    Role.TRANSPORT: "a member of staff who arranges or makes journeys",
    Role.GOVERNANCE: "a member of staff who checks how records are used",
    Role.JOINT_GOVERNANCE: "a member of staff who checks how records are used in several hospitals",
    None: "a member of staff",
}
_WHAT: Mapping[How, str] = {
    How.TOLD: "was sent news of your move between hospitals",
    How.READ: "looked at your record",
    How.SEARCHED: "searched, and your record was among what was found",
    How.GLASS: "opened your record in an emergency",
    How.READ_BEHIND_GLASS: "looked at your record after opening it in an emergency",
    How.AUDIT: "looked at the list of who has seen your record",
    How.MESSAGE: "looked at a message about you that the hub carried",
    How.EXPORTED: "took a copy of the list of who has seen your record",
}

_STYLE = """
@page { size: A4; margin: 20mm 18mm; }
body { font: 12pt/1.5 Arial, Helvetica, sans-serif; color: #111; background: #fff; max-width: 46em; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.7em; line-height: 1.25; }
h2 { font-size: 1.25em; margin-top: 1.6em; }
table { border-collapse: collapse; width: 100%; margin: 1em 0; }
caption { text-align: left; font-weight: bold; padding-bottom: .4em; }
th, td { border-bottom: 1px solid #767676; padding: .35em .6em .35em 0; text-align: left; vertical-align: top; }
thead { display: table-header-group; }
tr, h2 { break-inside: avoid; break-after: auto; }
h2 { break-after: avoid; }
@media print { body { margin: 0; padding: 0; max-width: none; font-size: 11pt; } }
"""


def page(
    entries: Iterable[Row],
    names: Mapping[str, str],
    *,
    number: str,
    made_at: datetime,
    since: datetime | None = None,
    until: datetime | None = None,
    contact: str = "",
) -> str:
    """The page as HTML. ``number`` is what the patient was asked for by; ``contact`` whom they can ask."""
    found = sorted(looks(entries), key=lambda each: each.at)
    return "\n".join(_lines(found, names, number, made_at, since, until, contact)) + "\n"


def _lines(
    found: list[Look],
    names: Mapping[str, str],
    number: str,
    made_at: datetime,
    since: datetime | None,
    until: datetime | None,
    contact: str,
) -> Iterator[str]:
    yield '<!DOCTYPE html>\n<html lang="en-GB">\n<head>\n<meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<title>Who has seen your record</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>"
    yield "<h1>Who has seen your record in the transfer hub</h1>"
    yield f"<p>For the patient with the number <strong>{escape(_spoken(number))}</strong>. Made on {_when(made_at)}.</p>"
    yield "<p>The transfer hub carries messages between hospitals when a patient moves from one to another. It writes down each time"
    yield f"somebody is sent something about you or looks at it. This page lists {_period(since, until)}.</p>"
    if found:
        yield from _summary(found, names)
        yield from _each(found, names)
    else:
        yield "<p><strong>Nobody was sent anything about you, and nobody looked at your record in the hub.</strong></p>"
    yield from _explained(found, contact)
    yield "</main>\n</body>\n</html>"


def _summary(found: list[Look], names: Mapping[str, str]) -> Iterator[str]:
    yield "<h2>In short</h2>\n<table>\n<caption>Organisations, and what each of them did</caption>"
    yield '<thead><tr><th scope="col">Organisation</th><th scope="col">What was done</th><th scope="col">How often</th><th scope="col">Last time</th></tr></thead>\n<tbody>'
    grouped: dict[tuple[str, str], list[Look]] = {}
    for each in found:
        grouped.setdefault((name_of(each.trust, names), _sentence(each)), []).append(each)
    for (name, sentence), several in sorted(grouped.items()):
        often = "once" if len(several) == 1 else f"{len(several)} times"
        last = _when(max(each.at for each in several))
        yield f'<tr><th scope="row">{escape(name)}</th><td>{escape(sentence)}</td><td>{often}</td><td>{last}</td></tr>'
    yield "</tbody>\n</table>"


def _each(found: list[Look], names: Mapping[str, str]) -> Iterator[str]:
    yield "<h2>Each time</h2>\n<table>\n<caption>The same, one by one, the earliest first</caption>"
    yield '<thead><tr><th scope="col">When</th><th scope="col">Organisation</th><th scope="col">What was done</th></tr></thead>\n<tbody>'
    for each in found:
        yield f"<tr><td>{_when(each.at)}</td><td>{escape(name_of(each.trust, names))}</td><td>{escape(_sentence(each))}</td></tr>"
    yield "</tbody>\n</table>"


def _explained(found: list[Look], contact: str) -> Iterator[str]:
    yield "<h2>What this page leaves out</h2>"
    yield "<p>It does not name members of staff. It lists what the hub knows: what a hospital's staff looked at in their own hospital's"
    yield "records is known to that hospital, which you can ask for it.</p>"
    if any(each.how in {How.GLASS, How.READ_BEHIND_GLASS} for each in found):
        yield "<h2>Opened in an emergency</h2>"
        yield "<p>A clinician may open the record of a patient whom their hospital does not know, for one hour, if they must treat them. They"
        yield "have to say why, the patient's hospitals are told at once, and somebody checks afterwards whether it was right.</p>"
    yield "<h2>If you have a question</h2>"
    ask = f" Ask: {escape(contact)}." if contact else " Ask the hospital that gave you this page."
    yield f"<p>Your hospital can tell you more about any line of it.{ask}</p>"
    yield "<p>If you are not content with the answer, you can complain to the Information Commissioner's Office (ico.org.uk, telephone 0303 123 1113).</p>"


def _sentence(look: Look) -> str:
    if look.how is How.TOLD:
        return f"It {_WHAT[look.how]}"
    role = look.role if look.role in _WHO else None
    if look.role is None and look.trust is None:
        return f"Somebody who runs the hub {_WHAT[look.how]}"
    who = _WHO[role]
    return f"{who[0].upper()}{who[1:]} {_WHAT[look.how]}"


def _period(since: datetime | None, until: datetime | None) -> str:
    if since and until:
        return f"what happened from {_when(since)} until {_when(until)}"
    if since:
        return f"what happened since {_when(since)}"
    return f"what happened until {_when(until)}" if until else "all of it"


def _when(at: datetime) -> str:
    here = at.astimezone(LONDON)
    return f"{here.day} {here:%B %Y}, {here:%H:%M}"


def _spoken(number: str) -> str:
    """An NHS number as people know it: 999 000 0018; a hospital's own without its system."""
    value = number.rpartition("|")[2].strip()
    digits = value.replace(" ", "").replace("-", "")
    is_nhs = len(digits) == 10 and digits.isdigit()
    return f"{digits[:3]} {digits[3:6]} {digits[6:]}" if is_nhs else value
