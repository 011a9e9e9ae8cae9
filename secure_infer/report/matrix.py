"""The threat x protocol matrix out of measured records: what each cell says, and what an attacker would pay."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secure_infer import files
from secure_infer.bench.records import Record
from secure_infer.bench.statistics import wilson
from secure_infer.cores import in_words
from secure_infer.errors import Problem, UsageError
from secure_infer.report.markdown import NOTHING, seconds, share, size, table
from secure_infer.report.select import headline

SCHEMA = 1
HEADS = "same label, simulated and executed", "same label, executed twice"
_OWN = ("executed", "timed")
"""Settings that each column says for itself."""
_FORMS = ("float", "quantized", "binarized", "polynomial")
NAMES = {"clear": "plaintext API", "tfhe": "TFHE", "ckks": "CKKS", "mpc": "MPC"}


@dataclass(frozen=True)
class Price:
    """What one query of the deployed model costs, and where the figure comes from."""

    seconds: float
    bytes: float
    source: str


@dataclass(frozen=True)
class Shown:
    """A cell as people read it.

    Attributes:
        head: Share and interval, or "not applicable".
        lines: Further lines: number and mode, access, queries, price.
        gain: The attacker's gain in [0, 1]; None where nothing applies.
        why_not: Why the threat does not apply; empty if it does.
    """

    head: str
    lines: tuple[str, ...] = ()
    gain: float | None = None
    why_not: str = ""


def read(path: Path) -> Record:
    """A record that `secure-infer report` wrote.

    Raises:
        UsageError: It is absent, no such record, or of a newer schema.
    """
    try:
        document = json.loads(files.read(path))
        sound = document["schema"] <= SCHEMA and document["dataset"] and document["rows"] and document["columns"]
        cells = {(cell["threat"], cell["protocol"], cell["form"]) for cell in document["cells"]}
    except (ValueError, KeyError, TypeError) as error:
        raise _unreadable(path, f"It is malformed ({error}).") from error
    if not sound or not cells or not {threat for threat, _, _ in cells} <= set(document["rows"]):
        raise _unreadable(path, "It is empty, or of a newer version.")
    found: Record = document
    return found


def merged(documents: Sequence[Record]) -> list[Record]:
    """One record a data set: rows and columns that were measured apart, put together; what comes later replaces.

    Raises:
        UsageError: Parts of one data set with other settings, but for how much was executed and timed.
    """
    found: dict[str, Record] = {}
    for part in documents:
        whole = found.setdefault(part["dataset"], part)
        if whole is not part:
            found[part["dataset"]] = _joined(whole, part)
    return list(found.values())


def _joined(old: Record, new: Record) -> Record:
    """Two parts as one: a column that was not executed again keeps its agreement and the cost of a query."""
    problems = [
        Problem(f"settings: {name}", f"{value} and {new['settings'].get(name)}.", "measure all parts alike.")
        for name, value in old["settings"].items()
        if name not in _OWN and new["settings"].get(name) != value
    ]
    if problems:
        raise UsageError(f"These records of {old['dataset']} do not fit together.", problems)
    known = {(column["protocol"], column["form"]): column for column in old["columns"]}
    for column in new["columns"]:
        place = column["protocol"], column["form"]
        known[place] = {**known.get(place, {}), **{name: value for name, value in column.items() if value is not None}}
    places = sorted(known, key=lambda place: (list(NAMES).index(place[0]), _FORMS.index(place[1])))
    return {
        **old,
        **{
            name: max(old, new, key=lambda part: str(part["at"]))[name] for name in ("at", "commit", "host", "versions")
        },
        "settings": {name: max(value, new["settings"].get(name, value)) for name, value in old["settings"].items()},
        "rows": {**old["rows"], **new["rows"]},
        "columns": [known[place] for place in places],
        "cells": list((cells(old) | cells(new)).values()),
    }


def _unreadable(path: Path, what: str) -> UsageError:
    return UsageError(
        f"{path} is no record of threats.", [Problem(str(path), what, "measure again with `secure-infer report`.")]
    )


def prices(records: Sequence[Record], document: Record) -> dict[tuple[str, str], Price]:
    """Cost of an encrypted query by protocol and form: of the newest benchmark record, else as measured here.

    Args:
        records: Benchmark records.
        document: The record of threats.
    """
    stored = {(record["model"], record["protocol"]): record for record in headline(records)}
    found: dict[tuple[str, str], Price] = {}
    for column in document["columns"]:
        key, record = (column["protocol"], column["form"]), stored.get((column.get("model"), column["protocol"]))
        if column["protocol"] == "clear":
            continue
        if record is not None:
            wall = sum(record["wall_s"][phase] or 0 for phase in ("encrypt", "run", "decrypt"))
            traffic = sum(record["bytes"][way] or 0 for way in ("input", "output"))
            found[key] = Price(wall, traffic, f"record {record['case']} of {record['at'][:10]}, {record['n']} images")
        elif column.get("query"):
            query = column["query"]
            found[key] = Price(query["seconds"], query["bytes"], f"this run, {query['n']} images, other work beside")
    return found


def cells(document: Record) -> dict[tuple[str, str, str], Record]:
    """Cells by threat, protocol and form."""
    return {(cell["threat"], cell["protocol"], cell["form"]): cell for cell in document["cells"]}


def shown(cell: Record | None, price: Price | None) -> Shown:
    """A cell as people read it."""
    if cell is None:
        return Shown("not measured")
    if "not_applicable" in cell:
        return Shown("not applicable", why_not=cell["not_applicable"])
    lines = [f"{cell['successes']} of {cell['n']}, {cell['mode']}", str(cell["access"]).replace("_", " ").lower()]
    asked = cell["queries"]
    lines.append(f"{asked:,.0f} {'query' if asked == 1 else 'queries'} / {cell['per']}")
    if price is not None:
        lines.append(f"{seconds(asked * price.seconds)}, {size(asked * price.bytes)}")
    median = cell["details"].get("median_l2")
    if median is not None:
        lines.append(f"median L2 {median:.2f}")
    if times := cell["details"].get("times"):
        lines.append(f"by times {times['right']} of {times['n']}")
    return Shown(share(cell["rate"], cell["interval"]), tuple(lines), cell["gain"])


def columns(document: Record) -> list[tuple[str, str]]:
    """Protocol and form of every column, in order."""
    return [(column["protocol"], column["form"]) for column in document["columns"]]


def deployed(document: Record) -> list[tuple[str, str]]:
    """Columns in which something could be deployed."""
    return [(c["protocol"], c["form"]) for c in document["columns"] if "not_applicable" not in c]


def as_markdown(document: Record, cost: Mapping[tuple[str, str], Price]) -> str:
    """The matrix as one Markdown table a protocol, columns that can't be deployed left out."""
    known, parts = cells(document), []
    for protocol, name in NAMES.items():
        forms = [form for kind, form in deployed(document) if kind == protocol]
        if not forms:
            continue
        rows = [
            (
                row["title"],
                *(_brief(shown(known.get((key, protocol, form)), cost.get((protocol, form)))) for form in forms),
            )
            for key, row in document["rows"].items()
        ]
        parts.append(f"### {name}\n\n{table(('threat', *forms), rows)}")
    return "\n\n".join(parts)


def summary(document: Record, cost: Mapping[tuple[str, str], Price]) -> str:
    """The README's table: each threat under the first form that each protocol runs."""
    known, chosen = cells(document), {protocol: form for protocol, form in reversed(deployed(document))}
    places = [(protocol, chosen[protocol]) for protocol in NAMES if protocol in chosen]
    rows = []
    for key, row in document["rows"].items():
        rows.append((row["title"], *(_priced(known.get((key, *place)), cost.get(place)) for place in places)))
    header = ("attackers' success", *(f"{NAMES[protocol]}, {form}" for protocol, form in places))
    facts = "\n".join(f"- {line}" for line in [*controls(document), *circumstances(document)])
    return f"{table(header, rows)}\n\n{facts}\n\nThe same images through real ciphertexts:\n\n{agreements(document)}"


def controls(document: Record) -> list[str]:
    """What shows that the attacks on the cryptography could have found something: each a sentence."""
    found = []
    for _, cell in measured_for(document, "key-recovery"):
        told = ", ".join(
            f"{release} {count} of {cell['n']}" for release, count in cell["details"]["keys_found"].items()
        )
        found.append(f"{NAMES[cell['protocol']]} keys found by what the client tells of its decryption: {told}")
    leaks = [cell["details"]["control_one_bit_leaked"] for _, cell in _views(document)]
    if leaks:
        caught = sum(leak["caught"] for leak in leaks)
        found.append(
            f"One bit of the input leaked into messages on purpose is caught in {caught} of {len(leaks)} columns"
        )
    return found + _by_times(document)


def _by_times(document: Record) -> list[str]:
    """In how many columns the server's times tell two inputs apart, and where they come nearest to it."""
    known = [(name, times) for name, cell in _views(document) if (times := cell["details"].get("times"))]
    if not known:
        return []
    told = ", ".join(name for name, times in known if times["caught"])
    name, best = max(known, key=lambda entry: float(entry[1]["interval"][0]))
    counts = [times["n"] for _, times in known]
    return [
        f"Times and sizes of replies tell two inputs apart in {sum(times['caught'] for _, times in known)} of "
        f"{len(known)} columns{f' ({told})' if told else ''}, judged on {_span(counts)} requests each; "
        f"most in {name}: {best['right']} of {best['n']} right, {share(best['accuracy'], best['interval'])}"
    ]


def _span(values: Sequence[int]) -> str:
    """One number, or the range of several."""
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _views(document: Record) -> list[tuple[str, Record]]:
    return [(name, cell) for name, cell in measured_for(document, "input-view") if cell["protocol"] != "clear"]


def _priced(cell: Record | None, price: Price | None) -> str:
    found = shown(cell, price)
    if cell is None or found.gain is None:
        return found.head
    head = f"{found.head} simulated" if cell["mode"] == "simulated" else found.head
    if price is None or cell["per"] == "client":
        return head
    return f"{head}, {seconds(cell['queries'] * price.seconds)} / {cell['per']}"


def _brief(cell: Shown) -> str:
    return cell.head if cell.gain is None else f"{cell.head}; {'; '.join(cell.lines)}"


def agreements(document: Record) -> str:
    """How far each simulation speaks for real ciphertexts, as a Markdown table; empty if nothing was simulated."""
    rows = [
        (
            NAMES[column["protocol"]],
            f"`{column['model']}`",
            f"{agreed['same']} of {agreed['n']}: {share(agreed['same'] / agreed['n'], agreed['interval'])}",
            again(agreed),
            f"{agreed['ks']:.3f}",
            f"{agreed['p_value']:.2f}",
            f"{agreed['largest']:.2g}",
        )
        for column in document["columns"]
        if (agreed := column.get("agreement"))
    ]
    header = ("protocol", "model", *HEADS, "KS distance", "p", "largest difference")
    return table(header, rows, left=2) if rows else ""


def again(agreed: Record) -> str:
    """How often two runs on ciphertexts agree with each other, where simulated and executed labels differ."""
    same, n = agreed.get("executed_again"), agreed["n"]
    return NOTHING if same is None else f"{same} of {n}: {share(same / n, wilson(same, n))}"


def why_not(document: Record) -> dict[str, list[str]]:
    """Every reason why something does not apply, with where it holds."""
    found: dict[str, list[str]] = {}
    for column in document["columns"]:
        if "not_applicable" in column:
            found.setdefault(column["not_applicable"], []).append(f"{NAMES[column['protocol']]} {column['form']}")
    for cell in document["cells"]:
        if "not_applicable" in cell and (cell["protocol"], cell["form"]) in deployed(document):
            where = f"{document['rows'][cell['threat']]['title']}: {NAMES[cell['protocol']]} {cell['form']}"
            found.setdefault(cell["not_applicable"], []).append(where)
    return found


def measured_for(document: Record, threat: str) -> list[tuple[str, Record]]:
    """Cells of a row that hold figures, each with a label of its column."""
    return [
        (f"{NAMES[cell['protocol']]} {cell['form']}", cell)
        for cell in document["cells"]
        if cell["threat"] == threat and cell.get("rate") is not None
    ]


def circumstances(document: Record) -> list[str]:
    """Machine, settings, code and versions behind the figures."""
    machine: Mapping[str, Any] = document["host"]
    given = ", ".join(f"{name} {value}" for name, value in {**document["settings"], **_own(document)}.items())
    versions = ", ".join(f"{name} {version}" for name, version in document["versions"].items())
    commit, _, dirty = (document["commit"] or "unknown").partition("-")
    return [
        f"Data: {document['dataset']}; measured {document['at'][:16]}; settings: {given}",
        f"Machine: {machine['cpu']}, {in_words(machine['cores'])}, {machine['os']}, Python {machine['python']}",
        f"Versions: {versions}; commit {commit[:10]}{' with changes' if dirty else ''}",
    ]


def _own(document: Record) -> dict[str, str]:
    """The settings that may differ from column to column, as the range of what was measured in them."""
    columns = [c for c in document["columns"] if c["protocol"] != "clear" and "not_applicable" not in c]
    executed = [agreed["n"] if (agreed := column.get("agreement")) else 0 for column in columns]
    timed = [_requests(cell["details"].get("times")) for _, cell in _views(document)]
    return {name: _span(values) for name, values in zip(_OWN, (executed, timed), strict=True) if values}


def _requests(times: Record | None) -> int:
    """How many were timed: half of them train the classifier, the other half judge it."""
    return int(times.get("requests", 2 * times["n"])) if times else 0
