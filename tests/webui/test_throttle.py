"""Counting wrong passwords: per client, altogether, in bounded memory."""

from __future__ import annotations

from fastsd_lib.webui import throttle
from fastsd_lib.webui.throttle import Crowd, Throttle, client_key


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_waits_double_up_to_five_minutes_and_are_forgotten():
    clock = Clock()
    guesses = Throttle(clock)
    waits = []
    for _ in range(16):
        guesses.failed("a")
        waits.append(guesses.wait_s("a"))
        clock.now += waits[-1] + 60  # one a minute: the common limit is not reached
    assert waits == [0, 0, 0, 0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]
    clock.now += throttle.FORGET_AFTER_S
    guesses.failed("a")
    assert guesses.wait_s("a") == 0


def test_one_clients_guesses_do_not_stop_another_until_there_are_very_many():
    clock = Clock()
    guesses = Throttle(clock)
    for number in range(throttle.TRIES_PER_MINUTE - 1):
        guesses.failed(f"client {number}")
    assert guesses.wait_s("another") == 0
    guesses.failed("one more")
    assert guesses.wait_s("another") == 60
    clock.now += 60
    assert guesses.wait_s("another") == 0


def test_the_right_password_clears_the_count():
    guesses = Throttle(Clock())
    for _ in range(5):
        guesses.failed("a")
    guesses.succeeded("a")
    assert guesses.wait_s("a") == 0


def test_memory_is_bounded_whatever_number_of_clients_guess():
    guesses, crowd = Throttle(Clock()), Crowd(2)
    for number in range(5000):
        guesses.failed(str(number))
        assert crowd.enter(str(number))
        crowd.leave(str(number))
    assert (
        len(guesses._clients) == throttle.KEPT_CLIENTS and len(guesses._recent) == throttle.TRIES_PER_MINUTE
    )
    assert not crowd._under_way


def test_a_home_network_is_one_client():
    assert (
        client_key("2001:db8:1:2:3:4:5:6") == client_key("2001:db8:1:2::1") != client_key("2001:db8:1:3::1")
    )
    assert client_key("10.0.0.1") != client_key("10.0.0.2")
    assert client_key("::ffff:10.0.0.1") != client_key("::ffff:10.0.0.2")
