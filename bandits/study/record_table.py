"""Records of fits as a table: one row per fit, one column per quantity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, get_args

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int

from bandits.methods.base import FAILED, CertificateKind, FitResult
from bandits.methods.method_config import method_labels
from rpo_theory.types import Status

from .config import EtaBeta, StudyConfig, design_axes, uses_designs
from .metrics import BoundInputs
from .parts import StudyPart

CERTIFICATE_KINDS = get_args(CertificateKind)
BOUND_COLUMNS = (
    "bound",
    "bound_tight",
    "bound_printed",
    "bound_coverage",
    "bound_complexity",
    "bound_kl",
    "bound_regularized",
    "bound_projected",
)
"""Columns of bounds; null for methods without a bound."""


class WeightValues(NamedTuple):
    r"""Numerical weights of a batch of draws.

    Attributes:
        eta: :math:`\eta` of each draw, nats per unit of reward, shape ``[B]``.
        beta: :math:`\beta` of each draw, shape ``[B]``.
    """

    eta: Float[np.ndarray, " B"]
    beta: Float[np.ndarray, " B"]


class TableBuilder:
    """Columns of equal length that are collected by name and then become a table."""

    def __init__(self, length: int) -> None:
        """Start a table without columns.

        Args:
            length: number of rows.
        """
        self._length = length
        self._columns: dict[str, pa.Array] = {}

    def add_strings(self, name: str, codes: np.ndarray, strings: Sequence[str]) -> None:
        """Add a column of strings, stored as a dictionary.

        Args:
            name: name of the column.
            codes: index into ``strings`` of each row, or one index for all rows; a negative index
                is null.
            strings: the different strings.
        """
        codes = np.broadcast_to(codes, self._length).astype(np.int32)
        indices = pa.array(codes, mask=codes < 0)
        self._columns[name] = pa.DictionaryArray.from_arrays(indices, pa.array(list(strings)))

    def add_texts(self, name: str, texts: Sequence[str]) -> None:
        """Add a column of texts that are rare or all different; an empty one is null.

        Args:
            name: name of the column.
            texts: one text per row.
        """
        self._columns[name] = pa.array([text or None for text in texts], pa.string())

    def add_numbers(self, name: str, values: np.ndarray) -> None:
        """Add a column of numbers; NaN becomes null.

        Args:
            name: name of the column.
            values: one number per row, or one number for all rows.
        """
        values = np.broadcast_to(np.asarray(values), self._length)
        self._columns[name] = pa.array(values, from_pandas=values.dtype.kind == "f")

    def build(self) -> pa.Table:
        """Return the table of the columns added so far."""
        return pa.table(self._columns)


def record_table(
    study: StudyConfig,
    part: StudyPart,
    method_index: int,
    weights: EtaBeta,
    weight_values: WeightValues,
    inputs: BoundInputs,
    measured: Mapping[str, Float[np.ndarray, " B"]],
    result: FitResult,
) -> pa.Table:
    r"""Build the records of one method at one pair of weights.

    Args:
        study: the study that the part belongs to.
        part: the draws.
        method_index: index of the method in ``study.methods``.
        weights: the weights as the study gives them, for the columns ``eta_rule``, ``beta_rule``.
        weight_values: the numbers that the weights stand for, one per draw.
        inputs: the quantities that the bounds depend on, one column each.
        measured: further columns by name: metrics of the policies and bounds on their gap.
        result: policies, certificates and statuses.

    Returns:
        One row per recorded draw.
    """
    recorded = slice(part.n_draws)
    scenario_index = part.scenario_index[recorded]
    table = TableBuilder(part.n_draws)
    method = np.array(method_index)
    table.add_strings("method", method, [item.reference for item in study.method_configs])
    table.add_strings("label", method, method_labels(study.method_configs))
    environments = [scenario.environment for scenario in part.scenarios]
    codes = np.array([study.environment_names.index(name) for name in environments])
    table.add_strings("environment", codes[scenario_index], study.environment_names)
    comparisons = np.array([scenario.comparisons for scenario in part.scenarios])
    table.add_numbers("comparisons", comparisons[scenario_index])
    for name, weight, axis, values in zip(
        ("eta", "beta"), weights, (study.eta, study.beta), weight_values, strict=True
    ):
        code = np.array(axis.index(weight))
        table.add_strings(f"{name}_rule", code, [str(value) for value in axis])
        table.add_numbers(name, values[recorded])
    table.add_numbers("seed", part.seeds[recorded])
    other_axes = (name for name in design_axes(study) if name != "target_coverage")
    for axis in ("target_coverage", *other_axes):
        _add_design_column(table, axis, study, part, scenario_index)
    no_bounds = dict.fromkeys(BOUND_COLUMNS, np.full(len(part.scenario_index), np.nan))
    for name, values in (no_bounds | inputs._asdict() | dict(measured)).items():
        table.add_numbers(name, values[recorded])
    table.add_numbers("certificate", result.certificate[recorded])
    kind = np.array(CERTIFICATE_KINDS.index(result.certificate_kind))
    table.add_strings("certificate_kind", kind, CERTIFICATE_KINDS)
    status_names = {**{status.value: status.name for status in Status}, FAILED: "FAILED"}
    status_codes = list(status_names)
    table.add_strings(
        "status",
        np.array([status_codes.index(code) for code in result.status[recorded]]),
        list(status_names.values()),
    )
    table.add_texts("message", list(result.messages or [""] * len(part.seeds))[recorded])
    return table.build()


def _add_design_column(
    table: TableBuilder,
    axis: str,
    study: StudyConfig,
    part: StudyPart,
    scenario_index: Int[np.ndarray, " n"],
) -> None:
    """Add a field of the design; it is null in environments that ignore the design."""
    values = [
        getattr(scenario.design, axis) if uses_designs(scenario.environment) else None
        for scenario in part.scenarios
    ]
    # The type follows from the study, so that the columns of all its parts have one type.
    axis_values = study.design.get(axis)
    given = axis_values if isinstance(axis_values, list) else [axis_values]
    strings = sorted({value for value in given if isinstance(value, str)})
    if strings:
        codes = np.array([strings.index(value) if value in strings else -1 for value in values])
        table.add_strings(f"design.{axis}", codes[scenario_index], strings)
    else:
        numbers = np.array([np.nan if value is None else value for value in values], np.float64)
        table.add_numbers(f"design.{axis}", numbers[scenario_index])
