"""The wheel carries the Lua scripts, and the library finds them there."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

from podlink.store.operations import scripts

LIST_SCRIPTS = """
from podlink.store.operations import scripts
print(scripts.__file__, *(script.sha1 for script in scripts.ALL), sep="\\n")
"""


def run_from(unpacked: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", LIST_SCRIPTS],
        cwd=unpacked,
        env=os.environ | {"PYTHONPATH": str(unpacked)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_wheel_holds_the_scripts_and_the_type_marker(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"podlink/lua/{script.name}.lua" for script in scripts.ALL} <= names
    assert {"podlink/py.typed", "podlink/sync.py", "podlink/store/aio/executor.py"} <= names
    assert not [name for name in names if name.startswith(("operator/", "lua/"))]


def test_scripts_are_found_inside_an_installed_wheel(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    ran = run_from(tmp_path)
    assert ran.returncode == 0, ran.stderr
    place, *digests = ran.stdout.split("\n")[:-1]
    assert Path(place).is_relative_to(tmp_path)
    assert digests == [script.sha1 for script in scripts.ALL]


def test_installation_without_scripts_says_so(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    (tmp_path / "podlink" / "lua" / "statefulSetLink.lua").unlink()
    ran = run_from(tmp_path)
    assert ran.returncode != 0
    assert "statefulSetLink.lua belongs to podlink and is missing" in ran.stderr
    assert "install podlink again" in ran.stderr
