"""Where the demo's model and text are."""

from __future__ import annotations

from pathlib import Path

_ASSETS = Path(__file__).parent / "assets"
MODEL = _ASSETS / "model"  # a GPT-NeoX and its tokenizer, made by scripts/train_demo_model.py
TRAIN_TEXT = _ASSETS / "train.txt"  # what the model was trained on
HELDOUT_TEXT = _ASSETS / "heldout.txt"  # what neither the model nor the demo's SAEs are trained on
TRAINING = _ASSETS / "training.json"  # recipe, loss curve, held-out perplexity
