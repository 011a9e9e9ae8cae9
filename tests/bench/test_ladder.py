"""The ladder from noise to gradients, and the network of faces that is trained for it."""

import json

import pytest
import torch

from secure_infer.bench import faces, ladder
from secure_infer.bench.subjects import load_subject
from secure_infer.errors import DataError
from secure_infer.nn.architectures import build


def test_a_ladder_has_each_step_once_and_falls_from_noise_to_gradients():
    held = ladder.ladder("digits-cnn-float", 8)
    assert json.loads(json.dumps(held)) == held
    assert held["n"] == 8 and held["shape"] == [1, 8, 8]
    assert held["accuracy"]["n"] == 445 and held["accuracy"]["share"] == pytest.approx(0.9933, abs=0.01)
    means = [row["means"] for row in held["rows"]]
    asked = [f"{name} {queries}" for name in ("hopskipjump", "geoda", "surfree") for queries in ladder.QUERIES]
    assert means == ["noise", "jpeg", *asked, "white box"]
    medians = {row["means"]: row["median"] for row in held["rows"]}
    assert medians["noise"] > medians["surfree 1000"] > medians["white box"]
    assert all(row["times_white_box"] >= 1 for row in held["rows"] if row["median"] is not None)
    for row in held["rows"]:
        assert row["median"] is None or row["interval"][0] <= row["median"]


def test_the_network_of_faces_takes_them_and_is_trained_where_it_is_asked_for(monkeypatch):
    net = build(faces.RECIPE.architecture, faces.RECIPE.parameters).eval()
    assert net(torch.zeros(2, 1, 112, 92)).shape == (2, 40)
    monkeypatch.setattr(faces, "faces", lambda: "trained")
    assert load_subject(faces.NAME) == "trained" and faces.NAME in ladder.MODELS


@pytest.mark.full
def test_nine_of_ten_held_out_faces_are_known():
    try:
        subject = faces.faces()
    except DataError:
        pytest.skip("the faces are not on this machine")
    with torch.no_grad():
        found = subject.net(torch.from_numpy(subject.x)).argmax(1)
    assert len(found) == 80 and (found == torch.from_numpy(subject.y)).double().mean() >= 0.9
