"""The console: plain lines in a pipe, one that is rewritten on a terminal, none when quiet."""

import os
import pty
import subprocess
import sys

import pytest

from kresnet.console import Console, duration

PROGRAM = """
import time
from kresnet.console import Console
with Console() as console:
    console.line("data", "classes [red] and [/bold]")
    for step in (1, 2):
        console.status(f"epoch 1/3  step {step}/2  loss 0.712  1910.3 images/s  wait 3%  eta 5:41")
        time.sleep(0.21)
    console.progress("reading", 500, 1000)
    console.line("  1/3", "loss 0.712  val 0.901 ±.025 (loss 0.338)")
"""
LINES = [
    "data    classes [red] and [/bold]",
    "  1/3   loss 0.712  val 0.901 ±.025 (loss 0.338)",
]


def test_a_pipe_gets_plain_lines_and_nothing_else():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, check=True)
    assert done.stdout == b""
    assert done.stderr.decode().splitlines() == LINES


def on_a_terminal(**environment):
    """Run the program on a terminal of 80 columns, and return all that it writes there."""
    ours, theirs = pty.openpty()
    names = os.environ | {"TERM": "xterm-256color", "COLUMNS": "80"} | environment
    process = subprocess.Popen([sys.executable, "-c", PROGRAM], stderr=theirs, env=names)
    os.close(theirs)
    written = b""
    while True:
        try:
            written += (part := os.read(ours, 4096))
        except OSError:  # the other side is closed
            part = b""
        if not part:
            os.close(ours)
            assert process.wait(60) == 0
            return written.decode()


def test_a_terminal_gets_a_line_that_is_rewritten():
    shown = on_a_terminal()
    assert "epoch 1/3  step 1/2  loss 0.712  1910.3 images/s  wait 3%  eta 5:41" in shown
    assert "step 2/2" in shown
    assert "reading ━━━━━━━━━━━━╌╌╌╌╌╌╌╌╌╌╌╌ 500 / 1000" in shown
    assert "\x1b[2K" in shown  # the line is cleared before it is written again
    last = shown.rsplit("\x1b[2K", 1)[1]
    assert "val 0.901 ±.025" in last
    assert "\x1b[?25h" in shown  # the cursor is back


def test_colours_can_be_turned_off():
    assert "\x1b[32m" in on_a_terminal()
    assert "\x1b[32m" not in on_a_terminal(NO_COLOR="1")


def test_quiet_says_nothing(capsys):
    with Console(quiet=True) as console:
        console.line("data", "much")
        console.status("busy")
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (59.4, "0:59"), (59.6, "1:00"), (61, "1:01"), (3599.9, "1:00:00"), (-3, "0:00")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text
