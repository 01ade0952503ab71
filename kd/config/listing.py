"""The tables of modes and knowledge in Markdown: what --list-modes prints."""

from kd.methods import KNOWLEDGE, STRATEGIES, Kind, Stage, Strategy


def list_modes() -> str:
    """What `distill.py --list-modes` prints."""
    return (
        f"{modes_table()}\n\nThe thesis's pairs: {pairs_text()}.\n--teacher a+b: the mean of both"
        f" teachers' softened probabilities.\n\n{knowledge_table()}\n\n--knowledge a+b: the"
        " weighted sum of both terms."
    )


def modes_table() -> str:
    """The modes as Markdown: what the README shows and --list-modes prints."""
    lines = [
        (
            "| `--mode` | data | teacher | start of the student | knowledge | location | transfer |"
            " source |"
        ),
        "|---" * 8 + "|",
    ]
    for name, row in STRATEGIES.items():
        kinds, network = _kinds(row), row.teacher.network
        what = (
            "label distribution"
            if network == "none"
            else _each(kind.what for kind in kinds.values())
        )
        start = "drawn anew, or ImageNet" if network == "student" else "ImageNet, or drawn"
        cells = [
            f"`{name}`",
            ", then ".join(_data(row, stage) for stage in row.stages),
            row.teacher.words,
            start + ", then where it stands" * (len(row.stages) > 1),
            f"{what} ({_each(f'`{kind}`' for kind in kinds)})",
            _each(kind.location for kind in kinds.values()),
            ", then ".join(_transfer(row, stage) for stage in row.stages),
            row.source,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _kinds(row: Strategy) -> dict[str, Kind]:
    """The kinds of knowledge that a mode passes on unless it is told otherwise."""
    taught = [stage for stage in row.stages if stage.loss in ("distil", "match")]
    return {
        name: KNOWLEDGE[name]
        for stage in taught
        for name in (stage.knowledge or row.knowledge).split("+")
    }


def _each(words) -> str:
    return ", ".join(dict.fromkeys(words))


def _data(row: Strategy, stage: Stage) -> str:
    images = {"train": "labelled images", "pool": "all images without labels"}[stage.images]
    alone = row.teacher.network == "none" or stage.loss in ("labels", "finetune")
    return images if alone else f"{images}, one view for both"


def _transfer(row: Strategy, stage: Stage) -> str:
    names = (stage.knowledge or row.knowledge).split("+")
    soft = " + ".join(KNOWLEDGE[name].transfer for name in names) + (
        f" at T = {row.fixed_t:g}" if row.fixed_t else ""
    )
    return {
        "labels": "CE",
        "distil": f"(1 - alpha) CE + alpha {soft}",
        "match": soft,
        "finetune": "CE (or with KD: --finetune)",
    }[stage.loss]


def pairs_text() -> str:
    """The thesis's pairs in words."""
    return "; ".join(
        f"`{name}` {', '.join(row.teachers)} -> {', '.join(row.students)}"
        for name, row in STRATEGIES.items()
        if row.teachers
    )


def knowledge_table() -> str:
    """The kinds of knowledge as Markdown: what the README shows and --list-modes prints."""
    lines = [
        "| `--knowledge` | what | location | transfer | weight | needs | source |",
        "|---" * 7 + "|",
    ]
    for name, kind in KNOWLEDGE.items():
        needs = [
            *(["labels"] if kind.labels else []),
            *(["a teacher that is a network"] if kind.location == "stages" else []),
            *(["maps"] if kind.maps else []),
            *([f"{kind.least_classes} classes"] if kind.least_classes > 2 else []),
        ]
        lines.append(
            f"| `{name}` | {kind.what} | {kind.location} | {kind.transfer} | {kind.weight:g} |"
            f" {', '.join(needs)} | {kind.source} |"
        )
    return "\n".join(lines)
