"""Evaluation of SAEs on held-out text."""

from trustbench.evals.sae import EvalReport, LayerEval, evaluate

__all__ = ["EvalReport", "LayerEval", "evaluate"]
