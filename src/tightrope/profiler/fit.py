"""Fit: samples of engine steps to the coefficients of the step-time model.

Pure. Owns the row of a step, the non-negative least squares and the error on held-out samples. Getting the
samples from an engine is `measure.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from tightrope.model.errors import InvalidInput
from tightrope.model.profile import Coefficients, FitError

Kind = Literal["prefill", "decode", "mixed"]
Row = tuple[float, float, float, float, float]
KINDS: tuple[Kind, ...] = ("prefill", "decode", "mixed")

_COLUMNS = 5
_FOLDS = 5
_RANK_TOLERANCE = 1e-10
_TIE = 1e-12


@dataclass(frozen=True, slots=True)
class StepSample:
    """Engine steps measured together, `steps` of them (a part of one counts as a part): their time in ms.

    `sequences` B and `context_tokens` KV are those of one step (the same in each of the `steps`);
    `prompt_tokens` N and `pairs` G are summed over the steps.
    """

    kind: Kind
    measured_ms: float
    sequences: float = 0.0
    context_tokens: float = 0.0
    prompt_tokens: float = 0.0
    pairs: float = 0.0
    steps: float = 1.0

    def row(self) -> Row:
        """What multiplies a, b, c, d and e in the time of these steps."""
        return (
            self.steps,
            self.steps * self.sequences,
            self.steps * self.context_tokens,
            self.prompt_tokens,
            self.pairs,
        )


def fit(samples: Sequence[StepSample]) -> tuple[Coefficients, FitError]:
    """The non-negative coefficients with the least sum of squared relative errors over all samples.

    The error beside them is that of predictions: each fifth of the samples is judged by a fit of the other
    four. Which samples make a fifth depends on their values and not on their order. Raises InvalidInput when a
    measured time is not a positive number or there are fewer than five samples.
    """
    ordered = sorted(samples, key=_order)
    _check(ordered)
    coefficients = _solve(ordered)
    return coefficients, _held_out_error(ordered, coefficients)


def predicted_ms(coefficients: Coefficients, sample: StepSample) -> float:
    """What the model says the sample should have taken, in ms."""
    per_step = coefficients.step_ms(sample.sequences, sample.context_tokens)
    return sample.steps * per_step + coefficients.d * sample.prompt_tokens + coefficients.e * sample.pairs


def mape(coefficients: Coefficients, samples: Iterable[StepSample]) -> float:
    """Mean absolute relative error over the samples, as a ratio; 0 when there are none."""
    errors = [abs(_relative_error(coefficients, sample)) for sample in samples]
    return math.fsum(errors) / len(errors) if errors else 0.0


def bias(coefficients: Coefficients, samples: Iterable[StepSample]) -> float:
    """Mean signed relative error (predicted above measured is positive), as a ratio; 0 without samples."""
    errors = [_relative_error(coefficients, sample) for sample in samples]
    return math.fsum(errors) / len(errors) if errors else 0.0


def _order(sample: StepSample) -> tuple[str, Row, float]:
    return (sample.kind, sample.row(), sample.measured_ms)


def _check(samples: Sequence[StepSample]) -> None:
    if len(samples) < _COLUMNS:
        raise InvalidInput(
            f"{len(samples)} samples cannot tell five coefficients apart: measure a larger grid"
        )
    for sample in samples:
        if not (math.isfinite(sample.measured_ms) and sample.measured_ms > 0):
            raise InvalidInput(f"a {sample.kind} step of {sample.measured_ms} ms is no measurement")


def _held_out_error(ordered: Sequence[StepSample], fitted: Coefficients) -> FitError:
    """Each fifth in turn is predicted by a fit of the others; every fifth takes evenly of all kinds and sizes.

    A kind of fewer than five samples is judged by the fit of all: without one of two, nothing is known of it.
    """
    by_kind = {kind: [sample for sample in ordered if sample.kind == kind] for kind in KINDS}
    errors_by_kind: dict[Kind, list[float]] = {kind: [] for kind in KINDS}
    for fold in range(_FOLDS):
        kept = [
            sample
            for samples in by_kind.values()
            for i, sample in enumerate(samples)
            if i % _FOLDS != fold or len(samples) < _FOLDS
        ]
        coefficients = _solve(kept)
        for kind, samples in by_kind.items():
            judge = coefficients if len(samples) >= _FOLDS else fitted
            errors_by_kind[kind] += [abs(_relative_error(judge, sample)) for sample in samples[fold::_FOLDS]]
    mean = {kind: math.fsum(errors) / max(1, len(errors)) for kind, errors in errors_by_kind.items()}
    return FitError(mean["prefill"], mean["decode"], mean["mixed"], len(ordered))


def _relative_error(coefficients: Coefficients, sample: StepSample) -> float:
    return predicted_ms(coefficients, sample) / sample.measured_ms - 1.0


def _solve(samples: Sequence[StepSample]) -> Coefficients:
    """Non-negative least squares, exactly: the best of all column subsets whose solution has no negative.

    The optimum of the constrained problem is the plain least-squares solution on the columns that are
    positive in it, so it is among these; with five columns there are only 31 to look at. Columns are scaled
    to unit length, and the samples are first turned into an equal problem of six rows.
    """
    columns = [[sample.row()[j] / sample.measured_ms for sample in samples] for j in range(_COLUMNS)]
    scales = [math.sqrt(math.fsum(value * value for value in column)) for column in columns]
    present = [j for j in range(_COLUMNS) if scales[j] > 0]
    scaled = [[value / scales[j] for value in columns[j]] for j in present]
    *scaled, target = _triangular([*scaled, [1.0] * len(samples)])
    best, best_residual = [0.0] * _COLUMNS, float(len(samples))
    for size in range(1, len(present) + 1):
        for subset in combinations(range(len(present)), size):
            solved = _least_squares([scaled[i] for i in subset], target)
            if solved is None or min(solved[0]) < 0:
                continue
            if solved[1] < best_residual - _TIE:
                best, best_residual = [0.0] * _COLUMNS, solved[1]
                for i, weight in zip(subset, solved[0], strict=True):
                    best[present[i]] = weight / scales[present[i]]
    return Coefficients(*best)


def _triangular(columns: Sequence[Sequence[float]]) -> list[list[float]]:
    """The same columns turned by one rotation of their space, so that only the first len(columns) rows count.

    Householder reflections: no normal equations, so no squared condition number.
    """
    turned = [list(column) for column in columns]
    for j in range(min(len(turned), len(turned[0]))):
        reflector = _reflector(turned[j], j)
        if reflector is not None:
            for column in turned[j:]:
                _reflect(column, reflector, j)
    return [column[: len(turned)] for column in turned]


def _least_squares(
    columns: Sequence[Sequence[float]], target: Sequence[float]
) -> tuple[list[float], float] | None:
    """Weights with the least |columns x weights - target|², and that least; None if columns are dependent."""
    *turned, goal = _triangular([*columns, target])
    width = len(turned)
    if len(goal) < width or min(abs(turned[j][j]) for j in range(width)) < _RANK_TOLERANCE:
        return None
    return _back_substitute(turned, goal), math.fsum(value * value for value in goal[width:])


def _reflector(column: Sequence[float], start: int) -> list[float] | None:
    """The unit vector that reflects column[start:] onto its first axis; None where there is nothing left of it."""
    norm = math.sqrt(math.fsum(value * value for value in column[start:]))
    if norm < _RANK_TOLERANCE:
        return None
    vector = list(column[start:])
    vector[0] += math.copysign(norm, vector[0])
    length = math.sqrt(math.fsum(value * value for value in vector))
    return [value / length for value in vector]


def _reflect(column: list[float], reflector: Sequence[float], start: int) -> None:
    twice = 2.0 * math.fsum(a * b for a, b in zip(reflector, column[start:], strict=True))
    for i, value in enumerate(reflector, start):
        column[i] -= twice * value


def _back_substitute(columns: Sequence[Sequence[float]], target: Sequence[float]) -> list[float]:
    width = len(columns)
    weights = [0.0] * width
    for i in reversed(range(width)):
        rest = math.fsum(columns[j][i] * weights[j] for j in range(i + 1, width))
        weights[i] = (target[i] - rest) / columns[i][i]
    return weights
