import numpy as np

from manifests.sketches import pack, unpack


def test_levels_and_tilt_come_back_within_their_steps() -> None:
    level = np.array([0.0, -3.3, -60.0, -127.0])
    tilt = np.array([0.0, 4.0, -20.1, 1.0])
    found_level, found_tilt = unpack(pack(level, level + tilt))
    np.testing.assert_allclose(found_level, level, atol=0.25)
    np.testing.assert_allclose(found_tilt, tilt, atol=0.125)


def test_silence_and_what_is_out_of_range_are_clipped() -> None:
    level, tilt = unpack(pack(np.array([-np.inf, 3.0, -200.0, -50.0]), np.array([-np.inf, 3.0, -100.0, -np.inf])))
    assert level.tolist() == [-127.5, 0.0, -127.5, -50.0]
    assert tilt.tolist() == [0.0, 0.0, 31.75, 0.0]


def test_no_frames() -> None:
    assert pack(np.zeros(0), np.zeros(0)) == b""
    assert [len(part) for part in unpack(b"")] == [0, 0]
