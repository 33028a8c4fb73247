"""``deepmetric evaluate``: retrieval metrics of a model on a data set."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from deepmetric.commands.common import (
    DATA_HELP,
    RUN_HELP,
    add_embedding_options,
    one_split,
    open_items,
    without_unreadable,
)
from deepmetric.commands.published import published_table
from deepmetric.device import best_device
from deepmetric.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from jsonargparse import ArgumentParser, Namespace

    from deepmetric.data import Dataset
    from deepmetric.evaluation import RetrievalMetrics
    from deepmetric.training.recipe import Published
    from deepmetric.training.run import Run

HELP = "measure retrieval on classes that the model never saw"


def configure(parser: ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help=RUN_HELP)
    parser.add_argument(
        "--data",
        metavar="DATA",
        help=f"{DATA_HELP}; default: the data of the run. Where it has the items of the run's data, it is split as the "
        "run split them",
    )
    parser.add_argument("--split", default="test", metavar="NAME", help="train, val, test or all")
    parser.add_argument(
        "--ks",
        type=int,
        nargs="+",
        metavar="K",
        help="the K of Recall@K; default: those published for the benchmark, else 1 2 4 8",
    )
    parser.add_argument("--clustering", action="store_true", help="also NMI and AMI of a k-means clustering")
    parser.add_argument(
        "--bootstrap",
        type=int,
        default=1000,
        metavar="N",
        help="resamples of classes for the 95% intervals; 0: none",
    )
    parser.add_argument(
        "--untrained", action="store_true", help="also the model as it was before training, side by side"
    )
    parser.add_argument(
        "--post",
        nargs="+",
        default=[],
        metavar="STEPS",
        help="also with post-processing, each side by side: views (mirrored; 'views(crops=5)'), whitening, "
        "database_augmentation, query_expansion, k_reciprocal, with arguments as in 'query_expansion(k=3, alpha=3)', "
        "joined as in 'whitening + query_expansion'",
    )
    parser.add_argument(
        "--per_query",
        "--per-query",
        metavar="FILE.parquet",
        help="where to write the metrics of each query; default for a run: RUN/evaluation/[DATA-]SPLIT.parquet",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_embedding_options(parser)


def run(args: Namespace) -> int:
    from pathlib import Path

    from deepmetric.evaluation import evaluate_embeddings, evaluate_model
    from deepmetric.evaluation.evaluate import embed_searched
    from deepmetric.evaluation.postprocessing import parse_chain
    from deepmetric.models.load import load

    run = _run_of(Path(args.run))
    if args.untrained and run is None:
        raise InputError(f"--untrained needs the recipe of a run, and {args.run} is not a run's folder.")
    chains = {text: parse_chain(text) for text in args.post}
    model = load(args.run)
    own = _own_data(run, needed=args.data is None)
    items = _items(args, own)
    classes = _class_report(items, own, run)
    options = {
        "ks": args.ks,
        "clustering": args.clustering,
        "bootstrap": args.bootstrap,
    }
    embedding = {
        "batch_size": args.batch_size,
        "workers": args.workers,
        "device": best_device(),
        "progress": True,
    }
    plain = embed_searched(model, items, **embedding)
    scores = evaluate_embeddings(*plain, **options)
    beside = {}
    if args.untrained:
        assert run is not None
        beside["untrained"] = evaluate_model(run.untrained_model(), items, **embedding, **options)
    for text, chain in chains.items():
        if "whitening" in chain.steps:
            chain = chain._replace(training=_training_embeddings(args, chain.model(model), own, embedding))
        # Only other views of the images need other embeddings.
        views = "views" in chain.steps
        embedded = embed_searched(chain.model(model), items, **embedding) if views else plain
        beside[text] = evaluate_embeddings(*embedded, chain=chain, **options)
    # A name is a benchmark's only where the whole of it is there, so part of one is compared with nothing.
    papers = run.recipe.published if run is not None and args.split == "test" else []
    published = [row for row in papers if row.data == items.name]
    per_query = _per_query_file(args, run)
    if per_query is not None:
        per_query = _save_per_query(scores, items, per_query)
    if args.json:
        # ASCII, because names of files and folders need not be UTF-8
        print(json.dumps(_as_json(args, items, scores, beside, classes, published, per_query)))
    else:
        if items.name is not None:
            print(f"{items.name}, {args.split}")
        print(_table(scores, beside.get("untrained")))
        if args.post:
            print(_post_table({"none": scores, **{text: beside[text] for text in args.post}}))
        print(_counts(scores, items))
        print(classes["text"])
        if published:
            print(published_table(scores, published))
        if per_query is not None:
            print(f"each query's metrics: {per_query}")
    return 2 if args.per_query is not None and per_query is None else 0


def _training_embeddings(
    args: Namespace, model: Any, own: Dataset | None, embedding: dict[str, Any]
) -> np.ndarray:
    """What whitening learns from: never the items that are tested."""
    from deepmetric.evaluation import embed_dataset

    if own is None or "train" not in own.splits:
        raise InputError(
            f"whitening learns from the items that the model was trained on, and {args.run} does not know them. "
            "Name a run whose data is still there."
        )
    return embed_dataset(model, own.split("train"), **embedding)


def _run_of(path: Path) -> Run | None:
    from deepmetric.training.run import load_run

    return load_run(path) if (path / "recipe.yaml").is_file() else None


def _own_data(run: Run | None, needed: bool) -> Dataset | None:
    """The data that the run was made with; None when that is not known, unless it is needed."""
    if run is None:
        return None
    try:
        return run.dataset()
    except (InputError, OSError):  # moved or gone since the training
        if needed:
            raise
        return None


def _items(args: Namespace, own: Dataset | None) -> Dataset:
    """The items to evaluate on."""
    if args.data is None:
        if own is None:
            raise InputError(
                f"{args.run} is a model and not a run, so it has no data of its own: give --data."
            )
        items = one_split(own, args.split)
        return without_unreadable(items) if args.skip_unreadable else items
    items = open_items(args.data, "all", args.skip_unreadable)
    if own is not None and items.ids == own.ids:
        # The run may have dealt classes to splits otherwise than is the default: never test what it trained
        # on.
        items.splits = own.splits
    return one_split(items, args.split)


def _class_report(items: Dataset, own: Dataset | None, run: Run | None) -> dict[str, Any]:
    """Whether the classes that are evaluated were trained on, by name, and whether the run's data are as they were."""
    record = run.data_record if run is not None else None
    if record is not None:
        trained = set(record["trained_classes"])
    elif own is not None:
        trained = set(own.subset(own.splits == "train").with_classes_renumbered().classes)
    else:
        text = "whether the model was trained on these classes is not known"
        return {"shared": None, "text": text, "changed": None}
    here = set(items.with_classes_renumbered().classes)
    shared = sorted(here & trained)
    if not shared:
        text = (
            f"none of these {len(here):,} classes is among the {len(trained):,} that the model was trained on"
        )
    else:
        some = ", ".join(shared[:5]) + (", ..." if len(shared) > 5 else "")
        text = f"WARNING: {len(shared):,} of these {len(here):,} classes were trained on: {some}"
    changed = run.changed_data(own) if run is not None and own is not None else None
    if changed:
        text += f"\nWARNING: {changed}"
    return {"shared": shared, "text": text, "changed": changed}


def _per_query_file(args: Namespace, run: Run | None) -> Path | None:
    from pathlib import Path

    if args.per_query is not None:
        return Path(args.per_query)
    if run is None:
        return None
    data = "" if args.data is None else f"{Path(args.data).resolve().stem}-"
    return run.folder / "evaluation" / f"{data}{args.split}.parquet"


def _save_per_query(scores: RetrievalMetrics, items: Dataset, file: Path) -> Path | None:
    """Where they are; None where they cannot be written, which is no reason to lose the figures."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from deepmetric.atomic import write_atomically

    queries = [i for i in range(len(items)) if items.is_query[i]]
    try:
        table = pa.table(
            {
                "id": [items.ids[i] for i in queries],
                "label": [items.classes[items.labels[i]] for i in queries],
                **scores.per_query,
            }
        )
        file.parent.mkdir(parents=True, exist_ok=True)
        # absolute, because pyarrow takes a relative name with a colon for a URI
        write_atomically(file.absolute(), lambda path: pq.write_table(table, path))
    except (OSError, UnicodeEncodeError) as error:  # the latter of file names that are not UTF-8
        print(f"the metrics of each query are not kept: {error}", file=sys.stderr)
        return None
    return file


def _as_json(
    args: Namespace,
    items: Dataset,
    scores: RetrievalMetrics,
    beside: dict[str, RetrievalMetrics],
    classes: dict[str, Any],
    published: list[Published],
    per_query: Path | None,
) -> dict[str, Any]:
    def plain(metrics: RetrievalMetrics) -> dict[str, Any]:
        intervals = {name: [_number(end) for end in ends] for name, ends in metrics.intervals.items()}
        return {**{name: _number(value) for name, value in metrics.items()}, "intervals": intervals}

    return {
        "run": args.run,
        "data": args.data,
        "dataset": items.name,
        "split": args.split,
        **plain(scores),
        "classes_also_trained_on": classes["shared"],
        "data_changed": classes["changed"],
        "published": [asdict(row) for row in published],
        "per_query": None if per_query is None else str(per_query),
        **({"untrained": plain(beside["untrained"])} if "untrained" in beside else {}),
        **({"post": {name: plain(beside[name]) for name in args.post}} if args.post else {}),
    }


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value  # JSON has no NaN


def _table(scores: RetrievalMetrics, untrained: RetrievalMetrics | None) -> str:
    """A metric a line, with its interval."""
    names = [*scores.per_query, *(name for name in ("nmi", "ami") if name in scores)]
    header = f"{'metric':<12}  {'value':>7}  {'95% interval':<15}"
    if untrained is not None:
        header += f"  {'untrained':>9}  {'95% interval':<15}"
    lines = [header.rstrip()]
    for name in names:
        line = f"{name:<12}  {scores[name]:>7.4f}  {_interval(scores, name):<15}"
        if untrained is not None:
            line += f"  {untrained[name]:>9.4f}  {_interval(untrained, name):<15}"
        lines.append(line.rstrip())
    return "\n".join(lines)


def _post_table(rows: dict[str, RetrievalMetrics]) -> str:
    """A way of post-processing a line: its metrics, and the interval of MAP@R."""
    names = list(next(iter(rows.values())).per_query)
    width = max(len("post-processing"), *map(len, rows))
    lines = ["  ".join([f"{'post-processing':<{width}}", *names, "95% interval of map@r"])]
    for title, metrics in rows.items():
        cells = [f"{metrics[name]:>{len(name)}.4f}" for name in names]
        lines.append("  ".join([f"{title:<{width}}", *cells, _interval(metrics, "map@r")]).rstrip())
    return "\n".join(lines)


def _interval(metrics: RetrievalMetrics, name: str) -> str:
    ends = metrics.intervals.get(name)
    return "" if ends is None else f"{ends[0]:.4f} - {ends[1]:.4f}"


def _counts(scores: RetrievalMetrics, items: Dataset) -> str:
    one_set = bool(items.is_query.all() and items.is_gallery.all())
    gallery = "searched among themselves" if one_set else f"searched in {scores['gallery']:,} items"
    text = f"{scores['queries']:,} queries of {scores['classes']:,} classes, {gallery}"
    if scores["queries_without_positive"]:
        text += (
            f"; {scores['queries_without_positive']:,} have nothing of their class to be found and are left out of "
            "the means"
        )
    return text
