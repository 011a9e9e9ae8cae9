"""From records to what people read: Markdown tables, SVG plots, and the generated regions of the README."""

from secure_infer.report.write import write_report

__all__ = ["write_report"]
