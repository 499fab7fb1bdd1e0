"""The container engine that this machine offers: `docker`, or what DOCKER names, and Compose, or what COMPOSE names."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ROOT = Path(__file__).parents[2]
BASE_IMAGE = "python:3.13-slim"
_ANSWERS_WITHIN_SECONDS = 20
_DONE_WITHIN_SECONDS = 600
# Read now, because the test run itself does without them.
_PROXIES = {
    name: value for name, value in os.environ.items() if name.lower() in {"http_proxy", "https_proxy", "no_proxy"}
}
_OF_PIP = {"PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_TRUSTED_HOST"}


class NoEngineError(Exception):
    """Containers cannot be run here; the message says why."""


@dataclass(frozen=True, slots=True)
class Engine:
    """The commands that call Docker and Compose."""

    docker_command: tuple[str, ...]
    compose_command: tuple[str, ...]

    def docker(self, *arguments: str | Path, is_failure_expected: bool = False) -> str:
        """The output of one command of Docker, both streams; it has to succeed, or has to fail."""
        return _output([*self.docker_command, *map(str, arguments)], is_failure_expected=is_failure_expected)

    def compose(self, *arguments: str, directory: Path, environment: Mapping[str, str]) -> str:
        """The output of one command of Compose that has to succeed."""
        return _output([*self.compose_command, *arguments], directory=directory, environment=environment)

    def build(self, directory: Path, tag: str, **build_arguments: object) -> None:
        """Build one image, from where this machine gets packages."""
        values = {**package_sources(), **build_arguments}
        given = [option for name, value in values.items() for option in ("--build-arg", f"{name}={value}")]
        # The host's network, because packages are to come from wherever this machine has them.
        self.docker("build", "--network=host", *given, "--tag", tag, directory)

    def size_bytes(self, image: str) -> int:
        """What all layers of an image hold."""
        return int(self.docker("image", "inspect", "--format={{.Size}}", image))


def find_engine() -> Engine:
    """What is there. Raises `NoEngineError` when containers cannot be run, or images not be made."""
    docker = tuple(shlex.split(os.environ.get("DOCKER", "docker")))
    if shutil.which(docker[0]) is None:
        raise NoEngineError(f"there is no {docker[0]}; DOCKER names another command")
    if not _works([*docker, "info"]):
        raise NoEngineError(f"no container engine answers `{shlex.join(docker)} info`; DOCKER_HOST says where one is")
    engine = Engine(docker, _find_compose(docker))
    if not _works([*docker, "image", "inspect", BASE_IMAGE]) and not _works([*docker, "pull", BASE_IMAGE], seconds=300):
        raise NoEngineError(f"the base image {BASE_IMAGE} is not here and cannot be pulled")
    return engine


def _find_compose(docker: Sequence[str]) -> tuple[str, ...]:
    beside_python = Path(sysconfig.get_path("scripts")) / "docker-compose"
    named = shlex.split(os.environ.get("COMPOSE", ""))
    candidates = [named] if named else [[*docker, "compose"], ["docker-compose"], [str(beside_python)]]
    for command in candidates:
        if shutil.which(command[0]) and _works([*command, "version"]):
            return tuple(command)
    raise NoEngineError("there is no Docker Compose; COMPOSE names a command")


def _works(command: Sequence[str], *, seconds: float = _ANSWERS_WITHIN_SECONDS) -> bool:
    try:
        return subprocess.run(command, capture_output=True, timeout=seconds, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _output(
    command: Sequence[str],
    *,
    directory: Path | None = None,
    environment: Mapping[str, str] | None = None,
    is_failure_expected: bool = False,
) -> str:
    ran = subprocess.run(
        command,
        cwd=directory,
        env={**os.environ, "DOCKER_BUILDKIT": "1", **(environment or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=_DONE_WITHIN_SECONDS,
        text=True,
        check=False,
    )
    assert (ran.returncode != 0) == is_failure_expected, f"{shlex.join(command)}: {ran.returncode}\n{ran.stdout}"
    return ran.stdout


def package_sources() -> dict[str, str]:
    """Build arguments that say where pip gets packages on this machine, as far as a container can get them there."""
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True)
    found = dict(_PROXIES)
    for line in listed.stdout.splitlines():
        key, _, quoted = line.partition("=")
        argument = f"PIP_{key.rpartition('.')[2].replace('-', '_').upper()}"
        reachable = [text for text in quoted.strip("'\"").split() if urlsplit(text).scheme != "file"]
        if argument in _OF_PIP and reachable:
            found[argument] = " ".join(reachable)
    return found
