"""The wish to end."""

import signal
import subprocess
import sys
import time
from threading import Thread

from connectors.kafka.stop import Stop


def test_nobody_has_asked_at_first() -> None:
    stop = Stop()
    assert not stop.requested
    assert stop.deadline is None
    assert not stop.wait(0.0)


def test_the_first_deadline_wins() -> None:
    stop = Stop()
    stop.request(drain_s=10.0)
    first = stop.deadline
    stop.request(drain_s=1000.0)
    assert stop.requested
    assert stop.deadline == first
    assert first is not None
    assert first < time.monotonic() + 11.0


def test_a_waiter_wakes_up_when_another_thread_asks() -> None:
    stop = Stop()
    asking = Thread(target=stop.request)
    asking.start()
    assert stop.wait(30.0)
    asking.join()


def test_a_signal_handler_may_ask_while_the_main_thread_waits() -> None:
    program = """if True:
        import signal, sys
        from connectors.kafka.stop import Stop
        stop = Stop()
        signal.signal(signal.SIGTERM, lambda *_: stop.request())
        print("ready", flush=True)
        sys.exit(0 if stop.wait(30.0) else 1)
    """
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(30.0) == 0
