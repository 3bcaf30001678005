"""What leases know this process by."""

import os
import socket
import uuid


def process_name() -> str:
    """Host, process id and something of its own, since both come again: nobody else has it."""
    return f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
