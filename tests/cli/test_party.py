"""The verbs `provision` and `party`: what they make and what they refuse; the roles at work are tested in scenarios."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.command import call
from tests.fuzz import seeds

pytest.importorskip("crypten")


def test_an_identity_for_one_role(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "provision", "--role", "b", "--out", tmp_path / "b", "--json")
    assert code == 0 and json.loads(out) == {"folders": {"b": str(tmp_path / "b")}}
    key = (tmp_path / "b" / "identity.key").read_bytes()
    assert (tmp_path / "b" / "identity.key").stat().st_mode & 0o777 == 0o600
    code, out, _ = call(capsys, "provision", "--role", "b", "--out", tmp_path / "b")
    assert code == 0 and "identity.pem" in out
    assert (tmp_path / "b" / "identity.key").read_bytes() == key, "an identity is never replaced"


def test_what_can_not_be_provisioned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = seeds.save(tmp_path / "one.bundle")
    for words, said in (
        (["--role", "d", "--out", tmp_path], "none of a, b, c, dealer"),
        (["--out", tmp_path], "BUNDLE"),
        ([one, "--out", tmp_path / "roles"], "for one server"),
    ):
        code, _, err = call(capsys, "provision", *words)
        assert code == 2 and said in err


def test_a_role_says_all_that_it_lacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for role in ("b", "dealer"):
        assert call(capsys, "provision", "--role", role, "--out", tmp_path / role)[0] == 0
    broken = tmp_path / "protocol.toml"
    broken.write_text("roles = 3")
    for words, said in (
        (["--role", "d", "--folder", tmp_path], ["none of a, b, c, dealer"]),
        (["--role", "a", "--folder", tmp_path], ["identity.key"]),
        (["--role", "b", "--folder", tmp_path / "b", "--config", broken], ["protocol.toml"]),
        (["--role", "b", "--folder", tmp_path / "b"], ["party 0", "dealer", "certificate", "address"]),
        (["--role", "b", "--folder", tmp_path / "b", "--dealer", "nowhere"], ["host:port"]),
        (["--role", "dealer", "--folder", tmp_path / "dealer"], ["has to listen somewhere"]),
    ):
        code, _, err = call(capsys, "party", *words)
        assert code == 2, err
        assert all(part in err for part in said), err
