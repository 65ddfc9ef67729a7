"""Whether a Weights & Biases account is stored on this machine."""

import wandb


def has_api_key() -> bool:
    """Whether an account is stored (WANDB_API_KEY, netrc); asks neither the user nor the server."""
    wandb.setup(wandb.Settings(silent=True))
    return wandb.login(prompt=False, verify=False)
