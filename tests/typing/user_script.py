# pyright: strict, reportUnnecessaryTypeIgnoreComment=true
"""A script as a user writes it, with every public name, for the type checker; nothing runs it.

``tests/typing/check.py`` checks it with pyright in strict mode, and ``test_user_script.py`` asserts
that no public name is missing.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from flax import nnx
from matplotlib.figure import Figure
from numpy.typing import NDArray

import bandits
import llm
import rpo
import rpo_io
import rpo_theory as rt
from bandits.methods import (
    Equilibrium,
    Optimum,
    bootstrap_wins,
    exploitability,
    maximize_optimistic,
    optimistic_bound,
    optimistic_objective,
    optimistic_reward,
    preference_matrix,
    solve_game,
)
from bandits.minimax_regret import MinimaxRule, solve_minimax
from bandits.rounds import (
    Growth,
    QuickRounds,
    RoundsConfig,
    RoundsMethod,
    RoundsResult,
    mean_curve,  # pyright: ignore[reportUnknownVariableType]  # untyped pyarrow
    measure_growth,  # pyright: ignore[reportUnknownVariableType]  # untyped pyarrow
    play_rounds,
    plot_cumulative_regret,  # pyright: ignore[reportUnknownVariableType]  # untyped pyarrow
    plot_cumulative_regret_growth,  # pyright: ignore[reportUnknownVariableType]  # untyped pyarrow
    run_rounds,
)
from bandits.study import (
    paired_differences,  # pyright: ignore[reportUnknownVariableType]  # untyped pyarrow
    plan_parts,
    plot_figure,
)
from llm.evaluation.judgments import read_judgments
from llm.hf import Family, register_family
from llm.models import RouterSums, router_loss
from llm.parallel.layout import SINGLE_DEVICE
from rpo import api
from rpo.results import StudyKindEstimate

T = TypeVar("T")
Floats = NDArray[np.float64]


# rpo_theory: problems, solvers, certificates


def problems(wins: Floats, votes: Sequence[tuple[str, str, str]]) -> tuple[rt.Problem, rt.Problem]:
    from_counts = rt.Problem.from_wins(wins, beta=0.1, eta=np.array(0.1), context_weights="uniform")
    contexts, winners, losers = zip(*votes, strict=True)
    labels: Sequence[Hashable] = sorted({*winners, *losers})
    from_rows = rt.Problem.from_votes(
        contexts, winners, losers, beta=0.1, eta=0.1, action_labels=labels
    )
    plain = rt.Problem(
        context_weights=np.array([1.0]),
        reference_policy=np.full((1, 2), 0.5),
        baseline_policy=np.full((1, 2), 0.5),
        wins=wins,
        beta=0.1,
        eta=0.1,
    )
    rt.validate(plain, rt.TabularBox(2.0))
    return rt.normalize(from_counts._replace(beta=0.2)), from_rows


def field_of_error(wins: Floats) -> tuple[str, tuple[int, ...], str] | None:
    try:
        rt.Problem.from_wins(wins, beta=0.1, eta=0.1)
    except rt.InvalidProblemError as error:
        return error.field, error.index, error.rule
    return None


def reward_classes(features: Floats, rewards: Floats) -> list[rt.RewardClass]:
    box, ball = rt.TabularBox(2.0), rt.LinearBall(features, radius=1.0)
    finite, unbounded = rt.FiniteClass(rewards), rt.Unbounded()
    n = rewards[0].size
    kernel = rt.KernelBall(np.eye(n), radius=1.0)
    lipschitz = rt.Lipschitz(1.0, 1.0 - np.eye(n), 2.0)
    polytope = rt.Polytope(rewards, np.ones(len(rewards)), maximum=2.0)
    for convex in (kernel, lipschitz, polytope):
        rt.check_reward_class(convex, rewards[0].shape)
        rt.rewards.linear_gap(convex, rewards[0], convex.project(rewards[0]))
    projected: jax.Array = box.project(rewards[0]) + ball.project(rewards[0])
    gap = float(box.linear_gap(rewards[0], projected)) + float(finite.linear_minimum(rewards[0]))
    theta = ball.parameter(ball.reward(ball.parameter(rewards[0])))
    size = sum(rt.log_covering_number(c, 1e-3, theta.size) for c in (box, ball, finite))
    return [box, ball, finite, unbounded] if gap + size > 0 else [unbounded]


def solutions(problem: rt.Problem, reward_class: rt.RewardClass) -> dict[str, rt.Solution]:
    return {
        "minimax": rt.minimax.solve(problem, reward_class, tolerance=1e-12),
        "maximin": rt.maximin.solve(problem, reward_class, max_steps=50),
        "direct": rt.direct.solve(problem, reward_class, throw=False),
    }


def batches(batch: rt.Problem, reward_class: rt.RewardClass) -> Iterator[tuple[str, NDArray[Any]]]:
    for name, solution in (
        ("minimax", rt.minimax.solve_batch(batch, reward_class)),
        ("maximin", rt.maximin.solve_batch(batch, reward_class)),
        ("direct", rt.direct.solve_batch(batch, reward_class)),
    ):
        yield name, np.asarray(solution.policy)


def report(solution: rt.Solution) -> str:
    status = rt.Status(int(solution.status))
    steps = int(solution.stats["steps"])
    solved = status in (rt.Status.SOLVED, rt.Status.NOT_ATTAINED)
    return f"{solved} {status.name} {status.sentence} {float(solution.objective)} {steps}"


def proof(problem: rt.Problem, box: rt.TabularBox, solution: rt.Solution) -> tuple[float, float]:
    certificate: rt.Certificate = rt.certify(problem, box, solution.policy, solution.reward)
    worst = rt.adversarial_reward(problem, box, solution.policy)
    saddle = float(rt.saddle_objective(problem, solution.policy, worst))
    assert saddle <= float(rt.minimax_objective(problem, solution.reward))
    assert float(certificate.kkt_residual) < 1e-6
    error: rt.PolicyError = rt.policy_error(problem, certificate.duality_gap)
    assert float(error.kl) < 1e-3 > float(error.total_variation) ** 2
    rt.rigorous.check_installed()
    form = rt.rigorous.exact_form(box, np.shape(solution.policy))
    proven: float = rt.rigorous.duality_gap_bound(
        problem, box, solution.policy, solution.reward, precision=64
    )
    assert proven < 1e-9, form
    return float(certificate.value), float(certificate.duality_gap)


def interval(problem: rt.Problem, box: rt.TabularBox, solution: rt.Solution) -> bool:
    splits: rt.DataSplits = rt.split_data(problem, 4, seed=1)
    best: rt.Interval = rt.confidence_interval(problem, box, solution.policy, splits=splits)
    proof: rt.EndProof = best.lower_proof
    assert float(proof.gap) < 1e-6 < float(proof.multiplier)
    other = rt.confidence_interval(problem, box, solution.policy, confidence=0.9, seed=2)
    return float(best.lower) > 0.0 or float(other.upper) < 0.0


def derivatives(problem: rt.Problem, box: rt.TabularBox, truth: Floats, held: Floats) -> Floats:
    found: rt.Influence = rt.influence(problem, box, truth, baseline="chosen")
    assert found.value is not None
    path: rt.EtaPath = rt.eta_path(problem, box, np.array([0.1, 1.0]), held_out_wins=held)
    tuned: rt.TunedEta = rt.tune_eta(problem, box, held_out_wins=held, bounds=(0.01, 10.0))
    assert tuned.loss <= float(tuned.path.data_loss.max()) + 1.0
    return np.append(found.value, path.penalty * tuned.eta)


def classes_that_are_not_convex(problem: rt.Problem, features: Floats, rewards: Floats) -> float:
    network = rt.network_rewards.NetworkClass(features, 1, "tanh", radius=2.0)
    key = jax.random.key(0)

    def adversary(policy: Floats) -> Floats:
        found = rt.network_rewards.best_response(network, problem, policy, key, restarts=2, steps=3)
        return np.asarray(rt.network_rewards.network_reward(network, found.parameters))

    solution = rt.double_oracle.solve(problem, adversary, start=rewards[0], max_rounds=2)
    highest = rt.network_rewards.minimax_network(network, problem, key, restarts=2, steps=3)
    members = rt.FiniteClass(solution.members)
    distance: rt.convex_likeness.ConvexLikeness = rt.convex_likeness.meter(problem, members)
    excess = rt.convex_likeness.excess_over_mixture(problem, members, solution.mixture)
    witness: rt.convex_likeness.Witness | None = rt.convex_likeness.witness(problem, members)
    assert witness is None or 0.0 < witness.share < 1.0
    return float(highest.objective) - solution.objective + float(distance.delta) + float(excess[0])


def objective_values(problem: rt.Problem, solution: rt.Solution, truth: Floats) -> list[float]:
    weights, comparator = problem.context_weights, np.eye(truth.shape[1])[truth.argmax(axis=1)]
    return [
        float(rt.objectives.value(solution.policy, truth, weights)),
        float(rt.objectives.gap(solution.policy, comparator, truth, weights)),
        float(rt.objectives.saddle_objective(problem, solution.policy, solution.reward)),
        float(rt.objectives.minimax_objective(problem, solution.reward)),
    ]


def stationarity(problem: rt.Problem, solution: rt.Solution, features: Floats) -> float:
    policy, reward = solution.policy, solution.reward
    residuals = [
        rt.stationarity.s1_residual(problem, policy, reward),
        rt.stationarity.s2_violation(problem, policy),
        rt.stationarity.s3_violation(problem, policy),
        rt.stationarity.s4_residual(problem, features, policy, reward),
    ]
    return max(float(abs(residual).max()) for residual in residuals)


# rpo_theory: coverage, bounds, policies, preferences, losses


def coverage(problem: rt.Problem, truth: Floats, best: Floats, pairs: Floats) -> Floats:
    one = rt.coverage_coefficient(
        rt.TabularBox(2.0),
        true_reward=truth,
        comparator=best,
        baseline=problem.baseline_policy,
        context_weights=problem.context_weights,
        pair_distribution=pairs,
    )
    batch = rt.coverage_coefficient_batch(
        rt.TabularBox(np.array([2.0])),
        true_reward=truth[None],
        comparator=best[None],
        baseline=np.asarray(problem.baseline_policy)[None],
        context_weights=np.asarray(problem.context_weights)[None],
        pair_distribution=pairs[None],
    )
    bound = rt.density_ratio_bound(best, problem.baseline_policy, problem.context_weights, pairs)
    return np.array([float(one), float(batch[0]), float(bound)], dtype=np.float64)


def bounds(n_pairs: int, coverage: float, kl: float) -> list[float]:
    scale = rt.bounds.covering_scale(n_pairs, 2.0)
    log_covering = rt.log_covering_number(rt.TabularBox(2.0), float(scale), 4)
    complexity = rt.bounds.complexity(log_covering, delta=0.05)
    beta = rt.bounds.theorem_beta(n_pairs)
    moduli = [
        rt.bounds.printed_modulus(2.0),
        rt.bounds.corrected_modulus(2.0),
        rt.bounds.tight_modulus(np.array([1.0, 2.0])),
    ]
    eta = rt.bounds.tuned_eta(moduli[1], n_pairs=n_pairs, complexity=complexity)
    gap = rt.bounds.regularized_gap_bound(
        moduli[1], n_pairs=n_pairs, complexity=complexity, coverage=coverage, eta=eta
    )
    subopt = rt.bounds.suboptimality_bound(
        moduli[1],
        n_pairs=n_pairs,
        complexity=complexity,
        coverage=coverage,
        eta=eta,
        beta=beta,
        kl=kl,
    )
    theorems = [
        theorem(n_pairs=n_pairs, reward_max=2.0, complexity=complexity, coverage=coverage, kl=kl)
        for theorem in (
            rt.bounds.theorem_bound_printed,
            rt.bounds.theorem_bound_corrected,
            rt.bounds.theorem_bound_tight,
        )
    ]
    shift = rt.bounds.prompt_shift_factor(np.array([1.0, 0.0]), np.array([0.5, 0.5]))
    return [float(value) for value in (gap, subopt, shift, *theorems)]


def policies(reward: Floats, reference: Floats, wins: Floats) -> dict[str, jax.Array]:
    policy = rt.gibbs_policy(reward, reference, 0.1)
    assert policy.shape == rt.policies.gibbs_policy(reward, reference, 0.1).shape
    highest, scaled = rt.policies.scaled_below_max(reward, reference, 0.1)
    return {
        "log_policy": rt.log_gibbs_policy(reward, reference, np.array(0.1)),
        "log_policy_again": rt.policies.log_gibbs_policy(reward, reference, 0.1),
        "log_partition": rt.log_partition(reward, reference, 0.1),
        "log_partition_again": rt.policies.log_partition(reward, reference, 0.1),
        "log_partition_scaled": highest[..., 0]
        + rt.policies.log_partition_scaled(scaled, reference),
        "reward": rt.implicit_reward(policy, reference, 0.1),
        "reward_again": rt.policies.implicit_reward(policy, reference, 0.1),
        "kl": rt.kl_divergence(policy, reference),
        "kl_again": rt.policies.kl_divergence(policy, reference),
        "kl_to_gibbs": rt.policies.kl_to_gibbs(policy, reward, reference, 0.1),
        "tv": rt.total_variation(policy, reference),
        "tv_again": rt.policies.total_variation(policy, reference),
        "chosen": rt.chosen_policy(wins, reference),
        "chosen_again": rt.policies.chosen_policy(wins, reference),
        "of_counts": rt.policies.counts_to_policy(wins.sum(axis=2), reference),
        "marginal": rt.data_marginal_policy(wins, reference),
        "marginal_again": rt.policies.data_marginal_policy(wins, reference),
    }


def preferences(seed: int, reward: Floats, comparisons: Floats) -> float:
    wins = rt.sample_wins(jax.random.key(seed), reward, comparisons)
    expected = rt.expected_wins(reward, comparisons)
    indices: NDArray[np.int64] = np.array([0, 0])
    counted = rt.win_counts(indices, indices, indices + 1, np.ones(2), shape=(1, 2))
    probability = rt.preference_probability(reward[:, :1], reward)
    likelihood = rt.negative_log_likelihood(reward, wins)
    return float((expected.sum() + counted.sum() + probability.sum()) * likelihood)


def rankings_and_ties(reward: Floats) -> float:
    counts = rt.count_choices([(0, [1, 0, 2], 2.0)], [(0, {0, 2}, 0, 1)], shape=(1, 3))
    ranked = rt.Problem.from_rankings(["q"], [["a", "b", "c"]], [2], beta=0.1, eta=0.1)
    chosen = rt.Problem.from_choices(["q"], [["a", "b", "c"]], ["a"], beta=0.1, eta=0.1)
    tied = rt.Problem.from_wins(
        np.zeros((1, 3, 3)),
        beta=0.1,
        eta=0.1,
        choices=counts,
        ties=np.ones((1, 3, 3)) - np.eye(3),
        tie_model="davidson",
        tie_parameter=0.5,
    )
    fitted = rt.fit_tie_parameter(tied, rt.TabularBox(2.0))
    models: list[rt.DavidsonTies | rt.RaoKupperTies] = [
        rt.DavidsonTies(np.zeros((1, 3, 3)), 0.5),
        rt.RaoKupperTies(np.zeros((1, 3, 3)), 1.5),
    ]
    kept: rt.Choices | None = ranked.choices
    parts = [rt.data_loss(problem, reward) for problem in (ranked, chosen, tied, fitted)]
    losses = [model.win_loss(reward) + model.tie_loss(reward) for model in models]
    return float(sum(parts) + losses[0].sum() + (0.0 if kept is None else kept.wins.sum()))


DIVERGENCE: rt.losses.Divergence = "js_divergence"


def losses(chosen: jax.Array, rejected: jax.Array, tokens: jax.Array) -> dict[str, jax.Array]:
    policy = rt.PairLogProbs(chosen=chosen, rejected=rejected)
    reference = rt.losses.PairLogProbs(np.zeros(4), np.zeros(4))
    weights = rt.PairLogProbs(np.ones(4), np.zeros(4))
    per_pair = {
        "margin": rt.losses.margin(policy, reference),
        "dpo": rt.losses.dpo(policy, reference, beta=0.1, label_smoothing=0.1),
        "sft": rt.losses.sft(chosen, where=tokens > 0),
        "rpo": rt.losses.rpo(policy, reference, chosen, beta=0.1, eta=0.05),
        "ipo": rt.losses.ipo(policy, reference, tau=0.1),
        "dpop": rt.losses.dpop(policy, reference, beta=0.1, penalty=5.0),
        "chi_po": rt.losses.chi_po(policy, reference, beta=0.1, reward_max=1.0),
        "plackett_luce": rt.losses.plackett_luce(chosen[:, None], chosen[:, None], beta=0.1),
        "power": rt.losses.power(policy, weights, beta=0.1, eta=0.05),
        "simpo": rt.losses.simpo(policy, weights, beta=2.0, gamma=1.0),
        "orpo": rt.losses.orpo(policy, weights, penalty=0.1),
        "kto": rt.losses.kto(chosen, rejected, tokens > 0, beta=0.1, reference_point=0.0),
        "hinge": rt.losses.hinge(policy, reference, beta=0.1),
        "robust": rt.losses.robust(policy, reference, beta=0.1, flip_probability=0.1),
        "exo_pair": rt.losses.exo_pair(policy, reference, beta=0.1, label_smoothing=0.01),
        "discopop": rt.losses.discopop(policy, reference, beta=0.1, tau=0.05),
        "sigmoid_norm": rt.losses.sigmoid_norm(policy, reference, weights, beta=5.0),
        "f_dpo": rt.losses.f_dpo(policy, reference, beta=0.1, divergence=DIVERGENCE),
        "nca_pair": rt.losses.nca_pair(policy, reference, beta=0.1),
        "bco_pair": rt.losses.bco_pair(policy, reference, beta=0.1, shift=0.0),
        "sppo_hard": rt.losses.sppo_hard(policy, reference, beta=0.1),
        "apo_zero": rt.losses.apo_zero(policy, reference, beta=0.1),
        "apo_down": rt.losses.apo_down(policy, reference, beta=0.1),
        "cpo": rt.losses.cpo(policy, beta=0.1, sft_weight=1.0),
        "slic": rt.losses.slic(policy, delta=1.0, sft_weight=1.0),
        "aot": rt.losses.aot(policy, reference, beta=0.1),
        "aot_unpaired": rt.losses.aot_unpaired(policy, reference, beta=0.1),
        "wpo_weights": rt.losses.wpo_weights(policy, reference, weights),
        "soft": rt.losses.expected_over_labels(
            rt.losses.dpo, np.full(4, 0.7), policy, reference, beta=0.1
        ),
    }
    shared = rt.losses.length_desensitized_weights(np.arange(4), np.full(4, 2), alpha=0.5)
    sft: rt.WeightedSum = rt.reduce_sft(
        per_pair["sft"], shared * tokens.astype(float), reduction="pooled_mean"
    )
    means = {name: rt.reduce_mean(values).mean() for name, values in per_pair.items()}
    weight = rt.weight_per_token(eta=0.05, beta=0.1, mean_tokens=100.0, reduction="sequence_mean")
    return {**means, "sft_mean": sft.sum / sft.weight, "sft_weighted": weight * sft.mean()}


# bandits


def instances(seed: int) -> list[bandits.Instance]:
    key = jax.random.key(seed)
    return [
        bandits.random_linear(key, contexts=4, actions=5, features=3, comparisons=200),
        bandits.random_tabular(
            key, contexts=4, actions=5, comparisons=200, baseline="dirichlet", shape=(8, 8)
        ),
        bandits.four_arms(100, baseline=1),
        bandits.type_i_hacking(100),
        bandits.type_ii_hacking(100, baseline="data_marginal"),
        bandits.non_convex_class(0.5),
        bandits.ghost_arm(100, deficit=0.1),
        bandits.likelihood_displacement(0.1),
        bandits.coverage_is_necessary(100, 0.1, better=0),
    ]


def draws(path: Path) -> bandits.Instance:
    seeds: NDArray[np.int64] = np.arange(3)
    design = bandits.Design(actions=6, rare=1, target_coverage=2.0)
    drawn = bandits.draw_design(design, 100, seeds)
    bandit = bandits.draw_environment("named:type_i_hacking", 100, seeds, design=design)
    votes = bandits.read_votes(path)
    names: dict[str, int] = {name: index for index, name in enumerate(votes.actions)}
    reference = np.full(votes.wins.shape[:2], 1.0 / len(names))
    base: NDArray[Any] = bandits.baseline_policy("chosen", wins=votes.wins, reference=reference)
    return drawn if base.sum() > bandit.true_reward.sum() else bandit


def same_as_reference(reference: NDArray[Any]) -> NDArray[Any]:
    return reference


def fits(batch: bandits.Instance) -> dict[str, bandits.FitResult]:
    even = bandits.method_from_function(same_as_reference)
    methods: dict[str, bandits.Method] = {**bandits.METHODS, even.title: even}
    results = {name: method(batch.problem, batch.reward_class) for name, method in methods.items()}
    worst = max(float(fit.certificate.max()) for fit in results.values())
    kinds = {fit.certificate_kind for fit in results.values()}
    assert worst < 1e-6 or "stationarity_residual" in kinds
    return results


def study(folder: Path, kind: str) -> Figure:
    config = bandits.StudyConfig(
        name="mine",
        methods=[
            bandits.MethodConfig(method="rpo", options={"baseline": "given"}),
            bandits.MethodConfig(method="dpo", label="DPO"),
        ],
        comparisons=[100, 1000],
        seeds=10,
        design={"actions": 6, "target_coverage": [1.5, 3.0]},
        eta=["theorem", 0.1],
    ).quick_version()
    store = bandits.RecordStore(folder, {"name": config.name})
    store.check(resume=True)
    parts = [part for part in plan_parts(config) if not store.has_part(part.number)]
    for part in bandits.run_parts(config, store, parts):
        print(part.number, part.n_draws)
    store.merge(len(parts))
    assert store.is_finished()
    summary = bandits.summarize(store.iter_tables())  # pyright: ignore[reportUnknownMemberType]  # untyped pyarrow
    paired = paired_differences(store.iter_tables(), "rpo", "DPO")  # pyright: ignore[reportUnknownMemberType]  # untyped pyarrow
    assert paired["difference"].size
    n_rows = int(store.read_table().num_rows)  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]  # untyped pyarrow
    print(summary["gap"].mean(), n_rows)
    plot_figure(summary, "method_comparison", Figure(figsize=(3.25, 2.0)).subplots())
    return bandits.draw_figure(summary, kind, Figure())


def minimax_regret(kind: str) -> tuple[float, Figure]:
    rules = [
        bandits.RuleConfig(method="dpo", label="MLE + KL"),
        bandits.RuleConfig(method="rpo", eta="inverse_sqrt", beta=0.1, baseline=0),
    ]
    config = bandits.MinimaxRegretConfig(
        name="mine", methods=rules, comparisons=[10, 20], margins=[0.5, 1.0], reward_max=2.0
    )
    result = bandits.run_minimax_regret(config)
    n_rows = int(result.records.num_rows)  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]  # untyped pyarrow
    solution: MinimaxRule = solve_minimax(np.array([[0.8, 0.2], [0.2, 0.8]]), 1.0 - np.eye(2))
    result.plot(kind, Figure().subplots(), panel="prior")
    return n_rows + solution.duality_gap, bandits.draw_minimax_figure(result, kind, Figure())


def overoptimization(figure: Figure) -> tuple[Figure, float]:
    config = bandits.LawsConfig(
        name="mine", methods=["rpo", "best_of_n"], comparisons=[100], seeds=8, eta=[0.1]
    ).quick_version()
    result: bandits.LawsResult = bandits.run_laws(config)
    d = np.geomspace(0.1, 1.0, 5) * np.ones((8, 1))
    fit: bandits.LawFit = bandits.fit_law(d, 0.5 * d, "rl", seed=0, confidence=0.9)
    policy = bandits.best_of_n_policy(d, np.full(d.shape, 0.2), 4)
    alpha = fit.alpha_high - fit.alpha_low + float(policy.sum())
    result.plot(result.figure_kinds[0], Figure().subplots(), panel="RPO")
    return bandits.draw_laws(result, figure, reward_class="tabular", comparisons=100), alpha


def off_policy(wins: Floats, pairs: Floats, policy: Floats, base: Floats) -> dict[str, float]:
    log, weights = bandits.LoggedPairs.from_wins(wins, pairs), np.ones(len(policy)) / len(policy)
    estimates: list[bandits.WinRateEstimate] = [
        bandits.ips_win_rate(log, policy, base, weights, both_orders=False),
        bandits.snips_win_rate(log, policy, base, weights),
        bandits.doubly_robust_win_rate(log, policy, base, weights, reward=policy),
    ]
    return {found.refusal() or "": float(found.win_rate) for found in estimates}


def rounds() -> float:
    methods = [RoundsMethod(method="rpo_optimistic", sampling="reference")]
    quick = QuickRounds(seeds=2)
    config = RoundsConfig(name="mine", methods=methods, rounds=5, seeds=9, quick=quick)
    result: RoundsResult = run_rounds(config.quick_version())
    records: Any = result.records  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]  # untyped pyarrow
    growth: Growth = measure_growth(records)[0]
    curve = mean_curve(records, growth.label)
    result.plot(result.figure_kinds[-1], Figure().subplots())
    plot_cumulative_regret(records, Figure().subplots())
    plot_cumulative_regret_growth(records, Figure().subplots())
    return growth.slope + float(curve.mean[-1])


def optimism(batch: bandits.Instance, problem: rt.Problem) -> float:
    box, seeds = rt.TabularBox(1.0), np.arange(2)
    fit = bandits.METHODS["rpo_optimistic"](batch.problem, batch.reward_class)
    method = RoundsMethod(method="rpo")
    config = RoundsConfig(name="mine", methods=[method], rounds=2, seeds=2)
    columns = play_rounds(batch, method, config, seeds)
    best: Optimum = maximize_optimistic(problem, box)
    reward = optimistic_reward(problem, box, best.policy)
    bound = optimistic_bound(problem, np.zeros((2, 1))).sum()
    value = optimistic_objective(problem, reward)
    return float(columns["gap"].sum() + fit.certificate.max()) + float(bound - value)


def general_preferences(problem: rt.Problem) -> float:
    sample = bootstrap_wins(np.asarray(problem.wins)[None], np.array([3]), 0)
    preferences = preference_matrix(sample[0, 0], 0.5)
    even = np.full(2, 0.5)
    game: Equilibrium = solve_game(preferences, even, 0.1)
    return float(exploitability(preferences, even, game.policy, 0.1)) + float(game.gap)


def theorem_check() -> tuple[float, float]:
    records: Iterable[bandits.Agreement] = bandits.measure_agreement(10, seed=0)
    controls: list[bandits.NegativeControl] = bandits.solve_negative_controls()
    gap = max(record.relative_gap() for record in records)
    return gap, max(abs(control.duality_gap - control.expected) for control in controls)


# llm


def train_config(data: Path, model: str | None) -> llm.TrainConfig:
    architecture = {"vocab_size": 264, "hidden_size": 16, "num_hidden_layers": 2}
    return llm.TrainConfig(
        name="tiny",
        model=llm.ModelConfig(path=model, architecture=None if model else architecture),
        data=llm.DataConfig(
            train=[llm.DataSource(path=str(data), weight=1.0)],
            eval={"new": "new.jsonl"},
            max_length=128,
        ),
        objective=llm.ObjectiveConfig(
            method="rpo", beta=0.1, eta=0.05, preference={"loss": "simpo", "gamma": 0.5}
        ),
        optimizer=llm.OptimizerConfig(
            learning_rate=1e-5,
            lr_scheduler_type="linear",
            groups=[llm.ParameterGroup(parameters="embedding", lr_multiplier=0.5)],
        ),
        trainer=llm.TrainerConfig(
            max_steps=10,
            eval_steps=5,
            samples=llm.SamplesConfig(prompts=4, reward="my_rewards:reward"),
            report_to=["tensorboard"],
        ),
        mesh=llm.MeshConfig(fsdp=2),
    )


class PrintTracker:
    """A tracker of the user."""

    def start(self, step: int) -> None:
        print("start", step)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        print(step, {name: round(value, 3) for name, value in metrics.items()})

    def finish(self, summary: Mapping[str, Any]) -> None:
        print("finished", sorted(summary))


def train(config: llm.TrainConfig, folder: Path) -> str:
    with llm.computing_in(config.model.dtype):
        model = llm.resolve_model(config.model)
        n_samples = config.trainer.samples.prompts
        data: llm.TrainingData = llm.load_training_data(config.data, model, n_samples=n_samples)
        tracker: llm.Tracker = PrintTracker()
        if config.trainer.report_to:
            tracker = llm.make_tracker(folder / "metrics.jsonl", config)
        trainer = llm.Trainer(config, model, data, folder, tracker=tracker, resume=True)
        try:
            run: llm.Run = trainer.train(progress=with_count)
        except llm.InterruptedRunError as error:
            return f"interrupted: {error}"
        except llm.NonFiniteError as error:
            return f"not finite: {error}"
        metrics = trainer.evaluate() or {}
        print(metrics.get("loss", float("nan")), run.num_shards, len(run.visited_pairs()))
        return llm.weights_digest({"weight": np.zeros(2)})


def with_count(items: Iterable[T], n_items: int) -> Iterator[T]:
    for index, item in enumerate(items):
        print(f"{index} of {n_items}")
        yield item


def cost(config: llm.TrainConfig) -> tuple[int, float, int]:
    model = llm.resolve_model(config.model)
    estimate = llm.estimate_run(config, model, llm.load_training_data(config.data, model))
    plan = llm.make_plan(config, "v5p-128", slices=2)
    return estimate.steps, estimate.seconds, plan.limit_bytes_per_device if plan.fits else 0


def rows_and_pairs(path: Path, tokenizer: llm.Tokenizer) -> llm.PairTable:
    rows = llm.read_preferences(path)
    user, reply = llm.Message("user", "Why?"), llm.Message(role="assistant", content="Because.")
    rows.append(llm.PreferenceRow((user,), (reply,), (user,), None, row=len(rows), where="mine:1"))
    tokenized = llm.tokenize_rows(rows, tokenizer, max_length=64, truncation_mode="keep_start")
    print(tokenized.report["rows_skipped"], tokenizer.decode(tokenized.pairs[0].prompt))
    pair = llm.PairTokens(prompt=(1, 2), chosen=(3,), rejected=(4,), baseline=None, row=0)
    table = llm.PairTable.from_pairs([*tokenized.pairs, pair])
    return table.select(np.arange(len(table)))


def model_of_a_folder(folder: Path, out: Path) -> jax.Array:
    architecture = llm.Architecture(
        vocab_size=264,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
    )
    rngs = nnx.Rngs(0)
    random: llm.Decoder = llm.Decoder(architecture, rngs=rngs)
    built = llm.build_model(llm.resolve_model(llm.ModelConfig(path=str(folder))), llm.MeshConfig())
    loaded = llm.load_model(folder, dtype=np.float32, remat="dots")
    tuned = llm.add_lora(loaded, rank=8, alpha=16.0, target_modules=["q_proj"], rngs=rngs)
    llm.export_model(tuned, out, tokenizer_folder=folder, dtype="bfloat16")
    lora: llm.LoraConfig | None = tuned.lora
    print(lora, llm.export_adapter(tuned, out / "adapter", base=str(folder)).n_bytes)
    options = llm.TokenizerOptions(chat_template="chatml", special_tokens="as_text")
    pairs = rows_and_pairs(folder / "rows.jsonl", llm.load_tokenizer(folder, options))
    sampler = llm.BatchSampler(pairs, "shared", pairs_per_microbatch=4)
    batch = sampler.batch(0)
    differences = llm.response_log_probs(built, batch) - llm.response_log_probs(random, batch)
    return differences + float(batch.lengths.sum()) + sampler.steps_per_epoch


def family_and_router(loads: jax.Array) -> float:
    family: Family = Family(model_type="mine", class_name="MineForCausalLM", keys={"depth": 2})
    print(register_family(family).keys["depth"])
    sums = RouterSums(counts=loads, probabilities=loads, tokens=loads.sum())
    return float(router_loss(sums, SINGLE_DEVICE))


def policy_of_a_run(folder: Path) -> llm.Decoder:
    policy: llm.Policy = llm.load_policy(folder, step=100)
    print(policy.step, policy.config.dtype)
    return policy.decoder


@dataclass(frozen=True)
class OneQuestion:
    """A conversation of the user, of one question."""

    text: str
    where: str = "script"

    @property
    def prompts(self) -> Sequence[Sequence[llm.Message]]:
        return [[llm.Message("user", self.text)]]


def replies(decoder: llm.Decoder, tokenizer: llm.Tokenizer, texts: Sequence[str]) -> list[str]:
    config = llm.GenerationConfig(max_new_tokens=64, temperature=0.7, top_p=0.9)
    questions = [OneQuestion(text) for text in texts]
    generated: list[list[llm.Reply]] = llm.generate_replies(decoder, tokenizer, questions, config)
    prompts = [tokenizer.encode_prompt([llm.Message("user", text)]) for text in texts]
    tokens = llm.generate_tokens(decoder, prompts, config, end_ids=tokenizer.end_ids)
    print(sum(len(reply.tokens) for reply in tokens if reply.finished))
    return [reply.text for (reply,) in generated]


def metrics(policy: llm.Decoder, reference: llm.Decoder, pairs: llm.PairTable) -> dict[str, float]:
    scores: list[llm.PairScore] = llm.score_pairs(policy, pairs, batch_size=4, layout="separate")
    others = llm.score_pairs(reference, pairs, progress=with_count)
    return llm.preference_metrics(llm.ObjectiveConfig(beta=0.1), scores, others)


def win_rates(first: Floats, second: Floats, judgments: Path) -> list[float]:
    rate: llm.WinRate = llm.compare_rewards(first, second)
    counts = llm.count_wins(read_judgments(judgments), "mine", "theirs")
    return [rate.win_rate, rate.lower, rate.upper, counts.win_rate()]


def other_trainers(mean_tokens: float) -> float:
    loss = llm.RpoLoss(beta=0.1, eta=0.05, reduction="sequence_mean")
    options = llm.to_trainer_options("trl", loss, mean_tokens=mean_tokens)
    found = llm.from_trainer_options("trl", options, mean_tokens=mean_tokens)
    return found.eta


# rpo_io


def documents(path: Path) -> list[float]:
    try:
        document: rpo_io.Node = rpo_io.load_document(str(path))
        beta = document.members(["beta"], ["wins"])["beta"].number()
        wins = document.at("wins").numbers(3)
        same = rpo_io.parse_document(path.read_bytes(), name=str(path)).at("beta").number()
    except rpo_io.DocumentError as error:
        print(error)
        return []
    return [beta, float(wins.sum()), same]


def files(folder: Path, figure: Figure, values: Mapping[str, float]) -> tuple[str, str]:
    with rpo_io.name_os_errors(folder):
        rpo_io.prepare_folder(folder)
    color = rpo_io.PALETTE["blue"]
    figure.suptitle("gap", color=color)  # pyright: ignore[reportUnknownMemberType]  # matplotlib's **kwargs
    rpo_io.prepare_file(folder / "lines.jsonl", inputs=["rows.jsonl"])
    rpo_io.prepare_new_folder(folder / "parts")
    with rpo_io.output_folder(folder, "verify", locked=False), rpo_io.folder_lock(folder):
        rpo_io.write_atomic(folder / "figure.png", rpo_io.png_bytes(figure))
        rpo_io.write_atomic(folder / "figure.pdf", rpo_io.pdf_bytes(figure))
        rpo_io.write_atomic(folder / "figure.svg", rpo_io.svg_bytes(figure), durable=True)
        with rpo_io.atomic_file(folder / "lines.jsonl") as temporary:
            temporary.write_text(rpo_io.format_line(dict(values)), encoding="utf-8")
        with rpo_io.atomic_folder(folder / "parts") as temporary:
            text = rpo_io.format_document(rpo_io.null_non_finite(values))
            (temporary / "summary.json").write_text(text, encoding="utf-8")
    location: rpo_io.Location = rpo_io.parse_location("gs://bucket/runs") / "a"
    rpo_io.check_readable(location.parent)
    rpo_io.check_writable(location)
    path = rpo_io.as_path("gs://bucket/run")
    assert isinstance(path, rpo_io.BucketPath)
    path.write_bytes(path.read_bytes())
    release = rpo_io.release_version() + rpo_io.sha256_of_chunks([b"a", b"b"])
    return rpo_io.sha256_hex(release), rpo_io.sha256_of_file(folder / "figure.png")


# rpo.api


def commands_of_the_theory(folder: Path) -> int:
    shown = api.demo(out=folder / "demo")
    verified = api.verify(instances=50, out=folder / "verify")
    answer = api.solve(votes="votes.csv", formulation="maximin", eta=0.1)
    sentences = [claim.sentence for claim in (*shown.claims, *verified.claims)]
    ranking = dict(answer.ranking or ())
    print(sentences, ranking, answer.policy.round(2), answer.duality_gap, answer.to_dict())
    verified.plot().set_title("claims")  # pyright: ignore[reportUnknownMemberType]  # matplotlib's **kwargs
    return max(result.exit_code for result in (shown, verified, answer))


def commands_of_studies(path: Path) -> int:
    overrides: dict[str, Any] = {"seeds": 20, "design.target_coverage": [1.5, 3.0]}
    estimate = api.estimate_study(path, overrides)
    print(estimate.fits, estimate.seconds, estimate.config.name)
    if isinstance(estimate, StudyKindEstimate):
        print(estimate.cells, estimate.files)
    group = api.ProcessGroup(coordinator_address="host:1234", num_processes=2, process_id=1)
    figures = api.FigureFormat(formats=("pdf", "png"), width="icml-column", style="ggplot")
    result = api.study(
        path, overrides, out="out/mine", resume=True, processes=group, figures=figures, table=True
    )
    n_rows = int(result.records.num_rows)  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]  # untyped pyarrow
    return n_rows if group.is_first else len(result.files)


def commands_of_language_models(path: Path, config: llm.TrainConfig) -> dict[str, float]:
    estimate = api.estimate_train(config, {"objective.eta": 0.1})
    scoring = api.plan_inference(path, "v5e:4x4", "score")
    print(scoring.plan.peak_bytes_per_device)
    planned = api.plan(path, "v5litepod-16", slices=2, largest="max_length")
    print(estimate.peak_bytes_per_device, planned.plan.fits)
    run = api.train(config, out="out/run")
    print(run.metrics[-1]["loss"], run.parameters_sha256)
    exported = api.export(run.folder, out="policy", dtype="bfloat16")
    scores = api.score(model=str(exported.folder), data="rows.jsonl", out="scores.jsonl")
    n_rows = int(scores.records.num_rows)  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]  # untyped pyarrow
    assert n_rows == scores.n_rows
    reply = api.generate(model="policy", prompt="Why is the sky blue?", temperature=0.7)
    answers = api.generate(model="policy", data="questions.jsonl", out="answers.jsonl")
    print(reply.text, answers.questions)
    evaluation = api.evaluate(model="policy", reference="base", data="rows.jsonl", reward=brevity)
    return dict(evaluation.metrics)


def brevity(conversation: Sequence[llm.Message], reply: str) -> float:
    return -len(reply) / (1 + sum(len(message.content) for message in conversation))


def exit_code_of(result: rpo.results.Result) -> int:
    return result.exit_code if rpo.api.verify(instances=1).holds else 1
