"""PodLink's container image, built from the Dockerfile as its users build it, on a machine without Docker.

buildah builds it, as root and without a daemon. The base is a Debian that mmdebstrap makes of packages, because an
image registry is not reachable everywhere; PODLINK_TEST_BASE names one to be pulled instead, for example
python:3.13-slim. All images are in a storage of their own, never in the user's.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from sandbox import binaries
from sandbox.cluster import REPOSITORY
from sandbox.processes import spawn

if TYPE_CHECKING:
    from collections.abc import Mapping

BASE_VARIABLE = "PODLINK_TEST_BASE"
BASE_PACKAGES = "python3,python3-venv,ca-certificates"
IMAGE = "localhost/podlink"

BASE_TIMEOUT_SECONDS = 600
BUILD_TIMEOUT_SECONDS = 800
QUERY_TIMEOUT_SECONDS = 120

_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
_WHEELS = "/mnt"
_PIP_SETTINGS = {
    "index-url",
    "extra-index-url",
    "find-links",
    "no-index",
    "trusted-host",
    "proxy",
    "cert",
    "timeout",
    "default-timeout",
    "retries",
}
"""Those that say where packages come from; others, such as a target directory, would break the build."""


class ImageError(RuntimeError):
    """The image could not be built; the text ends with the end of the log."""


def unavailable() -> str | None:
    """Why no image can be built here, and what would change that; None where it can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "an image is built and run by root on Linux; running the tests as root there would un-skip it"
    tools = ["buildah"] if os.environ.get(BASE_VARIABLE) else ["buildah", "mmdebstrap"]
    if missing := [tool for tool in tools if shutil.which(tool) is None]:
        return f"not on PATH: {', '.join(missing)}; `apt install {' '.join(missing)}` would un-skip it"
    return None


@dataclass(frozen=True)
class Image:
    """An image, with its files laid out.

    Attributes:
        rootfs: the directory that a container would have as its root. Not to be written to.
        config: what the image says about itself, by the names of the OCI image specification: User, Env, Labels…
        over_base: size in bytes of each regular file in the layers that the Dockerfile put on its base, by path.
        arguments: the build arguments that it was given.
    """

    rootfs: Path
    config: Mapping[str, Any]
    over_base: Mapping[str, int]
    arguments: Mapping[str, str]


class Images:
    """A storage for images that lasts as long as a `with` block. Blocking."""

    def __init__(self) -> None:
        self._scratch = tempfile.TemporaryDirectory(prefix="podlink-images-")
        self._directory = Path(self._scratch.name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._scratch.cleanup()

    def build(self, **arguments: str) -> Image:
        """Build the image from this checkout, with these build arguments.

        Raises:
            ImageError: the base or the image could not be built.
        """
        base = os.environ.get(BASE_VARIABLE) or self._debian()
        words = [word for name, value in arguments.items() for word in ("--build-arg", f"{name}={value}")]
        _run(
            self._command("bud", "--build-arg", f"BASE={base}", *words, *self._pip_access(), "--tag", IMAGE, "."),
            self._directory / "build.log",
            BUILD_TIMEOUT_SECONDS,
        )
        config = self._inspect(IMAGE)["OCIv1"]["config"]
        return Image(self._lay_out(), config, self._over_base(base), arguments)

    def _debian(self) -> str:
        """The name of a base image made of Debian packages."""
        container = self._ask("from", "scratch")
        self._ask("add", "--quiet", container, debian(), "/")
        self._ask("commit", "--quiet", "--rm", container, "localhost/debian")
        return "localhost/debian"

    def _pip_access(self) -> list[str]:
        """Give pip in the build what pip has here: index, proxy and certificates, by a secret that no layer keeps."""
        settings, mounts = _pip_settings(), []
        if "cert" in settings:
            mounts.append(f"{settings['cert']}:{_CERTIFICATES}:ro")
            settings["cert"] = str(_CERTIFICATES)
        links = settings.get("find-links", "").split()
        if local := [Path(link) for link in links if Path(link).is_dir()]:
            wheels = self._directory / "wheels"
            for directory in local:
                shutil.copytree(directory, wheels, dirs_exist_ok=True)
            mounts.append(f"{wheels}:{_WHEELS}:ro")
            settings["find-links"] = " ".join([_WHEELS, *(link for link in links if not Path(link).is_dir())])
        path = self._directory / "pip.conf"
        path.write_text("\n".join(["[global]", *(f"{name} = {value}" for name, value in settings.items())]) + "\n")
        return ["--secret", f"id=pip.conf,src={path}", *(word for each in mounts for word in ("--volume", each))]

    def _lay_out(self) -> Path:
        container = self._ask("from", "--pull-never", IMAGE)
        return Path(self._ask("mount", container))

    def _over_base(self, base: str) -> dict[str, int]:
        inherited = len(self._inspect(base)["OCIv1"]["rootfs"]["diff_ids"])
        layers = self._directory / "layers"
        self._ask("push", "--quiet", IMAGE, f"dir:{layers}")
        manifest = json.loads((layers / "manifest.json").read_text())
        sizes: dict[str, int] = {}
        for layer in manifest["layers"][inherited:]:
            with tarfile.open(layers / layer["digest"].partition(":")[2]) as tar:
                # A later layer's copy of a file is in the image beside the earlier one, and counts too.
                for member in tar:
                    if member.isreg():
                        sizes[member.name] = sizes.get(member.name, 0) + member.size
        shutil.rmtree(layers)
        return sizes

    def _inspect(self, image: str) -> Any:
        return json.loads(self._ask("inspect", "--type", "image", image))

    def _ask(self, *words: str | Path) -> str:
        argv = self._command(*words)
        result = subprocess.run(
            argv, env=_environment(), capture_output=True, text=True, timeout=QUERY_TIMEOUT_SECONDS, check=False
        )
        if result.returncode != 0:
            raise ImageError(f"{' '.join(argv)}: exit code {result.returncode}\n{result.stderr}")
        return result.stdout.strip()

    def _command(self, *words: str | Path) -> list[str]:
        # vfs copies whole trees, but works on any file system and inside any container.
        storage = ["--storage-driver=vfs", f"--root={self._directory / 'root'}", f"--runroot={self._directory / 'run'}"]
        return ["buildah", *storage, *map(str, words)]


def debian() -> Path:
    """The root file system of the host's Debian or Ubuntu release with Python, as a tar file; made once, then cached.

    Raises:
        ImageError: it could not be made.
    """
    suite = platform.freedesktop_os_release()["VERSION_CODENAME"]
    key = hashlib.sha256(f"{suite} {BASE_PACKAGES} {platform.machine()}".encode()).hexdigest()[:16]
    path = binaries.cache_directory() / "images" / f"{key}.tar"
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="making-", dir=path.parent) as making:
        tar = Path(making) / "rootfs.tar"
        argv = ["mmdebstrap", "--variant=minbase", f"--include={BASE_PACKAGES}", suite, str(tar)]
        try:
            _run(argv, path.with_suffix(".log"), BASE_TIMEOUT_SECONDS)
        except ImageError as error:
            raise ImageError(f"no base image could be made; {BASE_VARIABLE} can name one to pull\n{error}") from error
        # There whole or not at all. Who made another meanwhile made the same.
        tar.rename(path)
    return path


def _pip_settings() -> dict[str, str]:
    """What the user's pip has in its files and in PIP_… variables, which win."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout
    found = re.findall(r"^(global|install|:env:)\.([\w-]+)=(.*)$", listed, re.MULTILINE)
    found.sort(key=lambda each: each[0] == ":env:")
    # The values are printed as Python writes strings; lists have their items on lines of their own.
    return {name: " ".join(ast.literal_eval(value).split()) for _, name, value in found if name in _PIP_SETTINGS}


def _run(argv: list[str], log_path: Path, timeout_seconds: float) -> None:
    """Run a command for minutes; it ends with us."""
    log_path.unlink(missing_ok=True)
    with spawn(argv, log_path=log_path, env=_environment(), cwd=REPOSITORY) as process:
        if process.wait(timeout_seconds) != 0:
            raise ImageError(f"{' '.join(argv)}: exit code {process.returncode}\n{process.log_tail(40)}")


def _environment() -> dict[str, str]:
    # chroot needs no privilege but root's: a runtime with cgroups and networks of its own may not work in a sandbox.
    return {**os.environ, "BUILDAH_ISOLATION": "chroot"}
