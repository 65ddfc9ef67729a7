"""Formats of checkpoints: find the model in one, and rename its weights to timm's keys.

Everything works on a flat state dict, tensors by dotted path: `flatten_tensors` makes one of whatever a file holds,
`to_timm_keys` renames the weights of transformers, CLIP and DINOv2, and `select_model` cuts out the part that fits a
given timm model. DINO, MAE and timm's own checkpoints have timm's keys already.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nsaug.utils.errors import UserError

MAX_DEPTH = 8
"""Levels of dictionaries that are searched for tensors."""

WRAPPERS = re.compile(r"(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""Path components that torch.compile, FSDP and activation checkpointing add at any level."""

AVERAGED = re.compile(r"(^|[._])(ema|teacher)([._]|$)")
"""Prefix of a moving average of the weights: timm's state_dict_ema, the teacher of DINO."""

AUXILIARY = re.compile(
    r"n_averaged|mask_token|masked_embed|decoder_(embed|pos_embed|blocks|norm|pred)\b.*"  # AveragedModel, DINOv2, MAE
    r"|head\.(mlp|last_layer)\..*|pooler\.dense\..*|proj|embeddings\.position_ids"  # DINO, transformers, CLIP
)
"""Keys beside those of the encoder that pretraining needs: left out unless the timm model has them, too."""

BLOCK = r"(?:encoder\.)?layers?\.(\d+)\."

TRANSFORMERS_VIT = {
    r"embeddings\.(cls_token|mask_token|register_tokens)": r"\1",
    r"embeddings\.distillation_token": "dist_token",
    r"embeddings\.position_embeddings": "pos_embed",
    r"embeddings\.patch_embeddings\.projection\.(weight|bias)": r"patch_embed.proj.\1",
    rf"{BLOCK}(?:layernorm_before|norm1)\.(weight|bias)": r"blocks.\1.norm1.\2",
    rf"{BLOCK}attention\.(?:attention\.)?([qkv])(?:uery|ey|alue|_proj)\.(weight|bias)": r"blocks.\1.attn.\2.\3",
    rf"{BLOCK}attention\.(?:output\.dense|o_proj)\.(weight|bias)": r"blocks.\1.attn.proj.\2",
    rf"{BLOCK}layer_scale([12])\.lambda1": r"blocks.\1.ls\2.gamma",
    rf"{BLOCK}(?:layernorm_after|norm2)\.(weight|bias)": r"blocks.\1.norm2.\2",
    rf"{BLOCK}(?:intermediate\.dense|mlp\.fc1|mlp\.weights_in)\.(weight|bias)": r"blocks.\1.mlp.fc1.\2",
    rf"{BLOCK}(?:output\.dense|mlp\.fc2|mlp\.weights_out)\.(weight|bias)": r"blocks.\1.mlp.fc2.\2",
    r"layernorm\.(weight|bias)": r"norm.\1",
}
"""ViT, DeiT, MAE and DINOv2 in transformers: names in saved files, and those of modules since version 5."""

TRANSFORMERS_HEADS = {
    r"(?:cls_)?classifier\.(weight|bias)": r"head.\1",
    r"distillation_classifier\.(weight|bias)": r"head_dist.\1",
}

TRANSFORMERS_CLIP = {
    r"embeddings\.class_embedding": "cls_token",
    r"embeddings\.position_embedding\.weight": "pos_embed",
    r"embeddings\.patch_embedding\.weight": "patch_embed.proj.weight",
    r"pre_layrnorm\.(weight|bias)": r"norm_pre.\1",  # transformers' spelling
    rf"{BLOCK}layer_norm([12])\.(weight|bias)": r"blocks.\1.norm\2.\3",
    rf"{BLOCK}self_attn\.([qkv])_proj\.(weight|bias)": r"blocks.\1.attn.\2.\3",
    rf"{BLOCK}self_attn\.out_proj\.(weight|bias)": r"blocks.\1.attn.proj.\2",
    rf"{BLOCK}mlp\.fc([12])\.(weight|bias)": r"blocks.\1.mlp.fc\2.\3",
    r"post_layernorm\.(weight|bias)": r"norm.\1",
}

OPENAI_BLOCK = r"transformer\.resblocks\.(\d+)\."

OPENAI_CLIP = {
    r"class_embedding": "cls_token",
    r"positional_embedding": "pos_embed",
    r"conv1\.weight": "patch_embed.proj.weight",
    r"ln_pre\.(weight|bias)": r"norm_pre.\1",
    rf"{OPENAI_BLOCK}ln_([12])\.(weight|bias)": r"blocks.\1.norm\2.\3",
    rf"{OPENAI_BLOCK}attn\.in_proj_(weight|bias)": r"blocks.\1.attn.qkv.\2",
    rf"{OPENAI_BLOCK}attn\.out_proj\.(weight|bias)": r"blocks.\1.attn.proj.\2",
    rf"{OPENAI_BLOCK}ls_([12])\.gamma": r"blocks.\1.ls\2.gamma",
    rf"{OPENAI_BLOCK}mlp\.c_fc\.(weight|bias)": r"blocks.\1.mlp.fc1.\2",
    rf"{OPENAI_BLOCK}mlp\.c_proj\.(weight|bias)": r"blocks.\1.mlp.fc2.\2",
    r"ln_post\.(weight|bias)": r"norm.\1",
}
"""The vision tower of OpenAI's CLIP and of open_clip."""

DINOV2 = {
    r"blocks\.(\d+)\.mlp\.w12\.(weight|bias)": r"blocks.\1.mlp.fc1.\2",
    r"blocks\.(\d+)\.mlp\.w3\.(weight|bias)": r"blocks.\1.mlp.fc2.\2",
}

CHUNKED_BLOCK = re.compile(r"blocks\.(\d+)\.(\d+)\.(.+)")
"""A block of DINOv2's training checkpoints: number of the chunk, number of the block."""


@dataclass(frozen=True)
class SelectedModel:
    """The weights of one model in a checkpoint.

    Attributes:
        weights: by timm's keys, floating-point numbers as float32.
        prefix: in front of these keys in the checkpoint, such as `state_dict.net.`.
        copies: prefixes of other models in the checkpoint that fit as well.
        unused: the other keys of the checkpoint.
    """

    weights: dict[str, Tensor]
    prefix: str
    copies: list[str]
    unused: list[str]


def flatten_tensors(content: Any, path: str = "", depth: int = 0) -> dict[str, Tensor]:
    """Collect the tensors in nested dictionaries, by dotted path.

    Entries whose key is not a string, such as the state of an optimizer, are left out, and so are path components
    that torch.compile and FSDP add.
    """
    if isinstance(content, Tensor) and path:
        return {WRAPPERS.sub("", path): content.detach()}
    tensors: dict[str, Tensor] = {}
    if isinstance(content, dict) and depth < MAX_DEPTH:
        for key, value in content.items():
            if isinstance(key, str):
                tensors |= flatten_tensors(value, f"{path}.{key}" if path else key, depth + 1)
    return tensors


def unwrap(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights in a usual training checkpoint by their own keys; the moving average if there is one."""
    for wrapper in ("state_dict_ema.", "model_ema.", "state_dict.", "model.", "module."):
        inner = {key.removeprefix(wrapper): value for key, value in state.items() if key.startswith(wrapper)}
        state = inner or state
    return dict(state)


def to_timm_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of transformers, CLIP and DINOv2 to timm's keys; prefixes and unknown keys stay as they are.

    Args:
        state: tensors by dotted path.

    Raises:
        UserError: a classification head that timm's models do not have.
    """
    renamed = dict(state)
    for convert in (from_transformers_vit, from_transformers_clip, from_openai_clip, from_dinov2):
        renamed = convert(renamed)
    return renamed


def has_transformers_keys(state: Mapping[str, Tensor]) -> bool:
    """Whether a checkpoint holds a ViT or a CLIP vision tower by the names of transformers."""
    return bool(_roots(state, "embeddings.patch_embeddings.projection.weight", "embeddings.class_embedding"))


def has_openai_clip_keys(state: Mapping[str, Tensor]) -> bool:
    """Whether a checkpoint holds CLIP's vision transformer by the names of OpenAI and open_clip."""
    return any(f"{root}conv1.weight" in state for root in _roots(state, "class_embedding"))


def from_transformers_vit(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert ViT, DeiT, MAE, DINOv2 of transformers. Queries, keys and values become one matrix.

    The head is outside the encoder: `vit.layernorm.weight`, `classifier.weight`. It is converted for transformers'
    own classifiers, which have no pooler.
    """
    for root in _roots(state, "embeddings.patch_embeddings.projection.weight"):
        state = _fuse_qkv(_rename(state, root, TRANSFORMERS_VIT), root)
        outer, _, name = root.removesuffix(".").rpartition(".")
        if name in ("vit", "deit", "dinov2", "dinov2_with_registers") and f"{root}pooler.dense.weight" not in state:
            outer = f"{outer}." if outer else ""
            state = _rename(state, outer, TRANSFORMERS_HEADS, target=root)
            _check_head(state, f"{outer}classifier.weight", root)
    return state


def from_transformers_clip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert the vision tower of transformers' CLIP. Queries, keys and values become one matrix."""
    for root in _roots(state, "embeddings.class_embedding"):
        state = _add_dims(_fuse_qkv(_rename(state, root, TRANSFORMERS_CLIP), root), root)
    return state


def from_openai_clip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert the vision transformer of OpenAI's CLIP and open_clip; the projection to the text's space stays."""
    for root in _roots(state, "class_embedding"):
        if f"{root}conv1.weight" in state:
            state = _add_dims(_rename(state, root, OPENAI_CLIP), root)
    return state


def from_dinov2(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert DINOv2: blocks in chunks, SwiGLU, registers.

    DINOv2 adds a position embedding to the class token and none to the registers; timm has none for either, so that
    of the class token becomes part of it.
    """
    for root in _roots(state, "mask_token"):
        chunks = {key: CHUNKED_BLOCK.fullmatch(key.removeprefix(root)) for key in state if key.startswith(root)}
        blocks = {match.groups()[:2] for match in chunks.values() if match}
        if len({block for _, block in blocks}) == len(blocks):  # blocks are counted through all chunks
            state = {
                f"{root}blocks.{match[2]}.{match[3]}" if (match := chunks.get(key)) else key: value
                for key, value in state.items()
            }
        state = _rename(state, root, DINOV2)
        if all(f"{root}{name}" in state for name in ("register_tokens", "cls_token", "pos_embed")):
            position = state[f"{root}pos_embed"]
            state[f"{root}reg_token"] = state.pop(f"{root}register_tokens")
            state[f"{root}cls_token"] = state[f"{root}cls_token"] + position[:, :1]
            state[f"{root}pos_embed"] = position[:, 1:]
    return state


def select_model(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> SelectedModel:
    """Cut out the weights of one model: those under the prefix that matches it best.

    Of several copies, a moving average is preferred (a prefix with `ema` or `teacher`), else the one with most keys,
    else the first.

    Args:
        state: tensors by dotted path, with timm's keys after any prefix.
        expected: the state dict of the model; only its keys and shapes count.
    """
    scores: dict[str, float] = {}
    for key, value in state.items():
        parts = key.split(".")
        for start in range(len(parts)):
            name = ".".join(parts[start:])
            if name in expected:
                prefix = key.removesuffix(name)
                # The shapes tell a student from a larger teacher; a head or position embeddings may differ.
                scores[prefix] = scores.get(prefix, 0) + (1 if value.shape == expected[name].shape else 0.5)
    best = max(scores.values(), default=0)
    candidates = [prefix for prefix, score in scores.items() if score >= 0.9 * best] or [""]
    chosen = max(candidates, key=lambda prefix: (bool(AVERAGED.search(prefix)), scores.get(prefix, 0)))
    copies = [prefix for prefix in candidates if prefix != chosen]

    nested = tuple(prefix for prefix in copies if prefix.startswith(chosen))
    weights, unused = {}, []
    for key, value in state.items():
        name = _match_token(key.removeprefix(chosen), expected)
        inside = key.startswith(chosen) and not (nested and key.startswith(nested))
        if inside and (name in expected or not AUXILIARY.fullmatch(name)):
            weights[name] = value.float() if value.is_floating_point() else value
        elif not any(key.removeprefix(prefix) in expected for prefix in copies):
            unused.append(key)
    return SelectedModel(weights, chosen, copies, unused)


def _match_token(name: str, expected: Mapping[str, Tensor]) -> str:
    """A distillation token that no head reads is a register for timm."""
    if name == "dist_token" and name not in expected and "reg_token" in expected:
        return "reg_token"
    return name


def _roots(state: Mapping[str, Tensor], *names: str) -> list[str]:
    """The prefixes, empty or ending with a dot, in front of keys that end with one of these names."""
    return [key.removesuffix(name) for name in names for key in state if key == name or key.endswith(f".{name}")]


def _rename(
    state: dict[str, Tensor], root: str, rules: Mapping[str, str], target: str | None = None
) -> dict[str, Tensor]:
    """Rename the keys under a root by the first pattern that matches the whole rest of the key."""
    renamed = {}
    for key, value in state.items():
        name = key.removeprefix(root)
        if key.startswith(root):
            for pattern, replacement in rules.items():
                if match := re.fullmatch(pattern, name):
                    key = (root if target is None else target) + match.expand(replacement)
                    break
        renamed[key] = value
    return renamed


def _fuse_qkv(state: dict[str, Tensor], root: str) -> dict[str, Tensor]:
    """Join the projections to queries, keys and values in one, where all three are there."""
    for key in [key for key in state if key.startswith(root)]:
        if match := re.fullmatch(rf"({re.escape(root)}blocks\.\d+\.attn\.)q\.(weight|bias)", key):
            parts = [f"{match[1]}{name}.{match[2]}" for name in "qkv"]
            if all(part in state for part in parts):
                state[f"{match[1]}qkv.{match[2]}"] = torch.cat([state.pop(part) for part in parts])
    return state


def _add_dims(state: dict[str, Tensor], root: str) -> dict[str, Tensor]:
    """Give the embeddings of CLIP timm's dimensions: cls_token (1, 1, D), pos_embed (1, N, D)."""
    for name in ("cls_token", "pos_embed"):
        if (value := state.get(f"{root}{name}")) is not None:
            state[f"{root}{name}"] = value.view(1, -1, value.shape[-1])
    return state


def _check_head(state: Mapping[str, Tensor], name: str, root: str) -> None:
    head, norm = state.get(f"{root}head.weight"), state.get(f"{root}norm.weight")
    if head is not None and norm is not None and head.shape[-1] == 2 * norm.shape[-1]:
        raise UserError(
            f"{name} reads the class token and the mean of the patch tokens, which timm's models do not: save the"
            f" encoder alone ({root.removesuffix('.')}), and train a new head"
        )
