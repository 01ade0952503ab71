"""How the page of a study has to be read: the words of its verdicts, and of its columns."""

from kd.reports.verdicts import MIN_DISCORDANT, MIN_SEEDS, NO_EVIDENCE, NOT_SHOWN


def how_to_read(protocols: list[dict]) -> list[tuple[str, str]]:
    """Return (word, what it means) of everything that a reader has to know."""
    margins = dict.fromkeys(f"{protocol['margin']:g}" for protocol in protocols)
    margin = " or ".join(margins)
    return [
        ("student, teacher", "The student is the network that was distilled from the teacher."),
        ("baseline", "The network of the student, trained on labels only, without a teacher."),
        ("mode", "Which teacher meets which student on which images, e.g. normal or self."),
        ("train / validation / test", "The accuracies on the three splits of the data."),
        ("± and n", "The standard deviation over seeds, and their number. A seed is one training."),
        (
            "[low, high]",
            "A 95 % interval: over patients, and for differences of several seeds also over seeds.",
        ),
        ("better, worse", "The difference is shown: its adjusted p-value is below 5 %."),
        (
            NO_EVIDENCE,
            "Neither better nor worse was shown. This does not mean that both are equal: there may"
            " be too few patients or seeds.",
        ),
        (
            f"as good within {margin}",
            f"Compared with the teacher: it is shown that at most {margin} of accuracy is lost"
            " (non-inferiority).",
        ),
        (
            f"as good within {margin} but worse",
            "It is shown that the student is worse, and that the loss is below this margin.",
        ),
        (NOT_SHOWN, "Compared with the teacher: a loss above the margin cannot be excluded."),
        (
            "no verdict",
            f"There are fewer than {MIN_SEEDS} seeds, the networks differ on fewer than"
            f" {MIN_DISCORDANT} patients, or one predicts the same class for every image.",
        ),
        (
            "at chance",
            "The network is not shown to be better than one that never looks at the image.",
        ),
        ("-", "Not known, or it does not apply."),
    ]
