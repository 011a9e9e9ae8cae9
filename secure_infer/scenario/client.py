"""The client's process of a run: `python -m secure_infer.scenario.client SPEC`, which prints one JSON document."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from secure_infer.client import Client
from secure_infer.errors import SecureInferError
from secure_infer.scenario.witness import Recorder, kind_of, probe
from secure_infer.wire import frame
from secure_infer.wire.access import Access
from secure_infer.wire.http import Http

INPUTS, KEYS = "inputs.npy", "keys"


def predict(spec: dict[str, Any]) -> dict[str, Any]:
    """Ask once for each input in the client's folder.

    Args:
        spec: `names`, `urls` and `tokens` of the servers, the `model`, and the file `ca`.

    Returns:
        Outputs, phases and statistics of each request, and every message; whether one holds the secret key or an input.
    """
    x = np.load(INPUTS, allow_pickle=False)
    http = Http(spec["urls"], spec["model"], Access(",".join(spec["tokens"]), spec["ca"]))
    with Client(recorder := Recorder(http, spec["names"]), KEYS) as client:
        shape = client.interface.input.shape
        readings = [client.infer(image.reshape(1, *shape)) for image in x]
        secrets = _secrets(client.keys().secret)
        units = [client.interface.quantize(image.reshape(1, *shape)) for image in x]
        plain = [each.astype(kind).tobytes() for each in units for kind in ("<i8", "u1")]
        wall_s = dict(client.stopwatch.wall_s)
    messages = [
        message.as_dict()
        | {
            "holds_secret_key": any(piece in message.data for piece in secrets),
            "holds_input": any(piece in message.data for piece in plain),
        }
        for message in recorder.messages
    ]
    return {
        "outputs": [reading.outputs[0].tolist() for reading in readings],
        "wall_s": [{**reading.wall_s} for reading in readings],
        "statistics": [dict(reading.statistics) for reading in readings],
        "once_s": wall_s,
        "messages": messages,
        "secret_pieces": [piece.hex() for piece in secrets],
    }


def _secrets(secret: bytes) -> list[bytes]:
    """Recognizable pieces of the secret key, one for each part of its frame."""
    if not secret:
        return []
    parts = frame.unpack(secret, kind_of(secret)).parts
    return [piece for part in parts if (piece := probe(part)) is not None]


def main() -> int:
    """Run in the client's folder."""
    try:
        document = predict(json.loads(Path(sys.argv[1]).read_bytes()))
    except SecureInferError as error:
        problems = [{"where": p.where, "what": p.what, "fix": p.fix} for p in error.problems]
        document = {"error": {"summary": error.summary, "problems": problems}}
    sys.stdout.write(json.dumps(document) + "\n")
    return 1 if "error" in document else 0


if __name__ == "__main__":
    sys.exit(main())
