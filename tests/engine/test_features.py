"""Low features of single images, kept in a pool: each comes back as it was, and nothing else is kept with it."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from service.engine.features import FeaturePool
from service.networks.msnet import LowState

ROWS, SLOTS, CLASSES = 4, 6, 3
BYTES_EACH = 4 * (CLASSES + 5 * 2 * 3 + 7)


def state(start: int = 0, rows: int = ROWS, dtype: torch.dtype = torch.float32) -> LowState:
    """A low state with a map and a mean, no two of whose numbers are equal."""
    generator = torch.Generator().manual_seed(start)
    logits, maps, means = (
        torch.randn(rows, *shape, generator=generator).to(dtype) for shape in ((CLASSES,), (5, 2, 3), (7,))
    )
    return LowState(logits, (maps.contiguous(memory_format=torch.channels_last), means))


def tensors(state: LowState) -> list[Tensor]:
    return [state.logits, *state.features]


def assert_same(taken: LowState, expected: LowState) -> None:
    for ours, theirs in zip(tensors(taken), tensors(expected), strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)


@settings(deadline=None)
@given(
    rows=st.lists(st.integers(0, ROWS - 1), min_size=1, unique=True),
    slots=st.permutations(range(SLOTS)),
    order=st.randoms(use_true_random=False),
)
def test_any_rows_come_back_from_any_slots_in_any_order(rows: list[int], slots: list[int], order: object) -> None:
    pool, given_state = FeaturePool(SLOTS), state()
    held = list(zip(rows, slots, strict=False))
    pool.put(given_state, [row for row, _ in held], [slot for _, slot in held])
    order.shuffle(held)  # type: ignore[attr-defined]
    taken = pool.take([slot for _, slot in held])
    assert_same(taken, given_state.rows(torch.tensor([row for row, _ in held])))


def test_rows_of_several_batches_are_taken_as_one() -> None:
    pool, first, second = FeaturePool(SLOTS), state(1), state(2)
    pool.put(first, [3, 0], [5, 2])
    pool.put(second, [1], [0])
    taken = pool.take([2, 0, 5])
    for ours, ones, twos in zip(tensors(taken), tensors(first), tensors(second), strict=True):
        assert torch.equal(ours, torch.stack([ones[0], twos[1], ones[3]]))


def test_slot_holds_what_was_put_last_and_its_neighbours_are_left_alone() -> None:
    pool, first, second = FeaturePool(SLOTS), state(1), state(2)
    pool.put(first, [0, 1, 2], [3, 4, 5])
    pool.put(second, [0], [4])
    assert_same(pool.take([4]), second.rows(torch.tensor([0])))
    assert_same(pool.take([3, 5]), first.rows(torch.tensor([0, 2])))


def test_what_was_taken_does_not_change_when_its_slot_does() -> None:
    pool, first = FeaturePool(SLOTS), state(1)
    pool.put(first, [0], [0])
    taken = pool.take([0])
    pool.put(state(2), [0], [0])
    assert_same(taken, first.rows(torch.tensor([0])))


def test_what_was_put_does_not_change_with_its_batch() -> None:
    pool, batch = FeaturePool(SLOTS), state(1)
    expected = batch.rows(torch.tensor([2]))
    pool.put(batch, [2], [1])
    for tensor in tensors(batch):
        tensor.fill_(torch.nan)
    assert_same(pool.take([1]), expected)


def test_nothing_of_a_batch_is_kept_alive() -> None:
    pool, batch = FeaturePool(SLOTS), state(rows=64)
    alive = [weakref.ref(tensor) for tensor in tensors(batch)]
    storages = {tensor.untyped_storage().data_ptr() for tensor in tensors(batch)}
    pool.put(batch, [0], [0])
    assert not storages & {room.memory.untyped_storage().data_ptr() for room in pool._allocated(())}
    del batch
    gc.collect()
    assert not [reference for reference in alive if reference() is not None]


def test_memory_is_taken_once_for_all_slots() -> None:
    pool = FeaturePool(SLOTS)
    pool.put(state(1), [0], [0])
    before = [room.memory.data_ptr() for room in pool._allocated(())]
    assert sum(room.memory.untyped_storage().nbytes() for room in pool._allocated(())) == SLOTS * BYTES_EACH
    for slot in range(SLOTS):
        pool.put(state(slot), [1], [slot])
    assert [room.memory.data_ptr() for room in pool._allocated(())] == before


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 4), (torch.bfloat16, 2), (torch.float16, 2)])
def test_bytes_of_an_image_are_told_once_they_are_known(dtype: torch.dtype, size: int) -> None:
    pool = FeaturePool(SLOTS)
    assert pool.bytes_each == 0
    pool.put(state(dtype=dtype), [0], [0])
    assert pool.bytes_each == BYTES_EACH * size // 4


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_maps_of_any_layout_come_back_the_same(layout: torch.memory_format) -> None:
    pool, batch = FeaturePool(SLOTS), state()
    maps, means = batch.features
    pool.put(LowState(batch.logits, (maps.contiguous(memory_format=layout), means)), [0, 3], [4, 1])
    assert torch.equal(pool.take([1, 4]).features[0], maps[[3, 0]])
    pool.put(batch, [1], [4])  # in the other layout
    assert torch.equal(pool.take([4]).features[0], maps[[1]])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_maps_are_taken_as_they_lay_in_memory(layout: torch.memory_format) -> None:
    """Else the high pass reorders them: MS-MobileNetV1-0.5 at 192 pixels took 39 ms for a batch of 8 instead of 27."""
    pool, batch = FeaturePool(SLOTS), state()
    maps, means = batch.features
    pool.put(LowState(batch.logits, (maps.contiguous(memory_format=layout), means)), [0, 1], [0, 1])
    assert pool.take([1, 0]).features[0].is_contiguous(memory_format=layout)
