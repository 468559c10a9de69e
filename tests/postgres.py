"""A PostgreSQL cluster of the tests' own, from the programs that Debian's packages install."""

import os
import pwd
import shutil
import subprocess
import tempfile
import uuid
from pathlib import Path

_PLACES = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)


def missing() -> str:
    """Why no cluster can be started here; empty when one can."""
    if not _program("initdb") or not _program("pg_ctl"):
        return "PostgreSQL is not installed (apt-get install postgresql)"
    try:
        import psycopg  # noqa: F401
    except ImportError:
        return "psycopg is not installed (the extra `postgres`)"
    return ""


class Cluster:
    """One cluster in a temporary folder, reached through a socket file there: no port is taken."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="plumbline-postgres-"))
        # PostgreSQL does not run as root.
        self._user = "nobody" if os.geteuid() == 0 else None
        if self._user:
            entry = pwd.getpwnam(self._user)
            os.chown(self.folder, entry.pw_uid, entry.pw_gid)
        data = str(self.folder / "data")
        self._run("initdb", "-D", data, "-U", "plumbline", "-A", "trust", "--no-sync", "-E", "UTF8")
        self.start()

    def start(self) -> None:
        options = f"-k {self.folder} -c listen_addresses= -c fsync=off -c max_connections=60"
        log = str(self.folder / "log")
        self._run(
            "pg_ctl", "-D", str(self.folder / "data"), "-w", "-t", "120", "-l", log, "-o", options, "start"
        )

    def stop(self) -> None:
        self._run("pg_ctl", "-D", str(self.folder / "data"), "-w", "-m", "immediate", "stop")

    def new_database(self) -> str:
        """The URL of an empty database."""
        name = f"test_{uuid.uuid4().hex}"
        self._run("createdb", "-h", str(self.folder), "-U", "plumbline", name)
        return f"postgresql+psycopg://plumbline@/{name}?host={self.folder}"

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.folder)

    def _run(self, name: str, *arguments: str) -> None:
        program = _program(name)
        assert program
        # Output to a file: the server that pg_ctl leaves behind would keep a pipe open for ever.
        with open(self.folder / "output", "ab") as output:
            done = subprocess.run(
                [program, *arguments], stdout=output, stderr=output, cwd="/", user=self._user, check=False
            )
        assert done.returncode == 0, (self.folder / "output").read_text()


def _program(name: str) -> str | None:
    found = shutil.which(name)
    return found or next((str(place / name) for place in _PLACES if (place / name).exists()), None)
