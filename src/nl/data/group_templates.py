"""Templates on a finite group: what a network is shown of its elements. Floor 1.

A template is a function x on the group, of zero mean: then the zero prediction, a saddle from which
learning starts, has the loss Var(x).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nl.config import ConfigError
from nl.core.groups import FiniteGroup, irreps

Floats = npt.NDArray[np.float64]
BUMP_WIDTHS = (0.5, 2.0)
BUMP_HEIGHTS = (0.5, 1.0)


def centred(values: Floats) -> Floats:
    """The values minus their mean."""
    return np.asarray(values - values.mean(), dtype=np.float64)


def normalised(values: Floats) -> Floats:
    """Centred, unit variance."""
    middle = centred(values)
    return np.asarray(middle / middle.std())


def one_hot(order: int, at: int, scale: float) -> Floats:
    """``scale`` at one element."""
    return centred(scale * np.eye(order)[at])


def fourier(order: int, frequencies: int, amplitudes: tuple[float, float], seed: int) -> Floats:
    """On C_n: ``frequencies`` modes from 1 to n // 2 of falling amplitude and random phase.

    Mode j has amplitude sqrt(a_j), a_j evenly spaced from the first to the second amplitude.
    """
    rng = np.random.default_rng(seed)
    chosen = rng.choice(np.arange(1, order // 2 + 1), size=frequencies, replace=False)
    phases = rng.uniform(0.0, 2.0 * np.pi, size=frequencies)
    spectrum: npt.NDArray[Any] = np.zeros(order, dtype=np.complex128)
    sizes = np.sqrt(np.linspace(*amplitudes, frequencies))
    for frequency, size, phase in zip(chosen, sizes, phases, strict=True):
        value = size * np.exp(1j * phase)
        spectrum[frequency] = value
        spectrum[-frequency] = np.conj(value)
    return normalised(np.fft.ifft(spectrum).real)


def planar_modes(rows: int, columns: int) -> list[tuple[int, int]]:
    """Frequencies of C_rows x C_columns that are no mirror of themselves, one of each pair +-f.

    Ordered by distance from zero, then by the size of the first, then of the second.
    """

    def signed(ky: int) -> int:
        return ky - rows if ky > rows // 2 else ky

    def mirrored(ky: int, kx: int) -> tuple[int, int]:
        return -ky % rows, -kx % columns

    found: list[tuple[int, int]] = []
    half = [(ky, kx) for ky in range(rows) for kx in range(columns // 2 + 1)]
    for mode in sorted(
        half, key=lambda f: (signed(f[0]) ** 2 + f[1] ** 2, abs(signed(f[0])), f[1])
    ):
        if mirrored(*mode) != mode and mirrored(*mode) not in found:
            found.append(mode)
    return found


def planar(
    shape: tuple[int, int], frequencies: int, amplitudes: tuple[float, float], seed: int
) -> Floats:
    """On C_p x C_q: the first ``frequencies`` of ``planar_modes``, as ``fourier``.

    Raises:
        ConfigError: there are fewer such modes.
    """
    modes = planar_modes(*shape)
    if frequencies > len(modes):
        raise ConfigError(f"frequencies: {frequencies}; C{shape[0]}xC{shape[1]} has {len(modes)}.")
    phases = np.random.default_rng(seed).uniform(0.0, 2.0 * np.pi, size=frequencies)
    spectrum: npt.NDArray[Any] = np.zeros(shape, dtype=np.complex128)
    sizes = np.sqrt(np.linspace(*amplitudes, frequencies))
    for (ky, kx), size, phase in zip(modes, sizes, phases, strict=False):
        value = size * np.exp(1j * phase)
        spectrum[ky, kx] += value
        spectrum[-ky % shape[0], -kx % shape[1]] += np.conj(value)
    return normalised(np.fft.ifft2(spectrum).real.ravel())


def bumps(order: int, count: int, seed: int) -> Floats:
    """On C_n: ``count`` bells at random places, of random widths and heights, around the circle."""
    rng = np.random.default_rng(seed)
    values = np.zeros(order)
    places = np.arange(order)
    for _ in range(count):
        centre = rng.uniform(0, order)
        width = rng.uniform(*BUMP_WIDTHS)
        height = rng.uniform(*BUMP_HEIGHTS)
        away = np.abs(places - centre)
        values += height * np.exp(-0.5 * (np.minimum(away, order - away) / width) ** 2)
    return normalised(values)


def of_powers(group: FiniteGroup, powers: Mapping[str, float]) -> Floats:
    """sum over irreps of sqrt(P / (N m)) chi: the class function with the given powers.

    Raises:
        ConfigError: an unknown irrep, a power below zero, or no power at all.
    """
    found = {one.name: one for one in irreps(group)}
    del found["1a"]  # the mean
    values = np.zeros(group.order)
    for name, power in powers.items():
        if name not in found:
            known = ", ".join(f"{one.name} ({one.type})" for one in found.values())
            raise ConfigError(f"powers.{name}: no irrep of {group.name}; it has {known}.")
        if power < 0:
            raise ConfigError(f"powers.{name}: {power}; must be >= 0.")
        one = found[name]
        values += np.sqrt(power / (group.order * one.schur)) * one.character
    if not values.any():
        raise ConfigError("powers: all zero; give at least one irrep some power.")
    return centred(values)


def from_file(path: Path, order: int) -> Floats:
    """Numbers of a JSON list or a .npy array, one per element, centred.

    Raises:
        ConfigError: no such file, or not as many finite numbers.
    """
    try:
        if path.suffix == ".npy":
            found = np.load(path, allow_pickle=False)
        else:
            found = np.asarray(json.loads(path.read_text()), dtype=np.float64)
        values = np.asarray(found, dtype=np.float64).ravel()
    except OSError as error:
        raise ConfigError(f"template_file: {path} cannot be read ({error.strerror}).") from error
    except (ValueError, TypeError, RecursionError) as error:
        raise ConfigError(f"template_file: {path} holds no numbers ({error}).") from error
    if values.size != order or not np.isfinite(values).all():
        raise ConfigError(
            f"template_file: {path} holds {values.size} numbers; {order} finite ones are needed."
        )
    if np.ptp(values) == 0:
        raise ConfigError(f"template_file: {path} is constant; nothing could be learned from it.")
    return centred(values)
