"""Export a run as a folder that mlx-lm, transformers and LM Studio load: the command line of `core/export.py`."""

import sys
from collections.abc import Sequence

from core.export import DTYPES, export_run
from core.loading import add_model_arguments
from utils.cli import Parser, run_command


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the folder, say what is in it and how to use it."""
    parser = Parser("Export a run as the folder that mlx-lm, transformers and LM Studio load.")
    add_model_arguments(parser, model_folder=False)
    parser.add_argument("--out-path", required=True, help="folder to write; must not exist")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="float32", help="type of the weights (%(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export")
    flags = parser.parse_args(arguments)
    loaded = export_run(**vars(flags))
    count = f"{loaded.model_config.num_params():,} parameters"
    print(f"wrote {flags.out_path}: {count}, {flags.dtype}, {loaded.weights} weights of {loaded.source}")
    print(f'try: {sys.executable} -m mlx_lm generate --model {flags.out_path} --prompt "Once"')


if __name__ == "__main__":
    run_command(main)
