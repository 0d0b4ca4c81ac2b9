"""Text in, rows of tokens out."""

from trustbench.data.documents import Documents
from trustbench.data.tokens import TokenBatch, TokenStream

__all__ = ["Documents", "TokenBatch", "TokenStream"]
