"""CKKS: every kind of damaged, foreign and forged bytes is one clear error."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from secure_infer.backends.base import Keys
from secure_infer.backends.ckks import server
from secure_infer.backends.ckks.client import EVALUATION, INPUT_MESSAGE, SECRET, CkksClient
from secure_infer.backends.ckks.half import ClientHalf
from secure_infer.errors import BundleError, DecryptionError, InvalidInput, KeyMismatch
from secure_infer.wire import frame
from tests.backends.ckks_networks import BACKEND, deployed


class TestBadInput:
    def test_keys_of_another_model(self) -> None:
        one, other = deployed("one linear layer"), deployed("one convolution")
        (message,) = one.client.encrypt(one.x[:1], one.keys)
        for call in (
            lambda: one.server.run(message, other.keys.evaluation),
            lambda: other.server.run(message, other.keys.evaluation),
            lambda: one.client.encrypt(one.x[:1], other.keys),
            lambda: one.client.decrypt([message], other.keys),
        ):
            with pytest.raises(KeyMismatch):
                call()

    def test_keys_of_another_client(self) -> None:
        deployment = deployed("one linear layer")
        stranger = deployment.client.keygen()
        (message,) = deployment.client.encrypt(deployment.x[:1], deployment.keys)
        with pytest.raises(KeyMismatch, match="another key"):
            deployment.server.run(message, stranger.evaluation)
        reply = deployment.server.run(message, deployment.keys.evaluation)
        with pytest.raises(DecryptionError, match="other keys"):
            deployment.client.decrypt([reply], stranger)

    def test_a_reply_under_another_secret(self) -> None:
        deployment = deployed("one linear layer")
        stranger = deployment.client.keygen()
        (message,) = deployment.client.encrypt(deployment.x[:1], deployment.keys)
        reply = deployment.server.run(message, deployment.keys.evaluation)
        renamed = frame.pack(
            SECRET, frame.unpack(stranger.secret, SECRET).parts, frame.unpack(deployment.keys.secret, SECRET).meta
        )
        with pytest.raises(DecryptionError, match="outside the calibrated range"):
            deployment.client.decrypt([reply], Keys(renamed, b""))

    @pytest.mark.parametrize(
        "damage",
        [
            lambda b: b"",
            lambda b: b[:50],
            lambda b: b[:-1],
            lambda b: b[:-1] + bytes([b[-1] ^ 1]),
            lambda b: b"hello" * 20,
        ],
    )
    def test_damaged_bytes(self, damage: object) -> None:
        assert callable(damage)
        deployment = deployed("one linear layer")
        keys = deployment.keys
        (message,) = deployment.client.encrypt(deployment.x[:1], keys)
        reply = deployment.server.run(message, keys.evaluation)
        for call in (
            lambda: deployment.server.run(damage(message), keys.evaluation),
            lambda: deployment.server.run(message, damage(keys.evaluation)),
            lambda: deployment.client.encrypt(deployment.x[:1], Keys(damage(keys.secret), b"")),
            lambda: BACKEND.client(damage(deployment.program.client)),
            lambda: BACKEND.servers([damage(deployment.program.servers[0])]),
        ):
            with pytest.raises(BundleError):
                call()
        with pytest.raises(DecryptionError):
            deployment.client.decrypt([damage(reply)], keys)
        with pytest.raises(DecryptionError):
            deployment.client.decrypt([], keys)

    def test_garbage_inside_whole_frames(self) -> None:
        deployment = deployed("one convolution")
        keys = deployment.keys
        (message,) = deployment.client.encrypt(deployment.x[:1], keys)
        opened, evaluation = frame.unpack(message, INPUT_MESSAGE), frame.unpack(keys.evaluation, EVALUATION)
        reply = deployment.server.run(message, keys.evaluation)
        messages = [
            frame.pack(INPUT_MESSAGE, [b"garbage"], opened.meta),
            frame.pack(INPUT_MESSAGE, [], opened.meta),
            frame.pack(INPUT_MESSAGE, opened.parts, {**opened.meta, "count": "one"}),
            frame.pack(INPUT_MESSAGE, [evaluation.parts[1]], opened.meta),
        ]
        for bad in messages:
            with pytest.raises(BundleError):
                deployment.server.run(bad, keys.evaluation)
        for parts in ([b"", b"x"], [b"x", evaluation.parts[1]], [b""], [b"", b""]):
            with pytest.raises(BundleError):
                deployment.server.run(message, frame.pack(EVALUATION, parts, evaluation.meta))
        answer = frame.unpack(reply, "ckks-output")
        for parts in ([b"x"], [], [opened.parts[0]] * 2):
            with pytest.raises(DecryptionError):
                deployment.client.decrypt([frame.pack("ckks-output", parts, answer.meta)], keys)

    def test_a_ciphertext_of_a_wrong_level_or_scale(self) -> None:
        deployment = deployed("residual")
        half = ClientHalf.from_bytes(deployment.program.client)
        sent = half.input
        for source in (replace(sent, level=sent.level - 1), replace(sent, scale=sent.scale * 2)):
            client = CkksClient(replace(half, input=source))
            (message,) = client.encrypt(deployment.x[:1], deployment.keys)
            with pytest.raises(BundleError, match=r"this level|belongs"):
                deployment.server.run(message, deployment.keys.evaluation)

    @pytest.mark.parametrize(
        "x",
        [
            np.zeros((1, 8), int),
            np.zeros(9, int),
            np.zeros((1, 9)),
            np.full((1, 9), 4),
            np.full((1, 9), np.nan),
            np.array(3),
        ],
    )
    def test_wrong_inputs(self, x: np.ndarray) -> None:
        deployment = deployed("one linear layer")
        with pytest.raises(InvalidInput):
            deployment.client.encrypt(x, deployment.keys)

    def test_newer_schemas(self) -> None:
        program = deployed("one linear layer").program
        client = frame.unpack(program.client, "ckks-client")
        with pytest.raises(BundleError, match="newer"):
            BACKEND.client(frame.pack("ckks-client", [], {**client.meta, "schema": 99}))
        opened = frame.unpack(program.servers[0], server.KIND)
        head = opened.parts[0].replace(b'"schema": 3', b'"schema": 9')
        with pytest.raises(BundleError, match="newer"):
            BACKEND.servers([frame.pack(server.KIND, [head, opened.parts[1]], opened.meta)])
        with pytest.raises(BundleError, match="older"):
            BACKEND.client(frame.pack("ckks-client", [], {**client.meta, "schema": 1}))

    @pytest.mark.parametrize(
        "change",
        [
            {"rotations": [0]},
            {"rotations": [1, 1]},
            {"rotations": [1 << 40]},
            {"positions": [-1] * 5},
            {"positions": [0]},
            {"half": 0.0},
            {"output_range": float("nan")},
            {"shape": [-9]},
            {"grid": -1.0},
            {"flooding": 2.0},
            {"batch": 1},
            {"low": "x"},
            {"extra": 1},
            {"input": {"level": 7, "scale": 2.0**29, "period": 16, "blocks": 1}},
            {"parameters": {}},
        ],
    )
    def test_client_halves_of_a_bad_server(self, change: dict[str, object]) -> None:
        opened = frame.unpack(deployed("one linear layer").program.client, "ckks-client")
        with pytest.raises(BundleError, match="can't be read"):
            BACKEND.client(frame.pack("ckks-client", opened.parts, {**opened.meta, **change}))

    @pytest.mark.parametrize(
        "change",
        [("level", 5), ("level", -3), ("power", 9), ("sources", []), ("split", {}), ("sources", [["nobody", 16]])],
    )
    def test_server_halves_that_make_no_sense(self, change: tuple[str, object]) -> None:
        opened = frame.unpack(deployed("one linear layer").program.servers[0], server.KIND)
        head = json.loads(opened.parts[0])
        head["steps"][0][change[0]] = change[1]
        parts = [json.dumps(head).encode(), opened.parts[1]]
        for damaged in (parts, parts[:1]):
            with pytest.raises(BundleError):
                BACKEND.servers([frame.pack(server.KIND, damaged, opened.meta)])
