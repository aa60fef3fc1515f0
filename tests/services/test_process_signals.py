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
