from dataclasses import replace

from training.codec import MACHINE, CodecTrainConfig
from training.flags import flags_of
from training.waveforms import CropConfig


def test_defaults_need_no_flag() -> None:
    assert flags_of(CodecTrainConfig()) == ""


def test_flags_are_quoted_for_a_shell() -> None:
    assert flags_of(CodecTrainConfig(crops=CropConfig(gain_db=(-6.0, 0.0)))) == " --crops.gain_db '[-6.0, 0.0]'"


def test_what_is_left_out_is_passed_over() -> None:
    config = replace(CodecTrainConfig(), threads=3, device="cpu", seed=2)
    assert flags_of(config, MACHINE) == " --seed 2"
