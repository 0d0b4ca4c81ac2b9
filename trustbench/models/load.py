"""Loading a causal LM and its tokenizer, from disk or from the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from trustbench.errors import InputError


def load_model(
    name: str, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> tuple[Any, Any]:
    """A causal LM in eval mode, its weights frozen, and its tokenizer.

    Parameters
    ----------
    name : str
        A local folder, or a name on the Hugging Face hub.
    dtype : torch.dtype
        Of the weights.
    device : torch.device or str

    Raises
    ------
    InputError
        When it cannot be loaded, with the library's own words.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        with _no_progress_bar():
            model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype)
            tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"model={name!r}: expected a folder or hub name of a causal language model ({error})"
        ) from error
    return model.eval().requires_grad_(False).to(device), tokenizer


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """transformers shows one for every file that it reads."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
