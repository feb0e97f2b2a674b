"""Claims about win rates from annotation files, against alpaca-eval (extra ``parity``).

The package downloads ``df_gamed.csv``; it is given a file of these tests instead.
"""

from __future__ import annotations

import json
import logging
import sys
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from llm.evaluation.alpaca_eval import alpaca_eval_metrics, read_gamed_annotations
from llm.evaluation.judgments import read_judgment_file
from rpo import api


@pytest.fixture(scope="module")
def package() -> ModuleType:
    """Import the package; it needs a module that setuptools no longer has."""
    pytest.importorskip("pandas", reason="needs the extra `parity`")
    stand_in: Any = ModuleType("pkg_resources")
    stand_in.get_distribution = version
    sys.modules.setdefault("pkg_resources", stand_in)
    level = logging.getLogger().level
    pytest.importorskip("alpaca_eval", reason="needs the extra `parity`")
    logging.getLogger().setLevel(level)
    from alpaca_eval.metrics import glm_winrate  # pyright: ignore[reportMissingImports]

    return glm_winrate


pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

EXACT, CONTROLLED = 1e-9, 1e-3
KINDS = {
    "weighted": lambda rng: 1 + rng.random(),
    "discrete": lambda rng: rng.choice([1.0, 2.0]),
    "draws": lambda rng: rng.choice([0, 1.5, 1, 2]),
    "missing": lambda rng: rng.choice([None, float("nan"), 1 + rng.random(), 0]),
    "integers": lambda rng: int(rng.integers(0, 3)),
    "near draws": lambda rng: 1.5 + rng.choice([-1, 0, 1]) * 2.0**-52,
    "lost": lambda rng: 1.0,
    "won": lambda rng: 2,
}


def write_gamed(folder: Path, rng: np.random.Generator, n: int) -> Path:
    """Write annotations of two gamed models by a judge who likes length."""
    import pandas as pd  # pyright: ignore[reportMissingImports]

    difficulty = rng.normal(size=n)
    rows = []
    for model, shift in (("verbose", 1.5), ("concise", -1.5)):
        for index in range(n):
            length = rng.normal() + shift
            logit = -2.0 * np.tanh(length) + 0.7 * difficulty[index] + 0.3
            preference = np.clip(1 / (1 + np.exp(-logit)) + 0.1 * rng.normal(), 0, 1)
            rows.append([model, index, preference, length, difficulty[index], False])
    columns = ["model", "index", "preference", "std_delta_len", "instruction_difficulty"]
    path = folder / "df_gamed.csv"
    pd.DataFrame(rows, columns=[*columns, "not_gamed_baseline"]).to_csv(path, index=False)
    return path


def make_annotations(rng: np.random.Generator, n: int, kind: str) -> list[dict[str, Any]]:
    """Make annotations in the order of the instructions, some of which are equal texts."""
    rows = []
    for _ in range(n):
        short, long = int(rng.integers(0, 300)), int(rng.integers(100, 900))
        preference = KINDS[kind](rng)
        if kind == "weighted":  # the judge likes length
            preference = 1 + 1 / (1 + np.exp(-(long - short - 300) / 150 + rng.normal()))
        rows.append(
            {
                "instruction": f"instruction {rng.integers(n // 2)}",
                "output_1": "a" * short,
                "output_2": "é \n"[int(rng.integers(3))] * long,
                "generator_1": "baseline",
                "generator_2": "model",
                "annotator": "judge",
                "preference": preference,
            }
        )
    return rows


def swapped(row: dict[str, Any]) -> dict[str, Any]:
    """Return the annotation with the answers in the other order."""
    value = row["preference"]
    return row | {
        "output_1": row["output_2"],
        "output_2": row["output_1"],
        "generator_1": row["generator_2"],
        "generator_2": row["generator_1"],
        "preference": value if value is None or value == 0 else 3 - value,
    }


@pytest.mark.parametrize("n", [12, 101, 805])
@pytest.mark.parametrize("kind", KINDS)
def test_parity_win_rates_are_the_percentages_of_the_package_over_100(
    kind: str, n: int, package: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng([n, list(KINDS).index(kind)])
    gamed = write_gamed(tmp_path, rng, n)
    monkeypatch.setattr(package, "hf_hub_download", lambda **options: str(gamed))
    rows = make_annotations(rng, n, kind)
    expected = package.get_length_controlled_winrate(rows, save_weights_dir=None)
    other = [rows[i] | {"generator_2": "another"} for i in rng.integers(n, size=3)]
    orders = [swapped(row) if rng.random() < 0.4 else row for row in rows]
    for k, judged in enumerate((rows, orders, orders[:2] + other + orders[2:])):
        path = tmp_path / f"annotations{k}.json"
        path.write_text(json.dumps(judged))
        got = alpaca_eval_metrics(
            read_judgment_file(path), "model", "baseline", gamed=read_gamed_annotations(gamed)
        )
        for name in ("n_total", "n_wins", "n_wins_base", "n_draws"):
            assert got[name] == expected[name], name
        for name in ("win_rate", "discrete_win_rate", "standard_error"):
            assert got[name] == pytest.approx(expected[name] / 100, abs=EXACT), name
        for name in ("length_controlled_winrate", "lc_standard_error"):
            assert got[name] == pytest.approx(expected[name] / 100, abs=CONTROLLED), name
    measured = api.evaluate(
        model="model", reference="baseline", judgments=tmp_path / "annotations1.json", gamed=gamed
    ).metrics
    assert measured["length_controlled_winrate"] == pytest.approx(
        expected["length_controlled_winrate"] / 100, abs=CONTROLLED
    )
