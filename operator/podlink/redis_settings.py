"""Where Redis is and how to log in, as the operator is told: a URL, or files that a Secret is mounted as.

A Secret may be made after the Deployment that names it, so a file that is missing is waited for, and said to be.
"""

import asyncio
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from podlink.domain.errors import InvalidArgument
from podlink.store.aio.executor import StatefulExecutor

logger = logging.getLogger(__name__)

POLL_SECONDS = 1.0
"""How often missing files are looked for, and those that were read are looked at."""

_FOLLOWED = ("--redis-url-file", "--redis-password-file")
"""What stands in the others is read at each new connection."""


class RedisSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What `podlink run` was told about Redis; nothing at all means an embedded Valkey."""

    url: str | None = None
    url_file: Path | None = None
    username: str | None = None
    password_file: Path | None = None
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None

    @property
    def embedded(self) -> bool:
        """Whether there is no Redis but the operator's own."""
        return self.url is None and self.url_file is None

    @property
    def may_change(self) -> bool:
        """Whether files hold what a connection is made by only once."""
        return self.url_file is not None or self.password_file is not None

    @property
    def flag(self) -> str:
        """What names Redis, for messages."""
        return "--redis-url" if self.url else "--redis-url-file" if self.url_file else "embedded Valkey"


class Target(msgspec.Struct, frozen=True):
    """What to connect to: arguments of `StatefulExecutor.from_url`."""

    url: str
    options: Mapping[str, Any]


class RedisAccess:
    """Reads the settings.

    Attributes:
        problem: why there is nothing to connect to yet; None when there is.
    """

    def __init__(self, settings: RedisSettings) -> None:
        self._settings = settings
        self._read: Target | None = None
        self.problem: str | None = None

    async def target(self) -> Target:
        """Wait until everything is there that the settings name, and can be used.

        Raises:
            InvalidArgument: it cannot be used, and no file is named that might change.
        """
        while True:
            try:
                self._read = self.read()
            except InvalidArgument as error:
                if not any(self._files()):
                    raise  # nothing will change by itself
                problem = f"{error} (awaited)"
                if problem != self.problem:
                    logger.warning("%s", problem)
                self.problem = problem
                await asyncio.sleep(POLL_SECONDS)
            else:
                self.problem = None
                return self._read

    async def changed(self) -> str:
        """Wait until URL, user or password are others than those that were read; return which file says so."""
        told = ""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            try:
                now = self._named()
                if now != self._read:
                    self._check(now)
            except InvalidArgument as error:
                # On its way out, or half written: what was read still counts.
                if str(error) != told:
                    logger.warning("%s; the Redis of before is used", error)
                told = str(error)
                continue
            told = ""
            if now != self._read:
                files = [f"{flag} {file}" for flag, file in self._files() if flag in _FOLLOWED]
                return " or ".join(files)

    def read(self) -> Target:
        """Read everything that the settings name, as it is now.

        Raises:
            InvalidArgument: something is missing, or cannot be used.
        """
        named = self._named()
        self._check(named)
        return named

    def _named(self) -> Target:
        """What stands in the settings and their files, whether it makes sense or not."""
        settings = self._settings
        for flag, file in self._files():
            if not _is_there(flag, file):
                raise InvalidArgument(f"{flag} {file} is not there: {_remedy(file)}")
        url = settings.url or (_content("--redis-url-file", settings.url_file) if settings.url_file else "")
        options: dict[str, Any] = {"username": settings.username} if settings.username else {}
        if settings.password_file:
            options["password"] = _content("--redis-password-file", settings.password_file)
        tls = {"ssl_ca_certs": settings.ca_file, "ssl_certfile": settings.cert_file, "ssl_keyfile": settings.key_file}
        return Target(url, options | {name: str(file) for name, file in tls.items() if file})

    def _check(self, target: Target) -> None:
        try:
            # Nothing is connected here: the executor knows which URLs it takes.
            StatefulExecutor.from_url(target.url, **target.options)
        except InvalidArgument as error:
            raise InvalidArgument(f"{self._settings.flag}: {error}") from error

    def _files(self) -> Iterator[tuple[str, Path]]:
        for name in ("url_file", "password_file", "ca_file", "cert_file", "key_file"):
            file: Path | None = getattr(self._settings, name)
            if file:
                yield f"--redis-{name.replace('_', '-')}", file


def _is_there(flag: str, file: Path) -> bool:
    try:
        return file.is_file()
    except OSError as error:
        # Of a directory that we may not enter.
        raise InvalidArgument(f"{flag} {file} cannot be read: {error.strerror}") from None


def _content(flag: str, file: Path) -> str:
    try:
        # Whoever makes a Secret from a file often leaves the line break at its end.
        text = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgument(
            f"{flag} {file} cannot be read: {getattr(error, 'strerror', None) or 'it is no text'}"
        ) from None
    if not text:
        raise InvalidArgument(f"{flag} {file} is empty: {_remedy(file)}")
    return text


def _remedy(file: Path) -> str:
    # As the chart mounts them.
    if file.parent.parent.name == "secrets":
        return f"create the Secret {file.parent.name!r} with the key {file.name!r}"
    return "write it, or name another file"
