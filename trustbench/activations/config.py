"""What is read and by which model: the fields that training and capturing share, and their checks."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from trustbench.errors import bad
from trustbench.models.hook_points import Site

Dtype = Literal["auto", "fp32", "bf16"]


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """A model, its hook points, and the text it reads.

    Parameters
    ----------
    model
        A Hugging Face causal LM: a local folder or a hub name.
    data
        Text: a .txt, .jsonl(.gz) or .parquet file, a directory or glob of them, or hf:NAME[:CONFIG].
    layers
        "all", or layer numbers and hook point names (model.layers.3, layers.3,
        blocks.3.hook_resid_post).
    site
        What a layer number means: resid_post, resid_pre, mlp_in, mlp_out or attn_out.
    context_length
        Tokens a row of text, at most; no more than the model has positions for.
    model_rows
        Rows a forward of the model.
    device
        auto (the first GPU, else the CPU), cpu, cuda or cuda:N: where everything runs.
    model_dtype
        fp32 or bf16: weights and arithmetic of the model. auto: bf16 on a GPU, else fp32.
    data_field
        Field or column that holds the text.
    data_split
        Split of a Hugging Face data set.
    document_separator
        What stands between the documents of a .txt file.
    heldout_fraction
        Share of the documents that are neither trained on nor captured (every n-th): evaluation
        reads those.
    pack_documents
        Let several documents share a row (and see each other).
    prepend_bos
        Start every row with the BOS token; its activations are left out.
    """

    model: str = ""
    data: str = ""
    layers: str | list[int | str] = "all"
    site: Site = "resid_post"
    context_length: int = 256
    model_rows: int = 16
    device: str = "auto"
    model_dtype: Dtype = "auto"
    data_field: str = "text"
    data_split: str = "train"
    document_separator: str = ""
    heldout_fraction: float = 0.05
    pack_documents: bool = False
    prepend_bos: bool = False

    def check_text(self) -> None:
        """InputError for a field of these that is out of its range."""
        listed = self.layers if isinstance(self.layers, list) else [self.layers]
        if any(type(entry) not in (int, str) for entry in listed) or type(self.layers) is int:
            raise bad("layers", self.layers, "'all', or a list of layer numbers and names")
        self.check_least({"context_length": 2, "model_rows": 1})
        self.check_choices({"site": Site, "model_dtype": Dtype})
        if not 0 <= self.heldout_fraction <= 0.5:
            raise bad("heldout_fraction", self.heldout_fraction, "a number in [0, 0.5]")

    def check_kinds(self, kinds: Mapping[str, tuple[Any, str]]) -> None:
        """A file or a dict can hold anything; integers and choices are checked with their ranges.

        kinds: {annotation: (type, what it is called)}, beyond strings, booleans and numbers.
        """
        known = {
            "str": (str, "a string"),
            "bool": (bool, "true or false"),
            "float": ((int, float), "a number"),
            **kinds,
        }
        for name, annotation in ((f.name, str(f.type)) for f in dataclasses.fields(self)):
            value = getattr(self, name)
            kind, expected = known.get(annotation, (object, ""))
            if not isinstance(value, kind) or (annotation == "float" and isinstance(value, bool)):
                raise bad(name, value, expected)

    def check_least(self, least: Mapping[str, int]) -> None:
        """Integers that are at least so large."""
        for name, bound in least.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < bound:
                raise bad(name, value, f"an integer >= {bound}")

    def check_choices(self, choices: Mapping[str, Any]) -> None:
        """Names out of a Literal."""
        for name, options in choices.items():
            if getattr(self, name) not in get_args(options):
                raise bad(name, getattr(self, name), f"one of {', '.join(get_args(options))}")


# What a cache of activations decides for those who train on it.
CAPTURED = tuple(f.name for f in dataclasses.fields(TextConfig) if f.name not in ("layers", "device"))
