"""The picture of `podlink status`: what a uid holds cannot break its lines."""

from __future__ import annotations

import io
import sys

import pytest
from rich.console import Console

from podlink.domain.podlinks import Policy
from podlink.domain.states import PodState
from podlink.status import ServiceStatus, Snapshot, draw, lines, printable
from podlink.store.operations import Service
from unit.builders import linked, podlink

SNAPSHOT = Snapshot(
    services=[
        ServiceStatus("games", "lobby", "Degraded", Service({0: PodState.READY, 10: PodState.PENDING}, {0: 2})),
        ServiceStatus("games", "empty", "ScaledToZero", Service({}, {})),
    ],
    links=[
        podlink(1, Policy.TRY_SET, linked(1), namespace="games", name="p-1", user="a\u2028b\u202ec"),
        podlink(1, namespace="games", name="p-2", user="new"),
    ],
)


def test_lines_tell_of_each_service_and_link() -> None:
    assert lines(SNAPSHOT) == [
        "service games/lobby Degraded 0=Ready(2) 10=Pending(0)",
        "service games/empty ScaledToZero",
        r"podlink games/p-1 uid=a\u2028b\u202ec service=lobby Linked reason=Linked pod=1",
        "podlink games/p-2 uid=new service=lobby - reason=- pod=-",
    ]


def test_tables_hold_the_same() -> None:
    console = Console(width=120, color_system=None)
    with console.capture() as capture:
        console.print(draw(SNAPSHOT))
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in capture.get().splitlines() if "│" in line]
    assert rows == [
        ["games", "lobby", "Degraded", "0", "Ready", "2"],
        ["", "", "", "10", "Pending", "0"],
        ["games", "empty", "ScaledToZero", "", "", ""],
        ["games", "p-1", r"a\u2028b\u202ec", "lobby", "1", "Linked", "Linked"],
        ["games", "p-2", "new", "lobby", "", "-", ""],
    ]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("player-42", "player-42"),
        ("[red]ü 玩家", "[red]ü 玩家"),
        ("a\nb", r"a\nb"),
        ("\u200b", r"\u200b"),
        ("\U000e0001", r"\U000e0001"),
    ],
)
def test_only_what_cannot_be_seen_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_a_narrow_terminal_gets_a_list_in_which_no_name_is_cut() -> None:
    console = Console(width=40, color_system=None)
    with console.capture() as capture:
        console.print(draw(SNAPSHOT))
    shown = [line.rstrip() for line in capture.get().splitlines()]
    assert shown[:14] == [
        "Services",
        "- Namespace games",
        "  Service   lobby",
        "  Workload  Degraded",
        "  Pod       0",
        "  State     Ready",
        "  Links     2",
        "  Pod       10",
        "  State     Pending",
        "  Links     0",
        "- Namespace games",
        "  Service   empty",
        "  Workload  ScaledToZero",
        "PodLinks",
    ]
    assert all(len(line) <= 40 for line in shown)


def test_a_long_name_is_folded_into_a_table_that_has_room() -> None:
    uid = "session-" + 60 * "x"
    console = Console(width=100, color_system=None)
    with console.capture() as capture:
        console.print(draw(Snapshot([], [podlink(1, namespace="games", name="p-1", user=uid)])))
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in capture.get().splitlines() if "│" in line]
    assert len(rows) > 1
    assert "".join(row[2] for row in rows) == uid


@pytest.mark.parametrize(("encoding", "shown"), [("latin-1", r"ü\u73a9"), ("ascii", r"\xfc\u73a9"), ("utf-8", "ü玩")])
def test_what_the_terminal_cannot_show_is_escaped(monkeypatch: pytest.MonkeyPatch, encoding: str, shown: str) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    assert printable("ü玩") == shown
