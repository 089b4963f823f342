"""Pass on what C++ code writes in a process of a run, and report the end of another process in one line.

Run as a program, it copies standard input to standard output. When a process of a run ends, JAX's runtime aborts the others from C++, with
pages of a stack; JAX 0.10 to 0.12 have no option that changes it. It is imported by nothing that JAX is needed for, and starts at once.
"""

import re
import signal
import sys
from collections.abc import Iterable
from typing import IO

_BEGINS = re.compile(rb"[EF]\d{4} .*(coordination_service|coordination_service_agent|client)\.(cc|h):\d+\]")
_CONNECTED = b"Expected number of connected peer ranks"  # which gloo says of every connection
_ABORT = b"Terminating process because the JAX distributed service"
_AGAIN = "this one stops, too. Give the same commands again: a run resumes from its last checkpoint."


def pass_on(source: Iterable[bytes], target: IO[bytes]) -> None:
    """Copy lines, but those on connections; those from the first that the runtime writes on its way to an abort to the last become one."""
    held: list[bytes] = []
    for line in source:
        if held or _BEGINS.match(line):
            held.append(line)
        elif _CONNECTED not in line:
            target.write(line)
            target.flush()
    text = b"".join(held)
    target.write(f"error: {explain(text.decode(errors='replace'))}\n".encode() if _ABORT in text else text)
    target.flush()


def explain(text: str) -> str:
    """Return in one line why the runtime aborts."""
    if "RegisterTask" in text:
        return (
            "the processes did not join in time; start --num_processes of them, each with its own --process_id and all with the same "
            "--coordinator, which every host must be able to reach."
        )
    ended = re.search(r"stopped sending heartbeats\):\s*((?:\d+\s+)+)", text)
    if ended:
        numbers = ended[1].split()
        return f"process{'es' * (len(numbers) > 1)} {', '.join(numbers)} ended or cannot be reached; {_AGAIN}"
    return f"{'process 0' if 'leader' in text or 'PollForError' in text else 'another process'} ended or cannot be reached; {_AGAIN}"


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):  # it ends when the process does
        signal.signal(number, signal.SIG_IGN)
    pass_on(sys.stdin.buffer, sys.stdout.buffer)
