"""The commands of fleets: ``python -m training fleet-headroom`` and its like; ``cli`` registers them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from inferencegym_jax.cli.output import print_json
from inferencegym_jax.models import check_whole
from training.cache import use_cache
from training.options import RUNS, AsJson, Settings, configured, console, fail, task_of


def fleet_headroom(
    task: Annotated[
        str, typer.Option("--task", "-t", help="fleet-elastic, fleet-elastic-m-large or fleet-elastic-m-mid.")
    ] = "fleet-elastic",
    days: Annotated[int, typer.Option(help="Held-out days at x12: seeds 0, 1, 2, ...")] = 24,
    windows: Annotated[int, typer.Option(help="Windows of two hours at x1, of days apart; 0: x12 alone.")] = 36,
    clairvoyant: Annotated[bool, typer.Option(help="Search for sizes that know all that comes.")] = True,
    policies: Annotated[
        list[Path], typer.Option("--policy", "-p", help="File of a learned policy; may be repeated.")
    ] = [],  # noqa: B006
    add: Annotated[
        Path | None, typer.Option(help="JSON of a run before: only play the policies, and add their rows to it.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Stem of .json and .md; default: runs/headroom-<task>.")
    ] = None,
) -> None:
    """What control of a fleet is worth: mean GPUs at 99 % of requests on time, rule by rule, and the named failures;
    every row at x12 with a start of 30 s and at x1 with 100 s.

    Example: python -m training fleet-headroom --task fleet-elastic-m-large
    """
    from training import fleet_headroom as worth
    from training import fleet_tables

    use_cache()

    def report(text: str) -> None:
        console.print(text, highlight=False)

    try:
        options = {"clairvoyant": clairvoyant, "learned": policies, "report": report}
        if add is not None:
            results = worth.with_learned(fleet_tables.read(add), policies, report)
            out = out or add.with_suffix("")
        elif windows:
            results = worth.measure_both(task, days, windows, **options)
        else:
            results = worth.measure(task, days, **options)
        paths = fleet_tables.write(results, out or RUNS / f"headroom-{task}")
    except (ValueError, OSError) as error:
        raise fail(error) from error
    typer.echo(fleet_tables.markdown(results))
    for path in paths:
        console.print(f"wrote {path}", highlight=False)


def fleet_defaults(
    task: Annotated[str, typer.Option("--task", "-t", help="A fleet task, fleet-anywhere too.")] = "fleet-anywhere",
    episodes: Annotated[int, typer.Option(help="Held-out days; of fleet-anywhere conditions.")] = 96,
    policies: Annotated[
        list[str],
        typer.Option("--policy", "-p", help="A name or a policy file; may be repeated. Default: reactive, trained."),
    ] = [],  # noqa: B006
    as_json: AsJson = False,
) -> None:
    """The shipped rule and the learned policy beside rules at their published defaults: on time, GPU time.

    Example: python -m training fleet-defaults --task fleet-elastic --episodes 24
    """
    from training import fleet_evaluation

    use_cache()
    try:
        comparison = fleet_evaluation.against_defaults(task_of(task), policies or fleet_evaluation.OURS, episodes)
    except (ValueError, OSError) as error:
        raise fail(error) from error
    typer.echo(json.dumps(comparison) if as_json else fleet_evaluation.defaults_markdown(comparison))


def fleet_compare(
    policies: Annotated[
        list[Path],
        typer.Option("--policy", "-p", help="A policy file or a run's folder; several are seeds of one method."),
    ],
    task: Annotated[str, typer.Option("--task", "-t", help="A fleet task, fleet-anywhere too.")] = "fleet-elastic",
    days: Annotated[int, typer.Option(help="Held-out days at x12; of fleet-anywhere conditions.")] = 24,
    windows: Annotated[int, typer.Option(help="Windows of two hours at x1, of days apart; 0: x12 alone.")] = 24,
    first: Annotated[int, typer.Option(help="First seed; from 2147483648 on they are training days.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Learned policies beside the rule that they correct, paired by day: mean GPUs at 99 % of requests on time; on
    fleet-anywhere prices over those of the shipped rule.

    Example: python -m training fleet-compare --task fleet-elastic --policy data/policies/fleet-elastic.npz
    """
    from training import fleet_learned

    use_cache()
    try:
        comparison = fleet_learned.comparison(task_of(task), policies, days, windows, first)
    except (ValueError, OSError) as error:
        raise fail(error) from error
    if as_json:
        print_json(comparison)
    else:
        typer.echo(fleet_learned.markdown(comparison))


def fleet_train(
    tasks: Annotated[list[str], typer.Option("--task", "-t", help="A fleet task; may be repeated.")],
    seeds: Annotated[int, typer.Option(help="Training seeds of each: 0, 1, 2, ...")] = 10,
    seconds: Annotated[
        float | None, typer.Option(help="In all, compilation included, in place of the configs' steps.")
    ] = None,
    settings: Settings = [],  # noqa: B006
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the policy files and metrics.csv.")] = RUNS
    / "fleets",
) -> None:
    """Train every seed of several fleet tasks in one program, for an accelerator or many cores; a policy file each.

    Example: python -m training fleet-train --task fleet-elastic --task fleet-elastic-m-large --seeds 10
    """
    from training.fleet_batch import train_many

    use_cache()
    try:
        check_whole("seeds", seeds)
        configs = [configured(task, None, settings, {"seed": seed}) for task in tasks for seed in range(seeds)]
        train_many(configs, out, seconds=seconds, report=lambda text: console.print(text, highlight=False))
    except (ValueError, OSError) as error:
        raise fail(error) from error
    console.print(f"wrote {len(configs)} policies to {out}/", highlight=False)


def fleet_search(
    task: Annotated[
        str, typer.Option("--task", "-t", help="fleet-anywhere, or a fleet task whose own rule is tuned.")
    ] = "fleet-anywhere",
    settings: Annotated[int, typer.Option(help="Settings of the rule by tokens that are drawn.")] = 240,
    conditions: Annotated[int, typer.Option(help="Training conditions of fleet-anywhere, or training days.")] = 16,
    calm: Annotated[
        bool, typer.Option("--calm", help="Only settings that show none of the named failures, by price.")
    ] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Write a task's own rule to data/fleet_rules.json.")] = False,
) -> None:
    """Settings of the fleet's rule by tokens, searched on fleet-anywhere's training conditions by price, or on a task's
    training days by the mean GPUs at 99 % of requests on time.

    Example: python -m training fleet-search --task fleet-elastic
    """
    from training import fleet_search as searches

    use_cache()
    anywhere = task == "fleet-anywhere"
    shapes = max(settings // len(searches.TUNED_TARGETS), 2)
    try:
        check_whole("settings", settings)
        check_whole("conditions", conditions)
        if anywhere and calm:
            raise ValueError("--calm: is of a task of one pool; fleet-anywhere has the shipped rule")
        if anywhere:
            rows = searches.search_rule(settings, conditions)
        elif calm:
            tried = shapes * len(searches.CALM_TARGETS)
            rows = searches.calm_rules(task, shapes, conditions)
            if not rows:
                raise ValueError(f"none of {tried} settings passes all named failures; --settings tries more")
            if keep:
                searches.write_calm(task, rows[0][0], rows[0][1], tried, conditions)
        else:
            rows = searches.tune_rule(task, shapes, conditions)
        if keep and rows and not anywhere and not calm:
            tried = (shapes + shapes // 2) * len(searches.TUNED_TARGETS)
            searches.write_tuned(task, rows[0][0], rows[0][1], tried, conditions)
    except (ValueError, OSError) as error:
        raise fail(error) from error
    first = "price" if anywhere or calm else "GPUs"
    typer.echo(f"{first:>8} {'on time':>8} " + " ".join(f"{name:>7}" for name in searches.SETTINGS))
    for plan, price, share in rows[:10]:
        values = " ".join(f"{float(getattr(plan, name)):7.3g}" for name in searches.SETTINGS)
        typer.echo(f"{price:8.3f} {share:8.2%} {values}")


def fleet_plot(
    task: Annotated[str, typer.Option("--task", "-t", help="A fleet task.")] = "fleet-elastic",
    day: Annotated[int, typer.Option(help="Which day: its seed.")] = 0,
    policy: Annotated[
        str, typer.Option("--policy", "-p", help="reactive, tuned, trained, a rule's name, a policy file, gpus=4, ...")
    ] = "reactive",
    out: Annotated[Path, typer.Option("--out", "-o", help="Stem of .png and .svg.")] = RUNS / "fleet-day",
) -> None:
    """Draw a day of a fleet under a policy: load, GPUs by state, share on time, cost.

    Example: python -m training fleet-plot --task fleet-elastic-m-mid --policy trained
    """
    from training.fleet_plot import draw_day

    try:
        paths = draw_day(task, out, day, policy)
    except (ValueError, OSError) as error:
        raise fail(error) from error
    for path in paths:
        console.print(f"wrote {path}", highlight=False)


COMMANDS: Mapping[str, Callable[..., Any]] = {
    "fleet-headroom": fleet_headroom,
    "fleet-defaults": fleet_defaults,
    "fleet-compare": fleet_compare,
    "fleet-train": fleet_train,
    "fleet-search": fleet_search,
    "fleet-plot": fleet_plot,
}
"""By the names that people type."""
