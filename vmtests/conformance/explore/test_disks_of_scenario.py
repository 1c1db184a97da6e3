"""Where the sectors of a scenario's disks are: one after another, each from a granule on."""

from __future__ import annotations

from dataclasses import replace

from qmpshim.conformance.explore.space.naming import point_named, scenario_of

ONE = scenario_of(point_named("primary_zero+guest_read,form=backup,disk=odd,target=large"))
TWO = scenario_of(point_named("primary_write+start,form=pull,disk=odd,disks=two"))


def test_a_granule_reaches_beyond_the_end_of_one_disk() -> None:
    end = ONE.size
    assert (ONE.granule, end) == (256, 769)
    assert {ONE.end_of(sector) for sector in range(4 * 256)} == {end}
    assert ONE.place_of(end + 1) == (0, end + 1)


def test_two_disks_begin_with_a_granule_each() -> None:
    assert (TWO.granule, TWO.disk_size, TWO.apart) == (128, 385, 512)
    assert TWO.size == 512 + 385
    assert [TWO.disk_of(sector) for sector in (0, 385, 511, 512, 512 + 386)] == [0, 0, 0, 1, 1]
    assert [TWO.end_of(sector) for sector in (0, 511, 512, 1023, 1024)] == [385] * 2 + [897] * 3
    assert TWO.place_of(512 + 3) == (1, 3)
    (write, _) = TWO.ops
    second = replace(write, start=write.start + TWO.apart)
    assert TWO.on_own_disk(second) == write
    assert TWO.is_about(second, 1) and not TWO.is_about(second, 0)
