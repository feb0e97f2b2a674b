"""A parameter of a decoder, and the tensors of a model folder that hold it."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np


class TensorPart(NamedTuple):
    """Outputs of a tensor that belong to one of several projections.

    Attributes:
        first: index of the first output.
        n_outputs: number of outputs of the whole tensor.
        step: distance of the outputs.
    """

    first: int
    n_outputs: int
    step: int = 1


class TensorMapping(NamedTuple):
    """A parameter of a decoder and the Hugging Face tensors that hold it.

    Attributes:
        path: path of the parameter in the decoder's state.
        name: name of the Hugging Face tensor, with ``{layer}`` if there is one per layer, and with
            ``{expert}`` if there is one per expert.
        transposed: whether the tensor is ``[..., out, in]`` and the parameter ``[..., in, out]``.
        part: which outputs of the tensor make up the parameter; None for all.
        experts: number of experts, if there is a tensor for each.
    """

    path: tuple[str, ...]
    name: str
    transposed: bool = False
    part: TensorPart | None = None
    experts: int = 0

    @property
    def stacked(self) -> bool:
        """Whether the parameter stacks the tensors of all layers along its first axis.

        Examples:
            >>> names = "model.norm.weight", "model.layers.{layer}.mlp.up_proj.weight"
            >>> [TensorMapping(("norm", "weight"), name).stacked for name in names]
            [False, True]
        """
        return "{layer}" in self.name

    def stack_shape(self, num_hidden_layers: int) -> tuple[int, ...]:
        """Return the leading axes of the parameter, along which it stacks tensors.

        Args:
            num_hidden_layers: number of layers of the decoder.

        Returns:
            The number of layers and of experts, where there is a tensor for each.

        Examples:
            >>> TensorMapping(("layers",), "{layer}.{expert}", experts=4).stack_shape(2)
            (2, 4)
        """
        if not self.stacked:
            return ()
        return (num_hidden_layers, self.experts) if self.experts else (num_hidden_layers,)

    def names(self, num_hidden_layers: int) -> list[str]:
        """Return the names of the tensors that make up the parameter, in the order of layers.

        Args:
            num_hidden_layers: number of layers of the decoder.

        Returns:
            One name per layer, or per layer and expert, or a single name if the parameter is not
            stacked.
        """
        layers = range(num_hidden_layers if self.stacked else 1)
        numbers = itertools.product(layers, range(self.experts or 1))
        return [self.name.format(layer=layer, expert=expert) for layer, expert in numbers]

    def tensor_slices(
        self, shape: tuple[int, ...], shard: tuple[slice, ...]
    ) -> tuple[tuple[int, ...], tuple[slice, ...]]:
        """Return which slice of a tensor holds a shard of the parameter.

        Args:
            shape: shape of the parameter, without the axes that it stacks.
            shard: one slice per axis of it.

        Returns:
            The shape of the whole tensor, and one slice per axis of it.

        Examples:
            >>> mapping = TensorMapping(("layers",), "{layer}", True, TensorPart(4, 8))
            >>> mapping.tensor_slices((6, 2), (slice(0, 3), slice(1, 2)))
            ((8, 6), (slice(5, 6, 1), slice(0, 3, None)))
        """
        if self.part is not None:
            first, n_outputs, step = self.part
            start, stop, _ = shard[-1].indices(shape[-1])
            # A stop past the last output of the part would not change the slice.
            outputs = slice(first + step * start, first + step * (stop - 1) + 1, step)
            shape, shard = (*shape[:-1], n_outputs), (*shard[:-1], outputs)
        if not self.transposed:
            return shape, shard
        return (*shape[:-2], *shape[:-3:-1]), (*shard[:-2], *shard[:-3:-1])

    def swap(self, values: np.ndarray) -> np.ndarray:
        """Return values of a tensor in the layout of the parameter, or the other way round.

        Args:
            values: a tensor, or a parameter without the axes that it stacks.

        Returns:
            A view of them.

        Examples:
            >>> TensorMapping(("layers",), "{layer}", True).swap(np.zeros((4, 2))).shape
            (2, 4)
        """
        return values.swapaxes(-1, -2) if self.transposed else values
