"""Locations parse to scheme, bucket and key, and refuse what is none in one line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rpo_io.locations import Location, has_scheme, parse_location


@pytest.mark.parametrize(
    "text", ["gs://bucket/runs/a/metrics.jsonl", "s3://bucket/a", "hf://owner/name", "a/b.jsonl"]
)
def test_roundtrip_locations_are_printed_as_they_were_given(text: str) -> None:
    assert str(parse_location(text)) == text


def test_closed_form_parts_of_a_location_in_a_bucket() -> None:
    location = parse_location("GS://bucket/runs/a/")
    assert (location.scheme, location.bucket, location.key) == ("gs", "bucket", "runs/a")
    assert (location.name, str(location.parent)) == ("a", "gs://bucket/runs")
    assert str(location / "metrics.jsonl") == "gs://bucket/runs/a/metrics.jsonl"
    bucket = parse_location("s3://bucket")
    assert (bucket.key, bucket.parent, bucket.name) == ("", bucket, "bucket")
    assert str(bucket / "a") == "s3://bucket/a"


def test_closed_form_files_of_this_machine_are_local_with_and_without_a_scheme() -> None:
    assert parse_location("file:///tmp/a b.jsonl").local == Path("/tmp/a b.jsonl")
    assert parse_location("file://localhost/tmp/a").local == Path("/tmp/a")
    local = parse_location("data/rows.jsonl")
    assert (local.is_local, local.name, str(local.parent)) == (True, "rows.jsonl", "data")
    found = [has_scheme(text) for text in ("a:b", "http://a", Path("gs://bucket/a"))]
    assert found == [False, True, True]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("http://host/a", "the scheme must be one of gs://, s3://, hf://, file:// or absent"),
        ("gcs://bucket/a", "write gs://bucket/a"),
        ("gs:/bucket/a", "must have the form gs://BUCKET/PATH"),
        ("gs://", "a bucket is named by 3 to 222 letters"),
        ("gs://b c/d", "a bucket is named by 3 to 222 letters"),
        ("s3://bucket/a//b", "a component of a key must not be empty"),
        ("s3://bucket/../b", "a component of a key must not be empty"),
        ("file://rows.jsonl", "must have the form file:///FOLDER/FILE"),
        ("hf://", "must have the form hf://OWNER/NAME"),
    ],
)
def test_raises_for_texts_that_are_no_location(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        parse_location(text)
    assert "\n" not in str(caught.value)


def test_raises_for_the_local_path_of_an_object() -> None:
    with pytest.raises(ValueError, match="gs://bucket/a must be a local path"):
        _ = Location("gs", "bucket/a").local
