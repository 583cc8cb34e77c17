"""The first signal is heard, the second ends; and afterwards all is as it was."""

import os
import signal
import threading

import pytest

from kresnet.train.signals import stoppable, terminable

KINDS = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture(autouse=True)
def _as_in_a_terminal():
    """A shell starts what it runs in the background with Ctrl-C ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def handlers():
    return [signal.getsignal(kind) for kind in KINDS]


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_signal_is_a_call_and_the_second_ends(kind):
    before, calls = handlers(), []
    with terminable(), stoppable(lambda: calls.append(1)):
        os.kill(os.getpid(), kind)
        assert calls == [1]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), kind)
    assert calls == [1]
    assert handlers() == before


def test_sigterm_is_as_ctrl_c_where_there_is_no_next_step():
    before = handlers()
    assert before[1] == signal.SIG_DFL  # which would end this process
    with pytest.raises(KeyboardInterrupt), terminable():
        os.kill(os.getpid(), signal.SIGTERM)
    assert handlers() == before


def test_other_threads_leave_signals_alone():
    before, inside = handlers(), []

    def run():
        with terminable(), stoppable(lambda: None):
            inside.extend(handlers())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert inside == before
