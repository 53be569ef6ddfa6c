"""This end of a remote run, before anything is contacted: options, config, data, plan.

`modal run modal/modal_deploy.py ...` imports that file first and connects then, so `prepare` is called while it is
imported: every mistake that can be found here is told before an image is built or a GPU is paid. What happens with the
connection stands in `core/remote_journey.py`. To add an option, add it to `make_parser` and say in `Order`, or in
`with_options` of `modal/modal_deploy.py`, what it changes.
"""

import argparse
import functools
import hashlib
import importlib.util
import json
import math
import re
import tomllib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from core.remote import ATTEMPT_HOURS, CORES, GIB, MOST_RETRIES
from core.remote_connection import check_connection
from utils.cli import Parser, warn
from utils.errors import ConfigError, DataError
from utils.gpus import Gpu, find_gpu
from utils.memory import format_bytes

DEFAULT_GPU = "A100-80GB"
CUDAS, DEFAULT_CUDA = ("12", "13"), "12"
PULLS = ("best", "last", "all", "none")
PYTHON_VERSION, UV_VERSION = "3.12", "0.13.9"
PACKAGES = ("core", "data", "distributed", "models", "optimizers", "utils")
"""Folders of this project that a container needs."""
IMPORTING_KEYS = ("type", "mask", "score")
"""Keys of a config whose value may be an import path; the last two are of `models/attention/mods.py`."""
LOCK_THERE = "/pippin-lock.txt"
REPOSITORY = Path(__file__).resolve().parents[1]
MOST_CORES, MOST_GIB = 128, 2048
SHARE_LEFT_FOR_SAVING, MOST_LEFT_FOR_SAVING = 0.1, 600.0


class Launch(NamedTuple):
    """What a person asked for, checked."""

    options: argparse.Namespace
    detached: bool
    gpu: Gpu
    config: Any
    """core.config.Config; None for --smoke."""
    dataset: Any
    total_steps: int


def own_arguments(command_line: Sequence[str], script: str) -> tuple[list[str], bool] | None:
    """What `modal run [options] script ...` passes to `script`, and whether it detaches; None: another command runs.

    `command_line`: sys.argv, of which the first is the program.
    """
    wanted = Path(script).resolve()
    for place, word in enumerate(command_line):
        before = command_line[1:place]
        if "run" in before and Path(word.split("::")[0]).resolve() == wanted:
            detaches = any(flag == "--detach" or re.fullmatch("-[iq]*d[diq]*", flag) for flag in before)
            return list(command_line[place + 1 :]), detaches
    return None


def make_parser() -> Parser:
    """The options behind `modal run modal/modal_deploy.py`."""
    parser = Parser("Train on one of Modal's GPUs as a YAML file says.", prog="modal run modal/modal_deploy.py")
    add = parser.add_argument
    add("--config", type=Path, metavar="YAML", help="the config, as for core.training")
    add("--gpu", default=DEFAULT_GPU, metavar="NAME", help=f"Modal's name of the card (default: {DEFAULT_GPU})")
    add("--resume", action="store_true", help="go on with a run from its newest checkpoint, here or there")
    add("--overwrite", action="store_true", help="delete an existing run of this name there first, and here")
    add("--pull", choices=PULLS, default="last", help="checkpoints to bring home at the end (default: last)")
    add("--smoke", action="store_true", help="only test whether MLX works there; needs no config")
    add("--max-hours", type=positive, metavar="H", help="stop, saved, after so many hours of all attempts together")
    add("--timeout", type=positive, default=float(ATTEMPT_HOURS), metavar="H", help="hours of one attempt, 24 at most")
    add(
        "--retries",
        type=int,
        choices=range(MOST_RETRIES + 1),
        default=MOST_RETRIES,
        metavar="N",
        help="attempts after the first, 10 at most",
    )
    add("--cpu", type=positive, default=CORES, metavar="CORES", help=f"physical cores asked for (default: {CORES:g})")
    add(
        "--memory",
        type=positive,
        metavar="GIB",
        help="memory asked for (default: twice a checkpoint and more, 16 at least)",
    )
    add("--region", help="where to run, for example us or eu-west; costs more")
    add("--cuda", choices=CUDAS, default=DEFAULT_CUDA, help=f"CUDA version of MLX's wheel (default: {DEFAULT_CUDA})")
    add("--secret", action="append", default=[], metavar="NAME", help="a secret of yours on Modal; may be repeated")
    add("--sync-seconds", type=positive, default=30.0, metavar="S", help="how often the run is written to the volume")
    add("overrides", nargs="*", metavar="section.key=value", help="values that win over the file")
    return parser


def positive(text: str) -> float:
    """The `type` of an argument that is a number above 0."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise ValueError(text)
    return value


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options. A mistake ends with one line and exit code 2."""
    parser = make_parser()
    options = parser.parse_intermixed_args(arguments)
    if options.smoke and (options.config or options.overrides):
        parser.error("--smoke takes no config: it tests the machine")
    if not options.smoke and options.config is None:
        parser.error("which config? for example: --config configs/models/model-config-100m.yaml, or --smoke")
    if options.resume and options.overwrite:
        parser.error("--resume and --overwrite exclude each other")
    for name, most in (("cpu", MOST_CORES), ("memory", MOST_GIB)):
        if (getattr(options, name) or 0) > most:
            parser.error(f"--{name} is {getattr(options, name):g}; {most} is the most that makes sense")
    if options.timeout > ATTEMPT_HOURS:
        parser.error(f"--timeout is {options.timeout:g} hours; Modal allows an attempt {ATTEMPT_HOURS:g} at most")
    return options


def prepare(arguments: Sequence[str], *, detached: bool, say: Callable[[str], None] = print) -> Launch:
    """Everything that needs no connection, and a look whether there is one; the plan is printed.

    Raises:
        UserError: what a person can fix, before anything is paid for.
    """
    options = parse(arguments)
    gpu = find_gpu(options.gpu)
    if options.smoke:
        check_connection()
        return Launch(options, detached, gpu, None, None, 0)
    # Not at the top: a container imports this file's neighbours before it is known whether MLX works there.
    from core.config import load_with_notes
    from core.plan import free_bytes
    from core.progress import show_rows
    from core.remote_plan import check_before_data, plan_remote, rows
    from core.run import run_folder

    loaded = load_with_notes(options.config, options.overrides)
    for note in loaded.notes:
        say(f"note: {note}")
    config = loaded.config
    refuse_several_ranks(config)
    refuse_run_here(config, options)
    own_modules(config)
    if problems := config.data.find_problems():
        raise DataError(*problems)
    check_before_data(config, gpu)
    check_connection()
    dataset, step = prepare_data(config, options, say)
    planned = functools.partial(
        plan_remote,
        config,
        dataset,
        gpu,
        max_hours=options.max_hours,
        first_step=step,
        region=options.region,
        cores=options.cpu,
        attempt_hours=options.timeout,
        most_attempts=options.retries + 1,
    )
    if options.memory is None:
        options.memory = container_gib(planned(gib=GIB).plan.checkpoint_bytes)
    plan = planned(gib=options.memory)
    say(f"plan of {run_folder(config)} on Modal\n{show_rows(rows(plan))}")
    if options.pull != "none" and (free := free_bytes(run_folder(config))) < plan.plan.checkpoint_bytes:
        needed = format_bytes(plan.plan.checkpoint_bytes)
        warn(f"bringing a checkpoint home takes {needed}, {format_bytes(free)} are free: make room, or --pull none")
    return Launch(options, detached, gpu, config, dataset, plan.plan.total_steps)


def container_gib(checkpoint_bytes: int) -> float:
    """Memory to ask for: two checkpoints on their way to the disk, and what Python and CUDA take."""
    return max(GIB, math.ceil(2 * checkpoint_bytes / 2**30 + GIB / 2))


def refuse_several_ranks(config: Any) -> None:
    """Raise ConfigError for a config that shares the work among processes."""
    if config.distributed.type != "single":
        raise ConfigError(
            f"distributed.type is {config.distributed.type}: a run on Modal takes one GPU and one process for now; "
            "add distributed.type=single"
        )


def refuse_run_here(config: Any, options: argparse.Namespace) -> None:
    """Raise UserError as core.training would for the run folder of this machine, which the run comes back to."""
    from core.run import Run, acquire_lock, open_run, run_folder

    folder = run_folder(config)
    if options.resume and not (folder / "config.yaml").is_file():
        Run(folder, acquire_lock(folder)).close()  # Perhaps it is there; whether it can be written here is seen now.
    else:
        open_run(config, resume=options.resume, overwrite=options.overwrite).close()


def prepare_data(config: Any, options: argparse.Namespace, say: Callable[[str], None]) -> tuple[Any, int]:
    """The dataset, prepared on this machine, and the newest step here.

    A run that goes on keeps its tokenizer and must get its corpus; one that starts from weights must fit them.
    Raises DataError, CheckpointError.
    """
    from core.assembly import complete_model_config, refuse_other_data
    from core.checkpoint import newest_valid
    from core.initial_weights import initial_folder, initial_tokenizer, initialise_from
    from core.run import run_folder
    from data.tokenizer import Tokenizer

    folder = run_folder(config)
    kept = folder / "tokenizer"
    newest = newest_valid(folder / "checkpoints", warn) if options.resume else None
    tokenizer = None
    if options.resume and (kept / "tokenizer.json").is_file():
        tokenizer = Tokenizer.load(kept)
    elif config.init_from is not None:
        initial_folder(Path(config.init_from))  # Before the corpus is read.
        tokenizer = initial_tokenizer(Path(config.init_from), say)
    dataset = config.data.build(config.seed, tokenizer=tokenizer, report=say)
    if newest is not None:
        state = json.loads((newest / "state.json").read_text(encoding="utf-8"))
        refuse_other_data(dataset, state)
        return dataset, state["step"]
    if config.init_from is not None and not options.resume:
        model_config = complete_model_config(config, dataset.tokenizer.vocab_size)
        # Arrays are lazy: names and shapes are compared, nothing is loaded.
        initialise_from(initial_folder(Path(config.init_from)), model_config.build(config.seed), model_config)
    return dataset, 0


def image_packages(cuda: str) -> list[str]:
    """What the image installs, each at the version that the lock file names: what the suite passed with."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    locked = dict(line.split("==") for line in lock_lines())
    names = [requirement.split(">=")[0] for requirement in project["dependencies"]]
    return [
        f"{name}[cuda{cuda}]=={locked[name]}" if name == "mlx" else f"{name}=={locked[spelt(name, locked)]}"
        for name in names
    ]


def spelt(name: str, locked: dict[str, str]) -> str:
    """`name` as the lock file writes it."""
    return next(each for each in locked if each.lower() == name.lower())


def lock_lines() -> list[str]:
    """`name==version` of the lock file."""
    lines = (REPOSITORY / "requirements-lock.txt").read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if "==" in line and not line.startswith("#")]


def image_key(cuda: str) -> str:
    """12 digits that identify what the image is made of."""
    parts = [PYTHON_VERSION, UV_VERSION, *image_packages(cuda), *lock_lines()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def own_modules(config: Any) -> list[str]:
    """Modules of a person's own that the config names, as `type: module:Class` or as a mask or score of attention.

    Raises ConfigError for one that is not found.
    """
    from core.config import dump

    names = sorted({name.split(":")[0].split(".")[0] for name in import_paths(dump(config)) if ":" in name})
    own = [name for name in names if name not in PACKAGES]
    for name in own:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(f"the config names something in '{name}', which cannot be imported here")
    return own


def import_paths(values: Any) -> Iterator[str]:
    """Whatever stands in nested values where `module:name` may."""
    if isinstance(values, dict):
        yield from (value for key in IMPORTING_KEYS if isinstance(value := values.get(key), str))
        values = list(values.values())
    for value in values if isinstance(values, list) else ():
        yield from import_paths(value)


def attempt_seconds(timeout_seconds: float) -> float:
    """How long an attempt trains of the time Modal gives it: the rest is for saving."""
    return timeout_seconds - min(MOST_LEFT_FOR_SAVING, SHARE_LEFT_FOR_SAVING * timeout_seconds)


def function_timeout(options: argparse.Namespace) -> int:
    """Seconds after which Modal itself ends an attempt: a second lock on the hours that may be spent."""
    seconds = options.timeout * 3600
    if options.max_hours is not None:
        seconds = min(seconds, options.max_hours * 3600 + MOST_LEFT_FOR_SAVING)
    return max(60, round(seconds))
