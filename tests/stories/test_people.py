"""People who sign in, and systems whose trust has a sign-in of its own: whose tokens count, what each role may, and broken glass."""

import asyncio
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import orjson
import pytest
from joserfc import jwt
from joserfc.jwk import ECKey

from hub.demo.people import MARSHWIGGLE
from hub.domain.roles import MAY_DO, Role, may_do
from hub.domain.transfer import Step
from hub.domain.trust import Directory, Issuer
from hub.facade import issuers
from hub.facade.access import MOST, Sees
from hub.facade.app import make_app
from hub.fhir.systems import NHS_NUMBER
from hub.store import break_glass
from hub.store import tables as t
from tests.stories.rest import URL, System, facade_of, issue
from tests.stories.test_facade import asked, request
from tests.stories.test_journeys import ask

ISSUER = "https://sign-in.example"
ROLES = {
    "R8000": Role.CLINICIAN,
    "R0002": Role.BED_MANAGER,
    "R0003": Role.TRANSPORT,
    "R0004": Role.GOVERNANCE,
    "R0005": Role.JOINT_GOVERNANCE,
}
CODE_OF = {role: code for code, role in ROLES.items()}


class SignIn:
    """An issuer with real keys at a real address."""

    def __init__(self, address):
        self.address, self.keys, self.asked, self.down = address, [], 0, False
        self.rotate("first")

    def rotate(self, kid):
        self.key = ECKey.generate_key("P-256", {"kid": kid})
        self.keys = [self.key]

    def token(self, clock, *, key=None, **claims):
        now = int(clock().timestamp())
        said = {
            "iss": ISSUER,
            "aud": f"{URL}/fhir",
            "sub": "somebody",
            "iat": now,
            "exp": now + 300,
            **claims,
        }
        key = key or self.key
        said = {name: value for name, value in said.items() if value is not None}
        return jwt.encode({"alg": "ES256", "kid": key.kid}, said, key, algorithms=["ES256"])

    def person(self, clock, ods, role, *, level="3", **claims):
        roles = [
            {"person_roleid": "1111", "org_code": ods, "role_code": f"S0010:G0020:{CODE_OF.get(role, role)}"},
            {"person_roleid": "2222", "org_code": "X99", "role_code": "S0010:G0020:R8000"},
        ]
        said = {
            "nhsid_useruid": "555000000001",
            "selected_roleid": "1111",
            "nhsid_nrbac_roles": roles,
            "authentication_assurance_level": level,
            "scope": "openid user/*.cruds",
        }
        return self.token(clock, **said | claims)


@contextmanager
def serving():
    """The address where an issuer's keys are, over HTTP."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            sign_in.asked += 1
            body = orjson.dumps({"keys": [each.as_dict(private=False) for each in sign_in.keys]})
            self.send_response(503 if sign_in.down else 200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    sign_in = SignIn(f"http://127.0.0.1:{server.server_port}/jwks")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield sign_in
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def sign_in():
    with serving() as found:
        yield found


@pytest.fixture
def people(hub, sign_in):
    """A facade to which each trust has registered the same sign-in for people."""
    issuer = Issuer(url=ISSUER, jwks_url=sign_in.address, people=True, roles=ROLES)
    trusts = [each.model_copy(update={"issuers": (issuer,)}) for each in hub.journey.directory]
    return facade_of(hub, directory=Directory(trusts))


class Somebody(System):
    """A person at a browser, with a token from the sign-in."""

    def __init__(self, facade, token):
        self.facade, self.token = facade, token
        self.http = httpx.AsyncClient(transport=httpx.ASGITransport(make_app(facade)), base_url=URL)

    async def breaks_the_glass(self, reason, number=MARSHWIGGLE.nhs_number):
        parameters = [
            {"name": "patient", "valueIdentifier": {"system": NHS_NUMBER, "value": number}},
            {"name": "reason", "valueString": reason},
        ]
        said = {"Content-Type": "application/fhir+json"}
        body = json.dumps({"resourceType": "Parameters", "parameter": parameters})
        return await self.call("POST", "/$break-glass", headers=said, content=body)


async def test_a_clinician_of_the_receiving_hospital_reads_and_decides(hub, torbay, people, sign_in):
    system = await (await System.join(people, "RA9")).signed_in()
    transfer_id = await asked(hub, torbay, system)
    doctor = Somebody(people, sign_in.person(hub.clock, "RH8", Role.CLINICIAN))
    task = (await doctor.get(f"/Task/{transfer_id}")).json()
    assert MARSHWIGGLE.family in (await doctor.get(f"/Patient?_id={_person(task)}")).text
    hub.clock.later(minutes=1)
    said = await doctor.put(task | {"status": "accepted", "lastModified": hub.clock().isoformat()})
    hub.expected += 1
    assert (said.status_code, said.json()["status"]) == (200, "accepted")
    [entry] = await hub.audit(code="record-read", transfer_id=transfer_id)
    assert {entry["user_id"], entry["role_id"], entry["detail"]["as"]} == {
        "555000000001",
        "1111",
        "clinician",
    }


def _person(task):
    return task["for"]["reference"].removeprefix("Patient/")


#                        sees            accepts  allocates a bed
MUST = {
    Role.CLINICIAN:   (Sees.CLINICAL,  200, 200),
    Role.BED_MANAGER: (Sees.MINIMUM,   403, 200),
    Role.TRANSPORT:   (Sees.MINIMUM,   403, 403),
    Role.GOVERNANCE:  (Sees.STATUS,    403, 403),
    Role.JOINT_GOVERNANCE: (Sees.STATUS, 403, 403),
}  # fmt: skip


@pytest.mark.parametrize("role", MUST)
async def test_what_each_role_may(hub, torbay, people, sign_in, role):
    level, *answers = MUST[role]
    assert MOST[role] is level
    system = await (await System.join(people, "RA9")).signed_in()
    transfer_id = await asked(hub, torbay, system)
    somebody = Somebody(people, sign_in.person(hub.clock, "RH8", role))
    task = (await somebody.get(f"/Task/{transfer_id}")).json()
    entries = (await somebody.get("/ServiceRequest")).json().get("entry", [])
    request = entries[0]["resource"] if entries else None
    patients = (await somebody.get("/Patient")).text
    assert (request is not None) is (level >= Sees.MINIMUM)
    assert (MARSHWIGGLE.family in patients) is (level >= Sees.MINIMUM)
    if request is not None:
        assert ("reasonCode" in request) is (level is Sees.CLINICAL)
    doctor = Somebody(people, sign_in.person(hub.clock, "RH8", Role.CLINICIAN))
    for who, status, expected in (
        (somebody, "accepted", answers[0]),
        *([(doctor, "accepted", 200)] if answers[0] != 200 else []),
        (somebody, "ready", answers[1]),
    ):
        hub.clock.later(minutes=1)
        said = await who.put(task | {"status": status, "lastModified": hub.clock().isoformat()})
        hub.expected += 1
        assert said.status_code == expected, (role, status, said.text)
        if expected == 403:
            assert said.json()["issue"][0]["details"]["coding"][-1]["code"] == "role-not-allowed"
    assert (await somebody.get("/$inbox")).status_code == 403


async def test_who_may_say_that_a_patient_left_may_do_so_where_others_wait_for_them(
    hub, torbay, people, sign_in
):
    """Plymouth was asked too and is told by what the driver says. It is no step of the driver's; an alarm alone would be none for them to give."""
    bound = await ask(torbay, MARSHWIGGLE)
    waits = await ask(torbay, MARSHWIGGLE, to="RK9", number="TR-2", specialty="150")
    hub.clock.later(minutes=5)
    driver = Somebody(people, sign_in.person(hub.clock, "RA9", Role.TRANSPORT))
    left = torbay.epr.discharges(MARSHWIGGLE, encounter_number="V-1", to_site="RH801", at=hub.clock())
    said = await driver.send(left)
    hub.expected += 1
    assert said.status_code == 200, said.text
    assert [await hub.state(each) for each in (bound, waits)] == ["in-transit", "requested"]
    assert (await hub.told("RK9"))[-1] == "transfer.diverged"
    hub.clock.later(minutes=5)
    home = await driver.send(
        torbay.epr.discharges(MARSHWIGGLE, encounter_number="V-2", disposition="19", at=hub.clock())
    )
    hub.expected += 1
    assert home.status_code == 403


def test_each_step_for_each_role():
    must = {
        Role.SYSTEM: set(Step),
        Role.CLINICIAN: set(Step),
        Role.BED_MANAGER: {Step.RECEIVE, Step.AWAIT_BED, Step.ALLOCATE_BED, Step.RELEASE_BED},
        Role.TRANSPORT: {Step.DEPART, Step.ARRIVE},
        Role.GOVERNANCE: set(),
        Role.JOINT_GOVERNANCE: set(),
    }
    assert set(must) == set(MAY_DO) == set(MOST)
    for role, steps in must.items():
        for step in Step:
            assert may_do(role, [step]) is (step in steps), (role, step)
    assert not may_do(Role.TRANSPORT, [])


@pytest.mark.parametrize(
    ("claims", "why"),
    [
        ({"exp": 1}, "expired"),
        ({"aud": "https://elsewhere.example/fhir"}, "audience"),
        ({"iss": "https://nobody.example"}, "issuer"),
        ({"iat": 99_999_999_999}, "future"),
        ({"selected_roleid": None}, "role"),
        ({"selected_roleid": "2222"}, "organisation"),
        ({"authentication_assurance_level": "1"}, "assurance"),
        ({"nhsid_useruid": "\u0007"}, "subject"),
    ],
)
async def test_a_token_that_is_not_good_is_refused_and_audited(hub, people, sign_in, claims, why):
    somebody = Somebody(people, sign_in.person(hub.clock, "RH8", Role.CLINICIAN, **claims))
    assert (await somebody.get("/Task")).status_code == 401
    assert [e["detail"]["why"] for e in await hub.audit(code="auth-failed")] == [why]


async def test_whom_nobody_vouches_for_is_refused(hub, people, sign_in):
    forged = ECKey.generate_key("P-256", {"kid": "first"})
    said = {"nhsid_nrbac_roles": [{"person_roleid": "1", "org_code": "RH8", "role_code": "R8000"}], "selected_roleid": "1"}  # fmt: skip
    tokens = [
        sign_in.token(hub.clock, key=forged, scope="user/*.rs", **said),
        sign_in.person(hub.clock, "RH8", "R9999"),
        "e30.e30.",
        "not a token",
    ]
    for token in tokens:
        assert (await Somebody(people, token).get("/Task")).status_code == 401, token


async def test_who_signed_in_weakly_reads_and_does_not_decide(hub, torbay, people, sign_in):
    system = await (await System.join(people, "RA9")).signed_in()
    transfer_id = await asked(hub, torbay, system)
    doctor = Somebody(people, sign_in.person(hub.clock, "RH8", Role.CLINICIAN, level="2"))
    task = (await doctor.get(f"/Task/{transfer_id}")).json()
    said = await doctor.put(task | {"status": "accepted"})
    assert (said.status_code, issue(said)[0]) == (403, "SEND_FORBIDDEN")


async def test_an_issuer_changes_its_keys(hub, people, sign_in, monkeypatch):
    """A key that is new is fetched; one that is gone counts no more; while the issuer is away the last ones hold for a while."""
    monkeypatch.setattr(issuers, "_BETWEEN_S", 0)
    old = sign_in.person(hub.clock, "RH8", Role.CLINICIAN)
    for _ in range(3):
        assert (await Somebody(people, old).get("/Task")).status_code == 200
    assert sign_in.asked == 1
    sign_in.rotate("second")
    new = sign_in.person(hub.clock, "RH8", Role.CLINICIAN)
    assert (await Somebody(people, new).get("/Task")).status_code == 200
    assert (await Somebody(people, old).get("/Task")).status_code == 401
    sign_in.down = True
    assert (await Somebody(people, new).get("/Task")).status_code == 200
    monkeypatch.setattr(issuers, "_STALE_S", 0)
    away = await Somebody(people, new).get("/Task")
    assert (away.status_code, issue(away)[0]) == (503, "REC_UNAVAILABLE")


async def test_a_token_of_one_trusts_sign_in_is_worth_nothing_for_another(hub, torbay, sign_in):
    """Plymouth registers an issuer under the name of Exeter's, with keys of its own: it is believed for Plymouth only."""
    with serving() as fake:
        real = Issuer(url=ISSUER, jwks_url=sign_in.address, people=True, roles=ROLES)
        other = Issuer(url=ISSUER, jwks_url=fake.address, people=True, roles=ROLES)
        of = {"RH8": (real,), "RK9": (other,)}
        trusts = [each.model_copy(update={"issuers": of.get(each.ods, ())}) for each in hub.journey.directory]
        facade = facade_of(hub, directory=Directory(trusts))
        for signed_by, ods, status in (
            (sign_in, "RH8", 200),
            (fake, "RK9", 200),
            (fake, "RH8", 401),
            (sign_in, "RK9", 401),
        ):
            signed_by.rotate(f"{signed_by.address}")
            facade.issuers = issuers.Issuers(facade.directory, facade.base)
            token = signed_by.person(hub.clock, ods, Role.CLINICIAN)
            assert (await Somebody(facade, token).get("/Task")).status_code == status, (ods, status)


async def test_an_address_that_is_away_is_its_own_trusts_trouble(hub, sign_in):
    dead = Issuer(url=ISSUER, jwks_url="http://127.0.0.1:1/jwks", people=True, roles=ROLES)
    real = Issuer(url=ISSUER, jwks_url=sign_in.address, people=True, roles=ROLES)
    of = {"RH8": (real,), "RK9": (dead,)}
    trusts = [each.model_copy(update={"issuers": of.get(each.ods, ())}) for each in hub.journey.directory]
    facade = facade_of(hub, directory=Directory(trusts))
    for ods, status in (("RH8", 200), ("RK9", 401)):
        token = sign_in.person(hub.clock, ods, Role.CLINICIAN)
        assert (await Somebody(facade, token).get("/Task")).status_code == status
    unknown = ECKey.generate_key("P-256", {"kid": "nobody's"})
    forged = sign_in.token(hub.clock, key=unknown, scope="user/*.rs")
    assert (await Somebody(facade, forged).get("/Task")).status_code == 503


async def test_a_trusts_own_issuer_speaks_for_its_systems(hub, torbay, sign_in):
    issuer = Issuer(url=ISSUER, jwks_url=sign_in.address)
    trusts = [
        each.model_copy(update={"issuers": (issuer,) if each.ods == "RA9" else ()})
        for each in hub.journey.directory
    ]
    facade = facade_of(hub, directory=Directory(trusts))
    system = Somebody(facade, sign_in.token(hub.clock, client_id="epr", scope="system/*.cruds"))
    answer = await system.send(request(torbay))
    hub.expected += 1
    assert answer.status_code == 200
    [row] = await hub.rows(t.message)
    assert row["trust"] == "RA9"
    claims_other = Somebody(
        facade, sign_in.token(hub.clock, client_id="epr", ods="RH8", scope="system/*.cruds")
    )
    assert (await claims_other.get("/Task")).status_code == 401
    as_user = Somebody(facade, sign_in.token(hub.clock, client_id="epr", scope="user/*.cruds"))
    assert (await as_user.get("/Task")).status_code == 403


async def test_a_clinician_breaks_the_glass(hub, torbay, people, sign_in):
    """Plymouth's emergency department has Exeter's patient before it: an hour's sight, and both hospitals hear of it."""
    system = await (await System.join(people, "RA9")).signed_in()
    transfer_id = await asked(hub, torbay, system)
    token = sign_in.person(hub.clock, "RK9", Role.CLINICIAN, exp=int(hub.clock().timestamp()) + 7200)
    doctor = Somebody(people, token)
    for path in (f"/Task/{transfer_id}", f"/ServiceRequest/{transfer_id}"):
        assert (await doctor.get(path)).status_code == 404
    short = await doctor.breaks_the_glass("emergency")
    assert (short.status_code, issue(short)[0]) == (400, "SEND_BAD_REQUEST")
    assert (await doctor.get(f"/Task/{transfer_id}")).status_code == 404

    reason = "Unconscious in resus, allergies and plan are not known"
    given = await doctor.breaks_the_glass(reason)
    assert given.status_code == 200
    assert (await doctor.get(f"/Task/{transfer_id}")).status_code == 200
    assert transfer_id in (await doctor.get("/ServiceRequest")).text
    assert MARSHWIGGLE.family in (await doctor.get("/Patient")).text
    assert "access.glass-broken" in await hub.told("RA9")
    assert "access.glass-broken" in await hub.told("RH8")
    assert await hub.told("RK9") == []
    [broken] = await hub.audit(code="break-glass-opened")
    assert reason not in str(await hub.audit())
    assert (broken["trust"], broken["detail"]["owners"]) == ("RK9", ["RA9", "RH8"])
    seen = await hub.audit(code="record-read", transfer_id=transfer_id)
    assert all(entry["detail"]["glass_broken"] for entry in seen)
    other = Somebody(people, sign_in.person(hub.clock, "RK9", Role.CLINICIAN, nhsid_useruid="555000000002"))
    assert (await other.get(f"/Task/{transfer_id}")).status_code == 404

    assert await break_glass.close_ended(hub.engine, hub.clock()) == []
    hub.clock.later(minutes=61)
    assert (await doctor.get(f"/Task/{transfer_id}")).status_code == 404
    for _ in range(2):
        await break_glass.close_ended(hub.engine, hub.clock())
    [closed] = await hub.audit(code="break-glass-closed")
    assert (closed["user_id"], closed["person_id"]) == (broken["user_id"], broken["person_id"])
    grant = given.json()["parameter"][0]["valueId"]
    await break_glass.review(hub.engine, grant, "privacy-officer", "justified", hub.clock())
    assert [each["verdict"] for each in await break_glass.grants(hub.engine)] == ["justified"]
    assert await break_glass.grants(hub.engine, open_only=True) == []
    assert all(each["closed_at"] for each in await hub.rows(t.incident))


async def test_a_glass_that_is_asked_for_twice_is_broken_once(hub, torbay, people, sign_in):
    """The answer did not come in time, or somebody clicked twice: the hospitals hear of it once, and one grant is looked at."""
    system = await (await System.join(people, "RA9")).signed_in()
    await asked(hub, torbay, system)
    token = sign_in.person(hub.clock, "RK9", Role.CLINICIAN, exp=int(hub.clock().timestamp()) + 7200)
    doctor, reason = Somebody(people, token), "Unconscious in resus, allergies and plan are not known"
    answers = await asyncio.gather(*(doctor.breaks_the_glass(reason) for _ in range(4)))
    hub.clock.later(minutes=4)
    answers.append(await doctor.breaks_the_glass(reason))
    assert {each.status_code for each in answers} == {200}
    assert len({each.text for each in answers}) == 1
    assert len(await hub.rows(t.break_glass)) == len(await hub.audit(code="break-glass-opened")) == 1
    assert [(await hub.told(each)).count("access.glass-broken") for each in ("RA9", "RH8")] == [1, 1]

    # Another reason, another person, or an hour that is to begin anew: each is a grant of its own.
    colleague = Somebody(
        people, sign_in.person(hub.clock, "RK9", Role.CLINICIAN, nhsid_useruid="555000000002")
    )
    await doctor.breaks_the_glass(f"{reason}, and now the family asks")
    await colleague.breaks_the_glass(reason)
    hub.clock.later(minutes=2)
    later = await doctor.breaks_the_glass(reason)
    assert later.json()["parameter"][1] != answers[0].json()["parameter"][1]
    assert len(await hub.rows(t.break_glass)) == 4


async def test_a_grant_is_for_all_records_of_a_patient(hub):
    """Two records were merged into a third: whichever of them the glass was broken for, it is broken for the patient."""
    now, records = (
        hub.clock(),
        {"first": "survivor", "second": "survivor", "survivor": None, "somebody-else": None},
    )
    async with hub.engine.begin() as connection:
        rows = [{"person_id": one, "created_at": now, "merged_into": into} for one, into in records.items()]
        await connection.execute(t.person.insert(), rows)
    given = break_glass.Grant("grant", "RK9", "555000000001", "1111", "first", "x" * 30, now)
    await break_glass.grant(hub.engine, given, ["first"], "rest", hub.journey.directory)
    opened = await break_glass.open_for(hub.engine, "RK9", "555000000001", now)
    assert opened == {"first", "second", "survivor"}


async def test_the_glass_is_not_broken_by_whoever_likes(hub, torbay, people, sign_in):
    system = await (await System.join(people, "RK9")).signed_in()
    body = {"resourceType": "Parameters"}
    said = await system.call(
        "POST", "/$break-glass", headers={"Content-Type": "application/fhir+json"}, content=orjson.dumps(body)
    )
    assert said.status_code == 403
    for role in (Role.BED_MANAGER, Role.TRANSPORT, Role.GOVERNANCE):
        somebody = Somebody(people, sign_in.person(hub.clock, "RK9", role))
        assert (await somebody.breaks_the_glass("x" * 30)).status_code == 403
    doctor = Somebody(people, sign_in.person(hub.clock, "RK9", Role.CLINICIAN))
    assert (await doctor.breaks_the_glass("Nobody has this number here", "9990000018")).status_code == 404
    odd = {"resourceType": "Parameters", "parameter": [{"name": []}, {"name": {"reason": 1}}, {"name": None}]}
    json_ = {"Content-Type": "application/fhir+json"}
    unnamed = await doctor.call("POST", "/$break-glass", headers=json_, content=orjson.dumps(odd))
    assert (unnamed.status_code, issue(unnamed)[0]) == (400, "SEND_BAD_REQUEST")
    denied = [entry["detail"]["why"] for entry in await hub.audit(code="access-denied")]
    assert denied == ["role"] * 4 + ["unknown"]
    assert await hub.rows(t.break_glass) == []


async def test_a_record_in_kafka_cannot_claim_a_role(hub, torbay):
    """A header that only the facade may write changes nothing when a trust writes it."""
    message = request(torbay)
    message.headers["hub-role"] = "governance"
    assert str(await torbay.send(message)) == "accepted"


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        ("\x00", "Unconscious in resus, needs allergies"),
        (MARSHWIGGLE.nhs_number, "Unconscious\x00 in resus, needs allergies"),
    ],
)
async def test_no_glass_is_broken_with_what_no_database_takes(hub, people, sign_in, number, reason):
    doctor = Somebody(people, sign_in.person(hub.clock, "RK9", Role.CLINICIAN))
    said = await doctor.breaks_the_glass(reason, number)
    assert (said.status_code, issue(said)[0]) == (400, "SEND_BAD_REQUEST")
    assert await hub.rows(t.break_glass) == []
