"""Evaluation of SAEs on held-out text."""

from trustbench.evals.evaluate import EvalReport, LayerEval, evaluate

__all__ = ["EvalReport", "LayerEval", "evaluate"]
