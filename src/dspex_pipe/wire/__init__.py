"""Provider formats: what an LLM request is, and what an error body says or has to say."""

from .completion import Completion, form_of, recognise
from .document import parse, parse_loosely
from .errors import NOT_CACHED, codes_of, error_body, error_codes
from .limits import Pace, told_pace, told_reset
from .media import EVENT_STREAM, is_event_stream, media_type
from .streams import Kind, Known, Seen, StreamReader, Usage, reader_for

__all__ = [
    "EVENT_STREAM",
    "NOT_CACHED",
    "Completion",
    "Kind",
    "Known",
    "Pace",
    "Seen",
    "StreamReader",
    "Usage",
    "codes_of",
    "error_body",
    "error_codes",
    "form_of",
    "is_event_stream",
    "media_type",
    "parse",
    "parse_loosely",
    "reader_for",
    "recognise",
    "told_pace",
    "told_reset",
]
