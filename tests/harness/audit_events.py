"""AuditEvents of real runs, for the FHIR validator: `AUDIT_EVENTS` names a folder where stories and chaos leave theirs.

`python -m tests.harness.audit_events FOLDER` judges all of them in one start, by England-AuditEvent-PARS and by whatever
else each claims. The last line is JSON; exit status 1 if there is an error.
"""

import json
import os
import sys
from pathlib import Path

from sqlalchemy.ext.asyncio import AsyncEngine

from hub.fhir.audit_event import PARS, Observer
from hub.governance.disclosed import as_audit_events
from hub.store import feeds
from tests.harness.validator import judge

_SHOWN = 20


async def keep_audit_events(engine: AsyncEngine) -> None:
    """What a feed would pass on of this database, if anybody wants it."""
    folder = os.environ.get("AUDIT_EVENTS")
    if not folder:
        return
    rows = await feeds.leaves(engine, 0, 10_000)
    events = await as_audit_events(engine, "hub.audit", {}, Observer())(rows)
    with (Path(folder) / f"stories-{os.getpid()}.ndjson").open("ab") as file:
        file.writelines(event.payload + b"\n" for event in events)


def main(folder: Path) -> int:
    files = sorted(folder.glob("*.ndjson"))
    events = [line for file in files for line in file.read_bytes().splitlines()]
    verdict = judge(events, profiles=[PARS])
    for sentence in verdict.errors[:_SHOWN]:
        print(sentence)
    codes = {json.loads(line)["subtype"][0]["code"] for line in events}
    print(
        json.dumps(
            {
                "files": len(files),
                "events": verdict.judged,
                "codes": len(codes),
                "errors": len(verdict.errors),
            }
        )
    )
    return 1 if verdict.errors else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
