"""Programs that a model wrote: what they may do and what stops them."""

import sys
from pathlib import Path

import pytest

from resources.sandbox import run_python

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox is Linux's")


def test_a_right_program_passes_and_a_wrong_one_fails_with_its_message() -> None:
    assert run_python("def add(a, b):\n    return a + b\nassert add(1, 2) == 3").passed
    wrong = run_python("assert 1 + 1 == 3, 'one and one'")
    assert not wrong.passed and wrong.reason == "failed" and "one and one" in wrong.output


@pytest.mark.parametrize(
    "program", ["raise SystemExit(0)", "import os\nos._exit(0)", "print('reached the end')\nraise SystemExit", "def broken(:"]
)
def test_a_program_that_ends_before_its_end_does_not_pass(program: str) -> None:
    assert not run_python(program).passed


@pytest.mark.parametrize(
    "program",
    [
        "import socket\nsocket.socket()",
        "import socket\nsocket.create_connection(('127.0.0.1', 80))",
        "import urllib.request\nurllib.request.urlopen('http://127.0.0.1')",
        "import socket\nsocket.socketpair()",
        "import subprocess, sys\nsubprocess.run([sys.executable, '-c', 'import socket; socket.socket()'], check=True)",
        "import ctypes\nassert ctypes.CDLL(None).syscall(41, 2, 1, 0) >= 0" if sys.platform == "linux" else "1 / 0",
    ],
)
def test_there_is_no_network_for_a_program_or_its_children(program: str) -> None:
    assert run_python(program).reason == "failed"


def test_time_memory_and_files_are_limited(tmp_path: Path) -> None:
    assert run_python("while True: pass", seconds=1).reason == "timeout"
    assert run_python("import time\ntime.sleep(60)", seconds=1).reason == "timeout"
    assert run_python("x = bytearray(2 * 1024**3)").reason == "memory"
    assert not run_python("open('big', 'wb').write(bytes(8 * 1024**2))").passed


def test_a_program_sees_neither_our_environment_nor_our_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAMPU_SECRET", "mine")
    assert run_python("import os\nassert 'TAMPU_SECRET' not in os.environ and os.listdir('.') == []").passed
    assert not run_python("import resources").passed
