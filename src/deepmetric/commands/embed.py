"""``deepmetric embed``: the embeddings of a data set as a parquet file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deepmetric.commands.common import DATA_HELP, RUN_HELP, add_embedding_options, open_items
from deepmetric.device import best_device

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

HELP = "write the embeddings of a data set to a file; run again after a stop, it goes on where it was"


def configure(parser: ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help=RUN_HELP)
    parser.add_argument("data", metavar="DATA", help=DATA_HELP)
    parser.add_argument(
        "-o",
        "--output",
        required=True,
        metavar="FILE.parquet",
        help="written when all is done, with the columns id, label, split, embedding",
    )
    parser.add_argument("--split", default="all", metavar="NAME", help="train, val, test or all")
    parser.add_argument(
        "--shard_size",
        "--shard-size",
        type=int,
        default=1024,
        metavar="N",
        help="items that a stop costs at most",
    )
    add_embedding_options(parser)


def run(args: Namespace) -> int:
    from pathlib import Path

    from deepmetric.models.load import load
    from deepmetric.search import embed_to_file
    from deepmetric.search.embed import check_target

    check_target(Path(args.output))  # before the work, not after it
    model = load(args.run, device=best_device())
    items = open_items(args.data, args.split, args.skip_unreadable)
    embed_to_file(
        model,
        items,
        args.output,
        shard_size=args.shard_size,
        batch_size=args.batch_size,
        workers=args.workers,
        progress=True,
    )
    print(f"{args.output}: {len(items):,} embeddings of {model.embedding_dim} numbers")
    return 0
