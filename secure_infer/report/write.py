"""Writes the report: RESULTS.md and plots beside the records, and the README's generated regions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from secure_infer import files
from secure_infer.bench import places
from secure_infer.bench.records import Record, latest
from secure_infer.errors import Problem, UsageError
from secure_infer.report import catalogue, matrix, tables
from secure_infer.report.blind import blind
from secure_infer.report.contests import contests
from secure_infer.report.plots import write_plots
from secure_infer.report.regions import replace_regions
from secure_infer.report.select import best, network_of
from secure_infer.report.service import service

_HEAD = """# Results

Made by `secure-infer bench --report` from the newest record of each row in `results/`; not written by hand.
Times are medians of wall time an image; *CPU* is that of all parties; *floor* is the time that the counted primitive
operations alone would take on all cores of the machine, measured in the same run. Rounds and bytes between parties
are those of a request, also where it holds a batch. *Over lan* and *over wan*: every message between processes of the
one machine waited as if it had a round trip of 0.3 ms and 3 Gb/s, or 40 ms and 400 Mb/s; its way and its bytes are in
the floor. A request starts when the dealer has dealt what it keeps ahead; that work has a column of its own. Models
named *untrained* have random weights and are measured for latency only. *Memory* is the most that client, server,
compiler and data took together, peers of the same model included. Intervals are 95 %. A row with 0 encrypted images
shows the clear protocol, or a simulation where it says so.
"""


def write_report(results: Path, readme: Path | None = None) -> list[Path]:
    """Write tables and plots for the newest record of each row.

    Args:
        results: Folder of the records; the report goes to its parent folder.
        readme: A Markdown file whose regions are refreshed (see `regions`); by default the README of the
            source tree, if the records are those of the source tree.

    Returns:
        The files written.

    Raises:
        UsageError: There are no records.
        MissingExtra: matplotlib, or a protocol's library, is not installed.
    """
    records = latest(results) if results.is_dir() else []
    if not records:
        raise UsageError(
            "There are no records to report on.",
            [Problem(str(results), "It holds no records.", "run `secure-infer bench digits` first.")],
        )
    folder = results.parent
    written = write_plots(records, folder / "plots")
    page = results_page(records, [path.stem for path in written])
    page += f"\n## attacks\n\n{contests(results)}\n\n{blind(results)}{_threats(records, results)}"
    written.append(files.write(folder / "RESULTS.md", page.encode()))
    readme = readme or _own_readme(results)
    if readme is not None:
        text = readme.read_text(encoding="utf-8")
        written.append(files.write(readme, replace_regions(text, regions(records, results)).encode()))
    return written


def regions(records: list[Record], results: Path) -> dict[str, Callable[[], str]]:
    """What makes the README's generated regions, by name."""
    return {
        "results": lambda: _results_region(records),
        "service": lambda: service(results),
        "threats": lambda: _threats_region(records, results),
        "zoo": catalogue.models,
        "ops": catalogue.operations,
    }


def results_page(records: list[Record], plots: list[str]) -> str:
    """The whole of RESULTS.md."""
    parts = [_HEAD]
    for name in dict.fromkeys(record["case"] for record in records):
        rows = [record for record in records if record["case"] == name]
        parts.append(f"## {name}\n\n`secure-infer bench {name}`\n\n{tables.circumstances(rows)}\n")
        sections = {
            "Ours and peers, sample by sample": tables.versus(rows),
            "Accuracy": tables.quality(rows),
            "Latency": tables.latency(rows),
            "Parties and dealer": tables.between(rows),
            "Traffic and memory": tables.traffic(rows) if any(row["n_encrypted"] for row in rows) else "",
        }
        parts += [f"### {title}\n\n{text}\n" for title, text in sections.items() if text]
    parts.append("## Plots\n\n" + "\n\n".join(f"![{name}](plots/{name}.svg)" for name in plots) + "\n")
    return "\n".join(parts)


def _results_region(records: list[Record]) -> str:
    beside = tables.versus([record for record in records if record["batch"] == 1 and not network_of(record)], best)
    parts = [tables.summary(records), tables.circumstances(records)]
    if beside:
        said = (
            "Beside other libraries, sample by sample on the same networks and images, each beside the fastest of our "
            "settings that keeps as many classes (all settings, batches, and networks between servers are in "
            "[RESULTS.md](benchmarks/RESULTS.md)):"
        )
        parts.append(f"{said}\n\n{beside}")
    parts.append("![wall time by phase](benchmarks/plots/latency.svg)")
    return "\n\n".join(parts)


def _threats_region(records: list[Record], results: Path) -> str:
    path = results / "threats" / "digits.json"
    if not path.is_file():
        return "No run is on record."
    document = matrix.read(path)
    return matrix.summary(document, matrix.prices(records, document))


def _threats(records: list[Record], results: Path) -> str:
    """The whole matrix of every data set on record."""
    parts = []
    for path in sorted((results / "threats").glob("*.json")):
        document = matrix.read(path)
        facts = "\n".join(f"- {line}" for line in [*matrix.controls(document), *matrix.circumstances(document)])
        cells = matrix.as_markdown(document, matrix.prices(records, document))
        parts.append(f"\n## Threats: {document['dataset']}\n\n{facts}\n\n{cells}\n\n{matrix.agreements(document)}\n")
    return "".join(parts)


def _own_readme(results: Path) -> Path | None:
    root = places.checkout()
    if root is None or results.resolve() != places.results().resolve():
        return None
    path = root / "README.md"
    return path if path.is_file() else None
