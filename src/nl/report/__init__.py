"""Reports: run directories in, one self-contained HTML page out. Floor 1, never imports torch."""

from nl.report.page import write_report

__all__ = ["write_report"]
