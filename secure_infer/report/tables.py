"""Tables made of benchmark records."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from secure_infer.bench.records import Record
from secure_infer.cores import in_words
from secure_infer.report.markdown import NOTHING, ratio, seconds, share, size, table
from secure_infer.report.select import Duel, duels, headline, name_of, network_of, order


def summary(records: Sequence[Record]) -> str:
    """The README's table: one row for each model and protocol of ours."""
    header = ("model", "protocol", "accuracy", "same class as clear", "encrypt", "run", "CPU of run", "decrypt")
    rows = [
        (
            f"`{record['model']}`",
            record["protocol"],
            f"{share(record['accuracy'])} of {record['n']}",
            share(record["agreement"]) if record["n_encrypted"] else NOTHING,
            seconds(record["wall_s"]["encrypt"]),
            seconds(record["wall_s"]["run"]),
            seconds(record["cpu_s"]["run"]),
            seconds(record["wall_s"]["decrypt"]),
            ratio(record["floor_ratio"]),
            size(record["bytes"]["evaluation_keys_sent"]),
            size(record["bytes"]["input"]),
        )
        for record in headline(records)
    ]
    return table((*header, "run / floor", "keys sent once", "input"), rows, left=2)


def quality(records: Sequence[Record]) -> str:
    """Accuracy on real ciphertexts beside accuracy in the clear."""
    header = ("model", "protocol", "by", "encrypted", "accuracy (95 %)", "clear, same images", "clear, all")
    rows = [
        (
            *_who(record),
            str(record["n_encrypted"]) if record["n_encrypted"] else f"0 of {record['n']}",
            share(record["accuracy"], record["accuracy_interval"]),
            share(record["accuracy_clear"]),
            f"{share(record['accuracy_clear_full'])} of {record['n_clear_full']}",
            share(record["agreement"]),
            f"{record['max_error']:.2g}",
        )
        for record in sorted(records, key=order)
        if record["accuracy"] is not None
    ]
    return table((*header, "agreement", "max. error"), rows, left=3)


def latency(records: Sequence[Record]) -> str:
    """Time by phase."""
    header = ("model", "protocol", "by", "compile", "keygen", "encrypt", "run", "(min-max)", "decrypt")
    rows = [
        (
            *_who(record),
            *(seconds(record["wall_s"][phase]) for phase in ("compile", "keygen", "encrypt", "run")),
            f"{seconds(min(record['run_s_all']))} - {seconds(max(record['run_s_all']))}",
            seconds(record["wall_s"]["decrypt"]),
            seconds(record["cpu_s"]["run"]),
            seconds(record["floor_s"]),
            ratio(record["floor_ratio"]),
            ratio((record["floor"] or {}).get("cpu_ratio")),
        )
        for record in sorted(records, key=order)
    ]
    return table((*header, "CPU of run", "floor", "run / floor", "same in CPU time"), rows, left=3)


def traffic(records: Sequence[Record]) -> str:
    """Bytes of keys, messages and memory, and counted operations; rounds and bytes between parties are of a request."""
    header = (
        "model",
        "protocol",
        "by",
        "keys in memory",
        "keys sent",
        "input",
        "output",
        "memory",
        "operations of one inference",
    )
    rows = [
        (
            *_who(record),
            *(size(record["bytes"][name]) for name in ("evaluation_keys", "evaluation_keys_sent", "input", "output")),
            size(record.get("peak_memory")),  # older records lack it
            _counts(record["counts"]) or NOTHING,
        )
        for record in sorted(records, key=order)
        if record["n_encrypted"]
    ]
    return table(header, rows, left=3)


def versus(records: Sequence[Record], select: Callable[[Iterator[Duel]], Iterable[Duel]] = iter) -> str:
    """Ours beside peers, all or those that are selected; empty if there are none."""
    header = (
        "model",
        "protocol",
        "ours",
        "peer",
        "ours, run",
        "peer, run",
        "peer / ours (95 %)",
        "keys sent, ours",
        "peer",
    )
    rows = [
        (
            f"`{duel.peer['model']}`",
            _who(duel.peer)[1],
            name_of(duel.ours),
            name_of(duel.peer),
            seconds(duel.ours["wall_s"]["run"]),
            seconds(duel.peer["wall_s"]["run"]),
            _interval(duel),
            size(duel.ours["bytes"]["evaluation_keys_sent"]),
            size(duel.peer["bytes"]["evaluation_keys_sent"]),
            f"{share(duel.ours['agreement'])} / {share(duel.peer['agreement'])}",
        )
        for duel in select(duels(records))
    ]
    return table((*header, "agreement, ours / peer"), rows, left=4) if rows else ""


def between(records: Sequence[Record]) -> str:
    """Protocols of several parties: what a request takes online, and what its dealer did for it; empty if none ran."""
    header = ("model", "protocol", "by", "a request", "rounds", "between parties", "floor", "request / floor")
    rows = [
        (
            *_who(record),
            seconds(record["batch"] * record["wall_s"]["run"]),
            f"{record['counts']['rounds']:.0f}",
            size(record["counts"].get("bytes_between_parties")),
            seconds(record["floor_s"]),
            ratio(record["floor_ratio"]),
            size(dealt(record)),
            seconds(record.get("dealer_cpu_s")),
        )
        for record in sorted(records, key=order)
        if record["counts"].get("rounds") and record["n_encrypted"]
    ]
    return table((*header, "from the dealer", "dealer's CPU, an image"), rows, left=3) if rows else ""


def dealt(record: Record) -> float | None:
    """Bytes that the dealer sent for a request: counted in the run, or from the plan where it deals ahead."""
    measured = record["counts"].get("bytes_from_dealer")
    planned = record["parameters"].get("bytes_from_dealer")
    return measured or (planned * record["batch"] if planned is not None else None)


def _interval(duel: Duel) -> str:
    if min(len(record["run_s_all"]) for record in (duel.ours, duel.peer)) < 2:
        return f"{ratio(duel.ratio)} (one run)"
    return f"{ratio(duel.ratio)} ({ratio(duel.low)}-{ratio(duel.high)})"


def circumstances(records: Sequence[Record]) -> str:
    """Machines, load, code and versions behind the records, one line for each that differs."""
    lines: dict[str, None] = {}
    for record in records:
        machine = record["host"]
        lines[
            f"{machine['cpu']}, {in_words(machine['cores'])}, {machine['memory_gib']:.0f} GiB, {machine['os']}, "
            f"Python {machine['python']}"
        ] = None
    loads = [value for record in records for value in record["load"].values()]
    versions = sorted({f"{name} {version}" for record in records for name, version in record["versions"].items()})
    commits = sorted({(record["commit"] or "unknown")[:10] for record in records})
    days = sorted({record["at"][:10] for record in records})
    return "\n".join(
        [
            *(f"- Machine: {line}" for line in lines),
            f"- Load average while measuring: {min(loads):.1f} to {max(loads):.1f}",
            f"- Versions: {', '.join(versions)}",
            f"- Commits: {', '.join(commits)}; days: {', '.join(days)}",
        ]
    )


def _counts(counts: Mapping[str, float]) -> str:
    """Counted operations; those that are told apart by level (`rotations@3`) added up."""
    totals: dict[str, float] = {}
    for name, count in counts.items():
        operation = name.split("@")[0].replace("_", " ")
        totals[operation] = totals.get(operation, 0) + count
    return ", ".join(f"{count:,.0f} {name}" for name, count in totals.items())


def _who(record: Record) -> tuple[str, str, str]:
    extras = [f"batch {record['batch']}"] if record["batch"] > 1 else []
    extras += ["simulated"] if record["mode"] == "simulate" else []
    extras += [f"over {network_of(record)}"] if network_of(record) else []
    return f"`{record['model']}`", " ".join([record["protocol"], *extras]), name_of(record)
