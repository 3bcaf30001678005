"""Every "no" of the facade: an OperationOutcome with BaRS's code, whose prefix says whose turn it is.

``SEND_``: the caller's request cannot be used. ``REC_``: the request was understood and the receiving side (the hub, for all
receivers) does not do it. Sources: BaRS Core, errors; FHIR R4 http.html, 3.1.0.1.12.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from hub.fhir.systems import HTTP_ERROR, HUB_REASON
from hub.fhir.tree import Tree


@dataclass
class FacadeError(Exception):
    """An answer that is no success.

    ``code`` is BaRS's (``SEND_BAD_REQUEST`` …), ``issue`` FHIR's issue type, ``diagnostics`` what is wrong and what to do, with
    nothing in it that a patient could be known by; ``at`` a FHIRPath or a header's or parameter's name; ``reason`` the hub's own
    reason code.
    """

    status: int
    code: str
    issue: str
    diagnostics: str
    at: str = ""
    reason: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)

    def outcome(self) -> Tree:
        """As a FHIR OperationOutcome."""
        coding = [{"system": HTTP_ERROR, "code": self.code}]
        if self.reason:
            coding.append({"system": HUB_REASON, "code": self.reason})
        issue: Tree = {
            "severity": "error",
            "code": self.issue,
            "details": {"coding": coding},
            "diagnostics": self.diagnostics,
        }
        if self.at:
            issue["expression"] = [self.at]
        return {"resourceType": "OperationOutcome", "issue": [issue]}


def bad_request(diagnostics: str, at: str = "", issue: str = "invalid") -> FacadeError:
    """400: mend the request."""
    return FacadeError(400, "SEND_BAD_REQUEST", issue, diagnostics, at)


def unauthorised(diagnostics: str, issue: str = "login") -> FacadeError:
    """401: no usable token."""
    return FacadeError(
        401, "SEND_UNAUTHORIZED", issue, diagnostics, "Authorization", headers={"WWW-Authenticate": "Bearer"}
    )


def forbidden(diagnostics: str) -> FacadeError:
    """403: a good token that does not allow this."""
    return FacadeError(403, "SEND_FORBIDDEN", "forbidden", diagnostics)


def not_found() -> FacadeError:
    """404: there is nothing, or nothing for this caller. The same words for both."""
    return FacadeError(
        404,
        "REC_NOT_FOUND",
        "not-found",
        "There is no such resource, or your trust is no party to it. Check the id and the trust that your client belongs to.",
    )


def gone() -> FacadeError:
    """410: it was here, its content is kept no longer. BaRS has no code of its own for that."""
    return FacadeError(410, "REC_NOT_FOUND", "deleted", AGED_OUT)


AGED_OUT = (
    "Its content has aged out: the hub keeps it for as long as its retention schedule says. What happened, when and by whom is still "
    "in the Task's history; the record of care is the hospital's own."
)


def aged_out(count: int) -> Tree:
    """A warning in a list: so many of what was found can be shown no longer."""
    text = f"The content of {count} of the transfers found has aged out in part or whole and is not shown. Their Tasks are kept."
    issue = {"severity": "warning", "code": "deleted", "diagnostics": text}
    return {"resourceType": "OperationOutcome", "issue": [issue]}


def information(text: str) -> Tree:
    """An OperationOutcome that says that all is well."""
    issue = {"severity": "information", "code": "informational", "diagnostics": text}
    return {"resourceType": "OperationOutcome", "issue": [issue]}
