"""A multi-layer perceptron for tabular inputs, with embeddings for categorical columns."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.utils import skip_init

from pyromix.errors import ConfigError, DataError

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU, "silu": nn.SiLU}

Inputs = torch.Tensor | Mapping[str, torch.Tensor]


class MLP(nn.Module):
    r"""Multi-layer perceptron in float64, with an optional linear path beside the layers.

    .. math:: f(x) = W_{L+1}\, h_L + A x, \qquad h_l = a(W_l h_{l-1} + b_l), \quad h_0 = x

    where `x` is the numeric columns (standardised if asked for) followed by one embedding per categorical column. The
    output has no bias of its own unless asked for: in a formula the intercept stays outside the module, and two
    constants could not be told apart.

    Parameters
    ----------
    n_inputs
        Number of numeric columns, 0 or more. ``None`` leaves the size open until `build` is called.
    hidden
        Widths of the hidden layers; ``()`` gives a linear function.
    n_outputs
        Number of outputs per row.
    activation
        ``"relu"``, ``"tanh"``, ``"gelu"`` or ``"silu"``.
    dropout
        Probability that a hidden unit is dropped while training, in [0, 1).
    layer_norm
        Normalise each hidden layer before its activation.
    embeddings
        For each categorical column, by name: ``(number of levels, embedding dimension)``. The names are the module's
        `categorical` attribute, which a formula reads to pass these columns as level codes.
    skip
        Add the linear path `A x`, which starts at zero.
    output_bias
        Give the output a bias.
    standardize
        Store mean and SD of the numeric columns at `build` and use them in every later call. Constant columns are
        centred and left unscaled.
    seed
        Seed of the initial weights, drawn from a generator of their own: the global one is neither read nor advanced.
        ``None`` for fresh entropy.

    Raises
    ------
    ConfigError
        An argument outside its allowed set.
    """

    input_mean: torch.Tensor
    input_sd: torch.Tensor

    def __init__(
        self,
        n_inputs: int | None = None,
        hidden: Sequence[int] = (64, 32),
        n_outputs: int = 1,
        *,
        activation: str = "relu",
        dropout: float = 0.0,
        layer_norm: bool = False,
        embeddings: Mapping[str, tuple[int, int]] | None = None,
        skip: bool = True,
        output_bias: bool = False,
        standardize: bool = False,
        seed: int | None = 0,
    ) -> None:
        super().__init__()
        embeddings = dict(embeddings or {})
        _check_arguments(n_inputs, hidden, n_outputs, activation, dropout, embeddings)
        self.hidden = tuple(hidden)
        self.n_outputs = n_outputs
        self.activation = activation
        self.dropout = float(dropout)
        self.layer_norm = layer_norm
        self.embedding_sizes = embeddings
        self.categorical: tuple[str, ...] = tuple(embeddings)
        self.skip = skip and bool(self.hidden)
        self.output_bias = output_bias
        self.standardize = standardize
        self.seed = seed
        self.n_inputs = n_inputs
        self.built = False
        if n_inputs is not None and not standardize:
            self.build(n_inputs)

    def build(self, n_inputs: int, inputs: torch.Tensor | None = None) -> MLP:
        """Create the layers for `n_inputs` numeric columns.

        A second call with the same size keeps the weights and the stored scale.

        Parameters
        ----------
        n_inputs
            Number of numeric columns.
        inputs
            The numeric columns of the training data, ``(n, n_inputs)``; needed with ``standardize=True``.

        Raises
        ------
        ConfigError
            The size differs from the one given before, or there is nothing to standardise with.
        DataError
            `inputs` has the wrong shape or values that are not finite.
        """
        if self.n_inputs is not None and n_inputs != self.n_inputs:
            raise ConfigError(
                f"MLP.build(n_inputs={n_inputs}): this module has n_inputs={self.n_inputs}; make a new one."
            )
        if self.built:
            return self
        if n_inputs < 0 or n_inputs + len(self.categorical) == 0:
            raise ConfigError(f"MLP.build(n_inputs={n_inputs}): the module has no input; give it at least one column.")
        if self.standardize and inputs is None:
            raise ConfigError(
                "MLP.build(inputs=None): standardize=True needs the training columns; pass inputs=, shape (n, p)."
            )
        mean, sd = _scale(inputs, n_inputs) if self.standardize and inputs is not None else _unit_scale(n_inputs)
        self._create(n_inputs, mean, sd)
        return self

    def forward(self, inputs: Inputs) -> torch.Tensor:
        """Outputs of the rows.

        Parameters
        ----------
        inputs
            Numeric columns ``(n, n_inputs)``; with embeddings a mapping of ``"numeric"`` to those columns and of each
            categorical column's name to its integer level codes ``(n,)``.

        Returns
        -------
        torch.Tensor
            float64, ``(n,)`` with one output, else ``(n, n_outputs)``.
        """
        if not self.built:  # the first input settles the size, and the scale if the module standardises
            numeric = inputs["numeric"] if isinstance(inputs, Mapping) else inputs
            self.build(numeric.shape[-1], numeric.detach())
        x = self._features(inputs)
        out = self.output(self.layers(x))
        if self.skip:
            out = out + self.linear(x)
        return out.squeeze(-1) if self.n_outputs == 1 else out

    def extra_repr(self) -> str:
        return f"n_inputs={self.n_inputs}, n_outputs={self.n_outputs}, categorical={self.categorical}"

    def _create(self, n_inputs: int, mean: torch.Tensor, sd: torch.Tensor) -> None:
        generator = torch.Generator()
        generator.seed() if self.seed is None else generator.manual_seed(self.seed)
        self.n_inputs, self.built = n_inputs, True
        self.register_buffer("input_mean", mean)
        self.register_buffer("input_sd", sd)
        self.embeddings = nn.ModuleList(_embedding(*size, generator) for size in self.embedding_sizes.values())
        n_features = n_inputs + sum(dim for _, dim in self.embedding_sizes.values())
        layers: list[nn.Module] = []
        width = n_features
        for size in self.hidden:
            layers.append(_linear(width, size, True, generator))
            if self.layer_norm:
                layers.append(nn.LayerNorm(size, dtype=torch.float64))
            layers.append(ACTIVATIONS[self.activation]())
            if self.dropout:
                layers.append(nn.Dropout(self.dropout))
            width = size
        self.layers = nn.Sequential(*layers)
        self.output = _linear(width, self.n_outputs, self.output_bias, generator)
        if self.skip:
            self.linear = _linear(n_features, self.n_outputs, False, generator)
            nn.init.zeros_(self.linear.weight)

    def _features(self, inputs: Inputs) -> torch.Tensor:
        """Standardised numeric columns and embeddings side by side: (n, features)."""
        columns = self._columns(inputs)
        parts = []
        if self.n_inputs:
            parts.append((_numeric(columns["numeric"], self.n_inputs) - self.input_mean) / self.input_sd)
        for name, table in zip(self.categorical, self.embeddings, strict=True):
            assert isinstance(table, nn.Embedding)
            parts.append(_look_up(table, columns[name], name))
        rows = {name: len(columns[name]) for name in columns}
        if len(set(rows.values())) > 1:
            raise DataError(f"MLP: the inputs differ in their number of rows: {rows}.")
        return torch.cat(parts, dim=-1)

    def _columns(self, inputs: Inputs) -> Mapping[str, torch.Tensor]:
        wanted = (*(("numeric",) if self.n_inputs else ()), *self.categorical)
        if isinstance(inputs, torch.Tensor):
            if self.categorical:
                raise DataError(
                    f"MLP: got one tensor, but the module embeds {list(self.categorical)}; "
                    f"pass a dict with keys {list(wanted)}."
                )
            return {"numeric": inputs}
        missing, unknown = set(wanted) - set(inputs), set(inputs) - set(wanted) - {"numeric"}
        if missing or unknown:
            raise DataError(
                f"MLP: the inputs must have the keys {list(wanted)}; "
                f"missing {sorted(missing)}, unknown {sorted(unknown)}."
            )
        return {name: inputs[name] for name in wanted}

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Let saved weights settle a size that is still open."""
        mean, sd = state_dict.get(f"{prefix}input_mean"), state_dict.get(f"{prefix}input_sd")
        if not self.built and mean is not None and sd is not None and self.n_inputs in (None, len(mean)):
            self._create(len(mean), mean.clone(), sd.clone())
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _check_arguments(
    n_inputs: int | None,
    hidden: Sequence[int],
    n_outputs: int,
    activation: str,
    dropout: float,
    embeddings: Mapping[str, tuple[int, int]],
) -> None:
    if n_inputs is not None and (n_inputs < 0 or n_inputs + len(embeddings) == 0):
        raise ConfigError(f"MLP(n_inputs={n_inputs}): the module needs at least one numeric or embedded column.")
    if any(size < 1 for size in hidden):
        raise ConfigError(f"MLP(hidden={tuple(hidden)}): every width must be at least 1.")
    if n_outputs < 1:
        raise ConfigError(f"MLP(n_outputs={n_outputs}): must be at least 1.")
    if activation not in ACTIVATIONS:
        raise ConfigError(f"MLP(activation={activation!r}): must be one of {sorted(ACTIVATIONS)}.")
    if not 0 <= dropout < 1:
        raise ConfigError(f"MLP(dropout={dropout}): must be in [0, 1).")
    if "numeric" in embeddings:
        raise ConfigError("MLP(embeddings=...): 'numeric' is the key of the numeric columns; rename the column.")
    for name, size in embeddings.items():
        if len(size) != 2 or min(size) < 1:
            raise ConfigError(
                f"MLP(embeddings={{{name!r}: {size}}}): give (number of levels, dimension), both at least 1."
            )


def _linear(n_in: int, n_out: int, bias: bool, generator: torch.Generator) -> nn.Linear:
    """Linear layer with uniform weights within 1/sqrt(n_in), torch's own default, from our generator."""
    layer = skip_init(nn.Linear, n_in, n_out, bias=bias, dtype=torch.float64)
    bound = 1 / math.sqrt(n_in)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.uniform_(-bound, bound, generator=generator)
    return layer


def _embedding(n_levels: int, dim: int, generator: torch.Generator) -> nn.Embedding:
    """Embedding table with small normal entries, so that no level starts far from the others."""
    table = skip_init(nn.Embedding, n_levels, dim, dtype=torch.float64)
    with torch.no_grad():
        table.weight.normal_(0, 0.1, generator=generator)
    return table


def _numeric(x: torch.Tensor, n_inputs: int) -> torch.Tensor:
    if x.dim() != 2 or x.shape[1] != n_inputs:
        hint = "; a single column is x[:, None]" if x.dim() == 1 else ""
        raise DataError(f"MLP: numeric inputs have shape {tuple(x.shape)}, expected (n, {n_inputs}){hint}.")
    return x.to(torch.float64)


def _look_up(table: nn.Embedding, codes: torch.Tensor, name: str) -> torch.Tensor:
    if codes.dim() != 1 or codes.is_floating_point() or codes.dtype == torch.bool:
        raise DataError(
            f"MLP: column {name!r} has shape {tuple(codes.shape)} and dtype {codes.dtype}, expected integer codes (n,)."
        )
    try:
        return table(codes)
    except IndexError as error:
        # found by the look-up itself: a check of every call would break tracing
        n_levels = table.num_embeddings
        wrong = int(torch.nonzero((codes < 0) | (codes >= n_levels))[0])
        raise DataError(
            f"MLP: column {name!r} has code {codes[wrong].item()} at position {wrong}, but the module was made for "
            f"{n_levels} levels (codes 0 to {n_levels - 1}); give embeddings={{{name!r}: (more levels, dimension)}}."
        ) from error


def _unit_scale(n_inputs: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(n_inputs, dtype=torch.float64), torch.ones(n_inputs, dtype=torch.float64)


def _scale(inputs: torch.Tensor, n_inputs: int) -> tuple[torch.Tensor, torch.Tensor]:
    x = _numeric(inputs, n_inputs)
    if not bool(torch.isfinite(x).all()):
        row, column = torch.nonzero(~torch.isfinite(x))[0].tolist()
        raise DataError(
            f"MLP.build(inputs=...): {x[row, column].item()} at row {row}, column {column}; must be finite."
        )
    mean, sd = x.mean(0), x.std(0, correction=0)
    # rounding leaves a constant column with an SD of a few ulp, not zero
    constant = sd <= 1e-12 * x.abs().amax(0)
    return mean, torch.where(constant, torch.ones_like(sd), sd)
