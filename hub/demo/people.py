"""People who do not exist. Their NHS numbers begin with 999, which is never issued, and have right check digits.

Hospital numbers are seven digits. Two trusts give the same number to different people, as real ones do:
a number alone never says who is meant.
"""

from datetime import date, timedelta

from hub.demo.epr import Patient

TRUSTS = ("RA9", "RH8", "RK9", "RA7", "RVJ", "RX1", "RWE", "RTG", "RFS", "RNS", "R1H", "7A4")
"""The trusts at which everybody here has a hospital number."""

PATIENTS_MAX = 899_900
"""How many different patients `patient_number` can make."""

_IN_BLOCK = 9  # at least that many of a block's ten have a check digit
_HOSPITAL_NUMBERS = 10_000_000
_APART = 11  # between two trusts' numbering: person n at the first trust has the number of person n - 11 at the next


def check_digit(nine_digits: str) -> int | None:
    """The NHS number's tenth digit by modulus 11, or None where these nine cannot begin a number."""
    total = sum(int(digit) * weight for digit, weight in zip(nine_digits, range(10, 1, -1), strict=True))
    digit = (11 - total % 11) % 11
    return None if digit == 10 else digit


def _nhs_number(index: int) -> str:
    """The index-th synthetic number: nine from each block of ten that differ in the ninth digit only.

    `PATIENTS_MAX` ends before the last block: 9999999999 is in it, passes modulus 11 and means nobody.
    """
    block, place = divmod(index, _IN_BLOCK)
    starts = (f"999{block:05d}{last}" for last in range(10))
    valid = [f"{start}{digit}" for start in starts if (digit := check_digit(start)) is not None]
    return valid[place]


def _hospital_numbers(index: int) -> dict[str, str]:
    return {
        ods: f"{(4_100_000 + index + _APART * place) % _HOSPITAL_NUMBERS:07d}"
        for place, ods in enumerate(TRUSTS)
    }


def _person(index: int, family: str, given: str, birth_date: date) -> Patient:
    return Patient(family, given, birth_date, _nhs_number(index), _hospital_numbers(index))


MARSHWIGGLE = _person(0, "Marshwiggle", "Aldous", date(1948, 3, 9))
QUILLFEATHER = _person(1, "Quillfeather", "Petronella", date(1961, 11, 27))
THISTLEWICK = _person(2, "Thistlewick", "Barnaby", date(1975, 6, 14))
OAKENSHADE = _person(3, "Oakenshade", "Imogen", date(1939, 1, 30))
BRAMBLETHORPE = _person(4, "Bramblethorpe", "Cuthbert", date(1983, 8, 2))
FENNIMOSS = _person(5, "Fennimoss", "Ottoline", date(1992, 4, 18))
GOSLINGDALE = _person(6, "Goslingdale", "Ranjit", date(1957, 12, 5))
LARKENBY = _person(7, "Larkenby", "Adaeze", date(1969, 9, 21))
MOONRAKER = _person(8, "Moonraker", "Zofia", date(1951, 7, 7))
PEBBLEWORTH = _person(9, "Pebbleworth", "Tobias", date(2004, 2, 29))
SNOWCROFT = _person(10, "Snowcroft", "Mei-Lin", date(1944, 10, 11))
O_WINTERBEE = _person(11, "O'Winterbée", "Siân", date(1988, 5, 23))

PEOPLE = (
    MARSHWIGGLE,
    QUILLFEATHER,
    THISTLEWICK,
    OAKENSHADE,
    BRAMBLETHORPE,
    FENNIMOSS,
    GOSLINGDALE,
    LARKENBY,
    MOONRAKER,
    PEBBLEWORTH,
    SNOWCROFT,
    O_WINTERBEE,
)
"""The people that stories are told about."""

_YEARS = 36_500  # days between the oldest and the youngest of the crowd
_OLDEST = date(1920, 1, 1)


def patient_number(n: int) -> Patient:
    """The n-th person of the crowd, from 0: always the same for the same n, and nobody in `PEOPLE`."""
    if not 0 <= n < PATIENTS_MAX:
        raise ValueError(f"there are patients 0 to {PATIENTS_MAX - 1}")
    family = PEOPLE[n % len(PEOPLE)].family
    given = PEOPLE[n // len(PEOPLE) % len(PEOPLE)].given
    born = _OLDEST + timedelta(days=n * 7919 % _YEARS)
    return _person(len(PEOPLE) + n, family, given, born)
