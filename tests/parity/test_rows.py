"""Parity with TRL: the same prompt and responses from conversations without an explicit prompt."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from llm.data.files import Row
from llm.data.preferences import Messages, parse_row

pytestmark = pytest.mark.parity
data_utils = pytest.importorskip("trl.data_utils", reason="needs the extra `parity`")

REPLY = ["yes", "no", "perhaps", "later", "never"]


def random_row(rng: np.random.Generator) -> dict[str, list[dict[str, str]]]:
    """Return two conversations that share their first messages, up to one of a user."""

    def messages(count: int, first: int) -> list[dict[str, str]]:
        roles = ("user", "assistant")
        return [
            {"role": roles[(first + i) % 2], "content": str(rng.choice(REPLY))}
            for i in range(count)
        ]

    start = [{"role": "system", "content": "Be brief."}] if rng.integers(2) else []
    start += messages(1 + 2 * int(rng.integers(3)), 0)
    chosen, rejected = messages(1 + 2 * int(rng.integers(3)), 1), messages(1, 1)
    rejected[0]["content"] = f"not {chosen[0]['content']}"
    return {"chosen": start + chosen, "rejected": start + rejected}


def plain(messages: Messages) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]


@pytest.mark.parametrize("seed", range(30))
def test_parity_with_trl_for_implicit_prompts_and_chatml(seed: int) -> None:
    row: dict[str, Any] = random_row(np.random.default_rng(seed))
    expected = data_utils.extract_prompt(row)
    found = parse_row(Row(row, "a.jsonl:1"), 0)
    for name in ("prompt", "chosen", "rejected"):
        assert plain(getattr(found, name)) == expected[name]
    renamed = {
        name: [{"from": each["role"], "value": each["content"]} for each in messages]
        for name, messages in row.items()
    }
    assert data_utils.maybe_convert_to_chatml(dict(renamed)) == row
    assert parse_row(Row(renamed, "a.jsonl:1"), 0) == found
