"""Where teacher, student and the student's network alone look: maps, agreement and sheets."""

from pathlib import Path

from kd.config.evaluate_settings import Judging
from kd.config.layout import out_of
from kd.reports.text import units_text
from kd.studies.look.gradcam import Together
from kd.studies.look.randomized import SEED as RANDOM_SEED
from kd.studies.look.sheet_content import layers_text, write_sheets
from kd.studies.look.summary import ROLES, Scores, markdown, summarise
from kd.studies.look.watch import DRAWS, SEED, Images, Watch, open_images, score
from kd.studies.networks import Trio, trios
from kd.studies.outputs import write_outputs
from kd.system.errors import Problem, counted

SCHEMA_VERSION = 1


def write_look(runs: list[Path], how: Judging) -> dict:
    """Compare where runs, their teachers and their networks trained alone look in test images.

    Writes look.md, look.json and look-CLASS.png to RUN/look of each run, the sheets also to
    TensorBoard; for several runs, also look.md and look.json over seeds to the output folder
    (--out) of the first one. Returns the JSON that was written last. Raises Problem for runs with
    different test images, for images that are gone, and for a student without a map with several
    positions. Networks that are missing or have no such map are reported and left out.
    """
    if how.dataset is not None:
        raise Problem(
            f"--dataset {how.dataset} cannot be combined with --look, which uses the runs' own test"
            " split. Remove --dataset."
        )
    found = trios(runs, "--look")
    images = open_images(found, how)
    watch = Watch(images, how)
    scores = []
    for trio in found:
        looks = watch.looks(trio)
        scores.append(score(looks, watch.controls(trio), images))
        result = _result(trio, looks, scores[-1], images)
        result["sheets"] = write_sheets(trio, looks, images)
        _write(trio, looks, result, images)
    if len(found) > 1:
        result = _write_summary(found, scores, images)
    return result


def _result(trio: Trio, looks: dict[str, Together], scores: Scores, images: Images) -> dict:
    """Return the content of look.json but for the sheets."""
    networks = {}
    for role, own in looks.items():
        entry = getattr(trio, role)
        layers = []
        for member, one in zip(entry.members, own.members):
            positions = list(one.maps.shape[1:])
            layers.append({"layer": one.layer, "positions": positions, "image_size": member.size})
        networks[role] = {
            "caption": entry.caption,
            "maps": layers,
            "empty_maps": int(own.empty.sum()),
            "accuracy": float((own.logits.argmax(1) == images.labels).mean()),
        }
    return {
        "schema_version": SCHEMA_VERSION,
        "run": "/".join(trio.run.resolve().parts[-4:]),  # no path of the machine
        "data": _data(trio.student.report["data"], images),
        "method": _method(images),
        "networks": networks,
        **summarise([scores], images.resamples, images.about_boxes),
        "left_out": trio.left_out,
    }


def _data(entry: dict, images: Images) -> dict:
    """Return what identifies the test images."""
    keys = ("name", "split_hash", "content_hash", "image_size")
    own = images.own
    return {key: entry[key] for key in keys} | {
        "images": len(own.splits.test),
        "patients": own.patients("test"),
        "without_patient": own.without_patient("test"),
    }


def _method(images: Images) -> dict:
    return {
        "maps": "Grad-CAM (1610.02391)",
        "class": "that of the label, for all networks",
        "images": len(images.places),
        "drawn_with_seed": SEED if len(images.places) < len(images.own.splits.test) else None,
        "control_images": len(images.few),
        "control_drawn_with_seed": SEED if len(images.few) < len(images.places) else None,
        "control_draws": DRAWS,
        "control_weights_seed": RANDOM_SEED,
    }


def _write(trio: Trio, looks: dict[str, Together], result: dict, images: Images) -> None:
    """Write and print the results of a run."""
    empty = []
    for role, own in result["networks"].items():
        empty.append(f"{ROLES[role]} {own['empty_maps']}")
    files = [f"{len(result['sheets'])} sheets look-CLASS.png"]
    if not trio.student.report["settings"].get("log_images", True):
        files.append("not in TensorBoard, because the run has --no-log-images")
    lines = [
        _about(result["data"], images),
        "",
        layers_text(looks),
        f"Empty maps, which have no rank correlation: {', '.join(empty)}.",
    ]
    heading = f"Where the networks look: {trio.student.caption}, seed {trio.student.seed}"
    text = "\n".join(markdown(heading, lines, result))
    write_outputs(trio.run / "look", "look", text, result, ", ".join(files))


def _about(data: dict, images: Images) -> str:
    """Return the line on the images and the method."""
    units = units_text(data["patients"], data["without_patient"])
    count = f"{data['images']} test images ({units})"
    if len(images.places) < data["images"]:
        count = f"{len(images.places)} of {count}, drawn with seed {SEED}"
    control = f"random weights: {DRAWS} draws, {counted(len(images.few), 'image', 'images')}"
    if len(images.few) < len(images.places):
        control += f", drawn with seed {SEED}"
    return (
        f"{data['name']}, {count}, {data['image_size']} px; {control}. Grad-CAM maps of the label's"
        " class; Spearman's rank correlation of their pixels, mean over images. Intervals are over"
        " patients, and over seeds if there are several."
    )


def _write_summary(found: list[Trio], scores: list[Scores], images: Images) -> dict:
    """Write and print the results over the seeds of each row of runs."""
    rows = {}
    for trio, own in zip(found, scores):
        rows.setdefault(trio.student.caption, []).append((trio, own))
    groups = []
    text = []
    data = _data(found[0].student.report["data"], images)
    for caption, members in rows.items():
        seeds = [trio.student.seed for trio, _ in members]
        own = summarise([one for _, one in members], images.resamples, images.about_boxes)
        groups.append({"caption": caption, "seeds": seeds, **own})
        heading = f"Where the networks look: {caption} (n = {len(seeds)})"
        text += markdown(heading, [_about(data, images)], own)
    result = {
        "schema_version": SCHEMA_VERSION,
        "runs": [str(trio.run) for trio in found],
        "data": data,
        "method": _method(images),
        "groups": groups,
        "left_out": [text for trio in found for text in trio.left_out],
    }
    root = out_of(found[0].run)
    write_outputs(root, "look", "\n".join(text), result, "RUN/look of each run")
    return result
