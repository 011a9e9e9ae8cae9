"""How our attacks did beside other libraries: a table of the newest record."""

from __future__ import annotations

from pathlib import Path

from secure_infer.bench import records
from secure_infer.bench.records import Record
from secure_infer.cores import in_words
from secure_infer.report.markdown import NOTHING, seconds, share, table


def contests(results: Path) -> str:
    """A Markdown table with a row for each attack and contender; says so where no run is on record.

    Args:
        results: Folder of the records.
    """
    path = results / "attacks" / "attacks.jsonl"
    found = records.read(path) if path.is_file() else []
    if not found:
        return "No run is on record."
    newest = found[-1]
    rows = [_row(held, name, row) for held in newest["contests"] for name, row in held["rows"].items()]
    header = ["attack", "by", "images", "time", "times ours (95 %)", "CPU, times ours", "success (95 %)", "median L2"]
    said = (
        f"`secure-infer bench attacks` on `{newest['model']}`, {in_words(newest['host']['cores'])}, load average "
        f"{newest['load']['start']:.1f} to {newest['load']['end']:.1f}; contenders take turns on the same images."
    )
    return "\n\n".join([said, table(header, rows, left=2), *newest["missing"]])


def _row(held: Record, name: str, row: Record) -> list[str]:
    value, low, high = row["times_ours"]
    distortion = NOTHING if row["median_l2"] is None else f"{row['median_l2']:.3f}"
    return [
        held["attack"],
        name,
        str(held["settings"]["images"]),
        seconds(row["median_s"]),
        f"{value:.2f} ({low:.2f}-{high:.2f})",
        "{:.2f} ({:.2f}-{:.2f})".format(*row["cpu_times_ours"]) if "cpu_times_ours" in row else NOTHING,
        share(row["success"], row["success_interval"]),
        distortion,
    ]
