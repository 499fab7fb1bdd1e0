"""A directory with a docker-compose.yml, in which backupd was installed by putting one file beside it."""

from __future__ import annotations

import json
import secrets
import shutil
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from container.engine import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from container.engine import Engine

BACKUPD_IMAGE = "backupd-test"
S3_IMAGE = "backupd-test-s3"
DATABASE = "/app/instance/creditrobot.db"
OVERRIDE = "docker-compose.override.yml"


def web_image(uid: int) -> str:
    """The name of the web service's image that runs as `uid`."""
    return f"creditrobot-test:{uid}"


@dataclass(frozen=True, slots=True)
class Project:
    """Running services. Every method talks to them as their operator would."""

    engine: Engine
    directory: Path
    environment: Mapping[str, str] = field(default_factory=dict)

    def compose(self, *arguments: str) -> str:
        """The output of a command of Compose."""
        return self.engine.compose(*arguments, directory=self.directory, environment=self.environment)

    def up(self) -> None:
        """Start everything, and wait until all of it says that it is healthy."""
        self.compose("up", "--detach", "--wait", "--wait-timeout", "120")

    def web(self, *command: str) -> str:
        """The output of a command in the web container."""
        return self.compose("exec", "-T", "web", *command)

    def sidecar(self, *command: str) -> str:
        """The output of a command in the container of backupd."""
        return self.compose("exec", "-T", "backupd", *command)

    def backupd(self, *arguments: str) -> str:
        """The output of `docker compose exec backupd backupd ...`."""
        return self.sidecar("backupd", *arguments)

    def snapshots(self, *options: str) -> list[dict[str, Any]]:
        """What `list` shows; the newest last."""
        listed = self.compose(
            "exec", "-T", "backupd", "sh", "-c", f"backupd list --json {' '.join(options)} 2>/dev/null"
        )
        return json.loads(listed)["snapshots"]

    def load(self, seconds: float) -> int:
        """Place orders for a while; the number of the last payment that was acknowledged."""
        return int(self.web("python", "-m", "creditrobot.load", str(seconds)))

    def orders(self) -> dict[str, Any]:
        """What the service has, and whether it fits together, as the service itself says."""
        script = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:8000/orders').read().decode())"
        return json.loads(self.web("python", "-c", script))

    def container(self, service: str) -> str:
        """The id of a service's container."""
        return self.compose("ps", "--all", "--quiet", service).strip()

    def inspected(self, service: str, template: str) -> str:
        """What the engine knows of a service's container."""
        return self.engine.docker("inspect", f"--format={template}", self.container(service)).strip()

    def is_healthy(self, service: str = "backupd") -> bool:
        """What the last health check found."""
        return self.inspected(service, "{{.State.Health.Status}}") == "healthy"

    def last_health_check(self) -> str:
        """The line that the last health check of backupd printed."""
        return json.loads(self.inspected("backupd", "{{json .State.Health.Log}}"))[-1]["Output"]

    def network(self) -> str:
        """The name of the network that the services share."""
        return self.inspected("backupd", "{{range $name, $_ := .NetworkSettings.Networks}}{{$name}}{{end}}")

    def process(self, name: str) -> list[str]:
        """A line of /proc/1/status of backupd: what its main process is and may do."""
        status = self.sidecar("cat", "/proc/1/status")
        return next(line.split()[1:] for line in status.splitlines() if line.startswith(f"{name}:"))


@contextmanager
def project(engine: Engine, directory: Path, *, files: tuple[str, ...] = (), **environment: str) -> Iterator[Project]:
    """A project of the web service with backupd's file beside its own, not started; gone when the block ends.

    `files` are further Compose files from this directory.
    """
    shutil.copytree(ROOT / "tests/creditrobot", directory, dirs_exist_ok=True)
    shutil.copy(ROOT / OVERRIDE, directory)
    for file in files:
        shutil.copy(ROOT / "tests/container" / file, directory)
    values = {
        "COMPOSE_PROJECT_NAME": f"backupd-test-{secrets.token_hex(4)}",
        "COMPOSE_FILE": ":".join(["docker-compose.yml", OVERRIDE, *files]),
        "BACKUPD_IMAGE": BACKUPD_IMAGE,
        "CREDITROBOT_FIRST_REVISION": "0001",
        **environment,
    }
    made = Project(engine, directory, values)
    try:
        yield made
    finally:
        made.compose("down", "--volumes", "--remove-orphans", "--timeout", "5")


def wait_until(is_done: Callable[[], bool], *, seconds: float) -> None:
    """Ask twice a second until the answer is yes; an AssertionError when the time is over."""
    until = time.monotonic() + seconds
    while not is_done():
        assert time.monotonic() < until, f"not within {seconds} s"
        time.sleep(0.5)
