"""Schedules against a simulation that counts seconds one by one, and against bounds of any schedule."""

from hypothesis import given, settings
from hypothesis import strategies as st

from vit_ptq_bench.bench.simulation.schedule import Piece, scheduled


@st.composite
def plans(draw):
    """Models with a run that the others of the model wait for, in the order of a plan."""
    pieces = []
    for _ in range(draw(st.integers(1, 4))):
        first = len(pieces)
        pieces.append(Piece(draw(st.integers(1, 9))))
        pieces += [Piece(draw(st.integers(1, 9)), first) for _ in range(draw(st.integers(0, 6)))]
    return pieces


def second_by_second(pieces, devices):
    """Seconds until all is done: in each one, free devices take what can begin, in the plan's order."""
    left = [piece.seconds for piece in pieces]
    running, begun, now = set(), set(), 0
    while any(left):
        for place, piece in enumerate(pieces):
            free = piece.after is None or left[piece.after] == 0
            if place not in begun and free and len(running) < devices:
                running.add(place)
                begun.add(place)
        for place in running:
            left[place] -= 1
        running = {place for place in running if left[place]}
        now += 1
    return now


@settings(max_examples=200, deadline=None)
@given(plans(), st.integers(1, 6))
def test_it_is_what_a_clock_would_count(pieces, devices):
    found = scheduled(pieces, devices)
    assert found.makespan == second_by_second(pieces, devices)
    assert found.busy == sum(piece.seconds for piece in pieces)
    assert found.bound <= found.makespan + 1e-9
    # Graham: list scheduling takes at most the even share and the longest chain together.
    assert found.makespan <= found.busy / devices + max(found.bound, 18) + 1e-9
    assert 0 <= found.idle < 1


def test_one_device_is_never_idle():
    found = scheduled([Piece(2.5), Piece(4.0, 0), Piece(1.0, 0)], 1)
    assert (found.makespan, found.idle, found.bound) == (7.5, 0.0, 7.5)


def test_devices_without_work_are_idle():
    found = scheduled([Piece(1.0), Piece(3.0, 0)], 4)
    assert (found.makespan, found.bound) == (4.0, 4.0)
    assert found.idle == 0.75


def test_nothing_takes_no_time():
    assert scheduled([], 3).makespan == 0 and scheduled([], 3).idle == 0
