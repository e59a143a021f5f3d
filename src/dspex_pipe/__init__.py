"""A composable middleware pipeline for httpx clients.

``build_client(layers=[Retry()])`` makes a real ``httpx.Client`` whose requests walk through the layers;
``attach(OpenAI(), layers=[Retry()])`` does the same for a provider's SDK.

What this package offers stands in ``__init__.pyi``; each part is loaded when it is asked for.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
