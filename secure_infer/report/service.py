"""What runs against a real server showed, in sentences: the newest record of each."""

from __future__ import annotations

from pathlib import Path

from secure_infer.bench import records
from secure_infer.bench.records import Record
from secure_infer.report.markdown import ratio, seconds, share, size

FOLDER = "service"


def service(results: Path) -> str:
    """A Markdown list of the newest runs, each with the command that makes it; says so where there are none.

    Args:
        results: Folder of the records.
    """
    told = {"serve": _load, "serve-faults": _faults, "serve-cluster": _cluster}
    lines = []
    for case, tell in told.items():
        path = results / FOLDER / f"{case}.jsonl"
        found = records.read(path) if path.is_file() else []
        if found:
            lines.append(f"- `secure-infer bench {case}` (load average {found[-1]['load']:.1f}): {tell(found[-1])}")
    return "\n".join(lines) or "No run is on record."


def _load(record: Record) -> str:
    latency, light, memory = record["latency_s"], record["light"], record["memory"]
    return (
        f"{record['n']} requests of {record['clients']} clients to `{record['model']}` under {record['protocol']} with "
        f"{record['workers']} workers: {record['lost']} lost, {record['wrong']} wrong, "
        f"{record['requests_per_s']:.1f} a second, {share(record['throughput_ratio'])} of what the bare workers do; "
        f"latency p50 {seconds(latency['p50'])}, p95 {seconds(latency['p95'])}, p99 {seconds(latency['p99'])}. "
        f"One client alone: HTTP adds {seconds(light['overhead_s']['p50'])} to {seconds(light['run_s'])}, of which "
        f"{seconds(light['exchange_s']['p50'])} are what the same bytes take to and from a server that does nothing. "
        f"Of the server's CPU, {share(record['evaluation_share'])} goes into evaluation. "
        f"Memory of all processes at most {size(memory['max_bytes'])}, "
        f"{100 * memory['growth']:+.1f} % from the second to the last quarter."
    )


def _faults(record: Record) -> str:
    by = ", ".join(f"{count} of a {name}" for name, count in sorted(record["by"].items()))
    ends = record["requests"]
    return (
        f"{record['kills']} kills (SIGKILL; {by}) at random moments: {ends.get('answer', 0)} answers, "
        f"{ends.get('error', 0)} clear errors, {ends.get('killed', 0)} requests of clients that were killed; "
        f"{record['wrong']} wrong answers, {record['without_an_end']} requests without an end, "
        f"{record['clients_miscounted']} wrong counts, {len(record['store_problems'])} problems in the store."
    )


def _cluster(record: Record) -> str:
    pool, cluster = record["pool"], record["cluster"]
    return (
        f"{record['n']} requests each on {record['workers']} Ray workers and as many processes: "
        f"{cluster['requests_per_s']:.1f} and {pool['requests_per_s']:.1f} a second (ratio {ratio(record['ratio'])}), "
        f"{cluster['lost'] + cluster['wrong']} and {pool['lost'] + pool['wrong']} lost or wrong."
    )
