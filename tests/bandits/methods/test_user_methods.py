"""Methods of the user's own: what a function is given, tracing, chunks, options and failures."""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bandits.environments.designs import Design, draw_design
from bandits.methods.base import FAILED, FitContext, FitResult, Method
from bandits.methods.options import (
    BaselineOptions,
    MethodOptions,
    RpoOptions,
    SearchOptions,
    check_number,
    check_option,
)
from bandits.methods.policy_checks import fit_record
from bandits.methods.registry import METHODS, find_method
from bandits.methods.user_methods import PARAMETERS, method_from_function
from rpo_theory.types import Status

DRAWS: Any = draw_design(Design(contexts=2, actions=3, reward="linear"), 50, np.arange(5))
ROWS = jax.tree.map(lambda leaf: leaf[2:4], DRAWS)


def fit(function: Any, draws: Any = DRAWS, **options: Any) -> FitResult:
    method = method_from_function(function)
    seeds = FitContext(seeds=np.arange(len(draws.true_reward)) + 10)
    return method(draws.problem, draws.reward_class, context=seeds, **options)


def shrunk(wins: Any, reference: Any, beta: Any, *, ridge: float = 1.0) -> Any:
    score = (wins.sum(axis=2) + ridge) / (wins.sum(axis=(1, 2), keepdims=True)[..., 0] + ridge)
    logits = jnp.log(reference) + score / beta
    return jax.nn.softmax(logits, axis=1)


def test_property_a_function_gets_what_it_names() -> None:
    problem, calls = DRAWS.problem, []

    def spy(
        wins: Any,
        reference: Any,
        baseline: Any,
        beta: Any,
        eta: Any,
        context_weights: Any,
        features: Any,
        reward_class: Any,
        key: Any,
    ) -> Any:
        named = {name: value for name, value in locals().items() if name != "calls"}
        float(beta)  # cannot be traced
        calls.append(named)
        return reference

    result = fit(spy)
    assert result.messages is None
    seen = calls[-1]
    assert set(seen) == set(PARAMETERS)
    np.testing.assert_array_equal(seen["wins"], problem.wins[-1])
    np.testing.assert_array_equal(seen["baseline"], problem.baseline_policy[-1])
    np.testing.assert_array_equal(seen["context_weights"], problem.context_weights[-1])
    np.testing.assert_array_equal(seen["features"], DRAWS.reward_class.features[-1])
    np.testing.assert_array_equal(seen["reward_class"].radius, DRAWS.reward_class.radius[-1])
    assert (float(seen["beta"]), float(seen["eta"])) == (50**-0.5, 50**-0.5)
    assert jax.random.key_data(seen["key"]).tolist() == [0, 14]


def test_property_a_traced_function_runs_on_whole_groups_with_the_bits_of_any_batch() -> None:
    calls = []

    def counted(wins: Any, reference: Any, beta: Any) -> Any:
        calls.append(type(wins))
        return shrunk(wins, reference, beta)

    together, separate = fit(counted), fit(counted, ROWS)
    np.testing.assert_array_equal(separate.policy, together.policy[2:4])
    assert len(calls) <= 3, "it was called for tracing only"
    assert (together.status == Status.SOLVED).all()
    assert np.isnan(together.certificate).all()
    problem = DRAWS.problem
    named = problem.wins, problem.reference_policy, problem.beta
    with jax.enable_x64(True):
        by_hand = jax.jit(shrunk)(*(leaf[0] for leaf in named))
    np.testing.assert_allclose(together.policy[0], by_hand, rtol=1e-12)


def test_parity_a_function_gives_the_same_policy_traced_and_on_the_host() -> None:
    def on_host(wins: Any, reference: Any, beta: Any) -> Any:
        return np.asarray(shrunk(np.asarray(wins) * 1.0, np.asarray(reference), float(beta)))

    np.testing.assert_allclose(fit(on_host).policy, fit(shrunk).policy, rtol=1e-12)


def test_property_random_numbers_depend_on_the_seed_of_the_draw() -> None:
    def dice(key: Any, reference: Any) -> Any:
        return jax.random.dirichlet(key, jnp.ones(3), reference.shape[:1])

    first = fit(dice)
    assert len(np.unique(first.policy[:, 0, 0])) == 5
    np.testing.assert_array_equal(first.policy, fit(dice).policy)


def test_property_parameters_with_defaults_are_the_options() -> None:
    method = method_from_function(shrunk)
    assert method.title == "shrunk"
    assert (method.uses_beta, method.uses_eta) == (True, False)
    assert vars(method.options()) == {"ridge": 1.0}
    assert not np.array_equal(fit(shrunk).policy, fit(shrunk, ridge=9).policy)
    with pytest.raises(ValueError, match="`options` of shrunk: unknown key `rigde`: did you mean"):
        method.make_options({"rigde": 1.0})
    with pytest.raises(ValueError, match="`options` of shrunk: `ridge` must be a number, got 'a'"):
        method.make_options({"ridge": "a"})


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda reference: reference[:, :2], "returned an array of shape (2, 2), a policy has"),
        (lambda reference: reference * np.nan, "returned entries that are not finite"),
        (lambda reference: reference - 1.0, "returned the probability -0.667"),
        (lambda reference: reference * 0.5, "returned probabilities that sum to 0.5"),
        (lambda reference: None, "returned None"),
        (lambda reference: "text", "returned an array of type <U4, a policy has real numbers"),
        (lambda reference: reference + 1j, "returned an array of type complex128, a policy has"),
        (lambda reference: sys.exit("bye"), "SystemExit: bye"),
        (lambda wins: 1 / 0, "ZeroDivisionError: division by zero"),
    ],
)
def test_property_a_fit_without_a_policy_has_a_status_and_a_message(
    returned: Any, message: str
) -> None:
    result = fit(returned)
    assert (result.status == FAILED).all()
    assert result.messages is not None
    assert all(text.startswith(message) for text in result.messages)
    assert np.isnan(result.policy).all()


def test_property_a_function_may_change_its_arguments() -> None:
    before = np.array(DRAWS.problem.wins)

    def smoothed(wins: Any) -> Any:
        counts = np.asarray(wins)
        counts += 1.0
        return counts.sum(axis=2) / counts.sum(axis=(1, 2))[:, None]

    assert fit(smoothed).messages is None
    np.testing.assert_array_equal(DRAWS.problem.wins, before)


def test_property_a_callback_without_a_batching_rule_is_called_for_each_draw() -> None:
    calls = []

    def callback(reference: Any) -> Any:
        def on_host(array: Any) -> Any:
            calls.append(array.shape)
            return np.asarray(array)

        shape = jax.ShapeDtypeStruct(reference.shape, reference.dtype)
        return jax.pure_callback(on_host, shape, reference)

    np.testing.assert_array_equal(fit(callback).policy, DRAWS.problem.reference_policy)
    assert set(calls) == {(2, 3)}


def test_property_options_of_all_plain_types_reach_the_function() -> None:
    def chosen(
        reference: Any,
        *,
        limit=None,
        widths=(1.0, 2.0),
        levels=[1.0],  # noqa: B006  # what a user may write
        table={"a": 1},  # noqa: B006
        note: "x a" = "",  # pyright: ignore  # an annotation for people
    ) -> Any:
        levels.append(0.0)
        assert (limit, widths, len(levels)) in ((None, (1.0, 2.0), 2), (3, (4.0,), 4))
        assert table in ({"a": 1}, {"b": 2})
        return reference + 0.0 * len(np.asarray(note).shape)

    assert fit(chosen).messages is None
    given = {"limit": 3, "widths": [4.0], "levels": [5, 6, 7], "table": {"b": 2}, "note": "n"}
    assert fit(chosen, **given).messages is None

    def with_array(reference: Any, *, table=np.ones(2)) -> Any:  # noqa: B008
        return reference

    with pytest.raises(ValueError, match="the option `table` with a default value of ndarray"):
        method_from_function(with_array)


def test_property_only_the_draws_that_fail_have_no_policy() -> None:
    odd = np.asarray(DRAWS.problem.wins)[:, 0, 0].sum(axis=1) % 2 == 1
    assert 0 < odd.sum() < 5

    def picky(wins: Any, reference: Any) -> Any:
        if wins[0, 0].sum() % 2 == 1:
            raise RuntimeError("odd\nand ugly")
        return reference

    result = fit(picky)
    assert (np.asarray(result.status) == FAILED).tolist() == odd.tolist()
    assert result.messages == ["RuntimeError: odd" if bad else "" for bad in odd]


def test_property_features_of_a_class_without_any_are_reported() -> None:
    tabular = draw_design(Design(actions=3), 50, np.arange(2))
    result = fit(lambda features: features, tabular)
    assert result.messages is not None
    assert result.messages[0] == "names `features`, which the reward class TabularBox does not have"


def test_raises_on_a_parameter_that_no_study_gives() -> None:
    for function in (lambda win: win, lambda *wins: wins, lambda **wins: wins):
        with pytest.raises(ValueError, match=r"has the parameter `wins?`: a method takes param"):
            method_from_function(function)


def test_raises_on_what_is_no_method() -> None:
    with pytest.raises(ValueError, match=r"`method` must be one of rpo, .* did you mean dpo"):
        find_method("dpoo")
    with pytest.raises(ValueError, match="`method` no_such_module:f: cannot import no_such_module"):
        find_method("no_such_module:f")
    with pytest.raises(ValueError, match="`method` must be a name, a record or a function, got in"):
        find_method(3)
    for other, got in (
        (MethodOptions, "a class"),
        (partial(shrunk, ridge=2.0), "an object of par"),
    ):
        with pytest.raises(ValueError, match=f"`method` must be a function, got {got}"):
            find_method(other)
    with pytest.raises(ValueError, match="`name` of a method must be an identifier, got 'a b'"):
        find_method(METHODS["rpo"]._replace(name="a b"))
    with pytest.raises(ValueError, match="`options` of rpo must be a subclass of MethodOptions"):
        find_method(METHODS["rpo"]._replace(options=dict))


def test_property_a_record_is_a_method() -> None:
    renamed = METHODS["rpo"]._replace(name="mine", title="Mine", source=fit)
    assert find_method(renamed) is renamed
    assert isinstance(renamed, Method)
    assert renamed.reference == f"{__name__}:mine"
    assert METHODS["rpo"].reference == "rpo"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda result: result.policy, "returned ndarray, a fit returns a FitResult"),
        (
            lambda result: result._replace(policy=result.policy[:2]),
            "`policy`: returned an array of",
        ),
        (
            lambda result: result._replace(policy=result.policy * np.nan),
            "returned entries that are",
        ),
        (lambda result: result._replace(policy=result.policy - 1.0), "returned the probability -"),
        (lambda result: result._replace(status=0), "`status` has the shape (), not (5,)"),
        (lambda result: result._replace(messages=["a"]), "`messages` has 1 items, not 5"),
        (lambda result: result._replace(status=result.status * 0 + FAILED), "gave no policy"),
        (lambda result: 1 / 0, "ZeroDivisionError: division by zero"),
    ],
)
def test_property_what_a_record_of_a_user_returns_is_checked(change: Any, message: str) -> None:
    def changed(problem: Any, reward_class: Any, options: Any, context: Any) -> Any:
        return change(METHODS["dpo"].fit(problem, reward_class, options, context))

    method = METHODS["dpo"]._replace(name="mine", fit=changed)
    arguments = (DRAWS.problem, DRAWS.reward_class, method.options(), FitContext())
    result = fit_record(method, *arguments)
    assert result.messages is not None
    assert all(text.startswith(message) for text in result.messages)
    assert (np.asarray(result.status) == FAILED).all()
    # A result without faults stays as it is.
    exact = METHODS["dpo"].fit(*arguments)
    assert fit_record(METHODS["dpo"], *arguments).policy is not None
    np.testing.assert_array_equal(fit_record(METHODS["dpo"], *arguments).policy, exact.policy)


def test_closed_form_options_and_their_checks() -> None:
    assert not MethodOptions().sets_eta()
    assert METHODS["vpo"].options(vpo_alpha=1.0).sets_eta()
    assert (BaselineOptions().baseline, SearchOptions().rewards) == ("chosen", "given")
    assert RpoOptions(baseline="given").baseline == "given"
    check_number("a", None, above=0.0)
    for limits in ({"above": 1.0}, {"least": 2.0}, {}):
        with pytest.raises(ValueError, match="`a` must be a finite number"):
            check_number("a", 1.0 if limits else float("inf"), **limits)
    with pytest.raises(ValueError, match="`a` must be one of b, c, got 'd'"):
        check_option("a", "d", ("b", "c"))
