"""What is read, by which model, at which hook points: the fields that the main jobs share."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any

from trustbench.data import Documents, TokenStream
from trustbench.data.tokens import Part
from trustbench.devices import Dtype
from trustbench.fields import Bounds, Config, NonEmptyStr, PositiveInt
from trustbench.models.hook_points import Site

Layers = Annotated[str | list[int | str], "'all', or a list of layer numbers and names"]


@dataclass(frozen=True, kw_only=True)
class TextConfig(Config):
    """A model, and the text it reads.

    Parameters
    ----------
    model
        A Hugging Face causal LM: a local folder or a hub name.
    data
        Text: a .txt, .jsonl(.gz) or .parquet file, a directory or glob of them, or hf:NAME[:CONFIG].
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

    model: NonEmptyStr
    data: NonEmptyStr
    context_length: Annotated[int, Bounds(least=2)] = 256
    model_rows: PositiveInt = 16
    device: str = "auto"
    model_dtype: Dtype = "auto"
    data_field: str = "text"
    data_split: str = "train"
    document_separator: str = ""
    heldout_fraction: Annotated[float, Bounds(least=0, most=0.5)] = 0.05
    pack_documents: bool = False
    prepend_bos: bool = False

    def stream(self, tokenizer: Any, part: Part, *, repeat: bool = False) -> TokenStream:
        """The text as rows of tokens: the part that is trained on, the one held out, or all of it."""
        documents = Documents(
            self.data,
            field=self.data_field,
            split=self.data_split,
            separator=self.document_separator,
        )
        return TokenStream(
            documents,
            tokenizer,
            self.context_length,
            self.model_rows,
            part=part,
            heldout_fraction=self.heldout_fraction,
            pack_documents=self.pack_documents,
            prepend_bos=self.prepend_bos,
            repeat=repeat,
        )


@dataclass(frozen=True, kw_only=True)
class ActivationsConfig(TextConfig):
    """A model, the text it reads, and the hook points where its activations are taken.

    Parameters
    ----------
    model, data, context_length, ..., prepend_bos
        See TextConfig.
    layers
        "all", or layer numbers and hook point names (model.layers.3, layers.3,
        blocks.3.hook_resid_post).
    site
        What a layer number means: resid_pre, attn_in, q, k, v, head_out, attn_out, mlp_in,
        mlp_hidden, mlp_out or resid_post (trustbench.models.hook_points).
    """

    layers: Layers = "all"
    site: Site = "resid_post"


# What a cache of activations decides for those who train on it.
CAPTURED = tuple(
    f.name for f in dataclasses.fields(ActivationsConfig) if f.name not in ("layers", "device")
)
