"""A time of day that a trust wrote without an offset, said with the one its clocks had.

FHIR wants an offset wherever there is a time of day (https://hl7.org/fhir/R4/datatypes.html#dateTime). Hospital
systems leave it out and mean the clock on the wall. Twice a year that is not plain:
 * an hour that comes twice (October): the earlier of the two instants, unless a period would end before it began;
 * an hour that does not come (March): an hour later, because the clock that said it had not been put forward.
Whether the earlier of two fits the order of other messages' events can only be seen where those are known: not here.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from zoneinfo import ZoneInfo

_LOCAL = re.compile(
    r"(?P<minute>[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2})(?P<rest>(:[0-9]{2}(\.[0-9]+)?)?)"
)


class Assumed(StrEnum):
    """What had to be assumed to say which instant was meant."""

    ZONE = "the clock of the zone"
    EARLIER = "the clock of the zone; this hour comes twice and the earlier was taken"
    LATER = "the clock of the zone; this hour comes twice and the later was taken, because the earlier is before the start"
    LATER_HOUR = "the clock of the zone; this hour does not come and an hour was added"


@dataclass(frozen=True, slots=True)
class Placed:
    """A time with its offset. Apart from an added hour, the sender's digits are untouched."""

    text: str
    assumed: Assumed


def with_offset(text: str, zone: str, *, later: bool = False) -> Placed | None:
    """The same time with the offset that ``zone`` had then; None if there is nothing to add or no such time.

    In: a FHIR dateTime or instant, and an IANA zone (``Europe/London``). A bare date has no time of day and
    stays one. ``later``: of an hour that comes twice, the second. Seconds and fraction are kept digit by digit, beyond microseconds too.
    Raises zoneinfo.ZoneInfoNotFoundError when the machine has no such zone.
    """
    parts = _LOCAL.fullmatch(text)
    if parts is None:
        return None
    try:
        wall = datetime.fromisoformat(parts["minute"])
        moment = wall.replace(tzinfo=ZoneInfo(zone), fold=int(later))
        real = moment.astimezone(UTC).astimezone(moment.tzinfo)
        twice = moment.utcoffset() != moment.replace(fold=1 - moment.fold).utcoffset()
    except (ValueError, OverflowError):
        return None  # the 30th of February, or the edge of the calendar
    if real.replace(tzinfo=None) != wall:
        assumed = Assumed.LATER_HOUR
    else:
        assumed = (Assumed.LATER if later else Assumed.EARLIER) if twice else Assumed.ZONE
    # isoformat, because strftime does not fill a year to four digits everywhere.
    minute = real.replace(tzinfo=None).isoformat(timespec="minutes")
    return Placed(minute + parts["rest"] + _offset(real), assumed)


def _offset(moment: datetime) -> str:
    """``+01:00``. To the whole minute: before 1847 London's clocks were 75 seconds behind Greenwich."""
    minutes = round((moment.utcoffset() or timedelta()).total_seconds() / 60)
    return f"{'-' if minutes < 0 else '+'}{abs(minutes) // 60:02d}:{abs(minutes) % 60:02d}"
