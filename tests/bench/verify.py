"""Entries a second that the verifier checks on one core; a checkpoint every 200. The last line is JSON."""

import argparse
import json
import time

from hub.verifier import verify_export
from tests.harness.sealed_log import HUB, a_log


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=int, default=100_000)
    parser.add_argument("--every", type=int, default=200, help="entries a checkpoint")
    asked = parser.parse_args()
    lines = a_log(asked.entries, range(asked.every, asked.entries, asked.every)).export()
    began = time.process_time()
    report = verify_export(lines, HUB)
    took = time.process_time() - began
    figures = {
        "entries": asked.entries,
        "bytes_per_entry": sum(map(len, lines)) // asked.entries,
        "intact": report.intact,
        "entries_per_s": round(asked.entries / took),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
