"""Float8 for the linear layers of a model's blocks, chosen by the roles of the tensor-parallel plan.

Master weights, their names and the state stay as they are, so a run can begin or end with float8 at any checkpoint.
"""

import re
from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from ingot.parallel.float8.linear import MULTIPLE, Scaling, float8_linear
from ingot.parallel.mesh import Mesh
from ingot.parallel.tensor_parallel.layers import ColumnLinear, Plan, RowLinear
from ingot.parallel.tensor_shards import TensorSlice

CUT = {"column": "N", "row": "K"}
"""Roles of the layers that compute in float8, and the dim of the weight that tensor ranks share."""


class _Float8(nn.Linear):
    """Its products are in float8 in training. An evaluation has the precision of the other layers, as an exported model
    will have."""

    scaling: Scaling

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if not self.training:
            return nn.functional.linear(x, weight, bias)
        out = float8_linear(x, weight, self.scaling)
        return out if bias is None else out + bias


class Float8Linear(_Float8):
    """A whole linear layer."""

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x, self.weight, self.bias)


class Float8ColumnLinear(_Float8, ColumnLinear):
    """Holds some of the outputs."""


class Float8RowLinear(_Float8, RowLinear):
    """Holds some of the inputs."""


_FLOAT8 = {nn.Linear: Float8Linear, ColumnLinear: Float8ColumnLinear, RowLinear: Float8RowLinear}


def apply_float8(
    module: nn.Module, plan: Plan, recipe: str, mesh: Mesh, slices: Mapping[str, TensorSlice] | None = None
) -> None:
    """Lets the linear layers of `module` that are columns or rows in `plan` compute in float8.

    The kernels take sizes that are multiples of 16, so a layer with another size stays as it is; `describe_float8` says
    how many. A layer that a method of fine-tuning wraps counts, what the method adds does not.

    Args:
        module: already split over the tensor ranks.
        recipe: `none`, `tensorwise` or `rowwise`.
        slices: what this rank holds of the parameters, as in `LocalParameters`.

    Raises:
        ValueError: one rank could compute a layer in float8, and several tensor ranks could not: the layouts would
            compute different things.
    """
    if recipe == "none":
        return
    problems = []
    for name, layer, role in _layers(module, plan):
        part = (slices or {}).get(f"{name}.weight")
        whole = layer.weight.shape if part is None else part.global_shape
        if any(size % MULTIPLE for size in whole):
            continue
        if any(size % MULTIPLE for size in layer.weight.shape):
            problems.append(f"{name} has {list(layer.weight.shape)} of {list(whole)}")
            continue
        layer.__class__ = _FLOAT8[type(layer)]
        assert isinstance(layer, _Float8)
        layer.scaling = Scaling(recipe == "rowwise", CUT[role], mesh.tensor_group if mesh.tensor > 1 else None)
    if problems:
        raise ValueError(
            f"parallel.float8 needs sizes of layers that are multiples of {MULTIPLE}, and with parallel.tensor "
            f"{mesh.tensor} a rank holds less of them: {problems[0]}; lower parallel.tensor, or set parallel.float8 to "
            f"none"
        )


def describe_float8(module: nn.Module, plan: Plan) -> str:
    """Which of the layers with such a role compute in float8, for the log."""
    layers = list(_layers(module, plan))
    others = sorted({re.sub(r"\.\d+\.", ".*.", name) for name, each, _ in layers if not isinstance(each, _Float8)})
    text = f"float8: {sum(isinstance(each, _Float8) for _, each, _ in layers)} of {len(layers)} linear layers"
    if others:
        text += f"; the sizes of {', '.join(others)} are no multiples of {MULTIPLE}"
    return f"{text}; evaluations have the precision of the rest"


def _layers(module: nn.Module, plan: Plan) -> Iterator[tuple[str, nn.Linear, str]]:
    """Name, layer and role of each linear layer that is a column or a row."""
    modules = dict(module.named_modules())
    for pattern, (role, _) in plan:
        matches = re.compile(re.escape(pattern).replace(r"\*", r"\d+"))
        for name in [name for name in modules if role in CUT and matches.fullmatch(name)]:
            inner = name
            while f"{inner}.base_layer" in modules:  # what a method of fine-tuning adds is around it
                inner = f"{inner}.base_layer"
            layer = modules[inner]
            assert isinstance(layer, nn.Linear)
            yield inner, layer, role
