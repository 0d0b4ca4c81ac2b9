"""Evaluation of SAEs on held-out text: of a run, or of SAEs and a model in memory."""

from trustbench.evals.run import EvalConfig, evaluate
from trustbench.evals.sae import LayerEval, evaluate_saes

__all__ = ["EvalConfig", "LayerEval", "evaluate", "evaluate_saes"]
