"""What is said when the hub refuses."""

from __future__ import annotations

import pytest

from quantplan import errors
from quantplan.cli.hints import hint_for


@pytest.mark.parametrize(
    ("error", "hint"),
    [
        (
            errors.RepositoryGated(repo="org/m", has_token=False),
            "accept its terms at https://huggingface.co/org/m, then: hf auth login",
        ),
        (errors.RepositoryGated(repo="org/m", has_token=True), "accept its terms at https://huggingface.co/org/m"),
        (errors.RepositoryNotFound(repo="org/m"), "check the spelling; if it is private: hf auth login"),
        (errors.RepositoryNotFound(repo="org/m", near=["org/n"]), "quantplan recommend org/n"),
        (
            errors.HubRateLimited(url="u", retry_after_s=9),
            "wait 9 s; with a token the limit is higher: hf auth login",
        ),
        (
            errors.HubOffline(model="org/m"),
            "unset HF_HUB_OFFLINE, or name a local file, a folder or a catalog model",
        ),
        (errors.ChooseFile(model="org/m", asked=None, choices=("Q4_0", "Q8_0")), "name one of them: org/m:Q4_0"),
        (errors.ChooseFile(model="org/m", asked="Q4", choices=("a.gguf",)), "name the file: org/m/a.gguf"),
    ],
)
def test_the_next_thing_to_type(error: errors.QuantplanError, hint: str) -> None:
    assert hint_for(error) == hint
