"""Every Python snippet of the README and of docs/ runs, against the local provider."""

from __future__ import annotations

from collections import Counter

import pytest
import stamina

from snippets import CALLS, ROOT, run_snippet, snippets_of

ELSEWHERE = {"dspy.md", "litellm.md"}  # these need openai<3, and are tested in tests_dspy/
DOCS = [document for document in sorted(ROOT.glob("docs/*.md")) if document.name not in ELSEWHERE]
SNIPPETS = snippets_of(ROOT / "README.md", *DOCS)


def test_the_documents_have_snippets():
    assert Counter(snippet.values[0] for snippet in SNIPPETS) == {"README.md": 16, "recipes.md": 10}


@pytest.mark.parametrize(("document", "snippet"), SNIPPETS)
# Snippets close nothing, for brevity: what that leaves behind is not under test here.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
def test_snippet_runs(document, snippet, provider, monkeypatch, tmp_path):
    if document != "README.md":
        assert CALLS.search(snippet), "a recipe says how many calls it makes"
        stamina.set_testing(True, attempts=99, cap=True)  # as many attempts as ever, but no waits
    run_snippet(snippet, provider, monkeypatch, tmp_path)
