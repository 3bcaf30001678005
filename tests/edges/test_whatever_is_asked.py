"""Requests that nobody thought of, made from the OpenAPI document: no fault of the hub's, and answers as they are described."""

import subprocess
import sys
from pathlib import Path

import pytest

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


@pytest.mark.long
@pytest.mark.timeout(180)
@pytest.mark.parametrize("signed_in", [True, False])
def test_no_request_finds_a_fault(server, tmp_path, signed_in):
    headers = ["-H", f"Authorization: Bearer {server.token('RA9')}"] if signed_in else []
    run = subprocess.run(
        [
            Path(sys.executable).parent / "st", "run", f"{server.url}/openapi.json", *headers,
            "--checks", CHECKS, "--max-examples", "12", "--seed", "7", "--phases", "examples,coverage,fuzzing",
            "--max-failures", "5", "--no-color", "--no-shrink", "--warnings", "off",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
