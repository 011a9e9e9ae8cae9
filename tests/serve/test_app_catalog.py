"""What is offered, and how much clients may send: more than honest ones do, and not much more."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

import secure_infer as si
from secure_infer import backends
from secure_infer.backends.base import Guarantee
from secure_infer.bundle import Interface
from secure_infer.errors import BundleError, UsageError
from secure_infer.graph import TensorType
from secure_infer.serve.catalog import Catalog, read
from secure_infer.serve.sizes import Sizes, sizes
from secure_infer.wire import frame
from tests.networks import all_corners, small_graph
from tests.serve.service import inputs, make_bundle


@pytest.mark.parametrize("protocol", ["clear", "ckks", "mpc", pytest.param("tfhe", marks=pytest.mark.full)])
def test_honest_messages_and_keys_are_within_their_bounds(protocol: str, tmp_path: Path) -> None:
    compiled = make_bundle(tmp_path, protocol)
    bounds = sizes(compiled.interface, compiled.program.parameters)
    role = backends.load(protocol).client(compiled.program.client)
    keys = role.keygen()
    assert len(keys.evaluation) <= bounds.keys_bytes <= 20 * len(keys.evaluation)
    assert bool(keys.evaluation) == bool(bounds.keys_bytes)
    if keys.evaluation:
        assert frame.unpack(keys.evaluation, bounds.keys_kind or "").kind == bounds.keys_kind
    for samples in (1, 5):
        units = compiled.interface.quantize(inputs(samples))
        for message in role.encrypt(units, keys):
            assert len(message) <= bounds.message_bytes(samples)
            assert len(frame.unpack(message, bounds.message_kind or "").parts) <= samples * bounds.sample_parts


@pytest.mark.parametrize("parameters", [{}, {"poly_modulus_degree": "many"}, {"modulus_bits": 5}])
def test_parameters_that_say_nothing_leave_wide_bounds(parameters: dict[str, object]) -> None:
    for protocol in ("ckks", "tfhe", "somebody's own"):
        guarantee = Guarantee("s", None, None, None, "a", ())
        kind = TensorType((2,), 0, 1, (1.0,))
        found = sizes(Interface(protocol, "f", kind, kind, np.zeros(1), guarantee), parameters)
        assert found == Sizes()
        assert found.message_kind is None


def test_files_folders_and_names_are_found(tmp_path: Path) -> None:
    make_bundle(tmp_path, "clear", "one")
    shutil.copy(tmp_path / "one.bundle", tmp_path / "two.bundle")
    (tmp_path / "notes.txt").write_text("no bundle")
    assert set(Catalog.load([tmp_path]).paths()) == {"one", "two"}
    assert set(Catalog.load([tmp_path / "one.bundle", f"three={tmp_path / 'two.bundle'}"]).paths()) == {"one", "three"}
    odd = shutil.copytree(tmp_path, tmp_path / "a=b")
    assert set(Catalog.load([odd / "one.bundle"]).paths()) == {"one"}


def test_what_can_not_be_served_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"No \*\.bundle file"):
        Catalog.load([tmp_path])
    make_bundle(tmp_path, "clear", "one")
    with pytest.raises(UsageError, match="Two bundles"):
        Catalog.load([tmp_path, tmp_path / "one.bundle"])
    for name in ("a b", "", ".hidden", "x" * 101, "é"):
        with pytest.raises(UsageError, match="can't be a model's name"):
            Catalog.load([f"{name}={tmp_path / 'one.bundle'}"])
    (tmp_path / "damaged.bundle").write_bytes((tmp_path / "one.bundle").read_bytes()[:-100])
    with pytest.raises(BundleError):
        Catalog.load([tmp_path / "damaged.bundle"])


def test_a_party_is_named_where_there_are_several_and_only_there(tmp_path: Path) -> None:
    graph = small_graph(exact=True)
    for protocol in ("clear", "mpc"):
        si.compile(graph, all_corners(graph), protocol=protocol).save(tmp_path / f"{protocol}.bundle")
    assert [read("m", tmp_path / "mpc.bundle", party).party for party in (0, 1)] == [0, 1]
    for name, party in (("mpc", None), ("mpc", 2), ("mpc", -1), ("clear", 0)):
        with pytest.raises(UsageError, match="server part"):
            read("m", tmp_path / f"{name}.bundle", party)
