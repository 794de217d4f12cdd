"""Makes a folder of a trained model that can be given away: weights without pickle, settings, classes and a model card.

    python -m tools.share runs/ss_stage2 --out shared/ss_stage2
    python -m tools.share runs/ss_stage2 --out shared/ss_stage2 --push USER/NAME       # and uploads it to the Hugging Face Hub

The card, README.md, is made from the run's evaluation (evaluate.sh writes RUN/evaluation). evaluate.sh, predict.py, --init and
`engine.checkpoint.load_model` read the folder, and after --push also hf:USER/NAME.
"""

import re
import shutil
import sys
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from command_line import parse
from engine.checkpoint import model_of, read_checkpoint
from engine.metrics import METRICS, read_evaluation
from engine.provenance import file_sha256, read_record
from engine.shared import CARD, CLASSES, HUB, SETTINGS, WEIGHTS
from errors import UserError, run

PICTURE = "picture.jpg"


@dataclass
class ShareConfig:
    """A run and the folder to write."""

    run: str
    """run folder with best.pt"""
    _: KW_ONLY
    out: str
    """folder to write, which must not exist"""
    license: str = "unknown"
    """licence of the weights for the card, such as mit or cc-by-4.0; data may forbid some"""
    push: str | None = None
    """also upload the folder to this repository of the Hugging Face Hub, USER/NAME; log in first by `hf auth login`"""


def main() -> None:
    """Runs the command line above. Raises UserError for a run without best.pt, an existing OUT, or a failed upload."""
    config = parse(ShareConfig, __doc__, positional=True)
    source, out = Path(config.run), Path(config.out)
    if not (source / "best.pt").is_file():
        raise UserError(f"{source} holds no best.pt: give the folder of a run")
    if out.exists():
        raise UserError(f"{out} exists: choose another --out, or delete it")
    content = read_checkpoint(source / "best.pt")
    model_of(content, source / "best.pt")  # an error for a checkpoint that this code cannot build
    scores = scores_of(source)
    partial = out.with_name(f".{out.name}.part")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        # Clones: safetensors refuses weights that share memory.
        weights = {name: weight.clone(memory_format=torch.contiguous_format) for name, weight in content["method"].items()}
        save_file(weights, partial / WEIGHTS)
        settings = {part: content["config"][part] for part in ("method", "model", "train") if part in content["config"]}
        model = settings["model"]
        settings |= {"version": content.get("version"), "model": model | {"weights": public(model["weights"])}}
        (partial / SETTINGS).write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
        (partial / CLASSES).write_text("".join(f"{name}\n" for name in content["classes"]), encoding="utf-8")
        has_picture = copy_picture(source / "pictures.png", partial / PICTURE)
        record = read_record(source / "run.json") or {}
        (partial / CARD).write_text(card(out.name, content, scores, record, config, has_picture), encoding="utf-8")
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # does nothing after the rename
    print(f"{out}: {', '.join(sorted(file.name for file in out.iterdir()))}")
    if config.push:
        print(push(out, config.push))


def copy_picture(source: Path, out: Path) -> bool:
    """Writes the picture `source` as a JPEG. Returns whether there is a picture; prints a note for a damaged one."""
    if not source.is_file():
        return False
    try:
        Image.open(source).convert("RGB").save(out, quality=88)
    except (OSError, SyntaxError) as error:  # PIL raises these on damaged files
        print(f"note: the card has no picture: {source} is not readable ({error})", file=sys.stderr)
        return False
    return True


def public(text: str) -> str:
    """Returns a command or a path without the folders of paths that begin at the root, at home or above the repository."""
    return re.sub(r"(?<![\w./~-])(?:\.\./|~?/)[^\s,\[\]]*/", "", text)


def scores_of(run: Path) -> dict | None:
    """Returns the record of RUN/evaluation, or None if there is none. Raises UserError if it is of other weights."""
    folder = run / "evaluation"
    if not (folder / METRICS).is_file():
        return None
    scores = read_evaluation(folder)
    if scores["conditions"]["checkpoint_sha256"] != file_sha256(run / "best.pt"):
        raise UserError(f"{folder} is of another checkpoint than {run / 'best.pt'}: evaluate again, or delete the folder")
    return scores


def card(name: str, content: dict, scores: dict | None, record: dict, config: ShareConfig, has_picture: bool) -> str:
    """Returns the model card in Markdown. content: of the checkpoint. scores: see `scores_of`. record: the run's run.json, or
    {} for a model that this project did not train."""
    settings = content["config"]
    where = f"{HUB}{config.push}" if config.push else name
    header = {"license": config.license, "library_name": "cc4s", "pipeline_tag": "image-segmentation"}
    parts = [
        f"---\n{yaml.safe_dump(header | {'tags': ['image-segmentation', 'weak-supervision']}, sort_keys=False)}---",
        f"# {name}",
        f"A network for semantic segmentation of {len(content['classes'])} classes, trained by the method "
        f"`{settings['method']['name']}` with the encoder `{settings['model']['backbone']}`.",
    ]
    if has_picture:
        parts.append(f"![Image, label, prediction and truth of some images]({PICTURE})")
    parts += ["## Use", f"```bash\npython predict.py --checkpoint {where} --images photos/ --out predictions/\n```"]
    parts.append(f'```python\nfrom engine.checkpoint import load_model\n\nmethod = load_model("{where}")\n```')
    parts += ["## Scores", _scores(scores) if scores else "Not evaluated."]
    if record.get("sessions"):
        parts += ["## Training", _training(settings["data"], record, content.get("version"))]
    parts += ["## Classes", ", ".join(content["classes"])]
    return "\n\n".join(parts) + "\n"


def push(folder: Path, name: str) -> str:
    """Uploads a folder to the repository USER/NAME of the Hugging Face Hub and returns a line that says where it is. Raises
    UserError if the upload fails."""
    from huggingface_hub import HfApi  # takes half a second

    try:
        api = HfApi()
        api.create_repo(repo_id=name, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=str(folder))
    except Exception as error:  # the hub raises many kinds: no network, no login, no permission
        raise UserError(
            f"--push {name}: not uploaded ({type(error).__name__}: {error}); {folder} is complete, so upload it "
            f"by `hf upload {name} {folder}`"
        ) from error
    return f"uploaded: {HUB}{name}"


def _scores(scores: dict[str, Any]) -> str:
    """A table of the means and of each class, and what they were measured on."""
    conditions = scores["conditions"]
    rows = [("mIoU", scores["miou"]), ("Dice", scores["dice"]), ("pixel accuracy", scores["pixel_accuracy"])]
    rows += [(f"IoU of {name}", value) for name, value in scores["iou"].items()]
    table = ["| score | % |", "|---|---|"]
    table += [f"| {name} | {'-' if value is None else f'{100 * value:.2f}'} |" for name, value in rows]
    data, crf = conditions["data"], conditions["crf"]
    where = f"{Path(data['root']).name}, split {Path(data['split']).stem}"
    how = f"preset {conditions['preset']}" + ("" if crf == "none" else f", CRF {crf}")
    return "\n".join([f"On {conditions['images']} images of {where}, {how}.", "", *table])


def _training(data: dict[str, Any], record: dict[str, Any], version: str | None) -> str:
    """The data, the command and the versions of a training."""
    last = record["sessions"][-1]
    made = f"Commit {last['commit']}, version {version or 'before 0.2.0'}, {last['processes']} x {last['device']}."
    source = f"Data: {Path(data['root']).name}, split {Path(data['train_split']).stem}, labels `{Path(data['labels']).name}`."
    return "\n".join([f"{source} {made}", "", "```bash", public(last["command"]), "```"])


if __name__ == "__main__":
    run(main)
