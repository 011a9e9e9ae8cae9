"""Benchmarks: cases as data, a runner that interleaves ours with peers, and records as JSON lines."""

from secure_infer.bench.cases import Case, Entry, case_names, load_case
from secure_infer.bench.records import Record, append
from secure_infer.bench.runner import run_case

__all__ = ["Case", "Entry", "Record", "append", "case_names", "load_case", "run_case"]
