"""What is written about a model when its training is over: temperature, report, model card."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.progress import ProgressEvent, Report
from fastsd_lib.vit import calibration_file
from fastsd_lib.vit.config import ClassifyConfig, RunnerConfig
from fastsd_lib.vit.evaluate import evaluate
from fastsd_lib.vit.folder_data import ImageFolder
from fastsd_lib.vit.model import open_model
from fastsd_lib.vit.model_card import CardFacts, write_model_card
from fastsd_lib.vit.report import write_report
from fastsd_lib.vit.train_config import VitTrainConfig

REPORT = "report"


def write_about(
    config: VitTrainConfig,
    images: ImageFolder,
    began_with: str,
    model_folder: Path,
    out: Path,
    seconds: float,
    report: Report,
) -> Path | None:
    """`out`/report and the model's card and temperature; None where there are no pictures to judge by.

    Judged are the test pictures, with a temperature from the validation pictures; without test pictures the
    validation pictures themselves, each half with the temperature of the other.
    """
    split = "test" if images.test else "validation"
    samples = images.test or images.validation
    if not samples:
        return None
    fit_on = images.validation if images.test and images.validation else None
    runner = RunnerConfig(backend="torch", precision="fp32", device="cpu", threads=config.threads)
    model = replace(open_model(model_folder), name=out.name)  # not "model", as its folder is called
    try:
        found = evaluate(
            model,
            samples,
            runner,
            ClassifyConfig(fit=config.fit),
            fit_on=fit_on,
            split=split,
            on_progress=report,
        )
    except UserError as error:  # the model is there and good: its report can be made again
        report(ProgressEvent("report", 1, 1, {"": f"no report: {error.message}"}))
        return None
    figures = {
        f"{split}_pictures": found.images,
        f"{split}_right": found.right,
        f"{split}_accuracy": round(found.accuracy, 6),
    }
    calibration = found.calibration
    temperature = (
        round(calibration.temperature, 6) if calibration.fitted else None
    )  # too few pictures: not known
    calibration_file.write_facts(model_folder, temperature=temperature, figures=figures)
    page = write_report(found, out / REPORT, {"data": images.path.name, "judged on": f"{split} pictures"})
    recipe = {**asdict(config), "data": images.path.name}
    write_model_card(
        replace(open_model(model_folder), name=out.name),
        found,
        CardFacts(
            base_model="" if config.from_scratch else began_with,
            images={
                "train": len(images.train),
                "validation": len(images.validation),
                "test": len(images.test),
            },
            recipe=recipe,
            train_seconds=seconds,
        ),
    )
    return page
