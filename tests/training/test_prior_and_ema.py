import copy
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from fastsd_lib.formats.parts import encode_prompts
from fastsd_lib.training import trainer
from fastsd_lib.training.ema import Ema
from fastsd_lib.training.objective import EMPTY_SHARE, Objective
from fastsd_lib.training.stages import TEXT_ENCODER


def _objective(job, **changes):
    config = replace(job.config, prior_target="base", **changes)
    parts = copy.deepcopy(job.parts)
    return config, parts, Objective(parts, job.cache, job.training_set, config)


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize("name", ["text_encoder", "unet"])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_before_any_step_the_prior_loss_towards_the_base_model_is_0_up_to_rounding(
    job, name, batch, precision, method
):
    """So the whole loss is that of the photos, whatever weight the prior has; towards the pictures it is not."""
    losses = []
    for weight in (0.0, 1.0):
        config, parts, objective = _objective(
            job, prior_loss_weight=weight, batch_size=batch, mixed_precision=precision, method=method
        )
        stage = next(one for one in trainer.stages_of(config) if one.part == name)
        run = trainer._Run(parts, config, objective, None, None, None, None)
        trained = run._to_train(stage).requires_grad_(True)
        objective.begin(stage, trained if method == "lora" else None)
        if stage.name != TEXT_ENCODER:
            objective.freeze_text_encoder()
        with objective.autocast():
            losses.append([objective.loss(stage, draw).item() for draw in range(3)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5 if precision == "no" else 1e-2)
    images = Objective(parts, job.cache, job.training_set, replace(config, prior_target="images"))
    images.freeze_text_encoder()
    assert images.loss(stage, 0).item() > losses[0][0] + 1


@pytest.mark.parametrize("name", ["text_encoder", "unet"])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_target_stays_the_base_model_s_answer_however_much_is_learned(job, name, method):
    config, parts, objective = _objective(job, method=method)
    stage = next(one for one in trainer.stages_of(config) if one.part == name)
    trained = trainer._Run(parts, config, objective, None, None, None, None)._to_train(stage)
    objective.begin(stage, trained if method == "lora" else None)
    torch.manual_seed(6)
    noisy, timesteps, empty = torch.randn(4, 4, 8, 8), torch.tensor([3, 200, 500, 900]), torch.zeros(4).bool()
    before = objective.prior.target(noisy, timesteps, empty, torch.zeros_like(noisy))
    with torch.no_grad():
        for one in trained.parameters():
            one.add_(0.1 * torch.randn(one.shape))
    after = objective.prior.target(noisy, timesteps, empty, torch.zeros_like(noisy))
    assert torch.equal(before, after)
    with torch.no_grad():
        states = encode_prompts(job.parts, ["photo of a cat"] * 2)
        wanted = job.parts.unet(noisy[2:], timesteps[2:], states, return_dict=False)[0]
    torch.testing.assert_close(after[2:], wanted, atol=1e-5, rtol=0)


def _drift(job, parts):
    """How far the class's predictions are from the base model's: mean squared difference."""
    torch.manual_seed(5)
    noisy, timesteps = torch.randn(8, 4, 8, 8), torch.arange(50, 1000, 125)
    with torch.no_grad():
        answers = [
            one.unet(noisy, timesteps, encode_prompts(one, ["photo of a cat"] * 8), return_dict=False)[0]
            for one in (job.parts, parts)
        ]
    return (answers[0] - answers[1]).square().mean().item()


@pytest.mark.parametrize("method", ["full", "lora"])
def test_it_keeps_the_class_nearer_to_the_base_model_than_no_prior(job, method):
    common = {"text_encoder_steps": 10, "unet_steps": 30, "save_every_steps": 0, "method": method}
    rates = {"unet_learning_rate": 5e-3, "text_encoder_learning_rate": 5e-3} if method == "lora" else {}
    _, without = job.run("without", class_prompt="", **common, **rates)
    _, held = job.run("held", prior_target="base", **common, **rates)
    assert _drift(job, held) < 0.7 * _drift(job, without)


def test_the_average_is_the_one_computed_by_hand():
    parameter = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))
    ema, by_hand = Ema({"w": parameter}, decay=0.5), 0.0
    for step in range(1, 20):
        with torch.no_grad():
            parameter.fill_(step * step)
        ema.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        by_hand = decay * by_hand + (1 - decay) * step * step
    assert ema.tensors["w"].tolist() == pytest.approx([by_hand] * 3, rel=1e-12)


def test_the_average_is_what_is_drawn_with_exported_and_left_in_the_modules(job):
    seen = {}

    def draw_samples(parts, step):
        seen[step] = copy.deepcopy(parts.unet.state_dict())
        return ()

    changes = {"text_encoder_steps": 0, "unet_steps": 4, "save_every_steps": 2, "ema_decay": 0.9}
    done, parts = job.run("ema", watch={"draw_samples": draw_samples}, sample_every_steps=2, **changes)
    _, plain = job.run("plain", **{**changes, "ema_decay": 0.0})
    drawn, live = (load_file(done.path / f"{name}.safetensors") for name in ("unet", "live"))
    for name, one in parts.unet.state_dict().items():
        assert torch.equal(one, drawn[name]) and torch.equal(one, seen[4][name])
        # Averaging does not disturb training.
        assert torch.equal(live[name], plain.unet.state_dict()[name])
    assert any(not torch.equal(drawn[name], live[name]) for name in drawn)


def test_the_unet_learns_with_the_average_of_the_text_encoder(job):
    """What stage one exports is what stage two builds on."""
    done, parts = job.run("both", ema_decay=0.9, text_encoder_steps=3, unet_steps=1, save_every_steps=3)
    first = load_file(job.folder / "both/checkpoints/step_000003/text_encoder.safetensors")
    for name, one in parts.text_encoder.state_dict().items():
        assert torch.equal(one, first[name])
    assert torch.equal(load_file(done.path / "text_encoder.safetensors")[name], first[name])


def test_a_share_of_the_class_pictures_rehearses_the_empty_prompt_and_no_photo_does(job):
    config, _, objective = _objective(job, batch_size=2)
    stage = trainer.stages_of(config)[0]
    none = len(job.training_set.prompts)
    drawn = [objective._with_empty_prompts(stage, draw, [0, 1, 2, 3]) for draw in range(500)]
    assert all(rows[:2] == [0, 1] for rows in drawn)
    assert sum(row == none for rows in drawn for row in rows) / 1000 == pytest.approx(EMPTY_SHARE, abs=0.05)
    assert drawn == [objective._with_empty_prompts(stage, draw, [0, 1, 2, 3]) for draw in range(500)]
