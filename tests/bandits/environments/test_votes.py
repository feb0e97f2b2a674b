"""Files of votes: their meaning, and a one-line error message for every mistake."""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bandits.environments import votes as votes_module
from bandits.environments.vote_columns import TIES, quote, read_header
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
        GOOD.replace(",", "\t"),
        "count,loser,winner,context\n3,b,a,q\n1,a,b,q\n2,a,c,p\n",
        "\n".join(GOOD.splitlines()[:1] + GOOD.splitlines()[:0:-1]) + "\n",
        "context,winner,loser\nq,a,b\nq,a,b\nq,a,b\nq,b,a\np,c,a\np,c,a\n",
    ],
    ids=[
        "crlf",
        "bom",
        "no_end",
        "blank",
        "repeated",
        "zero",
        "quoted",
        "tabs",
        "permuted",
        "reordered",
        "no_count",
    ],
)
def test_property_spellings_of_the_same_votes_agree(variant: str) -> None:
    expected, got = parse(GOOD), parse(variant)
    assert got[:2] == expected[:2]
    np.testing.assert_array_equal(got.wins, expected.wins)


NAMES = st.text(min_size=1, max_size=8).filter(
    lambda name: bool(name.strip()) and "\0" not in name and name.isprintable()
)


INVISIBLE = "VARIATION SELECTOR|HANGUL .*FILLER|VOWEL INHERENT A"


def skeleton(name: str) -> str:
    """Return what all spellings of a name share, derived without the reader's code."""
    letters = [char for char in unicodedata.normalize("NFKD", name) if not char.isspace()]
    hidden = {"\N{COMBINING GRAPHEME JOINER}"}
    hidden |= {char for char in letters if unicodedata.category(char) in ("Cc", "Cf")}
    hidden |= {char for char in letters if re.search(INVISIBLE, unicodedata.name(char, ""))}
    visible = "".join(char for char in letters if char not in hidden)
    return unicodedata.normalize("NFKD", visible.upper().lower())


SPELLED = NAMES.filter(lambda name: bool(skeleton(name)) and name.strip().lower() not in TIES)
POOL = st.lists(SPELLED, min_size=2, max_size=6, unique_by=skeleton)
INDICES = st.tuples(*[st.integers(0, 5)] * 2, st.integers(1, 5), st.integers(0, 10**15))


def rows_of(names: list[str], indices: list[tuple[int, int, int, int]]) -> list[Any]:
    """Return rows of votes in which no name is compared with itself."""
    n = len(names)
    return [
        (names[x % n], names[i % n], names[(i + 1 + j % (n - 1)) % n], count)
        for x, i, j, count in indices
    ]


ROWS = st.builds(rows_of, POOL, st.lists(INDICES, min_size=1, max_size=20))


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
    ("winner,winner,loser\nq,a,b\n", "v.csv, line 1: the header must be free of repeats"),
    ("Context,Winner,Loser\nq,a,b\n", "v.csv, line 1: the header must be"),
    ('{"model_a": "a", "model_b": "b"}\n', "v.csv, line 1: the header must be"),
    ("context,winner,loser,conut\nq,a,b,1\n", "v.csv, line 1: the column 'conut' is not known"),
    ("context,winner,loser,weight\nq,a,b,1\n", "v.csv, line 1: the column 'weight' is not known"),
    ("contxt,model_a,model_b,winner\nq,a,b,a\n", "v.csv, line 1: the column 'contxt' is not"),
    ("context;winner;loser;count\nq;a;b;1\n", "v.csv, line 1: the header must be"),
    ("q,a,b,1\n", "v.csv, line 1: the header must be"),
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


SAME_NAME = [
    ("green", "green ", "spaces"),
    (" green", "green", "spaces"),
    ("new york", "new  york", "spaces"),
    ("gpt 4", "gpt\N{NO-BREAK SPACE}4", "spaces"),
    ("caf\u00e9", "cafe\u0301", "invisible characters or their Unicode form"),
    ("A1", "\uff21\uff11", "invisible characters or their Unicode form"),
    ("ab", "a\N{ZERO WIDTH SPACE}b", "invisible characters or their Unicode form"),
    ("\u2764", "\u2764\N{VARIATION SELECTOR-16}", "invisible characters or their Unicode form"),
    ("ab", "a\x7fb", "invisible characters or their Unicode form"),
    ("GPT-4", "gpt-4", "upper and lower case"),
]


@pytest.mark.parametrize(("first", "second", "difference"), SAME_NAME)
def test_raises_by_line_for_a_second_spelling_of_a_name(
    first: str, second: str, difference: str
) -> None:
    texts = [
        f"context,winner,loser\nq,{first},x\nq,y,x\nq,{second},x\n",
        f"context,winner,loser\nq,{first},x\nq,y,x\np,x,{second}\n",
        f"model_a,model_b,winner\n{first},x,tie\ny,x,tie\nx,{second},model_a\n",
    ]
    if difference != "upper and lower case":  # contexts are often texts, in which case matters
        texts.append(f"context,winner,loser\n{first},a,b\nq,a,b\n{second},a,b\n")
    for text in texts:
        with pytest.raises(VotesFileError) as caught:
            parse(text)
        message = str(caught.value)
        assert message.startswith("v.csv, line 4: `")
        assert f"differs from {first!a} (line 2) only in {difference}" in message


@pytest.mark.parametrize(
    "text",
    [
        "context,winner,loser,count\nq,a,b,1\ntea,green,green,50\n",
        "context,winner,loser\nq,a,b\ntea,green,green\n",
        "context,winner,loser,count\nq,a,b,1\ntea,green,green,0\n",
        "model_a,model_b,winner\na,b,tie\ngreen,green,tie\n",
        "model_a,model_b,winner\na,b,tie\ngreen,green,model_a\n",
    ],
)
def test_raises_by_line_for_a_vote_of_an_action_against_itself(text: str) -> None:
    with pytest.raises(VotesFileError, match=r"v.csv, line 3: .* must differ .* 'green' twice"):
        parse(text)


@pytest.mark.parametrize("tie", ["tie", "tie (bothbad)", "both_bad", "Tie"])
def test_closed_form_battles_are_read_and_a_tie_is_half_a_win_for_either_side(tie: str) -> None:
    text = (
        "question_id,model_a,model_b,winner,judge\n"
        f"7,a,b,model_a,x\n8,b,a,model_b,y\n9,a,b,{tie},x\n9,c,a,a,z\n"
    )
    for variant in (text, text.replace(",", "\t"), "\ufeff" + text.replace("\n", "\r\n")):
        votes = parse(variant)
        assert votes.actions == ("a", "b", "c")
        np.testing.assert_array_equal(votes.wins, [[[0, 2.5, 1], [0.5, 0, 0], [0, 0, 0]]])
        assert votes.ties == 1
        assert votes.notes == (
            "The file has no column `context`: all votes are in one context.",
            "Columns passed over: question_id, judge.",
            "1 tie counts as half a win for either side.",
        )
    counted = parse(f"count,winner,model_b,model_a,context\n3,{tie},a,b,q\n1,a,a,b,p\n")
    assert counted.contexts == ("p", "q")
    assert counted.wins.tolist() == [[[0, 1], [0, 0]], [[0, 1.5], [1.5, 0]]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("context,winner,loser\nq,tie,a\n", "`winner` must be the name of an action, got 'tie'"),
        ("context,winner,loser\nq,a,both_bad\n", "`loser` must be the name of an action"),
        ("model_a,model_b,winner\na,b,neither\n", "`winner` must be model_a, model_b, the name"),
        ("model_a,model_b,winner\na,b,c\n", "`winner` must be model_a, model_b, the name"),
        ("model_a,model_b,winner\na,b,\n", "`winner` must not be empty"),
        ("model_a,model_b,winner\nmodel_b,b,model_b\n", "`model_a` and `model_b` must hold names"),
        ("model_a,model_b,winner,count\na,b,tie,1.5\n", "`count` must be a whole number"),
    ],
)
def test_raises_for_an_outcome_that_is_not_one(text: str, message: str) -> None:
    with pytest.raises(VotesFileError) as caught:
        parse(text)
    assert str(caught.value).startswith(f"v.csv, line 2: {message}")


def test_closed_form_an_action_belongs_to_the_contexts_in_which_it_occurs() -> None:
    rows = "context,winner,loser,count\ntea,green,black,3\ntea,black,green,1\n"
    votes = parse(rows + "soup,leek,onion,2\nsoup,corn,leek,0\n")
    assert votes.contexts == ("soup", "tea")
    assert votes.actions == ("black", "corn", "green", "leek", "onion")
    third = 1 / 3
    expected = [[0, third, 0, third, third], [0.5, 0, 0.5, 0, 0]]
    np.testing.assert_allclose(votes.reference_policy(), expected, rtol=1e-15)
    assert votes.unconnected_contexts() == ("soup",)  # a count of 0 connects nothing
    assert parse(rows).unconnected_contexts() == ()
    split = parse("context,winner,loser\nq,a,b\nq,c,d\np,a,b\np,c,d\np,b,c\n")
    assert split.unconnected_contexts() == ("q",)


@settings(deadline=None, max_examples=30)
@given(NAMES.filter(lambda name: name.isalnum() and len(name) > 1), st.integers(0, 3))
def test_property_a_further_column_is_read_refused_or_listed(name: str, position: int) -> None:
    header, row = ["context", "winner", "loser"], ["q", "a", "b"]
    header.insert(position, name)
    row.insert(position, "7")
    text = ",".join(header) + "\n" + ",".join(row) + "\n"
    message = None
    try:
        votes = parse(text)
        listed = f"Columns passed over: {ascii(name)[1:-1]}."
        assert listed in votes.notes or (name == "count" and votes.wins.sum() == 7)
    except VotesFileError as error:
        message = str(error)
    assert message is None or ascii(name) in message


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


@pytest.mark.parametrize(
    ("header", "meant"),
    [
        ("context,winer,loser", "'winer' is not known, did you mean `winner`?"),
        ("winner,Losr", "'Losr' is not known, did you mean `loser`?"),
        ("model_a,modelb,winner", "'modelb' is not known, did you mean `model_b`?"),
        ("a,b", "(`context` and `count` may be left out) or `model_a,model_b,winner`, got 'a,b'"),
    ],
)
def test_raises_a_header_with_a_misspelled_column_names_the_column(header: str, meant: str) -> None:
    with pytest.raises(ValueError, match=r"^the header must be") as caught:
        read_header(header.split(","))
    assert str(caught.value).endswith(meant)


def test_closed_form_a_header_has_a_layout_and_texts_are_quoted_on_one_line() -> None:
    table = read_header(["count", "loser", "winner"])
    assert (table.first, table.second, table.passed_over) == ("winner", "loser", ())
    assert table.read_row(["2", "b", "a"]) == ("all votes", "a", "b", 2, False)
    assert quote("a\nb") == "'a\\nb'"
    assert len(quote("a" * 500)) < 70


def test_closed_form_ties_apart_leave_the_decided_votes() -> None:
    votes = parse("model_a,model_b,winner,count\na,b,a,3\nb,a,tie,2\nb,c,tie,1\n")
    apart = votes.with_ties_apart()
    np.testing.assert_array_equal(apart.wins, [[[0, 3, 0], [0, 0, 0], [0, 0, 0]]])
    np.testing.assert_array_equal(apart.tie_counts, [[[0, 0, 0], [2, 0, 1], [0, 0, 0]]])
    assert apart.ties == 3
    assert not any("half a win" in note for note in apart.notes)
    assert apart.unconnected_contexts() == ()
    assert parse("winner,loser\na,b\n").with_ties_apart().tie_counts is None
