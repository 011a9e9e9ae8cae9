"""Protocol folders as they run: what everybody saw, by looking; and an end to all processes, however a run ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from secure_infer.cli import console
from secure_infer.errors import UsageError
from secure_infer.scenario.play import read_plan
from secure_infer.scenario.witness import held, holders, kind_of, probe
from secure_infer.wire import frame
from tests.cli.command import call, succeed

PROTOCOLS = Path(__file__).parents[2] / "protocols"
SERVERS = {
    "ckks": {"server"},
    "tfhe": {"server"},
    "mpc": {"party 0", "party 1"},
    "mpc-fss": {"party 0", "party 1"},
    "mpc-spu": {"party 0", "party 1", "party 2"},
}


@pytest.mark.parametrize(
    "protocol",
    ["ckks", *(pytest.param(name, marks=pytest.mark.full) for name in ("tfhe", "mpc", "mpc-fss", "mpc-spu"))],
)
def test_a_protocol_folder_runs(protocol: str) -> None:
    if protocol == "mpc-spu":
        pytest.importorskip("spu")
    found = succeed("run", PROTOCOLS / protocol)
    assert len(found["predictions"]) == 3
    assert all(each["predicted"] == each["clear"] for each in found["predictions"])
    servers = SERVERS[protocol]
    assert set(found["roles"]) == {"client", *servers} | ({"dealer"} if len(servers) == 2 else set())
    _kept_and_sent(found, servers)
    _as_the_servers_say(found, servers)
    if protocol == "mpc":
        dealt = {entry["kind"] for entry in found["roles"]["dealer"]["holds"] if entry["path"] != "protocol"}
        assert dealt == {"certificate", "private key"}
        assert [each["rounds"] for each in found["statistics"]] == [8] * 3
    if protocol == "mpc-fss":
        assert [each["rounds"] for each in found["statistics"]] == [2] * 3
        assert [each["first_item"] for each in found["statistics"]] == [0, 1, 2]


def _kept_and_sent(found: dict[str, Any], servers: set[str]) -> None:
    """The secret key stays, no message holds it or an input, and each server is sent what it needs."""
    mpc = len(servers) > 1
    assert found["secret_key_in_files_of"] == ([] if mpc else ["client"])
    assert not any(each["holds_secret_key"] or each["holds_input"] for each in found["messages"])
    assert {each["receiver"] for each in found["messages"]} == {"client", *servers}
    kinds = {each["kind"]: each["count"] for each in found["messages"] if each["sender"] == "client"}
    assert sorted(kinds.values()) == ([3] if mpc else [1, 3]), kinds
    assert all(kind for kind in kinds)
    said = (PROTOCOLS / found["protocol"] / "PROTOCOL.md").read_text()
    for each in found["messages"]:
        if each["kind"].endswith(("-evaluation", "-output", "-reply")) and not mpc:
            assert console.size(each["bytes"][0]).split()[0] in said, each
    client = {entry["kind"] for entry in found["roles"]["client"]["holds"]}
    assert {"secret-key", "inputs"} <= client


def _as_the_servers_say(found: dict[str, Any], servers: set[str]) -> None:
    """What the client counts on the wire is what each server has counted."""
    for server in servers:
        sent = sum(sum(each["bytes"]) for each in found["messages"] if each["receiver"] == server)
        assert found["roles"][server]["http_bytes"]["in"] == sent


def folder(tmp_path: Path, **scenario: object) -> Path:
    """A protocol folder that needs no crypto library."""
    fields = {"model": "digits-mlp-bnn", "n": 1, **scenario}
    lines = [f"{name} = {json.dumps(value)}" for name, value in fields.items()]
    (tmp_path / "protocol.toml").write_text("\n".join(['name = "clear"', "exact = true", "[scenario]", *lines]))
    return tmp_path


@pytest.mark.full
def test_what_is_in_the_clear_is_found_in_the_clear(tmp_path: Path) -> None:
    """The search for inputs finds one where there is one."""
    found = succeed("run", folder(tmp_path))
    inputs = [each for each in found["messages"] if each["kind"] == "integers" and each["receiver"] == "server"]
    assert [each["holds_input"] for each in inputs] == [True]


def _children(parent: int) -> dict[int, str]:
    """Processes below one, by number, with their command lines."""
    found: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if int(fields[1]) == parent:
                found |= {int(entry.name): words, **_children(int(entry.name))}
    return found


def _during(tmp_path: Path, act: Callable[[subprocess.Popen[str], dict[int, str]], None]) -> tuple[int, str, list[int]]:
    """Run a folder, act once its server has been started; the exit code, what was said, and processes that are left."""
    place = tmp_path / "temporary"
    place.mkdir()
    command = [sys.executable, "-m", "secure_infer.cli", "run", str(folder(tmp_path)), "--json"]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell job passes on that it is ignored
    running = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(place)})
    deadline = time.monotonic() + 120
    below: dict[int, str] = {}
    while not any(" serve " in words for words in below.values()):
        assert running.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
        below = _children(running.pid)
    act(running, below)
    said, _ = running.communicate(timeout=120)
    assert not list(place.iterdir()), "what a run leaves behind"
    return running.returncode, said, [number for number in below if Path(f"/proc/{number}").exists()]


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.full)])
def test_an_interrupt_ends_all(tmp_path: Path, number: int) -> None:
    code, said, left = _during(tmp_path, lambda running, below: running.send_signal(number))
    assert (code, left) == (130, [])
    assert json.loads(said)["error"]["summary"] == "Interrupted."


@pytest.mark.full
def test_a_role_that_fails_is_named_and_ends_all(tmp_path: Path) -> None:
    def kill(running: subprocess.Popen[str], below: dict[int, str]) -> None:
        os.kill(next(number for number, words in below.items() if " serve " in words), signal.SIGKILL)

    code, said, left = _during(tmp_path, kill)
    assert (code, left) == (10, [])
    assert "The server ended with code -9" in json.loads(said)["error"]["summary"]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (None, "protocol.toml"),
        ("name = ", "TOMLDecodeError"),
        ('name = "ckks"', "KeyError"),
        ('name = "ckks"\nexact = true\nscenario = 3', "TypeError"),
        ('name = "ckks"\nexact = true\n[scenario]\nmodel = "x"\nn = 0', "n is 0"),
        ('name = "ckks"\nexact = true\n[scenario]\nmodel = "x"\nn = "many"', "ValueError"),
    ],
)
def test_folders_that_can_not_be_run(tmp_path: Path, text: str | None, what: str) -> None:
    if text is not None:
        (tmp_path / "protocol.toml").write_text(text)
    with pytest.raises(UsageError, match=what):
        read_plan(tmp_path)


def test_misuse_of_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, said = call(capsys, "run", folder(tmp_path, model="no-such-model"))
    assert code == 2 and "no-such-model" in said
    code, _, said = call(capsys, "run", tmp_path, "--out", "x")
    assert code == 2 and "--out" in said
    code, _, said = call(capsys, "run", tmp_path / "protocol.toml")
    assert code == 2 and all(option in said for option in ("--evaluation", "--message", "--out"))


def test_files_and_secrets_are_recognized(tmp_path: Path) -> None:
    key = os.urandom(3000)
    frame_of = frame.pack("some-kind", [key])
    assert kind_of(frame_of) == "some-kind"
    assert kind_of(b"SIF1" + bytes(40)) == kind_of(b"") == kind_of(frame_of[:50]) == ""
    piece = probe(bytes(5000) + key)
    assert piece is not None and piece in bytes(5000) + key
    assert probe(bytes(10_000)) is probe(b"") is None
    for role in ("a", "b"):
        (tmp_path / role).mkdir()
    (tmp_path / "a" / "frame").write_bytes(frame_of)
    (tmp_path / "b" / "note").write_bytes(b"nothing")
    np.save(tmp_path / "b" / "x.npy", np.zeros(3))
    folders = {name: tmp_path / name for name in ("a", "b")}
    assert holders(folders, probe(key) or b"") == ["a"]
    assert [entry["kind"] for entry in held(folders["a"]) + held(folders["b"])] == ["some-kind", "file", "inputs"]
