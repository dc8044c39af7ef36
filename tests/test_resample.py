"""From one grid to another: exact on ramps, the same as SimpleITK's filters on whole volumes."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from hypothesis import given, settings
from hypothesis import strategies as st
from volumes import Scan, facts, turned

from workers.pairing.geometry import plan_volume
from workers.pairing.grid import Canonical, Grid, canonical, isotropic
from workers.pairing.resample import covered_fraction, onto_grid, plan_parallel, reach
from workers.pairing.turned import as_image
from workers.pairing.weights import gaussian_kernel, smoothing_sigmas

FILL = -1024.0
EVEN = Scan(size=(26, 24, 20), spacing=(2.0, 3.0), step=4.0, origin=(-40.0, -25.0, 90.0))


def layout_of(scan: Scan) -> Canonical:
    return canonical(plan_volume(facts(scan)))


def places(grid: Grid) -> np.ndarray:
    """LPS of every voxel, (C, H, W, 3)."""
    c, h, w = np.indices(grid.shape)
    return (np.stack([w, h, c, np.ones_like(c)], axis=-1) @ grid.affine.T)[..., :3]


def ramp(at: np.ndarray) -> np.ndarray:
    return 2.5 * at[..., 0] - 1.5 * at[..., 1] + 0.75 * at[..., 2] + 10


def sampled(layout: Canonical, field: Any = ramp) -> np.ndarray:
    """The values of the stored slices, in canonical order, at their true places."""
    first = places(layout.grid)[0]
    up = layout.grid.steps[:, 2]
    return np.stack([field(first + up * offset) for offset in layout.offsets])


def resampled(
    volume: np.ndarray, source: Canonical, target: Grid, fill: float = FILL
) -> np.ndarray:
    def slices(each: Any) -> Iterator[np.ndarray]:
        return map(each, volume)

    return np.stack(list(onto_grid(slices, source, target, fill)))


def inside(source: Grid, target: Grid, margin: float) -> np.ndarray:
    """Voxels of the target that lie at least `margin` source voxels inside the source's centres."""
    matrix, shift = target.index_map(source)
    c, h, w = np.indices(target.shape)
    at = np.stack([w, h, c], axis=-1) @ matrix.T + shift
    return ((at >= margin) & (at <= np.array(source.size) - 1 - margin)).all(axis=-1)


def reference(volume: np.ndarray, source: Grid, target: Grid, fill: float = FILL) -> np.ndarray:
    """The same by SimpleITK on whole volumes, in double precision."""
    image = as_image(volume.astype(np.float64), source)
    sigmas = smoothing_sigmas(source, target)
    if any(sigmas):
        image = sitk.DiscreteGaussian(image, [s**2 for s in sigmas], 1024, 0.01, False)
    like = as_image(np.zeros(target.shape), target)
    return sitk.GetArrayFromImage(
        sitk.Resample(image, like, sitk.Transform(), sitk.sitkLinear, fill, sitk.sitkFloat64)
    )


TARGETS = {
    "the same grid": Grid(
        (26, 24, 20), (3, 2, 4), (-40, -25, 90), ((1, 0, 0), (0, 1, 0), (0, 0, 1))
    ),
    "coarser": Grid((9, 7, 11), (6.7, 5.1, 6.9), (-35, -22, 93), ((1, 0, 0), (0, 1, 0), (0, 0, 1))),
    "finer": Grid(
        (60, 50, 70), (1.1, 0.9, 1.05), (-38, -24, 91), ((1, 0, 0), (0, 1, 0), (0, 0, 1))
    ),
    "coarser across, finer along": Grid(
        (10, 10, 60), (6.0, 4.5, 1.2), (-36, -24, 92), ((1, 0, 0), (0, 1, 0), (0, 0, 1))
    ),
    "larger than the source": Grid(
        (30, 30, 30), (5.0, 5.0, 6.0), (-70, -60, 60), ((1, 0, 0), (0, 1, 0), (0, 0, 1))
    ),
}


@pytest.mark.parametrize("name", TARGETS)
def test_a_ramp_stays_a_ramp_between_parallel_grids(name: str) -> None:
    source, target = layout_of(EVEN), TARGETS[name]
    found = resampled(sampled(source), source, target)
    deep = inside(source.grid, target, 6 if "coarser" in name or "larger" in name else 0)
    assert deep.any()
    np.testing.assert_allclose(found[deep], ramp(places(target))[deep], atol=1e-9)


@pytest.mark.parametrize("name", TARGETS)
def test_streaming_gives_what_simpleitk_gives_on_the_whole_volume(name: str) -> None:
    source, target = layout_of(EVEN), TARGETS[name]
    volume = np.random.default_rng(3).normal(0, 500, source.grid.shape)
    found = resampled(volume, source, target)
    np.testing.assert_allclose(found, reference(volume, source.grid, target), atol=1e-6)


@pytest.mark.parametrize("turn", [(3, 2), (-17, 0), (40, 1)])
@pytest.mark.parametrize("step", [2.0, 7.0])
def test_turned_grids_agree_with_simpleitk_and_keep_a_ramp(
    turn: tuple[float, int], step: float
) -> None:
    source = layout_of(EVEN)
    tilted = Scan(
        size=(12, 12, 9), spacing=(3.0, 3.0), step=step, origin=(-10, -15, 110),
        orientation=turned(*turn),
    )  # fmt: skip
    target = layout_of(tilted).grid
    assert plan_parallel(source, target, FILL) is None
    volume = np.random.default_rng(4).normal(0, 500, source.grid.shape).astype(np.float32)
    found = resampled(volume, source, target)
    whole = reference(volume.astype(np.float64), source.grid, target)
    np.testing.assert_allclose(found, whole, rtol=0, atol=1e-4)
    deep = inside(source.grid, target, 5)
    assert deep.any()
    found = resampled(sampled(source), source, target)
    np.testing.assert_allclose(found[deep], ramp(places(target))[deep], atol=1e-3)


def test_a_volume_on_its_own_grid_is_untouched() -> None:
    source = layout_of(EVEN)
    volume = np.random.default_rng(5).normal(0, 500, source.grid.shape)
    np.testing.assert_array_equal(resampled(volume, source, source.grid), volume)


def test_uneven_slices_are_interpolated_from_their_true_places() -> None:
    uneven = EVEN.with_(
        size=(26, 24, 9), positions=(0.0, 4.0, 8.0, 13.0, 18.0, 22.0, 26.0, 30.0, 34.0)
    )
    source = layout_of(uneven)
    assert not plan_volume(facts(uneven)).uniform
    found = resampled(sampled(source), source, source.grid)
    np.testing.assert_allclose(found, ramp(places(source.grid)), atol=1e-9)
    target = TARGETS["finer"]
    found = resampled(sampled(source), source, target)
    deep = inside(source.grid, target, 0)
    np.testing.assert_allclose(found[deep], ramp(places(target))[deep], atol=1e-9)


def test_uneven_slices_keep_a_ramp_onto_a_turned_grid_too() -> None:
    uneven = EVEN.with_(
        size=(26, 24, 9), positions=(0.0, 4.0, 8.0, 13.0, 18.0, 22.0, 26.0, 30.0, 34.0)
    )
    source = layout_of(uneven)
    target = layout_of(
        Scan(size=(9, 9, 7), spacing=(2, 2), step=3, origin=(-15, -15, 98), orientation=turned(9))
    ).grid
    found = resampled(sampled(source), source, target)
    deep = inside(source.grid, target, 1)
    assert deep.any()
    np.testing.assert_allclose(found[deep], ramp(places(target))[deep], atol=1e-3)


def test_the_edge_holds_for_half_a_voxel_and_then_comes_the_fill() -> None:
    source = layout_of(EVEN)
    volume = np.full(source.grid.shape, 7.0)
    target = Grid((200, 1, 1), (0.5, 2, 4), (-50, -21, 94), ((1, 0, 0), (0, 1, 0), (0, 0, 1)))
    row = resampled(volume, source, target)[0, 0]
    x = -50 + 0.5 * np.arange(200)
    held = (x >= -40 - 1.5) & (x < -40 + 3 * 25 + 1.5)
    np.testing.assert_array_equal(row, np.where(held, 7.0, FILL))


def test_only_axes_that_shrink_are_smoothed() -> None:
    source = layout_of(EVEN).grid
    sigmas = smoothing_sigmas(source, TARGETS["coarser across, finer along"])
    assert sigmas == pytest.approx(((6 / 3 - 1) / 2, (4.5 / 2 - 1) / 2, 0.0))
    assert smoothing_sigmas(source, source) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("sigma", [0.05, 0.4, 1.6, 9.5])
def test_the_kernel_keeps_means_and_has_about_its_width(sigma: float) -> None:
    kernel = gaussian_kernel(sigma)
    assert kernel.sum() == pytest.approx(1)
    np.testing.assert_allclose(kernel, kernel[::-1])
    reach_ = np.arange(len(kernel)) - len(kernel) // 2
    assert (kernel * reach_**2).sum() == pytest.approx(sigma**2, rel=0.15, abs=0.01)


def test_fine_detail_does_not_alias_when_shrunk() -> None:
    source = layout_of(EVEN.with_(size=(240, 24, 4), spacing=(2.0, 0.5), origin=(0, 0, 0)))
    stripes = np.broadcast_to((np.arange(240) % 2) * 1000.0, source.grid.shape)
    target = Grid((20, 5, 2), (4.9, 6, 6), (10, 6, 3), ((1, 0, 0), (0, 1, 0), (0, 0, 1)))
    found = resampled(stripes, source, target)
    assert np.abs(found - 500).max() < 10


def test_reach_tells_where_the_source_ends() -> None:
    short = layout_of(EVEN.with_(size=(26, 24, 10))).grid
    whole = layout_of(EVEN).grid
    assert covered_fraction(whole, whole) == 1.0
    assert covered_fraction(short, whole) == 0.5
    w, h, c = reach(short, whole)
    assert w.all()
    assert h.all()
    assert c.tolist() == [True] * 10 + [False] * 10


def test_a_ct_that_ends_a_hair_short_still_covers() -> None:
    pet = layout_of(EVEN).grid
    hair = layout_of(EVEN.with_(origin=(-40.0, -25.0, 89.98))).grid
    assert covered_fraction(hair, pet) == 1.0


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(*[st.floats(0.7, 9)] * 3),
    st.tuples(st.floats(-60, 40), st.floats(-50, 30), st.floats(70, 180)),
    st.sampled_from([0.0, 0.0, 5.0, -31.0]),
    st.sampled_from([0, 1, 2]),
)
def test_any_grid_gets_the_ramp_wherever_the_source_reaches(
    spacing: tuple[float, float, float],
    origin: tuple[float, float, float],
    degrees: float,
    axis: int,
) -> None:
    source = layout_of(EVEN)
    scan = Scan(
        size=(7, 6, 5), spacing=spacing[:2], step=spacing[2], origin=origin,
        orientation=turned(degrees, axis),
    )  # fmt: skip
    target = layout_of(scan).grid
    found = resampled(sampled(source), source, target)
    radius = max(len(gaussian_kernel(s)) // 2 for s in smoothing_sigmas(source.grid, target))
    deep = inside(source.grid, target, radius)
    np.testing.assert_allclose(found[deep], ramp(places(target))[deep], atol=1e-3)


def test_cubes_lie_within_the_source() -> None:
    source = layout_of(EVEN)
    cubes = isotropic(source.grid, 2.3)
    found = resampled(np.full(source.grid.shape, 3.0), source, cubes, fill=-1.0)
    assert (np.abs(found - 3.0) < 1e-9).all()
