"""The options in words, by group; data of the tab Settings. The names are A1111's."""

from __future__ import annotations

GROUPS: dict[str, tuple[str, ...]] = {
    "Model": ("sd_model_checkpoint", "sd_vae", "CLIP_stop_at_last_layers", "sd_unet", "sd_checkpoint_hash"),
    "Sampling": (
        "eta_ancestral", "eta_ddim", "s_churn", "s_tmin", "s_tmax", "s_noise", "s_min_uncond", "eta_noise_seed_delta",
        "randn_source", "token_merging_ratio", "token_merging_ratio_img2img", "token_merging_ratio_hr",
        "initial_noise_multiplier", "sd_hypernetwork", "emphasis", "tiling",
    ),
    "Saving pictures": (
        "samples_save", "samples_format", "grid_save", "grid_format", "grid_only_if_multiple", "return_grid", "n_rows",
        "enable_pnginfo", "save_txt", "jpeg_quality", "webp_lossless", "return_mask", "return_mask_composite",
    ),
    "Live previews": (
        "live_previews_enable", "show_progress_every_n_steps", "live_previews_image_format",
        "live_preview_refresh_period",
    ),
    "Page": ("control_net_unit_count", "quicksettings_list"),
    "Faces": ("face_restoration", "face_restoration_model"),
}  # fmt: skip

#: option -> (label, what it does)
WORDS: dict[str, tuple[str, str]] = {
    "sd_model_checkpoint": ("Checkpoint", "Draws what names no other model."),
    "sd_vae": ("VAE", "Automatic is the model's own."),
    "CLIP_stop_at_last_layers": (
        "Clip skip",
        "Layers of the text encoder that are left out, counted from 1.",
    ),
    "sd_unet": ("U-Net", "Kept for programs that send it."),
    "sd_checkpoint_hash": ("Hash of the checkpoint", ""),
    "eta_ancestral": ("Eta of ancestral samplers", "0 draws without fresh noise."),
    "eta_ddim": ("Eta of DDIM", "0 draws without fresh noise."),
    "s_churn": ("Sigma churn", "Fresh noise in each step of Euler, Heun and DPM2."),
    "s_tmin": ("Sigma tmin", "No churn below this noise level."),
    "s_tmax": ("Sigma tmax", "No churn above this noise level; 0 is no limit."),
    "s_noise": ("Sigma noise", "Strength of the fresh noise."),
    "s_min_uncond": ("Negative guidance minimum sigma", ""),
    "eta_noise_seed_delta": ("Eta noise seed delta", "Added to the seed of fresh noise."),
    "randn_source": ("Source of noise", ""),
    "token_merging_ratio": ("Token merging", ""),
    "token_merging_ratio_img2img": ("Token merging in img2img", ""),
    "token_merging_ratio_hr": ("Token merging in the second pass", ""),
    "initial_noise_multiplier": ("Noise multiplier of img2img", ""),
    "sd_hypernetwork": ("Hypernetwork", ""),
    "emphasis": ("Emphasis", ""),
    "tiling": ("Tiling", "Pictures whose edges fit together, unless an order says otherwise."),
    "samples_save": ("Save pictures", "Into outputs/, by day."),
    "samples_format": ("Format of pictures", ""),
    "grid_save": ("Save grids", ""),
    "grid_format": ("Format of grids", ""),
    "grid_only_if_multiple": ("Grids only of several pictures", ""),
    "return_grid": ("Show the grid", "First among the results."),
    "n_rows": ("Rows of a grid", "-1 is as square as it goes."),
    "enable_pnginfo": ("Write into pictures how they were made", "PNG Info and history read it back."),
    "save_txt": ("Write it into a .txt beside them, too", ""),
    "jpeg_quality": ("Quality of JPEG, WEBP and AVIF", ""),
    "webp_lossless": ("WEBP without loss", ""),
    "return_mask": ("Show the mask of inpainting", ""),
    "return_mask_composite": ("Show what was inpainted alone", ""),
    "live_previews_enable": ("Show pictures while they are drawn", ""),
    "show_progress_every_n_steps": ("Steps between two previews", "-1 is never."),
    "live_previews_image_format": ("Format of previews", ""),
    "live_preview_refresh_period": ("Time between two previews, in ms", ""),
    "control_net_unit_count": ("ControlNet units", "Counts when the server is started again."),
    "quicksettings_list": ("Quick settings", "At the top of the page."),
    "face_restoration": ("Restore faces", ""),
    "face_restoration_model": (
        "Face restoration model",
        "Kept for programs that send it; no faces are restored here.",
    ),
}
