"""The demo as one HTML page that needs no network: digits, what each server saw, predictions, costs, promises."""

from __future__ import annotations

import base64
import math
import re
import struct
import zlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from importlib.resources import files as resources
from string import Template
from typing import Any

import numpy as np
import numpy.typing as npt

from secure_infer import __version__
from secure_infer.backends.base import Guarantee
from secure_infer.cli import console
from secure_infer.cli.demo_run import EACH, ONCE, Digit, Reading, Run
from secure_infer.cores import in_words
from secure_infer.errors import BundleError

_NAMES = {
    "clear": ("Clear", "no encryption, for comparison"),
    "tfhe": ("TFHE", "encrypted integers and look-up tables"),
    "ckks": ("CKKS", "packed approximate numbers"),
    "mpc": ("MPC", "shares, one for each of two servers"),
}
_PHASES = {"start": "start servers"}
_SIDE = 32
"""Side of the picture of a ciphertext, in bytes."""


def render(runs: Sequence[Run], digits: Sequence[Digit], host: Mapping[str, Any]) -> str:
    """The page."""
    template = Template(resources("secure_infer.cli").joinpath("demo_page.html").read_text(encoding="utf-8"))
    ready = [run for run in runs if run.readings]
    total, agree = sum(len(run.readings) for run in ready), sum(run.agreeing() for run in ready)
    right = sum(run.correct(digits) for run in ready)
    return template.substitute(
        columns=len(runs),
        count=_words(len(digits)).capitalize(),
        agree=f"{agree} of {total}",
        right=f"{right} of {total}",
        verdict="whole" if agree == total and len(ready) == len(runs) else "broken",
        heads="".join(_head(run) for run in runs),
        rows="".join(_row(runs, position, digit) for position, digit in enumerate(digits)),
        scores="".join(_cell(run, _score(run, digits)) for run in runs),
        once="".join(_cell(run, _times(run, runs, ONCE)) for run in runs),
        each="".join(_cell(run, _times(run, runs, EACH)) for run in runs),
        traffic="".join(_cell(run, _traffic(run, runs)) for run in runs),
        promises="".join(_cell(run, _promise(run)) for run in runs),
        host=_host(host),
    )


def _words(n: int) -> str:
    words = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    return f"{words[n - 1] if n <= len(words) else n} handwritten digit{'s' if n > 1 else ''}"


def _cell(run: Run, content: str) -> str:
    return f'<div class="cell {escape(run.protocol)}">{content}</div>'


def _head(run: Run) -> str:
    name, what = _NAMES.get(run.protocol, (run.protocol, ""))
    return (
        f'<div class="cell head {escape(run.protocol)}"><h2>{escape(name)}</h2><p>{escape(what)}</p>'
        f"<p><code>{escape(run.model or '-')}</code></p></div>"
    )


def _row(runs: Sequence[Run], position: int, digit: Digit) -> str:
    image = _picture(255 * digit.pixels, f"handwritten {digit.label}", "digit")
    cells = [_cell(run, _reading(run, position, digit)) for run in runs]
    return f'<div class="side sample">{image}<span>{digit.label}</span></div>{"".join(cells)}'


def _reading(run: Run, position: int, digit: Digit) -> str:
    if position >= len(run.readings):
        return ""
    reading = run.readings[position]
    right = "right" if reading.predicted == digit.label else "wrong"
    took = console.seconds(sum(reading.wall_s.values()))
    return (
        f'<div class="reading">{_seen(run.protocol, reading)}<span class="arrow">&rarr;</span>'
        f'<span class="answer {right}">{reading.predicted}</span><span class="took">{took}</span></div>'
    )


def _seen(protocol: str, reading: Reading) -> str:
    """What each server received, as a picture: a byte is a pixel; what is not encrypted is shown as what it is."""
    if protocol == "clear":
        from secure_infer.backends.clear import unpack_integers

        try:
            units = unpack_integers(reading.seen[0]).reshape(-1)
            side = math.isqrt(units.size)
            image = units[: side * side].reshape(side, side) * (255 / max(1, int(units.max())))
            return _picture(image, "the server received the image itself", "digit")
        except BundleError:
            # Cut short by the tap, as a large input would be; its bytes are still a picture.
            pass
    tiles = [_picture(_tile(message), "first bytes of what a server received", "noise") for message in reading.seen]
    return f'<span class="tiles">{"".join(tiles)}</span>'


def _tile(message: bytes) -> npt.NDArray[np.float64]:
    """The bytes after the frame's header as a square, or a wide rectangle if there are few."""
    body = np.frombuffer(message, dtype=np.uint8)[_header(message) :][: _SIDE * _SIDE]
    width = min(_SIDE, max(1, math.isqrt(body.size)))
    return body[: body.size // width * width].reshape(-1, width).astype(np.float64)


def _header(message: bytes) -> int:
    """Bytes of a frame's magic, digest and header; see `secure_infer.wire.frame`."""
    return 40 + struct.unpack_from("<I", message, 36)[0] if message[:4] == b"SIF1" and len(message) >= 40 else 0


def _picture(pixels: npt.NDArray[Any], label: str, kind: str) -> str:
    data = base64.b64encode(png(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))).decode()
    return f'<img class="{kind}" alt="{escape(label)}" src="data:image/png;base64,{data}">'


def png(pixels: npt.NDArray[np.uint8]) -> bytes:
    """A grayscale PNG of pixels `(height, width)`; https://www.w3.org/TR/png-3/."""
    height, width = pixels.shape
    rows = np.concatenate([np.zeros((height, 1), dtype=np.uint8), pixels], axis=1)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows.tobytes()))
        + chunk(b"IEND", b"")
    )


def _score(run: Run, digits: Sequence[Digit]) -> str:
    if run.error is not None:
        fixes = "".join(f"<code>{escape(problem.fix)}</code>" for problem in run.error.problems)
        return f'<p class="failed">{escape(run.error.summary)}</p>{fixes}'
    whole = "right" if run.agreeing() == len(run.readings) else "wrong"
    return (
        f'<p class="score {whole}">{run.agreeing()} of {len(run.readings)} as in the clear</p>'
        f'<p class="note">{run.correct(digits)} of {len(run.readings)} right</p>'
    )


def _times(run: Run, runs: Sequence[Run], phases: Sequence[str]) -> str:
    longest = max((value for other in runs for value in other.phases_s().values()), default=1.0)
    times = run.phases_s()
    return "".join(
        _bar(_PHASES.get(phase, phase), times[phase], console.seconds(times[phase]), 1e-4, longest)
        for phase in phases
        if phase in times
    )


def _traffic(run: Run, runs: Sequence[Run]) -> str:
    largest = max((value for other in runs for value in other.sizes().values()), default=1)
    names = {"evaluation_keys": "keys, once", "input": "input", "output": "output"}
    sizes = run.sizes() if run.readings else {}
    return "".join(
        _bar(names[name], value, console.size(value) if value else "none", 10, largest) for name, value in sizes.items()
    )


def _bar(name: str, value: float, shown: str, least: float, most: float) -> str:
    """A labeled bar on a logarithmic scale from `least` to `most`."""
    share = math.log(max(value, least) / least) / math.log(max(most, 2 * least) / least)
    return (
        f'<div class="bar"><span>{escape(name)}</span><b>{escape(shown)}</b>'
        f'<i style="width:{100 * share:.1f}%"></i></div>'
    )


def _promise(run: Run) -> str:
    if run.guarantee is None:
        return ""
    guarantee = run.guarantee
    pairs = [("Scheme", guarantee.scheme), ("Strength", _strength(guarantee)), ("Result", _result(guarantee))]
    pairs += [("Against", guarantee.adversary)]
    pairs += [("You trust", line) for line in guarantee.trust] + [("Still leaks", line) for line in guarantee.leaks]
    return "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{_text(text)}</dd>" for name, text in _merged(pairs)) + "</dl>"


def _text(text: str) -> str:
    """Text with raised exponents."""
    return re.sub(r"(\d)\^(\d+)", r"\1<sup>\2</sup>", escape(text))


def _merged(pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Name only the first of several lines in a row that have one name."""
    return [(name if at == 0 or pairs[at - 1][0] != name else "", text) for at, (name, text) in enumerate(pairs)]


def _strength(guarantee: Guarantee) -> str:
    if guarantee.security_bits is None:
        return "none: nothing is encrypted"
    return f"{guarantee.security_bits}-bit security"


def _result(guarantee: Guarantee) -> str:
    if guarantee.error_bound is not None:
        return f"scores within {guarantee.error_bound:.2g} of the exact ones"
    if guarantee.failure_probability:
        return f"exact; wrong in one of {_power(1 / guarantee.failure_probability)} inferences"
    return "exact"


def _power(value: float) -> str:
    return f"{value:,.0f}" if value < 1e6 else f"10^{math.log10(value):.0f}"


def _host(host: Mapping[str, Any]) -> str:
    at = datetime.now(UTC).strftime("%d %B %Y, %H:%M UTC")
    facts = {
        "Machine": f"{host['cpu']}, {in_words(host['cores'])}, {host['memory_gib']} GiB, load {host['load']}",
        "System": f"{host['os']}, Python {host['python']}",
        "Made": f"{at}, by secure_infer {__version__}",
    }
    return "".join(f"<dt>{escape(name)}</dt><dd>{escape(str(text))}</dd>" for name, text in facts.items())
