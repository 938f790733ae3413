import math

import pytest
import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

from fastsd_lib.core.errors import UserError
from fastsd_lib.training.config import DreamBoothConfig
from fastsd_lib.training.loss import NoiseScheduler, draw_noise, dreambooth_loss, learning_rate_factor

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_noise_and_target_equal_those_of_diffusers(prediction_type):
    ours, theirs = (
        NoiseScheduler({**SD, "prediction_type": prediction_type}),
        DDPMScheduler(**SD, prediction_type=prediction_type),
    )
    latents, noise, timesteps = (
        torch.randn(4, 4, 8, 8),
        torch.randn(4, 4, 8, 8),
        torch.tensor([0, 10, 500, 999]),
    )
    torch.testing.assert_close(
        ours.add_noise(latents, noise, timesteps), theirs.add_noise(latents, noise, timesteps)
    )
    wanted = noise if prediction_type == "epsilon" else theirs.get_velocity(latents, noise, timesteps)
    torch.testing.assert_close(ours.target(latents, noise, timesteps), wanted)


def test_min_snr_weights_follow_the_paper():
    scheduler = NoiseScheduler(SD)
    timesteps = torch.tensor([0, 400, 999])
    for t, weight in zip(timesteps, scheduler.snr_weights(timesteps, 5.0), strict=True):
        kept = scheduler.alphas_cumprod[t].item()
        snr = kept / (1 - kept)
        assert weight.item() == pytest.approx(min(snr, 5.0) / snr, rel=1e-4)
    assert scheduler.snr_weights(timesteps, 0.0).tolist() == [1, 1, 1]


def test_prior_preservation_adds_the_weighted_error_of_the_class_half():
    config = DreamBoothConfig("a", "b", prior_loss_weight=0.5)
    predicted, target = torch.zeros(4, 1, 2, 2), torch.zeros(4, 1, 2, 2)
    target[:2], target[2:] = 2.0, 3.0
    weights = torch.tensor([1.0, 0.5, 1.0, 1.0])  # every picture keeps its own weight
    assert dreambooth_loss(predicted, target, weights, config).item() == pytest.approx((4 + 2) / 2 + 0.5 * 9)
    assert dreambooth_loss(predicted, target, weights, DreamBoothConfig("a")).item() == pytest.approx(
        (4 + 2 + 9 + 9) / 4
    )


def test_offset_noise_shifts_whole_channels_by_the_asked_deviation():
    shape = torch.Size((500, 4, 8, 8))
    plain, _ = draw_noise(shape, 1000, 0.0, torch.Generator().manual_seed(0))
    shifted, _ = draw_noise(shape, 1000, 0.5, torch.Generator().manual_seed(0))
    assert plain.mean((2, 3)).std().item() == pytest.approx(1 / 8, rel=0.1)
    assert (shifted - plain).mean((2, 3)).std().item() == pytest.approx(0.5, rel=0.1)
    assert (shifted - plain).std((2, 3)).max().item() < 1e-5


def test_learning_rate_warms_up_and_then_follows_its_schedule():
    assert [learning_rate_factor("constant", step, 10, 3) for step in (0, 1, 2, 3, 9)] == [
        0.25,
        0.5,
        0.75,
        1,
        1,
    ]
    assert learning_rate_factor("linear", 5, 10, 0) == pytest.approx(0.5)
    assert learning_rate_factor("cosine", 5, 10, 0) == pytest.approx(0.5 * (1 + math.cos(math.pi / 2)))


def test_a_model_with_an_unknown_noise_schedule_is_refused_by_name():
    with pytest.raises(UserError, match="squaredcos") as caught:
        NoiseScheduler({**SD, "beta_schedule": "squaredcos_cap_v2"})
    assert "Stable Diffusion" in caught.value.fix
