"""Claims about ``rpo demo``: its numbers, its files and its self-contained report."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from markupsafe import escape

from rpo.cli import main
from rpo.report.demo import INSTANCES, REDUCED, report_sections
from rpo.report.demo_figures import FIGURES
from rpo.report.demo_measurements import COMPARISONS
from rpo.report.page import Section, render_page
from rpo.results import Claim


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    assert main(["demo", "--out", str(folder)]) == 0
    return folder


def test_property_every_claim_of_the_summary_holds(folder: Path) -> None:
    summary = json.loads((folder / "summary.json").read_text())
    assert len(summary["claims"]) == 5
    assert all(claim["holds"] for claim in summary["claims"])


def test_property_three_routes_agree_on_random_instances(folder: Path) -> None:
    """Theorem 5.6 and Algorithm 2, with eta and beta over four decades."""
    rows = json.loads((folder / "summary.json").read_text())["instances"]
    assert len(rows) == INSTANCES
    assert {row["family"] for row in rows} == {"tabular", "linear"}
    assert max(row["duality_gap"] / max(1, abs(row["value"])) for row in rows) <= 1e-10
    assert max(row["policy_tv_maximin"] for row in rows) <= 1e-6
    assert max(row["policy_tv_loss"] for row in rows) <= 1e-6
    for name in ("eta", "beta"):
        values = [row[name] for row in rows]
        assert 0.01 <= min(values) < 1e-3 * max(values) <= 0.1
    assert max(row["contexts"] for row in rows) > 10
    assert max(row["actions"] for row in rows) > 20


def test_property_dpo_is_hacked_and_rpo_is_not(folder: Path) -> None:
    gaps = json.loads((folder / "summary.json").read_text())["hacking"]["gap"]
    assert gaps["DPO"] == pytest.approx([1.0] * len(COMPARISONS), abs=0.01)
    chosen = gaps["RPO, baseline chosen"]
    assert chosen == sorted(chosen, reverse=True)
    assert chosen[-1] < 0.01


def test_property_a_transformer_is_hacked_by_dpo_and_not_by_rpo(folder: Path) -> None:
    curves = json.loads((folder / "summary.json").read_text())["transformer"]
    dpo, rpo = curves["DPO"], curves["RPO"]
    assert max(dpo["true_reward"]) > 0.4
    assert dpo["true_reward"][-1] < 0.2
    assert rpo["true_reward"][-1] > 0.8
    assert dpo["logps/chosen"][-1] < dpo["logps/chosen"][0] - 5
    assert rpo["logps/chosen"][-1] > dpo["logps/chosen"][-1] + 5


def test_property_a_transformer_becomes_the_minimax_policy_if_it_is_large_enough(
    folder: Path,
) -> None:
    curves = json.loads((folder / "summary.json").read_text())["minimax_agreement"]
    assert all(variation[-1] < 1e-4 for _, variation in curves["large"])  # the project's bar
    assert all(variation[-1] > 0.1 for _, variation in curves["small"])


def test_property_partial_coverage_is_enough_for_rpo_and_not_for_dpo(folder: Path) -> None:
    cells = json.loads((folder / "summary.json").read_text())["coverage"]
    gaps = {(cell["label"], cell["comparisons"]): cell["gap"] for cell in cells}
    assert gaps["rpo", 100_000] < 0.2 * gaps["rpo", 1000]
    assert gaps["dpo", 100_000] > 0.2


def test_property_the_numbers_of_the_text_are_those_of_the_summary(folder: Path) -> None:
    summary = json.loads((folder / "summary.json").read_text())
    pictures = {f"{name}.png": b"" for name in FIGURES}
    text = (folder / "report.html").read_text(encoding="utf-8")
    for section in report_sections(pictures, summary):
        assert escape(section.text) in text


def test_property_numbers_of_a_reduced_run_are_marked(folder: Path) -> None:
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["reduced"] == REDUCED
    assert set(REDUCED) < set(summary)
    assert f"{INSTANCES} random bandits" in REDUCED["instances"]
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert all(text.count(note) == 1 for note in REDUCED.values())


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]


def test_property_the_report_fetches_nothing(folder: Path) -> None:
    text = (folder / "report.html").read_text(encoding="utf-8")
    page = _Page()
    page.feed(text)
    assert len(page.sources) == 6
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert not re.search(r"https?://|url\(", text)


def test_property_no_other_files_are_left(folder: Path) -> None:
    names = {".rpo.json", "report.html", "summary.json"}
    names |= {f"{name}.png" for name in FIGURES}
    assert {path.name for path in folder.iterdir()} == names


def test_property_the_report_escapes_all_text() -> None:
    hostile = '<script>alert(1)</script>"&'
    section = Section(title=hostile, text=hostile, image=b"", alt=hostile, command=hostile)
    page = render_page(hostile, [Claim(hostile, 1.0, 2.0, False)], [section])
    assert "<script>" not in page
    assert 'alt="&lt;script&gt;alert(1)&lt;/script&gt;&#34;&amp;"' in page
