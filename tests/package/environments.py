"""Environments with a wheel, one of its extras, and nothing else: as `pip install 'podlink[extra]'` makes them.

The packages are those of this environment, by symbolic links, so that nothing is downloaded and the versions are those
of the lock file. pip then installs the wheel without an index, which it refuses when a package is missing.
"""

from __future__ import annotations

import email
import os
import subprocess
import sys
import venv
import zipfile
from importlib.metadata import distribution
from typing import TYPE_CHECKING

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python")


class Environment:
    """A virtual environment.

    Attributes:
        site_packages: the directory that its packages are in.
    """

    def __init__(self, directory: Path, wheel: Path, extra: str) -> None:
        self._directory = directory
        venv.create(directory, symlinks=True)
        (library,) = (directory / "lib").glob("python*")
        self.site_packages = library / "site-packages"
        for name in packages_of(wheel, extra):
            self._link(name)
        target = f"{wheel}[{extra}]" if extra else str(wheel)
        installed = self.pip("install", "--quiet", "--no-index", "--no-compile", target)
        assert installed.returncode == 0, installed.stderr

    def _link(self, name: str) -> None:
        found = distribution(name)
        for file in found.files or ():
            if ".." in file.parts:
                continue  # its commands, which belong to another Python
            link = self.site_packages / file
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(found.locate_file(file))

    def pip(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run pip for this environment; it has none of its own."""
        return run(*PIP, str(self._directory / "bin" / "python"), *arguments)

    def command(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment, such as `podlink` or `python`."""
        return run(str(self._directory / "bin" / words[0]), *words[1:], **environment)

    def python(self, code: str) -> str:
        """Run a program, and return what it prints."""
        ran = self.command("python", "-c", code)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout


def run(*argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command without the variables that would change what it imports or connects to."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PODLINK_"))}
    return subprocess.run(argv, env=kept | environment, capture_output=True, text=True, check=False, timeout=120)


def packages_of(wheel: Path, extra: str) -> set[str]:
    """What pip would install beside the wheel: its requirements with this extra, and theirs."""
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        requirements = email.message_from_bytes(archive.read(metadata)).get_all("Requires-Dist", [])
    found: set[tuple[str, frozenset[str]]] = set()

    def walk(lines: Iterable[str], extras: set[str]) -> None:
        for requirement in map(Requirement, lines):
            marker = requirement.marker
            if marker is not None and not any(marker.evaluate({"extra": each}) for each in extras or {""}):
                continue
            known = canonicalize_name(requirement.name), frozenset(requirement.extras)
            if known not in found:
                found.add(known)
                walk(distribution(requirement.name).requires or (), requirement.extras)

    walk(requirements, {extra})
    return {name for name, _ in found}
