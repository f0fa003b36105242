"""Three places describe a script: the contract (here, as literals), the header of its file, and its declaration."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from podlink.store import operations
from podlink.store.operations import scripts

if TYPE_CHECKING:
    from podlink.store.operations import Operation
    from podlink.store.operations.scripts import Script

LUA = Path(__file__).parents[2] / "lua"

# What clients in other languages rely on: name, the keys they send, the arguments in order ("?" may be left out).
CONTRACT = {
    "statefulSetLink": (2, "svc podId persist book?"),
    "statefulTrySetLink": (2, "svc podId persist expected? book?"),
    "statefulSetLinkIfAbsent": (2, "svc podId persist book?"),
    "statefulRemoveLink": (2, "svc persist book?"),
    "statefulRemoveLinkWithId": (2, "svc podId persist book?"),
    "statefulGetLinkIfPersist": (2, ""),
    "statefulComputeLinkIfAbsent": (2, "svc persist"),
    "statefulGetLinkService": (2, ""),
    "statefulSetState": (1, "podId state version?"),
    "statefulGetServicePod": (1, "podId? link? temporary? taken? ends?"),
    "statefulGetService": (1, ""),
}


def header(script: Script) -> str:
    match = re.match(r"--\[\[\n(.*?)\n\]\]\n", script.text, re.DOTALL)
    assert match, f"{script.name}.lua does not begin with a header"
    return match.group(1)


def described(script: Script, kind: str) -> tuple[str, ...]:
    """The names a header gives to KEYS or ARGV, marked like the declaration's."""
    lines = re.findall(rf"^  {kind}\[(\d+)\] (\w+) *(.*)$", header(script), re.MULTILINE)
    assert [int(number) for number, _, _ in lines] == list(range(1, len(lines) + 1))
    return tuple(name + ("?" if text.startswith("optional") else "") for _, name, text in lines)


def test_these_eleven_scripts_and_no_others() -> None:
    assert {path.stem for path in LUA.glob("*")} == set(CONTRACT)
    assert [script.name for script in scripts.ALL] == list(dict.fromkeys(script.name for script in scripts.ALL))
    assert {script.name for script in scripts.ALL} == set(CONTRACT)


@pytest.mark.parametrize("script", scripts.ALL, ids=lambda script: script.name)
class TestScript:
    def test_declaration_keeps_the_contract(self, script: Script) -> None:
        sent_keys, args = CONTRACT[script.name]
        assert script.args == tuple(args.split())
        assert all(key.endswith("?") for key in script.keys[sent_keys:])
        assert len(script.keys) >= sent_keys

    def test_header_agrees_with_the_declaration(self, script: Script) -> None:
        assert described(script, "KEYS") == script.keys
        assert described(script, "ARGV") == script.args
        assert f"  Returns {script.reply}" in header(script)

    def test_body_uses_the_keys_and_arguments_of_its_header(self, script: Script) -> None:
        body = script.text.removeprefix(f"--[[\n{header(script)}\n]]\n")
        for kind, names in (("KEYS", script.keys), ("ARGV", script.args)):
            used = {int(number) for number in re.findall(rf"{kind}\[(\d+)\]", body)}
            assert used <= set(range(1, len(names) + 1))

    def test_text_is_the_file_and_the_digest_is_its_own(self, script: Script) -> None:
        assert script.text == (LUA / f"{script.name}.lua").read_text(encoding="utf-8")
        assert script.sha1 == hashlib.sha1(script.text.encode(), usedforsecurity=False).hexdigest()

    def test_lines_fit(self, script: Script) -> None:
        lines = script.text.splitlines()
        assert all(len(line) <= 120 and line == line.rstrip() and "\t" not in line for line in lines)


L = "ns", "uid", "svc"


OPERATIONS: list[Operation[Any]] = [
    operations.set_linked_pod(*L, 1),
    operations.try_set_linked_pod(*L, 1, expected=2),
    operations.set_linked_pod_if_absent(*L, 1),
    operations.remove_linked_pod(*L),
    operations.remove_linked_pod_with_id(*L, 1),
    operations.get_linked_pod_if_persist(*L),
    operations.compute_linked_pod_if_absent(*L),
    operations.get_linked_services("ns", "uid"),
    operations.set_service_state("ns", "svc", 1, "Ready", version=3),
    operations.set_workload_state("ns", "svc", "Available", version=3),
    operations.reserve_service_pod("ns", "svc"),
    operations.release_service_pod("ns", "svc", 1),
    operations.get_service("ns", "svc"),
]


def test_operations_are_of_all_scripts() -> None:
    assert {operation.target for operation in OPERATIONS} == set(CONTRACT)


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_operations_send_what_the_script_takes(operation: Operation[Any]) -> None:
    script = operation.script
    assert script is not None
    required = [len([name for name in names if not name.endswith("?")]) for names in (script.keys, script.args)]
    assert required[0] <= len(operation.keys) <= len(script.keys)
    assert required[1] <= len(operation.args) <= len(script.args)
