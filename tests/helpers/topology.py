"""docker/compose.yaml without a container engine: the same services, start scripts, secrets and
settings as processes on loopback. Only addresses and folders differ from the containers'."""

from __future__ import annotations

import base64
import configparser
import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import yaml
from botocore.session import Session
from postgres import Postgres
from processes import Service, answers, free_ports, stop_all

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
COMPOSE: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text("utf-8"))
ENTRYPOINT = ["sh", str(DOCKER / "entrypoint.sh")]
PROGRAMS = Path(sys.executable).parent
PASSWORD = "p@ss:w\\or/d %41'\"?#"
"""What an address, a shell or a password file would trip over."""


class Topology:
    """Database, store, server, set-up and worker below one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.logs = folder / "logs"
        self.secrets = folder / "secrets"
        self.running: dict[str, Any] = {}
        ports = free_ports(9)
        self._database, self._server, self._store, self._worker = ports[:4]
        self._inside = iter(ports[4:])
        for made in (self.data, self.logs, self.secrets):
            made.mkdir()
        (self.secrets / "database_password").write_text(PASSWORD + "\n")
        subprocess.run(["sh", str(DOCKER / "secrets.sh"), str(self.secrets)], check=True)

    def up(self) -> None:
        """Everything, in compose's order."""
        self.start_database()
        self.start_store()
        self.start("server")
        ended = self.run("setup", *COMPOSE["services"]["setup"]["command"])
        assert ended.returncode == 0, ended.stdout + ended.stderr
        self.start("worker")

    def down(self) -> None:
        stop_all(list(self.running.values()))

    def start_database(self) -> None:
        wanted = COMPOSE["services"]["database"]["environment"]["POSTGRES_INITDB_ARGS"].split()
        log = self.logs / "database.log"
        self.running["database"] = Postgres(self._database, PASSWORD, log, wanted)

    def start_store(self) -> None:
        """SeaweedFS with compose's arguments; more ports have to be said where one host has all."""
        folder = self.folder / "store"
        folder.mkdir(exist_ok=True)
        inside = list(self._inside)
        changed = {
            "-dir": str(folder),
            "-ip": "127.0.0.1",
            "-ip.bind": "127.0.0.1",
            "-s3.port": str(self._store),
        }
        arguments = []
        for argument in COMPOSE["services"]["store"]["command"]:
            name, equals, value = argument.partition("=")
            arguments.append(name + equals + self._here(changed.get(name, value)))
        names = ("-master.port", "-volume.port", "-filer.port")
        grpc = [f"{name}.grpc={port}" for name, port in zip(names, free_ports(3), strict=True)]
        arguments += [f"{name}={port}" for name, port in zip(names, inside, strict=False)] + grpc
        arguments.append(f"-s3.port.grpc={inside[4]}")
        command = [str(PROGRAMS / "weed"), *arguments]
        store = Service("store", command, self.logs / "store.log", folder=folder)
        self.running["store"] = store
        store.wait_until(lambda: answers(f"http://127.0.0.1:{self._store}/healthz"), 60)

    def start(self, name: str) -> Service:
        """A server or worker by the images' entrypoint; healthy by the images' health check."""
        command = [*ENTRYPOINT, *COMPOSE["services"][name]["command"]]
        log = self.logs / f"{name}.log"
        service = Service(name, command, log, environment=self.environment(name), folder=self.data)
        self.running[name] = service
        service.wait_until(lambda: self.run(name, "healthy").returncode == 0)
        return service

    def run(self, name: str, *command: str) -> subprocess.CompletedProcess[str]:
        """A command by the entrypoint in the environment of a service; its output is logged."""
        ended = subprocess.run(
            [*ENTRYPOINT, *command],
            env=self.environment(name),
            cwd=self.data,
            capture_output=True,
            text=True,
            timeout=600,
        )
        with (self.logs / f"{name}-commands.log").open("a") as log:
            log.write(f"{command}\n{ended.stdout}{ended.stderr}")
        return ended

    def environment(self, name: str) -> dict[str, str]:
        """What compose gives a service, with addresses and folders of here."""
        given = COMPOSE["services"][name].get("environment", {})
        made = {key: self._here(str(value)) for key, value in given.items()}
        if "FOCUSDPO_DATABASE_HOST" in made:
            made["FOCUSDPO_DATABASE_HOST"] = "127.0.0.1"
            made["FOCUSDPO_DATABASE_PORT"] = str(self._database)
            made["PREFECT_SERVER_API_HOST"] = "127.0.0.1"
            made["PREFECT_SERVER_API_PORT"] = str(self._server)
        if name == "worker":
            made["PREFECT_WORKER_WEBSERVER_PORT"] = str(self._worker)
        return {
            "PATH": f"{PROGRAMS}:{os.environ['PATH']}",
            "HOME": str(self.data),
            "PREFECT_LOGGING_LEVEL": "DEBUG",
            "PREFECT_SERVER_LOGGING_LEVEL": "DEBUG",
            "PYTHONUNBUFFERED": "1",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            **made,
            "PREFECT_HOME": str(self.folder / f"prefect-{name}"),
        }

    def _here(self, value: str) -> str:
        changes = {
            "/run/secrets/": f"{self.secrets}/",
            "http://server:4200": self.address,
            "http://store:8333": f"http://127.0.0.1:{self._store}",
        }
        for container, here in changes.items():
            value = value.replace(container, here)
        return value

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._server}"

    @property
    def database(self) -> Postgres:
        found = self.running["database"]
        assert isinstance(found, Postgres)
        return found

    def objects(self, prefix: str) -> list[str]:
        """Keys in compose's bucket, read with the clients' own settings."""
        given = self.environment("worker")
        keys = configparser.ConfigParser()
        keys.read(given["AWS_SHARED_CREDENTIALS_FILE"])
        client = Session().create_client(
            "s3",
            region_name=given["AWS_REGION"],
            endpoint_url=given["AWS_ENDPOINT_URL"],
            **dict(keys["default"]),
        )
        bucket = COMPOSE["services"]["setup"]["environment"]["FOCUSDPO_BUCKET"]
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        return [one["Key"] for page in pages for one in page.get("Contents", ())]

    def secret(self, name: str) -> str:
        return (self.secrets / name).read_text("utf-8").rstrip("\n")

    def api(self, path: str, body: object = None) -> Any:
        """The server's answer, with the secret of compose's clients."""
        token = base64.b64encode(self.secret("api_auth").encode()).decode()
        request = urllib.request.Request(
            f"{self.address}/api/{path}",
            None if body is None else json.dumps(body).encode(),
            {"Content-Type": "application/json", "Authorization": f"Basic {token}"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)
