"""The cards that Modal rents: its names, chips as the table of chips knows them, prices that two sources agree on."""

import pytest

from utils.chips import cuda_chip
from utils.errors import ConfigError
from utils.gpus import CARDS, GPUS, find_gpu, format_dollars, hourly_price

# modal.com/docs/guide/gpu, and the client's own documentation.
NAMES = "T4 L4 A10 L40S A100 A100-40GB A100-80GB RTX-PRO-6000 H100 H100! H200 B200 B200+"


def test_the_names_are_modals() -> None:
    assert set(GPUS) == set(NAMES.split())
    assert len(CARDS) == len(GPUS)


@pytest.mark.parametrize("name", NAMES.split())
def test_every_card_is_a_chip_with_a_peak_in_its_own_precision(name: str) -> None:
    gpu = GPUS[name]
    assert gpu.chip.kind == "cuda"
    assert gpu.precision("auto") == ("float32" if name == "T4" else "bfloat16")
    assert gpu.precision("float16") == "float16"
    assert gpu.chip.peaks[gpu.precision("auto")] > 8e12
    # A number that the table of chips has is not given a second time.
    listed = cuda_chip({"device_name": gpu.device_name, "architecture": gpu.architecture}).peaks
    assert bool(listed) != bool(gpu.unlisted)
    assert not listed or gpu.chip.peaks == listed


@pytest.mark.parametrize(("name", "peak"), [("A100-80GB", 312), ("H100!", 989), ("H200", 989), ("B200+", 2250)])
def test_peaks_of_listed_chips(name: str, peak: float) -> None:
    assert GPUS[name].chip.peaks["bfloat16"] == peak * 1e12


@pytest.mark.parametrize(
    ("name", "sold_as"),
    [("T4", 16), ("L4", 24), ("A10", 24), ("L40S", 48), ("A100", 40), ("A100-40GB", 40), ("A100-80GB", 80),
     ("RTX-PRO-6000", 96), ("H100", 80), ("H100!", 80), ("H200", 141), ("B200", 192), ("B200+", 192)],
)  # fmt: skip
def test_a_driver_reports_a_little_less_than_the_name_says(name: str, sold_as: int) -> None:
    gpu = GPUS[name]
    assert 0.9 * sold_as * 2**30 < gpu.memory < sold_as * 2**30
    assert gpu.memory_limit == pytest.approx(0.95 * gpu.memory, abs=1)


@pytest.mark.parametrize(
    ("name", "dollars", "rounding"),
    # techbytes.app, "Serverless GPU Pricing Matrix", 2026-05-07; the rest in cents, from Modal's price page of 2025.
    [("T4", 0.5904, 1e-9), ("L4", 0.7992, 1e-9), ("L40S", 1.9512, 1e-9), ("A100-80GB", 2.4984, 1e-9),
     ("H100", 3.9492, 1e-9), ("H100!", 3.9492, 1e-9), ("A10", 1.10, 0.005), ("A100", 2.10, 0.005),
     ("A100-40GB", 2.10, 0.005), ("H200", 4.54, 0.005), ("B200", 6.25, 0.005), ("B200+", 6.25, 0.005)],
)  # fmt: skip
def test_prices_agree_with_a_second_source(name: str, dollars: float, rounding: float) -> None:
    assert GPUS[name].dollars_per_hour == pytest.approx(dollars, abs=rounding)


@pytest.mark.parametrize(("name", "dollars"), [("L4", 1.43), ("A10", 1.73), ("A100-80GB", 3.13), ("B200", 6.88)])
def test_cores_and_memory_are_billed_on_top(name: str, dollars: float) -> None:
    """Totals that somebody else worked out for 8 cores and 32 GiB."""
    assert hourly_price(GPUS[name], 8, 32) == pytest.approx(dollars, abs=0.006)


def test_a_region_multiplies_all_of_it() -> None:
    plain = 3.9492 + 4 * 0.04716 + 16 * 0.007992
    assert hourly_price(GPUS["H100"], 4, 16) == pytest.approx(plain)
    assert hourly_price(GPUS["H100"], 4, 16, "us") == pytest.approx(1.5 * plain)
    assert hourly_price(GPUS["H100"], 4, 16, "us-west") == pytest.approx(1.75 * plain)


def test_what_has_no_price_costs_nobody_knows_what() -> None:
    free = GPUS["L4"]._replace(dollars_per_second=None)
    assert free.dollars_per_hour is None
    assert hourly_price(free, 4, 16) is None


@pytest.mark.parametrize(
    ("text", "name"),
    [("A100-80GB", "A100-80GB"), ("h100", "H100"), ("H100!", "H100!"), (" l40s ", "L40S"), ("a100-80gb:1", "A100-80GB")]
    + [(name, name) for name in NAMES.split()],
)
def test_finding(text: str, name: str) -> None:
    assert find_gpu(text).name == name


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A100:2", ["'A100:2'", "one GPU for now", "--gpu A100", "distributed"]),
        ("h100!:8", ["one GPU for now", "--gpu H100!"]),
        ("8", ["one GPU for now", "--gpu A100-80GB"]),
        ("V100:4", ["one GPU for now"]),
        ("A100:0", ["no such GPU", "did you mean 'A100'"]),
        ("A100:x", ["no such GPU"]),
        ("A100:", ["no such GPU"]),
        ("A10G", ["'A10G'", "no such GPU", "did you mean 'A10'", "there are: T4, L4, A10,"]),
        ("A100-80", ["did you mean 'A100-80GB'"]),
        ("", ["no such GPU", "there are:"]),
        ("H100,A100", ["one name"]),
    ],
)
def test_what_is_no_single_card_is_refused(text: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        find_gpu(text)
    assert all(word in str(error.value) for word in words), error.value
    assert len(error.value.problems) == 1


@pytest.mark.parametrize(
    ("dollars", "text"),
    [
        (0.0, "$0.01"),
        (0.041, "$0.05"),
        (0.05, "$0.05"),
        (2.4984, "$2.50"),
        (9.99, "$9.99"),
        (24.0, "$24"),
        (99.2, "$100"),
        (1250.0, "$1,250"),
    ],
)
def test_dollars_for_people(dollars: float, text: str) -> None:
    assert format_dollars(dollars) == text
