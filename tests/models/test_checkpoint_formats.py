"""Checkpoints of other libraries: the same logits as the source's own forward, or one line.

The sources are transformers' own models and, for repositories that are not packages, small modules below that have the
attributes, and so the keys, of the original code. They share no code with timm.
"""

import argparse
import copy
import json

import lightning as L
import pytest
import timm
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

from nsaug.models.checkpoint_formats import flatten_tensors, select_model, to_timm_keys
from nsaug.models.factory import build_vit
from nsaug.models.weights import save_config, save_weights
from nsaug.utils.errors import UserError

NAME = "vit_tiny_patch16_224"
WIDTH, DEPTH, HEADS, CLASSES = 24, 2, 2, 5  # timm's ViT-Ti has 3 heads, which fit this width, too
ARGS = {"embed_dim": WIDTH, "depth": DEPTH}


def randomize(module: nn.Module, seed: int = 0) -> nn.Module:
    """Draw all weights so that every one of them matters for the output; in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
            if parameter.dim() == 1 and name.endswith(("weight", "gamma", "lambda1")):
                parameter.add_(1)
    return module.eval()


def images() -> torch.Tensor:
    """Normalized images for the model itself, without NoisyViT's normalization."""
    return torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def load(path, name=NAME, args=None, sizes=True):
    """The timm model with a checkpoint; sizes=False leaves heads, image and patch size to config.json."""
    settings = {"img_size": 8, "patch_size": 2, "args": ARGS | {"num_heads": HEADS} | (args or {})}
    if not sizes:
        settings = {"args": ARGS | (args or {})}
    return build_vit(name, checkpoint=str(path), **settings).model.eval()


def timm_vit(seed: int = 0, **args) -> nn.Module:
    options = {"img_size": 8, "patch_size": 2, "num_heads": HEADS, "num_classes": CLASSES} | ARGS | args
    return randomize(timm.create_model(NAME, **options), seed)


@torch.no_grad()
def assert_equal_outputs(model: nn.Module, expected: torch.Tensor) -> None:
    output = model(images())
    assert output.std() > 0.1  # not equal because everything is zero
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-5)


# --- Modules with the attributes of the original repositories


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        q, k, v = (part.unflatten(-1, (HEADS, -1)) for part in self.qkv(x).chunk(3, dim=-1))
        weights = (torch.einsum("bqhd,bkhd->bhqk", q, k) / (WIDTH / HEADS) ** 0.5).softmax(-1)
        return self.proj(torch.einsum("bhqk,bkhd->bqhd", weights, v).flatten(2))


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


class SwiGLU(nn.Module):
    def __init__(self):
        super().__init__()
        self.w12, self.w3 = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x):
        gate, value = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * value)


class LayerScale(nn.Module):
    def __init__(self):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x):
        return self.gamma * x


class Block(nn.Module):
    def __init__(self, mlp, scale):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH, eps=1e-6), nn.LayerNorm(WIDTH, eps=1e-6)
        self.attn, self.mlp = Attention(), mlp()
        self.ls1, self.ls2 = (LayerScale(), LayerScale()) if scale else (nn.Identity(), nn.Identity())

    def forward(self, x):
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class PatchEmbed(nn.Module):
    def __init__(self):
        super().__init__()
        self.proj = nn.Conv2d(3, WIDTH, 2, 2)

    def forward(self, x):
        return self.proj(x).flatten(2).transpose(1, 2)


class OriginalViT(nn.Module):
    """DINO, DINOv2 and MAE, whose repositories use these names."""

    def __init__(self, mlp=Mlp, scale=False, registers=0, mean_pool=False, classes=0):
        super().__init__()
        self.patch_embed = PatchEmbed()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.pos_embed = nn.Parameter(torch.zeros(1, 17, WIDTH))
        if registers:
            self.register_tokens = nn.Parameter(torch.zeros(1, registers, WIDTH))
        self.blocks = nn.ModuleList(Block(mlp, scale) for _ in range(DEPTH))
        self.mean_pool, self.registers = mean_pool, registers
        setattr(self, "fc_norm" if mean_pool else "norm", nn.LayerNorm(WIDTH, eps=1e-6))
        self.head = nn.Linear(WIDTH, classes) if classes else nn.Identity()

    def forward(self, x):
        x = self.patch_embed(x)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        if self.registers:
            x = torch.cat([x[:, :1], self.register_tokens.expand(len(x), -1, -1), x[:, 1:]], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.head(self.fc_norm(x[:, 1:].mean(dim=1)) if self.mean_pool else self.norm(x)[:, 0])


class QuickGELU(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


class ResidualAttentionBlock(nn.Module):
    def __init__(self, act):
        super().__init__()
        self.attn = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.ln_1, self.ln_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential()
        for name, layer in (
            ("c_fc", nn.Linear(WIDTH, 4 * WIDTH)),
            ("gelu", act()),
            ("c_proj", nn.Linear(4 * WIDTH, WIDTH)),
        ):
            self.mlp.add_module(name, layer)

    def forward(self, x):
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    def __init__(self, act):
        super().__init__()
        self.resblocks = nn.Sequential(*(ResidualAttentionBlock(act) for _ in range(DEPTH)))

    def forward(self, x):
        return self.resblocks(x)


class CLIPVision(nn.Module):
    """The vision transformer of OpenAI's CLIP."""

    def __init__(self, act=QuickGELU):
        super().__init__()
        self.class_embedding = nn.Parameter(torch.zeros(WIDTH))
        self.positional_embedding = nn.Parameter(torch.zeros(17, WIDTH))
        self.proj = nn.Parameter(torch.zeros(WIDTH, 7))
        self.conv1 = nn.Conv2d(3, WIDTH, 2, 2, bias=False)
        self.ln_pre, self.ln_post = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.transformer = Transformer(act)

    def forward(self, x):
        x = self.conv1(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], dim=1) + self.positional_embedding
        return self.ln_post(self.transformer(self.ln_pre(x))[:, 0])


class CLIP(nn.Module):
    def __init__(self):
        super().__init__()
        self.visual = CLIPVision()
        self.transformer = Transformer(QuickGELU)  # of the text
        self.token_embedding = nn.Embedding(11, WIDTH)
        self.logit_scale = nn.Parameter(torch.ones(()))


class DINOHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 8), nn.GELU(), nn.Linear(8, 4))
        self.last_layer = nn.utils.weight_norm(nn.Linear(4, 6, bias=False))


class MultiCropWrapper(nn.Module):
    def __init__(self, seed):
        super().__init__()
        self.backbone, self.head = randomize(OriginalViT(), seed), DINOHead()


def with_prefix(prefix: str, state: dict) -> dict:
    return {prefix + key: value for key, value in state.items()}


# --- DINO, DINOv2, MAE, CLIP


@torch.no_grad()
def test_dino_backbone(tmp_path):
    source = randomize(OriginalViT())
    torch.save(source.state_dict(), tmp_path / "dino.pth")
    assert_equal_outputs(load(tmp_path / "dino.pth"), source(images()))


def test_resampled_weights_are_named(tmp_path, caplog):
    caplog.set_level("INFO")
    torch.save(randomize(OriginalViT()).state_dict(), tmp_path / "dino.pth")
    build_vit(NAME, checkpoint=str(tmp_path / "dino.pth"), img_size=8, patch_size=4, args=ARGS)
    assert (
        "2 resampled (pos_embed, patch_embed.proj.weight): predictions differ from the source's unless" in caplog.text
    )


@torch.no_grad()
def test_dino_training_checkpoint_gives_the_teacher(tmp_path, caplog):
    caplog.set_level("INFO")
    student, teacher = MultiCropWrapper(0), MultiCropWrapper(1)
    content = {
        "student": with_prefix("module.", student.state_dict()),
        "teacher": teacher.state_dict(),
        "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}},
        "epoch": 3,
        "args": argparse.Namespace(arch="vit_small"),
        "dino_loss": {"center": torch.zeros(1, 6)},
    }
    torch.save(content, tmp_path / "checkpoint.pth")
    assert_equal_outputs(load(tmp_path / "checkpoint.pth"), teacher.backbone(images()))
    assert "holds several models: took teacher.backbone., not student.module.backbone." in caplog.text
    assert "not used (student.module.head.mlp.0.weight, " in caplog.text


DINOV2 = {"init_values": 1.0}


@torch.no_grad()
@pytest.mark.parametrize(("registers", "prefix"), [(0, ""), (4, ""), (4, "backbone.")])
def test_dinov2_backbone(tmp_path, registers, prefix):
    source = randomize(OriginalViT(scale=True, registers=registers))
    state = source.state_dict() | {"mask_token": torch.ones(1, WIDTH)}
    torch.save(with_prefix(prefix, state), tmp_path / "dinov2.pth")
    args = DINOV2 | ({"reg_tokens": registers, "no_embed_class": True} if registers else {})
    assert_equal_outputs(load(tmp_path / "dinov2.pth", args=args), source(images()))


@torch.no_grad()
def test_dinov2_training_checkpoint_in_chunks_of_blocks(tmp_path):
    """Chunk 0 holds block 0, chunk 1 block 1, as with block_chunks=2."""
    source = randomize(OriginalViT(scale=True))
    state = source.state_dict() | {"mask_token": torch.ones(1, WIDTH)}
    chunked = {key.replace("blocks.0.", "blocks.0.0.").replace("blocks.1.", "blocks.1.1."): state[key] for key in state}
    teacher = with_prefix("backbone.", chunked) | {"dino_head.mlp.0.weight": torch.ones(3, WIDTH)}
    torch.save({"teacher": teacher}, tmp_path / "teacher_checkpoint.pth")
    assert_equal_outputs(load(tmp_path / "teacher_checkpoint.pth", args=DINOV2), source(images()))


@torch.no_grad()
def test_dinov2_giant_has_swiglu(tmp_path):
    source = randomize(OriginalViT(mlp=SwiGLU, scale=True))
    state = source.state_dict() | {"mask_token": torch.ones(1, WIDTH)}
    torch.save(with_prefix("backbone.", state), tmp_path / "dinov2.pth")
    loaded = load(tmp_path / "dinov2.pth", name="vit_giant_patch14_dinov2", args={"mlp_ratio": 4, "init_values": 1.0})
    assert_equal_outputs(loaded, source(images()))


@torch.no_grad()
def test_mae_pretraining_gives_the_encoder(tmp_path):
    source = randomize(OriginalViT())
    decoder = {
        "mask_token": torch.ones(1, 1, 8),
        "decoder_pos_embed": torch.ones(1, 17, 8),
        "decoder_embed.weight": torch.ones(8, WIDTH),
        "decoder_blocks.0.norm1.weight": torch.ones(8),
        "decoder_norm.weight": torch.ones(8),
        "decoder_pred.bias": torch.ones(12),
    }
    torch.save({"model": source.state_dict() | decoder}, tmp_path / "mae.pth")
    assert_equal_outputs(load(tmp_path / "mae.pth"), source(images()))


@torch.no_grad()
def test_mae_finetuned(tmp_path):
    source = randomize(OriginalViT(mean_pool=True, classes=CLASSES))
    torch.save({"model": source.state_dict(), "epoch": 3}, tmp_path / "mae.pth")
    assert_equal_outputs(load(tmp_path / "mae.pth", args={"global_pool": "avg"}), source(images()))
    with pytest.raises(UserError, match=r"2 unexpected \(fc_norm.*; try model.args=\{global_pool: avg\}$"):
        load(tmp_path / "mae.pth")


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_openai_clip_in_other_precisions(tmp_path, dtype, caplog):
    caplog.set_level("INFO")
    source = randomize(CLIP()).to(dtype)
    torch.save(source.state_dict(), tmp_path / "clip.pt")
    loaded = load(tmp_path / "clip.pt", name="vit_base_patch32_clip_quickgelu_224")
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    assert_equal_outputs(loaded, source.float().visual(images()))
    assert "not used (logit_scale, visual.proj, transformer.resblocks.0.attn.in_proj_weight, ...)" in caplog.text
    assert "which activation" not in caplog.text


@torch.no_grad()
def test_clips_vision_tower_alone(tmp_path, caplog):
    source = randomize(CLIPVision(act=nn.GELU))
    torch.save(with_prefix("module.visual.", source.state_dict()), tmp_path / "tower.pt")
    assert_equal_outputs(load(tmp_path / "tower.pt", name="vit_base_patch32_clip_224"), source(images()))
    assert "the weights do not say which activation CLIP has" in caplog.text


@torch.no_grad()
def test_open_clip_with_a_tower_of_timm(tmp_path):
    source = timm_vit(num_classes=0)
    state = with_prefix("visual.trunk.", source.state_dict()) | {"visual.head.proj.weight": torch.ones(7, WIDTH)}
    torch.save({"state_dict": with_prefix("module.", state)}, tmp_path / "epoch_3.pt")
    assert_equal_outputs(load(tmp_path / "epoch_3.pt"), source(images()))


def test_torchscript_is_refused(tmp_path):
    torch.jit.script(nn.Linear(2, 2)).save(tmp_path / "ViT-B-32.pt")
    with pytest.raises(UserError, match="is a TorchScript program, such as OpenAI's CLIP: save its state_dict"):
        load(tmp_path / "ViT-B-32.pt")


def test_damaged_shapes_give_one_line(tmp_path):
    shape = torch.Size([2, 2])
    for damaged in (
        {"embeddings.patch_embeddings.projection.weight": 4, "layers.0.attention.q_proj.weight": 2,
         "layers.0.attention.k_proj.weight": 1, "layers.0.attention.v_proj.weight": 2},
        {"class_embedding": 0, "conv1.weight": 4},
        {"mask_token": 1, "register_tokens": 3, "cls_token": 3, "pos_embed": 1},
    ):  # fmt: skip
        torch.save(
            {key: torch.ones((*shape, *shape)[:dims]) for key, dims in damaged.items()}, tmp_path / "weights.pth"
        )
        with pytest.raises(UserError, match=r"^checkpoint=.*weights.pth has weights of unexpected shapes: ") as error:
            load(tmp_path / "weights.pth")
        assert "\n" not in str(error.value)


# --- timm's keys after any prefix


@torch.no_grad()
@pytest.mark.parametrize(
    "prefix",
    ["", "module.", "_orig_mod.", "_orig_mod.module.", "model.", "net.backbone.", "student.vit.", "model.module."],
)
def test_prefixes_in_front_of_timms_keys(tmp_path, prefix):
    source = timm_vit()
    other = {} if prefix in ("", "_orig_mod.") else {"criterion.weight": torch.ones(CLASSES)}
    torch.save({"state_dict": with_prefix(prefix, source.state_dict()) | other}, tmp_path / "last.ckpt")
    assert_equal_outputs(load(tmp_path / "last.ckpt"), source(images()))


@torch.no_grad()
def test_wrappers_of_torch(tmp_path):
    source = timm_vit()
    blocks_compiled = copy.deepcopy(source)
    for index, block in enumerate(blocks_compiled.blocks):
        blocks_compiled.blocks[index] = torch.compile(block)
    wrapped = {
        "compile": torch.compile(source),
        "blocks": blocks_compiled,
        "parallel": nn.DataParallel(source),
        "average": AveragedModel(source),
    }
    for name, model in wrapped.items():
        torch.save(model.state_dict(), tmp_path / f"{name}.pth")
        assert_equal_outputs(load(tmp_path / f"{name}.pth"), source(images()))


@torch.no_grad()
def test_timms_training_checkpoint_gives_the_moving_average(tmp_path, caplog):
    caplog.set_level("INFO")
    model, average = timm_vit(0), timm_vit(1)
    content = {
        "epoch": 3, "arch": NAME, "state_dict": model.state_dict(), "optimizer": {"state": {}, "param_groups": []},
        "version": 2, "args": argparse.Namespace(model=NAME), "metric": 70.1,
    }  # fmt: skip
    torch.save(content, tmp_path / "checkpoint-3.pth.tar")
    assert_equal_outputs(load(tmp_path / "checkpoint-3.pth.tar"), model(images()))
    torch.save(content | {"state_dict_ema": average.state_dict()}, tmp_path / "model_best.pth.tar")
    assert_equal_outputs(load(tmp_path / "model_best.pth.tar"), average(images()))
    assert "holds several models: took state_dict_ema., not state_dict." in caplog.text


class Classifier(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = timm_vit().train()

    def training_step(self, batch, index):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


def test_lightnings_moving_average_is_used(tmp_path):
    module = Classifier()
    callback = EMAWeightAveraging(decay=0.5)
    trainer = L.Trainer(
        max_steps=2, accelerator="cpu", logger=False, callbacks=[callback], enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, default_root_dir=tmp_path,
    )  # fmt: skip
    batches = torch.utils.data.DataLoader(list(zip(images(), torch.arange(3), strict=True)), batch_size=3)
    path = tmp_path / "last.ckpt"
    module.on_train_epoch_end = lambda: trainer.save_checkpoint(path)
    trainer.fit(module, batches)
    content = torch.load(path)
    assert {"state_dict", "current_model_state"} <= content.keys()
    for name, expected in content["state_dict"].items():
        assert torch.equal(load(path).state_dict()[name.removeprefix("net.")], expected)
    assert not torch.equal(content["state_dict"]["net.head.weight"], content["current_model_state"]["net.head.weight"])


def test_copies_and_keys_are_logged_on_one_line(tmp_path, caplog):
    caplog.set_level("INFO")
    state = with_prefix("a\nb.", timm_vit(0).state_dict()) | with_prefix("ema.", timm_vit(1).state_dict())
    torch.save(state | {"x\ny": torch.ones(1)}, tmp_path / "weights.pth")
    load(tmp_path / "weights.pth")
    assert r"took ema., not a\nb." in caplog.text
    assert r"1 not used (x\ny)" in caplog.text


@torch.no_grad()
def test_larger_teacher_of_a_distillation_is_not_taken(tmp_path):
    student, teacher = timm_vit(), timm_vit(embed_dim=2 * WIDTH, depth=3)
    state = with_prefix("teacher.", teacher.state_dict()) | with_prefix("student.", student.state_dict())
    torch.save({"state_dict": state}, tmp_path / "last.ckpt")
    assert_equal_outputs(load(tmp_path / "last.ckpt"), student(images()))


def test_head_outside_the_encoder_is_named(tmp_path, caplog):
    caplog.set_level("INFO")
    state = with_prefix("backbone.", timm_vit(num_classes=0).state_dict()) | {"fc.weight": torch.ones(2, WIDTH)}
    torch.save(state, tmp_path / "weights.pth")
    assert load(tmp_path / "weights.pth").num_classes == 0
    assert "1 not used (fc.weight)" in caplog.text


def test_chunks_are_renamed_only_if_blocks_are_counted_through():
    """Twins counts the blocks of each stage from 0."""
    keys = ["blocks.0.0.norm1.weight", "blocks.1.0.norm1.weight", "mask_token"]
    state = {key: torch.ones(1) for key in keys}
    assert to_timm_keys(state).keys() == state.keys()


def test_only_tensors_under_names_are_read():
    tensor = torch.ones(1)
    content = {"a": tensor, "b": {"c": tensor, "d": 3, 4: tensor}, "list": [tensor]}
    assert list(flatten_tensors(content)) == ["a", "b.c"]
    deep = {"x": tensor}
    for _ in range(100):
        deep = {"x": deep}
    assert flatten_tensors(deep) == {}


def test_selection_without_any_match_keeps_all_keys():
    state = {"x.a": torch.ones(1), "y": torch.ones(1)}
    assert select_model(state, {"b": torch.ones(1)}).weights == state


# --- transformers


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers", reason="transformers is not installed: pip install 'nsaug[dev]'")


def transformers_model(transformers, config: str, model: str, **options) -> nn.Module:
    sizes = {
        "hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": HEADS, "intermediate_size": 4 * WIDTH,
        "image_size": 8, "patch_size": 2, "num_labels": CLASSES, "attn_implementation": "eager",
    }  # fmt: skip
    return randomize(getattr(transformers, model)(getattr(transformers, config)(**sizes | options)))


def save_transformers(model: nn.Module, folder, layout: str):
    """Save as `save_pretrained` does, or by the names of the modules, which differ since transformers 5."""
    model.save_pretrained(folder)
    if layout == "modules":
        (folder / "model.safetensors").unlink()
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return folder


REGISTERS = {"reg_tokens": 4, "no_embed_class": True} | DINOV2
MASK = {"mask_ratio": 0.0}
SOURCES = [
    ("ViTConfig", "ViTForImageClassification", {}, NAME, {}),
    ("ViTConfig", "ViTForImageClassification", {"qkv_bias": False, "hidden_act": "relu"}, NAME, {"qkv_bias": False}),
    ("ViTConfig", "ViTModel", {}, NAME, {}),
    ("DeiTConfig", "DeiTForImageClassificationWithTeacher", {}, "deit_tiny_distilled_patch16_224", {}),
    ("DeiTConfig", "DeiTForImageClassification", {}, "deit_tiny_patch16_224", {"reg_tokens": 1}),
    ("Dinov2Config", "Dinov2Model", {"mlp_ratio": 4}, "vit_small_patch14_dinov2", DINOV2),
    (
        "Dinov2WithRegistersConfig",
        "Dinov2WithRegistersModel",
        {"mlp_ratio": 4},
        "vit_small_patch14_reg4_dinov2",
        REGISTERS,
    ),
    ("ViTMAEConfig", "ViTMAEModel", MASK, "vit_base_patch16_224.mae", {}),
    ("CLIPVisionConfig", "CLIPVisionModel", {}, "vit_base_patch32_clip_224", {}),
    ("CLIPVisionConfig", "CLIPVisionModelWithProjection", {}, "vit_base_patch32_clip_quickgelu_224", {}),
]


def output_of(model: nn.Module) -> torch.Tensor:
    """Logits, or the class token after the last LayerNorm."""
    output = model(images())
    if hasattr(output, "logits"):
        return output.logits
    if "CLIP" in type(model).__name__:
        return getattr(model, "vision_model", model)(images()).pooler_output
    return output.last_hidden_state[:, 0]


@torch.no_grad()
@pytest.mark.parametrize("layout", ["files", "modules"])
@pytest.mark.parametrize(("config", "model", "options", "name", "args"), SOURCES)
def test_transformers(transformers, tmp_path, layout, config, model, options, name, args):
    """The number of heads, the activation and the epsilon come from config.json."""
    source = transformers_model(transformers, config, model, **options)
    folder = save_transformers(source, tmp_path, layout)
    assert_equal_outputs(load(folder, name, args, sizes=False), output_of(source))


@torch.no_grad()
def test_transformers_mae_pretraining_gives_the_encoder(transformers, tmp_path):
    decoder = {"decoder_hidden_size": 8, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
    source = transformers_model(transformers, "ViTMAEConfig", "ViTMAEForPreTraining", **MASK, **decoder)
    expected = source.vit(images()).last_hidden_state[:, 0]
    for layout in ("files", "modules"):
        (tmp_path / layout).mkdir()
        folder = save_transformers(source, tmp_path / layout, layout)
        assert_equal_outputs(load(folder, sizes=False), expected)


@torch.no_grad()
def test_transformers_clip_for_images_and_text(transformers, tmp_path):
    vision = {
        "hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": HEADS, "intermediate_size": 4 * WIDTH,
        "image_size": 8, "patch_size": 2,
    }  # fmt: skip
    text = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 9}
    config = transformers.CLIPConfig(vision_config=vision, text_config=text, projection_dim=7)
    source = randomize(transformers.CLIPModel(config))
    source.save_pretrained(tmp_path)
    expected = source.vision_model(images()).pooler_output
    assert_equal_outputs(load(tmp_path, "vit_base_patch32_clip_224", sizes=False), expected)


@torch.no_grad()
def test_transformers_in_a_lightning_module(transformers, tmp_path, caplog):
    """Without a config.json, the epsilon is timm's."""
    source = transformers_model(transformers, "ViTConfig", "ViTForImageClassification", layer_norm_eps=1e-6)
    torch.save({"state_dict": with_prefix("model.", source.state_dict())}, tmp_path / "last.ckpt")
    assert_equal_outputs(load(tmp_path / "last.ckpt"), output_of(source))
    assert "has no config.json of transformers beside it: the number of heads, the activation" in caplog.text


@torch.no_grad()
def test_weights_in_several_files(transformers, tmp_path):
    source = transformers_model(transformers, "ViTConfig", "ViTForImageClassification")
    source.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert_equal_outputs(load(tmp_path, sizes=False), output_of(source))
    next(tmp_path.glob("model-*.safetensors")).unlink()
    with pytest.raises(UserError, match=r"model-.*safetensors is missing beside it"):
        load(tmp_path)


def test_shards_elsewhere_are_refused(tmp_path):
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    (tmp_path / "x").mkdir()
    index = tmp_path / "x" / "model.safetensors.index.json"
    for name in ("../model.safetensors", "/model.safetensors", "model.py", "a\nb.bin"):
        index.write_text(json.dumps({"weight_map": {"a": name}}))
        with pytest.raises(UserError, match="weight_map") as error:
            load(tmp_path / "x")
        assert "\n" not in str(error.value)


@torch.no_grad()
def test_epsilon_survives_a_run(transformers, tmp_path):
    source = transformers_model(transformers, "ViTConfig", "ViTForImageClassification", layer_norm_eps=0.1)
    source.save_pretrained(tmp_path / "source")
    vit = build_vit(NAME, checkpoint=str(tmp_path / "source"), img_size=8, patch_size=2, args=ARGS)
    (tmp_path / "run").mkdir()
    save_config(tmp_path / "run", vit, {})
    save_weights(tmp_path / "run", vit.state_dict())
    again = build_vit(NAME, checkpoint=str(tmp_path / "run"), args=vit.model_args)
    assert_equal_outputs(again.model.eval(), output_of(source))


def test_dinov2_classifier_has_no_counterpart(transformers, tmp_path):
    source = transformers_model(transformers, "Dinov2Config", "Dinov2ForImageClassification", mlp_ratio=4)
    source.save_pretrained(tmp_path)
    with pytest.raises(
        UserError,
        match=r"^checkpoint=.*: classifier.weight reads the class token and the mean .* save the encoder alone",
    ):
        load(tmp_path, args=DINOV2)


@pytest.mark.parametrize(
    ("model", "config"), [("SiglipVisionModel", "SiglipVisionConfig"), ("BeitForImageClassification", "BeitConfig")]
)
def test_unknown_formats_give_one_line(transformers, tmp_path, model, config):
    transformers_model(transformers, config, model).save_pretrained(tmp_path)
    with pytest.raises(UserError) as error:
        load(tmp_path, sizes=False)
    line = str(error.value)
    assert "model.safetensors" not in line  # the folder, as typed
    assert f"{tmp_path} does not match model.name={NAME}: " in line
    assert "unexpected (" in line
    assert "\n" not in line


def test_pooler_and_a_classifier_of_the_user_are_not_used(transformers, tmp_path, caplog):
    """The user's forward is not known: the classifier may read the pooler or the class token."""
    caplog.set_level("INFO")
    source = transformers_model(transformers, "ViTConfig", "ViTModel")
    state = with_prefix("vit.", source.state_dict()) | {"classifier.weight": torch.ones(2, WIDTH)}
    torch.save(state, tmp_path / "weights.pth")
    assert load(tmp_path / "weights.pth").num_classes == 0
    assert "3 not used (" in caplog.text
    assert "classifier.weight" in caplog.text


@pytest.mark.parametrize(
    ("content", "mean", "std", "interpolation"),
    [
        ({"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "resample": 3}, 0.1, 0.4, "bicubic"),
        ({"do_normalize": False, "image_mean": [0.1] * 3, "image_std": [0.4] * 3, "resample": 2}, 0.0, 1.0, "bilinear"),
    ],
)
def test_preprocessing_of_transformers(tmp_path, content, mean, std, interpolation):
    save_file(timm_vit().state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(content))
    vit = build_vit(NAME, checkpoint=str(tmp_path), img_size=8, patch_size=2, args=ARGS)
    assert (vit.mean.flatten()[0].item(), vit.std.flatten()[0].item()) == pytest.approx((mean, std))
    assert vit.data_config["interpolation"] == interpolation
    vit = build_vit(NAME, checkpoint=str(tmp_path), img_size=8, patch_size=2, args=ARGS, interpolation="nearest")
    assert vit.data_config["interpolation"] == "nearest"  # the command line takes precedence


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model_type": "vit", "hidden_act": "mish"}, "hidden_act=mish in its config.json is not one of gelu"),
        ({"model_type": "vit", "num_attention_heads": "2"}, "num_attention_heads='2' should be a valid integer"),
        ({"model_type": "vit", "layer_norm_eps": -1.0}, "layer_norm_eps=-1.0"),
        ({"model_type": "vit", "id2label": {"0": "a\nb"}}, "control characters"),
        ([], "should be"),
    ],
)
def test_invalid_config_of_transformers(tmp_path, content, message):
    save_file(timm_vit().state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=message) as error:
        load(tmp_path)
    assert "\n" not in str(error.value)
