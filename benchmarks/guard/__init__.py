"""The regression guard: figures that no busy machine changes, against their records."""
