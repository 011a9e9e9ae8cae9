from __future__ import annotations

from pathlib import Path

import pytest

from secure_infer.bench import case_names, load_case
from secure_infer.bench.cases import parse_case
from secure_infer.errors import UsageError

GOOD = {"protocol": "clear", "model": "tiny", "n_encrypted": 3}


@pytest.mark.parametrize("name", case_names())
def test_every_case_that_ships_is_valid(name: str) -> None:
    case = load_case(name)
    assert case.title and case.entries


def test_digits_covers_every_protocol() -> None:
    assert {entry.protocol for entry in load_case("digits").entries} == {"clear", "tfhe", "ckks", "mpc"}


def test_unknown_case_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match="digits-peers"):
        load_case("digit")


@pytest.mark.parametrize("name", ["../digits", "digits.toml", ""])
def test_a_name_is_no_path(name: str) -> None:
    with pytest.raises(UsageError):
        load_case(name)


def test_every_problem_of_a_case_is_listed() -> None:
    wrong = {
        "titel": "typo",
        "entries": [
            {"protocol": "rot13", "n_encrypted": 0, "batch": "2"},
            {**GOOD, "peer": "nobody", "mode": "guess", "extra": 1},
            {**GOOD, "n_encrypted": True, "options": []},
        ],
    }
    with pytest.raises(UsageError) as caught:
        parse_case("wrong", wrong)
    assert {problem.where for problem in caught.value.problems} == {
        "titel",
        "title",
        "entries[0].protocol",
        "entries[0].model",
        "entries[0].n_encrypted",
        "entries[0].batch",
        "entries[1].peer",
        "entries[1].mode",
        "entries[1].extra",
        "entries[2].n_encrypted",
        "entries[2].options",
    }


@pytest.mark.parametrize("entries", [None, [], "one", [1]])
def test_entries_must_be_tables(entries: object) -> None:
    with pytest.raises(UsageError, match="entries"):
        parse_case("wrong", {"title": "t", "entries": entries})


def test_a_file_that_is_not_toml(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_bytes(b"title = \xff")
    with pytest.raises(UsageError, match="can't be read"):
        load_case("bad", tmp_path)


def test_groups_hold_ours_beside_the_peers_of_the_same_network() -> None:
    groups = load_case("digits-peers").groups()
    assert [[entry.peer for entry in group] for group in groups] == [[None, "tenseal", "tenseal"], [None, "crypten"]]


def test_only_some_protocols() -> None:
    digits = load_case("digits")
    assert digits.only([]) == digits
    assert {entry.protocol for entry in digits.only(["mpc", "ckks"]).entries} == {"mpc", "ckks"}
    with pytest.raises(UsageError, match="clear, tfhe, ckks, mpc"):
        digits.only(["bgv"])


@pytest.mark.parametrize("name", case_names())
def test_labels_tell_entries_apart(name: str) -> None:
    labels = [entry.label for entry in load_case(name).entries]
    assert len(set(labels)) == len(labels)
