"""Makes a folder of a trained model that can be given away: weights without pickle, settings, classes and a model card.

    python -m tools.share runs/ss_stage2 --out shared/ss_stage2
    python -m tools.share runs/ss_stage2 --out shared/ss_stage2 --push USER/NAME       # and uploads it to the Hugging Face Hub

The card, README.md, is made from the run's evaluation (evaluate.sh writes RUN/evaluation). evaluate.sh, predict.py, --init and
`engine.checkpoint.load_model` read the folder, and after --push also hf:USER/NAME.
"""

import json
import shutil
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

import yaml
from PIL import Image
from safetensors.torch import save_file

from command_line import parse
from engine.checkpoint import VERSION, read_checkpoint
from engine.metrics import METRICS
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
    partial = out.with_name(f".{out.name}.part")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        save_file({name: weight.contiguous() for name, weight in content["method"].items()}, partial / WEIGHTS)
        settings = {key: value for key, value in content["config"].items() if key not in ("out", "fresh")}
        (partial / SETTINGS).write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
        (partial / CLASSES).write_text("".join(f"{name}\n" for name in content["classes"]), encoding="utf-8")
        has_picture = (source / "pictures.png").is_file()
        if has_picture:
            Image.open(source / "pictures.png").convert("RGB").save(partial / PICTURE, quality=88)
        (partial / CARD).write_text(card(out.name, content, source, config, has_picture), encoding="utf-8")
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # does nothing after the rename
    print(f"{out}: {', '.join(sorted(file.name for file in out.iterdir()))}")
    if config.push:
        print(push(out, config.push))


def card(name: str, content: dict, source: Path, config: ShareConfig, has_picture: bool) -> str:
    """Returns the model card in Markdown. content: of the checkpoint. source: the run, with its records."""
    scores = _json(source / "evaluation" / METRICS)
    record = _json(source / "run.json")
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
    parts += ["## Training", _training(settings, record)]
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
        raise UserError(f"--push {name}: not uploaded ({type(error).__name__}: {error}); {folder} is complete") from error
    return f"uploaded: {HUB}{name}"


def _scores(scores: dict[str, Any]) -> str:
    """A table of the means and of each class, and what they were measured on."""
    conditions = scores["conditions"]
    rows = [("mIoU", scores["miou"]), ("Dice", scores["dice"]), ("pixel accuracy", scores["pixel_accuracy"])]
    rows += [(f"IoU of {name}", value) for name, value in scores["iou"].items()]
    table = ["| score | % |", "|---|---|"]
    table += [f"| {name} | {'-' if value is None else f'{100 * value:.2f}'} |" for name, value in rows]
    data = conditions["data"]
    measured = (
        f"On {conditions['images']} images of {Path(data['root']).name}, split {data['split']}, preset {conditions['preset']}."
    )
    return "\n".join([measured, "", *table])


def _training(settings: dict[str, Any], record: dict[str, Any]) -> str:
    """The data, the command and the versions of a training."""
    data = settings["data"]
    lines = [f"Data: {Path(data['root']).name}, split {Path(data['train_split']).stem}, labels `{Path(data['labels']).name}`."]
    sessions = record.get("sessions") or []
    if sessions:
        last = sessions[-1]
        lines += [f"Commit {last['commit']}, version {VERSION}, {last['processes']} x {last['device']}.", "", "```bash"]
        lines += [last["command"], "```"]
    return "\n".join(lines)


def _json(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text()) if file.is_file() else {}


if __name__ == "__main__":
    run(main)
