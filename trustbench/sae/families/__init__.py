"""Families of SAEs: how pre-activations become a code, and what the loss adds. One file each.

A new family is a file with a FAMILY (see base.py), a line here, and its tests.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module

from trustbench.sae.families.base import Family

FAMILIES = {
    "topk": "trustbench.sae.families.topk",
    "batchtopk": "trustbench.sae.families.batchtopk",
    "matryoshka": "trustbench.sae.families.matryoshka",
    "relu": "trustbench.sae.families.relu",
    "panneal": "trustbench.sae.families.panneal",
    "jumprelu": "trustbench.sae.families.jumprelu",
    "gated": "trustbench.sae.families.gated",
}

__all__ = ["FAMILIES", "Family", "family"]


@cache
def family(name: str) -> Family:
    """The family of this name."""
    return import_module(FAMILIES[name]).FAMILY
