"""When a server that could not be reached is tried again."""

from podlink.store.topology.circuit import Circuit


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_closed_until_something_fails() -> None:
    assert Circuit().seconds_left == 0


def test_the_wait_doubles_up_to_a_second() -> None:
    clock = Clock()
    circuit = Circuit(clock, spread=lambda: 0.0)
    waits = []
    for _ in range(8):
        circuit.failed()
        waits.append(round(circuit.seconds_left, 3))
        clock.now += 10
    assert waits == [0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 1.0]


def test_it_is_shortened_at_random_by_a_half_at_most() -> None:
    clock = Clock()
    shortest, longest = Circuit(clock, spread=lambda: 1.0), Circuit(clock, spread=lambda: 0.0)
    shortest.failed()
    longest.failed()
    assert (round(shortest.seconds_left, 3), round(longest.seconds_left, 3)) == (0.025, 0.05)


def test_time_closes_it_for_one_attempt_and_success_for_good() -> None:
    clock = Clock()
    circuit = Circuit(clock, spread=lambda: 0.0)
    circuit.failed()
    clock.now += 0.05
    assert circuit.seconds_left == 0
    circuit.failed()
    assert round(circuit.seconds_left, 3) == 0.1
    circuit.succeeded()
    assert circuit.seconds_left == 0
    circuit.failed()
    assert round(circuit.seconds_left, 3) == 0.05


def test_no_two_clients_come_back_in_the_same_instant() -> None:
    clock = Clock()
    circuits = [Circuit(clock) for _ in range(10)]
    for circuit in circuits:
        circuit.failed()
    assert len({circuit.seconds_left for circuit in circuits}) == 10
