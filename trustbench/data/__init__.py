"""Text in, rows of tokens out."""

from trustbench.data.documents import Documents
from trustbench.data.examples import Example, ExampleBatch, Examples
from trustbench.data.tokens import TokenBatch, TokenStream

__all__ = ["Documents", "Example", "ExampleBatch", "Examples", "TokenBatch", "TokenStream"]
