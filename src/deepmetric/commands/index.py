"""``deepmetric index``: a search index over a data set."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deepmetric.commands.common import DATA_HELP, RUN_HELP, add_embedding_options, open_items
from deepmetric.device import best_device

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

HELP = "build a search index over a data set; an index of that name is replaced when the new one is complete"


def configure(parser: ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help=RUN_HELP)
    parser.add_argument("data", metavar="DATA", help=DATA_HELP)
    parser.add_argument(
        "-o", "--output", required=True, metavar="INDEX", help="a folder; it holds all that a search needs"
    )
    parser.add_argument(
        "--kind",
        choices=["flat", "hnsw", "ivf"],
        default="flat",
        help="flat compares everything and is exact; hnsw and ivf are approximate, for more than some 100,000 items",
    )
    parser.add_argument("--split", default="all", metavar="NAME", help="train, val, test or all")
    add_embedding_options(parser)


def run(args: Namespace) -> int:
    import shutil
    from pathlib import Path

    from deepmetric.models.load import load
    from deepmetric.search import Index, embed_shards, read_embeddings
    from deepmetric.search.embed import parts_folder
    from deepmetric.search.folder import refuse_other_contents

    output = Path(args.output)
    refuse_other_contents(output)  # before the work, not after it
    model = load(args.run, device=best_device())
    dataset = open_items(args.data, args.split, args.skip_unreadable)
    items = dataset.subset(
        dataset.is_gallery
    )  # queries of a data set that has them apart are not searched for
    parts = parts_folder(output)
    shards = embed_shards(
        model, items, parts, batch_size=args.batch_size, workers=args.workers, progress=True
    )
    rows = read_embeddings(shards)
    index = Index.build(rows.embeddings, rows.ids, rows.labels, model, args.kind)
    index.save(output)
    shutil.rmtree(parts)
    found = "exact" if args.kind == "flat" else f"finds {index.recall:.1%} of the true ten nearest"
    print(f"{output}: {len(index):,} items of {len(set(index.labels)):,} classes, {args.kind} ({found})")
    return 0
