"""Runs one job's command and keeps what becomes of it: `python -m focusdpo.studio.job_runner DIR`.

A process of its own between the studio and the command, in a session of its own: the job goes on
when the studio ends, and its exit code is on disk whoever looks for it later. SIGINT reaches the
command too (it is in the same group), which then ends as it does on a terminal.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from focusdpo.data_schemas.environment import me
from focusdpo.store.keys import sealed, unsealed
from focusdpo.store.local import write_whole

JOB, RUNNER, ENDED = "job.json", "runner.json", "ended.json"
LOG, RESULT = "log.txt", "result.txt"


def main(folder: Path) -> int:
    """Run the job that a folder describes; its exit code."""
    job = unsealed((folder / JOB).read_bytes())
    signal.signal(signal.SIGINT, lambda *_: None)  # for the command; this one tells how it ended
    write_whole(folder / RUNNER, sealed({"process": me()}))
    with (folder / LOG).open("ab") as log, (folder / RESULT).open("wb") as result:
        try:
            command = subprocess.Popen(
                job["command"], stdin=subprocess.DEVNULL, stdout=result, stderr=log
            )
        except OSError as error:
            log.write(f"cannot start: {error}\n".encode())
            code = 127
        else:
            signal.signal(signal.SIGTERM, lambda *_: command.kill())
            code = command.wait()
    write_whole(folder / ENDED, sealed({"code": code}))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
