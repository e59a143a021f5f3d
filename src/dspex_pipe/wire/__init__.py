"""Provider formats: what an LLM request is, and what an error body says."""

from .completion import Completion, recognise
from .errors import error_codes
from .media import is_event_stream, media_type
from .streams import Known, StreamReader, Usage, reader_for

__all__ = [
    "Completion",
    "Known",
    "StreamReader",
    "Usage",
    "error_codes",
    "is_event_stream",
    "media_type",
    "reader_for",
    "recognise",
]
