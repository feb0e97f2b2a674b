"""Files of votes: their meaning, and a one-line error message for every mistake."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bandits.environments import votes as votes_module
from bandits.environments.votes import Votes, VotesFileError, parse_votes, read_votes

GOOD = "context,winner,loser,count\nq,a,b,3\nq,b,a,1\np,c,a,2\n"


def parse(text: str | bytes) -> Votes:
    data = text if isinstance(text, bytes) else text.encode()
    return parse_votes(io.BytesIO(data), name="v.csv")


def test_roundtrip_counts_land_at_the_sorted_names() -> None:
    votes = parse(GOOD)
    assert votes.contexts == ("p", "q")
    assert votes.actions == ("a", "b", "c")
    expected = np.zeros((2, 3, 3))
    expected[1, 0, 1], expected[1, 1, 0], expected[0, 2, 0] = 3, 1, 2
    np.testing.assert_array_equal(votes.wins, expected)


def test_property_real_votes_agree_with_a_plain_count(shared_data: Path) -> None:
    path = shared_data / "pandalm-votes.csv"
    votes = read_votes(path)
    assert (len(votes.contexts), len(votes.actions)) == (49, 5)
    assert votes.wins.sum() == 2671
    won: dict[tuple[str, str], int] = defaultdict(int)
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            won[row["context"], row["winner"]] += int(row["count"])
    table = votes.wins.sum(axis=2)
    for x, context in enumerate(votes.contexts):
        for a, action in enumerate(votes.actions):
            assert table[x, a] == won[context, action]


@pytest.mark.parametrize(
    "variant",
    [
        GOOD.replace("\n", "\r\n"),
        "\ufeff" + GOOD,
        GOOD.rstrip("\n"),
        GOOD + "\n\n",
        GOOD.replace("q,a,b,3", "q,a,b,1\nq,a,b,2"),
        GOOD + "q,a,b,0\n",
        GOOD.replace("q,a,b,3", '"q","a","b", 3 '),
        "\n".join(GOOD.splitlines()[:1] + GOOD.splitlines()[:0:-1]) + "\n",
        "context,winner,loser\nq,a,b\nq,a,b\nq,a,b\nq,b,a\np,c,a\np,c,a\n",
    ],
    ids=["crlf", "bom", "no_end", "blank", "repeated", "zero", "quoted", "reordered", "no_count"],
)
def test_property_spellings_of_the_same_votes_agree(variant: str) -> None:
    expected, got = parse(GOOD), parse(variant)
    assert got[:2] == expected[:2]
    np.testing.assert_array_equal(got.wins, expected.wins)


def test_extreme_a_vote_of_an_action_against_itself_is_counted() -> None:
    assert parse("context,winner,loser\nq,a,a\n").wins.tolist() == [[[1.0]]]


NAMES = st.text(min_size=1, max_size=8).filter(
    lambda name: bool(name.strip()) and "\0" not in name and name.isprintable()
)
ROWS = st.lists(st.tuples(NAMES, NAMES, NAMES, st.integers(0, 10**15)), min_size=1, max_size=20)


@settings(deadline=None)
@given(ROWS)
def test_roundtrip_any_names_and_counts_that_csv_can_write(
    rows: list[tuple[str, str, str, int]],
) -> None:
    text = io.StringIO()
    csv.writer(text).writerows([("context", "winner", "loser", "count"), *rows])
    if not sum(count for *_, count in rows):
        with pytest.raises(VotesFileError, match="no votes"):
            parse(text.getvalue())
        return
    votes = parse(text.getvalue())
    expected: dict[tuple[str, str, str], int] = defaultdict(int)
    for context, winner, loser, count in rows:
        expected[context, winner, loser] += count
    got = {
        (votes.contexts[x], votes.actions[w], votes.actions[l]): votes.wins[x, w, l]
        for x, w, l in np.argwhere(votes.wins)  # noqa: E741
    }
    assert got == {key: float(count) for key, count in expected.items() if count}


@settings(deadline=None)
@given(st.binary(max_size=80), st.integers(0, len(GOOD)), st.booleans())
def test_property_damaged_files_raise_one_line_that_names_the_file(
    noise: bytes, position: int, header: bool
) -> None:
    data = GOOD.encode()[:position] + noise + GOOD.encode()[position:] if header else noise
    message = None
    try:
        votes = parse(data)
        assert np.isfinite(votes.wins).all()
        assert votes.wins.min() >= 0
    except VotesFileError as error:
        message = str(error)
    assert message is None or message.startswith("v.csv, line ")
    assert message is None or len(message.splitlines()) == 1


BAD_FILES = [
    ("", "v.csv, line 1: the header must be"),
    ("\n\n", "v.csv, line 1: the header must be"),
    ("ctx,winner,loser,count\n", "v.csv, line 1: the header must be"),
    ("winner,context,loser,count\nq,a,b,1\n", "v.csv, line 1: the header must be"),
    ("context;winner;loser;count\nq;a;b;1\n", "v.csv, line 1: the header must be"),
    ("q,a,b,1\n", "v.csv, line 1: the header must be"),
    ("context,winner,loser,count,x\n", "v.csv, line 1: the header must be"),
    ("context,winner,loser,count\n", "v.csv, line 1: no votes"),
    ("context,winner,loser,count\nq,a,b,0\n", "v.csv, line 1: no votes"),
    (GOOD + "q,a,b\n", "v.csv, line 5: must have the 4 fields"),
    (GOOD + "q,a,b,1,1\n", "v.csv, line 5: must have the 4 fields"),
    (GOOD + ",a,b,1\n", "v.csv, line 5: `context` must not be empty"),
    (GOOD + "q, ,b,1\n", "v.csv, line 5: `winner` must not be empty"),
    (GOOD + "q,a,,1\n", "v.csv, line 5: `loser` must not be empty"),
    (GOOD + "q,a,b,\n", "v.csv, line 5: `count` must be a whole number"),
    (GOOD + "q,a,b,many\n", "v.csv, line 5: `count` must be a whole number"),
    (GOOD + "q,a,b,-1\n", "v.csv, line 5: `count` must be a whole number"),
    (GOOD + "q,a,b,1.5\n", "v.csv, line 5: `count` must be a whole number"),
    (GOOD + "q,a,b,nan\n", "v.csv, line 5: `count` must be a whole number"),
    (GOOD + "q,a,b,1_000\n", "v.csv, line 5: `count` must be a whole number"),
    (GOOD + "q,a,b,٣\n", "v.csv, line 5: `count` must be a whole number"),
    (GOOD + "q,a,b,9999999999999999\n", "v.csv, line 5: `count` must be at most"),
    (GOOD + "q,a,b," + "9" * 5000 + "\n", "v.csv, line 5: `count` must be a whole number"),
    (GOOD + '"q\nq",a,b,1\nq,a,b,x\n', "v.csv, line 7: `count`"),
    (GOOD + 'q,"a,b,1\n', "v.csv, line 5: not valid CSV"),
    (GOOD + 'q,"a"a,b,1\n', "v.csv, line 5: not valid CSV"),
    (GOOD + "q" * 200_000 + ",a,b,1\n", "v.csv, line 5: not valid CSV"),
    (GOOD.encode() + b"q,\xff,b,1\n", "v.csv, line 5: must be UTF-8, got byte 0xff"),
    (GOOD.encode("utf-16"), "v.csv, line 1: must be UTF-8"),
    (GOOD + "q,a\0,b,1\n", "v.csv, line 5: must be text"),
]


@pytest.mark.parametrize(("text", "message"), BAD_FILES)
def test_raises_names_file_line_and_field(text: str | bytes, message: str) -> None:
    with pytest.raises(VotesFileError) as caught:
        parse(text)
    assert str(caught.value).startswith(message)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 200


def test_raises_before_building_a_table_that_is_too_large(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(votes_module, "MAX_CELLS", 17)
    with pytest.raises(VotesFileError, match="2 contexts x 3 actions x 3 actions"):
        parse(GOOD)


def test_raises_for_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_votes(tmp_path / "absent.csv")
