"""The demo's figures and page, on the protocol that needs nothing; all protocols in the full suite."""

from __future__ import annotations

import json
import struct
import zlib
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from secure_infer import backends
from secure_infer.backends.base import Backend
from secure_infer.cli.demo_page import png
from secure_infer.errors import missing_extra
from tests.cli.command import call, process

PHASES = {"compile", "keygen", "encrypt", "run", "decrypt"}


class _Page(HTMLParser):
    """Collects tags, pictures, and whatever the page would fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.pictures: list[str] = []
        self.fetched: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("img", "meta"):
            self.open.append(tag)
        for name, value in attrs:
            if tag == "img" and name == "src":
                self.pictures.append(str(value))
            if name in ("src", "href") and not str(value).startswith("data:"):
                self.fetched.append(str(value))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def _check(document: dict[str, object], protocol: str, n: int) -> None:
    figures = document["protocols"][protocol]
    assert figures["n"] == figures["agree_with_clear"] == n
    assert n - 1 <= figures["correct"] <= n
    assert set(figures["phases_s"]) >= PHASES
    assert set(figures["bytes"]) == {"evaluation_keys", "input", "output"}
    assert all(value > 0 for value in figures["phases_s"].values())


def test_clear(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = call(capsys, "demo", "--protocols", "clear", "--n", 3, "--json", "demo.json")
    assert code == 0, err
    assert "3/3" in out and "the server reads everything" in out
    document = json.loads(Path("demo.json").read_text())
    _check(document, "clear", 3)
    page = _Page(Path("demo.html").read_text())
    assert page.open == [] and page.fetched == []
    assert len(page.pictures) == 6
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo.html", "demo.json"]


def test_json_to_standard_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(
        capsys, "demo", "--protocols", "clear", "--n", 1, "--json", "-", "--html", tmp_path / "page.html"
    )
    assert code == 0
    _check(json.loads(out), "clear", 1)
    assert (tmp_path / "page.html").exists()


def test_missing_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    load = backends.load

    def without_tfhe(protocol: str) -> Backend:
        if protocol == "tfhe":
            raise missing_extra("tfhe", "tfhe", "concrete")
        return load(protocol)

    monkeypatch.setattr(backends, "load", without_tfhe)
    words = ["demo", "--protocols", "tfhe,clear", "--n", 2, "--json"]
    code, out, err = call(capsys, *words, tmp_path / "demo.json")
    assert code == 5
    assert "not installed" in out and "2/2" in out
    assert "pip install 'secure_infer[tfhe]'" in err
    document = json.loads((tmp_path / "demo.json").read_text())
    _check(document, "clear", 2)
    assert document["failed"]["tfhe"]["type"] == "MissingExtra"
    assert "secure_infer[tfhe]" in (tmp_path / "demo.html").read_text()
    code, out, err = call(capsys, *words, "-")
    assert (code, err) == (5, "")
    assert list(json.loads(out)["protocols"]) == ["clear"]


def test_png_is_well_formed() -> None:
    pixels = np.arange(35, dtype=np.uint8).reshape(5, 7)
    data = png(pixels)
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, at = {}, 8
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        assert struct.unpack_from(">I", data, at + 8 + length)[0] == zlib.crc32(kind + body)
        chunks[kind] = body
        at += 12 + length
    assert struct.unpack(">IIBBBBB", chunks[b"IHDR"]) == (7, 5, 8, 0, 0, 0, 0)
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), dtype=np.uint8).reshape(5, 8)
    assert (rows[:, 0] == 0).all() and (rows[:, 1:] == pixels).all()


@pytest.mark.full
def test_all_protocols(tmp_path: Path) -> None:
    done = process("demo", "--json", "demo.json", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads((tmp_path / "demo.json").read_text())
    for protocol in ("clear", "tfhe", "ckks", "mpc"):
        _check(document, protocol, 5)
    page = _Page((tmp_path / "demo.html").read_text())
    # Five digits, and what each server saw of them: one server each, but two under MPC.
    assert len(page.pictures) == 5 * (1 + 3 + 2)
