import itertools
import math
import os
import socket
import subprocess
import sys
from unittest import mock

import lightning as L
import pytest
import torch
from nsaug.methods.noise import NoiseMethod
from torch._dynamo.utils import counters
from torch.profiler import profile
from torch.utils.data import DataLoader, DistributedSampler

from nsaug.attacks import FGSM, FGSMRS, PGD
from nsaug.methods import TRADES, AdversarialTraining, Clean, Nullspace, RandomNoise
from nsaug.models.noisy_vit import _run
from nsaug.nullspace import EpochSynthesis, NoiseSynthesis, Refinement
from nsaug.training.lightning_module import AdamWConfig, Finetuner, warmup_cosine
from nsaug.utils.errors import UserError
from nsaug.utils.rng import Stream
from nsaug.utils.rng import make_generator as draws
from tests.conftest import ROOT, tiny_vit

METHODS = {
    "clean": lambda: Clean(),
    "sample": lambda: Nullspace(NoiseSynthesis(limit=1.0, eps=0.005, steps=2, lr=0.03)),
    "batch": lambda: Nullspace(NoiseSynthesis(limit=1.0, eps=1e-9, steps=2, lr=0.03, scope="batch")),
    "epoch": lambda: Nullspace(EpochSynthesis(limit=1.0, eps=1e-9, rounds=2, share=0.5, lr=0.03, units="relative")),
    "bf16": lambda: Nullspace(NoiseSynthesis(limit=1.0, eps=1e-9, steps=2, lr=0.03, precision="bf16")),
    "drop": lambda: Nullspace(NoiseSynthesis(limit=1.0, eps=0.005, steps=2, lr=0.03), unreached="drop"),
    "consistency": lambda: Nullspace(NoiseSynthesis(limit=1.0, steps=1, lr=0.03), consistency=0.1),
    "random": lambda: RandomNoise(NoiseSynthesis(limit=1.0, eps=0.005, steps=2, lr=0.03)),
    "influence": lambda: RandomNoise(NoiseSynthesis(limit=1.0, eps=0.01), match="influence"),
    "start": lambda: RandomNoise(NoiseSynthesis(limit=1.0), match="start"),
    "random_batch": lambda: RandomNoise(NoiseSynthesis(limit=1.0, scope="batch"), match="start"),
    "pgd": lambda: AdversarialTraining(PGD(num_steps=2)),
    "fgsm_rs": lambda: AdversarialTraining(FGSMRS()),
    "trades": lambda: TRADES(PGD(num_steps=2, random_start=False)),
}


def some_data(count=8):
    rng = torch.Generator().manual_seed(4)
    images = torch.rand(count, 3, 8, 8, generator=rng, dtype=torch.float64)
    labels = torch.randint(10, (count,), generator=rng)
    return [(images[i], labels[i], str(i)) for i in range(count)]


def trainer(**kwargs):
    options = {"max_steps": 3, "accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "inference_mode": False}
    return L.Trainer(**options | quiet | kwargs)


def test_the_schedule():
    rates = [warmup_cosine(step, total=100, warmup=10) for step in range(101)]
    assert rates[:2] == [1 / 11, 2 / 11]
    assert rates[10] == 1 == max(rates)
    assert math.isclose(rates[55], 0.5)
    assert rates[100] == 0
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))
    assert warmup_cosine(0, total=1, warmup=0) == 1


def test_biases_norms_and_positions_do_not_decay():
    module = Finetuner(tiny_vit().double(), Clean(), AdamWConfig(weight_decay=0.3, lr=1e-3), seed=0)
    fit = trainer(max_steps=1)
    fit.fit(module, DataLoader(some_data(), batch_size=4))
    decay = {id(p): group["weight_decay"] for group in fit.optimizers[0].param_groups for p in group["params"]}
    for name, parameter in module.vit.model.named_parameters():
        plain = parameter.dim() == 1 or name in ("pos_embed", "cls_token")
        assert decay[id(parameter)] == (0 if plain else 0.3), name
    assert len(decay) == len(list(module.vit.parameters()))


@pytest.mark.parametrize("method", METHODS)
def test_training_moves_the_weights_and_logs_what_happened(method):
    module = Finetuner(tiny_vit().double(), METHODS[method]().double(), AdamWConfig(lr=1e-3), seed=0)
    before = {key: value.clone() for key, value in module.vit.state_dict().items()}
    fit = trainer(gradient_clip_val=1.0)
    fit.fit(module, DataLoader(some_data(), batch_size=4))
    assert all(not torch.equal(value, before[key]) for key, value in module.vit.state_dict().items())
    if isinstance(module.method, Nullspace):
        noted = {
            "influence_before",
            "influence",
            "refinement_steps",
            "noise_rms",
            "noise_rms_before",
            "converged",
        }
        assert {f"train/{name}" for name in noted} <= set(fit.callback_metrics)
        assert fit.callback_metrics["train/influence"] <= fit.callback_metrics["train/influence_before"]


def test_the_noise_of_a_step_follows_from_seed_step_and_rank():
    """Two runs draw alike although one used up random numbers in between; another seed draws otherwise."""

    def run(seed, disturb):
        torch.manual_seed(disturb)
        module = Finetuner(tiny_vit().double(), METHODS["sample"]().double(), AdamWConfig(), seed=seed)
        torch.manual_seed(disturb)
        trainer().fit(module, DataLoader(some_data(), batch_size=4))
        return module.vit.state_dict()["head.weight"]

    torch.testing.assert_close(run(0, 1), run(0, 2), rtol=0, atol=0)
    assert not torch.equal(run(0, 1), run(1, 1))


def test_each_batch_draws_anew():
    """Also within one step of the optimiser, when it accumulates the gradients of two batches."""
    drawn = []

    class Recording(Clean):
        def loss(self, vit, images, labels, generator):
            drawn.append(torch.rand(4, generator=generator))
            return super().loss(vit, images, labels, generator)

    module = Finetuner(tiny_vit().double(), Recording(), AdamWConfig(), seed=5)
    trainer(max_steps=2, accumulate_grad_batches=2).fit(module, DataLoader(some_data(), batch_size=4))
    expected = [torch.rand(4, generator=draws("cpu", 5, Stream.TRAINING, batch, 0)) for batch in range(4)]
    torch.testing.assert_close(drawn, expected, rtol=0, atol=0)


def test_the_noise_of_an_epoch_is_learned_at_its_start_and_kept():
    """One noise for all batches of an epoch, another in the next; only its training images are looked at."""
    used = []

    class Recording(Nullspace):
        def refine(self, *args):
            used.append(super().refine(*args))
            return used[-1]

    method = Recording(METHODS["epoch"]().synthesis).double()
    module = Finetuner(tiny_vit().double(), method, AdamWConfig(lr=1e-3), seed=0)
    trainer(max_steps=-1, max_epochs=2).fit(module, DataLoader(some_data(16), batch_size=4))
    noises = [found.noise for found in used]
    assert len(noises) == 8
    assert all(torch.equal(noises[0], other) for other in noises[1:4])
    assert all(torch.equal(noises[4], other) for other in noises[5:])
    assert not torch.equal(noises[0], noises[4])
    assert [found.steps for found in used] == [4] * 8
    restored = Nullspace(method.synthesis).double()
    restored.recall(method.remembered())
    assert torch.equal(restored.found.noise, noises[-1])


def test_a_site_that_the_model_lacks_is_refused_before_anything_starts():
    with pytest.raises(UserError, match="takes no noise at blocks.9"):
        Finetuner(tiny_vit(), Nullspace(NoiseSynthesis(layer="blocks.9")), AdamWConfig(), seed=0)


def test_validation_measures_clean_and_attacked_images():
    vit = tiny_vit().double()
    attack = FGSM(eps=0.2)
    module = Finetuner(vit, Clean(), AdamWConfig(), seed=0, attack=attack, val_attack_batches=1)
    loader = DataLoader(some_data(), batch_size=4)
    (metrics,) = trainer().validate(module, loader, verbose=False)
    images, labels = torch.stack([x for x, _, _ in some_data()]), torch.stack([y for _, y, _ in some_data()])
    vit.eval()
    first = (vit(attack(vit, images[:4], labels[:4])).argmax(1) == labels[:4]).double().mean()
    assert metrics["val/top1"] == pytest.approx((vit(images).argmax(1) == labels).double().mean().item())
    assert metrics["val/adv_top1"] == pytest.approx(first.item())


def noise_of_the_image(self, vit, images, generator):
    """A draw that follows from the image alone, so that an image has the same noise on whichever rank it lands."""
    seeds = (images.sum((1, 2, 3)) * 1e6).long().tolist()
    draw = [torch.rand(vit.noise_shape(), generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return 2 * torch.stack(draw).double() - 1


class Kept(Finetuner):
    def on_before_optimizer_step(self, optimizer):
        self.kept = [p.grad.clone() for p in self.vit.parameters()]


def gradients(name: str, world: int, accumulated: int = 1) -> dict:
    """One optimiser step's gradients of 16 images, in batches of 8 or, cut into 2 ranks or 2 accumulated ones, less."""
    method = METHODS[name]().double()
    module = Kept(tiny_vit().double(), method, AdamWConfig(), seed=0)
    options = {"strategy": "ddp", "devices": world, "num_nodes": 1} if world > 1 else {}
    rank = int(os.environ.get("LOCAL_RANK", 0)) if world > 1 else 0
    mine = DistributedSampler(some_data(16), num_replicas=world, rank=rank, shuffle=False)
    loader = DataLoader(some_data(16), batch_size=8 // world, sampler=mine)
    trainer(max_steps=1, accumulate_grad_batches=accumulated, **options).fit(module, loader)
    found = {"gradients": module.kept}
    if isinstance(method, NoiseMethod):
        found["rms"] = method.rms
    if name == "epoch":
        found["noise"] = method.found.noise
    return found


@pytest.fixture
def graphs(monkeypatch):
    """Counts what torch.compile makes, without the time that its default backend takes."""
    monkeypatch.setattr("nsaug.models.noisy_vit._compiled_run", torch.compile(_run, backend="aot_eager"))
    counters.clear()
    return lambda: counters["stats"]["unique_graphs"]


@pytest.mark.parametrize("name", METHODS)
def test_a_compiled_step_is_the_same_of_three_graphs_at_most(name, graphs):
    weights, counts = [], []

    class Counted(Finetuner):
        def on_train_start(self):
            self.tried = graphs()  # whether anything can be compiled

        def on_train_batch_end(self, *args):
            counts.append(graphs() - self.tried)

    for compile in (False, True):
        vit = tiny_vit(compile=compile).double()
        loader = DataLoader(some_data(16), batch_size=4)
        module = Counted(vit, METHODS[name]().double(), AdamWConfig(lr=1e-3), seed=0, attack=FGSM())
        trainer(max_steps=-1, max_epochs=2).fit(module, loader, loader)
        weights.append(vit.state_dict())
    assert counts[:8] == [0] * 8
    assert 1 <= counts[8] <= 3
    assert counts[8:] == [counts[8]] * 8
    torch.testing.assert_close(weights[1], weights[0], atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("name", ["sample", "batch", "pgd", "trades"])
def test_a_compiled_step_costs_no_more_arithmetic(name, graphs, images, labels):
    """In particular no gradients to the weights where the noise's or the images' alone are wanted."""

    def arithmetic(compile):
        vit, method = tiny_vit(compile=compile).double().train(), METHODS[name]().double()
        if isinstance(method, NoiseMethod):
            method.prepare(vit, images, lambda value: value)
        for _ in range(2):  # the second does what the first compiled
            with profile(with_flops=True) as class_subset, vit.compiled():
                loss, _ = method.loss(vit, images, labels, draws("cpu", 0))
                loss.backward()
        return sum(event.flops for event in class_subset.events())

    assert 0 < arithmetic(True) <= 1.01 * arithmetic(False)


def test_drop_path_takes_two_graphs_more(graphs, images, labels):
    """Refined in eval mode, and its target is the model's answer there."""
    vit, method = tiny_vit(compile=True, drop_path_rate=0.1).double().train(), METHODS["sample"]().double()
    method.prepare(vit, images, lambda value: value)
    for step in range(3):
        with vit.compiled():
            loss, _ = method.loss(vit, images, labels, draws("cpu", step))
        loss.backward()
    assert graphs() == 5


def test_where_nothing_can_be_compiled_it_says_so_before_the_first_step(monkeypatch):
    def broken(function):
        raise RuntimeError("no compiler\nmore")

    module = Finetuner(tiny_vit(compile=True), Clean(), AdamWConfig(), seed=0)
    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(UserError, match=r"does not work here \(no compiler\).*model.compile=false"):
        trainer().fit(module, DataLoader(some_data(), batch_size=4))


SPLIT = ["clean", "sample", "drop", "epoch"]


def rank_of_two(rank: int, path: str) -> None:
    """What a process of two does: some methods with draws that follow the images, then all accumulating two batches."""
    torch.set_num_threads(1)
    with mock.patch.object(NoiseSynthesis, "draw", noise_of_the_image):
        found = {name: gradients(name, 2) for name in SPLIT}
    found |= {f"{name}, accumulated": gradients(name, 2, accumulated=2) for name in METHODS}
    torch.save(found, f"{path}/{rank}")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each of two processes found, over gloo."""
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(2):
        env = os.environ | {
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "NODE_RANK": "0",
            "LOCAL_RANK": str(rank), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
            "PL_TORCH_DISTRIBUTED_BACKEND": "gloo",
        }  # fmt: skip
        code = f"from tests.training.test_lightning_module import rank_of_two; rank_of_two({rank}, '{folder}')"
        processes.append(subprocess.Popen([sys.executable, "-c", code], env=env, stderr=subprocess.PIPE, text=True))
    errors = [process.communicate(timeout=240)[1] for process in processes]
    assert all((folder / str(rank)).exists() for rank in range(2)), errors
    return [torch.load(folder / str(rank)) for rank in range(2)]


@pytest.mark.parametrize("name", SPLIT)
def test_two_processes_get_one_process_gradients(name, ranks):
    """DDP in float64; of scope `batch` and all others each rank's draws are its own by design."""
    with mock.patch.object(NoiseSynthesis, "draw", noise_of_the_image):
        one = gradients(name, 1)
    for two in ranks:
        assert two[name].keys() == one.keys()
        torch.testing.assert_close(two[name], one, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("name", METHODS)
def test_ranks_and_accumulated_batches_are_averaged(name, ranks):
    """Two ranks and two batches each, against the mean of the gradients of all four by `Method.loss` alone."""
    found = [rank[f"{name}, accumulated"] for rank in ranks]
    torch.testing.assert_close(found[0], found[1], atol=0, rtol=0)  # the epoch's noise, too
    data = some_data(16)
    images, labels = torch.stack([x for x, _, _ in data]), torch.stack([y for _, y, _ in data])
    method, vit = METHODS[name]().double(), tiny_vit().double().train()
    if isinstance(method, NoiseMethod):
        method.rms.copy_(found[0]["rms"])
    if name == "epoch":
        nothing = torch.full((1,), torch.nan)
        method.found = Refinement(found[0]["noise"], None, nothing, nothing, nothing, nothing, nothing > 0, 0)
    for rank in range(2):
        for step in range(2):
            mine = slice(rank + 8 * step, 8 * (step + 1), 2)  # as DistributedSampler deals them out
            loss, _ = method.loss(vit, images[mine], labels[mine], draws("cpu", 0, Stream.TRAINING, step, rank))
            (loss / 4).backward()
    expected = [parameter.grad for parameter in vit.parameters()]
    torch.testing.assert_close(found[0]["gradients"], expected, atol=1e-12, rtol=1e-9)
