"""The report of a benchmark, from the files of its cells alone: tables, figures, tests, and the page around them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from filelock import FileLock

from deepmetric.atomic import write_text
from deepmetric.benchmark import compare, figure, tables
from deepmetric.benchmark.cells import Cell
from deepmetric.benchmark.findings import findings
from deepmetric.benchmark.scores import METRICS, Results, check_is_benchmark, read_results

FEWEST = 4  # models of a system from which on systems are compared pair by pair: with fewer hardly any pair can differ
WIDEST = 20  # systems up to which the page has a table of all pairs; significance.csv has them always


def write_report(out: Path, page: Path | None = None) -> Results:
    """Write OUT/report/ from whatever cells are finished; a second run on the same cells writes the same.

    report.md, tables.tex, results.csv, cells.csv, significance.csv, recipe_changes.csv, and a figure a data set
    (report-DATA.png and .svg). With ``page``, also that file, for a documentation, with its figures beside it.

    Returns:
        what the report is of.

    Raises:
        InputError: ``out`` is not the folder of a benchmark.
    """
    check_is_benchmark(out)  # before a lock is left in somebody's folder
    with FileLock(out / "report.lock"):
        results = read_results(out)
        folder = out / "report"
        _write_page(results, folder / "report.md")
        for name, text in _records(results).items():
            write_text(folder / name, text)
        if page is not None:
            _write_page(results, page)
    return results


def progress(results: Results) -> str:
    """How much is finished, and what is missing or has failed, a line a system."""
    lines = [f"{len(results.finished)} of {len(results.cells)} cells are finished."]
    missing: dict[tuple[str, str], list[Cell]] = {}
    for cell in results.missing:
        missing.setdefault((cell.data, cell.system), []).append(cell)
    for (data, system), cells in missing.items():
        whole = len(cells) == len(results.plan["seeds"]) * results.plan["folds"]
        some = "all" if whole else ", ".join(f"seed {cell.seed} fold {cell.fold}" for cell in cells)
        failed = [results.failed[cell] for cell in cells if cell in results.failed]
        reason = f"; {len(failed)} failed: {failed[0].strip().splitlines()[-1]}" if failed else ""
        lines.append(f"- missing of {system} on {data}: {some}{reason}")
    return "\n".join(lines)


def _write_page(results: Results, page: Path) -> None:
    page.parent.mkdir(parents=True, exist_ok=True)
    parts = [_opening(results), *(_of_data(results, name, page) for name in results.data)]
    parts += [_changes(results.plan), _how_to_read(results.plan)]
    write_text(page, "\n\n".join(part.strip() for part in parts if part) + "\n")


def _opening(results: Results) -> str:
    plan = results.plan
    seeds = len(plan["seeds"])
    description = f"{plan['description'].strip()}\n\n" if plan["description"] else ""
    if plan["folds"] > 1:
        protocol = f"""Protocol of "A Metric Learning Reality Check" (Musgrave et al., ECCV 2020): the training classes
are cut into {plan["folds"]} class-disjoint parts; for each, a model is trained on the others, the checkpoint with the
best MAP@R on the part is kept, and is tested on classes that no fold contains."""
    else:
        protocol = "Trained on all training classes, the last model is tested on classes that it never saw."
    text = f"""# {len(plan["systems"])} systems under one protocol

<!-- Written by `deepmetric benchmark --report`; change the benchmark, not this page. -->

{description}{protocol} {_many(seeds, "seed")}, so
{_many(plan["folds"] * seeds, "model")} a system and data set. Trunk, batches, augmentation and number of steps are the
same for all systems unless listed under *Changes to the recipes* or set in a system's own recipe."""
    return text if not results.missing else f"{text}\n\n**Not complete.** {progress(results)}"


def _of_data(results: Results, name: str, page: Path) -> str:
    scores, folds = results.data[name], results.plan["folds"]
    separated, concatenated = compare.separated_rows(scores), compare.concatenated_rows(scores)
    enough = folds * len(results.plan["seeds"]) >= FEWEST
    single_pairs = compare.separated_pairs(scores, folds) if enough else []
    for suffix in (".png", ".svg"):
        figure.draw(page.with_name(f"{page.stem}-{name}{suffix}"), name, separated, concatenated)
    assert scores.test is not None
    called = scores.test.name  # a partial copy of a benchmark is called so
    classes = len(set(scores.query_classes.tolist()))
    parts = [
        f"## {name}",
        f"{f'{called}: ' if called else ''}{len(scores.test):,} test items, {classes:,} test classes. "
        f"{findings(separated, single_pairs, concatenated)}",
        f"![MAP@R by system on {name}]({page.stem}-{name}.svg)",
        f"### {name}: each model alone",
        f"Percent; mean over models ± half of the 95% t interval over them.\n\n"
        f"{tables.score_table(separated, 'models')}",
    ]
    if concatenated:
        parts += [
            f"### {name}: the embeddings of the {folds} folds side by side",
            "Percent; mean over seeds ± half of the 95% t interval over them (none for one seed), and the 95% interval "
            f"over resampled test classes.\n\n{tables.score_table(concatenated, 'seeds')}",
        ]
    if single_pairs and len(separated) <= WIDEST:
        parts += [
            f"### {name}: which systems differ",
            f"Each model alone:\n\n{tables.pair_table(single_pairs)}",
        ]
        if joint_pairs := compare.concatenated_pairs(scores):
            parts.append(f"Side by side:\n\n{tables.pair_table(joint_pairs)}")
    return "\n\n".join(parts)


def _changes(plan: dict[str, Any]) -> str:
    """What the recipes here have otherwise than as shipped; first what most systems share."""
    parts = [
        "## Changes to the recipes",
        "Setting: as shipped → here. Shipped recipes: `deepmetric recipes`.",
    ]
    for data, systems in plan["changes"].items():
        written = {system: [_change(*change) for change in changes] for system, changes in systems.items()}
        every = dict.fromkeys(one for changes in written.values() for one in changes)
        common = [one for one in every if 2 * sum(one in some for some in written.values()) > len(written)]
        lines = [f"Most systems on {data}: {', '.join(common) or 'as shipped'}. Beside that:", ""]
        for system, changes in written.items():
            own = [one for one in changes if one not in common]
            own += [f"not {one}" for one in common if one not in changes]
            recipes = ", ".join(f"`{name}`" for name in plan["recipes"][system])
            lines.append(f"- {system} ({recipes}): {', '.join(own) or 'nothing'}")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _change(key: str, before: Any, after: Any) -> str:
    return f"`{key}` {before} → {after}"


def _how_to_read(plan: dict[str, Any]) -> str:
    folds, seeds = plan["folds"], len(plan["seeds"])
    drawn = compare.resamples(len(plan["systems"]))
    if folds * seeds < FEWEST:
        return f"""## How to read the intervals

The interval is Student's, over {_many(seeds, "model")}. It holds the chance of seeds, not that of the classes. So few
models say nothing of single pairs of systems, so none are tested."""
    where = (
        "A star marks one that is."
        if len(plan["systems"]) <= WIDEST
        else "All pairs are in the report's `significance.csv`."
    )
    if folds == 1:
        return f"""## How to read the intervals and tests

- The interval is Student's, over {_many(seeds, "model")}. It holds the chance of seeds, not that of the classes.
- Two systems are compared seed by seed (the same initial weights and batches where the model is the same) by a paired
  t-test, p adjusted by Holm over all pairs. With few seeds it finds only large differences.
- A difference that is not found is not shown to be none. {where}"""
    return f"""## How to read the intervals and tests

- *Each model alone*: the interval is Student's, over the {folds * seeds} models. It holds the chance of seeds and of
  which classes were trained on, not that of the test classes. Models of different folds share training classes, so they
  are not independent and the interval is somewhat too narrow. The paper averages over folds first and takes the
  interval over ten repetitions.
- *Side by side*: the interval over seeds says how far another training would move the figure; with few seeds it is wide
  because t is. The interval over test classes says how far other classes would. Both chances are there at once.
- *Tests, each model alone*: two systems are compared model by model (same seed and fold, so the same initial weights
  and batches where the model is the same) by a t-test with the variance corrected for the folds' shared classes
  (Nadeau and Bengio 2003), p adjusted by Holm over all pairs of the table. The correction is a rule of thumb, made for
  scores on the folds themselves; it errs towards finding no difference.
- *Tests, side by side*: MAP@R on the same resampled test classes ({drawn:,} resamples, seeds averaged), p
  adjusted by Holm. It knows nothing of the chance in training: a difference that it finds is one between these models.
- A difference that is not found is not shown to be none. {where}
- Side by side is an ensemble of {folds} models: compare it with ensembles alone."""


def _records(results: Results) -> dict[str, str]:
    """File name -> text of the tables for other programs."""
    scores, pairs, latex = [], [], []
    for name, one in results.data.items():
        separated, concatenated = compare.separated_rows(one), compare.concatenated_rows(one)
        scores += tables.score_records(name, "separated", separated)
        scores += tables.score_records(name, "concatenated", concatenated)
        pairs += tables.pair_records(name, "separated", compare.separated_pairs(one, results.plan["folds"]))
        pairs += tables.pair_records(name, "concatenated", compare.concatenated_pairs(one))
        called = (one.test and one.test.name) or name
        caption = f"{called}, each model alone, percent, mean and 95% t interval over models."
        latex.append(tables.latex(separated, caption))
        if concatenated:
            caption = f"{called}, embeddings of all folds concatenated, percent, mean and 95% t interval over seeds."
            latex.append(tables.latex(concatenated, caption))
    changed = [
        {"data": data, "system": system, "key": key, "shipped": str(before), "here": str(after)}
        for data, systems in results.plan["changes"].items()
        for system, changes in systems.items()
        for key, before, after in changes
    ]
    return {
        "results.csv": tables.as_csv(scores),
        "cells.csv": tables.as_csv([_cell_record(result) for result in results.finished.values()]),
        "significance.csv": tables.as_csv(pairs),
        "recipe_changes.csv": tables.as_csv(changed),
        "tables.tex": "\n".join(latex),
    }


def _cell_record(result: dict[str, Any]) -> dict[str, Any]:
    best = result["validation"]
    return {
        **result["cell"],
        **{metric: result["test"][metric] for metric in METRICS},
        **({"validation map@r": best["map@r"], "best step": best["step"]} if best else {}),
        "steps": result["steps"],
        **{f"seconds {what}": seconds for what, seconds in result["seconds"].items()},
    }


def _many(number: int, one: str) -> str:
    return f"{number} {one}{'' if number == 1 else 's'}"
