"""Results: tables in files, where they came from, one style of figure, one builder of pages."""

from trustbench.report.provenance import about, model_name
from trustbench.report.table import Table, TableWriter, write_about

__all__ = ["Table", "TableWriter", "about", "model_name", "write_about"]
