"""The card of a run as Markdown, with the front matter and the sections of the Hugging Face Hub.

The fields are those of https://huggingface.co/docs/hub/model-cards, the sections those of the
template that `huggingface_hub` has.
"""

import json

from kd.reports.headline import words_of
from kd.reports.text import NOT_KNOWN, flow_text
from kd.studies import model_card_tables as tables
from kd.studies.card_sizes import sizes_text
from kd.studies.model_card_tables import UNKNOWN, code
from kd.system.errors import counted, printable
from kd.system.markdown import table

# Names of licences that the Hub knows; any other one is `other`, with its own name.
HUB_LICENCES = (
    "afl-3.0 agpl-3.0 apache-2.0 artistic-2.0 bigscience-openrail-m bsd bsd-2-clause bsd-3-clause"
    " bsl-1.0 cc cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0"
    " cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0"
    " cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 creativeml-openrail-m ecl-2.0 epl-1.0 epl-2.0 eupl-1.1"
    " eupl-1.2 gpl gpl-2.0 gpl-3.0 isc lgpl lgpl-2.1 lgpl-3.0 mit mpl-2.0 openrail osl-3.0 unknown"
    " unlicense wtfpl zlib"
).split()
# Metrics that the Hub knows under another name.
_HUB_METRICS = {"auroc": "roc_auc", "macro_f1": "f1", "brier": "brier_score"}
DIRECT_USE = (
    "Research on the classification of medical images, on images like those that it was trained and"
    " tested on."
)
OUT_OF_SCOPE = (
    "**This is no medical device, and not for diagnosis.** It must not be used for the care of"
    " patients: it has not been validated for that, and no authority has examined it. Its figures"
    " hold for the test images named here, not for other hospitals, machines or groups of people."
)


def text(card: dict) -> str:
    """Format a card of `kd.studies.model_card.describe` as Markdown."""
    lines = [
        *_front_matter(card),
        f"# {code(card['title'])}",
        "",
        *_details(card),
        *_uses(),
        *_limits(card),
        *_start(card),
        *_training(card),
        *_evaluation(card),
        *_technical(card),
        *_files(card["files"]),
        *_repeat(card),
        *_licences(card["licences"]),
    ]
    return "\n".join(lines)


def yaml(value) -> str:
    """Return a value for YAML: JSON, of which YAML reads texts and numbers."""
    value = printable(value) if isinstance(value, str) else value
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _front_matter(card: dict) -> list[str]:
    """Return the metadata of the Hub. A metric that is undefined is only in the text."""
    evaluated = _evaluated(card)
    tags = ["medical-imaging", "image-classification"]
    if card["distillation"]:
        tags += ["knowledge-distillation", card["distillation"]["mode"]]
    lines = [
        "---",
        *_licence_field(card["licences"]["weights"]),
        "library_name: timm",
        "pipeline_tag: image-classification",
        "tags:",
        *(f"- {yaml(tag)}" for tag in tags),
        "metrics:",
        *(f"- {yaml(_HUB_METRICS.get(name, name))}" for name, _ in evaluated),
        "model-index:",
        f"- name: {yaml(card['title'])}",
        "  results:",
        "  - task:",
        "      type: image-classification",
        "    dataset:",
        f"      type: {yaml(card['data']['name'])}",
        f"      name: {yaml(card['data']['name'])}",
        "      split: test",
        f"      revision: {yaml(card['hashes']['content'])}",
        "    metrics:",
    ]
    for name, one in evaluated:
        lines += [
            f"    - type: {yaml(_HUB_METRICS.get(name, name))}",
            f"      value: {yaml(one['value'])}",
            f"      name: {yaml(words_of(name) + _interval_words(one))}",
        ]
    return [*lines, "---", ""]


def _evaluated(card: dict) -> list[tuple[str, dict]]:
    """Return the metrics that have a value; of an earlier version, only the accuracy."""
    own = card["results"]["network"]
    metrics = own["metrics"] or {
        "accuracy": {"value": own["test_accuracy"], "low": None, "high": None, "reason": None}
    }
    return [(name, one) for name, one in metrics.items() if one["value"] is not None]


def _licence_field(licence: str) -> list[str]:
    known = licence.strip().lower()
    if known in HUB_LICENCES:
        return [f"license: {known}"]
    return ["license: other", f"license_name: {yaml(licence)}"]


def _interval_words(one: dict) -> str:
    if one["low"] is None:
        return ""
    return f" (95 % interval {one['low']:.4f} to {one['high']:.4f})"


def _details(card: dict) -> list[str]:
    model = card["model"]
    start = "random weights"
    if model["own_initial_weights"]:
        start = "weights of a file (--weights), whose licence applies, too"
    elif model["pretrained"]:
        start = "ImageNet weights of timm, whose licence applies, too"
    method = card["distillation"]
    how = "trained on labels only"
    if method:
        how = f"distilled (mode {code(method['mode'])}) from {method['teacher']}"
    classes = ", ".join(code(name) for name in model["classes"])
    return [
        "## Model Details",
        "",
        "### Model Description",
        "",
        f"- **Model type:** image classifier, {how}",
        f"- **Architecture:** {code(model['architecture'])} (timm), {model['parameters']:,}"
        " parameters",
        f"- **Classes:** {classes}",
        f"- **Started from:** {start}",
        f"- **Seed:** {model['seed']}",
        f"- **License:** weights {code(card['licences']['weights'])}, see Licences",
        "- **Developed by:** [More Information Needed]",
        "",
    ]


def _uses() -> list[str]:
    return [
        "## Uses",
        "",
        "### Direct Use",
        "",
        DIRECT_USE,
        "",
        "### Out-of-Scope Use",
        "",
        OUT_OF_SCOPE,
        "",
    ]


def _limits(card: dict) -> list[str]:
    lines = [f"- {one}" for one in tables.limits(card)]
    return ["## Bias, Risks, and Limitations", "", *lines, ""]


def _start(card: dict) -> list[str]:
    size = card["preprocessing"]["image_size"]
    return [
        "## How to Get Started with the Model",
        "",
        "    import timm, torch",
        '    model = torch.load("model.pt", weights_only=True)',
        '    network = timm.create_model(model["architecture"], num_classes=len(model["classes"]))',
        '    network.load_state_dict(model["state_dict"], strict=True)',
        "    network.eval()",
        f"    # images: float32 [B, 3, {size}, {size}] from 0 to 1, prepared as below",
        '    mean, std = (torch.tensor(model["input"][key]).view(1, 3, 1, 1) for key in'
        ' ("mean", "std"))',
        "    probabilities = network((images - mean) / std).softmax(1)",
        "",
    ]


def _training(card: dict) -> list[str]:
    training = card["training"]
    hardware = card["hardware"]
    return [
        "## Training Details",
        "",
        "### Training Data",
        "",
        *_data(card),
        "### Training Procedure",
        "",
        "#### Preprocessing",
        "",
        *(f"- {line}" for line in tables.preprocessing_lines(card["preprocessing"])),
        "",
        *_distillation(card["distillation"]),
        "#### Training Hyperparameters",
        "",
        f"{counted(training['epochs'], 'epoch', 'epochs')},"
        f" {counted(training['steps'], 'step', 'steps')}; the weights are those of epoch"
        f" {training['best_epoch']}. Settings that are off or not used are left out, and a path"
        " is shown as yes.",
        "",
        *table(["setting", "value"], tables.settings_rows(card, code)),
        "",
        "#### Speeds, Sizes, Times",
        "",
        f"Training took {hardware['seconds'] / 60:.1f} minutes on {code(hardware['device'])}"
        f" ({hardware['precision']}, {counted(hardware['threads'], 'thread', 'threads')},"
        f" {counted(hardware['ranks'] or 1, 'rank', 'ranks')}).",
        "",
    ]


def _data(card: dict) -> list[str]:
    data = card["data"]
    classes = card["model"]["classes"]
    header = [*tables.SPLIT_HEADER, *(f"{code(name)}: images (patients)" for name in classes)]
    lines = [
        f"Data set {code(data['name'])}, split {code(data['split'])}.",
        "",
        *table(header, tables.split_rows(data, classes)),
        "",
        f"`{NOT_KNOWN}`: {data['patients_per_class']['reason']}.",
        "",
    ]
    if data["pool"]:
        lines += [f"In addition, {data['pool']['images']} images without their labels.", ""]
    if data["flow"]:
        lines += ["Images, and what became of them:", "", *flow_text(data["flow"]), ""]
    return lines


def _distillation(method: dict | None) -> list[str]:
    if method is None:
        return []
    lines = [f"- {line}" for line in tables.method_lines(method, code)]
    return ["#### Distillation", "", *lines, ""]


def _evaluation(card: dict) -> list[str]:
    data = card["data"]
    unit = counted(data["patients"]["test"] or 0, "known patient", "known patients")
    return [
        "## Evaluation",
        "",
        "### Testing Data, Factors & Metrics",
        "",
        f"The test split of the same data set: {data['distinct_images']['test']} images, {unit}."
        " Brackets are 95 % intervals over patients, for this one network. Thresholds and the"
        " temperature were fixed on the validation split.",
        "",
        "### Results",
        "",
        *table(*tables.results_table(card)),
        "",
        *_paragraphs(tables.metric_notes(card, code)),
        *_subgroups(card),
        "### Calibration",
        "",
        *table(*tables.calibration_table(card)),
        "",
        *_paragraphs(tables.calibration_notes(card)),
    ]


def _subgroups(card: dict) -> list[str]:
    if not card["subgroups"]:
        return []
    return ["### Subgroups", "", *table(*tables.subgroups_table(card)), ""]


def _paragraphs(sentences: list[str]) -> list[str]:
    return [line for one in sentences for line in (one, "")]


def _technical(card: dict) -> list[str]:
    versions = {key: value or UNKNOWN for key, value in card["software"].items() if key != "kd"}
    return [
        "## Environmental Impact",
        "",
        f"{card['hardware']['seconds'] / 3600:.2f} hours of training on"
        f" {code(card['hardware']['device'])}, without the training of the teacher. Energy and"
        " carbon were not measured.",
        "",
        "## Technical Specifications",
        "",
        f"Software: {', '.join(f'{key} {value}' for key, value in versions.items())}.",
        "",
        *sizes_text(card),
    ]


def _files(files: list[dict]) -> list[str]:
    if not files:
        return []
    return ["## Files", "", *table(*tables.files_table(files)), ""]


def _repeat(card: dict) -> list[str]:
    hashes = [[name, code(value)] for name, value in card["hashes"].items()]
    before, after = tables.repeat_texts(card, code)
    return [
        "## Reproduction",
        "",
        *table(["hash of", "value"], hashes),
        "",
        before,
        "",
        f"    {card['repeat']['command']}",
        "",
        after,
        "",
    ]


def _licences(licences: dict) -> list[str]:
    lines = [f"- {line}" for line in tables.licence_lines(licences, code)]
    return ["## Licences", "", *lines, ""]
