"""Studies: a folder each, from a config to tables, figures and a page."""
