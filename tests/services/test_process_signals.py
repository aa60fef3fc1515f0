from __future__ import annotations

import subprocess
import sys
import textwrap


def test_a_signal_in_the_middle_of_waiting_for_it_does_not_hang_the_process() -> None:
    program = textwrap.dedent(
        """
        import os, signal
        from services.process_signals import stop_on_signal

        stopping = stop_on_signal()
        with stopping._cond:  # as `wait` does around its own work
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)
        assert stopping.wait(10)
        """
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=30, check=False).returncode == 0


def test_a_signal_that_another_thread_received_ends_the_wait() -> None:
    program = textwrap.dedent(
        """
        import signal, threading, time
        from services.process_signals import stop_on_signal, wait_until_told

        def receive():
            time.sleep(0.3)  # the main thread waits by then; else the test shows less
            signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
            time.sleep(30)

        stopping = stop_on_signal()
        threading.Thread(target=receive, daemon=True).start()
        wait_until_told(stopping)
        """
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=20, check=False).returncode == 0
