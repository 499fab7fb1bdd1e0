"""A real S3 server that can be killed at any moment, and started again with what it had on its disk."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import tempfile
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from harness.command_line import wait_until
from harness.s3_server import (
    _EXEC_AS_MORTAL,
    S3Server,
    _arguments,
    _remove_sockets,
    _wait_until_usable,
    _weed,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


class RestartingServer:
    """SeaweedFS with its files in `directory`. The ports and keys stay the same."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self._directory = directory
        self._keys = secrets.token_hex(10).upper(), secrets.token_urlsafe(30)
        self._ports, self._arguments = _arguments(directory)
        self._stack = stack
        self._was_killed = False
        stack.callback(_remove_sockets, self._ports)
        self.start()

    def start(self) -> None:
        """Start, and return when it takes requests."""
        access_key_id, secret_access_key = self._keys
        log = self._stack.enter_context((self._directory / "log").open("ab"))
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-c", _EXEC_AS_MORTAL, str(os.getpid()), str(_weed()), *self._arguments],
            cwd=self._directory,
            env={
                "HOME": str(self._directory),
                "AWS_ACCESS_KEY_ID": access_key_id,
                "AWS_SECRET_ACCESS_KEY": secret_access_key,
            },
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        self._stack.callback(self.kill)
        url = f"http://127.0.0.1:{self._ports['s3.port']}"
        self.server = S3Server(url, access_key_id, secret_access_key, self._process.pid)
        if self._was_killed:
            wait_until(self._takes_objects)
        else:
            _wait_until_usable(self.server, self._process, self._directory / "log")

    def _takes_objects(self) -> bool:
        """Whether it does again. Now and then a request that comes too early is answered after 20 s, others at once."""
        impatient = Config(read_timeout=1, retries={"total_max_attempts": 1}, s3={"addressing_style": "path"})
        client = boto3.client(
            "s3",
            endpoint_url=self.server.endpoint_url,
            region_name="us-east-1",
            aws_access_key_id=self.server.access_key_id,
            aws_secret_access_key=self.server.secret_access_key,
            config=impatient,
        )
        with closing(client):
            try:
                # This bucket exists since the first start.
                client.put_object(Bucket="is-it-usable", Key="yes", Body=b"yes")
            except (BotoCoreError, ClientError):
                return False
        return True

    def kill(self) -> None:
        """SIGKILL: nothing is flushed or finished."""
        self._process.kill()
        self._process.wait()
        self._was_killed = True

    def stored_bytes(self) -> int:
        """The bytes in the server's files, of finished objects or not."""
        return sum(path.stat().st_blocks * 512 for path in (self._directory / "data").rglob("*.dat"))


@contextmanager
def restarting_server() -> Iterator[RestartingServer]:
    """A server for one test; gone, with its files, after the block."""
    with tempfile.TemporaryDirectory(prefix="s3-server-") as name, ExitStack() as stack:
        yield RestartingServer(Path(name), stack)
