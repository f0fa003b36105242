"""The picture of `podlink status`: what a uid holds cannot break its lines."""

from __future__ import annotations

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
