"""The threat matrix as one HTML page that needs nothing else, with the JSON and the plots beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from secure_infer import files
from secure_infer.bench.records import Record
from secure_infer.report import matrix
from secure_infer.report.markdown import seconds, share, size
from secure_infer.report.matrix import NAMES, Price, Shown
from secure_infer.report.matrix_plots import draw

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 96rem; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 1rem 0; font-size: 12.5px; }
th, td { border: 1px solid #ccc; padding: .35rem .5rem; vertical-align: top; text-align: left; }
td b { display: block; font-size: 14px; white-space: nowrap; } td span, th span { display: block; color: #555; }
th span { font-weight: normal; } .none { color: #777; background: #f4f4f4; }
.empty { writing-mode: vertical-rl; width: 1rem; }
.wide { overflow-x: auto; } svg { max-width: 100%; height: auto; } figure { margin: 1rem 0; }
"""
_INTRO = """Each cell is the share of attempts that succeed for the attacker, with its 95 % interval (Wilson), on
models of the zoo. <em>simulated</em>: the protocol's errors are drawn and nothing is encrypted, as far as the table
of agreement bears; <em>executed</em>: real messages, which attacks on CKKS send in batches, under the plan for these.
The price is queries x what one encrypted query takes, one after another. Encryption hides inputs and outputs from
servers; it hides neither the model from who asks, nor attacks from who is attacked: it hides them from the server's
own defenses."""


def write(documents: Sequence[Record], records: Sequence[Record], folder: Path) -> list[Path]:
    """Write `index.html`, `matrix.md`, a JSON file for each data set, and the plots.

    Args:
        documents: Records of threats, one a data set.
        records: Benchmark records, for the price of a query.
        folder: Where the files go.

    Returns:
        The pages and JSON files written; plots lie in `plots` beside them.

    Raises:
        MissingExtra: matplotlib is not installed.
        UsageError: The folder can't be written to.
    """
    sections, texts, written = [], [], []
    for document in documents:
        cost = matrix.prices(records, document)
        plots = draw(document, cost, folder / "plots", document["dataset"])
        sections.append(_section(document, cost, plots))
        texts.append(
            f"## {document['dataset']}\n\n{matrix.as_markdown(document, cost)}\n\n{matrix.agreements(document)}"
        )
        data = json.dumps(document, indent=1, allow_nan=False).encode()
        written.append(files.write(folder / f"{document['dataset']}.json", data))
    page = (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><title>Threats and protocols</title>"
        f"<style>{_STYLE}</style></head><body><h1>Threats and protocols</h1><p>{_INTRO}</p>"
        f"{''.join(sections)}</body></html>"
    )
    written.append(files.write(folder / "matrix.md", "\n\n".join(["# Threats and protocols", *texts, ""]).encode()))
    return [files.write(folder / "index.html", page.encode()), *written]


def _section(document: Record, cost: Mapping[tuple[str, str], Price], plots: Mapping[str, str]) -> str:
    reasons = "".join(
        f"<li>{escape(why)} <span>({escape('; '.join(where))})</span></li>"
        for why, where in matrix.why_not(document).items()
    )
    lines = [*matrix.controls(document), *matrix.circumstances(document)]
    facts = "".join(f"<li>{escape(line)}</li>" for line in lines)
    figures = "".join(f"<figure>{_inline(text)}</figure>" for text in plots.values())
    return (
        f"<h2>{escape(document['dataset'])}</h2><ul>{facts}</ul><div class='wide'>{_table(document, cost)}</div>"
        f"<h3>How far the simulations bear</h3>{_agreements(document, cost)}"
        f"<h3>Not applicable, and why</h3><ul>{reasons}</ul><h3>Plots</h3>{figures}"
    )


def _table(document: Record, cost: Mapping[tuple[str, str], Price]) -> str:
    known, columns, deployed = matrix.cells(document), matrix.columns(document), matrix.deployed(document)
    groups = "".join(
        f"<th colspan='{sum(kind == protocol for kind, _ in columns)}'>{NAMES[protocol]}</th>"
        for protocol in dict.fromkeys(protocol for protocol, _ in columns)
    )
    # A column in which nothing can be deployed is one narrow cell beside all rows.
    names = "".join(
        f"<th>{form}</th>" if (protocol, form) in deployed else f"<th class='empty'>{form}</th>"
        for protocol, form in columns
    )
    empty = {
        (column["protocol"], column["form"]): f"<td class='none empty' rowspan='{len(document['rows'])}' "
        f"title='{escape(column['not_applicable'], quote=True)}'>not applicable</td>"
        for column in document["columns"]
        if "not_applicable" in column
    }
    rows = []
    for key, row in document["rows"].items():
        found = (
            _cell(matrix.shown(known.get((key, *column)), cost.get(column)))
            if column in deployed
            else empty.pop(column, "")
            for column in columns
        )
        rows.append(f"<tr><th>{escape(row['title'])}<span>{escape(row['about'])}</span></th>{''.join(found)}</tr>")
    return f"<table><tr><th rowspan='2'>threat</th>{groups}</tr><tr>{names}</tr>{''.join(rows)}</table>"


def _cell(cell: Shown) -> str:
    if cell.gain is None:
        return f"<td class='none' title='{escape(cell.why_not, quote=True)}'>{escape(cell.head)}</td>"
    rate, _, interval = cell.head.partition(" (")
    lines = "".join(f"<span>{escape(line)}</span>" for line in (f"({interval}", *cell.lines))
    # From pale green (nothing gained) to red, at one lightness so that black text stays readable.
    return f"<td style='background: hsl({120 * (1 - cell.gain):.0f} 55% 85%)'><b>{escape(rate)}</b>{lines}</td>"


def _agreements(document: Record, cost: Mapping[tuple[str, str], Price]) -> str:
    rows = []
    for column in document["columns"]:
        agreed, price = column.get("agreement"), cost.get((column["protocol"], column["form"]))
        if agreed is None or price is None:
            continue
        values = (
            f"{NAMES[column['protocol']]} {column['form']}",
            column["model"],
            f"{agreed['same']} of {agreed['n']}: {share(agreed['same'] / agreed['n'], agreed['interval'])}",
            matrix.again(agreed),
            f"{agreed['ks']:.3f} (p {agreed['p_value']:.2f})",
            f"{agreed['largest']:.2g}",
            f"{seconds(price.seconds)}, {size(price.bytes)} ({price.source})",
        )
        rows.append("<tr>" + "".join(f"<td>{escape(str(value))}</td>" for value in values) + "</tr>")
    header = "column", "model", *matrix.HEADS, "KS distance of logit errors", "largest difference", "one query"
    return f"<table><tr>{''.join(f'<th>{name}</th>' for name in header)}</tr>{''.join(rows)}</table>"


def _inline(svg: str) -> str:
    """The SVG element alone: a page takes neither the XML declaration nor the document type."""
    return svg[svg.index("<svg") :]
