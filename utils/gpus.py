"""The GPUs that Modal rents, by the names it gives them: memory, speed, price.

What is known of a chip comes from utils/chips.py, by the name that its driver gives; only cards that are not listed
there have their peaks here, for an estimate. Prices are list prices of modal.com/pricing as others noted them on
`PRICES_OF`; their other notes of that autumn agree, and so do five rows of techbytes.app's table of 2026-05-07. Prices
change: look there before a long run. To add a card, add a row to `CARDS`; new prices take a new date with them.
"""

import math
from typing import NamedTuple

from utils.chips import TERA, Chip, cuda_chip
from utils.errors import ConfigError
from utils.memory import CUDA_SHARE
from utils.registry import suggestion

PRICES_OF = "2026-09-26"
SECONDS_AN_HOUR = 3600
CORE_DOLLARS = 0.0000131 * SECONDS_AN_HOUR
"""For an hour of one physical core (two virtual ones)."""
GIB_DOLLARS = 0.00000222 * SECONDS_AN_HOUR
"""For an hour of one GiB of the container's memory."""
BROAD_REGION, NARROW_REGION = 1.5, 1.75
"""Times the whole price when a region is asked for: a continent (`us`), or a part of one (`us-west`)."""


class Gpu(NamedTuple):
    """A card as Modal offers it."""

    name: str
    """What `--gpu` says."""
    device_name: str
    """What its driver says."""
    architecture: str
    """Compute capability, as MLX writes it."""
    gib: float
    """Memory that the driver reports, in GiB: a little less than what the name says. The smallest figure seen."""
    dollars_per_second: float | None
    """None: no price is known."""
    unlisted: dict[str, float] = {}
    """TFLOP/s by precision, dense, from NVIDIA's data sheets, of a card that utils/chips.py does not list."""
    note: str = ""
    """What a person should know before renting it."""

    @property
    def chip(self) -> Chip:
        """What MLX will say of it."""
        chip = cuda_chip({"device_name": self.device_name, "architecture": self.architecture})
        return chip._replace(peaks=chip.peaks or {name: rate * TERA for name, rate in self.unlisted.items()})

    @property
    def memory(self) -> int:
        """Bytes of the card."""
        return int(self.gib * 2**30)

    @property
    def memory_limit(self) -> int:
        """Bytes that a run may take there; see utils/memory.py."""
        return int(self.memory * CUDA_SHARE)

    @property
    def dollars_per_hour(self) -> float | None:
        """For the card alone."""
        return None if self.dollars_per_second is None else self.dollars_per_second * SECONDS_AN_HOUR

    def precision(self, asked: str) -> str:
        """What `training.precision` means on it."""
        return self.chip.default_precision if asked == "auto" else asked


H100 = ("NVIDIA H100 80GB HBM3", "sm_90", 79.10, 0.001097)
A100_40GB = ("NVIDIA A100-SXM4-40GB", "sm_80", 39.38, 0.000583)
B200 = ("NVIDIA B200", "sm_100", 178.35, 0.001736)

# A10: AWS lends the slower A10G under this name, hence half of an A10's rate. RTX PRO 6000: NVIDIA's Blackwell paper.
CARDS = (
    Gpu("T4", "Tesla T4", "sm_75", 14.56, 0.000164, {"float32": 8.1, "float16": 65.0}),
    Gpu("L4", "NVIDIA L4", "sm_89", 22.03, 0.000222, {"float32": 60.0, "bfloat16": 121.0, "float16": 121.0}),
    Gpu("A10", "NVIDIA A10G", "sm_86", 22.03, 0.000306, {"float32": 35.0, "bfloat16": 70.0, "float16": 70.0}),
    Gpu("L40S", "NVIDIA L40S", "sm_89", 44.39, 0.000542, {"float32": 183.0, "bfloat16": 362.0, "float16": 362.0}),
    Gpu("A100", *A100_40GB, note="Modal may lend a card of 80 GB at this price"),
    Gpu("A100-40GB", *A100_40GB),
    Gpu("A100-80GB", "NVIDIA A100-SXM4-80GB", "sm_80", 79.14, 0.000694),
    Gpu(
        "RTX-PRO-6000",
        "NVIDIA RTX PRO 6000 Blackwell Server Edition",
        "sm_120",
        94.97,
        0.000842,
        {"float32": 252.0, "bfloat16": 504.0, "float16": 504.0},
    ),
    Gpu("H100", *H100, note="Modal may lend an H200 at this price; H100! never"),
    Gpu("H100!", *H100),
    Gpu("H200", "NVIDIA H200", "sm_90", 139.72, 0.001261),
    Gpu("B200", *B200),
    Gpu("B200+", *B200, note="Modal may lend a B300, for which MLX's wheels hold no code; B200 never"),
)
GPUS: dict[str, Gpu] = {gpu.name: gpu for gpu in CARDS}


def find_gpu(text: str) -> Gpu:
    """The card that `--gpu` names, in any case; a count of one may follow.

    Raises:
        ConfigError: there is no such card, or it is not one card.
    """
    name, colon, count = text.strip().upper().partition(":")
    if "," in text:
        raise ConfigError(f"--gpu is '{text}': give one name; time, cost and memory are planned for one kind of card")
    if name.isdecimal() or (count.isdecimal() and int(count) > 1):
        one = name if name in GPUS else "A100-80GB"
        raise ConfigError(
            f"--gpu is '{text}': a run takes one GPU for now, since several need the distributed training that is not "
            f"there yet; give --gpu {one}"
        )
    if name not in GPUS or (colon and count != "1"):
        raise ConfigError(
            f"--gpu is '{text}': Modal has no such GPU{suggestion(name, GPUS)}; there are: {', '.join(GPUS)}"
        )
    return GPUS[name]


def hourly_price(gpu: Gpu, cores: float, gib: float, region: str | None = None) -> float | None:
    """Dollars for an hour of a container with `gpu`, `cores` physical cores and `gib` GiB; None: not known.

    Modal counts what was asked for or what was used, whichever is more. `region`: as given to Modal.
    """
    if gpu.dollars_per_hour is None:
        return None
    factor = 1.0 if region is None else NARROW_REGION if "-" in region else BROAD_REGION
    return factor * (gpu.dollars_per_hour + cores * CORE_DOLLARS + gib * GIB_DOLLARS)


def format_dollars(dollars: float) -> str:
    """`$0.07`, `$4.27`, `$13`, `$1,250`: rounded up, below $10 to a cent."""
    cents = max(1, math.ceil(dollars * 100 - 1e-6))
    return f"${cents / 100:.2f}" if cents < 1000 else f"${math.ceil(cents / 100):,}"
