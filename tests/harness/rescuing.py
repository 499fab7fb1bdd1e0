"""A Python with nothing installed, and repositories that it restores from."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pyrage import x25519

import backupd.rescue

if TYPE_CHECKING:
    from harness.place import Place

RESCUE = Path(backupd.rescue.__file__).with_name("rescue.py")
_ENDS_WITHIN_SECONDS = 60

# Where the machine lacks the programs: what rescue.py asks of them, done by the packages that backupd itself uses.
_STAND_INS = {
    "zstd": """
import shutil, sys, zstandard
data = open(sys.argv[-1], "rb").read() if not sys.argv[-1].startswith("-") else sys.stdin.buffer.read()
if int.from_bytes(data[:4], "little") & 0xFFFFFFF0 == 0x184D2A50:
    data = data[8 + int.from_bytes(data[4:8], "little"):]
try:
    with zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True) as frames:
        shutil.copyfileobj(frames, sys.stdout.buffer)
except zstandard.ZstdError as error:
    sys.exit(f"zstd: {error}")
""",
    "age": """
import sys, pyrage
identities = [pyrage.x25519.Identity.from_str(line.strip()) for line in open(sys.argv[3]) if line[0] == "A"]
try:
    sys.stdout.buffer.write(pyrage.decrypt(sys.stdin.buffer.read(), identities))
except pyrage.DecryptError as error:
    sys.exit(f"age: {error}")
""",
}


@dataclass(frozen=True, slots=True)
class Bare:
    """A Python with nothing installed, and a PATH with nothing but zstd and age."""

    path: Path
    python: str = os.path.realpath(sys.executable)

    def start(self, *arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
        """Run a program of Python to its end; the environment holds nothing but PATH."""
        return subprocess.run(
            [self.python, "-I", "-S", "-W", "error", *map(str, arguments)],
            cwd=cwd,
            env={"PATH": str(self.path)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=_ENDS_WITHIN_SECONDS,
        )

    def rescue(self, *arguments: str | Path, repository: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
        """Run the rescue.py of a repository in its root, which has to end with `code`."""
        finished = self.start("rescue.py", *arguments, cwd=repository)
        assert finished.returncode == code, finished
        assert "Traceback" not in finished.stderr
        return finished


def bare_python(programs: Path) -> Bare:
    """A bare Python with zstd and age, the real ones where this machine has them, in the directory `programs`."""
    for name, source in _STAND_INS.items():
        if found := shutil.which(name):
            (programs / name).symlink_to(found)
        else:
            (programs / name).write_text(f"#!{sys.executable}\n{source}")
            (programs / name).chmod(0o755)
    return Bare(programs)


@dataclass(frozen=True, slots=True)
class Kept:
    """A place whose repository is encrypted to the key in `identity`, or is not."""

    place: Place
    identity: Path | None

    @property
    def options(self) -> tuple[str | Path, ...]:
        """What a restore of backupd or of rescue.py needs besides."""
        return ("--identity", self.identity) if self.identity else ()

    def copy(self, home: Path) -> Kept:
        """Copy everything into another directory, which does not exist yet."""
        return Kept(self.place.copy(home), self.identity)


def encrypt_in(home: Path, keys: Path) -> Path:
    """Let backupd in `home` encrypt to a new key, whose file, in `keys`, is given back."""
    key = x25519.Identity.generate()
    (home / "backupd.toml").write_text(f'[encryption]\nrecipients = ["{key.to_public()}"]\n')
    identity = keys / "key.txt"
    identity.write_text(f"# a key of the tests\n{key}\n")
    return identity
