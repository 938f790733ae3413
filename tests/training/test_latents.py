import copy

import torch

from fastsd_lib.training import latents


def test_cached_moments_are_those_of_the_vae_with_a_mirrored_view(training_parts, training_set):
    cache = latents.encode(training_parts.vae, training_set, 64, flip=True)
    pixels = training_set.pixels(1, 64)
    for view, picture in enumerate((pixels, pixels.flip(-1))):
        with torch.no_grad():
            posterior = training_parts.vae.encode(picture[None]).latent_dist
        torch.testing.assert_close(cache.mean[1, view], posterior.mean[0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(cache.deviation[1, view], posterior.std[0], atol=1e-5, rtol=1e-4)


def test_samples_have_the_posterior_s_mean_and_deviation(training_parts, training_set):
    cache = latents.encode(training_parts.vae, training_set, 64, flip=False)
    source = torch.Generator().manual_seed(3)
    drawn = torch.stack([cache.sample([2], 0.5, source)[0] for _ in range(800)])
    torch.testing.assert_close(drawn.mean(0), cache.mean[2, 0] * 0.5, atol=0.15, rtol=0)
    torch.testing.assert_close(drawn.std(0), cache.deviation[2, 0] * 0.5, atol=0.1, rtol=0.2)


def test_the_cache_is_read_back_for_the_same_pictures_and_made_anew_for_others_or_when_damaged(
    training_parts, training_set, tmp_path
):
    file = tmp_path / "cache" / "latents.safetensors"
    said = []

    def load(vae_fingerprint: str, px: int = 64) -> latents.LatentCache:
        said.clear()
        return latents.load_or_encode(
            file, training_parts.vae, vae_fingerprint, training_set, px, False, said.append
        )

    made = load("vae 1")
    assert len(said) > 1
    held = load("vae 1")
    assert [event.facts for event in said] == [{"from": "cache"}]
    assert torch.equal(held.mean, made.mean)
    load("vae 2")
    assert len(said) > 1
    load("vae 2", px=72)
    assert len(said) > 1
    file.write_bytes(file.read_bytes()[:100])
    assert torch.equal(load("vae 1").mean, made.mean)


def test_what_is_made_lies_in_memory_as_what_is_read_back(training_parts, training_set, tmp_path):
    # Otherwise the steps after a resume round differently from those of a run that was never stopped.
    vae = copy.deepcopy(training_parts.vae).to(memory_format=torch.channels_last)
    made, held = (
        latents.load_or_encode(tmp_path / "latents.safetensors", vae, "vae", training_set, 64, True)
        for _ in range(2)
    )
    assert made.mean.stride() == held.mean.stride() and made.deviation.stride() == held.deviation.stride()
    assert torch.equal(made.mean, held.mean)
