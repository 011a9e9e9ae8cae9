"""What attackers without the weights reach - by labels, by theft - beside noise and gradients: the newest records."""

from __future__ import annotations

from pathlib import Path

from secure_infer.bench import records
from secure_infer.bench.records import Record
from secure_infer.cores import in_words
from secure_infer.report.markdown import NOTHING, ratio, seconds, share, table


def blind(results: Path) -> str:
    """Sections of Markdown for the runs `label-queries` and `extraction`; empty where none is on record.

    Args:
        results: Folder of the records.
    """
    asked, stolen = (_newest(results / "attacks" / f"{name}.jsonl") for name in ("label-queries", "extraction"))
    parts = []
    if asked is not None:
        parts.append(_titled("label-queries", asked, asked["time"], f"{_ladders(asked)}\n\n{_duels(asked)}"))
    if stolen is not None:
        parts.append(_titled("extraction", stolen, stolen["at"], _thefts(stolen)))
    return "\n".join(parts)


def _newest(path: Path) -> Record | None:
    found = records.read(path) if path.is_file() else []
    return found[-1] if found else None


def _titled(name: str, record: Record, at: str, text: str) -> str:
    cores = in_words(record["host"]["cores"])
    said = f"`secure-infer bench {name}`, {at[:10]}, {cores}, load average {record['load']:.1f}."
    return f"### {name}\n\n{said}\n\n{text}\n"


def _ladders(record: Record) -> str:
    """Median L2 of each means on each network, and how many times that of the attacks with gradients it is."""
    held = record.get("ladders", [])
    means = list(dict.fromkeys(row["means"] for ladder in held for row in ladder["rows"]))
    by_name = [{row["means"]: row for row in ladder["rows"]} for ladder in held]
    rows = [("accuracy, held-out images", *(_accuracy(ladder) for ladder in held))]
    rows += [(name, *(_step(ladder.get(name)) for ladder in by_name)) for name in means]
    header = ("median L2 (times white box)", *(f"`{ladder['model']}`, {ladder['n']} images" for ladder in held))
    return table(header, rows)


def _accuracy(ladder: Record) -> str:
    known = ladder.get("accuracy")  # since faces are among them
    return NOTHING if known is None else share(known["share"], known["interval"])


def _step(row: Record | None) -> str:
    if row is None:
        return NOTHING
    if row["median"] is None:
        return "most images not fooled"
    return f"{row['median']:.2f} ({ratio(row['times_white_box'])})"


def _duels(record: Record) -> str:
    """Our HopSkipJump and that of other libraries at as many queries, from the same starts."""
    rows = [
        (
            duel["peer"],
            duel["norm"],
            f"{duel['queries']:,}",
            *(f"{duel['median'][who]:.3f}" if duel["median"][who] is not None else NOTHING for who in ("ours", "peer")),
            *(seconds(duel["seconds"][who]) for who in ("ours", "peer")),
        )
        for duel in record["peers"]
    ]
    header = ("HopSkipJump of", "norm", "queries / image", "median, ours", "peer", "time, ours", "peer")
    return f"On {record['n']} images of `{record['model']}`:\n\n{table(header, rows, left=2)}"


def _thefts(record: Record) -> str:
    shown = ("fidelity", "accuracy", "transfer", "transfer_iterated", "random")
    rows = [
        (
            row["attack"],
            f"`{row['model']}`",
            row["access"].lower(),
            f"{row['queries']:,}",
            f"{row['radius']:g}",
            *(share(row[name]["share"], row[name]["interval"]) if name in row else NOTHING for name in shown),
        )
        for row in record["rows"]
    ]
    results = "same class", "accuracy", "transfer, one step", "ten steps", "random signs instead"
    header = ("theft", "of", "access", "queries", "radius", *results)
    return table(header, rows, left=3)
