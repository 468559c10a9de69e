"""One way to a database: opened by URL, brought up to date by named steps, its failures in our words."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime

from pydantic import ValidationError
from sqlalchemy import Column, Connection, Engine, MetaData, String, Table, create_engine, insert, select
from sqlalchemy import event as events
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError
from sqlalchemy.schema import CreateIndex, CreateTable

from knowledge_base.errors import SettingsError, StorageError

Step = Callable[[Connection], None]
"""What brings a database one version further; it may run on one that has some of it already."""

_MIGRATIONS = Table("migrations", MetaData(), Column("name", String(64), primary_key=True))
_LOCK = 0x706C756D62  # "plumb": any number that no other program on the database server takes
_PATIENCE_SECONDS = 5
_WITHOUT = " Answers are served without it."
# What to install for a module that is missing, where the two have different names.
_DISTRIBUTIONS = {"psycopg": "'psycopg[binary]'", "psycopg2": "psycopg2-binary", "MySQLdb": "mysqlclient"}


def open_database(url: str, steps: Mapping[str, Step], *, durable: bool = True) -> Engine:
    """A database in which every step has been taken; processes that start together take turns.

    Without `durable` SQLite does not wait for the disk at every commit: a killed process loses nothing, a
    power cut may lose the last rows.

    Raises:
        SettingsError: The URL is none, or the driver it needs is not installed.
        StorageError: The database cannot be reached or written.
    """
    engine = _engine(url)
    if engine.dialect.name == "sqlite" and not durable:
        events.listen(engine, "connect", _do_not_wait_for_the_disk)
    with storage_errors():
        _migrate(engine, steps)
    return engine


def make_table(connection: Connection, table: Table) -> None:
    """Make a table and its indexes where they are missing."""
    connection.execute(CreateTable(table, if_not_exists=True))
    for index in table.indexes:
        connection.execute(CreateIndex(index, if_not_exists=True))


def in_utc(moment: datetime) -> datetime:
    """SQLite keeps the moment and not its zone, which is always UTC here."""
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


@contextmanager
def storage_errors(what: str = "answer log") -> Iterator[None]:
    """Turn what a database refuses, and a row that cannot be read, into a StorageError."""
    try:
        yield
    except (SQLAlchemyError, ValidationError) as error:
        raise StorageError(
            f"The {what} cannot be used: {_reason(error)}.",
            hint="Check its database." + (_WITHOUT if what == "answer log" else ""),
        ) from error


def _engine(url: str) -> Engine:
    try:
        parsed = make_url(url)
        if parsed.get_backend_name() == "sqlite":
            engine = create_engine(parsed)
            events.listen(engine, "connect", _wait_for_other_writers)
            return engine
        # Without the second one a host that vanished holds its callers for as long as TCP tries: minutes.
        limits = {"connect_timeout": _PATIENCE_SECONDS, "tcp_user_timeout": _PATIENCE_SECONDS * 1000}
        if "psycopg" not in parsed.get_driver_name():
            limits = {}
        # A pooled connection is tried first: the server may have been restarted since.
        return create_engine(parsed, pool_pre_ping=True, pool_timeout=_PATIENCE_SECONDS, connect_args=limits)
    except ImportError as error:
        driver = error.name or "its driver"
        raise SettingsError(
            f"PLUMBLINE_ANSWER_LOG: this database needs {driver}, which is not installed.",
            hint=f"Run: pip install {_DISTRIBUTIONS.get(driver, driver)}, or name another driver, "
            "as in postgresql+psycopg://.",
        ) from error
    except (ArgumentError, ValueError) as error:
        # No part of the URL is repeated: it may hold a password.
        reason = _reason(error) if isinstance(error, ArgumentError) else "its port is not a number"
        raise SettingsError(
            f"PLUMBLINE_ANSWER_LOG is not a database URL: {reason}.",
            hint="For example sqlite:////var/lib/plumbline/answers.sqlite, or "
            "postgresql+psycopg://user@host/name.",
        ) from error


def _wait_for_other_writers(connection: object, _: object) -> None:
    cursor = connection.cursor()  # type: ignore[attr-defined]
    cursor.execute(f"pragma busy_timeout = {_PATIENCE_SECONDS * 1000}")
    cursor.execute("pragma journal_mode = wal")
    cursor.execute("pragma secure_delete = on")  # what is deleted for privacy's sake is gone from the disk
    cursor.close()


def _do_not_wait_for_the_disk(connection: object, _: object) -> None:
    connection.execute("pragma synchronous = normal")  # type: ignore[attr-defined]


def _migrate(engine: Engine, steps: Mapping[str, Step]) -> None:
    with engine.begin() as connection:
        if engine.dialect.name == "sqlite":
            # The driver begins no transaction for a CREATE: each would be seen half-way by another process.
            connection.exec_driver_sql("begin immediate")
        elif engine.dialect.name == "postgresql":
            connection.exec_driver_sql(f"select pg_advisory_xact_lock({_LOCK})")
        make_table(connection, _MIGRATIONS)
        taken = set(connection.execute(select(_MIGRATIONS.c.name)).scalars())
        for name, step in steps.items():
            if name not in taken:
                step(connection)
                connection.execute(insert(_MIGRATIONS), {"name": name})


def _reason(error: Exception) -> str:
    """The database's own words, in one line, without SQLAlchemy's statement and links."""
    told = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    words = str(told).split("(Background on this error")[0]
    return " ".join(words.split())[:300].rstrip(".") or type(error).__name__
