"""Provider formats: what an LLM request is, and what an error body says."""

from .completion import Completion, recognise
from .errors import error_codes

__all__ = ["Completion", "error_codes", "recognise"]
