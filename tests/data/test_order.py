"""The order in which an epoch reads a text."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from newllm_core.data.order import SEGMENTS_AT_ONCE, SegmentOrder, epoch_batches

SIZES = st.integers(1, 3000), st.integers(1, 40), st.integers(0, 99), st.integers(1, 9)


@given(*SIZES)
@settings(deadline=None, max_examples=50)
def test_an_epoch_is_a_permutation_and_another_one_is_another(size: int, segment: int, seed: int, epoch: int) -> None:
    order = SegmentOrder(size, segment, seed, epoch).positions(0, size)
    assert torch.equal(order.sort().values, torch.arange(size))
    for other in (SegmentOrder(size, segment, seed + 1, epoch), SegmentOrder(size, segment, seed, epoch + 1)):
        assert size < 50 or not torch.equal(other.positions(0, size), order)


@given(*SIZES, st.data())
@settings(deadline=None, max_examples=50)
def test_what_stands_at_a_place_does_not_depend_on_what_was_read_before(
    size: int, segment: int, seed: int, epoch: int, data: st.DataObject
) -> None:
    whole = SegmentOrder(size, segment, seed, epoch).positions(0, size)
    first = data.draw(st.integers(0, size))
    stop = data.draw(st.integers(first, size))
    assert torch.equal(SegmentOrder(size, segment, seed, epoch).positions(first, stop), whole[first:stop])


@given(st.integers(1, 300), st.integers(1, 40), st.sampled_from([None, 1, 7]), st.booleans(), st.data())
@settings(deadline=None, max_examples=50)
def test_batches_can_be_entered_at_any_of_them(
    size: int, batch: int, segment: int | None, shuffle: bool, data: st.DataObject
) -> None:
    def batches(first: int) -> list[list[int]]:
        found = epoch_batches(size, batch, 3, 1, shuffle=shuffle, segment=segment, first=first)
        return [positions.tolist() for positions in found]

    whole, first = batches(0), data.draw(st.integers(0, -(-size // batch)))
    assert batches(first) == whole[first:]
    assert sorted(sum(whole, [])) == list(range(size))
    assert shuffle or sum(whole, []) == list(range(size))


def test_few_segments_are_read_at_a_time_and_from_the_whole_text() -> None:
    order = SegmentOrder(100_000, 50, 42, 1)
    at_once = order.positions(0, SEGMENTS_AT_ONCE * 50)
    assert len((at_once // 50).unique()) == SEGMENTS_AT_ONCE
    assert at_once.float().std() > 20_000 and at_once.diff().abs().float().mean() > 20_000
