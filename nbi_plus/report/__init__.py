"""Reports: one page about one catalogue, that needs nothing but a browser."""

from nbi_plus.report.report import Report, write_report

__all__ = ["Report", "write_report"]
