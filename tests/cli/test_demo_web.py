"""The local page in a real browser: draw, ask, and see what was sent; and whom the page refuses."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
STROKES = ((0.3, 0.25), (0.5, 0.13), (0.7, 0.27), (0.65, 0.42), (0.48, 0.49), (0.67, 0.58), (0.72, 0.72), (0.5, 0.88))
SECONDS = 300_000  # milliseconds, as the browser has it


@contextmanager
def page_of(protocols: str, folder: Path) -> Iterator[str]:
    """The address of a running demo."""
    command = [sys.executable, "-m", "secure_infer.cli", "demo", "--web", "--port", "0", "--protocols", protocols]
    with open(folder / "errors", "wb") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        line = process.stdout.readline() if process.stdout else ""
        found = re.search(r"http://127\.0\.0\.1:\d+", line)
        assert found, line + (folder / "errors").read_text()
        yield found[0]
        with urllib.request.urlopen(f"{found[0]}/state", timeout=30) as state:
            stages = json.load(state)["stages"]
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)
        if process.stdout:
            process.stdout.close()
    servers = [number for stage in stages for number in stage["processes"].values()]
    assert len(servers) >= len(stages)
    assert not [number for number in servers if Path(f"/proc/{number}").exists()], "servers outlived the demo"


def pictures(folder: Path) -> Path:
    """Where to keep screenshots: SECURE_INFER_SHOTS, to show them to people."""
    return Path(os.environ.get("SECURE_INFER_SHOTS", folder))


def draw(page: Any) -> None:
    """A three."""
    box, mouse = page.locator("#pad").bounding_box(), page.mouse
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in STROKES]
    mouse.move(*places[0])
    mouse.down()
    for place in places[1:]:
        mouse.move(*place, steps=6)
    mouse.up()


def watch(url: str, protocols: list[str], folder: Path) -> dict[str, dict[str, Any]]:
    """Draw and ask under every protocol; returns what the page shows."""
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    shown: dict[str, dict[str, Any]] = {}
    with sync.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1360, "height": 940}, color_scheme="light")
        troubles: list[str] = []
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("console", lambda message: troubles.append(message.text) if message.type == "error" else None)
        page.on("requestfailed", lambda request: troubles.append(request.url))
        page.goto(url)
        for protocol in protocols:
            page.wait_for_selector(f"[data-protocol={protocol}][data-phase=ready]", timeout=SECONDS)
            page.click(f"[data-protocol={protocol}]")
            assert page.locator("#ask").is_disabled(), "there is nothing to ask about"
            draw(page)
            page.click("#ask")
            page.wait_for_selector("#verdict:not(:empty)", timeout=SECONDS)
            page.screenshot(path=folder / f"demo-{protocol}.png", full_page=True)
            shown[protocol] = {
                name: page.locator(f"#{name}").inner_text() for name in ("answer", "verdict", "wire", "server", "key")
            } | {"pictures": page.locator("#seen canvas").count(), "found": page.evaluate(f"results['{protocol}']")}
            page.click("#clear")
            assert page.locator("#answer").inner_text() == "·"
        assert not [url for url in page.evaluate("performance.getEntries().map(e => e.name)") if _elsewhere(url)]
        browser.close()
        assert not troubles
    return shown


def _elsewhere(url: str) -> bool:
    return "://" in url and not url.startswith("http://127.0.0.1")


def check(shown: dict[str, Any], servers: int) -> None:
    found = shown["found"]
    assert shown["answer"] == str(found["predicted"]) == "3"
    assert found["predicted"] == found["clear"]
    assert "same as this network gives without encryption" in shown["verdict"]
    assert shown["pictures"] == servers
    assert len(found["messages"]) == 2 * servers
    assert "client → " in shown["wire"] and "→ client" in shown["wire"]
    assert "IT COMPUTED" in shown["server"].upper()


def test_draw_and_ask(tmp_path: Path) -> None:
    folder = pictures(tmp_path)
    with page_of("ckks", tmp_path) as url:
        shown = watch(url, ["ckks"], folder)["ckks"]
        check(shown, servers=1)
        assert re.match(r"Secret key: \d+ kB, made here", shown["key"])
        assert (folder / "demo-ckks.png").stat().st_size > 50_000
        _refuses_strangers(url.removeprefix("http://"))


@pytest.mark.full
def test_every_protocol(tmp_path: Path) -> None:
    with page_of("tfhe,ckks,mpc", tmp_path) as url:
        shown = watch(url, ["tfhe", "ckks", "mpc"], pictures(tmp_path))
    for protocol, servers in {"tfhe": 1, "ckks": 1, "mpc": 2}.items():
        check(shown[protocol], servers)


def _refuses_strangers(host: str) -> None:
    """Other sites, other names of this machine, and questions that are none."""
    pixels = [0.0] * 64
    mine = {"Origin": f"http://{host}", "Content-Type": "application/json"}
    for headers, body, status in (
        ({"Origin": "https://elsewhere.example"}, {"protocol": "ckks", "pixels": pixels}, 403),
        ({}, {"protocol": "ckks", "pixels": pixels}, 403),
        (mine | {"Host": "elsewhere.example"}, {"protocol": "ckks", "pixels": pixels}, 400),
        (mine, {"protocol": "ckks", "pixels": pixels[1:]}, 422),
        (mine, {"protocol": "ckks", "pixels": [7.0] * 64}, 422),
        (mine, {"protocol": "ckks", "pixels": [None] * 64}, 422),
        (mine, {"protocol": "clear", "pixels": pixels}, 422),
        (mine, {}, 400),
        (mine, [], 400),
        (mine, "x" * (1 << 15), 413),
    ):
        connection = http.client.HTTPConnection(host, timeout=30)
        connection.request("POST", "/predict", json.dumps(body), headers)
        assert connection.getresponse().status == status, (headers, str(body)[:80])
        connection.close()
