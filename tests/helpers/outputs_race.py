"""Several writers begin at once on one `out`, again and again; what a reader then finds.

python outputs_race.py ADDRESS FOLDER     prints JSON: [who was told it wrote, who is there], ...
"""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path

from focusdpo.data_schemas.errors import UserError
from focusdpo.store.addresses import files_of
from focusdpo.store.outputs import Mirror, copy

WRITERS, ROUNDS = 6, 4
LARGE = 40 * 2**20
"""Travels in parts."""


def play(address: str, folder: Path, number: int) -> tuple[list[int], int]:
    """One round."""
    start, told = threading.Barrier(WRITERS), []

    def write(own: int) -> None:
        start.wait()
        here = folder / f"{number}-{own}"
        try:
            mirror = Mirror(files_of(address), here)
            (here / "who").write_text(str(own))
            (here / "large").write_bytes(bytes([own]) * LARGE)
            mirror.send()
            told.append(own)
        except UserError:
            pass

    threads = [threading.Thread(target=write, args=(own,)) for own in range(WRITERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = copy(files_of(address), lambda _: folder / f"read-{number}", lambda _: True)
    assert found is not None
    who = int((found[1] / "who").read_text())
    assert (found[1] / "large").read_bytes() == bytes([who]) * LARGE
    return told, who


if __name__ == "__main__":
    rounds = [play(sys.argv[1], Path(sys.argv[2]), number) for number in range(ROUNDS)]
    sys.stdout.write(json.dumps(rounds) + "\n")
