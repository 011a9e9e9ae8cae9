"""A running server of ours as a target, through its client: the attack is that on the model itself, and is paid for."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("fastapi")
pytest.importorskip("httpx2")
pytest.importorskip("tenseal")
import secure_infer as si
from secure_infer.attacks import Access, FunctionTarget, Goal, attack
from secure_infer.attacks.evaluate import evaluate
from secure_infer.client import Client
from secure_infer.errors import LimitExceeded
from secure_infer.targets import Executed
from tests.bench.networks import binary_mlp, polynomial_cnn
from tests.serve.service import serving

QUERIES = 30


@pytest.mark.parametrize(
    ("protocol", "graph", "access", "chosen"),
    [
        ("clear", binary_mlp, Access.LABEL, attack("surfree")(queries=QUERIES)),
        ("ckks", polynomial_cnn, Access.LOGITS, attack("square")(norm="l2", radius=3.0, queries=QUERIES)),
    ],
)
def test_a_server_is_attacked_through_its_client(tmp_path: Path, protocol: str, graph, access: Access, chosen) -> None:
    drawn = np.random.default_rng(0).random((60, 1, 6, 6), dtype=np.float32)
    model = si.compile(graph(), drawn, protocol)
    model.save(tmp_path / "model.bundle")

    def in_clear(x: Tensor) -> Tensor:
        return torch.from_numpy(model.predict(x.numpy(), "clear")).to(x)

    images = torch.from_numpy(drawn[:5])
    with serving(tmp_path) as service, Client.connect(service.url, token=service.token) as client:
        remote = Executed(client, "server", access, budget=QUERIES * 8 + 8)
        shown = in_clear if access > Access.LABEL else lambda x: in_clear(x).argmax(1)
        local = FunctionTarget(shown, remote.shape, 4, access=access, bounds=remote.bounds)
        labels = local.query(images).labels
        found, expected = (evaluate(target, chosen, images, Goal(labels)) for target in (remote, local))
        asked, meter = len(service.runner.ended), remote.meter
        assert torch.equal(found.reached, expected.reached) and found.reached.any()
        assert protocol == "ckks" or torch.equal(found.images, expected.images)
        # Every message is paid for, and a spent budget ends the attack before the server is asked again.
        assert found.spent.queries == expected.spent.queries > 0 and meter.queries >= asked > 0
        assert found.spent.sent > 50 * found.spent.queries and found.spent.received > 10 * found.spent.queries
        assert 0 < found.spent.seconds <= meter.seconds
        with pytest.raises(LimitExceeded, match="budget"):
            remote.query(torch.zeros(QUERIES * 8, 1, 6, 6))
        assert len(service.runner.ended) == asked
