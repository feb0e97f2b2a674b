"""Reward classes as plain values, in problem files, studies and answers; classes of user modules.

================ ===========================================================================
``kind``         further keys; ``n`` is ``x`` times ``a``
================ ===========================================================================
``"tabular"``    ``max``
``"linear"``     ``features`` ``[x][a][d]``, ``radius``
``"lipschitz"``  ``constant``, ``max``, and ``distance`` ``[n][n]`` or ``embedding``
                 ``[x][a][k]``, whose Euclidean distances are taken
``"polytope"``   ``matrix`` ``[m][x][a]``, ``limits`` ``[m]``, ``max``
``"kernel"``     ``gram`` ``[n][n]``, ``radius``
``"finite"``     ``rewards`` ``[k][x][a]``
``"unbounded"``  none
================ ===========================================================================

A class of the user's own is named ``module:Class`` on the command line, in Python, or as the
``kind`` in a study, and never in a problem file, because data must not run code. The further keys
are then its parameters.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import jax
import numpy as np

from rpo_io.json_document import DocumentError, Node, document_from_values
from rpo_io.user_modules import load_object
from rpo_theory.rewards import (
    FiniteClass,
    KernelBall,
    LinearBall,
    Lipschitz,
    Polytope,
    RewardClass,
    TabularBox,
    Unbounded,
)


class _Form(NamedTuple):
    """JSON form of a built-in class.

    Attributes:
        type: the class.
        required: keys that a document must have.
        optional: keys that it may have.
        read: returns the class from the values of the keys.
        scalars: name of the attribute for each key that an answer repeats.
    """

    type: type
    required: tuple[str, ...]
    optional: tuple[str, ...]
    read: Callable[[dict[str, Node]], RewardClass]
    scalars: dict[str, str]


def _number(keys: dict[str, Node], key: str) -> np.ndarray:
    return np.asarray(keys[key].number())


def _lipschitz(keys: dict[str, Node]) -> Lipschitz:
    if ("distance" in keys) == ("embedding" in keys):
        rule = "needs `distance` or `embedding`, one of the two"
        node = next(iter(keys.values()))
        node._replace(path=node.path[:-1]).refuse(rule)
    if "distance" in keys:
        distance = keys["distance"].numbers(2)
    else:
        embedding = keys["embedding"].numbers(3)
        points = embedding.reshape(-1, embedding.shape[-1])
        distance = np.linalg.norm(points[:, None] - points[None], axis=-1)
    return Lipschitz(_number(keys, "constant"), distance, _number(keys, "max"))


_FORMS = {
    "tabular": _Form(
        TabularBox,
        ("max",),
        (),
        lambda keys: TabularBox(_number(keys, "max")),
        {"max": "maximum"},
    ),
    "linear": _Form(
        LinearBall,
        ("features", "radius"),
        (),
        lambda keys: LinearBall(keys["features"].numbers(3), _number(keys, "radius")),
        {"radius": "radius"},
    ),
    "lipschitz": _Form(
        Lipschitz,
        ("constant", "max"),
        ("distance", "embedding"),
        _lipschitz,
        {"constant": "constant", "max": "maximum"},
    ),
    "polytope": _Form(
        Polytope,
        ("matrix", "limits", "max"),
        (),
        lambda keys: Polytope(
            keys["matrix"].numbers(3), keys["limits"].numbers(1), _number(keys, "max")
        ),
        {"max": "maximum"},
    ),
    "kernel": _Form(
        KernelBall,
        ("gram", "radius"),
        (),
        lambda keys: KernelBall(keys["gram"].numbers(2), _number(keys, "radius")),
        {"radius": "radius"},
    ),
    "finite": _Form(
        FiniteClass, ("rewards",), (), lambda keys: FiniteClass(keys["rewards"].numbers(3)), {}
    ),
    "unbounded": _Form(Unbounded, (), (), lambda keys: Unbounded(), {}),
}


def read_class(node: Node) -> RewardClass:
    """Read a built-in reward class.

    Args:
        node: value of the key ``reward_class``.

    Returns:
        The class; its shapes and numbers are not yet checked against the problem.

    Raises:
        DocumentError: if a key is missing or unknown, or a value is of another kind.
    """
    all_keys = {key for form in _FORMS.values() for key in (*form.required, *form.optional)}
    if isinstance(node.value, dict) and "kind" not in node.value:
        for key in ("module", "class"):
            if key in node.value:
                _refuse_code(node.at(key))
    kind = node.members(["kind"], sorted(all_keys))["kind"]
    if isinstance(kind.value, str) and ":" in kind.value:
        _refuse_code(kind)
    form = _FORMS[kind.one_of(tuple(_FORMS))]
    keys = node.members(["kind", *form.required], form.optional)
    return form.read(keys)


def class_from_values(values: Mapping[str, Any]) -> RewardClass:
    """Return the reward class that a study describes.

    Args:
        values: ``kind``, a built-in one or ``module:Class``, and the parameters of the class.

    Returns:
        The class of one problem.

    Raises:
        ValueError: if a key is missing or unknown, a value is of another kind, or the class of a
            module cannot be found or called.

    Examples:
        >>> class_from_values({"kind": "rpo_theory.rewards:TabularBox", "maximum": 2.0})
        TabularBox(maximum=array(2.))
    """
    node = document_from_values({"reward_class": dict(values)}, name="study").at("reward_class")
    kind = values.get("kind")
    if not (isinstance(kind, str) and ":" in kind):
        return read_class(node)
    parameters = {key: value for key, value in node.value.items() if key != "kind"}
    below = document_from_values({"reward_class": parameters}, name="study").at("reward_class")
    try:
        return _call_class(kind, below, "under `reward_class`")
    except ValueError as error:
        raise ValueError(f"`reward_class.kind`: {error}") from error


def class_values(reward_class: RewardClass) -> dict[str, Any]:
    """Return a reward class as the plain values that :func:`class_from_values` reads.

    Args:
        reward_class: a class whose fields are numbers and arrays, such as a named tuple.

    Returns:
        ``kind`` as ``module:Class``, and every field as a number or nested lists.

    Raises:
        ValueError: if the class has no fields by name.

    Examples:
        >>> class_values(TabularBox(2.0))
        {'kind': 'rpo_theory.rewards.box:TabularBox', 'maximum': 2.0}
    """
    kind = type(reward_class)
    names = getattr(kind, "_fields", None)
    if names is None and dataclasses.is_dataclass(kind):
        names = tuple(item.name for item in dataclasses.fields(kind))
    if names is None:
        rule = "must be a named tuple, a dataclass, or a mapping with `kind` and its parameters"
        raise ValueError(f"`reward_class` {rule}, got {kind.__name__}")
    fields = {name: np.asarray(getattr(reward_class, name)).tolist() for name in names}
    return {"kind": f"{kind.__module__}:{kind.__qualname__}", **fields}


def _refuse_code(node: Node) -> None:
    node.refuse("must not name a module, since data must not run code: use --reward-class")


def class_of_module(name: str, node: Node | None = None) -> RewardClass:
    """Return an instance of a class of the user's own module.

    Args:
        name: ``module:Class``; the module must be importable.
        node: parameters of the class by name: numbers, or nested lists of numbers. None for a
            class without parameters.

    Returns:
        The instance.

    Raises:
        ValueError: if the module or the class cannot be found or called, with the cause.
        DocumentError: if a parameter is neither a number nor a list of numbers.

    Examples:
        >>> class_of_module("rpo_theory.rewards:Unbounded")
        Unbounded()
    """
    try:
        return _call_class(name, node, "as the keys of `reward_class` in the problem file")
    except DocumentError:
        raise
    except ValueError as error:
        raise ValueError(f"argument --reward-class: {error}") from error


def _call_class(name: str, node: Node | None, where: str) -> RewardClass:
    """Return an instance of a class of a module, with the parameters of a document."""
    kind = load_object(name, "class")
    if not callable(kind):
        raise ValueError(f"{name} is not a class")
    parameters = {} if node is None else _parameters(node)
    try:
        return cast(RewardClass, kind(**parameters))
    except TypeError as error:
        rule = f"give its parameters {where}"
        attribute = name.partition(":")[2]
        raise ValueError(f"{attribute} cannot be called: {error}: {rule}") from error


def _parameters(node: Node) -> dict[str, Any]:
    """Return the parameters of a class as arrays."""
    if isinstance(node.value, dict) and "kind" in node.value:
        node.refuse("must be left out with --reward-class, which names the class", "kind")
    parameters = {}
    for key, child in node.members(
        list(node.value) if isinstance(node.value, dict) else []
    ).items():
        n_axes, inner = 0, child.value
        while isinstance(inner, list) and inner:
            n_axes, inner = n_axes + 1, inner[0]
        parameters[key] = child.numbers(n_axes) if n_axes else np.asarray(child.number())
    return parameters


def class_document(reward_class: RewardClass) -> dict[str, Any]:
    """Return kind and numbers of a reward class, as in a problem file but without its arrays.

    Args:
        reward_class: a reward class.

    Returns:
        Plain values; the kind of a user's class is ``module:Class``.

    Examples:
        >>> class_document(TabularBox(2.0))
        {'kind': 'tabular', 'max': 2.0}
    """
    for name, form in _FORMS.items():
        if type(reward_class) is form.type:
            scalars = {key: getattr(reward_class, field) for key, field in form.scalars.items()}
            return {"kind": name, **{key: float(value) for key, value in scalars.items()}}
    kind = type(reward_class)
    numbers = {
        jax.tree_util.keystr(path, simple=True, separator="."): float(np.asarray(leaf))
        for path, leaf in jax.tree_util.tree_leaves_with_path(reward_class)
        if np.ndim(leaf) == 0
    }
    return {"kind": f"{kind.__module__}:{kind.__qualname__}", **numbers}


def document_fields(field: str) -> tuple[str, ...]:
    """Return the path in a problem file of a field of a reward class.

    Args:
        field: name of the field in a message, such as ``reward_class.maximum``.

    Examples:
        >>> document_fields("reward_class.maximum")
        ('reward_class', 'max')
    """
    return tuple(field.replace("reward_class.maximum", "reward_class.max").split("."))
